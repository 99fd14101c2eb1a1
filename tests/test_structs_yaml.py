"""structs.yaml: it says what the kernels' headers say, is well-formed, and is reproducible."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any, Dict, List

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plugin.errors import LayoutError
from plugin.structs.choose import choose_yaml
from plugin.structs.decoders import NOISE, NOISE_NAMES, TABLES
from plugin.structs.kernels import KernelRow, Spans, split_name
from plugin.structs.making.corpus import Corpus
from plugin.structs.making.facts import read_facts
from plugin.structs.yamlfile import SHIPPED, KernelData, StructsFile, Typedefs, read_kernel

FILE = StructsFile()
NAMES = [row.name for row in FILE.rows]
TEXT = Path(SHIPPED).read_text()
FACTS = Path(__file__).parent / "facts" / "layouts.tar.xz"


def data_of(name: str, file: StructsFile = FILE) -> KernelData:
    return read_kernel(file, name, file.row(name), {})


# Against the facts: read here anew, with nothing of wchan's importer


@cache
def _fact(path: Path) -> Dict[str, Any]:
    loaded: Dict[str, Any] = json.loads(path.read_text())
    loaded.pop("_meta", None)
    return loaded


def differences(facts: Path, name: str, data: KernelData) -> List[str]:
    """Everything in which structs.yaml and the facts of one kernel differ."""
    found = []
    told = _fact(facts / "layouts" / f"{name}.json")
    for struct, value in told.items():
        layout = data.structs.get(struct)
        if layout is None or (layout.size, layout.kind) != (value["size"], value["kind"]):
            found.append(f"struct {struct}")
            continue
        for member in value["members"]:
            mine = layout.members.get(member["name"])
            wanted = (
                member["offset"],
                # the facts write the size of a flexible array as -2
                max(member["size"], 0),
                member["type"],
                member.get("ctype", member["type"]),
                member.get("bit_offset", 0),
                member.get("bit_size", 0),
            )
            if mine is None or wanted != (
                mine.offset, mine.size, mine.type, mine.ctype, mine.bit_pos, mine.bit_size,
            ):  # fmt: skip
                found.append(f"{struct}.{member['name']}")
        if list(layout.members) != [member["name"] for member in value["members"]]:
            found.append(f"order of {struct}")
    found += [f"struct {struct} is not in the facts" for struct in set(data.structs) - set(told)]
    loaded = _fact(facts / "consts" / f"{name}.json")
    constants = {
        constant: entry["value"]
        for constant, entry in loaded["enums"].items()
        if not re.fullmatch(*(NOISE, entry["enum"]) if entry["enum"] else (NOISE_NAMES, constant))
    }
    for macro, value in loaded["macros"].items():
        constants[macro] = int(value, 0) if isinstance(value, str) else value
    found += [c for c, value in constants.items() if data.constants.get(c) != value]
    extra = set(data.constants) - set(constants)
    found += sorted(c for c in extra if not re.fullmatch(r"(TDS|PRS)_\w+", c))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_layout_and_constant_is_as_in_the_headers(name: str, facts: Path) -> None:
    """All members and all constants of the kernel: 0 differences."""
    assert differences(facts, name, data_of(name)) == []


def test_every_kernel_of_the_facts_is_there(facts: Path) -> None:
    folder = facts / "layouts"
    assert sorted(path.stem for path in folder.glob("*.json")) == sorted(NAMES)


@pytest.mark.parametrize(
    "line",
    [
        r"\n  (\d+)( +\d+ +td_tid: )",
        r"\n  \d+ +(\d+)( +bio_offset: )",
        r"\nstruct: buf\nfor: .*\nfile: .*\nsize: (\d+)()",
        r"\n  (\d+)( +\d+ +tqh_first: struct thread \*)",
        r"\n  LK_SHARERS_SHIFT: (\d)()",
        r"\n  VPB_BIT_WAITERS: (\d)()",
        r"\n  \d+\.\d\+(\d+)( +\d+ +ttyd_intr|.*\n)",
    ],
)
def test_one_changed_digit_is_found(line: str, facts: Path, tmp_path: Path) -> None:
    """The comparison above is able to fail: any digit that is changed fails it."""
    matches = list(re.finditer(line, TEXT))
    assert matches, line
    for match in (matches[0], matches[-1]):
        at = match.end(1) - 1
        digit = str((int(TEXT[at]) + 1) % 10)
        changed = tmp_path / "structs.yaml"
        changed.write_text(TEXT[:at] + digit + TEXT[at + 1 :])
        file = StructsFile(str(changed))
        found: List[str] = []
        for name in NAMES:
            try:
                found = differences(facts, name, data_of(name, file))
            except LayoutError as error:
                # an offset may be changed to lie past the end of its struct
                found = [str(error)]
            if found:
                break
        assert found, TEXT[match.start() : match.end()]


def test_importing_the_facts_again_changes_nothing() -> None:
    told = read_facts(str(FACTS.parent))
    assert Corpus(told.sources, told.options).write() == TEXT


# Spans


@pytest.mark.parametrize(
    ("span", "says"),
    [
        ("adm64 14.2..14.2", "no architecture 'adm64'; did you mean 'amd64'?"),
        ("14.2-amd64", "is a kernel's name; its span is 'amd64 14.2'"),
        ("14.2-amd64-debug", "its span is 'amd64/debug 14.2'"),
        ("amd64 14.2..14.1", "version '14.1' is not in the list; did you mean '14.2'?"),
        ("amd64 14.5", "version '14.5' is not in the list; did you mean '14.2'?"),
        ("amd64 10.2..", "version '10.2' is not in the list; did you mean '10."),
        ("amd64 forteen", "version 'forteen' is not in the list; "),
        ("amd64 14.2..9.3", "is empty: 14.2 comes after 9.3"),
        ("amd64/dbug 14.2", "no variant 'dbug'; did you mean 'debug'?"),
        ("i386 15.0", "names no kernel: i386 is known of 6.1approx, 7.0c-700014"),
        ("arm64/up", "there is no up kernel of arm64"),
        ("amd64 14.2 15.0", "expected ARCH[/VARIANT] [FROM..TO]"),
        ("all, adm64", "no architecture 'adm64'"),
    ],
)
def test_a_span_that_names_no_kernel_is_told_in_one_line(
    span: str, says: str, tmp_path: Path
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"struct: my_softc\nfor: {span}\nsize: 4\nmembers: |\n  0 4 busy: int\n")
    with pytest.raises(LayoutError) as caught:
        choose_yaml(1402000, "amd64", path=str(path))
    assert says in str(caught.value)
    assert str(caught.value).startswith(f"{path}: struct my_softc: span ")
    assert "\n" not in str(caught.value)


# The file by itself


def test_reading_and_writing_it_changes_nothing() -> None:
    assert Corpus.load(FILE).write() == TEXT


def test_a_kernel_more_is_a_small_diff(tmp_path: Path) -> None:
    """A new release equal to the last one touches its own lines, not the structs."""
    corpus = Corpus.load(FILE)
    last = next(s for s in corpus.sources if s.row.name == "15.0-amd64")
    row = last.row._replace(name="15.9-amd64", version="15.9", first=1509000, last=1509000)
    text = corpus.replaced([last._replace(row=row)]).write()
    before, after = TEXT.splitlines(), text.splitlines()
    assert len(set(after) - set(before)) < len(before) // 20
    path = tmp_path / "more.yaml"
    path.write_text(text)
    file = StructsFile(str(path))
    assert data_of("15.9-amd64", file).structs.keys() == data_of("15.0-amd64").structs.keys()
    assert data_of("14.2-i386", file).constants == data_of("14.2-i386").constants


@pytest.mark.parametrize("name", NAMES)
def test_no_kernel_has_two_layouts_of_a_struct(name: str) -> None:
    seen: Dict[str, int] = {}
    for document in FILE.struct_documents(FILE.row(name)):
        seen[document.name] = seen.get(document.name, 0) + 1
    assert [struct for struct, count in seen.items() if count > 1] == []


@pytest.mark.parametrize("name", NAMES)
def test_members_lie_within_their_struct_and_point_to_known_tables(name: str) -> None:
    data = data_of(name)
    for layout in data.structs.values():
        for member in layout:
            end = member.offset + (0 if member.bit_size else member.size)
            inside = layout.size if "[]." not in member.name else layout.size + member.size
            assert end <= inside, f"{layout.name}.{member.name}"
            if member.link:
                struct, _, link = member.link.partition(".")
                assert struct in data.structs
                assert any(m.startswith(f"{link}.") for m in data.structs[struct].members)


CORE_TABLES = {
    "bio_cmd": "BIO_READ",
    "bio_flags": "BIO_DONE",
    "b_flags": "B_DELWRI",
    "td_state": "TDS_INHIBITED",
    "td_inhibitors": "TDI_SLEEPING",
    "td_flags": "TDF_SINTR",
    "p_flag": "P_SYSTEM",
    "p_state": "PRS_ZOMBIE",
    "lo_flags": "LO_INITIALIZED",
    "g_provider_flags": "G_PF_WITHER",
    "g_geom_flags": "G_GEOM_WITHER",
    "mnt_flag": "MNT_RDONLY",
    "v_type": "VREG",
    "v_vflag": "VV_ROOT",
    "obj_type": "OBJT_SWAP",
    "obj_flags": "OBJ_DEAD",
    "vm_page_flags": "PG_FICTITIOUS",
    "queue": "PQ_NONE",
    "us_flags": "UMA_SLAB_KERNEL",
}


@pytest.mark.parametrize("name", NAMES)
def test_every_kernel_can_decode_what_a_hang_shows(name: str) -> None:
    data = data_of(name)
    for table, entry in CORE_TABLES.items():
        if table == "us_flags" and entry not in data.constants:
            entry = "UMA_SLAB_BOOT"
        names = data.table(table)
        assert names and entry in names.values(), f"{table} in {name}"
    for struct in ("thread", "proc", "pcpu", "pcb", "bio", "buf", "g_bioq", "g_provider", "vnode"):
        assert struct in data.structs


def test_decoders_differ_where_the_kernels_do() -> None:
    """BIO_DELETE was a bit until 10.x; the PG_ flags moved three times."""
    old, new = data_of("10.4-amd64").table("bio_cmd"), data_of("14.2-amd64").table("bio_cmd")
    assert old and new
    assert (old[4], new[3]) == ("BIO_DELETE", "BIO_DELETE")
    fictitious = {
        name: next(
            v
            for v, n in (data_of(name).table("vm_page_flags") or {}).items()
            if n == "PG_FICTITIOUS"
        )
        for name in ("8.0c-800068-i386", "9.3-amd64", "14.2-amd64")
    }
    assert fictitious == {"8.0c-800068-i386": 8, "9.3-amd64": 4, "14.2-amd64": 2}


def test_one_value_has_one_name() -> None:
    """But for the names FreeBSD itself gives twice; else a foreign macro got in."""
    twice = set()
    for row in FILE.rows:
        for document in FILE.of_kind("table", row):
            named: Dict[int, str] = {}
            for entry, value in FILE.numbers(document, row).items():
                if named.setdefault(value, entry) != entry:
                    twice.add((document.name, named[value], entry))
    assert twice == {
        ("obj_type", "OBJT_SWAP", "OBJT_DEFAULT"),
        ("td_flags", "TDF_SLICEEND", "TDF_SCHED2"),
        ("td_flags", "TDF_PICKCPU", "TDF_SCHED0"),
        ("vm_freepool", "VM_FREEPOOL_DEFAULT", "VM_FREEPOOL_DIRECT"),
    }


def test_flag_tables_hold_single_bits() -> None:
    kinds = {rule.name: rule.kind for rule in TABLES}
    for name in NAMES:
        for table in data_of(name).tables.values():
            if kinds[table.name] != "enum":
                assert all(bit & (bit - 1) == 0 for bit in table.names), table.name


# Spans


def _rows(names: List[str]) -> List[KernelRow]:
    return [KernelRow(n, *split_name(n), frozenset(), i, i, "", "") for i, n in enumerate(names)]


@given(st.sets(st.sampled_from(NAMES)))
def test_a_span_names_exactly_the_kernels_it_was_written_for(wanted: set[str]) -> None:
    text = FILE.spans.write(wanted)
    if wanted:
        covered = {row.name for row in FILE.rows if FILE.spans.covers(text, row)}
        assert covered == wanted, text


@pytest.mark.parametrize(
    ("span", "names"),
    [
        ("all", {"1-amd64", "1-i386", "2-amd64", "2-amd64-debug", "3-amd64"}),
        ("amd64 2..", {"2-amd64", "2-amd64-debug", "3-amd64"}),
        ("all ..1", {"1-amd64", "1-i386"}),
        ("amd64/debug", {"2-amd64-debug"}),
        ("amd64/release 2..3, i386 1", {"2-amd64", "3-amd64", "1-i386"}),
        ("i386/release", {"1-i386"}),
    ],
)
def test_spans_read_as_the_head_of_the_file_says(span: str, names: set[str]) -> None:
    rows = _rows(["1-amd64", "1-i386", "2-amd64", "2-amd64-debug", "3-amd64"])
    spans = Spans(rows)
    assert {row.name for row in rows if spans.covers(span, row)} == names


@pytest.mark.parametrize("span", ["amd64 9..", "amd64 1 2", "", "arm64"])
def test_a_malformed_span_is_refused(span: str) -> None:
    rows = _rows(["1-amd64"])
    with pytest.raises(LayoutError, match="span"):
        Spans(rows).covers(span, rows[0])


# Types


def test_typedefs_are_resolved_where_they_stand() -> None:
    row = FILE.row("14.2-amd64")
    typedefs = Typedefs(FILE.strings("typedefs", row))
    assert typedefs.resolve("uint16_t[4]") == "unsigned short[4]"
    assert typedefs.resolve("vm_object_t") == "struct vm_object *"
    assert typedefs.resolve("volatile uintptr_t") == "volatile unsigned long"
    assert typedefs.resolve("struct task") == "struct task"


# Malformed files


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("kernels: [1, 2]\n", "kernels"),
        ("nonsense: 1\n", "none of the keys"),
        ("- a\n- b\n", "no mapping"),
        ("struct: x\nsize: a\n", "no size"),
        ("struct: x\nsize: -1\n", "no size"),
        ("struct: x\nsize: 4\nmembers: |\n  zero 4 a: int\n", "expected OFFSET SIZE NAME: TYPE"),
        ("struct: x\nsize: 4\nmembers: |\n  8 4 a: int\n", "past the end"),
        ("struct: x\nsize: 4\nmembers: |\n  0 4 a: int\n  0 4 a: int\n", "twice"),
        ("struct: x\nfor: amd64 99.9..\nsize: 4\n", "version '99.9' is not in the list"),
        ("struct: [\n", "no YAML"),
        ("constants: x\nvalues: |\n  A: ten\n", "no number"),
        ("constants: x\nvalues: |\n  A\n", "expected NAME: VALUE"),
        ("table: x\nkind: odd\nvalues: |\n  A: 1\n", "kind 'odd'"),
        ("kernels: |\n  1-amd64: SMP\n", "no such version"),
        ("kernels: |\n  amd64: SMP\nversions: |\n  1: 1; x\n", "VERSION-ARCH"),
        ("kernels: |\n  1-amd64: SMP\nversions: |\n  1: one; x\n", "OSRELDATE"),
    ],
)
def test_a_malformed_file_is_one_clear_line(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(LayoutError) as caught:
        file = StructsFile(str(path))
        row = file.rows[0]
        read_kernel(file, "x", row, {})
    assert says in str(caught.value)
    assert (
        str(path) in str(caught.value) or "span" in says or "VERSION" in says or "version" in says
    )
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_or_no_text_says_so(tmp_path: Path) -> None:
    with pytest.raises(LayoutError, match="No such file"):
        StructsFile(str(tmp_path / "none.yaml"))
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(LayoutError, match="not UTF-8"):
        assert StructsFile(str(tmp_path / "binary")).documents


_SAMPLE = (
    "kernels: |\n  1-amd64: SMP\nversions: |\n  1: 1400000; here\n"
    "---\nstruct: bio\nfor: all\nsize: 16\nmembers: |\n  0 2 bio_cmd: uint16_t = bio_cmd\n"
    "  8 8 bio_next: struct bio * -> bio.bio_next\n"
    "---\ntypedefs: all\nvalues: |\n  uint16_t: unsigned short\n"
    "---\ntable: bio_cmd\nkind: enum\nof: bio.bio_cmd\nvalues: |\n  BIO_READ: 1 for all 1..\n"
)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(
        st.tuples(st.integers(0, len(_SAMPLE) - 1), st.text(max_size=3), st.integers(0, 6)),
        min_size=1,
        max_size=5,
    )
)
def test_whatever_is_wrong_with_a_file_is_one_line(
    tmp_path_factory: pytest.TempPathFactory, edits: list[tuple[int, str, int]]
) -> None:
    """Replaced, inserted or removed text: it reads, or one line says what is wrong."""
    text = _SAMPLE
    for at, inserted, removed in edits:
        text = text[:at] + inserted + text[at + removed :]
    path = tmp_path_factory.mktemp("yaml") / "mine.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    try:
        file = StructsFile(str(path))
        for row in file.rows[:1]:
            read_kernel(file, "x", row, {})
    except LayoutError as error:
        assert str(error)
        assert "\n" not in str(error)
