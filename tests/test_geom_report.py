"""The first report from the field: 559 bios on g_bio_run_down, and the disk owes nothing.

What the report's author saw in kgdb is the oracle: the length of the queue, pace, and
da0 with nstart 6007328, nend 6006932, error 0, acr 3, acw 3, ace 5, mediasize 36703933440.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, Dict, Tuple

import pytest
from answers import Dump, answer

from tests.forge.machine import Machine
from tests.forge.scenarios.storage_deadlock import storage_deadlock


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Tuple[Machine, Path, Path]:
    """The forged machine of the report, and its dump and kernel."""
    m = storage_deadlock()
    vmcore, kernel = m.write(tmp_path_factory.mktemp("report"))
    return m, vmcore, kernel


def data(report: Any, *words: str) -> Dict[str, Any]:
    _, vmcore, kernel = report
    status, out, err = answer(Dump(vmcore, kernel), *words, "--json")
    assert status == 0, err
    told = json.loads(out)
    assert told["warnings"] == []
    value: Dict[str, Any] = told["data"]
    return value


def test_the_queue_is_as_long_as_its_own_count_says(report: Any) -> None:
    down = data(report, "bioq", "down")["queues"][0]
    assert down["length"] == down["walked"] == len(down["bios"]) == 559
    assert down["bios"][0]["address"] == "0xc38da318"
    assert {b["provider"] for b in down["bios"]} == {
        "da0", "da0s1", "da0s2", "da0s1a", "da0s1b", "da0s2d",
    }  # fmt: skip
    assert all(b["flags"] == ["BIO_ONQUEUE"] and b["buf"] for b in down["bios"])


def test_da0_is_as_the_report_printed_it(report: Any) -> None:
    (da0,) = data(report, "provider", "da0")["providers"]
    assert da0["address"] == "0xc258c880"
    assert (da0["nstart"], da0["nend"], da0["error"]) == (6007328, 6006932, 0)
    assert (da0["access"], da0["mediasize"], da0["sectorsize"]) == ([3, 3, 5], 36703933440, 512)
    assert da0["consumers"][0] == "0xc24671c0"


def test_of_396_in_flight_at_da0_not_one_is_with_the_disk(report: Any) -> None:
    machine, _, _ = report
    for_da0 = [b for b in machine.geom.down if b.provider.name == "da0"]
    (da0,) = data(report, "provider", "da0")["providers"]
    assert da0["in_flight"] == 6007328 - 6006932 == 396
    # Those on the queue, and the one that g_down has taken off and pauses with.
    assert da0["queued"] == len(for_da0) + 1 == 396
    assert da0["at_device"] == da0["driver"] == da0["driver_found"] == 0
    assert da0["found"] == 396
    assert da0["verdict"] == "clear"


def test_the_bio_in_g_downs_hand_is_found(report: Any) -> None:
    machine, _, _ = report
    everything = {b["address"]: b for b in data(report, "bioq")["outstanding"]}
    held = everything[f"{machine.geom.in_hand.obj.address:#x}"]
    assert (held["state"], held["queue"]) == ("queued", "g_down")
    assert 'by g_down (thread 100004, asleep in "g_down"), not started' in held["why"]
    states = Counter(b["state"] for b in everything.values())
    assert set(states) == {"queued"}


def test_pacing_is_one_line_with_the_figures(report: Any) -> None:
    _, vmcore, kernel = report
    _, out, _ = answer(Dump(vmcore, kernel), "bioq", "--limit", "3")
    assert (
        "GEOM is pacing (pace 1, g_down sleeps in it now), not blocked: after an allocation "
        "failure (ENOMEM) g_down pauses 0.1 s before a bio, so at most 10 bios a second move "
        "while allocations fail; the 559 queued need 55.9 s or more."
    ) in " ".join(out.split())
    _, out, _ = answer(Dump(vmcore, kernel), "provider")
    assert out.startswith(
        "da0 owes nothing: 396 bios are queued for it, none is with the device.\n"
    )


def test_every_request_is_joined_to_its_buf_and_the_swap_writes_to_their_pbufs(
    report: Any,
) -> None:
    requests = [b for b in data(report, "bioq")["outstanding"] if b["parent"] is None]
    assert len(requests) == 560
    kinds = Counter(b["origin"]["kind"] for b in requests)
    assert kinds == {"buf": 556, "swap": 4}
    for bio in requests:
        assert bio["origin"]["cached"] == (bio["origin"]["kind"] == "buf")
        if bio["origin"]["kind"] == "swap":
            assert bio["origin"]["iodone"] == "swp_pager_async_iodone"
            assert len(bio["origin"]["pages"]) == bio["length"] // 4096
