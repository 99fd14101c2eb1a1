"""pbuf: the pools of both eras, who waits for one, and the I/O that holds what is in use."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable, Dict

import pytest
from answers import answer as shell

from plugin.judge.pbufs import request
from plugin.kernel import pbuf, swap_pager
from plugin.kernel.vm_page import page_at
from plugin.opening import open_core
from tests.forge.machine import Machine
from tests.forge.scenarios.pbufs import exhaustion
from tests.forge.scenarios.storage_deadlock import storage_deadlock

#: the first era (counters) to 12.x, the second (zones) since
KERNELS = (
    (700014, "i386"),
    (903000, "amd64"),
    (1100120, "amd64"),
    (1201000, "amd64"),
    (1300139, "arm64"),
    (1402000, "amd64"),
    (1402000, "i386"),
    (1500068, "amd64"),
)


@pytest.fixture
def forged(tmp_path: Path) -> Callable[[Machine], Any]:
    def write(machine: Machine) -> Any:
        vmcore, kernel = machine.write(tmp_path)
        return SimpleNamespace(vmcore=vmcore, kernel=kernel)

    return write


def answer(dump: Any) -> Dict[str, Any]:
    status, out, err = shell(dump, "pbuf", "--json")
    assert status == 0, err
    value: Dict[str, Any] = json.loads(out)["data"]
    return value


def pool_of(data: Dict[str, Any], name: str) -> Dict[str, Any]:
    found: Dict[str, Any]
    (found,) = [p for p in data["pools"] if name in (p["name"], p["symbol"])]
    return found


def test_the_laundry_thread_waits_for_the_four_writes_to_swap(real_dump: Any) -> None:
    """In 14.2 it sleeps in "swbufa", in 12.1 in "wswbuf0": the same count, exhausted."""
    data = answer(real_dump)
    _, out, _ = shell(real_dump, "kthreads", "--json")
    threads = json.loads(out)["data"]["threads"]
    (laundry,) = [t for t in threads if t["name"].startswith("laundry")]
    assert laundry["wmesg"] == ("swbufa" if "14.2" in real_dump.name else "wswbuf0")
    pool = pool_of(data, "nsw_wcount_async")
    assert pool["wchan"] == laundry["wchan"]
    assert pool["waiters"] == [laundry["tid"]]
    assert (pool["limit"], pool["in_use"], pool["free"]) == (4, 4, 0)
    assert len(data["bufs"]) == 4
    for buf in data["bufs"]:
        assert buf["cmd"] == "BIO_WRITE"
        assert buf["provider"] == "vtbd2"
        assert buf["state"] == "at the device"
        assert buf["object"]
        assert buf["age"] > 10
        assert len(buf["pages"]) * 4096 == buf["bcount"]
    assert len({buf["bio"] for buf in data["bufs"]}) == 4


def test_a_page_on_its_way_to_swap_has_the_block_that_is_written(real_dump: Any) -> None:
    kernel = open_core(str(real_dump.vmcore), str(real_dump.kernel))
    writes = [w for w in swap_pager.pbufs(kernel) if w.buf.iocmd == "BIO_WRITE"]
    assert writes
    for write in writes:
        io = request(kernel, write)
        assert io is not None
        for place, address in enumerate(write.pages):
            page = page_at(kernel, address)
            block = swap_pager.swap_block(kernel, page.object, page.pindex)
            assert block is not None
            device = swap_pager.device_of_block(kernel, block)
            assert device is not None
            offset = io.bio.offset + place * kernel.page_size
            assert (block - device.first) * kernel.page_size == offset


def test_every_pool_of_the_real_kernel_is_listed(real_dump: Any) -> None:
    pools = {p["symbol"] for p in answer(real_dump)["pools"]}
    if "14.2" in real_dump.name:
        zones = {"pbuf_zone", "swwbuf_zone", "swrbuf_zone", "vnode_pbuf_zone", "cluster_pbuf_zone"}
        assert pools == zones | {"nsw_wcount_async"}
    else:
        assert pools >= {"bswlist", "nsw_rcount", "nsw_wcount_sync", "vnode_async_pbuf_freecnt"}


@pytest.mark.parametrize(("osreldate", "arch"), KERNELS)
def test_an_exhausted_pool_has_a_name_a_limit_and_holders(
    forged: Any, osreldate: int, arch: str
) -> None:
    machine = exhaustion(osreldate=osreldate, arch=arch)
    expected = machine.expected
    dump = forged(machine)
    data = answer(dump)
    pool = pool_of(data, expected["pool"])
    assert pool["limit"] == pool["in_use"] == expected["limit"]
    assert pool["free"] == 0
    waiting = {machine.cast[f"waiter{number}"].tid for number in range(3)}
    assert waiting <= set(pool["waiters"])
    held = [buf for buf in data["bufs"] if buf["provider"] == expected["provider"]]
    assert len(held) == expected["at_device"]
    assert {buf["state"] for buf in held} == {"at the device"}
    assert {buf["pool"] for buf in held} <= {pool["name"], "swwbuf"}
    status, out, err = shell(dump, "pbuf", "--waited")
    assert status == 0, err
    assert f"all {expected['limit']} in use" in out.replace("\n", " ")
    assert "I/O to da1" in out.replace("\n", " ")


def test_the_pbufs_of_the_first_report_are_in_geoms_own_queue(forged: Any) -> None:
    machine = storage_deadlock()
    data = answer(forged(machine))
    pool = pool_of(data, machine.expected["pool"])
    assert pool["in_use"] == machine.expected["pool_used"] == 4
    assert len(pool["waiters"]) == 1
    writes = [buf for buf in data["bufs"] if buf["pool"] == pool["name"]]
    assert len(writes) == 4
    assert {buf["state"] for buf in writes} == {"queued"}


def test_a_free_list_that_loops_is_reported_and_ends(tmp_path: Path) -> None:
    machine = exhaustion(osreldate=1201000)

    def corrupt() -> None:
        head = machine.read_pointer(machine.address_of("bswlist"))
        link = machine.locate("buf", "b_freelist.tqe_next").offset
        machine.write_pointer(head + link, head)

    machine.at_the_end(corrupt)
    vmcore, kernel_file = machine.write(tmp_path)
    kernel = open_core(str(vmcore), str(kernel_file))
    assert pbuf.pools(kernel)
    assert any("loops back" in finding.detail for finding in kernel.warnings)
    assert kernel.warnings.partial
