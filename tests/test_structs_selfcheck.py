"""A kernel contradicts wrong layouts by its own figures; what fits is found, and said."""

from __future__ import annotations

from pathlib import Path
from typing import Dict, List, Mapping, Optional, Sequence, Tuple

import pytest

from plugin.errors import LayoutError, MemoryFault
from plugin.opening.layouts import choose_layouts
from plugin.structs import Layouts
from plugin.structs.choose import choose_yaml
from plugin.structs.ctf import Ctf
from plugin.structs.selfcheck import Contradiction, check, options_of, zone_sizes
from plugin.structs.yamlfile import StructsFile, read_kernel
from plugin.symbol import Symbol
from plugin.targets.core import CoreTarget
from plugin.vmcore import open_memory
from plugin.vmcore.elf import ElfFile
from plugin.vmcore.memory import CarriedModule
from tests.conftest import RealDump
from tests.structs_typegraph import ctf
from tests.test_ctf import kernel_graph

FILE = StructsFile()


def layouts_of(name: str) -> Layouts:
    data = read_kernel(FILE, f"yaml:{name}", FILE.row(name), {})
    return Layouts([data], data)


class Machine:
    """A kernel that consists of the witnesses of its layouts: symbols, zones, constants.

    Made from the layouts of one kernel, to be held against those of others.
    """

    stable = True
    in_pages = False
    carried: Mapping[str, CarriedModule] = {}
    wire = None
    page_size = 0
    truncated = False
    files = ()
    message_buffer = b""
    description = "a kernel made of its own witnesses"

    def __init__(
        self, kernel: str, zones: Sequence[str] = ("PROC", "VNODE", "g_bio", "SLEEPQUEUE")
    ) -> None:
        self.layouts = layouts_of(kernel)
        self.arch = FILE.row(kernel).arch
        self.width = 4 if self.arch == "i386" else 8
        self.memory: Dict[int, bytes] = {}
        self.named: Dict[str, Symbol] = {}
        self._next = 0x1000
        for name, struct in (("proc0", "proc"), ("Giant", "mtx"), ("topology_lock", "sx")):
            self.variable(name, bytes(self.layouts.sizeof(struct)))
        thread = self.layouts.sizeof("thread")
        self.variable("thread0_st", bytes(thread + 80))
        self.variable("sleepq_chains", bytes(4 * self.layouts.sizeof("sleepqueue_chain")))
        self.variable("smp_ipi_mtx", bytes(self.layouts.sizeof("mtx")))
        self._zones(zones)

    def variable(self, name: str, data: bytes) -> int:
        at = self._next
        self._next += len(data) + 64
        self.memory[at] = data
        self.named[name] = Symbol(name, at, len(data), "object", False)
        return at

    def number(self, name: str, value: int) -> None:
        self.variable(name, value.to_bytes(4, "little"))

    def _struct(self, struct: str, **values: int) -> bytes:
        data = bytearray(self.layouts.sizeof(struct))
        for path, value in values.items():
            member = self.layouts.resolve(struct, path.replace("__", "."))
            data[member.offset : member.offset + member.size] = value.to_bytes(
                member.size, "little"
            )
        return bytes(data)

    def _zones(self, names: Sequence[str]) -> None:
        sizes = {"PROC": "proc", "VNODE": "vnode", "g_bio": "bio", "SLEEPQUEUE": "sleepqueue"}
        following = 0
        for i, name in enumerate(names):
            text = self.variable(f"name{i}", name.encode() + bytes(40))
            size = self.layouts.sizeof(sizes[name])
            own = {"uz_size": size} if self.layouts.has("uma_zone", "uz_size") else {}
            zone = self.variable(f"zone{i}", self._struct("uma_zone", uz_name=text, **own))
            keg = self._struct(
                "uma_keg", uk_link__le_next=following, uk_zones__lh_first=zone, uk_size=size
            )
            following = self.variable(f"keg{i}", keg)
        self.variable("uma_kegs", following.to_bytes(self.width, "little"))

    # a Target

    def read(self, address: int, size: int) -> bytes:
        for at, data in self.memory.items():
            if at <= address < at + len(data):
                found = data[address - at : address - at + size]
                if len(found) == size:
                    return found
        raise MemoryFault(address)

    def symbols(self, name: str) -> List[Symbol]:
        return [self.named[name]] if name in self.named else []

    def symbolize(self, address: int) -> Optional[Tuple[str, int]]:
        return None

    def types(self, notes: List[str]) -> Optional[Ctf]:
        return None

    def interrupted(self) -> bool:
        return False


def sizes_wrong(found: Sequence[Contradiction]) -> set[str]:
    return {contradiction.struct for contradiction in found if not contradiction.member}


# The checks


def test_a_kernel_does_not_contradict_its_own_layouts() -> None:
    machine = Machine("14.2-amd64")
    assert check(machine, machine.layouts) == []
    assert zone_sizes(machine, machine.layouts)["VNODE"] == machine.layouts.sizeof("vnode")


def test_wrong_layouts_are_contradicted_with_both_figures() -> None:
    """15.0's layouts on a 14.2 kernel: its symbol sizes and its zones say otherwise."""
    machine = Machine("14.2-amd64")
    found = check(machine, layouts_of("15.0-amd64"))
    assert {"proc", "thread"} <= sizes_wrong(found)
    proc = next(c for c in found if c.struct == "proc")
    assert (proc.says, proc.layout) == (1376, 1368)
    assert str(proc) == "size of proc: 1368 in the layouts, 1376 by the variable proc0, 1376 bytes"


def test_the_offsets_that_the_kernel_exports_are_believed() -> None:
    machine = Machine("14.2-amd64")
    layouts = machine.layouts
    machine.number("thread_off_td_tid", layouts.offsetof("thread", "td_tid"))
    machine.number("thread_off_td_name", layouts.offsetof("thread", "td_name") + 8)
    machine.number("pcb_size", layouts.sizeof("pcb") + 64)
    found = {(c.struct, c.member): c for c in check(machine, layouts)}
    assert set(found) == {("thread", "td_name"), ("pcb", "")}
    assert "thread_off_td_name" in str(found["thread", "td_name"])


def test_read_only_pages_dumped_as_zeroes_contradict_nothing() -> None:
    machine = Machine("14.2-amd64")
    for name in ("thread_off_td_tid", "thread_off_td_name", "proc_off_p_pid", "pcb_size"):
        machine.number(name, 0)
    assert check(machine, machine.layouts) == []


def test_a_symbol_without_a_size_or_unreadable_zones_contradict_nothing() -> None:
    machine = Machine("14.2-amd64")
    machine.named["proc0"] = machine.named["proc0"]._replace(size=0)
    machine.named["uma_kegs"] = machine.named["uma_kegs"]._replace(address=0x10)
    assert check(machine, machine.layouts) == []


def test_a_loop_among_the_zones_ends() -> None:
    machine = Machine("14.2-amd64", zones=("PROC",))
    keg = machine.named["keg0"].address
    offset = machine.layouts.offsetof("uma_keg", "uk_link.le_next")
    data = machine.memory[keg]
    machine.memory[keg] = data[:offset] + keg.to_bytes(8, "little") + data[offset + 8 :]
    assert zone_sizes(machine, machine.layouts) == {"PROC": 1376}


@pytest.mark.parametrize(
    ("symbols", "options"),
    [
        ((), set()),
        (("vm_object_zdtor",), {"INVARIANTS"}),
        (("w_mtx", "uma_dbg_cnt"), {"INVARIANTS", "WITNESS"}),
    ],
)
def test_options_are_told_by_symbols(symbols: Sequence[str], options: set[str]) -> None:
    machine = Machine("14.2-amd64")
    for name in symbols:
        machine.variable(name, bytes(8))
    assert options_of(machine) == options


def test_uniprocessor_is_told_by_what_is_not_there() -> None:
    machine = Machine("7.0c-700014-i386-up")
    del machine.named["smp_ipi_mtx"]
    assert options_of(machine) == {"UP"}
    # a stub symbol table proves nothing
    del machine.named["proc0"]
    assert options_of(machine) == set()


# The choice


def test_an_undisputed_choice_is_made_without_a_word() -> None:
    selection = choose_layouts(Machine("14.2-amd64"), 1402000)
    assert selection.layouts.name == "yaml:14.2-amd64"
    assert selection.notes == []


def test_options_that_no_symbol_told_are_found_by_the_zones() -> None:
    """Stripped of local symbols, a debug kernel still has larger sleepqueues and bios."""
    selection = choose_layouts(Machine("14.2-amd64-debug"), 1402000)
    assert selection.layouts.sizeof("sleepqueue") == 88
    assert selection.layouts.sizeof("bio") == 384
    assert {"INVARIANTS", "BUF_TRACKING"} <= selection.variant


def test_hardenedbsd_is_told_from_freebsd_by_its_threads() -> None:
    """A kernel that calls itself 15.1: FreeBSD's layouts do not fit, HardenedBSD's do."""
    machine = Machine("15.1hbsd-amd64")
    selection = choose_layouts(machine, 1501000)
    assert selection.layouts.name == "yaml:15.1hbsd-amd64"
    (note,) = selection.notes
    assert "those of 15.0-amd64 do not" in note
    assert "size of" in note
    plain = choose_layouts(Machine("15.0-amd64"), 1501000)
    assert plain.layouts.name == "yaml:15.0-amd64"


def test_layouts_that_no_kernel_has_are_refused_with_the_evidence() -> None:
    machine = Machine("14.2-amd64")
    machine.variable("thread0_st", bytes(1696 + 80))
    machine.variable("proc0", bytes(1000))
    with pytest.raises(LayoutError) as caught:
        choose_layouts(machine, 1402000)
    assert "size of thread: 1776 in the layouts, 1696 by the variable thread0_st" in str(
        caught.value
    )
    assert "structs generate" in str(caught.value)
    forced = choose_layouts(machine, 1402000, force=True)
    assert any("used all the same, as forced" in note for note in forced.notes)


def test_a_struct_of_no_consequence_is_refused_alone() -> None:
    """Only what needs the struct fails, and says why."""
    machine = Machine("14.2-amd64")
    machine.variable("topology_lock", bytes(24))
    selection = choose_layouts(machine, 1402000)
    assert any("struct sx is refused" in note for note in selection.notes)
    assert selection.layouts.sizeof("thread") == 1776
    with pytest.raises(LayoutError, match="no layout of struct sx"):
        selection.layouts.sizeof("sx")


def test_a_struct_that_grew_within_its_branch_keeps_its_members() -> None:
    """14.3 may append to struct proc: what is known stays in place, the size is the kernel's."""
    machine = Machine("14.2-amd64", zones=())
    machine.variable("proc0", bytes(1376 + 16))
    selection = choose_layouts(machine, 1403000)
    assert selection.layouts.sizeof("proc") == 1392
    assert selection.layouts.offsetof("proc", "p_comm") == 992
    assert any("grown at its end" in note for note in selection.notes)


def test_debug_information_comes_before_structs_yaml(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layouts out of the kernel's own CTF, constants and decoders out of structs.yaml."""
    graph, _ = kernel_graph("15.0-amd64")
    machine = Machine("14.2-amd64")
    monkeypatch.setattr(machine, "types", lambda notes: Ctf.from_bytes(ctf(graph), 8))
    selection = choose_layouts(machine, 1402000)
    assert selection.layouts.name == "ctf"
    assert selection.layouts.sizeof("proc") == 1368
    assert selection.layouts.resolve("bio", "bio_cmd").decoder == "bio_cmd"
    # of a branch that structs.yaml does not know the nearest constants are taken, and that is said
    newer = choose_layouts(machine, 1600001)
    assert newer.layouts.name == "ctf"
    assert newer.layouts.constant("LK_SHARERS_SHIFT") == 5
    assert "constants and decoders are those of 15." in newer.notes[0]


def test_the_debug_information_of_another_kernel_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A symbol file loaded by hand need not be this kernel's; that is said, not decided."""
    right, _ = kernel_graph("14.2-amd64")
    wrong, _ = kernel_graph("15.0-amd64")
    machine = Machine("14.2-amd64")
    monkeypatch.setattr(machine, "types", lambda notes: Ctf.from_bytes(ctf(right), 8))
    assert choose_layouts(machine, 1402000).notes == []
    monkeypatch.setattr(machine, "types", lambda notes: Ctf.from_bytes(ctf(wrong), 8))
    notes = choose_layouts(machine, 1402000).notes
    assert any("may be another kernel's: size of proc: 1368" in note for note in notes)


def test_damaged_debug_information_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its type table cut short: structs.yaml is taken, and why is said."""
    graph, _ = kernel_graph("14.2-amd64")
    machine = Machine("14.2-amd64")
    monkeypatch.setattr(machine, "types", lambda notes: Ctf.from_bytes(ctf(graph)[:-9000], 8))
    selection = choose_layouts(machine, 1402000)
    assert selection.layouts.name == "yaml:14.2-amd64"
    assert "debug information is not used" in selection.notes[0]


def test_structs_of_ones_own_come_before_debug_information(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    graph, _ = kernel_graph("14.2-amd64")
    machine = Machine("14.2-amd64")
    monkeypatch.setattr(machine, "types", lambda notes: Ctf.from_bytes(ctf(graph), 8))
    mine = tmp_path / "mine.yaml"
    mine.write_text("struct: my_softc\nsize: 8\nmembers: |\n  0 4 sc_busy: int\n")
    layouts = choose_layouts(machine, 1402000, override=str(mine)).layouts
    assert [source.name for source in layouts.sources][:2] == [f"yaml:{mine}", "ctf"]
    assert layouts.offsetof("my_softc", "sc_busy") == 0
    assert layouts.sizeof("bio") == 376


# Real kernels


REAL = {
    "14.2-amd64-storage-hang": ("14.2-amd64", 1402000, "14.0c-1400063-amd64", "14.2-amd64-debug"),
    "12.1-amd64-storage-hang": ("12.1-amd64", 1201000, "12.0-amd64", "12.0-amd64-debug"),
}


@pytest.fixture
def real(real_dump: RealDump) -> Tuple[str, CoreTarget]:
    kernel = ElfFile(real_dump.kernel)
    return real_dump.name, CoreTarget(open_memory(real_dump.vmcore, kernel), kernel)


def test_a_real_kernel_agrees_with_its_layouts_and_with_no_others(
    real: tuple[str, CoreTarget],
) -> None:
    """Symbol sizes and zones of a real machine: 0 contradictions for the right kernel."""
    name, target = real
    right, _, wrong, debug = REAL[name]
    assert check(target, layouts_of(right)) == []
    assert {"proc", "vmspace"} <= sizes_wrong(check(target, layouts_of(wrong)))
    assert {"sleepqueue", "bio"} <= sizes_wrong(check(target, layouts_of(debug)))
    assert options_of(target) == set()
    zones = zone_sizes(target, layouts_of(right))
    thread = layouts_of(right)
    assert zones["THREAD"] == thread.sizeof("thread") + thread.sizeof("td_sched")
    assert len(zones) > 90


def test_a_real_kernel_gets_its_layouts_whatever_it_is_said_to_be(
    real: tuple[str, CoreTarget],
) -> None:
    """A wrong version within the branch is put right; another branch is refused."""
    name, target = real
    right, osreldate, wrong, _ = REAL[name]
    assert choose_layouts(target, osreldate).notes == []
    misled = choose_layouts(target, FILE.row(wrong).first)
    assert misled.layouts.name == f"yaml:{right}"
    assert f"those of {wrong} do not" in misled.notes[0]
    with pytest.raises(LayoutError, match=r"no layouts in structs\.yaml fit this kernel"):
        choose_layouts(target, 1300139)


def test_choosing_needs_no_more_than_the_shipped_file(tmp_path: Path) -> None:
    """Every kernel of structs.yaml recognizes itself among all of its branch."""
    for row in FILE.rows:
        machine = Machine(row.name)
        selection = choose_layouts(machine, row.first)
        mine = machine.layouts
        for struct in ("thread", "proc", "bio", "vnode", "sleepqueue", "mtx"):
            assert selection.layouts.sizeof(struct) == mine.sizeof(struct), (row.name, struct)
    assert choose_yaml(1402000, "amd64").exact
