"""One runner for three hosts: what a command says and with which exit status."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, Callable, List, Tuple

import jsonschema
import pytest
from contract import schema
from memory import kernel

import commands
from commands import number
from plugin.caching import LAYOUT, MEMORY, cached
from plugin.errors import (
    DumpError,
    KernelMismatch,
    KernelMissing,
    LayoutError,
    MemoryFault,
    UsageError,
    WchanError,
)
from plugin.hosts.runner import parser_for, run_command, split
from plugin.render.report import Report
from plugin.session import Kernel
from plugin.words import did_you_mean


def run(
    *argv: str, monkeypatch: Any, body: Callable[[Kernel, Any], Report]
) -> Tuple[int, str, str]:
    """``probe ARGV`` with that body: (status, output, errors)."""

    class Probe:
        HELP = "a command of this test"
        EXAMPLE = "probe 0x10"

        @staticmethod
        def add_arguments(parser: argparse.ArgumentParser) -> None:
            parser.add_argument("at", type=number, nargs="?")

        run = staticmethod(body)

    monkeypatch.setattr(commands, "load", lambda name: Probe)
    out: List[str] = []
    err: List[str] = []
    k, _ = kernel()
    status = run_command("probe", argv, lambda: k, out.append, err.append)
    return status, "".join(out), "\n".join(err)


def fine(kernel: Kernel, args: argparse.Namespace) -> Report:
    report = Report({"at": args.at})
    report.text("all is well")
    return report


def test_a_whole_answer_is_status_0(monkeypatch: Any) -> None:
    assert run(monkeypatch=monkeypatch, body=fine) == (0, "all is well\n", "")


def test_an_answer_with_a_hole_is_status_3(monkeypatch: Any) -> None:
    def body(kernel: Kernel, args: argparse.Namespace) -> Report:
        kernel.warnings.add("list", 0x10, "broken")
        return fine(kernel, args)

    status, out, _ = run(monkeypatch=monkeypatch, body=body)
    assert status == 3
    assert "all is well" in out
    assert "PARTIAL" in out


def test_a_failure_is_one_line_and_status_1(monkeypatch: Any) -> None:
    def body(kernel: Kernel, args: argparse.Namespace) -> Report:
        raise MemoryFault(0xDEAD)

    status, out, err = run(monkeypatch=monkeypatch, body=body)
    assert (status, out) == (1, "")
    assert err == "probe: cannot read memory at 0xdead: not in the dump"


def test_a_defect_is_one_line_too(monkeypatch: Any) -> None:
    def body(kernel: Kernel, args: argparse.Namespace) -> Report:
        raise ZeroDivisionError("oops")

    monkeypatch.delenv("WCHAN_DEBUG", raising=False)
    status, _, err = run(monkeypatch=monkeypatch, body=body)
    assert status == 1
    assert "internal error (ZeroDivisionError: oops)" in err
    assert "\n" not in err


def test_ctrl_c_is_one_line_and_status_1(monkeypatch: Any) -> None:
    def body(kernel: Kernel, args: argparse.Namespace) -> Report:
        raise KeyboardInterrupt

    assert run(monkeypatch=monkeypatch, body=body) == (1, "", "probe: interrupted")


def test_help_shows_the_example_and_the_shared_options(monkeypatch: Any) -> None:
    status, out, err = run("--help", monkeypatch=monkeypatch, body=fine)
    assert (status, err) == (0, "")
    for word in ("probe 0x10", "--json", "--limit", "--verbose", "--output"):
        assert word in out


@pytest.mark.parametrize("argv", [("zz",), ("--limit", "x"), ("1", "2")])
def test_wrong_arguments_are_one_line(argv: Tuple[str, ...], monkeypatch: Any) -> None:
    status, out, err = run(*argv, monkeypatch=monkeypatch, body=fine)
    assert (status, out) == (1, "")
    assert err.startswith("probe: ")
    assert "\n" not in err


def test_output_goes_to_the_file_named(monkeypatch: Any, tmp_path: Path) -> None:
    where = tmp_path / "report.txt"
    assert run("-o", str(where), monkeypatch=monkeypatch, body=fine) == (0, "", "")
    assert where.read_text() == "all is well\n"
    status, _, err = run("-o", str(tmp_path), monkeypatch=monkeypatch, body=fine)
    assert status == 1
    assert err == f"probe: cannot write {tmp_path}: Is a directory"


def test_what_a_command_found_is_not_told_again_by_the_next(monkeypatch: Any) -> None:
    k, _ = kernel()
    k.warnings.add("old", None, "of another command")
    k.start_command()
    assert not any(finding.what == "old" for finding in k.warnings)


def test_what_a_cached_value_cost_is_told_at_every_use() -> None:
    k, _ = kernel()
    asked = []

    @cached(MEMORY)
    def broken_list(kernel: Any) -> int:
        asked.append(kernel)
        kernel.warnings.add("list", 0x10, "broken")
        return 7

    for _ in range(2):
        k.start_command()
        assert broken_list(k) == 7
        assert k.warnings.partial
        assert any(finding.what == "list" for finding in k.warnings)
    assert len(asked) == 1


def test_a_running_kernels_memory_is_read_again_by_each_command_its_layouts_are_not() -> None:
    k, _ = kernel()
    k.target.stable = False
    asked = []

    @cached(MEMORY)
    def memory(kernel: Any, what: str) -> str:
        asked.append(what)
        return what

    @cached(LAYOUT)
    def layout(kernel: Any) -> int:
        asked.append("layout")
        return 1

    for _ in range(2):
        k.start_command()
        for _ in range(2):
            assert (memory(k, "memory"), layout(k)) == ("memory", 1)
    assert asked == ["memory", "layout", "memory"]
    k.forget()
    assert layout(k) == 1
    assert asked[-1] == "layout"


def test_a_debuggers_line_is_split_as_a_shell_would() -> None:
    assert split("--wmesg 'g_down x' 0x10") == ["--wmesg", "g_down x", "0x10"]
    with pytest.raises(UsageError):
        split("'unbalanced")


@pytest.mark.parametrize("name", commands.NAMES)
def test_every_command_has_help_with_an_example(name: str) -> None:
    parser = parser_for(name)
    assert parser.description
    assert parser.epilog and name in parser.epilog


def test_a_program_that_asked_for_json_gets_json_when_the_command_fails(monkeypatch: Any) -> None:
    def body(kernel: Kernel, args: argparse.Namespace) -> Report:
        raise MemoryFault(0xDEAD)

    status, out, err = run("--json", monkeypatch=monkeypatch, body=body)
    report = json.loads(out)
    jsonschema.validate(report, schema("error"))
    assert (status, report["error"]["reason"]) == (1, "damaged")
    assert err == report["error"]["message"]


@pytest.mark.parametrize(
    "error", [UsageError, DumpError, KernelMissing, KernelMismatch, LayoutError, WchanError]
)
def test_every_kind_of_failure_has_a_reason_that_its_schema_lists(error: Any) -> None:
    reasons = schema("error")["properties"]["error"]["properties"]["reason"]["enum"]
    assert error.code in reasons


def test_a_name_that_is_nearly_right_is_answered_with_the_right_one() -> None:
    assert did_you_mean("vtbd9", ["vtbd1", "da0"]) == "; did you mean vtbd1?"
    assert did_you_mean("vtbd9", ["da0"]) == ""
