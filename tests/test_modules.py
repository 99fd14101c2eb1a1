"""Modules: named, and their symbols found, from the dump alone and with their files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import List

import pytest

from plugin.kernel import linker, module_file, stack
from plugin.kernel.proc import threads
from plugin.opening import open_core
from plugin.session import Kernel
from tests.conftest import SHARED, RealDump, decompress
from tests.hosts import wchan


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


# Their files


@pytest.fixture(scope="module")
def sysroot(zfs_dump: RealDump, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of that machine, nullfs.ko under the name of fusefs.ko: of another build."""
    root = tmp_path_factory.mktemp("sysroot")
    for source, name in (("zfs", "zfs"), ("nullfs", "nullfs"), ("nullfs", "fusefs")):
        packed = SHARED / "real2" / zfs_dump.name / f"{source}.ko.zst"
        decompress(packed, root / "boot" / "kernel" / f"{name}.ko")
    return root


def test_a_modules_file_gives_the_layouts_of_its_own_structs(
    zfs_dump: RealDump, sysroot: Path
) -> None:
    kernel = open_core(str(zfs_dump.vmcore), str(zfs_dump.kernel), sysroot=str(sysroot))
    zfs = linker.modules(kernel)[0]
    found = module_file.module_file(kernel, zfs)
    assert found.elf is not None
    assert found.elf.path == str(sysroot / "boot" / "kernel" / "zfs.ko")
    assert found.why == "9158 symbols alike"
    types = module_file.module_types(kernel, zfs)
    assert types is not None and types.name == "ctf"
    assert kernel.layouts["zilog"] is types.struct("zilog")
    # the kernel and ZFS have each a struct list of their own
    assert kernel.layouts.offsetof("list", "list_head") == 16
    assert kernel.layouts.offsetof("list", "host") > 0


def test_a_module_of_another_build_is_refused_with_the_evidence(
    zfs_dump: RealDump, sysroot: Path
) -> None:
    kernel = open_core(str(zfs_dump.vmcore), str(zfs_dump.kernel), sysroot=str(sysroot))
    fuse = linker.modules(kernel)[2]
    found = module_file.module_file(kernel, fuse)
    assert found.elf is None
    (path, why), *_ = found.refused
    assert path == str(sysroot / "boot" / "kernel" / "fusefs.ko")
    assert why.endswith("is in memory and not in the file")


def test_modules_lists_each_file_and_where_its_names_and_types_come_from(
    zfs_dump: RealDump, sysroot: Path
) -> None:
    words = ("-k", str(zfs_dump.kernel), "--sysroot", str(sysroot), str(zfs_dump.vmcore))
    status, out, _ = wchan(*words, "modules", "--json")
    assert status == 0
    listed = json.loads(out)["data"]["modules"]
    assert [(m["name"], m["id"], m["refs"]) for m in listed] == [
        ("kernel", 1, 14),
        ("zfs.ko", 2, 1),
        ("nullfs.ko", 3, 1),
        ("fusefs.ko", 4, 1),
    ]
    assert listed[1]["address"] == "0xffffffff81c00000"
    assert listed[1]["symbols"] == {"source": "memory", "count": 9158}
    assert listed[1]["types"]["source"] == "ctf"
    assert listed[3]["types"] == {"source": None, "path": None}
    status, out, _ = wchan(*words, "modules")
    assert status == 0
    assert "3 modules beside the kernel:" in out
    assert "fusefs.ko is not used:" in " ".join(out.split())
