"""FreeBSD/armv7: dumps (minidumps only), saved registers, debuggers' names.

Unverified: written after sys/arm/include/{minidump,frame,pte-v6}.h and
lib/libkvm/kvm_minidump_arm.c (12.x to 14.x) and tried on dumps built by the tests, never on one
of a real machine.  The section of page-table entries holds a second-level descriptor for each
4 KB of kernel memory, a large page as sixteen alike; version 2 (13.0) adds dump_avail.  DDB
unwinds by .ARM.exidx, which nothing here reads: stacks go by frame pointers where there are any.
"""

from __future__ import annotations

import struct

from plugin.arch.common import (
    Architecture,
    Debuggers,
    KernelFile,
    MinidumpHeader,
    Minidumps,
    PhysicalRanges,
    ReadPhysical,
    Saved,
    Stacks,
    registers,
    saved,
)
from plugin.arch.space import AddressSpace, DirectMap, LinearSpace, Words
from plugin.errors import DumpError

#: the type of a descriptor: a large page, a small one, and with the second bit's neighbour one
#: that is not executable
_TYPE, _LARGE, _SMALL = 3, 1, 2
_LARGE_FRAME, _SMALL_FRAME = 0xFFFF0000, 0xFFFFF000

_HEADER = struct.Struct("<24x8I")


def minidump_header(head: bytes) -> MinidumpHeader:
    version, msgbuf, bitmap, ptes, kernbase, _, _, avail = _HEADER.unpack_from(head)
    return MinidumpHeader(
        version,
        msgbuf,
        bitmap,
        ptes,
        kernbase,
        dumpavailsize=avail if version >= 2 else 0,
        entry_size=4,
    )


class _Small(Words):
    """Descriptors, those of large pages as if each of their sixteen were of a small one."""

    def __init__(self, entries: Words, kernbase: int) -> None:
        self._entries = entries
        self._first = kernbase >> 12
        self.count = entries.count

    def __getitem__(self, index: int) -> int:
        entry = self._entries[index]
        if entry & _TYPE != _LARGE:
            return entry
        return entry & _LARGE_FRAME | (self._first + index & 0xF) << 12 | _SMALL


def minidump_space(header: MinidumpHeader, entries: Words, read: ReadPhysical) -> AddressSpace:
    small = _Small(entries, header.kernbase)
    return LinearSpace(small, header.kernbase, 12, _page_of, DirectMap())


def _page_of(entry: int) -> int:
    return entry & _SMALL_FRAME if entry & _SMALL else -1


def full_space(kernel: KernelFile, physical: PhysicalRanges, read: ReadPhysical) -> AddressSpace:
    raise DumpError("this is a full dump of an armv7 machine; FreeBSD/armv7 makes minidumps only")


_LOW = tuple(f"r{number}" for number in range(4))
_HIGH = tuple(f"r{number}" for number in range(4, 13))

ARCHITECTURE = Architecture(
    name="armv7",
    machine=40,
    pointer_size=4,
    page_size=4096,
    lowest=0xC0000000,
    minidumps=Minidumps(b"minidump FreeBSD/arm", (1, 2), minidump_header, minidump_space),
    full_space=full_space,
    stacks=Stacks(
        pcb=saved("pcb_regs.sf_", " ".join((*_HIGH, "sp", "lr", "pc"))),
        trapframe=(
            *saved("tf_", " ".join((*_LOW, *_HIGH))),
            Saved("tf_svc_sp", ("sp",)),
            Saved("tf_svc_lr", ("lr",)),
            *saved("tf_", "pc"),
        ),
        pc=("pc", "lr"),
        fp="r11",
        sp="sp",
        saved_fp=0,
        saved_pc=1,
        traps=frozenset(
            (
                "swi_entry",
                "data_abort_entry",
                "prefetch_abort_entry",
                "irq_entry",
                "undefined_entry",
            )
        ),
        trap_prefixes=(),
        trapframe_at=lambda frame: None,
        entries=frozenset(("swi_handler",)),
        trapframe_from=None,
        from_user=lambda registers: False,
    ),
    debuggers=Debuggers(
        gdb_names=("armv7", "arm"),
        lldb_names=("armv7", "arm"),
        triple="armv7-unknown-freebsd",
        feature="org.gnu.gdb.arm.core",
        registers=(
            *registers(" ".join(_HIGH), 32, "int"),
            *registers("sp lr", 32, "data_ptr"),
            *registers("pc", 32, "code_ptr"),
            *registers(" ".join(_LOW), 32, "int"),
            *registers("cpsr", 32, "int"),
        ),
        floating=frozenset(),
        dwarf={},
        roles={"pc": "pc", "sp": "sp", "fp": "r11", "ra": "lr", "flags": "cpsr"},
        machines=frozenset(("armv7",)),
    ),
)
