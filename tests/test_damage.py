"""Damage is seen: what a broken list hid is found by a second way, and never without a word."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Set

import pytest
from answers import opened

from plugin.catalogue import shipped
from plugin.judge.locks import lock_waits
from plugin.kernel.buf import bufs
from plugin.kernel.counter import mp_maxid, zpcpu_offsets
from plugin.kernel.disk import disk_at, disks
from plugin.kernel.geom import mesh
from plugin.kernel.mount import mount_at
from plugin.kernel.proc import Thread, processes, threads
from plugin.kernel.stack import frames
from plugin.kernel.uma import zones
from plugin.kernel.vm_domain import domains
from plugin.kernel.vnode import vnode_at
from plugin.opening import open_core
from plugin.render.vmscan import whole_scan
from plugin.session import Kernel
from plugin.waits.analysis import Analysis, analyse
from tests.damage import PAGE, damaged
from tests.damage.__main__ import FORGED as DAMAGED
from tests.damage.__main__ import cases, subject, tried
from tests.forge.machine import Machine
from tests.forge.scenarios import deadlocks
from tests.forge.scenarios.geom_tour import geom_tour
from tests.forge.scenarios.storage_deadlock import storage_deadlock

SEEDS = range(20)
FORGED: Dict[str, Callable[[], Machine]] = {
    "a deadlock of sx locks, 14.2": lambda: deadlocks.abba("sx", "sx"),
    "a deadlock, 9.3": lambda: deadlocks.abba("sx", "sx", osreldate=903000),
    "a deadlock, 15.0": lambda: deadlocks.abba("sx", "sx", osreldate=1500068),
    "the storage deadlock, 7.0": storage_deadlock,
}


@pytest.fixture(scope="module", params=sorted(FORGED))
def forged(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Kernel:
    vmcore, kernel = FORGED[request.param]().write(tmp_path_factory.mktemp("forged"))
    return open_core(str(vmcore), str(kernel))


def pointer(kernel: Kernel, value: int = 0) -> bytes:
    return value.to_bytes(kernel.pointer_size, "little")


def plain(every: List[Thread]) -> Dict[int, Thread]:
    return {thread.address: thread for thread in every}


def links(kernel: Kernel) -> List[int]:
    """Where allproc and the p_list of each process on it keep their forward pointers."""
    offset = kernel.layouts.offsetof("proc", "p_list.le_next")
    living = [proc.address for proc in processes(kernel) if proc.state != 2]
    return [kernel.address_of("allproc"), *(address + offset for address in living)]


def cut_lists(kernel: Kernel) -> Iterator[Kernel]:
    places = [at for at in links(kernel) if kernel.pointer(at)]
    for seed in SEEDS:
        at = (
            places[seed % len(places)] if seed < len(places) else random.Random(seed).choice(places)
        )
        yield damaged(kernel, words={at: pointer(kernel)})


def check_cut_lists(kernel: Kernel) -> None:
    kernel.start_command()
    before = plain(threads(kernel))
    assert not kernel.warnings.partial, list(kernel.warnings)
    for broken in cut_lists(kernel):
        assert plain(threads(broken)) == before
        assert broken.warnings.partial
        assert any("cut short" in finding.detail for finding in broken.warnings)


def check_zeroed_pages(kernel: Kernel) -> None:
    kernel.start_command()
    before = plain(threads(kernel))
    size = kernel.layouts.sizeof("thread")
    pages = sorted({address // PAGE * PAGE for address in before})
    for seed in SEEDS:
        page = random.Random(seed).choice(pages)
        broken = damaged(kernel, zeroed=[page])
        after = plain(threads(broken))
        assert broken.warnings.partial, hex(page)
        for address, thread in before.items():
            untouched = address + size <= page or address >= page + PAGE
            beside = {page // PAGE} & pages_of(kernel, thread)
            if untouched and not beside and recoverable(kernel, thread):
                assert after.get(address) == thread, (hex(page), thread)


def pages_of(kernel: Kernel, thread: Thread) -> Set[int]:
    """Pages that a thread's line is read from beside its own: its process, its name."""
    size = kernel.layouts.sizeof("proc")
    found = {thread.proc // PAGE, (thread.proc + size - 1) // PAGE}
    if thread.lock is not None:
        found |= {thread.lock.address // PAGE, (thread.lock.address + 63) // PAGE}
    found.add((thread.blocked or thread.address) // PAGE)
    return found


def recoverable(kernel: Kernel, thread: Thread) -> bool:
    """Before 9.0 there is no second way to a thread behind a damaged one of its process."""
    return kernel.has_symbol("tidhashtbl")


def check_lost_pages(kernel: Kernel) -> None:
    """1 % of all pages removed: a report that calls itself whole is the undamaged one."""
    kernel.start_command()
    catalogue = shipped()
    before = verdict(analyse(kernel, catalogue))
    everyone = plain(threads(kernel))
    for seed in SEEDS:
        broken = damaged(kernel, lost=0.01, seed=seed)
        found = analyse(broken, catalogue)
        if not broken.warnings.partial:
            assert verdict(found) == before, seed
            assert plain(threads(broken)) == everyone, seed


def verdict(found: Analysis) -> List[Any]:
    return sorted((str(cause.kind), cause.summary) for cause in found.causes)


def test_a_zero_word_in_allproc_hides_no_process(forged: Kernel) -> None:
    check_cut_lists(forged)


def test_a_zeroed_page_of_threads_is_said_and_the_others_are_as_before(forged: Kernel) -> None:
    check_zeroed_pages(forged)


def test_with_pages_missing_a_report_that_calls_itself_whole_is_whole(forged: Kernel) -> None:
    check_lost_pages(forged)


def test_real_machines_with_a_zero_word_in_allproc_are_reported_as_before(real_dump: Any) -> None:
    check_cut_lists(opened(real_dump))


def test_real_machines_with_a_zeroed_page_of_threads_say_so(real_dump: Any) -> None:
    check_zeroed_pages(opened(real_dump))


def test_real_machines_with_pages_missing_never_call_a_changed_report_whole(
    real_dump: Any,
) -> None:
    check_lost_pages(opened(real_dump))


def test_a_thread_without_a_wait_message_is_unknown_not_blank(tmp_path: Path) -> None:
    vmcore, file = deadlocks.abba("sx", "sx").write(tmp_path)
    kernel = open_core(str(vmcore), str(file))
    sleeper = next(thread for thread in threads(kernel) if thread.state == "sleeping")
    at = sleeper.address + kernel.layouts.offsetof("thread", "td_wmesg")
    broken = damaged(kernel, words={at: pointer(kernel)})
    after = plain(threads(broken))[sleeper.address]
    assert after.wmesg is None
    assert broken.warnings.partial
    assert any("wait message" in finding.detail for finding in broken.warnings)


def test_fewer_processes_than_nprocs_with_whole_lists_is_said_but_nothing_is_missing(
    tmp_path: Path,
) -> None:
    """fork1() counts a process before it makes it, and may sleep in between."""
    vmcore, file = deadlocks.abba("sx", "sx").write(tmp_path)
    kernel = open_core(str(vmcore), str(file))
    number = len(processes(kernel))
    at = kernel.address_of("nprocs")
    one_more = damaged(kernel, words={at: (number + 1).to_bytes(4, "little")})
    assert len(processes(one_more)) == number
    assert not one_more.warnings.partial
    assert [finding.what for finding in one_more.warnings] == ["nprocs"]
    one_less = damaged(kernel, words={at: (number - 1).to_bytes(4, "little")})
    assert len(processes(one_less)) == number
    assert one_less.warnings.partial


def test_a_cpu_count_that_contradicts_itself_is_said(tmp_path: Path) -> None:
    vmcore, file = deadlocks.abba("sx", "sx").write(tmp_path)
    kernel = open_core(str(vmcore), str(file))
    assert mp_maxid(kernel) == 3
    broken = damaged(kernel, words={kernel.address_of("mp_maxid"): bytes(4)})
    assert mp_maxid(broken) == 3
    assert broken.warnings.partial


def test_a_stack_cut_short_is_said_with_the_function_it_was_cut_above(tmp_path: Path) -> None:
    vmcore, file = deadlocks.abba("sx", "sx").write(tmp_path)
    kernel = open_core(str(vmcore), str(file))
    kernel.start_command()
    sleeper = next(thread for thread in threads(kernel) if thread.state == "sleeping")
    walked = list(frames(kernel, sleeper))
    assert not kernel.warnings.partial
    nowhere = pointer(kernel, 0xFFFFF8007FFFFFF0)
    broken = damaged(kernel, words={walked[1].fp: nowhere})
    assert [frame.function for frame in frames(broken, sleeper)][:2] == [
        frame.function for frame in walked[:2]
    ]
    assert broken.warnings.partial
    assert any("cut short above" in finding.detail for finding in broken.warnings)


def test_a_memory_domain_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    vmcore, file = deadlocks.abba("sx", "sx").write(tmp_path)
    kernel = open_core(str(vmcore), str(file))
    kernel.start_command()
    assert domains(kernel)
    assert not kernel.warnings.partial
    broken = damaged(kernel, missing=[kernel.address_of("vm_dom")])
    assert domains(broken) == []
    assert broken.warnings.partial


#: every pointer of GEOM that leads forward: struct, member, and what it leads to
GEOM_LINKS = (
    ("g_class", "geom.lh_first"),
    ("g_class", "class.le_next"),
    ("g_geom", "geom.le_next"),
    ("g_geom", "consumer.lh_first"),
    ("g_geom", "provider.lh_first"),
    ("g_consumer", "consumer.le_next"),
    ("g_consumer", "consumers.le_next"),
    ("g_provider", "provider.le_next"),
    ("g_provider", "consumers.lh_first"),
)
#: every pointer that leads back
GEOM_BACK = (
    ("g_geom", "class"),
    ("g_consumer", "geom"),
    ("g_consumer", "provider"),
    ("g_provider", "geom"),
)


def geom_words(kernel: Kernel, members: Any) -> Iterator[int]:
    """Where the mesh's own structs keep those pointers, of each that is not NULL."""
    found = mesh(kernel)
    held = {
        "g_class": [g_class.address for g_class in found.classes if g_class.geoms],
        "g_geom": list(found.geoms),
        "g_consumer": list(found.consumers),
        "g_provider": list(found.providers),
    }
    for struct, member in members:
        offset = kernel.layouts.offsetof(struct, member)
        for address in held[struct]:
            following = kernel.pointer(address + offset)
            if following and (member != "class.le_next" or following in held["g_class"]):
                yield address + offset


def plain_mesh(kernel: Kernel) -> List[Set[Any]]:
    found = mesh(kernel)
    return [
        {(geom.address, geom.name, geom.g_class.name) for geom in found.geoms.values()},
        {
            (
                p.address,
                p.name,
                p.geom and p.geom.address,
                frozenset(c.address for c in p.consumers),
            )
            for p in found.providers.values()
        },
        {
            (c.address, c.geom.address, c.provider and c.provider.address)
            for c in found.consumers.values()
        },
    ]


def check_geom(kernel: Kernel) -> None:
    kernel.start_command()
    before = plain_mesh(kernel)
    assert not kernel.warnings.partial, list(kernel.warnings)
    words = list(geom_words(kernel, GEOM_LINKS + GEOM_BACK))
    words.append(kernel.address_of("g_classes"))
    for at in random.Random(0).sample(words, min(60, len(words))):
        broken = damaged(kernel, words={at: pointer(kernel)})
        assert plain_mesh(broken) == before, hex(at)
        assert broken.warnings.partial, hex(at)


@pytest.mark.parametrize("osreldate", [700014, 903000, 1402000, 1500068])
def test_a_zero_word_in_geom_hides_no_class_geom_provider_or_consumer(
    osreldate: int, tmp_path: Path
) -> None:
    vmcore, file = geom_tour(osreldate=osreldate).write(tmp_path)
    check_geom(open_core(str(vmcore), str(file)))


def test_a_zero_word_in_geom_of_a_real_machine_hides_nothing(real_dump: Any) -> None:
    check_geom(opened(real_dump))


def test_a_page_counter_that_is_off_makes_a_whole_scan_partial(tmp_path: Path) -> None:
    vmcore, file = deadlocks.abba("sx", "sx").write(tmp_path)
    kernel = open_core(str(vmcore), str(file))
    kernel.start_command()
    whole_scan(kernel, None)
    assert not kernel.warnings.partial, list(kernel.warnings)
    at = domains(kernel)[0].address + kernel.layouts.offsetof("vm_domain", "vmd_free_count")
    off_by_one = kernel.unsigned(at, 4) + 1
    broken = damaged(kernel, words={at: off_by_one.to_bytes(4, "little")})
    whole_scan(broken, None)
    assert broken.warnings.partial
    assert any("counter" in finding.detail for finding in broken.warnings)


def test_buffer_headers_without_a_count_of_them_are_said(tmp_path: Path) -> None:
    vmcore, file = geom_tour().write(tmp_path)
    kernel = open_core(str(vmcore), str(file))
    kernel.start_command()
    assert list(bufs(kernel))
    assert not kernel.warnings.partial
    broken = damaged(kernel, words={kernel.address_of("nbuf"): bytes(4)})
    assert not list(bufs(broken))
    assert [finding.what for finding in broken.warnings] == ["nbuf"]
    assert broken.warnings.partial


def test_a_disk_whose_name_cannot_be_read_is_said_and_not_blank(tmp_path: Path) -> None:
    vmcore, file = geom_tour().write(tmp_path)
    kernel = open_core(str(vmcore), str(file))
    disk = next(iter(disks(kernel).values()))
    at = disk.address + kernel.layouts.offsetof("disk", "d_name")
    broken = damaged(kernel, words={at: pointer(kernel, 0xFFFFF8007FFFFFF0)})
    read = disk_at(broken, disk.address)
    assert read is not None and read.name.startswith("?")
    assert broken.warnings.partial


@pytest.mark.parametrize("count", ["ref", "lockref", "writeopcount"])
def test_what_a_mount_counts_per_cpu_is_summed(count: str, tmp_path: Path) -> None:
    """From 13.0 on in struct mount_pcpu too, one part per CPU."""
    machine = Machine(1402000)
    made = machine.vfs.mount("tmpfs", "/tmp", "tmpfs")
    parts = machine.counter(0)
    offset = machine.layouts.offsetof("mount_pcpu", f"mntp_{count}")
    made.obj["mnt_pcpu"] = parts
    vmcore, file = machine.write(tmp_path)
    kernel = open_core(str(vmcore), str(file))
    kernel.start_command()
    mask = (1 << 8 * kernel.pointer_size) - 1
    places = [parts + each + offset & mask for each in zpcpu_offsets(kernel)]
    assert len(places) > 1
    per_cpu = {at: (3 + 2 * cpu).to_bytes(4, "little") for cpu, at in enumerate(places)}
    busy = mount_at(damaged(kernel, words=per_cpu), int(made))
    assert busy is not None
    own = made.obj[f"mnt_{count}"]
    assert getattr(busy, count) == own + sum(3 + 2 * cpu for cpu in range(len(places)))


def test_a_thread_whose_saved_registers_are_missing_has_no_stack_and_that_is_said(
    tmp_path: Path,
) -> None:
    vmcore, file = deadlocks.abba("sx", "sx").write(tmp_path)
    kernel = open_core(str(vmcore), str(file))
    sleeper = next(thread for thread in threads(kernel) if thread.state == "sleeping")
    broken = damaged(kernel, missing=[sleeper.pcb])
    assert list(frames(broken, sleeper)) == []
    (finding,) = broken.warnings
    assert f"the registers of thread {sleeper.tid}" in finding.detail
    assert broken.warnings.partial
    swapped = sleeper._replace(inhibitors=4)
    again = damaged(kernel, missing=[sleeper.pcb])
    assert list(frames(again, swapped)) == []
    assert not list(again.warnings), "what is swapped out is in no dump"


def test_a_wait_channel_that_is_missing_may_have_been_a_lock(tmp_path: Path) -> None:
    vmcore, file = deadlocks.abba("sx", "sx").write(tmp_path)
    kernel = open_core(str(vmcore), str(file))
    waits = lock_waits(kernel)
    sleeper = next(t for t in threads(kernel) if t.address in waits and t.state == "sleeping")
    assert sleeper.wchan
    broken = damaged(kernel, missing=[sleeper.wchan])
    assert sleeper.address not in lock_waits(broken)
    assert broken.warnings.partial
    assert any("whether it is a lock" in finding.detail for finding in broken.warnings)


def test_a_thread_number_below_zero_is_damage(tmp_path: Path) -> None:
    vmcore, file = deadlocks.abba("sx", "sx").write(tmp_path)
    kernel = open_core(str(vmcore), str(file))
    thread = threads(kernel)[-1]
    at = thread.address + kernel.layouts.offsetof("thread", "td_tid")
    broken = damaged(kernel, words={at: (-5).to_bytes(4, "little", signed=True)})
    assert plain(threads(broken))[thread.address].tid == (1 << 32) - 5
    assert broken.warnings.partial
    assert any("td_tid is -5" in finding.detail for finding in broken.warnings)
    at = thread.proc + kernel.layouts.offsetof("proc", "p_pid")
    broken = damaged(kernel, words={at: (-5).to_bytes(4, "little", signed=True)})
    assert all(process.pid >= 0 for process in processes(broken))
    assert any("p_pid is -5" in finding.detail for finding in broken.warnings)


def test_a_sleep_on_no_channel_is_damage(tmp_path: Path) -> None:
    vmcore, file = deadlocks.abba("sx", "sx").write(tmp_path)
    kernel = open_core(str(vmcore), str(file))
    sleeper = next(thread for thread in threads(kernel) if thread.state == "sleeping")
    at = sleeper.address + kernel.layouts.offsetof("thread", "td_wchan")
    broken = damaged(kernel, words={at: pointer(kernel)})
    assert plain(threads(broken))[sleeper.address].wchan is None
    assert broken.warnings.partial
    assert any("td_wchan is NULL" in finding.detail for finding in broken.warnings)


def test_a_vnode_that_is_missing_is_said_where_it_would_have_been_named(tmp_path: Path) -> None:
    vmcore, file = geom_tour().write(tmp_path)
    kernel = open_core(str(vmcore), str(file))
    kernel.start_command()
    address = next(buf.vp for buf in bufs(kernel) if buf.vp)
    assert vnode_at(kernel, address) is not None
    assert not kernel.warnings.partial
    broken = damaged(kernel, missing=[address])
    assert vnode_at(broken, address) is None
    assert [finding.what for finding in broken.warnings] == [f"vnode {address:#x}"]
    assert broken.warnings.partial
    assert vnode_at(kernel, 0) is None


@pytest.mark.parametrize("name", ["deadlock-14.2", "geom-9.3"])
def test_damage_of_every_kind_under_every_command_keeps_every_promise(
    name: str, tmp_path: Path
) -> None:
    """A part of `python tests/damage`: no traceback, no breach of the contract, no lie."""
    vmcore, file = DAMAGED[name]().write(tmp_path)
    on = subject(name, str(vmcore), str(file))
    faults = [
        f"{name}:{number}: {outcome.fault}"
        for kind, form, number in cases(on, 0, 120)
        for outcome in [tried(on, kind, form, number, 30.0)]
        if outcome.fault
    ]
    assert not faults


def test_a_zone_whose_name_is_missing_is_said(tmp_path: Path) -> None:
    vmcore, file = deadlocks.abba("sx", "sx").write(tmp_path)
    kernel = open_core(str(vmcore), str(file))
    zone = next(zone for zone in zones(kernel) if zone.name != "?")
    at = zone.address + kernel.layouts.offsetof("uma_zone", "uz_name")
    broken = damaged(kernel, words={at: pointer(kernel, 0xFFFFF8007FFFFFF0)})
    found = next(each for each in zones(broken) if each.address == zone.address)
    assert found.name == "?"
    assert broken.warnings.partial
    assert [finding.what for finding in broken.warnings] == [f"zone {zone.address:#x}"]


def test_the_stack_of_a_thread_on_a_stopped_cpu_is_cut_short_with_a_word(tmp_path: Path) -> None:
    vmcore, file = deadlocks.abba("sx", "sx").write(tmp_path)
    kernel = open_core(str(vmcore), str(file))
    kernel.start_command()
    running = next(thread for thread in threads(kernel) if thread.state == "running")
    walked = list(frames(kernel, running))
    assert len(walked) > 2
    assert not kernel.warnings.partial
    nowhere = pointer(kernel, 0xFFFFF8007FFFFFF0)
    broken = damaged(kernel, words={walked[1].fp: nowhere})
    assert len(list(frames(broken, running))) < len(walked)
    assert broken.warnings.partial
