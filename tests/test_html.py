"""why-stuck --html: one page, no network, nothing in it that a hostile core could speak through."""

from __future__ import annotations

import base64
import hashlib
import html as html_module
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Dict, List, Optional, Tuple

import pytest
from test_why_stuck import Answer, explain, thread

from plugin.opening import open_core
from tests.forge.machine import Machine
from tests.forge.scenarios import deadlocks
from tests.forge.scenarios.storage_deadlock import storage_deadlock

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome", "headless_shell")


class Page(HTMLParser):
    """The elements of a page, its text, and what its style and script elements hold."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: List[Tuple[str, Dict[str, Optional[str]]]] = []
        self.text: List[str] = []
        self.inside: Dict[str, str] = {}
        self._in = ""
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: List[Tuple[str, Optional[str]]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._in = tag

    def handle_endtag(self, tag: str) -> None:
        self._in = ""

    def handle_data(self, data: str) -> None:
        if self._in in ("style", "script"):
            self.inside[self._in] = self.inside.get(self._in, "") + data
        else:
            self.text.append(data)


def page_of(answer: Answer, folder: Path, status: int = 0) -> Tuple[Path, Page]:
    path = folder / "page.html"
    assert f"written to {path}\n" in answer.run("--html", str(path), status=status)
    return path, Page(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def first_report(tmp_path_factory: pytest.TempPathFactory) -> Tuple[Path, Page]:
    folder = tmp_path_factory.mktemp("html")
    return page_of(explain(storage_deadlock(), folder), folder)


def test_the_page_holds_the_verdict_the_causes_the_graph_and_every_thread(
    first_report: Tuple[Path, Page],
) -> None:
    _, page = first_report
    text = " ".join(page.text)
    assert "GEOM is pacing, not blocked" in text
    assert "The disk da0 owes nothing" in text
    for title in ("Causes", "Who waits for whom", "Threads", "Edges and their evidence"):
        assert title in text
    tags = [tag for tag, _ in page.elements]
    assert tags.count("svg") == 1
    assert tags.count("rect") > 20


def test_the_page_needs_nothing_from_anywhere(first_report: Tuple[Path, Page]) -> None:
    path, page = first_report
    for tag, attributes in page.elements:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form", "img")
        assert not {"src", "href", "action", "style"} & set(attributes), tag
        assert not [name for name in attributes if name.startswith("on")], tag
    source = path.read_text(encoding="utf-8")
    urls = set(re.findall(r"https?://[^\"'\s<]+", source))
    assert urls == {"http://www.w3.org/2000/svg"}


def test_the_policy_admits_this_script_and_this_style_and_no_other(
    first_report: Tuple[Path, Page],
) -> None:
    _, page = first_report
    policy = next(
        str(attributes["content"])
        for tag, attributes in page.elements
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    for kind in ("script", "style"):
        digest = base64.b64encode(hashlib.sha256(page.inside[kind].encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy


def hostile() -> Machine:
    """Names that a page, a terminal or a graph would take for something else."""
    m = Machine(1402000, "amd64")
    owner = m.procs.process("<script>x</script>").thread()
    lock = m.locks.sx('"><img src=x onerror=alert(1)>\x1b[31m')
    lock.owned_by(owner)
    waiter = m.procs.process("\x1b]0;evil\x07&<b>").thread("</title>' onload='x")
    lock.slept_on_by(waiter, seconds=5000)
    owner.sleeps(m.take(8), "</script>\u202e\n", seconds=9)
    return m


def test_what_a_hostile_core_says_stays_text(tmp_path: Path) -> None:
    answer = explain(hostile(), tmp_path)
    path, page = page_of(answer, tmp_path)
    tags = [tag for tag, _ in page.elements]
    assert tags.count("script") == 1 and "img" not in tags and "b" not in tags
    assert not [c for c in path.read_text(encoding="utf-8") if ord(c) < 32 and c != "\n"]
    assert "\u202e" not in path.read_text(encoding="utf-8")
    assert "<script>x</script>" in "".join(page.text)
    assert "\x1b" not in answer.text and "\\x1b" in answer.text
    dot = answer.run("--dot")
    assert "\x1b" not in dot
    unquoted = re.sub(r'"(?:[^"\\]|\\.)*"', "", dot)
    assert "img" not in unquoted and "script" not in unquoted


def test_a_thread_that_waits_too_long_stands_out(tmp_path: Path) -> None:
    _, page = page_of(explain(hostile(), tmp_path), tmp_path)
    assert [attributes for tag, attributes in page.elements if attributes.get("class") == "long"]


def test_a_machine_with_thousands_of_waiters_is_still_one_picture(tmp_path: Path) -> None:
    m = Machine(1402000, "amd64", ram=256 << 20)
    ahead = thread(m, "first")
    ahead.runs_on(0)
    for number in range(1500):
        if number % 2:
            lock = m.locks.sx(f"lock {number}")
            lock.owned_by(ahead)
        waiter = thread(m, f"p{number}")
        lock.slept_on_by(waiter) if number else m.locks.sx("zero").slept_on_by(waiter)
        if number % 2:
            ahead = waiter
    _, page = page_of(explain(m, tmp_path), tmp_path)
    boxes = [1 for tag, attributes in page.elements if attributes.get("class") == "box"]
    assert 100 < len(boxes) <= 600
    assert "more boxes are in the tables only" in " ".join(page.text)


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    answer = explain(deadlocks.abba("sx", "sx"), tmp_path)
    said = answer.run("--html", str(tmp_path / "none" / "page.html"), status=1)
    assert said.startswith("why-stuck: cannot write ")


# In a real browser


@pytest.fixture(scope="session")
def browser() -> str:
    found = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if found is None:
        pytest.skip(f"no headless browser: none of {', '.join(_BROWSERS)} is installed")
    return str(found)


def in_browser(browser: str, path: Path, profile: Path, query: str = "") -> Tuple[str, str]:
    """(the page's elements after its script has run, what the browser complained of)."""
    done = subprocess.run(
        [
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--no-first-run",
            f"--user-data-dir={profile}",
            "--enable-logging=stderr",
            "--virtual-time-budget=2000",
            "--dump-dom",
            f"file://{path}" + (f"#q={query}" if query else ""),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if done.returncode or "<html" not in done.stdout:
        pytest.skip(f"{browser} does not run here: {done.stderr.strip()[-200:]}")
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return done.stdout, "\n".join(console)


def rows_shown(dom: str) -> List[str]:
    rows = re.findall(r"<tr(?: class=\"([^\"]*)\")?>(<td.*?)</tr>", dom, re.DOTALL)
    return [html_module.unescape(row) for classes, row in rows if "hidden" not in classes]


def test_a_real_browser_shows_the_page_and_refuses_nothing(
    browser: str, first_report: Tuple[Path, Page], tmp_path: Path
) -> None:
    path, _ = first_report
    dom, console = in_browser(browser, path, tmp_path)
    assert console == ""
    assert len(rows_shown(dom)) == len(re.findall("<tr", dom)) - dom.count("<thead>")


def test_in_a_real_browser_a_search_leaves_what_was_searched_for(
    browser: str, first_report: Tuple[Path, Page], tmp_path: Path
) -> None:
    dom, console = in_browser(browser, first_report[0], tmp_path, "g_down%20wswbuf0")
    assert console == ""
    shown = rows_shown(dom)
    assert 0 < len(shown) < 5
    assert all("g_down" in row and "wswbuf0" in row for row in shown)
    assert f"{len(shown)} rows" in dom
    assert 'class="box off"' in dom


def clicked(page: Path, folder: Path, *heads: str) -> Path:
    """A copy of the page that clicks these heads of its table of threads itself."""
    script = "".join(
        "Array.from(document.querySelectorAll('th')).filter(h => h.textContent === "
        f"'{head}' && /^Threads/.test(h.closest('section').textContent))[0].click();"
        for head in heads
    )
    return with_script(page, folder, script)


def with_script(page: Path, folder: Path, script: str) -> Path:
    """A copy of the page that runs a script of the test's after its own."""
    source = re.sub(r"<meta http-equiv=[^>]*>", "", page.read_text(encoding="utf-8"))
    copy = folder / "with-script.html"
    copy.write_text(
        source.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8"
    )
    return copy


def scrolls_sideways(browser: str, page: Path, folder: Path, width: int = 360) -> bool:
    """True where the page is wider than a telephone; in a frame: no window is as narrow."""
    script = (
        "document.querySelectorAll('details').forEach(d => d.open = true);"
        "var e = document.documentElement;"
        "parent.postMessage('wide ' + e.scrollWidth + ' of ' + e.clientWidth, '*');"
    )
    inner = with_script(page, folder, script)
    outer = folder / "frame.html"
    outer.write_text(
        "<!DOCTYPE html><html><head><title></title><script>"
        "addEventListener('message', m => { document.title = m.data; });</script></head>"
        f'<body><iframe src="{inner.name}" width="{width}" height="800"></iframe></body></html>'
    )
    dom, _ = in_browser(browser, outer, folder / "narrow")
    found = re.search(r"<title>wide (\d+) of (\d+)", dom)
    assert found is not None and int(found[2]) <= width
    return int(found[1]) > int(found[2])


def test_in_a_real_browser_a_narrow_page_does_not_scroll_sideways(
    browser: str, first_report: Tuple[Path, Page], tmp_path: Path
) -> None:
    assert not scrolls_sideways(browser, first_report[0], tmp_path)


def columns(dom: str) -> List[List[str]]:
    """The cells of the table of threads as text, row by row."""
    table = dom[dom.index("<h2>Threads") :]
    table = table[table.index("<tbody>") : table.index("</tbody>")]
    rows = [re.findall(r"<td.*?</td>", row, re.DOTALL) for row in table.split("<tr")[1:]]
    return [[html_module.unescape(re.sub(r"<[^>]*>", "", c)) for c in row] for row in rows]


def test_in_a_real_browser_a_click_on_a_head_sorts_its_table_and_another_turns_it_round(
    browser: str, tmp_path: Path
) -> None:
    m = Machine(1402000, "amd64")
    lock = m.locks.sx("held")
    lock.owned_by(thread(m, "holder"))
    ages = {"ten minutes": 600, "nine seconds": 9, "two hours": 7200, "a minute": 61}
    for name, age in ages.items():
        lock.slept_on_by(thread(m, name), seconds=age)
    path, _ = page_of(explain(m, tmp_path), tmp_path)
    wanted = sorted(ages, key=lambda name: ages[name])
    for number, heads in enumerate((["age"], ["age", "age"])):
        page = clicked(path, tmp_path, *heads)
        dom, console = in_browser(browser, page, tmp_path / f"profile{number}")
        assert console == ""
        names = [row[2] for row in columns(dom)]
        assert [name for name in names if name in ages] == wanted
        assert f'aria-sort="{("ascending", "descending")[number]}"' in dom
        wanted.reverse()


def test_a_hostile_page_runs_nothing_in_a_real_browser(browser: str, tmp_path: Path) -> None:
    path, _ = page_of(explain(hostile(), tmp_path), tmp_path)
    dom, console = in_browser(browser, path, tmp_path / "profile")
    assert console == ""
    assert "<img" not in dom and dom.count("<script") == 1


def test_what_is_alike_is_one_row_that_still_names_every_thread(tmp_path: Path) -> None:
    m = Machine(1402000, "amd64", ram=256 << 20)
    lock = m.locks.sx("crowded")
    lock.owned_by(thread(m, "first"))
    waiters = [thread(m, f"p{number}") for number in range(400)]
    for waiter in waiters:
        lock.slept_on_by(waiter)
    path, page = page_of(explain(m, tmp_path), tmp_path)
    text = " ".join(page.text)
    assert all(f"{waiter.tid} {waiter.process.comm}" in text for waiter in waiters)
    assert path.stat().st_size < 400 * 300
    assert len([1 for tag, _ in page.elements if tag == "tr"]) < 120


def test_the_page_of_a_damaged_machine_says_so_above_its_verdict(tmp_path: Path) -> None:
    m = Machine(1402000, "amd64")
    lock = m.locks.sx("held")
    lock.owned_by(thread(m, "holder"))
    lock.slept_on_by(thread(m, "waiter"))
    vmcore, kernel_file = m.write(tmp_path)
    kernel = open_core(str(vmcore), str(kernel_file))
    real = kernel.start_command

    def damaged(*, deep: bool = False) -> None:
        real(deep=deep)
        kernel.warnings.add("allproc", 0x10, "not in the dump")

    kernel.start_command = damaged  # type: ignore[method-assign]
    _, page = page_of(Answer(kernel, partial=True), tmp_path, status=3)
    text = " ".join(page.text)
    assert text.index("PARTIAL: some of the kernel") < text.index("Causes")
    assert "allproc: not in the dump" in text
