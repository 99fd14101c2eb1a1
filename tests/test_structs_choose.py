"""Which kernel of structs.yaml is taken, how that is said, and what is kept for the next start."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, FrozenSet, Iterator, List

import pytest

from plugin.errors import LayoutError
from plugin.structs import Layouts, choose, yamlfile
from plugin.structs.choose import Choice, choose_yaml
from plugin.structs.layout import Fields, Layout, Member
from plugin.structs.yamlfile import SHIPPED, StructsFile

NONE: FrozenSet[str] = frozenset()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield


# The version


@pytest.mark.parametrize(
    ("osreldate", "arch", "kernel", "exact"),
    [
        (1402000, "amd64", "14.2-amd64", True),
        (1402000, "arm64", "14.2-arm64", True),
        (1402000, "i386", "14.2-i386", True),
        (1402499, "amd64", "14.2-amd64", True),
        (903000, "i386", "9.3-i386", True),
        (700014, "i386", "7.0c-700014-i386", True),
        (601000, "i386", "6.1approx-i386", True),
        # within a branch the nearest will do, for its binary interface is kept
        (1402500, "amd64", "14.2-amd64", False),
        (1400097, "amd64", "14.0c-1400063-amd64", False),
        (1203000, "amd64", "12.1-amd64", False),
        (1200060, "amd64", "12.0c-r329363-est-amd64", False),
        (700003, "i386", "7.0c-700014-i386", False),
        # HardenedBSD's kernel is not taken for FreeBSD's, however near
        (1501000, "amd64", "15.0-amd64", False),
        (1501501, "amd64", "15.1hbsd-amd64", True),
    ],
)
def test_the_nearest_kernel_of_the_branch_is_taken(
    osreldate: int, arch: str, kernel: str, exact: bool
) -> None:
    choice = choose_yaml(osreldate, arch)
    assert choice.row.name == kernel
    assert choice.exact is exact
    assert choice.source.name == f"yaml:{kernel}"
    assert kernel in choice.how
    assert ("nearest in its branch" in choice.how) is not exact


@pytest.mark.parametrize(
    ("osreldate", "arch", "says"),
    [
        (1600001, "amd64", "no layouts for FreeBSD 16 (1600001) on amd64"),
        (1500068, "i386", "no layouts for FreeBSD 15 (1500068) on i386"),
        (1402000, "riscv64", "no riscv64 kernel at all"),
        (503000, "i386", "no layouts for FreeBSD 5"),
    ],
)
def test_another_branch_is_refused_with_what_to_do(osreldate: int, arch: str, says: str) -> None:
    with pytest.raises(LayoutError) as caught:
        choose_yaml(osreldate, arch)
    assert says in str(caught.value)
    assert "structs generate" in str(caught.value)


def test_force_takes_the_nearest_of_another_branch_and_says_so() -> None:
    choice = choose_yaml(1600001, "amd64", force=True)
    assert choice.row.version.startswith("15.")
    assert not choice.exact
    assert "of another branch, forced" in choice.how


def test_a_kernel_may_be_named() -> None:
    choice = choose_yaml(1402000, "amd64", kernel_name="15.1hbsd-amd64")
    assert choice.row.name == "15.1hbsd-amd64"
    assert "as asked" in choice.how
    with pytest.raises(LayoutError, match=r"no kernel '14\.9-amd64'; there are 14\.0c"):
        choose_yaml(1402000, "amd64", kernel_name="14.9-amd64")


# The options


def size(choice: Choice, struct: str) -> int:
    return choice.source.structs[struct].size


def test_each_option_moves_the_structs_that_depend_on_it() -> None:
    """INVARIANTS makes a sleepqueue larger, BUF_TRACKING a bio and a buf."""
    plain = choose_yaml(1402000, "amd64")
    assert (size(plain, "sleepqueue"), size(plain, "bio"), size(plain, "buf")) == (80, 376, 304)
    checked = choose_yaml(1402000, "amd64", frozenset(("INVARIANTS", "WITNESS")))
    assert (size(checked, "sleepqueue"), size(checked, "bio"), size(checked, "buf")) == (
        88,
        376,
        304,
    )
    tracked = choose_yaml(1402000, "amd64", frozenset(("INVARIANTS", "WITNESS", "BUF_TRACKING")))
    assert (size(tracked, "sleepqueue"), size(tracked, "bio"), size(tracked, "buf")) == (
        88,
        384,
        568,
    )
    only = choose_yaml(1402000, "amd64", frozenset(("BUF_TRACKING",)))
    assert (size(only, "sleepqueue"), size(only, "bio"), size(only, "buf")) == (80, 384, 568)
    assert "bio, buf as in 14.2-amd64" in checked.how


def test_a_version_without_a_debug_kernel_borrows_its_few_structs() -> None:
    """12.1 is known as a release only; 12.0 tells what INVARIANTS changes."""
    choice = choose_yaml(1201000, "amd64", frozenset(("INVARIANTS",)))
    assert choice.row.name == "12.1-amd64"
    assert size(choice, "sleepqueue") == 88
    assert size(choice, "proc") == 1328
    assert size(choice, "refcount") > size(choose_yaml(1201000, "amd64"), "refcount") == 8
    assert choice.how.endswith("more structs as in 12.0-amd64-debug")


def test_an_uniprocessor_kernel_has_its_own() -> None:
    choice = choose_yaml(700014, "i386", frozenset(("UP",)))
    assert choice.row.name == "7.0c-700014-i386-up"


# A file of the user's


MINE = "struct: my_softc\nsize: 16\nmembers: |\n  0 8 sc_dev: struct device *\n  8 4 sc_busy: int\n"


def test_structs_of_ones_own_are_laid_over_the_shipped_ones(tmp_path: Path) -> None:
    """A few documents without a kernel list: for printing a driver's struct."""
    path = tmp_path / "mine.yaml"
    path.write_text(MINE)
    choice = choose_yaml(1402000, "amd64", path=str(path))
    layouts = Layouts([choice.source], choice.tables)
    assert layouts.offsetof("my_softc", "sc_busy") == 8
    assert layouts.sizeof("bio") == 376
    assert layouts.table("bio_cmd")[1] == "BIO_READ"
    assert f"with the structs of {path}" in choice.how
    assert choice.row.name == "14.2-amd64"


def test_a_file_of_ones_own_wins_over_the_shipped_one(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("struct: bio\nfor: all 14.2..\nsize: 999\nmembers: |\n  0 2 bio_cmd: int\n")
    assert choose_yaml(1402000, "amd64", path=str(path)).source.structs["bio"].size == 999
    assert choose_yaml(1201000, "amd64", path=str(path)).source.structs["bio"].size == 376


# The cache


def _files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "wchan").glob("structs-*.json"))


def same(one: Choice, other: Choice) -> None:
    assert one.row == other.row and one.how == other.how and one.exact == other.exact
    assert one.source.constants == other.source.constants
    assert one.source.tables == other.source.tables
    assert one.source.aliases == other.source.aliases
    assert one.source.globals == other.source.globals
    assert one.source.structs.keys() == other.source.structs.keys()
    for name, layout in one.source.structs.items():
        assert layout.size == other.source.structs[name].size
        assert layout.members == other.source.structs[name].members


def test_a_warm_start_says_the_same_and_parses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cold = choose_yaml(1402000, "amd64", frozenset(("INVARIANTS",)))
    monkeypatch.setattr(
        StructsFile, "_yaml", lambda self, text: pytest.fail("YAML was parsed again")
    )
    same(choose_yaml(1402000, "amd64", frozenset(("INVARIANTS",))), cold)
    assert len(_files(tmp_path)) == 1


def test_a_changed_file_is_never_answered_from_the_cache(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(MINE)
    first = choose_yaml(1402000, "amd64", path=str(path))
    stamp = path.stat()
    path.write_text(MINE.replace("size: 16", "size: 24"))
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    second = choose_yaml(1402000, "amd64", path=str(path))
    assert (size(first, "my_softc"), size(second, "my_softc")) == (16, 24)


@pytest.mark.parametrize("damage", [b"", b"{}", b"not json", b"[1]", None])
def test_a_damaged_cache_is_ignored(tmp_path: Path, damage: bytes | None) -> None:
    cold = choose_yaml(1402000, "amd64")
    (file,) = _files(tmp_path)
    whole = file.read_bytes()
    # None: one byte in the middle flipped
    middle = len(whole) // 2
    file.write_bytes(damage if damage is not None else whole[:middle] + b"#" + whole[middle + 1 :])
    same(choose_yaml(1402000, "amd64"), cold)


def test_a_cache_that_cannot_be_written_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file stands where the directory should be, as in a read-only home."""
    blocked = tmp_path / "blocked"
    blocked.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    assert size(choose_yaml(1402000, "amd64"), "bio") == 376
    assert size(choose_yaml(1402000, "amd64"), "bio") == 376


def test_a_full_disk_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    choose_yaml(1402000, "amd64")
    assert list((tmp_path / "cache" / "wchan").iterdir()) == []


def test_the_pure_python_parser_reads_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    yaml = pytest.importorskip("yaml")
    with_c = choose_yaml(1402000, "amd64")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    monkeypatch.delattr(yaml, "CSafeLoader", raising=False)
    same(choose_yaml(1402000, "amd64"), with_c)


def test_a_start_reads_only_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of some 4000 struct documents those that are asked for are parsed, and no other."""
    seen: List[str] = []
    original = yamlfile._written_layout

    def parse(written: re.Match[str], *rest: Any) -> Layout:
        seen.append(written.group(2))
        return original(written, *rest)

    monkeypatch.setattr(yamlfile, "_written_layout", parse)
    choice = choose_yaml(1402000, "amd64")
    assert seen == []
    layouts = Layouts([choice.source], choice.tables)
    assert layouts.offsetof("bio", "bio_offset") and layouts.offsetof("bio", "bio_cmd") == 0
    assert seen == ["bio"]
    assert len(choice.source.structs) > 500
    assert len(StructsFile().documents) > 4000


def test_no_yaml_module_is_imported_by_a_warm_start() -> None:
    code = (
        "import sys; from plugin.structs.choose import choose_yaml\n"
        "choose_yaml(1402000, 'amd64'); print('yaml' in sys.modules)"
    )
    said = [
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True, text=True, check=True, cwd=Path(SHIPPED).parent,
        ).stdout.strip()
        for _ in range(2)
    ]  # fmt: skip
    assert said == ["True", "False"]


# Members found through the layouts


@pytest.fixture
def layouts() -> Layouts:
    choice = choose_yaml(1201000, "amd64")
    return Layouts([choice.source], choice.tables)


def test_paths_lead_through_structs_and_arrays(layouts: Layouts) -> None:
    """buf.b_lock is a struct lock by value; sq_blocked an array of anonymous list heads."""
    assert layouts.offsetof("buf", "b_lock.lk_lock") == layouts.offsetof(
        "buf", "b_lock"
    ) + layouts.offsetof("lock", "lk_lock")
    first = layouts.resolve("sleepqueue", "sq_blocked[0].tqh_first")
    second = layouts.resolve("sleepqueue", "sq_blocked[1].tqh_first")
    assert (first.offset, second.offset, second.points_to) == (0, 16, "thread")
    assert layouts.resolve("sleepqueue", "sq_blockedcnt[1]").offset == (
        layouts.offsetof("sleepqueue", "sq_blockedcnt") + 4
    )
    assert not layouts.has("sleepqueue", "sq_blocked[2].tqh_first")
    named = Layouts([choose_yaml(1402000, "amd64").source], choose_yaml(1402000, "amd64").tables)
    assert named.resolve("sleepqueue", "sq_blocked[1].tqh_first").offset == 16


def test_members_that_became_macros_keep_their_names(layouts: Layouts) -> None:
    """mtx_recurse is lock_object.lo_data since 8.0; bio_error moved in 15-STABLE."""
    assert layouts.offsetof("mtx", "mtx_recurse") == layouts.offsetof("mtx", "lock_object.lo_data")
    stable = choose_yaml(1501501, "amd64")
    newer = Layouts([stable.source], stable.tables)
    assert newer.offsetof("bio", "bio_error") == newer.offsetof("bio", "bio_exterr.error")
    assert newer.resolve("vnode", "v_type").decoder == "v_type"
    assert not layouts.has("mtx", "mtx_nothing")


def test_members_are_read_in_the_order_asked_for() -> None:
    members = [
        Member("c", 8, 4, "int", "int"),
        Member("a", 0, 2, "u_short", "unsigned short"),
        Member("b", 4, 4, "u_int", "unsigned int"),
    ]
    data = (0x1234).to_bytes(4, "little") + (7).to_bytes(4, "little") + b"\xff\xff\xff\xff"
    assert Fields(members).unpack(data) == (-1, 0x1234, 7)
    assert Fields(members).unpack_from(b"..." + data, 3) == (-1, 0x1234, 7)
    assert Fields(members[1:]).unpack(data) == (0x1234, 7)
    assert Fields([members[0]]).unpack(data) == (-1,)


def test_bit_fields_read_no_further_than_they_lie() -> None:
    """sd_mbz lies at byte 13 of 16, in a storage unit of 8 bytes."""
    choice = choose_yaml(1402000, "amd64")
    segment = choice.source.structs["system_segment_descriptor"]
    fields = Fields([segment.member("sd_mbz"), segment.member("sd_dpl"), segment.member("sd_p")])
    data = bytearray(segment.size)
    data[13] = 0b10101
    data[5] = 0b1_11_00000
    assert fields.unpack(bytes(data)) == (0b10101, 3, 1)
    assert fields.span <= segment.size


def test_the_choice_module_keeps_no_state() -> None:
    """Two choices in one process do not mix."""
    one, other = choose_yaml(1402000, "amd64"), choose_yaml(700014, "i386")
    assert size(one, "thread") != size(other, "thread")
    assert choose.candidates(StructsFile(), 1402000, "amd64")[0].name == "14.2-amd64"
