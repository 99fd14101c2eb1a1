"""A kernel's file with frame information in it, for an lldb that cannot be given frames.

lldb 22 and later take the stacks that the frame pointers lead to from the plugin.  Older ones
unwind by call-frame information or by looking at code, which stripped kernels and dumps lack;
from 19 on they read zeros where a section has no bytes, and go wrong by them.  So they get a
copy of the file with a .debug_frame that says for every address what FreeBSD's kernels keep
to: the caller's frame lies where the frame pointer points, and behind a trap or interrupt
handler in the trap frame.  A copy, whose .text without bytes cannot be read.
"""

from __future__ import annotations

import os
import struct
from bisect import bisect_right
from typing import Iterator, List, Optional, Tuple

from plugin.arch.common import Architecture
from plugin.errors import LayoutError
from plugin.session import Kernel
from plugin.vmcore.elf import (
    FORMS,
    SHF_ALLOC,
    SHF_EXECINSTR,
    SHT_NOBITS,
    SHT_PROGBITS,
    ElfFile,
)

#: DWARF's (DWARF 4, section 7.23): operations of a call-frame program
_DEF_CFA, _OFFSET_EXTENDED_SF, _UNDEFINED, _NOP = 0x0C, 0x11, 0x07, 0x00
#: functions that userland enters the kernel by: nothing of the kernel's is behind them
_FROM_USER = ("fast_syscall", "Xfast_syscall", "Xint0x80", "Xlcall", "handle_el0", "int0x80")
#: bytes of a handler without a size at the most
_HANDLER = 4096
_OUTERMOST = ("fork_trampoline", "btext", "mpentry")


def write_frame_file(kernel: Kernel, elf: ElfFile, path: str) -> bool:
    """Write the copy to ``path``; False, and no file, where it would be of no use.

    That is: the file has frame information of its own, or DWARF's numbers of this
    architecture's registers are not known.
    """
    numbers = kernel.architecture.debuggers.dwarf
    if not numbers or any(s.name == ".debug_frame" and s.size for s in elf.sections):
        return False
    form = FORMS[elf.bits // 32]
    content = elf.pread(0, os.path.getsize(elf.plain_path))
    header = list(form.header.unpack_from(content))
    at, entry, count, names_at = header[5], header[10], header[11], header[12]
    if entry != form.section.size or not 0 < names_at < count:
        return False
    rows = [list(form.section.unpack_from(content, at + n * entry)) for n in range(count)]
    end = -(-len(content) // 16) * 16
    names = content[rows[names_at][4] :][: rows[names_at][5]] + b".debug_frame\0"
    frames = debug_frame(kernel, elf)
    rows.append([len(names) - 13, SHT_PROGBITS, 0, 0, end + len(names), len(frames), 0, 0, 8, 0])
    rows[names_at][4:6] = [end, len(names)]
    table = end + len(names) + len(frames)
    table += -table % 16
    for row in rows[:-1]:
        if row[1] == SHT_NOBITS and row[2] & SHF_ALLOC and row[2] & SHF_EXECINSTR:
            # Bytes that the file does not have, instead of zeros that it does.
            row[1], row[4] = SHT_PROGBITS, table + len(rows) * entry
    header[5], header[11] = table, len(rows)
    made = bytearray(content.ljust(end, b"\0") + names + frames)
    made += bytes(table - len(made))
    made += b"".join(form.section.pack(*row) for row in rows)
    ident = bytes(made[:16])
    made[: form.header.size] = form.header.pack(*header)
    made[:16] = ident
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(made)
    return True


def debug_frame(kernel: Kernel, elf: ElfFile) -> bytes:
    """The section: how to find the caller's registers from every address of the kernel's code."""
    arch = kernel.architecture
    numbers = arch.debuggers.dwarf
    size = arch.pointer_size
    made = [_entry(size, _cie(arch, "", _by_frame_pointer(arch)))]
    signal_cie = len(made[0])
    made.append(_entry(size, _cie(arch, "zS", b"\0")))
    trapped = _trap_rules(kernel)
    # Where nothing is behind it a frame still has to have a place.
    ends = bytes((_DEF_CFA,)) + _uleb(numbers[arch.stacks.sp]) + _uleb(size)
    ends += bytes((_UNDEFINED,)) + _uleb(numbers[_pc(arch)])
    covered: List[Tuple[int, int]] = []
    for start, stop, name in _special(elf, arch):
        covered.append((start, stop))
        leaves = name.startswith((*_FROM_USER, *_OUTERMOST))
        rules = ends if leaves or trapped is None else trapped
        made.append(_entry(size, _fde(size, signal_cie, start, stop, b"\0" + rules)))
    for start, stop in _rest(elf, covered):
        made.append(_entry(size, _fde(size, 0, start, stop, b"")))
    return b"".join(made)


def _pc(arch: Architecture) -> str:
    """The register whose column is the return address: the link register where there is one."""
    roles = arch.debuggers.roles
    return roles.get("ra", roles["pc"])


def _by_frame_pointer(arch: Architecture) -> bytes:
    stacks, size, numbers = arch.stacks, arch.pointer_size, arch.debuggers.dwarf
    above = max(2 + min(stacks.saved_fp, stacks.saved_pc), 0) * size
    return (
        bytes((_DEF_CFA,))
        + _uleb(numbers[stacks.fp])
        + _uleb(above)
        + _saved_at(numbers[stacks.fp], stacks.saved_fp * size - above, size)
        + _saved_at(numbers[_pc(arch)], stacks.saved_pc * size - above, size)
    )


def _trap_rules(kernel: Kernel) -> Optional[bytes]:
    """The rules behind a trap handler; None where its trap frame has no fixed place."""
    arch, layouts = kernel.architecture, kernel.layouts
    if arch.stacks.trapframe_from is None:
        return None
    try:
        size = layouts.sizeof("trapframe")
        places = dict(_trapframe(kernel))
    except LayoutError:
        return None
    base, begins = arch.stacks.trapframe_from
    numbers = arch.debuggers.dwarf
    # The frame is told by the end of its trap frame.
    rules = bytes((_DEF_CFA,)) + _uleb(numbers[base]) + _uleb(size if begins else 0)
    for name, at in places.items():
        if name in numbers:
            rules += _saved_at(numbers[name], at - size, arch.pointer_size)
    return rules


def _trapframe(kernel: Kernel) -> Iterator[Tuple[str, int]]:
    """Each register that a trap frame holds, and where."""
    width = kernel.pointer_size
    for saved in kernel.architecture.stacks.trapframe:
        if kernel.layouts.has("trapframe", saved.member):
            member = kernel.layouts.resolve("trapframe", saved.member)
            if member.size >= width * len(saved.registers):
                for number, name in enumerate(saved.registers):
                    yield name, member.offset + number * width


def _special(elf: ElfFile, arch: Architecture) -> Iterator[Tuple[int, int, str]]:
    """(start, end, name) of what enters the kernel and what nothing calls, each stretch once."""
    wanted = (*_FROM_USER, *_OUTERMOST)
    symbols = sorted(
        (s.address, s.size, s.name)
        for s in elf.all_symbols()
        if s.kind == "function" or arch.stacks.is_trap(s.name) or s.name.startswith(wanted)
    )
    starts = sorted({at for at, _, _ in symbols})
    last = 0
    for start, size, name in symbols:
        if not (arch.stacks.is_trap(name) or name.startswith(wanted)) or start < last:
            continue
        place = bisect_right(starts, start)
        following = starts[place] if place < len(starts) else start + _HANDLER
        last = start + size if size else min(following, start + _HANDLER)
        yield start, last, name


def _rest(elf: ElfFile, covered: List[Tuple[int, int]]) -> Iterator[Tuple[int, int]]:
    """What is left of the kernel's code."""
    for section in elf.sections:
        if section.flags & SHF_ALLOC and section.flags & SHF_EXECINSTR:
            at, end = section.addr, section.addr + section.size
            for start, stop in covered:
                if at <= start < end:
                    if at < start:
                        yield at, start
                    at = stop
            if at < end:
                yield at, end


def _cie(arch: Architecture, augmentation: str, rules: bytes) -> bytes:
    # What tells a CIE from what refers to one, and the version.
    return (
        b"\xff\xff\xff\xff\x01"
        + augmentation.encode()
        + b"\0"
        + _uleb(1)
        + _sleb(-arch.pointer_size)
        + bytes((arch.debuggers.dwarf[_pc(arch)],))
        + rules
    )


def _fde(size: int, cie: int, start: int, stop: int, rules: bytes) -> bytes:
    words = "<IQQ" if size == 8 else "<III"
    return struct.pack(words, cie, start, stop - start) + rules


def _entry(size: int, body: bytes) -> bytes:
    """An entry of .debug_frame: its length, then what it says, filled up to whole words."""
    body += bytes((_NOP,)) * (-(len(body) + 4) % size)
    return struct.pack("<I", len(body)) + body


def _saved_at(number: int, offset: int, size: int) -> bytes:
    return bytes((_OFFSET_EXTENDED_SF,)) + _uleb(number) + _sleb(offset // -size)


def _uleb(value: int) -> bytes:
    out = bytearray()
    while True:
        byte, value = value & 0x7F, value >> 7
        out.append(byte | (0x80 if value else 0))
        if not value:
            return bytes(out)


def _sleb(value: int) -> bytes:
    out = bytearray()
    while True:
        byte, value = value & 0x7F, value >> 7
        done = (value == 0 and not byte & 0x40) or (value == -1 and byte & 0x40)
        out.append(byte | (0 if done else 0x80))
        if done:
            return bytes(out)
