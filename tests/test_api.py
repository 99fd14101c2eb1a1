"""The Python API: what docs/api.md shows is so, and the names in it stay."""

from __future__ import annotations

import doctest
import inspect
from pathlib import Path
from typing import Any, Dict, List

import pytest

from plugin import api
from plugin.api import Machine, open_machine
from tests.forge.demo import make
from tests.forge.scenarios import deadlocks
from tests.test_captures import DDB

GUIDE = Path(__file__).resolve().parent.parent / "docs" / "api.md"
#: What scripts rest on.  A name may be added; one that goes or takes other arguments breaks them.
STABLE: Dict[str, List[str]] = {
    "open_machine": ["files", "kernel", "structs", "sysroot", "force"],
    "Machine": [
        "arch", "ask", "bios", "busy_pages", "findings", "kernel", "locks", "mounts", "page",
        "panic", "partial", "processes", "providers", "queues", "release", "struct", "text",
        "threads", "why_stuck",
    ],
    "Answer": ["command", "data", "json", "partial", "text", "warnings"],
    "Verdict": ["causes", "command", "data", "json", "partial", "stuck", "text", "verdict",
                "warnings"],
    "Rows": ["columns"],
    "WchanError": ["code"],
}  # fmt: skip


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make(tmp_path_factory.mktemp("demo"))[0])


def test_the_guide_says_what_is_so(demo: str) -> None:
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    test = doctest.DocTestParser().get_doctest(
        GUIDE.read_text(), {"vmcore": demo}, "docs/api.md", str(GUIDE), 0
    )
    said: List[str] = []
    runner.run(test, out=said.append)
    assert runner.tries > 15 and runner.failures == 0, "".join(said)


def test_the_public_names_are_these(demo: str) -> None:
    assert sorted(api.__all__) == sorted(STABLE)
    assert list(inspect.signature(open_machine).parameters) == STABLE["open_machine"]
    machine = open_machine(demo)
    objects: Dict[str, Any] = {
        "Machine": machine,
        "Answer": machine.ask("kmsgbuf"),
        "Verdict": machine.why_stuck(),
        "Rows": machine.threads(),
        "WchanError": api.WchanError("x"),
    }
    inherited = set(dir([])) | set(dir(Exception()))
    for name, made in objects.items():
        public = {each for each in dir(made) if not each.startswith("_")} - inherited
        assert sorted(public) == sorted(STABLE[name]), name


def test_a_notebook_shows_tables_and_what_memory_says_is_inert(tmp_path: Path) -> None:
    m = deadlocks.abba()
    m.procs.process("<script>x").thread(calls=("kern_example",)).sleeps(m.take(8), "select")
    machine = open_machine(str(m.write(tmp_path)[0]))
    table = machine.threads()._repr_html_()
    assert "<th>tid</th>" in table and "<td>alpha</td>" in table
    assert "<script>" not in table and "&lt;script&gt;x" in table
    page = machine._repr_html_()
    assert "Deadlock" in page and "<script>" not in page
    assert "Deadlock" in repr(machine.why_stuck())


def test_many_rows_are_cut_in_a_notebook_only(demo: str) -> None:
    every = open_machine(demo).threads()
    assert len(every) == 278 and "228 more" in every._repr_html_()


def test_text_is_a_machine_too_and_says_what_it_lacks(tmp_path: Path) -> None:
    log = tmp_path / "console"
    log.write_text(DDB)
    machine = open_machine(str(log))
    assert machine.why_stuck().causes and len(machine.threads()) > 5
    with pytest.raises(api.WchanError, match="is text"):
        machine.providers()
    assert isinstance(machine, Machine) and machine.locks() is not None


def test_a_command_that_fails_raises_its_one_line(demo: str) -> None:
    machine = open_machine(demo)
    with pytest.raises(api.WchanError, match=r"no struct|no layout"):
        machine.ask("kprint", "nosuchstruct", "0x1000")
    with pytest.raises(api.WchanError, match="no command 'why-stcuk'; did you mean why-stuck"):
        machine.ask("why-stcuk")
