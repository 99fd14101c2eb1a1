"""hang-report: the sections developers ask for, each isolated, each as DDB has it."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from answers import answer
from test_html import browser, in_browser, rows_shown, scrolls_sideways  # noqa: F401

import commands
from commands import hang_report
from plugin.render.report import Report
from plugin.session import Kernel
from tests.forge.demo import make
from tests.forge.machine import Machine


class Forged(NamedTuple):
    vmcore: Path
    kernel: Path


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Forged:
    return Forged(*make(tmp_path_factory.mktemp("demo")))


def sections(dump: Any, *words: str) -> Any:
    status, out, err = answer(dump, "hang-report", "--json", *words)
    assert status in (0, 3) and err == ""
    return {section["name"]: section for section in json.loads(out)["data"]["sections"]}


def test_a_hung_machine_is_reported_in_the_handbooks_sections(demo: Forged) -> None:
    found = sections(demo)
    wanted = ["why-stuck", "msgbuf", "ps", "allpcpu", "alllocks", "lockedvnods", "lockedbufs"]
    wanted += ["allchains", "alltrace", "geom", "bioq", "pbuf", "pageq", "uma"]
    assert [name for name in found if name in wanted] == wanted
    failed = {name: section["error"] for name, section in found.items() if section["error"]}
    # The forged kernel of the demo has no linker_files.
    assert all(error.startswith("this kernel lacks symbol") for error in failed.values()), failed
    assert not set(failed) & set(wanted)


def test_a_section_that_fails_costs_itself_alone(demo: Forged, monkeypatch: Any) -> None:
    before = sections(demo)

    class Broken:
        NEEDS = commands.Needs()

        @staticmethod
        def add_arguments(parser: argparse.ArgumentParser) -> None:
            pass

        @staticmethod
        def run(kernel: Kernel, args: argparse.Namespace) -> Report:
            raise ZeroDivisionError("oops")

    real = commands.load
    monkeypatch.setattr(commands, "load", lambda name: Broken if name == "pbuf" else real(name))
    after = sections(demo)
    assert after["pbuf"]["error"] == "internal error (ZeroDivisionError: oops)"
    assert after["pbuf"]["data"] is None
    assert {n: s["data"] for n, s in after.items() if n != "pbuf"} == {
        n: s["data"] for n, s in before.items() if n != "pbuf"
    }


def test_what_a_command_needs_and_the_kernel_lacks_is_said_in_its_place(
    demo: Forged, monkeypatch: Any
) -> None:
    from commands import pbuf

    monkeypatch.setattr(pbuf, "NEEDS", commands.Needs(symbols=("no_such|nor_this",)))
    lacks = sections(demo)["pbuf"]["error"]
    assert lacks == "this kernel lacks symbol no_such or nor_this"


@pytest.mark.parametrize("profile", sorted(hang_report.PROFILES))
def test_every_profile_names_sections_that_there_are(profile: str) -> None:
    known = {asked.title for asked in hang_report.SECTIONS}
    assert set(hang_report.PROFILES[profile]) <= known


def test_a_folder_gets_the_report_and_each_section_by_itself(demo: Forged, tmp_path: Path) -> None:
    status, out, err = answer(demo, "hang-report", "--profile", "io", "-o", f"{tmp_path}/new/")
    assert (status, out, err) in ((0, "", ""), (3, "", ""))
    assert (tmp_path / "new" / "geom.txt").read_text()
    assert "##### geom" in (tmp_path / "new" / "report.txt").read_text()


def test_the_page_is_whole_and_asks_the_network_for_nothing(demo: Forged, tmp_path: Path) -> None:
    page = tmp_path / "hang.html"
    assert answer(demo, "hang-report", "--html", str(page))[2] == ""
    text = page.read_text()
    assert "<summary>alltrace (kthreads --stacks)</summary>" in text
    assert text.index("GEOM is pacing") < text.index("<svg") < text.index("<summary>why-stuck")
    assert not re.search(r"(src|href)=", text) and text.count("<script") == 1


def test_in_a_real_browser_a_search_opens_the_sections_that_have_it(
    browser: str,  # noqa: F811
    demo: Forged,
    tmp_path: Path,
) -> None:
    page = tmp_path / "hang.html"
    assert answer(demo, "hang-report", "--html", str(page))[2] == ""
    dom, console = in_browser(browser, page, tmp_path / "profile", "nsw_wcount_async")
    assert console == ""
    shown = rows_shown(dom)
    assert shown and all("nsw_wcount_async" in row for row in shown)
    opened = re.findall(r'<details open="">\s*<summary>(\S+)', dom)
    closed = re.findall(r"<details>\s*<summary>([a-z]\S+) \(", dom)
    assert "pbuf" in opened and "geom" in closed
    assert not scrolls_sideways(browser, page, tmp_path)


def test_the_profile_is_that_of_the_state(demo: Forged, tmp_path: Path) -> None:
    """Pacing is I/O; a machine in which nothing hangs gets every section."""
    assert json.loads(answer(demo, "hang-report", "--json")[1])["data"]["profile"] == "io"
    machine = Machine(1402000, "amd64")
    machine.procs.process("init").thread()
    idle = Forged(*machine.write(tmp_path))
    assert json.loads(answer(idle, "hang-report", "--json")[1])["data"]["profile"] == "hang"


def test_locked_vnodes_are_those_that_ddb_lists(real_dump: Any) -> None:
    listed = re.search(r"^Locked vnodes\n(.*?)^db>", real_dump.ddb_log, re.M | re.S)
    if listed is None:
        pytest.skip("DDB listed no vnodes in that log")
    wanted = set(re.findall(r"^vnode (0x[0-9a-f]+): ", listed[1], re.M))
    report = json.loads(answer(real_dump, "klocks", "--vnodes", "--json")[1])
    found = {lock["vnode"] for lock in report["data"]["locks"]}
    assert found == wanted


def test_locked_bufs_are_those_that_ddb_lists(real_dump: Any) -> None:
    listed = re.search(r"^show lockedbufs\n(.*?)^db>", real_dump.ddb_log, re.M | re.S)
    if listed is None:
        pytest.skip("DDB listed no bufs in that log")
    wanted = set(re.findall(r"^buf at (0x[0-9a-f]+)$", listed[1], re.M))
    out = answer(real_dump, "klocks", "--bufs")[1]
    assert set(re.findall(r"^buf at (0x[0-9a-f]+) ", out, re.M)) == wanted


def test_with_witness_every_lock_that_ddb_lists_is_held_by_the_same_thread(
    witness_dump: Any,
) -> None:
    start = witness_dump.ddb_log.index("show alllocks\n")
    wanted, tid = set(), 0
    for line in witness_dump.ddb_log[start:].split("\ndb>")[0].splitlines():
        thread = re.search(r"thread 0x\w+ \((\d+)\)", line)
        held = re.match(r"(exclusive|shared) .*\((0x\w+)\) locked @", line)
        tid = int(thread[1]) if thread else tid
        if held:
            wanted.add((tid, held[2], held[1]))
    locks = json.loads(answer(witness_dump, "klocks", "--all", "--json")[1])["data"]["locks"]
    found = {
        (holder["tid"], lock["address"], "shared" if holder["shared"] else "exclusive")
        for lock in locks
        for holder in lock["holders"]
    }
    assert len(wanted) > 20 and wanted <= found
