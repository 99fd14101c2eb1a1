"""What the kernel counts against what was walked, and names that cannot be read."""

from __future__ import annotations

from pathlib import Path

from plugin.catalogue import shipped
from plugin.kernel.locks import lock_at
from plugin.opening import open_core
from plugin.waits.analysis import analyse
from tests.damage import damaged
from tests.forge.machine import Machine

#: an address that no forged machine maps
NOWHERE = 0xFFFFF8007FFFFFF0


def test_a_lock_whose_name_cannot_be_read_has_none_and_is_said_so(tmp_path: Path) -> None:
    machine = Machine(1402000)
    holder, waiter = (machine.procs.process(c).thread(calls=("sys_x",)) for c in ("has", "wants"))
    lock = machine.locks.sx("state")
    lock.owned_by(holder)
    lock.slept_on_by(waiter, seconds=90)
    holder.sleeps(machine.take(8), "exwait", seconds=90)
    vmcore, file = machine.write(tmp_path)
    kernel = open_core(str(vmcore), str(file))
    at = int(lock) + kernel.layouts.offsetof("sx", "lock_object.lo_name")
    broken = damaged(kernel, words={at: NOWHERE.to_bytes(8, "little")})
    read = lock_at(broken, int(lock))
    assert read is not None and read.name is None
    assert broken.warnings.partial
    found = analyse(damaged(kernel, words={at: NOWHERE.to_bytes(8, "little")}), shipped())
    (cause,) = found.causes
    assert f"holds sx (name unread) at {int(lock):#x}" in cause.summary
