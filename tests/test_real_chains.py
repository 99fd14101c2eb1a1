"""On dumps of real machines no wait ends without its next step, or the reason there is none."""

from __future__ import annotations

import json
from typing import Any, Dict, List

import pytest
from answers import answer
from conftest import RealDump

#: messages of waits whose other end is in memory
FOLLOWED = {
    "biord",
    "biowr",
    "physrd",
    "getblk",
    "nfsreq",
    "piperd",
    "pipewr",
    "sbwait",
    "lockf",
    "fu_ans",
    "wait",
    "vmpfw",
    "select",
    "kqread",
}
#: what kinds of nodes lead on from the channel itself
STEPS = {"thread", "bio", "buf", "provider", "queue", "server", "request", "page", "vnode"}
#: why a chain may end at the channel: nobody else has the other end, or it is outside
ENDS = ("no other process has its other end open", "waits for no event", "waits for a timeout")


class Chains:
    """Every thread's chain of one dump."""

    def __init__(self, dump: RealDump) -> None:
        status, out, _ = answer(dump, "why-stuck", "--all", "--json")
        assert status in (0, 3)
        self.data: Dict[str, Any] = json.loads(out)["data"]
        self.nodes = {node["id"]: node for node in self.data["nodes"]}
        self.chains = {tid: chain for chain in self.data["chains"] for tid in chain["tids"]}
        _, out, _ = answer(dump, "kthreads", "--json")
        self.threads: List[Dict[str, Any]] = json.loads(out)["data"]["threads"]

    def path(self, tid: int) -> List[Dict[str, Any]]:
        """The nodes of a thread's chain behind itself."""
        chain = self.chains.get(tid)
        return [self.nodes[id] for id in chain["path"][1:]] if chain else []

    def of(self, comm: str) -> List[Dict[str, Any]]:
        (found,) = (thread for thread in self.threads if thread["comm"] == comm)
        return self.path(found["tid"])


def test_no_wait_on_a_real_machine_ends_without_its_next_step(every_dump: RealDump) -> None:
    chains = Chains(every_dump)
    left = []
    met = 0
    for thread in chains.threads:
        if thread["wmesg"] not in FOLLOWED or thread["pid"] == 1:
            continue
        met += 1
        path = chains.path(thread["tid"])
        if not any(node["kind"] in STEPS for node in path[:3]):
            end = (path[-1].get("end") or {}) if path else {}
            if not end.get("summary", "").endswith(ENDS):
                left.append((thread["comm"], thread["wmesg"], [node["label"] for node in path]))
    assert met and left == []


#: where those who wait for a disk end: how many at least, and the labels of the last nodes
READERS = {
    "12.1-amd64-storage-hang": (4, {"vtbd1", "vtbd4"}),
    "14.0c-arm64-storage-hang": (19, {"vtbd1", "vtbd4"}),
    "14.2-amd64-debug-pacing": (120, {"g_bio_run_down", "100021 geom/g_down"}),
    "14.2-amd64-storage-hang": (1, {"vtbd1", "vtbd4"}),
    "14.2-amd64-zfs-ko-hang": (0, {"da0"}),
}


def test_every_reader_and_writer_of_a_real_machine_ends_at_a_disk_that_is_silent_or_paced(
    every_dump: RealDump,
) -> None:
    chains = Chains(every_dump)
    disk = ("biord", "biowr", "getblk", "physrd", "ufs")
    waiting = [t["tid"] for t in chains.threads if t["wmesg"] in disk]
    ends = {chains.path(tid)[-1]["label"] for tid in waiting}
    least, where = READERS[every_dump.name]
    assert len(waiting) >= least and ends <= where


@pytest.mark.parametrize(
    "waiter, other",
    [
        ("piperd", "pipewr"),
        ("sockcl", "socksrv"),
        ("flwait", "flocker"),
        ("fusecl", "fused"),
        ("waiter", "zfsync2"),
    ],
)
def test_behind_zfs_each_waiter_is_followed_through_the_other_process_to_the_disk(
    waiter: str, other: str, zfs_dump: RealDump
) -> None:
    path = Chains(zfs_dump).of(waiter)
    threads = [node["label"] for node in path if node["kind"] == "thread"]
    assert threads[0].endswith(f" {other}")
    assert path[-1]["label"] == "da0"
