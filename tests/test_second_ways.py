"""What the kernel counts against what was walked, and names that cannot be read."""

from __future__ import annotations

from pathlib import Path

from plugin.catalogue import shipped
from plugin.kernel.buf import buf_array, locked_bufs
from plugin.kernel.locks import lock_at
from plugin.kernel.proc import threads
from plugin.kernel.stack import stack_words
from plugin.opening import open_core
from plugin.waits.analysis import analyse
from tests.damage import PAGE, damaged
from tests.forge.machine import Machine
from tests.forge.scenarios import deadlocks
from tests.forge.scenarios.geom_tour import geom_tour

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


def test_a_zero_page_of_buffer_headers_is_seen_by_their_locks_and_by_the_counts(
    tmp_path: Path,
) -> None:
    vmcore, file = geom_tour(osreldate=1402000).write(tmp_path)
    kernel = open_core(str(vmcore), str(file))
    kernel.start_command()
    locked_bufs(kernel)
    assert not kernel.warnings.partial, list(kernel.warnings)
    array = buf_array(kernel)
    assert array is not None
    middle = (array.address + array.nbuf // 2 * array.stride) // PAGE * PAGE
    broken = damaged(kernel, zeroed=[middle + n * PAGE for n in range(3)])
    locked_bufs(broken)
    assert any("has no lock" in finding.detail for finding in broken.warnings)
    assert broken.warnings.partial


def test_a_queue_of_buffers_that_is_longer_than_what_was_found_is_said(tmp_path: Path) -> None:
    vmcore, file = geom_tour(osreldate=1402000).write(tmp_path)
    kernel = open_core(str(vmcore), str(file))
    member = kernel.layouts.resolve("bufqueue", "bq_len")
    at = kernel.address_of("bqempty") + member.offset
    more = kernel.unsigned(at, member.size) + 40
    broken = damaged(kernel, words={at: more.to_bytes(member.size, "little")})
    locked_bufs(broken)
    assert any("bq_len of bqempty" in finding.detail for finding in broken.warnings)
    assert broken.warnings.partial


def test_the_words_of_a_stack_that_cannot_be_read_are_said(tmp_path: Path) -> None:
    vmcore, file = deadlocks.abba("sx", "sx").write(tmp_path)
    kernel = open_core(str(vmcore), str(file))
    kernel.start_command()
    sleeper = next(thread for thread in threads(kernel) if thread.state == "sleeping")
    assert stack_words(kernel, sleeper)
    assert not kernel.warnings.partial
    # The registers lie in the pcb above, in the stack's last page.
    top = sleeper.kstack + sleeper.kstack_size
    broken = damaged(kernel, missing=[top - PAGE])
    stack_words(broken, sleeper)
    assert broken.warnings.partial
