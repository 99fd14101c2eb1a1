"""The kernel's file with frame information in it, which an lldb before 22 is given."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any, Dict, List, Tuple

import debuggers
import pytest

from plugin.hosts.frame_file import write_frame_file
from plugin.opening import open_core
from plugin.vmcore import ElfFile
from tests.forge.machine import Machine

elffile = pytest.importorskip("elftools.elf.elffile", reason="pyelftools reads what is written")


def written(folder: Path, arch: str) -> Tuple[Any, Any, Path]:
    """(the opened dump, the copy as pyelftools sees it, its path)."""
    made = Machine(1402000, arch)
    made.procs.process("sleepy").thread().sleeps(made.take(8), "nanslp")
    vmcore, kernel = made.write(folder)
    opened = open_core(str(vmcore), str(kernel))
    copy = folder / "copy"
    assert write_frame_file(opened, ElfFile(str(kernel)), str(copy))
    return opened, elffile.ELFFile(copy.open("rb")), copy


@pytest.mark.parametrize("arch", ["amd64", "i386", "arm64"])
def test_every_byte_of_the_kernels_code_has_its_rule_once(tmp_path: Path, arch: str) -> None:
    _, elf, _ = written(tmp_path, arch)
    spans: List[Tuple[int, int]] = []
    for entry in elf.get_dwarf_info().CFI_entries():
        if type(entry).__name__ == "FDE":
            start = entry["initial_location"]
            spans.append((start, start + entry["address_range"]))
    spans.sort()
    for text in (s for s in elf.iter_sections() if s["sh_flags"] & 4 and s["sh_flags"] & 2):
        at = text["sh_addr"]
        for start, end in spans:
            if text["sh_addr"] <= start < text["sh_addr"] + text["sh_size"]:
                assert start == at
                at = end
        assert at == text["sh_addr"] + text["sh_size"]


@pytest.mark.parametrize("arch", ["amd64", "i386", "arm64"])
def test_the_callers_frame_lies_where_the_frame_pointer_points(tmp_path: Path, arch: str) -> None:
    opened, elf, _ = written(tmp_path, arch)
    numbers = opened.architecture.debuggers.dwarf
    stacks, size = opened.architecture.stacks, opened.pointer_size
    plain = next(iter(elf.get_dwarf_info().CFI_entries()))
    row: Dict[Any, Any] = plain.get_decoded().table[-1]
    assert (row["cfa"].reg, row["cfa"].offset) == (numbers[stacks.fp], 2 * size)
    assert row[numbers[stacks.fp]].arg == -2 * size
    roles = opened.architecture.debuggers.roles
    assert row[numbers[roles.get("ra", roles["pc"])]].arg == -size


def test_all_else_of_the_file_is_as_it_was(tmp_path: Path) -> None:
    opened, _, copy = written(tmp_path, "amd64")
    before, after = opened.target.kernel, ElfFile(str(copy))
    assert [s.name for s in after.sections] == [*(s.name for s in before.sections), ".debug_frame"]
    assert list(after.all_symbols()) == list(before.all_symbols())
    assert after.segments == before.segments
    # Twice is no use.
    assert not write_frame_file(opened, after, str(tmp_path / "again"))


def test_lldb_before_22_unwinds_as_ddb_does(system_lldb: Path, every_dump: Any) -> None:
    said = subprocess.run([str(system_lldb), "--version"], capture_output=True, text=True).stdout
    if any(f"version {number}." in said for number in range(22, 40)):
        pytest.skip("this lldb is given frames by the plugin")
    done = debuggers.lldb(system_lldb, every_dump, "thread list", "thread backtrace all")
    names = {str(tid): name for tid, name in done.threads}
    unique = [tid for tid, name in names.items() if list(names.values()).count(name) == 1]
    traced = every_dump.truth["stacks"]
    compared = [t for t in unique if traced.get(t) and "kdb_reenter" not in traced[t]]
    same = [tid for tid in compared if done.stacks[names[tid]][: len(traced[tid])] == traced[tid]]
    assert len(same) >= 0.9 * len(compared), [t for t in compared if t not in same][:5]
