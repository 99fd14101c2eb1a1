"""What a panicked kernel's memory says beyond the message."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hosts import wchan

from plugin.judge.panics import Panic, panic
from plugin.opening import open_core
from tests.forge.machine import Machine
from tests.forge.scenarios.sendfile_panic import sendfile_panic


def told(machine: Machine, folder: Path) -> Panic:
    vmcore, kernel = machine.write(folder)
    found = panic(open_core(str(vmcore), str(kernel)))
    assert found is not None
    return found


def on_the_stack(machine: Machine, thread: Any, lock: Any) -> None:
    machine.at_the_end(
        lambda: machine.write_pointer(thread.local("example_fn", 0x20), int(lock.obj.address))
    )


CALLS = ("panic", "example_fn", "sys_example")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("mutex", "_mtx_lock_sleep: recursed on non-recursive mutex {} @ /usr/src/sys/x.c:7"),
        ("sx", "_sx_xlock_hard: recursed on non-recursive sx {} @ /usr/src/sys/x.c:7"),
        ("rwlock", "_rw_wlock_hard: recursing but non-recursive rw {} @ /usr/src/sys/x.c:7"),
        ("lockmgr", "lockmgr_xlock_hard: recursing on non recursive lockmgr {at} @ /usr/x.c:7"),
    ],
)
def test_a_thread_that_asks_for_what_it_holds_is_told_so(
    kind: str, words: str, tmp_path: Path
) -> None:
    machine = Machine(1402000, "amd64")
    culprit = machine.procs.process("culprit").thread(calls=CALLS)
    lock = getattr(machine.locks, kind)("example lock")
    lock.owned_by(culprit)
    on_the_stack(machine, culprit, lock)
    at = f"{int(lock.obj.address):#x}"
    machine.panics(culprit, words.format("example lock", at=at), 0)
    found = told(machine, tmp_path)
    assert found.kind == "own lock"
    assert f'"example lock" at {at}' in found.verdict
    assert "which it holds itself, whose word names it as the owner" in found.verdict


def test_the_thread_that_panicked_is_asked_for_and_tells_its_panic(tmp_path: Path) -> None:
    vmcore, kernel = sendfile_panic().write(tmp_path)
    tid = open_core(str(vmcore), str(kernel)).global_value("dumptid")
    status, out, _ = wchan("-k", str(kernel), str(vmcore), "why-stuck", str(tid))
    assert status in (0, 3)
    told = " ".join(out.split())
    assert "It panicked: vm_page_assert_xbusied: page 0xfffff807ebbd8f98" in told
    assert "dmu_read_pages" in told
    assert "sendfile_swapin" in told
    other = wchan("-k", str(kernel), str(vmcore), "why-stuck", "pagedaemon")[1]
    assert "It panicked" not in other


def test_a_lock_that_another_thread_holds_is_not_said_to_be_its_own(tmp_path: Path) -> None:
    machine = Machine(1402000, "amd64")
    culprit = machine.procs.process("culprit").thread(calls=CALLS)
    other = machine.procs.process("other").thread(calls=("sys_example",))
    lock = machine.locks.sx("example lock")
    lock.owned_by(other)
    on_the_stack(machine, culprit, lock)
    machine.panics(culprit, "_sx_xlock_hard: recursed on non-recursive sx example lock @ x.c:7", 0)
    assert "names it as the owner" not in told(machine, tmp_path).verdict


def test_a_destroyed_lock_is_named(tmp_path: Path) -> None:
    machine = Machine(1402000, "amd64")
    culprit = machine.procs.process("culprit").thread(calls=CALLS)
    lock = machine.locks.mutex("gone")
    machine.at_the_end(lambda: lock.obj.__setitem__("mtx_lock", machine.constant("MTX_DESTROYED")))
    on_the_stack(machine, culprit, lock)
    machine.panics(culprit, "mtx_lock() of destroyed mutex @ /usr/src/sys/x.c:7", 0)
    found = told(machine, tmp_path)
    assert found.kind == "destroyed lock"
    assert f'destroyed: "gone" at {int(lock.obj.address):#x}' in found.verdict


def test_a_fault_near_zero_is_a_member_of_a_null_pointer(tmp_path: Path) -> None:
    machine = Machine(1402000, "amd64")
    culprit = machine.procs.process("culprit").thread(calls=CALLS)
    machine.message("Fatal trap 12: page fault while in kernel mode")
    machine.message("fault virtual address\t= 0x18")
    machine.panics(culprit, "page fault", 0)
    found = told(machine, tmp_path)
    assert found.kind == "page fault"
    assert "culprit touched a member at 0x18 of a NULL pointer" in found.verdict


def test_of_a_mapped_page_that_is_freed_its_mappings_are_told(tmp_path: Path) -> None:
    machine = Machine(1402000, "amd64")
    culprit = machine.procs.process("culprit").thread(calls=CALLS)
    page = machine.vm.object("swap", size=8).page(3)
    entries = [machine.new("pv_entry", pv_va=0x820000000 + n * 4096) for n in range(2)]
    at = int(page) + machine.locate("vm_page", "md.pv_list").offset
    machine.at_the_end(lambda: machine.tailq(at, "pv_next", entries))
    machine.panics(culprit, f"vm_page_free_prep: freeing mapped page {int(page):#x}", 0)
    found = told(machine, tmp_path)
    assert found.kind == "page"
    assert "2 pv entries for it: 0x820000000, 0x820001000." in found.verdict
    assert "PGA_WRITEABLE is not set" in found.verdict


def test_a_page_of_a_kernel_stack_names_its_thread(tmp_path: Path) -> None:
    machine = Machine(1201000, "amd64")
    culprit = machine.procs.process("culprit").thread(calls=CALLS)
    owner = machine.procs.process("owner").thread(calls=("sys_example",))
    stack = machine.vm.object("swap", size=4)
    page = stack.page(1)
    owner.obj["td_kstack_obj"] = int(stack)
    machine.panics(culprit, f"vm_page_free_prep: freeing busy page {int(page):#x}", 0)
    assert f"kernel stack of thread {owner.tid} owner" in told(machine, tmp_path).verdict
