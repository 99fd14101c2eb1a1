"""Lock words, bit by bit: who waits is named, holds are counted, as each version writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Dict, Tuple

import pytest

from plugin.kernel.locks import Lock, lock_at
from plugin.opening import open_core
from tests.forge.machine import Machine

#: (version, kind, bits beside the owner or the count, names of the waiter bits)
WAITERS = [
    (903000, "mutex", 2, ("MTX_CONTESTED",)),
    (1402000, "mutex", 2, ("MTX_CONTESTED",)),
    (903000, "rwlock", 2 | 4, ("RW_LOCK_READ_WAITERS", "RW_LOCK_WRITE_WAITERS")),
    (1402000, "rwlock", 4, ("RW_LOCK_WRITE_WAITERS",)),
    (1402000, "rwlock", 2, ("RW_LOCK_READ_WAITERS",)),
    (903000, "sx", 2, ("SX_LOCK_SHARED_WAITERS",)),
    (1402000, "sx", 4, ("SX_LOCK_EXCLUSIVE_WAITERS",)),
    (903000, "lockmgr", 2, ("LK_SHARED_WAITERS",)),
    (1402000, "lockmgr", 2 | 4, ("LK_SHARED_WAITERS", "LK_EXCLUSIVE_WAITERS")),
]
#: kind -> the member that is its word
WORD = {"mutex": "mtx_lock", "rwlock": "rw_lock", "sx": "sx_lock", "lockmgr": "lk_lock"}
#: (version, kind) -> the bit from which readers are counted
SHIFT = [
    (903000, "rwlock", 4),
    (1402000, "rwlock", 5),
    (903000, "sx", 4),
    (1402000, "sx", 5),
    (903000, "lockmgr", 4),
    (1201000, "lockmgr", 4),
    (1402000, "lockmgr", 5),
]


def decoded(
    osreldate: int, kind: str, folder: Path, word: Callable[[int], int], **more: Any
) -> Tuple[Lock, int]:
    """A lock with that word, made from the address of a thread, and that address."""
    machine = Machine(osreldate, "amd64")
    thread = machine.procs.process("holder").thread()
    lock: Any = getattr(machine.locks, kind)("it")
    values: Dict[str, Any] = {WORD[kind]: word(thread.__index__()), **more}
    machine.at_the_end(lambda: lock.obj.set(**values))
    vmcore, file = machine.write(folder)
    found = lock_at(open_core(str(vmcore), str(file)), lock.object)
    assert found is not None
    return found, thread.__index__()


@pytest.mark.parametrize("osreldate, kind, bits, names", WAITERS)
def test_every_waiter_bit_is_named(
    osreldate: int, kind: str, bits: int, names: Tuple[str, ...], tmp_path: Path
) -> None:
    found, owner = decoded(osreldate, kind, tmp_path, lambda thread: thread | bits)
    assert (found.state, found.owners) == ("exclusive", (owner,))
    assert set(found.flags) == set(names)


@pytest.mark.parametrize("kind", WORD)
def test_a_lock_nobody_waits_for_names_no_waiter_bit(kind: str, tmp_path: Path) -> None:
    found, owner = decoded(1402000, kind, tmp_path, lambda thread: thread)
    assert (found.state, found.owners, found.flags) == ("exclusive", (owner,), ())


@pytest.mark.parametrize("osreldate, kind, shift", SHIFT)
def test_readers_are_counted_from_the_right_bit(
    osreldate: int, kind: str, shift: int, tmp_path: Path
) -> None:
    found, _ = decoded(osreldate, kind, tmp_path, lambda _: 3 << shift | 1)
    assert (found.state, found.owners, found.sharers) == ("shared", (), 3)


@pytest.mark.parametrize("kind", WORD)
@pytest.mark.parametrize("osreldate", [903000, 1402000])
def test_recursion_is_the_holds_beyond_the_first(osreldate: int, kind: str, tmp_path: Path) -> None:
    path = {"lock_object.lo_data": 2}
    recursed = {"mutex": 1, "rwlock": 0x10, "sx": 0x10, "lockmgr": 0}
    if osreldate < 1200000:
        recursed.update(rwlock=0, sx=8)
    found, owner = decoded(
        osreldate, kind, tmp_path, lambda thread: thread | recursed[kind], **path
    )
    assert (found.owners, found.recursion) == ((owner,), 2)
    once, _ = decoded(osreldate, kind, tmp_path / "once", lambda thread: thread)
    assert once.recursion == 0


@pytest.mark.parametrize("osreldate", [903000, 1402000])
def test_a_rmlock_with_readers_is_not_free(osreldate: int, tmp_path: Path) -> None:
    machine = Machine(osreldate, "amd64")
    reader = machine.procs.process("reader").thread()
    lock = machine.locks.rmlock("routes")
    # a reader that a writer made visible: on the list of the lock, its tracker on its stack
    tracker = machine.new("rm_priotracker", rmp_thread=reader)
    machine.at_the_end(
        lambda: lock.obj.set(**{"rm_activeReaders.lh_first": tracker.at("rmp_qentry.le_next")})
    )
    vmcore, file = machine.write(tmp_path)
    found = lock_at(open_core(str(vmcore), str(file)), lock.object)
    assert found is not None
    assert found.state == "shared"
