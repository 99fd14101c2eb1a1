"""`wchan structs`: what a vendor does to have a kernel read right, and what a reviewer checks."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from pathlib import Path
from typing import List, Tuple

import pytest

from plugin.errors import LayoutError, UsageError, WchanError
from plugin.hosts import structs
from plugin.structs.choose import choose_yaml
from plugin.structs.making.tool import compare
from plugin.structs.yamlfile import SHIPPED, StructsFile, read_kernel
from plugin.vmcore.elf import ElfFile
from tests.structs_typegraph import ctf, dwarf, elf
from tests.test_ctf import kernel_graph

needs_elftools = pytest.mark.skipif(
    importlib.util.find_spec("elftools") is None, reason="pyelftools, which decodes DWARF"
)
FILE = StructsFile()
FACTS = Path(__file__).parent / "facts"


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    """A kernel file with the DWARF and the CTF of 14.2-amd64."""
    graph, _ = kernel_graph("14.2-amd64")
    path = tmp_path / "kernel"
    path.write_bytes(elf({**dwarf(graph, 5, "strx"), ".SUNW_ctf": ctf(graph, 3, True)}))
    return path


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> Tuple[int, str]:
    status = structs.main(argv)
    return status, capsys.readouterr().out


# list, show, diff


def test_list_names_the_kernels_and_where_they_come_from(
    capsys: pytest.CaptureFixture[str],
) -> None:
    status, out = run(capsys, "list")
    assert status == 0
    for row in FILE.rows:
        assert row.name in out
    assert "1402000-1402499" in out
    status, out = run(capsys, "list", "--json")
    kernels = json.loads(out)["data"]["kernels"]
    assert [k["name"] for k in kernels] == [row.name for row in FILE.rows]
    assert json.loads(out)["schema"] == "wchan/1"


def test_list_of_one_kernel_names_its_structs(capsys: pytest.CaptureFixture[str]) -> None:
    _, out = run(capsys, "list", "--kernel", "14.2-amd64", "--json")
    found = {s["name"]: s["size"] for s in json.loads(out)["data"]["structs"]}
    assert (found["bio"], found["thread"], len(found) > 180) == (376, 1776, True)


def test_show_lists_the_members(capsys: pytest.CaptureFixture[str]) -> None:
    status, out = run(capsys, "show", "g_bioq", "bio", "--kernel", "14.2-amd64")
    assert status == 0
    assert "struct g_bioq, 56 bytes (yaml:14.2-amd64)" in out
    assert "-> bio.bio_queue" in out
    (line,) = [line for line in out.splitlines() if " bio_cmd " in line]
    assert line.split() == ["0", "2", "bio_cmd", "uint16_t", "bio_cmd"]
    with pytest.raises(LayoutError, match="no struct nothing in 14"):
        structs.main(["show", "nothing", "--kernel", "14.2-amd64"])


def test_diff_shows_what_moved_between_two_releases(capsys: pytest.CaptureFixture[str]) -> None:
    status, out = run(capsys, "diff", "12.0-amd64", "12.1-amd64", "proc", "--json")
    data = json.loads(out)["data"]
    assert status == 1
    assert data["differences"][0] == {
        "struct": "proc",
        "member": "",
        "values": [
            {"in": "yaml:12.0-amd64", "is": "1320 bytes"},
            {"in": "yaml:12.1-amd64", "is": "1328 bytes"},
        ],
    }
    status, out = run(capsys, "diff", "12.0-amd64", "12.1-amd64", "bio")
    assert (status, "0 differences" in out) == (0, True)


# generate and check


@needs_elftools
def test_generate_makes_a_file_that_opens_the_kernel(
    kernel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Out of DWARF, or CTF: the same structs, with decoders and constants of the nearest kernel."""
    for kind in ("dwarf", "ctf"):
        target = tmp_path / f"{kind}.yaml"
        argv = ["generate", str(kernel), "--osreldate", "1402000", "--name", "14.2V-amd64"]
        assert structs.main([*argv, "--from", kind, "-o", str(target)]) == 0
        assert f"structs out of {kind}" in capsys.readouterr().err
        choice = choose_yaml(1402000, "amd64", path=str(target))
        assert choice.source.name == f"yaml:{target}:14.2V-amd64"
        shipped = read_kernel(FILE, "14.2-amd64", FILE.row("14.2-amd64"), {})
        assert choice.source.structs.keys() == shipped.structs.keys()
        for name, layout in choice.source.structs.items():
            assert list(compare(layout, shipped.structs[name])) == []
        assert choice.source.constants == shipped.constants
        assert choice.source.tables == shipped.tables
        assert choice.source.structs["bio"].member("bio_cmd").decoder == "bio_cmd"
        assert choice.source.structs["g_bioq"].member("bio_queue").link == "bio.bio_queue"


def test_generate_into_a_file_adds_a_kernel(kernel: Path, tmp_path: Path) -> None:
    target = tmp_path / "more.yaml"
    target.write_bytes(Path(SHIPPED).read_bytes())
    argv = ["generate", str(kernel), "--osreldate", "1402001", "--name", "14.2V-amd64"]
    assert structs.main([*argv, "--into", str(target)]) == 0
    file = StructsFile(str(target))
    assert {row.name for row in file.rows} == {row.name for row in FILE.rows} | {"14.2V-amd64"}
    added = read_kernel(file, "x", file.row("14.2V-amd64"), {})
    before = read_kernel(FILE, "x", FILE.row("14.2-amd64"), {})
    assert added.structs["thread"].members == before.structs["thread"].members
    kept = read_kernel(file, "x", file.row("7.0c-700014-i386"), {})
    assert kept.constants == read_kernel(FILE, "x", FILE.row("7.0c-700014-i386"), {}).constants


@needs_elftools
def test_generate_names_what_a_kernel_does_not_describe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.structs_typegraph import Graph

    graph, known = kernel_graph("14.2-amd64")
    small = Graph(8, graph.typedefs)
    small.add_layouts([known["bio"]])
    path = tmp_path / "kernel.debug"
    path.write_bytes(elf(dwarf(small)))
    argv = ["generate", str(path), "--osreldate", "1402000", "--name", "x-amd64"]
    assert structs.main([*argv, "--struct", "bio", "--struct", "thread"]) == 0
    captured = capsys.readouterr()
    assert "1 structs out of dwarf; not described there: thread" in captured.err
    assert "struct: bio\n" in captured.out


@needs_elftools
def test_check_finds_no_difference_where_there_is_none(
    kernel: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """structs.yaml, DWARF and CTF, each against each."""
    status, out = run(capsys, "check", str(kernel), "--kernel", "14.2-amd64", "--json")
    data = json.loads(out)["data"]
    assert (status, data["differences"]) == (0, [])
    assert [(c["left"], c["right"]) for c in data["compared"]] == [
        ("yaml:14.2-amd64", "dwarf"),
        ("yaml:14.2-amd64", "ctf"),
        ("dwarf", "ctf"),
    ]
    assert all(c["structs"] > 180 for c in data["compared"])


def test_check_lists_every_difference_and_fails(
    kernel: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out = run(capsys, "check", str(kernel), "--kernel", "14.0c-1400063-amd64")
    assert status == 1
    assert "proc.p_flag2" in out or "proc " in out
    assert "1352 bytes" in out and "1376 bytes" in out


def test_check_of_the_facts_finds_no_difference(
    capsys: pytest.CaptureFixture[str],
) -> None:
    status, out = run(capsys, "check", str(FACTS), "--json")
    data = json.loads(out)["data"]
    assert (status, data["differences"]) == (0, [])
    assert len(data["compared"]) == len(FILE.rows)


def test_import_writes_the_shipped_file(tmp_path: Path) -> None:
    target = tmp_path / "structs.yaml"
    assert structs.main(["import", str(FACTS), "-o", str(target)]) == 0
    assert target.read_bytes() == Path(SHIPPED).read_bytes()


# add


@needs_elftools
def test_add_brings_a_release_in_and_keeps_what_it_is_made_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One command; afterwards the file can still be made again from tests/facts, byte for byte."""
    graph, _ = kernel_graph("14.2-amd64")
    kernel = tmp_path / "kernel"
    kernel.write_bytes(elf({**dwarf(graph, 5, "strx")}))
    target = tmp_path / "structs.yaml"
    shutil.copy(SHIPPED, target)
    facts = tmp_path / "tests" / "facts"
    facts.mkdir(parents=True)
    os.symlink(FACTS / "layouts.tar.xz", facts / "layouts.tar.xz")
    argv = ["add", str(kernel), "--name", "14.4-amd64", "--osreldate", "1404000"]
    assert structs.main([*argv, "--into", str(target)]) == 0
    assert "14.4-amd64 (1404000)" in capsys.readouterr().out
    assert choose_yaml(1404000, "amd64", path=str(target)).row.name == "14.4-amd64"
    assert (facts / "added" / "14.4-amd64.json").exists()
    again = tmp_path / "again.yaml"
    assert structs.main(["import", str(facts), "-o", str(again)]) == 0
    assert again.read_bytes() == target.read_bytes()


@needs_elftools
def test_a_kernel_of_an_architecture_that_no_file_knows_is_described(tmp_path: Path) -> None:
    """riscv64: no kernel of it is shipped; its own debug information makes one."""
    graph, _ = kernel_graph("14.2-arm64")
    kernel = tmp_path / "kernel"
    kernel.write_bytes(elf({**dwarf(graph, 5, "strx")}, machine=243))
    target = tmp_path / "mine.yaml"
    argv = ["generate", str(kernel), "--osreldate", "1402000", "--name", "14.2-riscv64"]
    assert structs.main([*argv, "-o", str(target)]) == 0
    choice = choose_yaml(1402000, "riscv64", path=str(target))
    assert (choice.row.name, choice.exact) == ("14.2-riscv64", True)
    assert choice.source.structs["bio"].size > 0


# What goes wrong


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["show", "bio"], "--kernel"),
        (["frobnicate"], "invalid choice"),
        (["list", "--kernel", "99-amd64"], "has no kernel"),
        (["list", "--structs", "/nonexistent.yaml"], "No such file"),
        (["generate", "/nonexistent"], "no such file"),
        (["check", SHIPPED], "no ELF file"),
    ],
)
def test_mistakes_are_told_in_one_line(argv: List[str], says: str) -> None:
    with pytest.raises((WchanError, UsageError)) as caught:
        structs.main(argv)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_kernel_without_debug_information_says_what_to_install(tmp_path: Path) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(elf({".text": b""}))
    with pytest.raises(LayoutError, match="kernel-dbg"):
        structs.main(["generate", str(path), "--osreldate", "1402000", "--name", "x-amd64"])
    with pytest.raises(LayoutError, match="does not say its version"):
        structs.main(["check", str(path)])


def test_a_file_that_cannot_be_written_is_told(kernel: Path, tmp_path: Path) -> None:
    argv = ["generate", str(kernel), "--osreldate", "1402000", "--name", "x-amd64"]
    with pytest.raises(WchanError, match="cannot write"):
        structs.main([*argv, "-o", str(tmp_path / "none" / "x.yaml")])


def test_the_name_must_fit_the_machine(kernel: Path) -> None:
    with pytest.raises(LayoutError, match="is a kernel for amd64"):
        structs.main(["generate", str(kernel), "--osreldate", "1402000", "--name", "x-i386"])


def test_the_kernel_file_is_read_as_it_is(kernel: Path) -> None:
    """The fixture itself: an ELF file for amd64 with both kinds of debug information."""
    with ElfFile(kernel) as opened:
        names = {section.name for section in opened.sections}
    assert {".debug_info", ".debug_str_offsets", ".SUNW_ctf"} <= names
