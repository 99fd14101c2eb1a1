"""Forged dumps are in FreeBSD's own formats: the product's readers, which know nothing of the
forge, read back every page of them through the page tables in the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Optional

import pytest

from plugin.errors import MemoryFault, UsageError
from plugin.vmcore import open_memory
from plugin.vmcore.elf import ElfFile
from tests.forge.formats import Format
from tests.forge.machine import Machine
from tests.forge.scenarios.deadlocks import states

FULL = Format("full")

#: __FreeBSD_version, architecture, format (None: what that kernel writes), options, what it is
DUMPS = [
    (700014, "i386", None, {}, "full ELF dump"),
    (700014, "i386", None, {"pae": True}, "full ELF dump"),
    (903000, "i386", None, {}, "minidump v1"),
    (903000, "i386", None, {"pae": True}, "minidump v1"),
    (1402000, "i386", None, {"pae": True}, "minidump v2"),
    (800068, "amd64", None, {}, "minidump v1"),
    (903000, "amd64", None, {}, "minidump v2"),
    (1200086, "amd64", None, {}, "minidump v2"),
    (1402000, "amd64", None, {}, "minidump v3"),
    (1402000, "amd64", None, {"la57": True}, "minidump v3"),
    (1201000, "amd64", FULL, {}, "full ELF dump"),
    (1402000, "amd64", FULL, {"la57": True}, "full ELF dump"),
    (1200086, "arm64", None, {}, "minidump v1"),
    (1300139, "arm64", None, {}, "minidump v2"),
    (1500068, "arm64", None, {}, "minidump v3"),
]


@pytest.mark.parametrize(("osreldate", "arch", "form", "options", "what"), DUMPS)
def test_every_page_reads_back_through_the_page_tables(
    tmp_path: Path,
    osreldate: int,
    arch: str,
    form: Optional[Format],
    options: Dict[str, Any],
    what: str,
) -> None:
    machine = states(osreldate=osreldate, arch=arch)
    vmcore, kernel = machine.write(tmp_path, form=form, **options)
    memory = open_memory(vmcore, ElfFile(str(kernel)))
    try:
        assert memory.format == what
        assert memory.arch == arch
        for vpn, pfn in machine.space.mapped():
            assert memory.translate(vpn << 12) == pfn << 12
            assert memory.read(vpn << 12, 4096) == bytes(machine.space.pages[pfn])
        if machine.map.dmap[1]:
            for pfn in list(machine.space.pages)[::7]:
                direct = machine.space.direct(pfn << 12)
                assert memory.read(direct, 4096) == bytes(machine.space.pages[pfn])
        with pytest.raises(MemoryFault):
            memory.read(machine.map.stacks + 0x8000000, 8)
    finally:
        memory.close()


def test_the_same_scenario_gives_the_same_bytes(tmp_path: Path) -> None:
    first = states().write(tmp_path / "first")
    second = states().write(tmp_path / "second")
    assert [f.read_bytes() for f in first] == [f.read_bytes() for f in second]


def test_the_kernel_file_has_statics_as_local_symbols_with_sizes(tmp_path: Path) -> None:
    machine = Machine(1402000)
    _, kernel = machine.write(tmp_path)
    elf = ElfFile(str(kernel))
    (queue,) = elf.symbols("g_bio_run_down")
    assert (queue.local, queue.kind, queue.size) == (True, "object", machine.sizeof("g_bioq"))
    (domains,) = elf.symbols("vm_dom")
    assert (domains.local, domains.size) == (False, 8 * machine.sizeof("vm_domain"))
    (switch,) = elf.symbols("sched_switch")
    assert switch.kind == "function"
    assert elf.symbolize(switch.address + 8) == ("sched_switch", 8)


def test_text_begins_functions_with_the_prologue_that_unwinders_look_for(tmp_path: Path) -> None:
    for arch, prologue in (("amd64", b"\x55\x48\x89\xe5"), ("i386", b"\x55\x89\xe5")):
        machine = Machine(1402000, arch)
        assert machine.space.read(machine.text("sched_switch"), 8).startswith(prologue)


def test_memory_that_a_machine_does_not_have_is_refused() -> None:
    with pytest.raises(UsageError, match="more than the 64 MB"):
        Machine(1402000).take(128 << 20)


def test_a_page_cannot_come_after_the_page_tables(tmp_path: Path) -> None:
    machine = Machine(1402000)
    machine.write(tmp_path)
    with pytest.raises(UsageError, match="page tables"):
        machine.take(1 << 20)
