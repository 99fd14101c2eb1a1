"""Every command's JSON keeps the contract, on real machines and on the demo's.

What is asked of each command stands in answers.ASKED; a command that is not there, has no schema,
no description of one of its fields or no row in the README fails here: none is half added.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from answers import ASKED, answer
from contract import SCHEMAS, descriptions, load, problems, schema, undescribed

import commands
from tests.forge.demo import make

LINES = [(name, *words) for name in commands.NAMES for words in ASKED.get(name, ())]
README = (SCHEMAS.parent.parent / "README.md").read_text(encoding="utf-8")


class Forged(NamedTuple):
    vmcore: Path
    kernel: Path


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Forged:
    return Forged(*make(tmp_path_factory.mktemp("demo")))


@pytest.mark.parametrize("name", commands.NAMES)
def test_no_command_is_half_added(name: str) -> None:
    assert name in ASKED, f"{name}: say in ASKED how tests ask it"
    assert (SCHEMAS / f"{name}.schema.json").exists(), f"{name}: its JSON is described nowhere"
    assert re.search(rf"^\| `{name}\b", README, re.M), f"{name} has no row in the README"
    command = commands.load(name)
    assert isinstance(command.NEEDS, commands.Needs), f"{name} does not say what it needs"


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
    if words == ("kprint", "proc", "proc0") and "no symbol" in err:
        pytest.skip("this kernel's symbols do not include proc0")
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
