"""The documentation says what is so: links lead somewhere, tables are made from data."""

from __future__ import annotations

import argparse
import re
import runpy
import shutil
import subprocess
from pathlib import Path
from typing import Iterator, List, Tuple

import pytest

import commands
from plugin.structs.yamlfile import StructsFile, read_kernel

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = sorted(
    path
    for path in (
        *REPOSITORY.glob("*.md"),
        *REPOSITORY.glob("docs/**/*.md"),
        *REPOSITORY.glob("tests/**/*.md"),
    )
)
_LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)")
#: a path in code marks that begins with a folder of the repository
_PATH = re.compile(r"`((?:plugin|commands|tests|docs|\.ci)/[\w./-]+)`")


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_what_a_page_names_exists(page: Path) -> None:
    text = page.read_text()
    for link in _LINK.findall(text):
        assert (page.parent / link).exists(), link
    for path in _PATH.findall(text):
        parts = path.rstrip("/")
        if not re.search(r"NAME|KERNEL|added", parts):
            assert (REPOSITORY / parts).exists(), path


def test_the_page_of_wait_messages_is_the_catalogue() -> None:
    """Else: python docs/wait_messages.py"""
    made = runpy.run_path(str(REPOSITORY / "docs" / "wait_messages.py"))
    assert (REPOSITORY / "docs" / "wait-messages.md").read_text() == made["page"]()


def facts() -> Iterator[Tuple[str, List[str]]]:
    for page in sorted((REPOSITORY / "docs" / "facts").glob("*.md")):
        if page.name != "README.md":
            for line in page.read_text().splitlines():
                if line.startswith("|"):
                    yield page.name, [cell.strip() for cell in line.strip("|").split("|")]


def test_every_fact_says_where_when_and_how_sure() -> None:
    rows = [(page, row) for page, row in facts() if not row[0].startswith(("fact", "---"))]
    assert len(rows) > 100
    for page, row in rows:
        assert len(row) == 4, (page, row)
        assert row[2], (page, row)
        assert re.match(r"dump|source|headers|open", row[3]), (page, row)


def test_every_page_of_facts_is_in_the_list_of_them() -> None:
    text = (REPOSITORY / "docs" / "facts" / "README.md").read_text()
    for page in (REPOSITORY / "docs" / "facts").glob("*.md"):
        assert page.name == "README.md" or f"({page.name})" in text


@pytest.mark.parametrize("file", ["README.md", "docs/wchan.1"])
def test_the_lists_of_commands_are_what_the_commands_say(file: str) -> None:
    """Else: python docs/commands_listed.py"""
    made = runpy.run_path(str(REPOSITORY / "docs" / "commands_listed.py"))
    text = (REPOSITORY / file).read_text()
    assert made["page"](file, text) == text
    for name in commands.NAMES:
        assert re.search(rf"^(\| `|\.It Cm ){name}\b", text, re.M)


def test_a_new_command_is_listed_by_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    class Probe:
        HELP = "what td_wchan is, with --deep or without"

        @staticmethod
        def add_arguments(parser: argparse.ArgumentParser) -> None:
            parser.add_argument("at", nargs="?", metavar="TID|ADDRESS", help="of which thread")
            shape = parser.add_mutually_exclusive_group()
            shape.add_argument("--deep", action="store_true", help="as far as FreeBSD goes")
            shape.add_argument("--wide", nargs="?", metavar="W", help="...")
            parser.add_argument_group("more").add_argument("--odd", action="store_true", help="odd")

    load = commands.load
    monkeypatch.setattr(commands, "NAMES", (*commands.NAMES, "probe"))
    monkeypatch.setattr(commands, "load", lambda name: Probe if name == "probe" else load(name))
    page = runpy.run_path(str(REPOSITORY / "docs" / "commands_listed.py"))["page"]
    readme = page("README.md", (REPOSITORY / "README.md").read_text())
    row = "`probe [TID\\|ADDRESS] [--deep \\| --wide [W]]` | what `td_wchan` is, with `--deep` or"
    assert f"| {row} without |" in readme
    manual = page("docs/wchan.1", (REPOSITORY / "docs" / "wchan.1").read_text())
    assert manual[manual.index(".It Cm probe\n") :].splitlines()[1:15] == [
        "What td_wchan is, with --deep or without.",
        ".Bl -tag -width indent -compact",
        ".It Ar TID | ADDRESS",
        "Of which thread.",
        ".It Fl -deep",
        "As far as",
        ".Fx",
        "goes.",
        ".It Fl -wide Op Ar W",
        "\\&.",
        ".It Fl -odd",
        "Odd.",
        ".El",
        ".It Cm provider",
    ]


def test_the_manual_is_clean_mdoc() -> None:
    if shutil.which("mandoc") is None:
        pytest.skip("no mandoc here")
    said = subprocess.run(
        ["mandoc", "-T", "lint", "docs/wchan.1"],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    ).stdout  # fmt: skip
    # which other manuals there are depends on the machine
    found = [line for line in said.splitlines() if "manual not found" not in line]
    assert [line for line in found if "mandoc.db" not in line] == []


def test_the_struct_of_the_guide_is_one(tmp_path: Path) -> None:
    """docs/adding.md's first example, laid over a kernel as --structs does."""
    guide = (REPOSITORY / "docs" / "adding.md").read_text()
    block = re.search(r"\n\n((?:    .*\n)+)", guide[guide.index("one document") :])
    assert block is not None
    path = tmp_path / "mine.yaml"
    path.write_text(re.sub(r"^    ", "", block.group(1), flags=re.M))
    file = StructsFile(str(path))
    mine = read_kernel(file, "mine", file.row("14.2-amd64"), {}).structs["my_softc"]
    assert (mine.size, mine.members["sc_queue"].link) == (24, "my_request.rq_link")
    assert mine.members["sc_queue.tqh_first"].points_to == "my_request"
