"""kprint: any struct decoded, its lists walked; on memory laid out here and on real machines."""

from __future__ import annotations

import json
from collections import deque
from typing import Any, Deque, Dict, List, Set, Tuple

import pytest

from plugin.errors import LayoutError
from plugin.hosts.runner import run_command
from plugin.opening import open_core, open_target
from plugin.session import Kernel
from plugin.structs.value import Link, Value, elements, find_link, head_of_symbol, values
from tests.conftest import RealDump
from tests.memory import MemoryTarget

BASE = 0xFFFFFE0000001000
WHERE = {"thread": BASE, "bio0": BASE + 0x1000, "bio1": BASE + 0x2000, "queue": BASE + 0x3000}


class Machine(MemoryTarget):
    """A 14.2 kernel with a queue of two bios, a mutex and a list of two processes."""

    def __init__(self) -> None:
        super().__init__("amd64")
        self.symbol("osreldate", BASE - 0x800, (1402000).to_bytes(4, "little"))
        self.symbol("version", BASE - 0x700, b"FreeBSD 14.2-RELEASE test\0".ljust(64, b"\0"))
        self.names["g_std_done"] = self.names["version"]._replace(
            name="g_std_done", address=0xFFFFFFFF80500000, size=64, kind="function"
        )

    def fill(self, layouts: Any, struct: str, address: int, **members: int) -> None:
        """A struct of zeroes with these members set (``__`` for a dot)."""
        self.put(address, bytes(layouts.sizeof(struct)))
        for path, value in members.items():
            member = layouts.resolve(struct, path.replace("__", "."))
            self.word(address + member.offset, value, member.size)


@pytest.fixture
def kernel() -> Kernel:
    machine = Machine()
    made = open_target(machine)
    layouts = made.layouts
    text = BASE + 0x4000
    machine.put(text, b"test queue\0".ljust(64, b"\0"))
    link = layouts.offsetof("bio", "bio_queue")
    machine.fill(
        layouts, "bio", WHERE["bio0"], bio_cmd=2, bio_flags=0x14, bio_offset=4096, bio_length=512,
        bio_done=0xFFFFFFFF80500010, bio_queue__tqe_next=WHERE["bio1"],
        bio_queue__tqe_prev=WHERE["queue"],
    )  # fmt: skip
    machine.fill(
        layouts, "bio", WHERE["bio1"], bio_cmd=99, bio_error=5,
        bio_queue__tqe_prev=WHERE["bio0"] + link,
    )  # fmt: skip
    machine.fill(
        layouts, "g_bioq", WHERE["queue"], bio_queue__tqh_first=WHERE["bio0"],
        bio_queue__tqh_last=WHERE["bio1"] + link, bio_queue_length=2,
        bio_queue_lock__lock_object__lo_name=text,
        bio_queue_lock__lock_object__lo_flags=0x1030000,
    )  # fmt: skip
    machine.symbol(
        "g_bio_run_down", WHERE["queue"], machine.read(WHERE["queue"], layouts.sizeof("g_bioq"))
    )
    machine.symbol("a_bio", BASE + 0x5000, WHERE["bio0"].to_bytes(8, "little"))
    machine.symbol("no_bio", BASE + 0x5100, bytes(8))
    return made


def run(kernel: Kernel, *argv: str) -> Tuple[int, str]:
    out: List[str] = []
    status = run_command("kprint", list(argv), lambda: kernel, out.append, out.append, width=200)
    return status, "".join(out)


def data(kernel: Kernel, *argv: str) -> Dict[str, Any]:
    status, out = run(kernel, *argv, "--json")
    assert status == 0, out
    found: Dict[str, Any] = json.loads(out)["data"]
    return found


def by_name(found: Dict[str, Any]) -> Dict[str, Dict[str, Any]]:
    return {member["name"]: member for member in found["members"]}


# One struct


def test_members_are_decoded(kernel: Kernel) -> None:
    members = by_name(data(kernel, "bio", hex(WHERE["bio0"])))
    assert (members["bio_cmd"]["value"], members["bio_cmd"]["meaning"]) == (2, "BIO_WRITE")
    assert members["bio_flags"]["meaning"] == "BIO_ONQUEUE | BIO_UNMAPPED"
    assert members["bio_done"]["value"] == "0xffffffff80500010"
    assert members["bio_done"]["meaning"] == "g_std_done+0x10"
    assert members["bio_data"]["meaning"] == "NULL"
    assert members["bio_offset"]["value"] == 4096
    assert members["bio_queue.tqe_next"]["value"] == hex(WHERE["bio1"])
    assert members["bio_cmd"]["address"] == hex(WHERE["bio0"])


def test_a_value_without_a_name_stays_a_number(kernel: Kernel) -> None:
    members = by_name(data(kernel, "bio", hex(WHERE["bio1"])))
    assert (members["bio_cmd"]["value"], members["bio_cmd"]["meaning"]) == (99, None)
    assert members["bio_error"]["value"] == 5


def test_structs_by_value_are_opened_as_deep_as_asked(kernel: Kernel) -> None:
    flat = by_name(data(kernel, "g_bioq", "g_bio_run_down", "--depth", "0"))
    assert flat["bio_queue_lock"]["meaning"] == "{struct mtx}"
    once = by_name(data(kernel, "g_bioq", "g_bio_run_down"))
    assert "bio_queue_lock.mtx_lock" in once
    assert once["bio_queue_lock.lock_object"]["meaning"] == "{struct lock_object}"
    twice = by_name(data(kernel, "g_bioq", "g_bio_run_down", "--depth", "2"))
    name = twice["bio_queue_lock.lock_object.lo_name"]
    assert name["meaning"] == '"test queue"'
    flags = twice["bio_queue_lock.lock_object.lo_flags"]
    assert flags["meaning"] == "LO_INITIALIZED | LO_WITNESS | 0x1000000"


def test_a_pointer_variable_is_followed(kernel: Kernel) -> None:
    """``kprint bio a_bio``, where a_bio is a struct bio *."""
    assert data(kernel, "bio", "a_bio")["address"] == hex(WHERE["bio0"])
    assert data(kernel, "struct bio", f"{WHERE['bio0']}")["address"] == hex(WHERE["bio0"])
    assert data(kernel, "bio", "*a_bio")["address"] == hex(WHERE["bio0"])
    assert run(kernel, "bio", "no_bio") == (
        1,
        "kprint: cannot read memory at 0x0: no_bio is NULL",
    )


def test_only_the_members_asked_for(kernel: Kernel) -> None:
    found = data(kernel, "g_bioq", "g_bio_run_down", "--members", "bio_queue_length,bio_queue_lock")
    names = {member["name"].split(".")[0] for member in found["members"]}
    assert names == {"bio_queue_length", "bio_queue_lock"}
    status, out = run(kernel, "bio", "a_bio", "--members", "bio_nothing")
    assert (status, "has no member 'bio_nothing'" in out) == (1, True)


def test_the_table_shows_what_people_read(kernel: Kernel) -> None:
    status, out = run(kernel, "bio", "a_bio")
    assert status == 0
    assert out.startswith(f"struct bio at {WHERE['bio0']:#x}")
    (line,) = [line for line in out.splitlines() if line.startswith("bio_flags")]
    assert line.split() == ["bio_flags", "0x14", "BIO_ONQUEUE", "|", "BIO_UNMAPPED", "uint16_t"]


def test_a_struct_that_is_half_there_shows_that_half(kernel: Kernel) -> None:
    target = kernel.target
    assert isinstance(target, Machine)
    half = BASE + 0x9000
    target.put(half, (3).to_bytes(2, "little") + bytes(62))
    status, out = run(kernel, "bio", hex(half), "--json")
    found = json.loads(out)
    assert status == 3
    assert found["partial"] is True
    members = by_name(found["data"])
    assert members["bio_cmd"]["meaning"] == "BIO_DELETE"
    assert (members["bio_done"]["value"], members["bio_done"]["meaning"]) == (None, "unreadable")
    assert found["warnings"][0]["address"] == hex(half + 64)


def test_arrays_and_bit_fields(kernel: Kernel) -> None:
    target = kernel.target
    assert isinstance(target, Machine)
    queue, segment = BASE + 0xA000, BASE + 0xB000
    target.fill(kernel.layouts, "sleepqueue", queue, sq_wchan=WHERE["bio0"], sq_type=3)
    target.word(queue + kernel.layouts.offsetof("sleepqueue", "sq_blockedcnt[1]"), 7, 4)
    members = by_name(data(kernel, "sleepqueue", hex(queue)))
    assert members["sq_blockedcnt"]["value"] == [0, 7]
    assert members["sq_type"]["meaning"] == "SLEEPQ_SX"
    assert members["sq_blocked[1].tqh_first"]["meaning"] == "NULL"
    target.fill(kernel.layouts, "system_segment_descriptor", segment)
    target.word(segment + 5, 0b11100000, 1)
    bits = by_name(data(kernel, "system_segment_descriptor", hex(segment)))
    assert (bits["sd_dpl"]["value"], bits["sd_p"]["value"], bits["sd_type"]["value"]) == (3, 1, 0)


def test_texts_are_shown_as_texts(kernel: Kernel) -> None:
    target = kernel.target
    assert isinstance(target, Machine)
    at = BASE + 0xC000
    target.put(at, bytes(kernel.layouts.sizeof("proc")))
    target.put(at + kernel.layouts.offsetof("proc", "p_comm"), b"\x1b[31mred\0")
    target.word(at + kernel.layouts.offsetof("proc", "p_state"), 2, 4)
    members = by_name(data(kernel, "proc", hex(at)))
    assert members["p_comm"]["value"] == "\x1b[31mred"
    assert members["p_state"]["meaning"] == "PRS_ZOMBIE"
    assert "\x1b" not in run(kernel, "proc", hex(at))[1]


# Lists


def addresses(found: Dict[str, Any]) -> List[str]:
    return [element["address"] for element in found["elements"]]


def test_a_list_is_walked_from_its_head(kernel: Kernel) -> None:
    """g_bioq.bio_queue heads bios, linked by their bio_queue: structs.yaml says so."""
    found = data(kernel, "g_bioq", "g_bio_run_down", "--list", "bio_queue")
    assert (found["struct"], found["link"]) == ("bio", "bio_queue")
    assert addresses(found) == [hex(WHERE["bio0"]), hex(WHERE["bio1"])]
    commands = {m["name"]: m["meaning"] or m["value"] for m in found["elements"][0]["members"]}
    assert commands["bio_cmd"] == "BIO_WRITE"


def test_a_list_is_walked_from_an_element(kernel: Kernel) -> None:
    found = data(kernel, "bio", hex(WHERE["bio1"]), "--list", "bio_queue")
    assert addresses(found) == [hex(WHERE["bio1"])]
    found = data(kernel, "bio", "a_bio", "--list", "bio_queue", "--members", "bio_offset")
    assert addresses(found) == [hex(WHERE["bio0"]), hex(WHERE["bio1"])]
    assert [m["name"] for m in found["elements"][0]["members"]] == ["bio_offset"]


def test_a_global_list_head_is_known_by_its_symbol(kernel: Kernel) -> None:
    target = kernel.target
    assert isinstance(target, Machine)
    one, two = BASE + 0xD000, BASE + 0xE000
    target.fill(kernel.layouts, "proc", one, p_pid=7, p_list__le_next=two)
    target.fill(kernel.layouts, "proc", two, p_pid=1)
    target.symbol("allproc", BASE + 0x6000, one.to_bytes(8, "little"))
    found = data(kernel, "proc", "allproc", "--list", "p_list", "--members", "p_pid")
    assert addresses(found) == [hex(one), hex(two)]
    assert [e["members"][0]["value"] for e in found["elements"]] == [7, 1]


def test_a_list_that_loops_ends_and_says_so(kernel: Kernel) -> None:
    target = kernel.target
    assert isinstance(target, Machine)
    link = kernel.layouts.offsetof("bio", "bio_queue.tqe_next")
    target.word(WHERE["bio1"] + link, WHERE["bio0"])
    status, out = run(kernel, "g_bioq", "g_bio_run_down", "--list", "bio_queue", "--json")
    found = json.loads(out)
    assert status == 3
    assert addresses(found["data"]) == [hex(WHERE["bio0"]), hex(WHERE["bio1"])]
    assert "loops back after 2 elements" in found["warnings"][0]["detail"]


def test_a_dangling_link_ends_the_list_with_what_was_read(kernel: Kernel) -> None:
    target = kernel.target
    assert isinstance(target, Machine)
    target.word(WHERE["bio1"] + kernel.layouts.offsetof("bio", "bio_queue.tqe_next"), 0xDEAD0000)
    status, out = run(kernel, "g_bioq", "g_bio_run_down", "--list", "bio_queue", "--json")
    found = json.loads(out)
    assert status == 3
    assert len(found["data"]["elements"]) == 2
    assert found["warnings"][0]["address"].startswith("0xdead0")


# What goes wrong


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["nothing", "0x10"], "no layout of struct nothing"),
        (["bio", "no_such_symbol"], "no symbol 'no_such_symbol'"),
        (["bio", "0x10"], "cannot read memory at 0x10"),
        (["bio", "a_bio+x"], "'x' is no offset"),
        (
            ["bio", "a_bio", "--list", "bio_cmd"],
            "no list head and no link; those it has: bio_queue",
        ),
        (["bio"], "required"),
    ],
)
def test_mistakes_are_told_in_one_line(kernel: Kernel, argv: List[str], says: str) -> None:
    status, out = run(kernel, *argv)
    assert status == 1
    assert says in out
    assert "\n" not in out.strip()


def test_every_struct_of_every_kernel_can_be_printed() -> None:
    """Whatever structs.yaml describes, over memory that is nothing but 0xff bytes."""
    for osreldate, arch in ((1402000, "amd64"), (700014, "i386"), (1500068, "arm64")):
        machine = MemoryTarget(arch)
        made = open_target_of(machine, osreldate)
        machine.put(0x1000, b"\xff" * 65536)
        shown = 0
        for name in made.layouts.sources[0].names():  # type: ignore[attr-defined]
            found = list(values(made, name, 0x1000, 3))
            shown += len(found)
            assert all(isinstance(value, Value) for value in found)
        assert shown > 1500


def open_target_of(machine: MemoryTarget, osreldate: int) -> Kernel:
    machine.symbol("osreldate", 0x100, osreldate.to_bytes(4, "little"))
    machine.symbol("version", 0x200, b"FreeBSD test\0".ljust(64, b"\0"))
    return open_target(machine)


# Real machines


def _back_pointers_agree(kernel: Kernel, link: Link, found: List[int]) -> bool:
    """True where each element's back pointer leads to a pointer to that element."""
    back = link.next_path.replace("_next", "_prev")
    if not kernel.layouts.has(link.struct, back):
        return True
    offset = kernel.layouts.offsetof(link.struct, back)
    return all(kernel.pointer(kernel.pointer(at + offset)) == at for at in found)


def test_every_list_that_structs_yaml_knows_is_whole_on_a_real_machine(real_dump: RealDump) -> None:
    """Which link a list's elements hang on is knowledge of ours: a real machine confirms it.

    From the global heads down, every list head met is walked; a wrong link would give
    elements whose back pointers lead elsewhere.
    """
    kernel = open_core(str(real_dump.vmcore), str(real_dump.kernel))
    kernel.start_command()
    layouts = kernel.layouts
    pending: Deque[Tuple[str, int]] = deque()
    walked: Dict[str, int] = {}
    for symbol, place in layouts.tables.heads.items():  # type: ignore[attr-defined]
        found = kernel.symbol(symbol)
        struct, _, member = place.partition(".")
        if found is not None:
            link = head_of_symbol(kernel, symbol, found.address, struct, member)
            assert link is not None, symbol
            there = list(elements(kernel, link))
            assert _back_pointers_agree(kernel, link, there), symbol
            walked[symbol] = len(there)
            pending += [(struct, at) for at in there]
    for symbol, struct in (
        ("sleepq_chains", "sleepqueue_chain"),
        ("turnstile_chains", "turnstile_chain"),
    ):
        size = kernel.symbol(symbol).size // layouts.sizeof(struct)  # type: ignore[union-attr]
        base = kernel.address_of(symbol)
        pending += [(struct, base + i * layouts.sizeof(struct)) for i in range(size)]
    seen: Set[Tuple[str, int]] = set()
    while pending:
        struct, at = pending.popleft()
        if (struct, at) in seen or not any(member.link for member in layouts[struct]):
            continue
        seen.add((struct, at))
        for member in layouts[struct]:
            # what a vm_object's union holds depends on its type
            if not member.link or member.name.startswith("un_pager."):
                continue
            names = [member.name]
            if member.element is not None:
                names = [f"{member.name}[{i}]" for i in range(member.element[1])]
            for name in names:
                link = find_link(kernel, struct, at, name)
                there = list(elements(kernel, link))
                assert _back_pointers_agree(kernel, link, there), f"{struct}.{name}"
                walked[f"{struct}.{member.name}"] = walked.get(f"{struct}.{member.name}", 0) + len(
                    there
                )
                pending += [(link.struct, element) for element in there]
    assert list(kernel.warnings) == []
    for name, least in {
        "allproc": 40, "g_classes": 8, "uma_kegs": 100, "proc.p_threads": 120, "g_class.geom": 18,
        "g_geom.provider": 7, "g_provider.consumers": 12, "mount.mnt_nvnodelist": 20,
        "sleepqueue.sq_blocked": 70, "sleepqueue_chain.sc_queues": 40, "turnstile.ts_blocked": 16,
        "thread.td_contested": 4,
    }.items():  # fmt: skip
        assert walked[name] >= least, name


def test_a_real_machine_is_printed(real_dump: RealDump) -> None:
    """Its mutex Giant, its processes by allproc, its GEOM classes: as DDB knows them."""
    kernel = open_core(str(real_dump.vmcore), str(real_dump.kernel))
    found = by_name(data(kernel, "mtx", "Giant", "--depth", "1"))
    assert found["lock_object.lo_name"]["meaning"].startswith('"Giant"')
    processes = data(kernel, "proc", "allproc", "--list", "p_list", "--members", "p_pid,p_comm")
    pids = {
        next(m["value"] for m in element["members"] if m["name"] == "p_pid")
        for element in processes["elements"]
    }
    assert {0, 1} <= pids
    classes = data(kernel, "g_class", "g_classes", "--list", "class", "--members", "name")
    names = {element["members"][0]["meaning"].split('"')[1] for element in classes["elements"]}
    assert {"DISK", "DEV", "VFS"} <= names
    with pytest.raises(LayoutError):
        kernel.layouts["no_such_struct"]
