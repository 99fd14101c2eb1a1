"""kthreads against what the kernel's own debugger printed of the same machine."""

from __future__ import annotations

import json
from typing import Any, Dict, List, Tuple

import pytest
from answers import answer as shell

#: what DDB's ps prints, in the contract's words
STATES = {
    "Run": "running",
    "RunQ": "runnable",
    "CanRun": "runnable",
    "Inactv": "inactive",
    "S": "sleeping",
    "D": "sleeping",
    "L": "locked",
    "I": "iwait",
    "s": "suspended",
    "N": "inactive",
    "Z": "zombie",
}


def contract_state(ddb: str) -> set[str]:
    """The states that DDB's letters allow; a process's R covers running and runnable."""
    if ddb in STATES:
        return {STATES[ddb]}
    first = ddb[0]
    return {"running", "runnable"} if first == "R" else {STATES[first]}


def kthreads(dump: Any, *arguments: str) -> Dict[str, Any]:
    status, out, _ = shell(dump, "kthreads", "--json", *arguments)
    assert status == 0, out
    value: Dict[str, Any] = json.loads(out)
    return value


def pairs(dump: Any) -> List[Tuple[Dict[str, Any], Dict[str, Any]]]:
    """(row of truth.json, thread) for every row: by tid, a lone thread by pid."""
    found = kthreads(dump)["data"]["threads"]
    by_tid = {t["tid"]: t for t in found}
    by_pid = {t["pid"]: t for t in found}
    return [
        (row, by_tid[row["tid"]] if row["tid"] is not None else by_pid[row["pid"]])
        for row in dump.truth["threads"]
    ]


def test_every_thread_ddb_listed_is_found_and_no_other(every_dump: Any) -> None:
    found = kthreads(every_dump)["data"]["threads"]
    assert len(pairs(every_dump)) == len(every_dump.truth["threads"]) == len(found)


def test_states_wait_messages_and_channels_are_those_ddb_printed(every_dump: Any) -> None:
    for row, thread in pairs(every_dump):
        assert thread["pid"] == row["pid"]
        assert thread["comm"] == row["comm"]
        assert thread["state"] in contract_state(row["state"]), row
        if thread["state"] == "locked":
            # DDB may cut a lock's name to six characters behind the star.
            assert thread["wmesg"].startswith(row["wmesg"]) and len(row["wmesg"]) > 5, row
            assert thread["wmesg"] == "*" + thread["lock"]["name"]
            assert thread["lock"]["class"] in ("sleep mutex", "rw", "rm", "sleepable rm", "sx")
        else:
            # and a wait message to seven.
            assert (thread["wmesg"] or "")[:7] == (row["wmesg"] or ""), row
        assert thread["wchan"] == row["wchan"], row


def test_frame_pointers_alone_give_the_stacks_of_alltrace(every_dump: Any) -> None:
    groups = kthreads(every_dump, "--stacks")["data"]["groups"]
    frames = {tid: group["frames"] for group in groups for tid in group["tids"]}
    sleeping = [
        t["tid"]
        for t in kthreads(every_dump)["data"]["threads"]
        if t["state"] in ("sleeping", "locked") and str(t["tid"]) in every_dump.truth["stacks"]
    ]
    same = [tid for tid in sleeping if frames[tid] == every_dump.truth["stacks"][str(tid)]]
    assert len(sleeping) > 50
    assert len(same) >= 0.95 * len(sleeping)


#: labels of the kernel's very first code: DDB stops before them, its symbol table lacking them
START = {"btext", "start_kernel", "virtdone", "mi_startup"}


def test_stacks_go_on_through_traps_and_modules_as_ddbs_do(every_dump: Any) -> None:
    """Running and interrupted threads too: what lay below the trap frame, module by module."""
    truth = every_dump.truth
    ddbs = truth.get("stacks2") or {t: [[f] for f in rows] for t, rows in truth["stacks"].items()}
    groups = kthreads(every_dump, "--stacks")["data"]["groups"]
    frames = {tid: group["frames"] for group in groups for tid in group["tids"]}
    wrong = []
    # DDB failed to read some stacks, and printed its own frames instead.
    whole = {tid: rows for tid, rows in ddbs.items() if rows and ["kdb_reenter"] not in rows}
    for tid, rows in whole.items():
        ddb = [names for names in rows if "---" not in names]
        ours = [name for name in frames[int(tid)] if name not in START]
        ddb = [names for names in ddb if not START & set(names)]
        if len(ours) != len(ddb) or any(a not in b for a, b in zip(ours, ddb)):
            wrong.append((tid, ours, ddb))
    # An idle CPU may have been caught in a function without a frame of its own.
    assert len(wrong) <= 0.01 * len(whole), wrong


def test_waits_have_an_age_and_running_threads_a_cpu(real_dump: Any) -> None:
    found = kthreads(real_dump)["data"]["threads"]
    waiting = [t for t in found if t["state"] in ("sleeping", "locked")]
    assert all(t["age"] is not None and 0 <= t["age"] < 86400 for t in waiting)
    assert {t["cpu"] for t in found if t["state"] == "running"} == {0, 1}
    assert all(t["cpu"] is None for t in found if t["state"] != "running")


def test_state_and_wmesg_select(real_dump: Any) -> None:
    everything = kthreads(real_dump)["data"]["threads"]
    assert kthreads(real_dump, "--wmesg", "biord")["data"]["threads"] == [
        t for t in everything if t["wmesg"] == "biord"
    ]
    assert kthreads(real_dump, "--state", "locked")["data"]["threads"] == [
        t for t in everything if t["state"] == "locked"
    ]


@pytest.mark.parametrize("arguments", [["--state", "stuck"], ["--limit", "-1"], ["--nonsense"]])
def test_wrong_arguments_are_one_line_and_status_1(real_dump: Any, arguments: List[str]) -> None:
    status, out, err = shell(real_dump, "kthreads", *arguments)
    assert (status, out) == (1, "")
    assert len(err.strip().splitlines()) == 1
    assert "kthreads --help" in err
