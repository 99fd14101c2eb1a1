"""Resolvers by their names: each has a row, each is entered here, and one that fails says so."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any, Container, Dict, Iterator, List, Set

import pytest
from test_why_stuck import Answer, thread

from plugin.catalogue import Row, Spec, shipped
from plugin.errors import MemoryFault, UsageError, WchanError
from plugin.opening import open_core
from plugin.waits import explain as explaining
from plugin.waits.builder import Case
from plugin.waits.registry import RESOLVERS, resolver
from tests.forge.machine import Machine

assert explaining  # it loads every module of resolvers/

VERSIONS = (1402000, 1201000, 1004000, 700014)


def _channel(m: Machine, spec: Spec, later: Container[str]) -> int:
    """A channel that is what a row says, as far as a machine of no state in particular has it."""
    if spec.kind == "symbol":
        known = m.lookup(spec.name)
        if known is not None:
            return int(known.address)
        return int(m.variable(spec.name, 0, size=64)) if spec.name not in later else int(m.take(64))
    if spec.kind == "member":
        struct, member = spec.name.split(".", 1)
        if struct in m.layouts and m.layouts.has(struct, member):
            return int(m.new(struct).at(member))
    return int(m.take(1024))


def _sleepers(m: Machine, rows: List[Row], later: Container[str]) -> None:
    for row in rows:
        for spec in row.channel:
            sleeper = thread(m, row.resolver[:15])
            if spec.kind == "pause":
                try:
                    sleeper.pauses(row.wmesg[0], 10.0, seconds=5)
                    continue
                except UsageError:
                    pass
            sleeper.sleeps(_channel(m, spec, later), row.wmesg[0], seconds=90)


def _marked() -> Set[str]:
    """The names in every ``@pytest.mark.enters(...)`` of the tests beside this one."""
    found: Set[str] = set()
    for path in Path(__file__).parent.glob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr == "enters"
            ):
                found |= {str(each.value) for each in node.args if isinstance(each, ast.Constant)}
    return found


@pytest.fixture
def entered() -> Iterator[Set[str]]:
    """The names of the resolvers that are asked while the test runs."""
    seen: Set[str] = set()
    own = dict(RESOLVERS)

    def recorded(name: str) -> Any:
        def asked(case: Case) -> Any:
            seen.add(name)
            return own[name](case)

        return asked

    RESOLVERS.update({name: recorded(name) for name in own})
    yield seen
    RESOLVERS.update(own)


def test_every_resolver_is_entered_by_a_sleeper_of_its_own_row_or_by_a_test_that_says_so(
    entered: Set[str], tmp_path: Path
) -> None:
    rows: Dict[str, List[Row]] = {}
    for row in shipped().rows:
        if row.resolver:
            rows.setdefault(row.resolver, []).append(row)
    for osreldate in VERSIONS:
        arch = "i386" if osreldate < 800000 else "amd64"
        folder = tmp_path / str(osreldate)
        folder.mkdir()
        plain = Machine(osreldate, arch)
        plain.write(folder)
        m = Machine(osreldate, arch)
        for some in rows.values():
            _sleepers(m, [row for row in some if row.covers(osreldate)][:3], plain.symbols)
        vmcore, kernel = m.write(folder)
        opened = open_core(str(vmcore), str(kernel))
        analysis = explaining.builder(opened, shipped())
        analysis.build()
        wrong = [each for each in opened.warnings if "defect" in each.detail]
        assert not wrong, wrong
    assert set(RESOLVERS) - entered - _marked() == set()


@pytest.mark.parametrize(
    "error", [WchanError("odd"), MemoryFault(0x10, "odd"), KeyError("odd"), ValueError("odd")]
)
def test_a_resolver_that_fails_leaves_a_finding_and_its_thread_to_the_catalogues_row(
    error: Exception, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fails(case: Case) -> Any:
        raise error

    monkeypatch.setitem(RESOLVERS, "nfs_request", fails)
    m = Machine(1402000, "amd64")
    user = thread(m)
    user.sleeps(m.take(64), "nfsreq", seconds=70)
    vmcore, kernel = m.write(tmp_path)
    answer = Answer(open_core(str(vmcore), str(kernel)), partial=True)
    assert user.tid in answer.data["residue"]
    warnings = json.loads(answer.run("--json", status=3))["warnings"]
    assert [each["what"] for each in warnings] == [f'thread {user.tid} in "nfsreq"']
    assert "odd" in warnings[0]["detail"]


def test_two_resolvers_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="two resolvers are called 'buf'"):
        resolver("buf")(lambda case: None)


def test_a_new_file_in_the_folder_of_resolvers_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from plugin.waits import resolvers

    (tmp_path / "added_by_a_test.py").write_text(
        "from plugin.waits.registry import resolver\n"
        "@resolver('added_by_a_test')\n"
        "def added(case):\n    return None\n"
    )
    monkeypatch.setattr(resolvers, "__path__", [*resolvers.__path__, str(tmp_path)])
    try:
        assert "added_by_a_test" in resolvers.load()
        assert "added_by_a_test" in RESOLVERS
    finally:
        RESOLVERS.pop("added_by_a_test", None)


def test_an_answer_survives_a_machine_where_every_known_message_is_slept_in(
    tmp_path: Path,
) -> None:
    m = Machine(1402000, "amd64", ram=128 << 20)
    for row in shipped().rows:
        if row.covers(1402000):
            thread(m, "sleeper").sleeps(m.take(64), row.wmesg[0], seconds=90)
    vmcore, kernel = m.write(tmp_path)
    answer = Answer(open_core(str(vmcore), str(kernel)), partial=True)
    threads = answer.data["threads"]
    assert threads["stuck"] and threads["stuck"] + threads["idle"] == threads["total"]
    assert "No deadlock." not in answer.verdict
