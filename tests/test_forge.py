"""The forge places C structs by the product's own layouts and links them as sys/queue.h does."""

from __future__ import annotations

from typing import List

import pytest

from plugin.errors import LayoutError, UsageError
from tests.forge.builder import Obj
from tests.forge.machine import Machine

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


@pytest.fixture(scope="module")
def machine() -> Machine:
    return Machine(1402000)


# Structs


def test_members_are_written_where_the_layouts_say(machine: Machine) -> None:
    bio = machine.new("bio", bio_cmd=2, bio_offset=1 << 40, bio_length=512)
    layout = machine.layouts["bio"]
    raw = machine.space.read(bio.address, layout.size)
    at = layout.members["bio_offset"].offset
    assert int.from_bytes(raw[at : at + 8], "little") == 1 << 40
    assert (bio["bio_cmd"], bio["bio_length"]) == (2, 512)


def test_a_path_leads_through_structs_held_by_value(machine: Machine) -> None:
    buf = machine.new("buf")
    buf["b_lock.lock_object.lo_flags"] = 0x6010000
    assert buf.sub("b_lock").sub("lock_object")["lo_flags"] == 0x6010000


def test_arrays_are_indexed_anonymous_ones_too() -> None:
    new, old = Machine(1402000), Machine(903000)
    queue = new.new("sleepqueue")
    queue["sq_blockedcnt[1]"] = 7
    assert queue["sq_blockedcnt[1]"] == 7
    assert queue["sq_blockedcnt[0]"] == 0
    # struct { ... } sq_blocked[2] in 9.3, struct threadqueue sq_blocked[2] since 12.
    for machine in (new, old):
        first, second = (
            machine.locate("sleepqueue", f"sq_blocked[{n}].tqh_first").offset for n in (0, 1)
        )
        assert second - first == 2 * machine.pointer_size


def test_strings_functions_and_objects_become_pointers(machine: Machine) -> None:
    provider = machine.new("g_provider", name="da7")
    bio = machine.new("bio", bio_to=provider, bio_done="g_std_done")
    assert bio["bio_to"] == provider.address
    assert bio["bio_done"] == machine.symbols["g_std_done"].address
    assert machine.space.read(provider["name"], 4) == b"da7\0"


def test_text_fills_char_arrays(machine: Machine) -> None:
    thread = machine.new("thread", td_name="worker")
    assert thread["td_name"].rstrip(b"\0") == b"worker"
    with pytest.raises(UsageError, match="td_name holds 20 bytes"):
        thread["td_name"] = "x" * 30


def test_a_member_this_kernel_lacks_is_an_error_unless_probed(machine: Machine) -> None:
    provider = machine.new("g_provider")
    with pytest.raises(LayoutError, match="nstart"):
        provider["nstart"] = 1
    provider.probe(nstart=1, mediasize=4096)
    assert provider["mediasize"] == 4096


def test_one_name_one_variable(machine: Machine) -> None:
    machine.variable("example_counter", 5, size=4)
    with pytest.raises(UsageError, match="example_counter"):
        machine.variable("example_counter")


# Lists: every entry's back pointer is the address of the pointer that leads to it


def _three(machine: Machine) -> List[Obj]:
    return [machine.new("bio") for _ in range(3)]


def test_tailq(machine: Machine) -> None:
    head, bios = machine.take(16), _three(machine)
    machine.tailq(head, "bio_queue", bios)
    pointer = machine.read_pointer
    link = machine.locate("bio", "bio_queue.tqe_next").offset
    assert pointer(head) == bios[0].address
    assert [b["bio_queue.tqe_next"] for b in bios] == [bios[1].address, bios[2].address, 0]
    assert [b["bio_queue.tqe_prev"] for b in bios] == [
        head,
        bios[0].address + link,
        bios[1].address + link,
    ]
    assert pointer(head + 8) == bios[2].address + link


def test_an_empty_tailq_points_at_itself(machine: Machine) -> None:
    head = machine.take(16)
    machine.tailq(head, "bio_queue", [])
    assert (machine.read_pointer(head), machine.read_pointer(head + 8)) == (0, head)


def test_list(machine: Machine) -> None:
    head = machine.take(8)
    consumers = [machine.new("g_consumer") for _ in range(3)]
    machine.list(head, "consumers", consumers)
    assert [c["consumers.le_next"] for c in consumers] == [
        consumers[1].address,
        consumers[2].address,
        0,
    ]
    assert [c["consumers.le_prev"] for c in consumers] == [
        head,
        consumers[0].at("consumers"),
        consumers[1].at("consumers"),
    ]


def test_stailq_and_slist() -> None:
    machine = Machine(700014, "i386")
    head = machine.take(8)
    stats = [machine.new("devstat") for _ in range(3)]
    machine.stailq(head, "dev_links", stats)
    assert machine.read_pointer(head + 4) == stats[2].at("dev_links")
    # pc_allcpu is an SLIST in 700014, an STAILQ later.
    head = machine.take(4)
    machine.slist(head, "pc_allcpu", machine.pcpus)
    assert machine.pcpus[0]["pc_allcpu.sle_next"] == machine.pcpus[1].address


# Any kernel of structs.yaml


@pytest.mark.parametrize(("osreldate", "arch"), EVERY)
def test_an_idle_machine_of_any_version_can_be_described(osreldate: int, arch: str) -> None:
    machine = Machine(osreldate, arch)
    machine.finish()
    assert machine.symbols["allproc"].address
    assert "g_down" in machine.services


@pytest.mark.parametrize(("osreldate", "arch"), EVERY)
def test_structs_of_known_variables_have_the_declared_size(osreldate: int, arch: str) -> None:
    machine = Machine(osreldate, arch)
    machine.finish()
    declared = machine.layouts.tables.globals  # type: ignore[attr-defined]
    for name, symbol in machine.symbols.items():
        type_ = declared.get(name, "")
        if type_.startswith("struct ") and "[" not in type_:
            assert symbol.size == machine.sizeof(type_.split()[1]), name


def test_a_version_structs_yaml_does_not_have_is_refused() -> None:
    with pytest.raises(LayoutError, match="1100000"):
        Machine(1100000)
