"""UMA: zones as DDB's ``show uma`` counts them, items as the slabs and buckets have them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Dict, List, Tuple

import pytest

from plugin.kernel.uma import items, zone_named, zone_of_channel, zone_of_page, zones
from plugin.kernel.vm_page_scan import Predicates, scan
from plugin.opening import open_core
from plugin.session import Kernel
from tests.forge.machine import Machine

#: a kernel of each form that zones, slabs and buckets have had
KERNELS = (
    (700014, "i386"),
    (800068, "amd64"),
    (903000, "amd64"),
    (1004000, "i386"),
    (1100120, "amd64"),
    (1200086, "i386"),
    (1201000, "amd64"),
    (1300139, "arm64"),
    (1402000, "amd64"),
    (1402000, "i386"),
    (1500068, "amd64"),
)
_ROW = re.compile(r"^ *(.*?) +(\d+) +(\d+) +(-?\d+) +(\d+) +(\d+) +\d+(?: +\d+ +\d+)?$")


def show_uma(log: str) -> List[Tuple[str, int, int, int, int, int]]:
    """(zone, size, used, free, requests, sleeps) of DDB's own list."""
    part = log[log.index("show uma\n") :]
    rows = []
    for line in part[: part.index("\ndb>")].splitlines()[2:]:
        match = _ROW.match(line)
        if match:
            name, *numbers = match.groups()
            rows.append((name, *map(int, numbers)))
    return rows  # type: ignore[return-value]


def test_every_zone_is_as_show_uma_prints_it(real_dump: Any) -> None:
    kernel = open_core(str(real_dump.vmcore), str(real_dump.kernel))
    listed = show_uma(real_dump.ddb_log)
    assert len(listed) > 100
    found = [(z.name, z.size, z.used, z.free, z.allocs, z.sleeps) for z in zones(kernel) if z.keg]
    assert sorted(found) == sorted(listed)
    assert not len(kernel.warnings)


def test_the_items_in_use_are_as_many_as_the_zone_counts(real_dump: Any) -> None:
    """But for the zones whose counters a 14.x kernel starts after the first allocations."""
    kernel = open_core(str(real_dump.vmcore), str(real_dump.kernel))
    for name in (
        "g_bio",
        "VNODE",
        "THREAD",
        "PROC",
        "MAP ENTRY",
        "VM OBJECT",
        "TURNSTILE",
        "swblk",
    ):
        zone = zone_named(kernel, name)
        assert zone is not None
        found = list(items(kernel, zone))
        assert len(found) == len(set(found)) == zone.used, name
    assert not len(kernel.warnings)


def test_a_page_of_malloc_says_which_zone_it_serves(real_dump: Any) -> None:
    kernel = open_core(str(real_dump.vmcore), str(real_dump.kernel))
    wired = scan(kernel, Predicates(object=0, wired=True), keep=2000, counts=False).pages
    served = {zone.name for zone in (zone_of_page(kernel, p.address) for p in wired) if zone}
    prefix = "malloc-" if "14.2" in real_dump.name else ""
    assert {f"{prefix}{size}" for size in (16, 64, 256, 1024, 4096)} <= served


@pytest.fixture
def forged(tmp_path: Path) -> Any:
    def open_(machine: Machine) -> Kernel:
        vmcore, kernel = machine.write(tmp_path)
        return open_core(str(vmcore), str(kernel))

    return open_


@pytest.mark.parametrize(("osreldate", "arch"), KERNELS)
def test_items_are_those_that_no_bucket_and_no_slab_has_free(
    forged: Any, osreldate: int, arch: str
) -> None:
    machine = Machine(osreldate, arch)
    zone = machine.uma.zone("example", 104, limit=2000)
    taken = {zone.alloc() for _ in range(150)}
    zone.cache(7)
    kernel = forged(machine)
    found = zone_named(kernel, "example")
    assert found is not None
    assert set(items(kernel, found)) == taken
    assert (found.used, found.size, found.sleepers) == (150, 104, 0)
    # To 12.x a limit is one of pages, rounded up to whole slabs.
    assert found.limit is not None
    assert 2000 <= found.limit < 2000 + found.ipers
    assert found.free >= 7


@pytest.mark.parametrize(("osreldate", "arch"), KERNELS)
def test_threads_at_a_limit_are_found_by_their_wait_channel(
    forged: Any, osreldate: int, arch: str
) -> None:
    machine = Machine(osreldate, arch)
    zone = machine.uma.zone("scarce", 512, limit=8)
    for _ in range(8):
        zone.alloc()
    thread = machine.procs.process("wants").thread()
    zone.waited_by(thread, seconds=9)
    kernel = forged(machine)
    found = zone_of_channel(kernel, zone.limit_channel)
    assert found is not None
    assert (found.name, found.waiters, found.sleepers) == ("scarce", (thread.tid,), 1)
    assert found.full


def test_a_list_of_slabs_that_loops_ends_and_is_reported(forged: Any) -> None:
    machine = Machine(1201000, "amd64")
    zone = machine.uma.zone("loops", 512)
    taken: Dict[int, None] = dict.fromkeys(zone.alloc() for _ in range(40))
    first = zone.slabs[0].header
    machine.at_the_end(
        lambda: machine.write_pointer(first.at("us_type._us_link.le_next"), first.address)
    )
    kernel = forged(machine)
    found = zone_named(kernel, "loops")
    assert found is not None
    assert len(list(items(kernel, found))) <= len(taken)
    assert any("loops back" in finding.detail for finding in kernel.warnings)
    assert kernel.warnings.partial
