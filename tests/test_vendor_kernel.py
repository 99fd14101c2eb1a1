"""A vendor's FreeBSD 14.2, whose struct thread is like no other: its own types tell.

The vendor put 16 bytes of its own before td_name.  What lies behind has moved, so that
every entry of structs.yaml reads it wrong; the kernel's CTF or DWARF has it right.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional

import pytest
from hosts import process, wchan

from plugin.structs import Layouts
from plugin.structs.choose import choose_yaml
from plugin.structs.layout import Layout
from plugin.structs.yamlfile import StructsFile
from tests.forge.machine import Machine
from tests.structs_typegraph import Graph, ctf, dwarf, elf

_MOVED = 16


def vendor_thread(old: Layout) -> Layout:
    """struct thread with the vendor's members before td_name."""
    at = old.members["td_name"].offset
    moved = {
        name: member._replace(offset=member.offset + _MOVED) if member.offset >= at else member
        for name, member in old.members.items()
    }
    return Layout(old.name, old.size + _MOVED, moved, old.kind, old.file)


def with_section(kernel: Path, name: str, content: bytes) -> None:
    """Gives an ELF file of 64 bits one section more."""
    data = bytearray(kernel.read_bytes())
    at, count = struct.unpack_from("<Q", data, 40)[0], struct.unpack_from("<H", data, 60)[0]
    headers = [bytearray(data[at + 64 * i : at + 64 * (i + 1)]) for i in range(count)]
    names = headers[struct.unpack_from("<H", data, 62)[0]]
    start, size = struct.unpack_from("<QQ", names, 24)
    text = bytes(data[start : start + size])
    struct.pack_into("<QQ", names, 24, len(data), size + len(name) + 1)
    data += text + name.encode() + b"\0"
    where = (len(data), len(content))
    headers.append(bytearray(struct.pack("<IIQQQQIIQQ", size, 1, 0, 0, *where, 0, 0, 1, 0)))
    data += content
    struct.pack_into("<Q", data, 40, len(data))
    struct.pack_into("<H", data, 60, count + 1)
    kernel.write_bytes(data + b"".join(headers))


class _Structs:
    """A source of layouts."""

    name = "vendor"

    def __init__(self, structs: Dict[str, Layout]) -> None:
        self._structs = structs

    def struct(self, name: str) -> Optional[Layout]:
        return self._structs.get(name)


class Vendor(NamedTuple):
    vmcore: Path
    kernel: Path
    graph: Graph
    #: {tid: (name, wait message)} of the threads that were described
    threads: Dict[int, List[str]]

    def kthreads(self, **environment: str) -> Dict[str, Any]:
        words = ("-k", str(self.kernel), str(self.vmcore), "kthreads", "--json")
        status, out, err = process(*words, **environment) if environment else wchan(*words)
        assert status == 0, err
        report: Dict[str, Any] = json.loads(out)
        return report

    def named(self, report: Dict[str, Any]) -> Dict[int, List[str]]:
        found = {t["tid"]: [t["name"], t["wmesg"]] for t in report["data"]["threads"]}
        return {tid: found.get(tid, []) for tid in self.threads}


@pytest.fixture
def vendor(tmp_path: Path) -> Vendor:
    choice = choose_yaml(1402000, "amd64", frozenset())
    structs = dict(choice.source.structs)
    structs["thread"] = vendor_thread(structs["thread"])
    machine = Machine(1402000, layouts=Layouts([_Structs(structs)], choice.tables))
    threads: Dict[int, List[str]] = {}
    for name in ("reader", "writer"):
        thread = machine.procs.process("vendord").thread(name, calls=("_sleep", "sys_vendor"))
        thread.sleeps(machine.take(8), f"{name[0]}wait")
        threads[thread.tid] = [name, f"{name[0]}wait"]
    vmcore, kernel = machine.write(tmp_path)
    graph = Graph(8, StructsFile().strings("typedefs", choice.row))
    graph.add_layouts(structs.values())
    return Vendor(vmcore, kernel, graph, threads)


def test_its_ctf_gives_the_layouts(vendor: Vendor) -> None:
    with_section(vendor.kernel, ".SUNW_ctf", ctf(vendor.graph))
    report = vendor.kthreads()
    assert report["kernel"]["layouts"] == "ctf"
    assert vendor.named(report) == vendor.threads


def test_its_kernel_debug_gives_the_layouts(vendor: Vendor) -> None:
    pytest.importorskip("elftools")
    (vendor.kernel.parent / "kernel.debug").write_bytes(elf(dwarf(vendor.graph)))
    report = vendor.kthreads()
    assert report["kernel"]["layouts"] == "dwarf"
    assert vendor.named(report) == vendor.threads


def test_without_either_it_is_refused_with_the_evidence(vendor: Vendor) -> None:
    status, out, err = wchan("-k", str(vendor.kernel), str(vendor.vmcore), "kthreads")
    assert (status, out) == (1, "")
    assert "offset of thread.td_name" in err
    assert "wchan structs generate" in err
    assert len(err.strip().splitlines()) == 1


def test_without_pyelftools_its_dwarf_is_passed_over_and_said_to_be(
    vendor: Vendor, tmp_path: Path
) -> None:
    debug = vendor.kernel.parent / "kernel.debug"
    debug.write_bytes(elf(dwarf(vendor.graph)))
    with_section(vendor.kernel, ".SUNW_ctf", ctf(vendor.graph))
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "sitecustomize.py").write_text(
        "import sys\nsys.modules['elftools'] = None\n"
    )
    report = vendor.kthreads(PYTHONPATH=str(tmp_path / "bare"))
    assert report["kernel"]["layouts"] == "ctf"
    assert vendor.named(report) == vendor.threads
    said = f"debug information in {debug} is not read: pyelftools is not installed"
    assert said in json.dumps(report)
