"""Every command's JSON keeps the contract, on real machines and on the demo's.

What is asked of each command it says itself (FORMS); one that does not, has no schema, or leaves
a field of it undescribed fails here: none is half added.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
from answers import answer
from contract import SCHEMAS, descriptions, load, problems, schema, undescribed

import commands
from tests.forge.demo import make

LINES = [
    (name, *form.split())
    for name in commands.NAMES
    for form in getattr(commands.load(name), "FORMS", ())
]


class Forged(NamedTuple):
    vmcore: Path
    kernel: Path


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Forged:
    return Forged(*make(tmp_path_factory.mktemp("demo")))


@pytest.mark.parametrize("name", commands.NAMES)
def test_no_command_is_half_added(name: str) -> None:
    assert (SCHEMAS / f"{name}.schema.json").exists(), f"{name}: its JSON is described nowhere"
    command = commands.load(name)
    left_out = [
        word for word in vars(commands.Command)["__annotations__"] if not hasattr(command, word)
    ]
    assert left_out == [], f"{name}: commands.Command says what they are"
    assert isinstance(command.NEEDS, commands.Needs)
    assert not isinstance(command.FORMS, str) and command.FORMS, (
        f"{name}: FORMS is a tuple of lines"
    )


@pytest.mark.parametrize("name", [*commands.NAMES, "envelope", "error"])
def test_every_field_of_a_schema_is_described(name: str) -> None:
    assert [path for path, said in descriptions(name) if not said] == []


@pytest.mark.parametrize("words", LINES, ids=" ".join)
def test_a_report_of_a_real_machine_keeps_the_contract(real_dump: Any, words: Any) -> None:
    assert_keeps(real_dump, *words)


@pytest.mark.parametrize("words", LINES, ids=" ".join)
def test_a_report_of_the_demo_keeps_the_contract(demo: Forged, words: Any) -> None:
    assert_keeps(demo, *words)


def assert_keeps(dump: Any, *words: str) -> None:
    status, out, err = answer(dump, *words, "--json")
    assert status in (0, 3) and err == ""
    report = load(out)
    assert list(problems(report, words[0])) == []
    assert undescribed(report, words[0]) == [], f"describe them in docs/schema/{words[0]}"


def test_a_breach_is_named(demo: Forged) -> None:
    report = load(answer(demo, "kthreads", "--json")[1])
    report["data"]["threads"][0]["state"] = "stuck"
    del report["data"]["threads"][1]["wchan"]
    assert len(list(problems(report, "kthreads"))) == 2


def test_the_kinds_of_the_graph_are_those_of_its_schema() -> None:
    from plugin.waits.kinds import CauseKind, EdgeKind, NodeKind

    data = schema("why-stuck")["properties"]["data"]["properties"]
    for kinds, field in ((NodeKind, "nodes"), (EdgeKind, "edges"), (CauseKind, "causes")):
        listed = data[field]["items"]["properties"]["kind"]["enum"]
        assert {str(kind.value) for kind in kinds} <= set(listed), field
