"""The catalogue of wait messages: whole, well formed, and asked by channel before message."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Dict, List, Optional

import pytest

from plugin.catalogue import (
    CLASSES,
    Catalogue,
    SleepClass,
    Spec,
    normalize,
    read,
    shipped,
    with_file,
)
from plugin.errors import WchanError
from plugin.judge.channel import Channel
from plugin.kernel.vfs_bio import spaces
from plugin.kernel.vm_domain import memory_shortage
from plugin.opening import open_core
from plugin.waits import explain  # noqa: F401 - what registers the resolvers
from plugin.waits.registry import RESOLVERS
from tests.forge.machine import Machine


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return shipped()


def fitting(**answers: Optional[bool]):  # type: ignore[no-untyped-def]
    """Whether a channel fits: by kind of spec ("pause", "object", ...), None where not given."""

    def fits(spec: Spec) -> Optional[bool]:
        return answers.get(spec.kind)

    return fits


def test_every_row_says_who_sleeps_and_who_wakes_it(catalogue: Catalogue) -> None:
    for row in catalogue.rows:
        assert row.function and row.woken_by, row.wmesg
        assert row.sleep_class in CLASSES


def test_every_resolver_a_row_names_exists_and_every_one_is_used(catalogue: Catalogue) -> None:
    named = {row.resolver for row in catalogue.rows if row.resolver}
    assert named == set(RESOLVERS)


def _facts(shared: Path) -> str:
    path = shared / "facts" / "wait-messages.md"
    if not path.exists():
        pytest.skip(f"no {path}")
    return path.read_text(encoding="utf-8")


def test_every_message_of_the_facts_is_in_the_catalogue(shared: Path, catalogue: Catalogue) -> None:
    text = _facts(shared)
    tables = text[: text.index("### D5")]
    missing = []
    for line in tables.splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) < 4 or cells[1] in ("", "wmesg") or cells[1].startswith("---"):
            continue
        quoted = re.findall(r'"([^"]+)"', cells[1])
        bare = re.sub(r'"[^"]+"', " ", re.sub(r"\([^)]*\)|softdep:", " ", cells[1]))
        words = [w for w in re.split(r"[\s,/;]+", bare) if w and w not in ("...", "-")]
        for wmesg in quoted + words:
            # "zilog->zl_*" and the like name a family.
            stem = wmesg.split("*")[0]
            known = any(
                normalize(w).startswith(normalize(stem)) for r in catalogue.rows for w in r.wmesg
            )
            if not known:
                missing.append(wmesg)
    # The second word of "GEOM topology", and the t->zthr_cv of any zthr.
    assert set(missing) == {"topology", "zthr"}


def test_every_benign_message_of_the_facts_is_taken_for_one(
    shared: Path, catalogue: Catalogue
) -> None:
    text = _facts(shared)
    lines = text[text.index("### D5") : text.index("### D6")].splitlines()[1:]
    words: Any = re.sub(r'"[^"]*"|\([^)]*\)|piperd/pipewr/sbwait are.*', " ", " ".join(lines))
    words = [word for word in words.split() if word != "."]
    assert len(words) > 40
    for wmesg in words:
        rows = catalogue.named(wmesg)
        assert rows, wmesg
        assert any(
            row.sleep_class in ("benign", "idle") or row.resolver == "swapper" for row in rows
        )


#: calls that make a lock, whose name is its message, and calls that sleep on nothing
_LOCK_CALLS = {
    "sx_init",
    "sx_init_flags",
    "SX_SYSINIT",
    "SX_SYSINIT_FLAGS",
    "lockinit",
    "getnewvnode",
    "vmem_create",
    "vmem_init",
}
_NO_SLEEP = {"root_mount_hold", "gone_in"}


def _sleep_calls() -> Dict[str, Dict[str, List[str]]]:
    """{message: {"file:function called": [kernels]}} of five kernel trees, 9.3 to 15.1."""
    zstandard = pytest.importorskip("zstandard", reason="zstandard is needed for the facts")
    packed = (Path(__file__).parent / "facts" / "wmesg.json.zst").read_bytes()
    loaded: Dict[str, Dict[str, List[str]]] = json.loads(
        zstandard.ZstdDecompressor().decompress(packed)
    )
    return loaded


def test_every_message_at_a_sleep_call_of_five_kernels_has_a_row_or_is_a_locks_name(
    catalogue: Catalogue,
) -> None:
    calls = _sleep_calls()
    assert len(calls) > 1600
    missing = [
        (wmesg, sites)
        for wmesg, sites in calls.items()
        if {site.rpartition(":")[2] for site in sites} - _LOCK_CALLS - _NO_SLEEP
        and not catalogue.named(wmesg)
    ]
    assert missing == []


def test_a_message_without_a_row_would_be_noticed(catalogue: Catalogue) -> None:
    rows = [row for row in catalogue.rows if "vtbslp" not in row.wmesg]
    assert "vtbslp" in _sleep_calls()
    assert not Catalogue(rows).named("vtbslp")


@pytest.mark.parametrize(
    "wmesg, symbol, sleep_class",
    [
        ("sleep", "ng_worklist", SleepClass.IDLE),
        ("vtbslp", None, SleepClass.IDLE),
        ("xbread", None, SleepClass.IDLE),
        ("balloon", None, SleepClass.IDLE),
        ("vtbspf", None, SleepClass.WORK),
        ("m:event", None, SleepClass.WORK),
        ("geli:suspend", None, SleepClass.WORK),
        ("zvol:w", None, SleepClass.DRAIN),
        ("vd->vdev_autotrim_kick_cv", None, SleepClass.IDLE),
        ("vd->vdev_autotrim_cv", None, SleepClass.WORK),
        ("spa->spa_async_cv", None, SleepClass.WORK),
        ("gkt:wait", None, SleepClass.IDLE),
        ("ipmireq", None, SleepClass.IDLE),
        ("nfsv4lck", None, SleepClass.RETRY),
        ("ffsrca", None, SleepClass.RETRY),
        ("tq_drain", None, SleepClass.DRAIN),
        ("lnxsleep", None, SleepClass.BENIGN),
        ("tx->tx_cpu[c].tc_cv[i]", None, SleepClass.WORK),
    ],
)
def test_a_service_thread_is_idle_and_who_waits_for_one_is_not(
    catalogue: Catalogue, wmesg: str, symbol: Optional[str], sleep_class: SleepClass
) -> None:
    fits = fitting(symbol=None, pause=True, object=True, member=True)
    row, _ = catalogue.match(wmesg, symbol, fits, 1402000)
    assert row is not None and row.sleep_class is sleep_class


def test_a_sleep_of_somebody_elses_is_not_taken_for_netgraphs(catalogue: Catalogue) -> None:
    row, _ = catalogue.match("sleep", None, fitting(symbol=False), 1402000)
    assert row is None


def test_no_message_stands_in_two_rows_that_nothing_tells_apart(catalogue: Catalogue) -> None:
    """Of two rows with one message and any channel the second would never be read."""
    seen: Dict[Any, Any] = {}
    for row in catalogue.rows:
        for wmesg in row.wmesg:
            for spec in row.channel:
                key = normalize(wmesg), spec, row.since, row.until
                assert key not in seen or wmesg == "*", (wmesg, seen[key], row.function)
                seen[key] = row.function


# Matching


def test_the_channel_decides_before_the_message(catalogue: Catalogue) -> None:
    row, why = catalogue.match("renamed", "vm_min_domains", fitting(), 1402000)
    assert row is not None and row.resolver == "memory"
    assert why == "channel &vm_min_domains"


def test_the_same_message_has_several_meanings_told_apart_by_the_channel(
    catalogue: Catalogue,
) -> None:
    found: Dict[str, str] = {}
    for symbol in ("g_wait_down", "bd_request", "vm_daemon_needed", "vm_pages_needed"):
        for wmesg in ("-", "psleep"):
            row, _ = catalogue.match(wmesg, symbol, fitting(), 1004000)
            assert row is not None
            found.setdefault(symbol, row.function)
    assert len(set(found.values())) == 4


def test_a_row_whose_channel_contradicts_is_never_taken(catalogue: Catalogue) -> None:
    no = fitting(symbol=False, pause=False, object=False, member=False, stack=False)
    assert catalogue.match("biord", None, no, 1402000) == (None, "")
    assert catalogue.match("pwait", None, no, 1402000) == (None, "")


def test_a_message_nobody_knows_on_an_object_everybody_knows(catalogue: Catalogue) -> None:
    def fits(spec: Spec) -> Optional[bool]:
        return spec.name == "bio"

    row, why = catalogue.match("mywait", None, fits, 1402000)
    assert row is not None and row.resolver == "bio"
    assert why == "the channel is a bio"
    assert catalogue.match("mywait", None, fitting(), 1402000) == (None, "")


def test_what_cannot_be_told_is_taken_and_said_to_be(catalogue: Catalogue) -> None:
    row, why = catalogue.match("biord", None, fitting(), 1402000)
    assert row is not None
    assert why == "message, the channel taken for a buf"


def test_of_two_versions_the_kernels_own_is_preferred(catalogue: Catalogue) -> None:
    old, _ = catalogue.match("psleep", None, fitting(pause=True), 1100120)
    assert old is not None and old.versions == "11.0-11.4"


def test_a_row_of_other_versions_whose_channel_cannot_be_told_yields_to_one_of_this(
    catalogue: Catalogue,
) -> None:
    """9.3 has no struct bufdomain: what sleeps there in "-" is no bufspace daemon of 11.0."""
    row, _ = catalogue.match("-", None, fitting(symbol=False), 903000)
    assert row is not None and row.resolver == "service"


def test_a_condvar_of_zfs_has_a_bracket_too_many_up_to_9_3(catalogue: Catalogue) -> None:
    assert catalogue.named("zio->io_cv)") == catalogue.named("zio->io_cv") != []


# A user's own rows


def test_a_users_rows_come_before_the_shipped_ones(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("- wmesg: biord\n  function: mine\n  woken_by: me\n  channel: any\n")
    row, _ = with_file(str(mine)).match("biord", None, fitting(object=False), 1402000)
    assert row is not None and row.function == "mine"


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("wmesg: x\n", "must be a list of rows"),
        ("- [1, 2]\n", "row 1: is no mapping"),
        ("- function: f\n", "row 1: has no wmesg"),
        ("- wmesg: x\n  colour: red\n", "row 1: unknown key 'colour'"),
        ("- wmesg: x\n  class: odd\n", "row 1: class 'odd' is none of"),
        ("- wmesg: x\n  versions: new\n", "row 1: versions 'new' is not like"),
        ("- wmesg: x\n  resolver: magic\n", "row 1: resolver 'magic' is none of"),
        ("- wmesg: [x\n", "is not YAML"),
        ("- !!python/object/apply:os.system [true]\n", "is not YAML"),
    ],
)
def test_a_wrong_catalogue_is_refused_with_the_row_that_is_wrong(
    text: str, complaint: str, tmp_path: Path
) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(WchanError, match=re.escape(complaint)):
        with_file(str(path), RESOLVERS)


def test_a_catalogue_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(WchanError, match="cannot read the catalogue"):
        with_file(str(tmp_path / "none.yaml"))


def test_an_empty_catalogue_adds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text("# nothing yet\n")
    assert read(str(path)) == []
    assert len(with_file(str(path)).rows) == len(shipped().rows)


@pytest.mark.parametrize(
    "osreldate, arch",
    [(700014, "i386"), (1100120, "amd64"), (1201000, "amd64"), (1402000, "arm64")],
)
def test_what_vmstate_takes_for_a_wait_why_stuck_takes_for_the_same(
    osreldate: int, arch: str, catalogue: Catalogue, tmp_path: Path
) -> None:
    kernel = open_core(*map(str, Machine(osreldate, arch).write(tmp_path)))
    pages = memory_shortage(kernel).channels
    waits = [(each.address, wmesg) for each in pages for wmesg in each.wmesgs]
    waits += [(space.wchan, space.wmesg) for space in spaces(kernel) if space.wchan]
    assert len(waits) >= 3
    for address, wmesg in waits:
        channel = Channel(kernel, address, None)
        row, told_by = catalogue.match(wmesg, channel.symbol, channel.fits, osreldate)
        assert row is not None and wmesg in row.wmesg, (channel.name, wmesg)
        assert "channel" in told_by and row.resolver, (channel.name, wmesg, told_by)
