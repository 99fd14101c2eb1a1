"""bioq on real stuck machines: every sleeper in an I/O is joined to its bio and its disk."""

from __future__ import annotations

import functools
import json
import re
from typing import Any, Dict, List

import pytest
from answers import answer as shell
from test_provider import _Handle

#: wait messages of threads that wait for one I/O of their own
IO_WAITS = ("biord", "biowr", "physrd", "physwr")


@functools.cache
def bioq(dump: Any, *arguments: str) -> Dict[str, Any]:
    status, out, err = shell(dump, "bioq", "--json", *arguments)
    assert status == 0, err
    value: Dict[str, Any] = json.loads(out)["data"]
    return value


@functools.cache
def sleepers(dump: Any) -> Dict[int, Dict[str, Any]]:
    _, out, _ = shell(dump, "kthreads", "--json")
    return {t["tid"]: t for t in json.loads(out)["data"]["threads"] if t["wmesg"] in IO_WAITS}


@pytest.fixture
def dump(real_dump: Any) -> Any:
    return _Handle(real_dump)


def requests(dump: Any) -> List[Dict[str, Any]]:
    return [b for b in bioq(dump)["outstanding"] if b["parent"] is None]


def test_the_queues_of_this_version_are_shown_and_empty(dump: Any) -> None:
    queues = bioq(dump)["queues"]
    assert [q["name"] for q in queues] == ["g_bio_run_down", "g_bio_run_up"]
    for queue in queues:
        assert queue["length"] == queue["walked"] == len(queue["bios"]) == 0
        assert re.fullmatch(r"0xffffffff\w{8}", queue["address"])


def test_every_thread_that_waits_for_an_io_is_joined_to_its_bio_and_disk(dump: Any) -> None:
    waiting = sleepers(dump)
    assert waiting
    joined = {tid: bio for bio in requests(dump) for tid in bio["origin"]["tids"]}
    assert joined.keys() == waiting.keys()
    for tid, bio in joined.items():
        assert bio["state"] == "at the device"
        # README.md of the dumps: these two accept requests and never answer.
        assert bio["at"] in ("vtbd1", "vtbd4")
        assert bio["cmd"] == "BIO_READ"
        assert bio["age"] is None or bio["age"] > 10
        at = waiting[tid]["wchan"]
        if waiting[tid]["wmesg"] == "biord":
            assert bio["buf"] == at
            assert bio["done"] == "g_vfs_done"
        else:
            # physio() waits on the bio itself.
            assert bio["address"] == at
            assert bio["origin"]["kind"] == "physio"


def test_offsets_and_lengths_are_those_of_the_bufs_that_ddb_showed(dump: Any) -> None:
    text = dump.ddb_log.split("##### show lockedbufs\n", 1)[1].split("\ndb>", 1)[0]
    bufs = {
        block.split("\n", 1)[0]: (
            int(re.search(r"b_blkno = (\d+)", block)[1]),  # type: ignore[index]
            int(re.search(r"b_bcount = (\d+)", block)[1]),  # type: ignore[index]
        )
        for block in text.split("buf at ")[1:]
    }
    assert bufs
    found = {b["buf"]: b for b in requests(dump)}
    for at, (blkno, bcount) in bufs.items():
        assert found[at]["offset"] == blkno * 512
        assert found[at]["length"] == bcount


def test_the_swap_writes_that_never_came_back_are_found(dump: Any) -> None:
    swap = [b for b in requests(dump) if b["origin"]["kind"] == "swap"]
    # nsw_wcount_async of both kernels allows four.
    assert len(swap) == 4
    for bio in swap:
        assert bio["cmd"] == "BIO_WRITE"
        assert bio["at"] == bio["provider"] == "vtbd2"
        assert bio["state"] == "at the device"
        assert bio["buf"]
        assert bio["offset"] % 4096 == bio["length"] % 4096 == 0


def test_a_clone_and_its_parent_name_each_other(dump: Any) -> None:
    everything = {b["address"]: b for b in bioq(dump)["outstanding"]}
    clones = [b for b in everything.values() if b["parent"]]
    assert clones
    for clone in clones:
        parent = everything[clone["parent"]]
        assert clone["address"] in parent["clones"]
        assert clone["top"] == parent["top"]
        assert clone["state"] == parent["state"]
        if clone["done"] == "g_disk_done":
            assert clone["to"] is None
            assert clone["provider"] == parent["provider"]
    assert not [b for b in everything.values() if b["state"] == "lost"]
    assert bioq(dump)["bufs_without_bio"] == []


def test_the_summary_adds_up(dump: Any) -> None:
    groups = bioq(dump)["summary"]
    assert sum(g["requests"] for g in groups) == len(requests(dump))
    assert sum(g["bytes"] for g in groups) == sum(b["length"] for b in requests(dump))
    assert {g["provider"] for g in groups} == {"vtbd1", "vtbd2", "vtbd4"}
    _, out, _ = shell(dump, "bioq")
    assert f"{len(requests(dump))} requests outstanding, the oldest for 1 m 1" in out
    assert max(map(len, out.splitlines())) <= 80


def test_limit_cuts_the_rows_and_not_the_summary(dump: Any) -> None:
    _, out, _ = shell(dump, "bioq", "--limit", "2")
    assert len(re.findall(r"^0xfffff8\w+ ", out, re.MULTILINE)) == 2
    assert f"... {len(requests(dump)) - 2} more; --limit 0 shows all" in out
    assert len(re.findall(r"^vtbd\d +(?:READ|WRITE) ", out, re.MULTILINE)) == 3


def test_a_queue_is_chosen_by_its_short_name_or_by_address(dump: Any) -> None:
    down = bioq(dump)["queues"][0]
    for word in ("down", "g_bio_run_down", down["address"]):
        assert bioq(dump, word)["queues"] == [down]
    assert bioq(dump, down["address"])["queues"][0]["kind"] == "g_bioq"


def test_the_address_of_a_bio_shows_its_whole_chain(dump: Any) -> None:
    physio = next(b for b in requests(dump) if b["origin"]["kind"] == "physio")
    chain = bioq(dump, physio["address"])["outstanding"]
    assert [b["done"] for b in chain] == [None, "g_dev_done", "g_disk_done"]
    for above, below in zip(chain, chain[1:]):
        assert below["parent"] == above["address"]
    _, out, _ = shell(dump, "bioq", chain[-1]["address"])
    assert "at vtblk4, in its virtqueue: vtblk_request 0x" in out
    assert f"It is for {physio['origin']['tids'][0]} " in out


def test_an_address_without_a_queue_is_refused_in_one_line(dump: Any) -> None:
    status, out, err = shell(dump, "bioq", sleepers(dump)[min(sleepers(dump))]["address"])
    assert (status, out) == (1, "")
    assert re.fullmatch(r"bioq: there is no queue of bios at 0x\w+\n", err)
    status, out, err = shell(dump, "bioq", "sideways")
    assert (status, out) == (1, "")
    assert err == "bioq: 'sideways' is no queue: give down, up or an address\n"


def test_a_queue_this_version_dropped_is_said_to_be_missing(dump: Any) -> None:
    status, _, err = shell(dump, "bioq", "task")
    assert (status, err) == (1, "bioq: this kernel has no g_bio_run_task\n")
