"""struct spa: the storage pools, whether they are suspended, and their config locks.

Mirrors spa_misc.c, spa.c and sys/spa_impl.h, 9.3 to 15.x.
"""

from __future__ import annotations

from typing import Dict, List, NamedTuple, Optional, Tuple

from plugin.caching import MEMORY, cached
from plugin.errors import LayoutError, MemoryFault
from plugin.kernel.avl import avl_foreach
from plugin.kernel.mount import mounts
from plugin.kernel.zfs.common import age_of, enum_name, peek, text_of, try_peek
from plugin.session import Kernel

#: what the SCL_* macros are 1 << of (sys/spa.h)
CONFIG_LOCKS = ("CONFIG", "STATE", "L2ARC", "ALLOC", "ZIO", "FREE", "VDEV")
_MOST_POOLS = 10_000


class Spa(NamedTuple):
    """One pool.

    ``state``: "ACTIVE", "EXPORTED", ...  ``suspended``: None while it runs, else why
    ("IOERR", "MMP"; "I/O" before 13.0, which kept no reason).  ``failmode``: "wait",
    "continue", "panic", None where it cannot be read.  ``sync_age``: seconds since
    spa_sync() of the syncing txg began, None where none is.
    """

    address: int
    name: str
    state: str
    dsl_pool: int
    root_vdev: int
    suspended: Optional[str]
    failmode: Optional[str]
    sync_pass: int
    syncing_txg: int
    sync_age: Optional[float]
    suspend_zio_root: int
    #: what it was found by
    source: str


def spa_at(kernel: Kernel, address: int, source: str = "") -> Spa:
    """The spa at ``address``; MemoryFault, LayoutError."""

    def member(path: str) -> int:
        found: int = peek(kernel, "spa", address, path)
        return found

    suspended = member("spa_suspended")
    failmode = try_peek(kernel, "spa", address, "spa_failmode")
    return Spa(
        address,
        text_of(peek(kernel, "spa", address, "spa_name")),
        enum_name(kernel, "pool_state", "POOL_STATE_", member("spa_state")),
        member("spa_dsl_pool"),
        member("spa_root_vdev"),
        _reason(kernel, suspended) if suspended else None,
        None if failmode is None else _FAILMODES.get(failmode, str(failmode)),
        member("spa_sync_pass"),
        try_peek(kernel, "spa", address, "spa_syncing_txg", 0),
        age_of(kernel, try_peek(kernel, "spa", address, "spa_sync_starttime", 0)),
        member("spa_suspend_zio_root"),
        source,
    )


#: ZIO_FAILURE_MODE_* (sys/fs/zfs.h), as the pool's property is spelt
_FAILMODES = {0: "wait", 1: "continue", 2: "panic"}


def _reason(kernel: Kernel, value: int) -> str:
    # A boolean before 13.0, where only failed I/O suspended a pool.
    if kernel.layouts.resolve("spa", "spa_suspended").size == 1:
        return "I/O"
    return enum_name(kernel, "zio_suspend_reason", "ZIO_SUSPEND_", value)


def is_spa(kernel: Kernel, address: int) -> bool:
    """True where a struct spa is at ``address``: a name, and a dsl_pool that points back."""
    if not kernel.is_kernel_address(address):
        return False
    try:
        name = peek(kernel, "spa", address, "spa_name")
        pool = peek(kernel, "spa", address, "spa_dsl_pool")
        if not name[:1].isalpha() or not text_of(name).isprintable():
            return False
        return not pool or peek(kernel, "dsl_pool", pool, "dp_spa") == address
    except (MemoryFault, LayoutError):
        return False


@cached(MEMORY)
def spas(kernel: Kernel) -> List[Spa]:
    """Every pool: by spa_namespace_avl, and those that only a mount leads to.

    The second way serves where ZFS's own symbols are not at hand, or the tree is damaged.
    """
    found: Dict[int, Spa] = {}
    if "spa" not in kernel.layouts or "avl_tree" not in kernel.layouts:
        return []
    symbol = kernel.symbol("spa_namespace_avl")
    if symbol is not None:
        for at in avl_foreach(kernel, symbol.address, what="spa_namespace_avl", bound=_MOST_POOLS):
            _take(kernel, found, at, "spa_namespace_avl")
    for at in _mounted(kernel):
        if at not in found and is_spa(kernel, at):
            _take(kernel, found, at, "a mount")
    return list(found.values())


def _take(kernel: Kernel, found: Dict[int, Spa], at: int, source: str) -> None:
    try:
        found[at] = spa_at(kernel, at, source)
    except (MemoryFault, LayoutError) as error:
        kernel.warnings.add("pool", at, str(error))


def _mounted(kernel: Kernel) -> List[int]:
    """The spa of each mounted ZFS: mnt_data -> zfsvfs -> z_os -> os_spa."""
    found: List[int] = []
    for mount in mounts(kernel):
        if mount.fstype != "zfs":
            continue
        zfsvfs = try_peek(kernel, "mount", mount.address, "mnt_data", 0)
        objset = try_peek(kernel, "zfsvfs", zfsvfs, "z_os", 0) if zfsvfs else 0
        spa = try_peek(kernel, "objset", objset, "os_spa", 0) if objset else 0
        if spa and spa not in found:
            found.append(spa)
    return found


def zfsvfs_around(kernel: Kernel, address: int) -> Optional[int]:
    """The struct zfsvfs of a mounted file system that holds ``address``: that of its locks."""
    if "zfsvfs" not in kernel.layouts:
        return None
    size = kernel.layouts.sizeof("zfsvfs")
    for mount in mounts(kernel):
        at = try_peek(kernel, "mount", mount.address, "mnt_data", 0)
        if mount.fstype == "zfs" and at and 0 <= address - at < size:
            return int(at)
    return None


@cached(MEMORY)
def spa_of(kernel: Kernel, address: int) -> Optional[Spa]:
    """The pool at ``address``: one of spas(), or one that something else points to."""
    for spa in spas(kernel):
        if spa.address == address:
            return spa
    if not is_spa(kernel, address):
        return None
    try:
        return spa_at(kernel, address, "what points to it")
    except (MemoryFault, LayoutError):
        return None


class ConfigLock(NamedTuple):
    """One spa_config_lock, "SCL_ZIO": ``writer`` a struct thread * or 0, ``holders`` a count."""

    address: int
    name: str
    writer: int
    write_wanted: int
    holders: int


def config_locks(kernel: Kernel, spa: int) -> List[ConfigLock]:
    """spa_config_lock[] of a pool (struct spa *), in its order."""
    base = spa + kernel.layouts.offsetof("spa", "spa_config_lock")
    size = kernel.layouts.sizeof("spa_config_lock")
    return [
        config_lock_at(kernel, base + index * size, f"SCL_{name}")
        for index, name in enumerate(CONFIG_LOCKS)
    ]


def config_lock_at(kernel: Kernel, address: int, name: str) -> ConfigLock:
    """The spa_config_lock at ``address``; MemoryFault, LayoutError."""
    layouts = kernel.layouts
    # A zfs_refcount_t to 13.0, whose rc_count is first, an int since.
    member = layouts.resolve("spa_config_lock", "scl_count")
    count = kernel.unsigned(address + member.offset, min(member.size, 8))
    return ConfigLock(
        address,
        name,
        peek(kernel, "spa_config_lock", address, "scl_writer"),
        peek(kernel, "spa_config_lock", address, "scl_write_wanted"),
        count,
    )


def config_lock_of_cv(kernel: Kernel, cv: int) -> Optional[Tuple[Spa, ConfigLock]]:
    """The pool and the config lock whose scl_cv is at ``cv``, None where it is none."""
    address = cv - kernel.layouts.offsetof("spa_config_lock", "scl_cv")
    size = kernel.layouts.sizeof("spa_config_lock")
    for spa in spas(kernel):
        base = spa.address + kernel.layouts.offsetof("spa", "spa_config_lock")
        index, rest = divmod(address - base, size)
        if rest == 0 and 0 <= index < len(CONFIG_LOCKS):
            return spa, config_lock_at(kernel, address, f"SCL_{CONFIG_LOCKS[index]}")
    return None
