"""One GEOM scenario on kernels from 7.0-CURRENT to 15.0: everywhere the same answers.

The machine: da0 with a slice that carries /, da1 and da2 mirrored for /data, da3
for swap.  Three reads of / are with da0; one more waits in its driver's own
queue; two clones for da0 wait on g_bio_run_down and g_down pauses after an
allocation failure, a third clone in its hands.  A write to the mirror is with
da1 and da2; another has come back and waits on g_bio_run_up.
"""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Tuple

import pytest
from answers import Dump, answer

from plugin.judge import geom_io
from plugin.judge import geom_workers as geom_kern
from plugin.kernel import geom
from plugin.opening import open_core
from plugin.session import Kernel
from tests.forge.geom import Bio
from tests.forge.machine import Machine

MB = 1 << 20
WRITE = 2

KERNELS: List[Tuple[int, str, Tuple[str, ...]]] = [
    (700014, "i386", ()),
    (800068, "i386", ("INVARIANTS", "WITNESS")),
    (903000, "amd64", ()),
    (1004000, "amd64", ()),
    (1200086, "amd64", ()),
    (1300139, "amd64", ()),
    (1402000, "amd64", ()),
    (1402000, "amd64", ("INVARIANTS", "WITNESS", "BUF_TRACKING", "FULL_BUF_TRACKING")),
    (1402000, "arm64", ()),
    (1402000, "i386", ()),
    (1500068, "amd64", ()),
]


class Forged(NamedTuple):
    """A forged machine: its dump opened, and the bios of the scenario by what became of them."""

    kernel: Kernel
    vmcore: Path
    elf: Path
    bios: Dict[str, List[Bio]]


def machine(osreldate: int, arch: str, variant: Tuple[str, ...], folder: Path) -> Forged:
    m = Machine(osreldate, arch, variant, ram=64 * MB)
    g = m.geom
    da0 = g.disk("da", 0, mediasize=36703933440)
    da1, da2, da3 = (g.disk("da", unit, mediasize=1 << 30) for unit in (1, 2, 3))
    slices = g.slice("PART", da0, {"da0s1": (32256, 36703868928)})
    mirror = g.mirror("gm0", [da1, da2])
    root = m.vfs.ffs("/", g.vfs(slices.provider("da0s1")))
    data = m.vfs.ffs("/data", g.vfs(mirror.providers[0]))
    g.swap(da3.provider)
    for disk in (da0, da1, da2, da3):
        disk.finished = 1000
    bios: Dict[str, List[Bio]] = {name: [] for name in ("device", "driver", "down", "held", "up")}

    def read(number: int, seconds: float) -> Bio:
        reader = m.procs.process(f"reader{number}").thread(calls=("bread", "ffs_read"))
        buf = m.bufs.buf(None, number, size=4096, owner=reader)
        buf.waited_by(reader)
        return m.bufs.start(buf, root, seconds=seconds)

    for number in range(3):
        bios["device"] += read(number, 50 + number).to_device()
    bios["driver"] += read(3, 40).to_device(queued=True)
    bios["held"].append(read(4, 30).down_to("da0"))
    for number in (5, 6):
        bios["down"].append(read(number, 20).down_to("da0").queued_down())
    write = m.bufs.start(m.bufs.buf(None, 7, size=8192, cmd=WRITE), data, seconds=10)
    bios["device"] += write.to_device()
    bios["up"].append(m.bufs.start(m.bufs.buf(None, 8, size=8192), data, seconds=5).queued_up())

    g.pace = 1
    down = m.services["g_down"]
    local = down.local("g_io_schedule_down", 4 * m.pointer_size)
    if m.lookup("pause_wchan") is None:
        # g_down slept on a variable of its own (geom_io.c of 7.0-CURRENT and 8.0).
        down.sleeps(local, "g_down", timeout=0.1)
    else:
        down.pauses("g_down", 0.1 if osreldate < 1002500 else 0.001)
    m.write_pointer(local + m.pointer_size, bios["held"][0])
    vmcore, elf = m.write(folder)
    return Forged(open_core(str(vmcore), str(elf)), vmcore, elf, bios)


@pytest.fixture(
    scope="module", params=KERNELS, ids=lambda k: "-".join([str(k[0]), k[1], *k[2][:1]])
)
def machine_once(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Forged:
    osreldate, arch, variant = request.param
    return machine(osreldate, arch, variant, tmp_path_factory.mktemp("geom"))


@pytest.fixture
def forged(machine_once: Forged) -> Forged:
    machine_once.kernel.start_command()
    return machine_once


def found(forged: Forged, *names: str) -> List[geom_io.OutstandingBio]:
    known = geom_io.outstanding_by_address(forged.kernel)
    return [known[bio.obj.address] for name in names for bio in forged.bios[name]]


def account(forged: Forged, name: str) -> geom_io.ProviderIO:
    (provider,) = geom.mesh(forged.kernel).find(name)
    return geom_io.provider_io(forged.kernel)[provider.address]


def test_every_bio_is_where_the_scenario_left_it(forged: Forged) -> None:
    for each in found(forged, "device"):
        assert (each.state, each.certainty) == ("at the device", "proven")
        assert each.provider is not None
        assert f"driver of {each.provider.name}" in each.why
    (in_driver,) = found(forged, "driver")
    assert in_driver.state == "queued"
    assert "on the driver's queue" in in_driver.why
    assert "(da0 softc+0x0)" in in_driver.why
    for place, each in enumerate(found(forged, "down")):
        assert (each.state, each.queue, each.position) == ("queued", "g_bio_run_down", place)
    (held,) = found(forged, "held")
    assert (held.state, held.queue, held.certainty) == ("queued", "g_down", "inferred")
    assert 'asleep in "g_down"' in held.why
    (up,) = found(forged, "up")
    assert (up.state, up.queue) == ("completed, not delivered", "g_bio_run_up")
    assert not [o for o in geom_io.outstanding(forged.kernel) if o.state == "lost"]


def test_a_request_is_where_its_clones_are(forged: Forged) -> None:
    for request in geom_io.top_requests(forged.kernel):
        states = {geom_io.outstanding_by_address(forged.kernel)[c].state for c in request.clones}
        assert not states or request.state in states


def test_ages_count_from_the_request(forged: Forged) -> None:
    ages = sorted(round(o.age or 0) for o in geom_io.top_requests(forged.kernel))
    assert ages == [5, 10, 20, 20, 30, 40, 50, 51, 52]


def test_each_device_owes_what_it_was_given_and_no_more(forged: Forged) -> None:
    da0 = account(forged, "da0")
    assert (da0.in_flight, da0.queued, da0.at_device, da0.found) == (7, 4, 3, 7)
    assert da0.verdict == "owes"
    assert da0.driver == da0.driver_found == 4
    assert round(da0.oldest or 0) == 52
    for name in ("da1", "da2"):
        ours = account(forged, name)
        assert (ours.in_flight, ours.queued, ours.at_device) == (1, 0, 1)
        assert ours.verdict == "owes"
    da3 = account(forged, "da3")
    assert (da3.in_flight, da3.found, da3.verdict) == (0, 0, "clear")
    # The bio on g_bio_run_up is counted as ended, the write below is not.
    mirror = account(forged, "mirror/gm0")
    assert (mirror.in_flight, mirror.found, mirror.completed) == (1, 1, 1)
    assert account(forged, "da0s1").in_flight == 7


def test_counters_and_bios_agree_without_a_finding(forged: Forged) -> None:
    geom_io.check_provider_io(forged.kernel)
    assert list(forged.kernel.warnings) == []


def test_pacing_is_explained_with_the_figures_of_its_version(forged: Forged) -> None:
    pace = geom_kern.pacing(forged.kernel)
    assert pace is not None
    assert (pace.pace, pace.active, pace.paused) == (1, True, True)
    line = pace.explain(2)
    if forged.kernel.osreldate < 1002500:
        assert "pauses 0.1 s before a bio, so at most 10 bios a second" in line
        assert "the 2 queued need 0.2 s or more" in line
    else:
        assert "pauses one tick of hz, 1 ms, before the next bio" in line
        assert "its age starts anew each time" in line
    assert line.startswith("GEOM is pacing (pace 1, g_down sleeps in it now), not blocked")
    states = {t.role: t.state for t in geom_kern.geom_threads(forged.kernel)}
    assert states["g_down"] == "pacing"
    assert states["g_event"] == "idle"


def test_a_sleeping_g_up_with_work_is_no_idle_thread(forged: Forged) -> None:
    (up,) = [t for t in geom_kern.geom_threads(forged.kernel) if t.role == "g_up"]
    assert "1 bio is on g_bio_run_up" in up.detail
    # It looks by itself ten times a second up to 8.x, later only a wakeup helps.
    assert up.state == ("working" if forged.kernel.osreldate < 900000 else "stuck")


def test_bufs_lead_to_their_bios_and_back(forged: Forged) -> None:
    for request in geom_io.top_requests(forged.kernel):
        buf = geom_io.buf_of(forged.kernel, request.bio)
        assert buf is not None
        assert buf.cached
        assert geom_io.buf_io(forged.kernel, buf.address) == [request]
        assert buf.bcount == request.bio.length


def test_the_commands_say_the_same_in_json(forged: Forged) -> None:
    def data(command: str) -> Dict[str, Any]:
        status, out, err = answer(Dump(forged.vmcore, forged.elf), command, "--json")
        assert status == 0, err
        value: Dict[str, Any] = json.loads(out)["data"]
        return value

    queues = {q["name"]: q for q in data("bioq")["queues"]}
    assert queues["g_bio_run_down"]["length"] == queues["g_bio_run_down"]["walked"] == 2
    assert queues["g_bio_run_up"]["walked"] == 1
    assert ("g_bio_run_task" in queues) == (forged.kernel.osreldate < 1200000)
    for bio, made in zip(queues["g_bio_run_down"]["bios"], forged.bios["down"]):
        assert bio["address"] == f"{made.obj.address:#x}"
        assert (bio["cmd"], bio["provider"], bio["length"]) == ("BIO_READ", "da0", 4096)
        assert bio["offset"] == made.offset
        assert bio["flags"] == ["BIO_ONQUEUE"]
        assert bio["buf"]
        assert bio["parent"]
        assert round(bio["age"]) == 20
    providers = {p["name"]: p for p in data("provider")["providers"]}
    assert [providers["da0"][k] for k in ("in_flight", "queued", "at_device")] == [7, 4, 3]
    assert providers["da0"]["mediasize"] == 36703933440
    counted = forged.kernel.layouts.has("g_provider", "nstart")
    assert (providers["da0"]["nstart"] is not None) == counted
    if counted:
        assert providers["da0"]["nstart"] - providers["da0"]["nend"] == 7


# What can be wrong


def fresh(osreldate: int = 1402000) -> Machine:
    """A machine with one disk, that the test then breaks."""
    return Machine(osreldate, ram=64 * MB)


def opened(m: Machine, folder: Path) -> Kernel:
    vmcore, elf = m.write(folder)
    return open_core(str(vmcore), str(elf))


def queued(m: Machine, count: int) -> List[Bio]:
    """``count`` reads of da0 on g_bio_run_down."""
    disk = m.geom.disk("da", 0, mediasize=1 << 30)
    m.geom.swap(disk.provider)
    consumer = m.geom.geoms[-1].consumers[0]
    return [m.geom.request(consumer, 1, i * 4096, 4096).queued_down() for i in range(count)]


def entry(m: Machine, bio: Bio, member: str) -> int:
    return bio.obj.address + m.locate("bio", f"bio_queue.{member}").offset


@pytest.mark.parametrize("osreldate", [700014, 1200086, 1402000])
@pytest.mark.parametrize("fault", ["loop", "dangling", "wrong prev", "wrong count"])
def test_a_corrupt_queue_is_reported_and_what_was_read_is_shown(
    fault: str, osreldate: int, tmp_path: Path
) -> None:
    m = Machine(osreldate, "i386" if osreldate == 700014 else "amd64", ram=64 * MB)
    bios = queued(m, 10)
    m.finish()
    nowhere = 0xC0000008 if m.pointer_size == 4 else 0xFFFFF80000000008
    if fault == "loop":
        m.write_pointer(entry(m, bios[6], "tqe_next"), bios[2])
        trouble, walked = entry(m, bios[6], "tqe_next"), 7
    elif fault == "dangling":
        m.write_pointer(entry(m, bios[6], "tqe_next"), nowhere)
        trouble, walked = entry(m, bios[6], "tqe_next"), 7
    elif fault == "wrong prev":
        m.write_pointer(entry(m, bios[6], "tqe_prev"), nowhere)
        trouble, walked = bios[6].obj.address, 10
    else:
        m.geom.g_bio_run_down["bio_queue_length"] = 12
        trouble, walked = m.address_of("g_bio_run_down"), 10
    vmcore, elf = m.write(tmp_path)
    status, out, err = answer(Dump(vmcore, elf), "bioq", "--json")
    report = json.loads(out)
    down = report["data"]["queues"][0]
    assert down["walked"] == len(down["bios"]) == walked, err
    assert f"{trouble:#x}" in [w["address"] for w in report["warnings"]], report["warnings"]
    assert report["partial"], "something of the queue may be missing"
    assert status == 3
    # The bios that the list lost are still found, as items of the g_bio zone.
    everything = {b["address"]: b for b in report["data"]["outstanding"]}
    assert everything.keys() == {f"{b.obj.address:#x}" for b in bios}
    assert {b["state"] for b in everything.values()} == {"queued"}


def test_a_bio_marked_queued_that_is_on_no_queue_is_lost(tmp_path: Path) -> None:
    m = fresh()
    bios = queued(m, 3)
    stray = m.geom.request(m.geom.geoms[-1].consumers[0], 1, 0, 512)
    stray.obj["bio_flags"] = m.constant("BIO_ONQUEUE")
    kernel = opened(m, tmp_path)
    known = geom_io.outstanding_by_address(kernel)
    assert known[stray.obj.address].state == "lost"
    assert "BIO_ONQUEUE is set" in known[stray.obj.address].why
    assert [known[b.obj.address].state for b in bios] == ["queued"] * 3
    ours = next(iter(geom_io.provider_io(kernel).values()))
    assert (ours.verdict, ours.lost, ours.queued, ours.at_device) == ("unclear", 1, 3, 0)


@pytest.mark.parametrize(
    ("service", "state", "says"),
    [
        ("g_up", "completed, not delivered", "in the hands of g_up"),
        ("g_down", "queued", "taken off"),
    ],
)
def test_a_bio_that_is_on_no_queue_is_in_the_hands_of_the_thread_whose_stack_has_it(
    service: str, state: str, says: str, tmp_path: Path
) -> None:
    m = fresh()
    queued(m, 1)
    bio = m.geom.request(m.geom.geoms[-1].consumers[0], 1, 4096, 4096)
    thread = m.services[service]
    local = thread.local(service.replace("g_", "g_io_schedule_"), m.pointer_size)
    thread.blocks_on(m.locks.mutex("softc"))
    m.write_pointer(local, bio)
    kernel = opened(m, tmp_path)
    known = geom_io.outstanding_by_address(kernel)[bio.obj.address]
    assert (known.state, known.queue) == (state, service)
    assert says in known.why
    assert f"thread {thread.tid}" in known.why


def test_a_clone_that_is_nowhere_makes_its_request_lost(tmp_path: Path) -> None:
    m = fresh()
    disk = m.geom.disk("da", 0, mediasize=1 << 30)
    consumer = m.geom.swap(disk.provider)
    request = m.geom.request(consumer, 1, 0, 4096)
    request.obj["bio_children"] = 1
    kernel = opened(m, tmp_path)
    (only,) = geom_io.outstanding(kernel)
    assert (only.state, only.certainty) == ("lost", "inferred")
    assert "1 of its clones are in use nowhere" in only.why


def test_a_request_whose_clones_all_came_back_is_not_delivered(tmp_path: Path) -> None:
    m = fresh()
    disk = m.geom.disk("da", 0, mediasize=1 << 30)
    request = m.geom.request(m.geom.swap(disk.provider), 1, 0, 4096)
    request.obj.set(bio_children=2, bio_inbed=2)
    kernel = opened(m, tmp_path)
    (only,) = geom_io.outstanding(kernel)
    assert only.state == "completed, not delivered"
    assert "all its clones (2) are back" in only.why


def test_counters_without_bios_are_a_finding(tmp_path: Path) -> None:
    m = Machine(1200086, ram=64 * MB)
    disk = m.geom.disk("da", 0, mediasize=1 << 30)
    m.geom.swap(disk.provider)
    disk.provider.requests = 4
    disk.provider.finished = 0xFFFFFFFE - (1 << 32)
    kernel = opened(m, tmp_path)
    geom_io.check_provider_io(kernel)
    (finding,) = kernel.warnings
    assert finding.what == "provider da0"
    assert finding.detail == "nstart - nend says 4 in flight, 0 found"
    (ours,) = geom_io.provider_io(kernel).values()
    # The 32-bit counters have wrapped.
    assert ours.provider.nstart == 2
    assert ours.in_flight == 4
    assert ours.verdict == "unclear"


def test_free_bios_that_lie_in_the_zone_are_not_outstanding(tmp_path: Path) -> None:
    m = fresh()
    bios = queued(m, 4)
    zone = m.zones["bio"]
    zone.cache(5)
    kernel = opened(m, tmp_path)
    assert {o.bio.address for o in geom_io.outstanding(kernel)} == {b.obj.address for b in bios}


def test_events_waiting_for_g_event_are_listed_in_order(tmp_path: Path) -> None:
    m = fresh()
    disk = m.geom.disk("da", 0, mediasize=1 << 30)
    for function in ("g_new_provider_event", "g_spoil_event"):
        made = m.geom.event(function, disk.provider)
        m.write_pointer(made.at("ref"), disk.provider)
    m.services["g_event"].sleeps(m.take(8), "gread")
    kernel = opened(m, tmp_path)
    waiting = geom_kern.events(kernel)
    assert [e.func for e in waiting] == ["g_new_provider_event", "g_spoil_event"]
    assert [e.refs for e in waiting] == [("provider da0",)] * 2
    state = geom_kern.health(kernel)
    (event,) = [t for t in state.threads if t.role == "g_event"]
    assert (event.state, event.detail) == ("working", 'sleeps in "gread"')
    assert "g_run_events" in state.event_stack


def test_the_topology_lock_names_its_holder_and_waiters(tmp_path: Path) -> None:
    m = fresh()
    m.geom.disk("da", 0, mediasize=1 << 30)
    holder = m.procs.process("kldload").thread(calls=("kern_kldload",))
    holder.sleeps(m.take(8), "example")
    waiter = m.procs.process("gpart").thread(calls=("g_ctl_req",))
    lock = m.geom.topology_lock
    lock.owned_by(holder)
    lock.slept_on_by(waiter)
    kernel = opened(m, tmp_path)
    topology = geom_kern.topology_lock(kernel)
    assert topology is not None
    assert [h.thread.tid for h in topology.holders] == [holder.tid]
    assert [t.tid for t, _ in topology.waiters] == [waiter.tid]


def test_a_provider_in_error_is_marked_in_table_and_graph(tmp_path: Path) -> None:
    m = fresh()
    m.geom.disk("da", 0, mediasize=1 << 30).provider.fails(6)
    vmcore, elf = m.write(tmp_path)
    _, out, _ = answer(Dump(vmcore, elf), "provider")
    assert "clear, error 6" in out
    _, dot, _ = answer(Dump(vmcore, elf), "provider", "--dot")
    assert 'err#6\\nsector=512\\nstripe=0\\nerror 6",style=filled' in dot


def test_names_out_of_the_core_are_harmless_in_dot_and_xml(tmp_path: Path) -> None:
    m = fresh()
    disk = m.geom.disk("da", 0, mediasize=1 << 30)
    nasty = 'x"];\\<&>\x1b[2J'
    at = m.take(64)
    m.space.write(at, nasty.encode() + b"\0")
    disk.provider.obj["name"] = at
    vmcore, elf = m.write(tmp_path)
    _, dot, _ = answer(Dump(vmcore, elf), "provider", "--dot")
    assert 'label="x\\"];\\\\<&>?[2J\\nr0w0e0' in dot
    _, xml, _ = answer(Dump(vmcore, elf), "provider", "--xml")
    assert "\x1b" not in dot + xml
    names = [e.text for e in ElementTree.fromstring(xml).iter("name")]
    assert 'x"];\\<&>?[2J' in names
    _, text, _ = answer(Dump(vmcore, elf), "provider")
    assert "\x1b" not in text


def test_a_mesh_that_loops_is_cut_and_said_to_be(tmp_path: Path) -> None:
    m = fresh()
    disk = m.geom.disk("da", 0, mediasize=1 << 30)
    m.finish()
    (first, *_rest) = [g for g in m.geom.geoms if g.class_name == "DEV"]
    m.write_pointer(first.obj.at("geom.le_next"), first)
    vmcore, elf = m.write(tmp_path)
    status, out, _ = answer(Dump(vmcore, elf), "provider", "--json")
    report = json.loads(out)
    assert status == 3
    assert report["partial"]
    assert "geoms of class DEV" in {w["what"] for w in report["warnings"]}
    assert [p["name"] for p in report["data"]["providers"]] == ["da0"]
    assert disk.provider.name == "da0"


@pytest.mark.parametrize("osreldate", [1200086, 1402000])
def test_without_the_g_bio_zone_the_drivers_memory_is_searched(
    osreldate: int, tmp_path: Path
) -> None:
    m = Machine(osreldate, ram=64 * MB)
    disk = m.geom.disk("da", 0, mediasize=1 << 30)
    idle = m.geom.disk("da", 1, mediasize=1 << 30)
    m.geom.swap(disk.provider)
    consumer = m.geom.geoms[-1].consumers[0]
    clones = []
    for number in range(3):
        clones += m.geom.request(consumer, 1, number * 4096, 4096).to_device()
    # As drivers keep them: the softc points to requests, each of which has its bio.
    softc = disk.queue.address
    for number, clone in enumerate(clones):
        request = m.take(64)
        m.write_pointer(request + 24, clone)
        m.write_pointer(softc + 512 + number * m.pointer_size, request)
    m.finish()
    m.assign("biozone", 0)
    m.view("uma_zone", m.zones["bio"].__index__())["uz_name"] = m.string("another")
    kernel = opened(m, tmp_path)
    assert not geom_io.found_bios(kernel).whole
    assert [(w.what, kernel.warnings.partial) for w in kernel.warnings] == [("g_bio zone", True)]
    everything = {o.bio.address: o for o in geom_io.outstanding(kernel)}
    for clone in clones:
        assert everything[clone.obj.address].state == "at the device"
        assert everything[clone.obj.address].certainty == "inferred"
    owing, clear = (geom.mesh(kernel).providers[d.provider.obj.address] for d in (disk, idle))
    assert geom_io.provider_io(kernel)[owing.address].verdict == "owes"
    assert geom_io.provider_io(kernel)[owing.address].at_device == 3
    # The counters alone clear the other.
    assert geom_io.provider_io(kernel)[clear.address].verdict == "clear"
    assert geom_io.held_by_driver(kernel, owing).keys() == {c.obj.address for c in clones}


def test_the_threads_that_serve_a_geom_are_told_by_their_names(tmp_path: Path) -> None:
    m = fresh()
    disks = [m.geom.disk("da", unit, mediasize=1 << 30) for unit in range(3)]
    m.geom.mirror("gm0", disks[:2])
    m.geom.eli(disks[2])
    serving = {}
    for name in ("g_mirror gm0", "g_mirror gm01", "g_eli[0] da2", "g_eli[1] da2", "g_eli[0] da0"):
        thread = m.procs.kthread(name, "kernel", ("fork_exit",))
        thread.sleeps(m.take(8), "geli:w")
        serving[name] = thread.tid
    kernel = opened(m, tmp_path)

    def of(provider: str) -> List[int]:
        (found_one,) = geom.mesh(kernel).find(provider)
        assert found_one.geom is not None
        return [t.tid for t in geom_kern.workers(kernel, found_one.geom)]

    assert of("mirror/gm0") == [serving["g_mirror gm0"]]
    assert sorted(of("da2.eli")) == sorted([serving["g_eli[0] da2"], serving["g_eli[1] da2"]])
    assert of("da0") == []
