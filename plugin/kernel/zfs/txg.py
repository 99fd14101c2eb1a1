"""Transaction groups: which is open, quiescing, syncing and synced, and who holds one open.

Mirrors txg.c, dmu_tx.c, dsl_pool.c and their headers, 9.3 to 15.x.  struct tx_state lies in
the dsl_pool (dp_tx); tx_cpu[] counts, for each CPU and each txg modulo TXG_SIZE, the
transactions that hold the txg open.
"""

from __future__ import annotations

import struct
from typing import List, NamedTuple, Optional, Tuple

from plugin.caching import MEMORY, cached
from plugin.errors import LayoutError, MemoryFault
from plugin.kernel.zfs.common import peek, try_peek
from plugin.session import Kernel

#: TXG_SIZE (sys/txg.h): how many txgs are told apart
TXG_SIZE = 4


class Txg(NamedTuple):
    """The transaction groups of one pool; ``quiescing`` None before 12.0.

    ``sync_thread`` and ``quiesce_thread`` are struct thread * or 0.  ``dirty``: bytes of
    dp_dirty_total; ``dirty_max``: zfs_dirty_data_max, None where it cannot be read.
    """

    address: int
    dsl_pool: int
    spa: int
    open: int
    quiescing: Optional[int]
    quiesced: int
    syncing: int
    synced: int
    sync_waiting: int
    sync_thread: int
    quiesce_thread: int
    dirty: int
    dirty_max: Optional[int]


@cached(MEMORY)
def txg_of(kernel: Kernel, dsl_pool: int) -> Optional[Txg]:
    """The tx_state of a ``struct dsl_pool *``; None, with a finding, where not to be read."""
    try:
        return _txg(kernel, dsl_pool)
    except (MemoryFault, LayoutError) as error:
        kernel.warnings.add("dsl_pool", dsl_pool, str(error))
        return None


def _txg(kernel: Kernel, dsl_pool: int) -> Txg:
    address = dsl_pool + kernel.layouts.offsetof("dsl_pool", "dp_tx")

    def member(path: str) -> int:
        found: int = peek(kernel, "tx_state", address, path)
        return found

    return Txg(
        address,
        dsl_pool,
        peek(kernel, "dsl_pool", dsl_pool, "dp_spa"),
        member("tx_open_txg"),
        try_peek(kernel, "tx_state", address, "tx_quiescing_txg"),
        member("tx_quiesced_txg"),
        member("tx_syncing_txg"),
        member("tx_synced_txg"),
        member("tx_sync_txg_waiting"),
        member("tx_sync_thread"),
        member("tx_quiesce_thread"),
        peek(kernel, "dsl_pool", dsl_pool, "dp_dirty_total"),
        _variable(kernel, "zfs_dirty_data_max"),
    )


def _variable(kernel: Kernel, name: str) -> Optional[int]:
    """A variable's value, None where there is no such symbol or it cannot be read."""
    if kernel.symbol(name) is None:
        return None
    try:
        return kernel.global_value(name)
    except MemoryFault:
        return None


def pool_of_tx(kernel: Kernel, tx_state: int) -> int:
    """The struct dsl_pool * around a ``struct tx_state *``."""
    return tx_state - kernel.layouts.offsetof("dsl_pool", "dp_tx")


class OpenCount(NamedTuple):
    """``number`` transactions that began on ``cpu`` hold txg ``txg`` open."""

    cpu: int
    txg: int
    number: int


def tc_count(kernel: Kernel, txg: Txg, which: int) -> Optional[List[OpenCount]]:
    """What tx_cpu[] counts for the txg numbered ``which``; None where it cannot be read."""
    base = try_peek(kernel, "tx_state", txg.address, "tx_cpu", 0)
    cpus = _cpus(kernel)
    if not base or "tx_cpu" not in kernel.layouts:
        return None
    size = kernel.layouts.sizeof("tx_cpu")
    offset = kernel.layouts.offsetof("tx_cpu", "tc_count") + 8 * (which % TXG_SIZE)
    found = []
    for cpu in range(cpus):
        try:
            (number,) = struct.unpack("<Q", kernel.read(base + cpu * size + offset, 8))
        except MemoryFault:
            return None
        if number:
            found.append(OpenCount(cpu, which, number))
    return found


def _cpus(kernel: Kernel) -> int:
    """max_ncpus of the SPL: mp_maxid + 1."""
    last = _variable(kernel, "mp_maxid")
    return min(last + 1, 1024) if last is not None else 1


def tx_cpu_range(kernel: Kernel, txg: Txg) -> range:
    """The addresses at which a tx_cpu_t of this pool may begin."""
    base = try_peek(kernel, "tx_state", txg.address, "tx_cpu", 0)
    size = kernel.layouts.sizeof("tx_cpu")
    return range(base, base + _cpus(kernel) * size, size) if base else range(0)


class DmuTx(NamedTuple):
    """One dmu_tx: ``txg`` 0 before it is assigned; ``open`` True while it holds its txg open.

    txg_rele_to_sync() clears th_cpu, so that a transaction that has been committed does not
    pass for one that holds its group.
    """

    address: int
    pool: int
    txg: int
    lasttried: int
    wait_dirty: bool
    open: bool
    start: int


def dmu_tx_at(kernel: Kernel, address: int, txg: Txg) -> Optional[DmuTx]:
    """The dmu_tx of this pool at ``address``, None where there is none."""
    layouts = kernel.layouts
    paths = ("tx_pool", "tx_txg", "tx_txgh.th_cpu", "tx_txgh.th_txg", "tx_lasttried_txg")
    try:
        fields = layouts.fields("dmu_tx", *paths)
        pool, number, cpu, held, tried = kernel.values(fields, address)
    except (MemoryFault, LayoutError):
        return None
    if pool != txg.dsl_pool or number > txg.open + 1 or tried > txg.open + 1:
        return None
    is_open = bool(number) and held == number and cpu in tx_cpu_range(kernel, txg)
    return DmuTx(
        address,
        pool,
        number,
        tried,
        bool(try_peek(kernel, "dmu_tx", address, "tx_wait_dirty", 0)),
        is_open,
        try_peek(kernel, "dmu_tx", address, "tx_start", 0),
    )


def cv_index(kernel: Kernel, txg: Txg, cv: int) -> Optional[Tuple[int, int]]:
    """(CPU, txg modulo TXG_SIZE) of the tc_cv[] at ``cv``, None where it is none."""
    base = try_peek(kernel, "tx_state", txg.address, "tx_cpu", 0)
    if not base:
        return None
    layouts = kernel.layouts
    cpu, rest = divmod(cv - base, layouts.sizeof("tx_cpu"))
    member = layouts.resolve("tx_cpu", "tc_cv")
    index, odd = divmod(rest - member.offset, member.size // TXG_SIZE)
    if 0 <= cpu < _cpus(kernel) and 0 <= index < TXG_SIZE and not odd:
        return cpu, index
    return None
