"""CTF, the types a FreeBSD kernel carries itself: whole kernels written as CTF and read back."""

from __future__ import annotations

from pathlib import Path
from typing import Dict, Tuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plugin.errors import LayoutError, WchanError
from plugin.structs.ctf import Ctf
from plugin.structs.layout import Layout
from plugin.structs.yamlfile import StructsFile, Typedefs, read_kernel
from plugin.vmcore.elf import ElfFile
from tests.structs_typegraph import Graph, GraphField, GraphType, ctf, elf

_FILE = StructsFile()


def kernel_graph(name: str) -> Tuple[Graph, Dict[str, Layout]]:
    """All types of a kernel of structs.yaml."""
    row = _FILE.row(name)
    data = read_kernel(_FILE, name, row, {})
    graph = Graph(4 if row.arch == "i386" else 8, _FILE.strings("typedefs", row))
    graph.add_layouts(data.structs.values())
    return graph, dict(data.structs)


def same(read: Layout, written: Layout, *, typed_bits: bool) -> None:
    assert (read.name, read.size, read.kind) == (written.name, written.size, written.kind)
    assert list(read.members) == list(written.members)
    for member in written:
        got = read.members[member.name]
        wanted = member._replace(decoder="", link="")
        if member.bit_size and not typed_bits:
            # CTF gives a bit-field an integer type of its own, if it is less than whole
            whole = member.bit_size == 8 * member.size
            width = 0 if whole else member.bit_size
            wanted = wanted._replace(type=got.type, ctype=got.ctype, bit_size=width)
        # an array of no elements and a flexible one are written alike
        wanted = wanted._replace(
            type=wanted.type.replace("[0]", "[]"), ctype=wanted.ctype.replace("[0]", "[]")
        )
        got = got._replace(type=got.type.replace("[0]", "[]"), ctype=got.ctype.replace("[0]", "[]"))
        assert got == wanted, f"{read.name}.{member.name}"


@pytest.mark.parametrize(("version", "compressed"), [(2, False), (2, True), (3, False), (3, True)])
@pytest.mark.parametrize("name", ["14.2-amd64", "9.3-i386"])
def test_a_whole_kernel_comes_back(name: str, version: int, compressed: bool) -> None:
    """Every struct of the kernel, each member with offset, size and type."""
    graph, structs = kernel_graph(name)
    source = Ctf.from_bytes(ctf(graph, version, compressed), graph.pointer_size)
    assert set(structs) <= set(source.names())
    for struct, layout in structs.items():
        found = source.struct(struct)
        assert found is not None
        same(found, layout, typed_bits=False)
    assert source.struct("no_such_struct") is None


def test_it_is_found_in_the_kernel_file(tmp_path: Path) -> None:
    graph, structs = kernel_graph("14.2-amd64")
    kernel = tmp_path / "kernel"
    kernel.write_bytes(elf({".SUNW_ctf": ctf(graph, 3, True)}))
    with ElfFile(kernel) as opened:
        found = Ctf(opened).struct("bio")
    assert found is not None
    assert found.size == structs["bio"].size


def test_the_cache_says_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second session reads what the first looked up, and nothing else."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    graph, structs = kernel_graph("14.2-amd64")
    written = ctf(graph)
    first = Ctf.from_bytes(written, 8)
    assert first.struct("bio") is not None
    assert first.struct("nothing") is None
    first._cache.save()
    second = Ctf.from_bytes(written, 8)
    found = second.struct("bio")
    assert found is not None
    same(found, structs["bio"], typed_bits=True)
    assert second.struct("nothing") is None
    assert not second._types, "the type table was walked although the cache knew"


def test_a_large_struct_keeps_its_far_members() -> None:
    """From 8 KB on version 2 keeps offsets in 64 bits, and from 64 KB sizes too."""
    layout = Layout("far", 1 << 20, {})
    graph = Graph(8, {})
    graph.add_layouts([layout])
    graph.types[1].fields = [GraphField("last", graph.parse("int"), 8 * ((1 << 20) - 4), 0)]
    for version in (2, 3):
        found = Ctf.from_bytes(ctf(graph, version), 8).struct("far")
        assert found is not None
        assert found.size == 1 << 20
        assert found.members["last"].offset == (1 << 20) - 4


@pytest.mark.parametrize("version", [2, 3])
def test_a_number_that_ctfmerge_left_unused_is_passed_over(version: int) -> None:
    """A real 14.2 kernel has 141 types of kind 0, which say nothing and take no room."""
    graph = Graph(8, {})
    graph.add(GraphType("hole"))
    graph.add_layouts([Layout("first", 8, {})])
    graph.add(GraphType("hole"))
    graph.add_layouts([Layout("second", 4, {})])
    graph.types[graph.parse("struct second")].fields = [GraphField("x", graph.parse("int"), 0, 0)]
    graph.add(GraphType("hole"))
    source = Ctf.from_bytes(ctf(graph, version), 8)
    assert source.names() == ["first", "second"]
    found = source.struct("second")
    assert found is not None
    assert [(m.name, m.offset, m.type) for m in found] == [("x", 0, "int")]


@pytest.mark.parametrize("version", [2, 3])
def test_a_modules_types_refer_to_the_kernels(version: int) -> None:
    """With "kernel" as its parent, a module's CTF holds what only the module declares."""
    graph = Graph(8, {})
    graph.add_layouts([Layout("mtx", 32, {})])
    graph.types[graph.parse("struct mtx")].fields = [
        GraphField("mtx_lock", graph.parse("int"), 64, 0)
    ]
    own = len(graph.types)
    graph.add_layouts([Layout("zilog", 48, {})])
    zilog = graph.parse("struct zilog")
    graph.types[zilog].fields = [
        GraphField("zl_lock", graph.parse("struct mtx"), 0, 0),
        GraphField("zl_next", graph.parse("struct zilog *"), 256, 0),
        GraphField("zl_held", graph.parse("struct mtx *"), 320, 0),
    ]
    kernel = Ctf.from_bytes(ctf(graph, version, until=own), 8)
    module = Ctf.from_bytes(ctf(graph, version, child_from=own), 8, parent=kernel)
    assert kernel.names() == ["mtx"]
    assert module.names() == ["zilog"]
    found = module.struct("zilog")
    assert found is not None
    assert [(m.name, m.offset, m.size, m.type) for m in found] == [
        ("zl_lock", 0, 32, "struct mtx"),
        ("zl_next", 32, 8, "struct zilog *"),
        ("zl_held", 40, 8, "struct mtx *"),
    ]
    assert module.struct("mtx") is None


def test_the_ctf_of_a_real_kernel_and_of_its_modules_is_read(shared: Path, tmp_path: Path) -> None:
    """Sizes as the kernel's own headers give them; nothing was written by us."""
    zstandard = pytest.importorskip("zstandard", reason="zstandard is needed for the real dumps")
    folder = shared / "real2" / "14.2-amd64-zfs-ko-hang"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    for name, struct, size in (("kernel", "thread", 1776), ("zfs.ko", "zio", 1216)):
        packed = zstandard.ZstdDecompressor().stream_reader((folder / f"{name}.zst").open("rb"))
        (tmp_path / name).write_bytes(packed.read())
        with ElfFile(tmp_path / name) as opened:
            source = Ctf(opened)
            found = source.struct(struct)
            assert found is not None and found.size == size
            assert len(source.names()) > 500


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "cut short"),
        (b"\xf1\xcf\x03\x00", "cut short"),
        (b"\x00" * 36, "no CTF"),
        (b"\xf1\xcf\x04\x00" + b"\x00" * 32, "version 4"),
        (b"\xf1\xcf\x03\x00" + b"\x00" * 4 + b"\x01" + b"\x00" * 27, "of a module"),
    ],
)
def test_what_is_no_ctf_says_so(data: bytes, says: str) -> None:
    with pytest.raises(LayoutError, match=says):
        Ctf.from_bytes(data, 8).struct("bio")


def _small() -> bytes:
    graph = Graph(8, {})
    row = _FILE.row("14.2-amd64")
    typedefs = Typedefs(_FILE.strings("typedefs", row))
    wanted = ("g_bioq", "mtx", "lock_object", "bio")
    graph.typedefs = dict(typedefs.names)
    graph.add_layouts(
        _FILE.layout(d, typedefs) for d in _FILE.struct_documents(row) if d.name in wanted
    )
    return ctf(graph, 3)


_SMALL = _small()
_PARENT = Ctf.from_bytes(_SMALL, 8)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(
        st.tuples(st.integers(0, len(_SMALL) - 1), st.integers(0, 255)), min_size=1, max_size=6
    ),
    st.integers(0, len(_SMALL)),
)
def test_damaged_ctf_is_one_line(edits: list[tuple[int, int]], cut: int) -> None:
    """Whatever is wrong with it: a layout, none, or one line; never a traceback, never a loop."""
    data = bytearray(_SMALL)
    for at, value in edits:
        data[at] = value
    for damaged in (bytes(data), _SMALL[:cut]):
        for parent in (None, _PARENT):
            try:
                source = Ctf.from_bytes(damaged, 8, parent=parent)
                for name in ("bio", "g_bioq", "mtx", *source.names()[:50]):
                    source.struct(name)
            except WchanError as error:
                assert "\n" not in str(error)
                assert str(error)
