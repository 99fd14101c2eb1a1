"""Every command's JSON keeps the contract, on real machines and on the demo's."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
from contract import load, problems
from hosts import shell

from tests.forge.demo import make

COMMANDS = (
    ("bioq",),
    ("klocks",),
    ("kmsgbuf",),
    ("kthreads",),
    ("kthreads", "--stacks"),
    ("pbuf",),
    ("provider",),
    ("vmpage", "--scan"),
    ("vmstate",),
    ("why-stuck",),
)


class Forged(NamedTuple):
    vmcore: Path
    kernel: Path


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Forged:
    return Forged(*make(tmp_path_factory.mktemp("demo")))


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_report_of_a_real_machine_keeps_the_contract(real_dump: Any, words: Any) -> None:
    status, out, err = shell(real_dump, *words, "--json")
    assert (status, err) == (0, "")
    assert list(problems(load(out), words[0])) == []


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_report_of_the_demo_keeps_the_contract(demo: Forged, words: Any) -> None:
    status, out, err = shell(demo, *words, "--json")
    assert (status, err) == (0, "")
    assert list(problems(load(out), words[0])) == []


def test_a_breach_is_named(demo: Forged) -> None:
    report = load(shell(demo, "kthreads", "--json")[1])
    report["data"]["threads"][0]["state"] = "stuck"
    del report["data"]["threads"][1]["wchan"]
    assert len(list(problems(report, "kthreads"))) == 2
