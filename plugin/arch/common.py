"""What a module of this package says of its architecture; all of it, or it is none.

``Architecture`` has no defaults but where an architecture may lack the thing
itself: a module that leaves something out is refused by Python and by mypy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, FrozenSet, Iterator, Mapping, NamedTuple, Optional, Protocol, Tuple

from plugin.arch.space import AddressSpace, Words
from plugin.symbol import Symbol

#: reads a stretch of physical memory, None where the dump has not all of it
ReadPhysical = Callable[[int, int], Optional[bytes]]


class KernelFile(Protocol):
    """The part of a kernel's ELF file that finding page tables takes."""

    path: str

    def symbol(self, name: str) -> Optional[Symbol]:
        """The symbol of that name, None if there is none."""
        ...


class PhysicalRanges(Protocol):
    """The part of a full dump's memory that finding page tables takes."""

    def ranges(self) -> Iterator[Tuple[int, int]]:
        """The [start, end) of each stretch of physical memory present."""
        ...


class MinidumpHeader(NamedTuple):
    """struct minidumphdr (sys/<arch>/include/minidump.h); sizes in bytes, 0 for what is lacking."""

    version: int
    msgbufsize: int
    bitmapsize: int
    #: of the section of page-table entries; ptesize on i386
    pmapsize: int
    kernbase: int
    dmapphys: int = 0
    dmapbase: int = 0
    dmapend: int = 0
    dumpavailsize: int = 0
    page_size: int = 4096
    #: bytes of a page-table entry
    entry_size: int = 8


@dataclass(frozen=True)
class Minidumps:
    """How the architecture's minidumps begin and map addresses."""

    #: the first bytes of the file
    magic: bytes
    versions: Tuple[int, ...]
    #: the header out of the first 128 bytes of a minidump
    header: Callable[[bytes], MinidumpHeader]
    space: Callable[[MinidumpHeader, Words, ReadPhysical], AddressSpace]


class Saved(NamedTuple):
    """A member of struct pcb or trapframe, and the registers it holds.

    A member that is an array holds as many as are named; where an array has changed
    its length over the years each length has its own entry.
    """

    member: str
    registers: Tuple[str, ...]


def saved(prefix: str, registers: str) -> Tuple[Saved, ...]:
    """Members named as their registers are, behind ``prefix``."""
    return tuple(Saved(prefix + name, (name,)) for name in registers.split())


class Frame(NamedTuple):
    """What is known at a function that a trap or an interrupt entered the kernel by."""

    #: its frame pointer
    fp: int
    #: the frame pointer of the function it called, None where that is not known
    callee: Optional[int]
    trapframe_size: int
    #: reads one pointer, or MemoryFault
    pointer: Callable[[int], int]
    name: str


@dataclass(frozen=True)
class Stacks:
    """Where the kernel saves registers, and how its frames link.

    Mirrors sys/<arch>/include/{pcb,frame}.h and db_trace.c.
    """

    pcb: Tuple[Saved, ...]
    trapframe: Tuple[Saved, ...]
    #: the registers that tell where a thread goes on: the first that is known
    pc: Tuple[str, ...]
    fp: str
    sp: str
    #: offset from the frame pointer of the caller's and of the return address, in pointers
    saved_fp: int
    saved_pc: int
    #: functions whose caller's state lies in a trap frame, by name and by prefix
    traps: FrozenSet[str]
    trap_prefixes: Tuple[str, ...]
    #: the address of that trap frame, None where it cannot be told
    trapframe_at: Callable[[Frame], Optional[int]]
    #: functions that only a system call or a trap of userland enters the kernel by
    entries: FrozenSet[str]
    #: the register from which on it lies, and whether that is where it begins or where it ends;
    #: None where it has no fixed place
    trapframe_from: Optional[Tuple[str, bool]]
    #: True for a trap frame, as registers, that userland was left with
    from_user: Callable[[Mapping[str, int]], bool]

    def is_trap(self, name: str) -> bool:
        """True for a function whose caller's state lies in a trap frame."""
        return name in self.traps or name.startswith(self.trap_prefixes)


class Register(NamedTuple):
    """One register of a target description; the order is the protocol's numbering."""

    name: str
    bits: int
    #: type in the target description's words
    type: str


def registers(names: str, bits: int, kind: str) -> Tuple[Register, ...]:
    """Registers of one width and type."""
    return tuple(Register(name, bits, kind) for name in names.split())


@dataclass(frozen=True)
class Debuggers:
    """What the debuggers call the architecture, and what they must be told of it."""

    #: gdb's names of it, the one for the target description first
    gdb_names: Tuple[str, ...]
    #: first words of lldb's triples
    lldb_names: Tuple[str, ...]
    #: lldb's triple
    triple: str
    #: gdb's name of the core registers' feature
    feature: str
    #: Register 0 is one that every pcb holds: lldb concludes from a failed read of
    #: register 0 that single registers cannot be read at all.
    registers: Tuple[Register, ...]
    #: registers of the floating-point unit among them, for the debuggers' groups
    floating: FrozenSet[str]
    #: DWARF's numbers of the registers that unwinding takes, {} where they are not known
    dwarf: Mapping[str, int]
    #: registers with a role: {"pc": "rip", "sp": "rsp", "fp": "rbp"}
    roles: Mapping[str, str]
    #: machines (uname -m) whose plain gdb debugs this one
    machines: FrozenSet[str]


@dataclass(frozen=True)
class Architecture:
    """One architecture of FreeBSD's, as uname -p names it."""

    name: str
    #: e_machine of its ELF files (sys/sys/elf_common.h)
    machine: int
    pointer_size: int
    #: bytes of a page where neither dump nor kernel say it
    page_size: int
    #: the lowest address that can be the kernel's
    lowest: int
    minidumps: Minidumps
    #: the address space of a full dump, found by the kernel's symbols, or DumpError
    full_space: Callable[[KernelFile, PhysicalRanges, ReadPhysical], AddressSpace]
    stacks: Stacks
    debuggers: Debuggers
