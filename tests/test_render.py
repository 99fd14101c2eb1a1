"""Reports as text and as JSON: escaped, cut, and with what went wrong said."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st
from memory import kernel

from plugin.findings import Findings
from plugin.render import json as as_json
from plugin.render import text as as_text
from plugin.render.report import Report
from plugin.words import count, seconds


@given(st.text())
def test_no_control_character_of_a_core_reaches_the_terminal(text: str) -> None:
    assert as_text.escape(text).isprintable() or not text


def test_an_escape_sequence_in_a_thread_name_is_shown_not_obeyed() -> None:
    report = Report({})
    report.table(["name"], [("\x1b[2Jevil\n",)])
    assert "\\x1b[2Jevil\\n" in as_text.render(report, Findings())


def test_a_long_table_is_cut_and_says_by_how_much() -> None:
    report = Report({})
    report.table(["n>"], [(n,) for n in range(10)])
    text = as_text.render(report, Findings(), limit=3)
    assert "... 7 more; --limit 0 shows all" in text
    assert " 3" not in text
    assert "more" not in as_text.render(report, Findings(), limit=None)


def test_findings_are_lines_behind_the_report_and_partial_is_said() -> None:
    findings = Findings()
    findings.add("queue", 0x1000, "loops back")
    text = as_text.render(Report({}), findings)
    assert "warning: queue: loops back [0x1000]" in text
    assert "PARTIAL" in text
    whole = Findings()
    whole.add("note", None, "chosen", partial=False)
    assert "PARTIAL" not in as_text.render(Report({}), whole)


def test_a_finding_is_told_once_and_many_are_cut() -> None:
    findings = Findings()
    for n in list(range(20)) * 2:
        findings.add("w", n, "x")
    text = as_text.warnings(findings)
    assert len(findings) == 20
    assert "12 more; --verbose" in text
    assert "more" not in as_text.warnings(findings, verbose=True)


def test_the_envelope_has_every_field_of_the_contract() -> None:
    k, _ = kernel()
    k.warnings.add("queue", 0x10, "broken")
    made = json.loads(as_json.render("bioq", k, Report({"queues": []}), k.warnings))
    assert made["schema"] == "wchan/1"
    assert made["command"] == "bioq"
    assert made["kernel"]["release"] == "14.2-RELEASE"
    assert made["kernel"]["osreldate"] == 1402000
    assert made["kernel"]["arch"] == "amd64"
    assert made["kernel"]["layouts"].startswith("yaml:")
    assert made["kernel"]["variant"] == []
    assert made["kernel"]["panic"] is None
    assert made["data"] == {"queues": []}
    assert {"what": "queue", "address": "0x10", "detail": "broken"} in made["warnings"]
    assert made["partial"] is True


def test_durations_and_counts_read_like_english() -> None:
    assert [seconds(s) for s in (None, 0.25, 59.9, 238, 4000, 200000)] == [
        "",
        "0.2 s",
        "59 s",
        "3 m 58 s",
        "1 h 06 m",
        "2 d 07 h",
    ]
    assert count(1, "thread") == "1 thread"
    assert count(2, "process", "processes") == "2 processes"


def test_a_table_that_is_too_wide_wraps_and_loses_nothing() -> None:
    rows = [("1", 'runs on CPU 1 and holds mutex "ht mtx A"', "0xfffff80002cf1af0")]
    text = as_text.table(["#>", "what", "address"], rows, 50)
    assert max(map(len, text.splitlines())) <= 50
    assert " ".join(" ".join(line[3:28] for line in text.splitlines()[1:]).split()) == rows[0][1]
    assert "0xfffff80002cf1af0" in text and ".." not in text


def test_a_column_is_left_out_before_a_word_is_broken() -> None:
    rows = [("pagedaemon/laundry", "DISK", "owes")]
    wide = as_text.table(["name", "class", "verdict"], rows, 40, optional=("class",))
    narrow = as_text.table(["name", "class", "verdict"], rows, 28, optional=("class",))
    assert "class" in wide and "class" not in narrow
    assert "pagedaemon/laundry" in narrow and "owes" in narrow


def test_what_makes_an_answer_less_than_whole_stands_above_it() -> None:
    findings = Findings()
    findings.add("kernel", None, "the dump is truncated; what it lacks is missed", partial=False)
    findings.add("allproc", 0x10, "not in the dump")
    report = Report({})
    report.text("No thread is stuck.")
    lines = as_text.render(report, findings, width=200).splitlines()
    verdict = lines.index("No thread is stuck.")
    assert [line.split(":")[0] for line in lines[:verdict] if line] == ["TRUNCATED", "PARTIAL"]
    assert "allproc: not in the dump" in lines[1]
