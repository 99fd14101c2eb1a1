"""What the scenarios say is what the product reads: threads, stacks, locks, I/O, pages, pools."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Dict

import pytest

from plugin.judge import geom_io
from plugin.kernel.proc import threads
from plugin.kernel.queue import list_foreach, tailq_foreach
from plugin.kernel.stack import backtrace
from plugin.opening import open_core
from plugin.session import Kernel
from tests.forge import demo
from tests.forge.machine import Machine
from tests.forge.scenarios import deadlocks, geom_tour, memory, pbufs, scale
from tests.forge.scenarios.sendfile_panic import BOGUS, COUNT, PAGE, PANIC, sendfile_panic
from tests.forge.scenarios.storage_deadlock import MEDIASIZE, NEND, NSTART, storage_deadlock

EVERY = [
    (700014, "i386"),
    (800068, "amd64"),
    (903000, "amd64"),
    (1004000, "amd64"),
    (1200086, "amd64"),
    (1201000, "amd64"),
    (1402000, "amd64"),
    (1402000, "arm64"),
    (1402000, "i386"),
    (1500068, "amd64"),
]


@pytest.fixture
def opened(tmp_path: Path) -> Callable[[Machine], Kernel]:
    """Writes a machine's dump and opens it as a user would."""

    def open_(machine: Machine) -> Kernel:
        vmcore, kernel = machine.write(tmp_path)
        return open_core(str(vmcore), str(kernel))

    return open_


def _by_tid(kernel: Kernel) -> Dict[int, Any]:
    return {thread.tid: thread for thread in threads(kernel)}


# The first report


def test_the_demo_is_small_and_has_the_reports_figures(tmp_path: Path) -> None:
    vmcore, kernel_file = demo.make(tmp_path)
    assert vmcore.stat().st_size < 8 << 20
    kernel = open_core(str(vmcore), str(kernel_file))
    queue = kernel.view("g_bioq", kernel.address_of("g_bio_run_down"))
    assert queue.bio_queue_length == 559
    assert queue["bio_queue.tqh_first"] == 0xC38DA318
    assert queue["bio_queue.tqh_last"] == 0xC38DA248
    assert kernel.global_value("pace") == 1
    da0 = kernel.view("g_provider", 0xC258C880)
    assert kernel.cstring(da0.name) == "da0"
    assert (da0.acr, da0.acw, da0.ace, da0.error) == (3, 3, 5, 0)
    assert (da0.nstart, da0.nend) == (NSTART, NEND)
    assert (da0.mediasize, da0.sectorsize) == (MEDIASIZE, 512)
    assert da0.stat == 0xC25C35A0
    assert da0["consumers.lh_first"] == 0xC24671C0
    assert not list(kernel.warnings)


def test_of_the_559_bios_395_are_for_da0_and_one_more_is_in_g_downs_hand(tmp_path: Path) -> None:
    machine = storage_deadlock()
    vmcore, kernel_file = machine.write(tmp_path)
    kernel = open_core(str(vmcore), str(kernel_file))
    head = kernel.address_of("g_bio_run_down")
    bios = list(tailq_foreach(kernel, head, "bio", "bio_queue", ["bio_to", "bio_flags"]))
    assert len(bios) == 559
    assert sum(1 for _, (to, _) in bios if to == 0xC258C880) == 395
    assert all(flags & 4 for _, (_, flags) in bios)
    in_hand = machine.geom.in_hand
    assert in_hand is not None
    assert in_hand.obj.address not in {address for address, _ in bios}
    assert kernel.view("bio", in_hand.obj.address).bio_to == 0xC258C880


def test_the_disk_can_be_given_a_share_of_the_396(opened: Callable[[Machine], Kernel]) -> None:
    machine = storage_deadlock(at_device=5)
    kernel = opened(machine)
    da0 = kernel.view("g_provider", 0xC258C880)
    assert (da0.nstart, da0.nend) == (NSTART, NEND)
    head = kernel.address_of("g_bio_run_down")
    to = [values[0] for _, values in tailq_foreach(kernel, head, "bio", "bio_queue", ["bio_to"])]
    assert (len(to), to.count(0xC258C880)) == (559, 390)
    stat = kernel.view("devstat", machine.geom.disks[0].devstat.address)
    assert stat.start_count - stat.end_count == 5


def test_the_sleepers_of_the_first_report(tmp_path: Path) -> None:
    vmcore, kernel_file = demo.make(tmp_path)
    kernel = open_core(str(vmcore), str(kernel_file))
    every = threads(kernel)
    count = {w: sum(1 for t in every if t.wmesg == w) for w in ("vmwait", "pfault", "biord")}
    assert count == {"vmwait": 96, "pfault": 84, "biord": 60}
    channel = kernel.address_of("cnt") + kernel.layouts.offsetof("vmmeter", "v_free_count")
    assert {t.wchan for t in every if t.wmesg in ("vmwait", "pfault")} == {channel}
    (daemon,) = [t for t in every if t.comm == "pagedaemon"]
    assert (daemon.wmesg, daemon.wchan) == ("wswbuf0", kernel.address_of("nsw_wcount_async"))
    assert kernel.global_value("nsw_wcount_async") == 0
    (down,) = [t for t in every if t.comm == "g_down"]
    assert (down.address, down.wmesg, down.wchan) == (0xC2275480, "g_down", 0xE35E0CF4)
    assert down.kstack <= 0xE35E0CF4 < down.kstack + down.kstack_size
    assert kernel.signed(0xE35E0CF4, 4) == 0
    assert backtrace(kernel, down) == [
        "sched_switch",
        "mi_switch",
        "sleepq_switch",
        "sleepq_timedwait",
        "msleep",
        "g_io_schedule_down",
        "g_down_procbody",
        "fork_exit",
        "fork_trampoline",
    ]
    for name in ("g_up", "g_event"):
        (thread,) = [t for t in every if t.comm == name]
        channel = kernel.address_of(name.replace("g_", "g_wait_"))
        assert (thread.wmesg, thread.wchan) == ("-", channel)


def test_no_page_is_free_where_m_nowait_fails(tmp_path: Path) -> None:
    vmcore, kernel_file = demo.make(tmp_path)
    kernel = open_core(str(vmcore), str(kernel_file))
    cnt = kernel.view("vmmeter", kernel.address_of("cnt"))
    assert (cnt.v_free_count, cnt.v_cache_count) == (0, 0)
    assert cnt.v_free_min > 0


# The second report


def test_the_page_of_the_panic_is_bogus_page_and_unbusied(
    opened: Callable[[Machine], Kernel],
) -> None:
    machine = sendfile_panic()
    kernel = opened(machine)
    assert kernel.panicstr == PANIC
    assert kernel.global_value("bogus_page") == PAGE
    assert kernel.view("vm_page", PAGE).busy_lock == 1
    array = machine.expected["array"]
    entries = [kernel.pointer(array + 8 * n) for n in range(COUNT)]
    assert tuple(n for n, page in enumerate(entries) if page == PAGE) == BOGUS == (2, 3, 5)
    others = [kernel.view("vm_page", page) for page in entries if page != PAGE]
    assert {page.busy_lock for page in others} == {2}
    assert len({page.object for page in others}) == 1


def test_the_stack_of_the_second_report(opened: Callable[[Machine], Kernel]) -> None:
    machine = sendfile_panic()
    kernel = opened(machine)
    thread = _by_tid(kernel)[machine.cast["sendfile"].tid]
    assert (thread.state, thread.cpu) == ("running", 3)
    assert backtrace(kernel, thread)[2:] == [
        "vpanic",
        "dmu_read_pages",
        "zfs_freebsd_getpages",
        "VOP_GETPAGES_APV",
        "vop_stdgetpages_async",
        "VOP_GETPAGES_ASYNC_APV",
        "vnode_pager_getpages_async",
        "vn_sendfile",
        "sendfile",
        "amd64_syscall",
        "fast_syscall_common",
    ]
    assert machine.cast["sendfile"].frame("dmu_read_pages").fp == 0xFFFFFE00B3C36460
    assert machine.cast["sendfile"].frame("amd64_syscall").fp == 0xFFFFFE00B3C36AB0


# Threads and locks


@pytest.mark.parametrize(("osreldate", "arch"), EVERY)
def test_every_thread_is_in_the_state_it_was_given(
    opened: Callable[[Machine], Kernel], osreldate: int, arch: str
) -> None:
    machine = deadlocks.states(osreldate=osreldate, arch=arch)
    found = {thread.comm: thread.state for thread in threads(opened(machine))}
    for name, state in machine.expected.items():
        assert (name, found[name]) == (name, state)


@pytest.mark.parametrize(("osreldate", "arch"), EVERY)
def test_each_kind_of_lock_has_its_owner_in_the_word_and_its_waiters_asleep(
    opened: Callable[[Machine], Kernel], osreldate: int, arch: str
) -> None:
    machine = deadlocks.every_lock(osreldate=osreldate, arch=arch)
    kernel = opened(machine)
    found = _by_tid(kernel)
    for kind, (address, _, owner, waiters) in machine.expected.items():
        for tid in waiters:
            thread = found[tid]
            if thread.state == "locked":
                assert thread.lock is not None and thread.lock.address == address, kind
                turnstile = kernel.view("turnstile", thread.blocked)
                assert turnstile.ts_owner == found[owner].address
                held = [
                    a
                    for a, _ in list_foreach(
                        kernel,
                        found[owner].address + kernel.layouts.offsetof("thread", "td_contested"),
                        "turnstile",
                        "ts_link",
                    )
                ]
                assert thread.blocked in held
            else:
                assert 0 <= (thread.wchan or 0) - address < 64, kind
                assert (thread.wmesg or "").startswith("a "), kind
    assert not [w for w in kernel.warnings if "is this version" not in w.detail]


def test_a_ring_of_threads_each_blocked_by_the_next(
    opened: Callable[[Machine], Kernel],
) -> None:
    machine = deadlocks.ring(("mutex", "rwlock", "mutex"), tail=2)
    kernel = opened(machine)
    found = _by_tid(kernel)
    ring = [machine.cast[f"ring{n}"] for n in range(3)]
    for thread, following in zip(ring, [*ring[1:], ring[0]]):
        blocked = found[thread.tid].blocked
        assert kernel.view("turnstile", blocked).ts_owner == following.obj.address
    assert found[machine.cast["tail0"].tid].state == "sleeping"


def test_spin_mutexes_deadlock_on_two_cpus(opened: Callable[[Machine], Kernel]) -> None:
    machine = deadlocks.abba("spin", "spin")
    kernel = opened(machine)
    found = _by_tid(kernel)
    for name in ("alpha", "beta"):
        thread = found[machine.cast[name].tid]
        assert thread.state == "running"
        assert "_mtx_lock_spin_cookie" in backtrace(kernel, thread)


# GEOM


@pytest.mark.parametrize(("osreldate", "arch"), EVERY)
def test_one_geom_scenario_under_every_version(
    opened: Callable[[Machine], Kernel], osreldate: int, arch: str
) -> None:
    machine = geom_tour.geom_tour(osreldate=osreldate, arch=arch)
    kernel = opened(machine)
    for queue, number in (("g_bio_run_down", "down"), ("g_bio_run_up", "up")):
        view = kernel.view("g_bioq", kernel.address_of(queue))
        head = view.at("bio_queue")
        walked = sum(1 for _ in tailq_foreach(kernel, head, "bio", "bio_queue"))
        assert view.bio_queue_length == walked == machine.expected[number] > 0
    for geom in machine.geom.geoms:
        for provider in geom.providers:
            view = kernel.view("g_provider", provider.obj.address)
            expected = machine.expected["providers"][provider.name]
            if view.has("nstart"):
                assert view.nstart - view.nend == expected["in_flight"]
            elif view.stat:
                stat = kernel.view("devstat", view.stat)
                assert stat.start_count - stat.end_count == expected["in_flight"]
    for disk in machine.geom.disks:
        stat = kernel.view("devstat", kernel.view("disk", disk.obj.address).d_devstat)
        expected = machine.expected["providers"][disk.provider.name]
        given = expected["driver_queue"] + expected["outstanding"]
        assert stat.start_count - stat.end_count == given
    assert not [w for w in kernel.warnings if "is this version" not in w.detail]
    # A label passes a request on at once: one that nobody has is lost.
    placed = geom_io.outstanding_by_address(kernel)
    assert [a for a, bio in placed.items() if bio.state == "lost"] == [machine.expected["lost"]]


def test_access_counts_rise_through_the_slicers() -> None:
    machine = Machine(700014, "i386")
    disk = machine.geom.disk("da", 0, mediasize=1 << 30)
    mbr = machine.geom.slice("MBR", disk, {"da0s1": (0, 1 << 29)})
    bsd = machine.geom.slice("BSD", mbr.provider("da0s1"), {"da0s1a": (0, 1 << 28)})
    machine.geom.vfs(bsd.provider("da0s1a"))
    rights = [
        (p.obj["acr"], p.obj["acw"], p.obj["ace"])
        for p in (bsd.provider("da0s1a"), mbr.provider("da0s1"), disk.provider)
    ]
    assert rights == [(1, 1, 1), (1, 1, 2), (1, 1, 3)]


@pytest.mark.parametrize("how", list(geom_tour.CORRUPTIONS))
def test_a_corrupted_queue_is_wrong_in_one_place_only(
    opened: Callable[[Machine], Kernel], how: str
) -> None:
    machine = geom_tour.corrupted_queue(how)
    kernel = opened(machine)
    view = kernel.view("g_bioq", kernel.address_of("g_bio_run_down"))
    walked = [a for a, _ in tailq_foreach(kernel, view.at("bio_queue"), "bio", "bio_queue")]
    assert walked == machine.expected["bios"][: len(walked)]
    assert len(walked) == {"dangling": 7, "loop": 10}.get(how, 12)
    assert bool(list(kernel.warnings)) == (how != "wrong length")


# Memory


@pytest.mark.parametrize(("osreldate", "arch"), EVERY)
def test_the_page_array_agrees_with_the_counters(
    opened: Callable[[Machine], Kernel], osreldate: int, arch: str
) -> None:
    machine = memory.sibling(osreldate=osreldate, arch=arch)
    kernel = opened(machine)
    base = kernel.global_value("vm_page_array")
    count = kernel.global_value("vm_page_array_size")
    first = kernel.global_value("first_page")
    fields = kernel.layouts.fields("vm_page", "phys_addr", "object")
    stride = kernel.layouts.sizeof("vm_page")
    raw = kernel.read(base, count * stride)
    owned: Dict[int, int] = {}
    for index in range(count):
        pa, owner = fields.unpack_from(raw, index * stride)
        assert pa == (first + index) << 12
        owned[owner] = owned.get(owner, 0) + 1
    for owner, pages in owned.items():
        if owner:
            assert kernel.view("vm_object", owner).resident_page_count == pages
    if osreldate < 1200000:
        cnt = kernel.view("vmmeter", machine.vm.cnt.address)
        assert cnt.v_free_count == 0
    else:
        assert kernel.view("vm_domain", kernel.address_of("vm_dom")).vmd_free_count == 0


@pytest.mark.parametrize(("osreldate", "arch"), EVERY)
def test_busy_pages_in_the_encoding_of_their_version(
    opened: Callable[[Machine], Kernel], osreldate: int, arch: str
) -> None:
    machine = memory.page_states(osreldate=osreldate, arch=arch, variant=("INVARIANTS",))
    kernel = opened(machine)
    pages = {name: kernel.view("vm_page", at) for name, at in machine.expected.items()}
    if pages["shared"].has("busy_lock"):
        low = 7
        assert pages["unbusied"].busy_lock == 1
        assert pages["exclusive"].busy_lock & low == 2
        assert pages["waited"].busy_lock & low == 6
        assert pages["shared3"].busy_lock == 1 | 3 << 3
        if osreldate >= 1300000:
            owner = machine.cast["owner"].obj.address & 0xFFFFFFF8
            assert pages["exclusive"].busy_lock & ~low == owner
    else:
        word = "oflags" if osreldate >= 800000 else "flags"
        assert pages["exclusive"][word] & 3 == 1
        assert pages["waited"][word] & 3 == 3
        assert pages["shared3"].busy == 3
    waiter = _by_tid(kernel)[machine.cast["waiter"].tid]
    assert (waiter.wmesg, waiter.wchan) == ("vmpfw", pages["waited"].address)


def test_a_lost_wakeup_has_memory_to_give(opened: Callable[[Machine], Kernel]) -> None:
    kernel = opened(memory.lost_wakeup())
    cnt = kernel.view("vmmeter", kernel.address_of("cnt"))
    assert cnt.v_free_count > cnt.v_free_min
    (daemon,) = [t for t in threads(kernel) if t.comm == "pagedaemon"]
    assert daemon.wmesg == "psleep"
    assert sum(1 for t in threads(kernel) if t.wmesg in ("pfault", "vmwait")) == 40


# pbufs


@pytest.mark.parametrize(
    ("osreldate", "arch", "wmesg"),
    [(700014, "i386", "wswbuf0"), (1201000, "amd64", "wswbuf0"), (1402000, "amd64", "swbufa")],
)
def test_an_exhausted_pool_names_itself_by_the_wait_channel(
    opened: Callable[[Machine], Kernel], osreldate: int, arch: str, wmesg: str
) -> None:
    machine = pbufs.exhaustion(osreldate=osreldate, arch=arch)
    kernel = opened(machine)
    writer = _by_tid(kernel)[machine.cast["writer"].tid]
    assert (writer.wmesg, writer.wchan) == (wmesg, kernel.address_of("nsw_wcount_async"))
    assert kernel.global_value("nsw_wcount_async") == 0
    if osreldate >= 1300000:
        zone = kernel.view("uma_zone", kernel.global_value("swwbuf_zone"))
        assert zone.uz_max_items == machine.expected["limit"]
        assert zone.uz_items & (1 << 44) - 1 == machine.expected["used"]
        assert zone.uz_items >> 44 == 3
        waiter = _by_tid(kernel)[machine.cast["waiter0"].tid]
        assert (waiter.wmesg, waiter.wchan) == ("zonelimit", zone.at("uz_max_items"))


# Scale


def test_a_crowd_is_as_large_as_asked_for(opened: Callable[[Machine], Kernel]) -> None:
    machine = scale.crowd(200, 500)
    kernel = opened(machine)
    assert sum(1 for t in threads(kernel) if t.comm.startswith("p")) >= 200
    head = kernel.address_of("g_bio_run_down")
    assert sum(1 for _ in tailq_foreach(kernel, head, "bio", "bio_queue")) == 540
    assert kernel.view("g_bioq", head).bio_queue_length == 540


def test_a_page_array_by_arithmetic_is_whole(opened: Callable[[Machine], Kernel]) -> None:
    pytest.importorskip("numpy", reason="numpy writes large page arrays")
    machine = scale.page_array(1, busy_every=1000)
    kernel = opened(machine)
    base, count = kernel.global_value("vm_page_array"), kernel.global_value("vm_page_array_size")
    stride = kernel.layouts.sizeof("vm_page")
    fields = kernel.layouts.fields("vm_page", "phys_addr", "busy_lock")
    first = kernel.global_value("first_page")
    raw = kernel.read(base, count * stride)
    busy = 0
    for index in range(count):
        pa, word = fields.unpack_from(raw, index * stride)
        assert pa == (first + index) << 12
        busy += word == 2
    assert (count, busy) == (machine.expected["pages"], machine.expected["busy"])
