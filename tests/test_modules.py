"""Modules: named, and their symbols found, from the dump alone and with their files."""

from __future__ import annotations

from typing import List

import pytest

from plugin.kernel import linker, stack
from plugin.kernel.proc import threads
from plugin.opening import open_core
from plugin.session import Kernel
from tests.conftest import RealDump


@pytest.fixture(scope="module")
def zfs_kernel(zfs_dump: RealDump) -> Kernel:
    return open_core(str(zfs_dump.vmcore), str(zfs_dump.kernel))


def test_the_modules_of_a_real_machine_are_listed(zfs_kernel: Kernel) -> None:
    files = linker.linker_files(zfs_kernel)
    assert [f.filename for f in files] == ["kernel", "zfs.ko", "nullfs.ko", "fusefs.ko"]
    assert [f.linker for f in files] == ["elf64"] + 3 * ["elf64_obj"]
    assert files[1].pathname == "/boot/kernel/zfs.ko"
    assert [len(t.table.used) > 100 for t in linker.module_tables(zfs_kernel)] == 3 * [True]


def test_a_modules_functions_and_statics_are_found_with_no_file_at_hand(
    zfs_kernel: Kernel,
) -> None:
    zfs, _, fuse = linker.modules(zfs_kernel)
    for name, home, local in (
        ("spa_namespace_avl", zfs, True),
        ("zio_wait", zfs, False),
        ("fuse_dev", fuse, True),
    ):
        found = zfs_kernel.symbol(name)
        assert found is not None
        assert home.holds(found.address)
        assert found.local == local
    entry = zfs_kernel.address_of("zio_wait")
    assert zfs_kernel.symbolize(entry + 5) == "zio_wait+0x5"
    assert zfs_kernel.symbolize(zfs.base + zfs.size) == ""


def test_stacks_through_modules_are_ddbs(zfs_dump: RealDump, zfs_kernel: Kernel) -> None:
    """All 156 that DDB traced from a saved context; where it printed none there is none to hold."""
    wanted = zfs_dump.truth["stacks"]
    found: List[int] = []
    for thread in threads(zfs_kernel):
        frames = stack.backtrace(zfs_kernel, thread)
        if frames[: len(wanted[str(thread.tid)])] == wanted[str(thread.tid)] != []:
            found.append(thread.tid)
    assert len(found) == sum(bool(frames) for frames in wanted.values())


def test_what_asks_for_no_module_reads_none(zfs_dump: RealDump) -> None:
    kernel = open_core(str(zfs_dump.vmcore), str(zfs_dump.kernel))
    read: List[int] = []

    def noted(address: int, size: int) -> bytes:
        read.append(address)
        return zfs_dump_read(address, size)

    zfs_dump_read, kernel.read = kernel.read, noted
    assert kernel.symbol("allproc") is not None
    assert kernel.symbolize(kernel.address_of("sched_switch")) == "sched_switch"
    assert read == []
