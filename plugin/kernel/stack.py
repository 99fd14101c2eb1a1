"""Registers of a thread that does not run, and its stack by frame pointers.

Mirrors kdb_thr_ctx() (sys/kern/subr_kdb.c) for where the registers are and
db_backtrace() (sys/<arch>/<arch>/db_trace.c) for how frames link, including
the trap frames that lie between them.
"""

from __future__ import annotations

import struct
from typing import Dict, FrozenSet, Iterator, List, NamedTuple, Optional, Tuple

from plugin.caching import MEMORY, cached
from plugin.errors import LayoutError, MemoryFault
from plugin.kernel.linker import linker_file_of
from plugin.kernel.proc import Thread
from plugin.session import Kernel

MAX_FRAMES = 128


class _Arch(NamedTuple):
    """Names in struct pcb and struct trapframe, and where a frame keeps its links."""

    pc: Tuple[str, ...]
    fp: Tuple[str, ...]
    sp: Tuple[str, ...]
    tf_pc: str
    tf_fp: str
    #: offset from fp of the caller's fp and of the return address, in pointers
    saved_fp: int
    saved_pc: int


# pcb_x was x0..x30 on arm64 to 14.0 and is x19..lr since (sys/arm64/include/pcb.h);
# the number after ":" is the array index.
_ARCH = {
    "amd64": _Arch(("pcb_rip",), ("pcb_rbp",), ("pcb_rsp",), "tf_rip", "tf_rbp", 0, 1),
    "i386": _Arch(("pcb_eip",), ("pcb_ebp",), ("pcb_esp",), "tf_eip", "tf_ebp", 0, 1),
    "arm64": _Arch(
        ("pcb_lr", "pcb_pc", "pcb_x:-1"), ("pcb_x:fp",), ("pcb_sp",), "tf_elr", "tf_x:29", 0, 1
    ),
    "riscv64": _Arch(("pcb_ra",), ("pcb_s:0",), ("pcb_sp",), "tf_sepc", "tf_s:0", -2, -1),
}

#: Functions whose caller's state lies in a trap frame above theirs.
_TRAP_NAMES = frozenset(
    (
        "calltrap",
        "alltraps",
        "nmi_calltrap",
        "fast_syscall_common",
        "Xtss",
        "Xnmi",
        "Xdblfault",
        "Xpage",
        "Xdbg",
        "Xint0x80_syscall",
        "fork_trampoline_trap",
    )
)
_TRAP_PREFIXES = (
    "Xtimerint",
    "Xapic_isr",
    "Xatpic_intr",
    "Xcpu",
    "Xipi",
    "Xinvl",
    "Xrendezvous",
    "Xlazypmap",
    "Xxen",
    "Xerrorint",
    "Xcmcint",
)
_OUTERMOST = frozenset(("fork_trampoline", "btext", "begin", "mpentry", "init_secondary", "locore"))


class Frame(NamedTuple):
    """One frame: program counter, frame and stack pointer, function that covers the pc."""

    pc: int
    fp: int
    function: str
    offset: int
    sp: int


def stoppcb_address(kernel: Kernel, cpu: int) -> Optional[int]:
    """Address of stoppcbs[cpu]: an array to 14.0, a pointer from 14.1 (subr_smp.c)."""
    symbol = kernel.symbol("stoppcbs")
    if symbol is None:
        return None
    stride = kernel.layouts.sizeof("pcb")
    if symbol.size > kernel.pointer_size or not symbol.size:
        if symbol.size and (cpu + 1) * stride > symbol.size:
            return None
        return symbol.address + cpu * stride
    base = kernel.pointer(symbol.address)
    return base + cpu * stride if base else None


def registers(kernel: Kernel, thread: Thread) -> Dict[str, int]:
    """pc, fp and sp of a thread, from where the kernel saved them; {} if nowhere.

    In order: the target's own registers; the trap frame of the thread that entered
    the debugger; dumppcb for the thread that dumped; stoppcbs for a thread on a
    stopped CPU; td_pcb.
    """
    for source in (_from_kdb_frame, _from_dumppcb, _from_stoppcbs, _from_td_pcb):
        try:
            found = source(kernel, thread)
        except (MemoryFault, LayoutError):
            continue
        if found.get("pc") and kernel.is_kernel_address(found["pc"]):
            return found
    return {}


def _from_kdb_frame(kernel: Kernel, thread: Thread) -> Dict[str, int]:
    if thread.state != "running" or kernel.global_value("kdb_thread", 0) != thread.address:
        return {}
    frame = kernel.global_value("kdb_frame", 0)
    return _from_trapframe(kernel, frame) if frame else {}


def _from_dumppcb(kernel: Kernel, thread: Thread) -> Dict[str, int]:
    if not kernel.has_symbol("dumppcb") or kernel.global_value("dumptid", 0) != thread.tid:
        return {}
    return pcb_registers(kernel, kernel.address_of("dumppcb"))


def _from_stoppcbs(kernel: Kernel, thread: Thread) -> Dict[str, int]:
    if thread.state != "running" or thread.cpu is None:
        return {}
    address = stoppcb_address(kernel, thread.cpu)
    return pcb_registers(kernel, address) if address else {}


def _from_td_pcb(kernel: Kernel, thread: Thread) -> Dict[str, int]:
    return pcb_registers(kernel, thread.pcb) if thread.pcb else {}


def pcb_registers(kernel: Kernel, address: int) -> Dict[str, int]:
    """pc, fp and sp out of the struct pcb at ``address``."""
    arch = _ARCH[kernel.arch]
    return {
        name: value
        for name, value in (
            ("pc", _saved(kernel, "pcb", address, arch.pc)),
            ("fp", _saved(kernel, "pcb", address, arch.fp)),
            ("sp", _saved(kernel, "pcb", address, arch.sp)),
        )
        if value is not None
    }


def _saved(kernel: Kernel, struct: str, address: int, names: Tuple[str, ...]) -> Optional[int]:
    for name in names:
        member, _, index = name.partition(":")
        if not kernel.layouts.has(struct, member):
            continue
        found = kernel.layouts.resolve(struct, member)
        at = address + found.offset
        if index:
            count = found.size // kernel.pointer_size
            # arm64: of x19..x29,lr (12 entries) fp is the 11th, of x0.. it is x29.
            slot = {"fp": 10 if count == 12 else 29, "-1": count - 1}.get(index)
            slot = int(index) if slot is None else slot
            if slot >= count:
                continue
            at += slot * kernel.pointer_size
        return kernel.pointer(at)
    return None


def _from_trapframe(kernel: Kernel, address: int) -> Dict[str, int]:
    arch = _ARCH[kernel.arch]
    pc = _saved(kernel, "trapframe", address, (arch.tf_pc,))
    fp = _saved(kernel, "trapframe", address, (arch.tf_fp,))
    return {"pc": pc or 0, "fp": fp or 0, "trapframe": address}


def frames(kernel: Kernel, thread: Thread) -> Iterator[Frame]:
    """Frames of a thread, innermost first, from where the kernel saved its registers."""
    start = registers(kernel, thread)
    if start:
        yield from walk(kernel, start["pc"], start.get("fp", 0), start.get("sp", 0))


def walk(kernel: Kernel, pc: int, fp: int, sp: int = 0) -> Iterator[Frame]:
    """Frames from these registers on; ends quietly where the chain does.

    A frame pointer that decreases is no end: NMI and IST stacks lie anywhere.
    """
    arch = _ARCH[kernel.arch]
    size = kernel.pointer_size
    called = sp - 2 * size
    seen = set()
    exact = True
    for _ in range(MAX_FRAMES):
        # A return address may be the first byte of the next function where the
        # call does not return, so look one byte before it.
        if not kernel.is_kernel_address(pc):
            return
        found = kernel.target.symbolize(pc if exact else pc - 1)
        # A module's functions have no symbol here, their frames link as all do.
        name, offset = found or (_in_module(kernel, pc), 0)
        yield Frame(pc, fp, name, offset if exact else offset + 1, sp)
        if name in _OUTERMOST or (fp, pc) in seen:
            return
        seen.add((fp, pc))
        try:
            if is_trap(name):
                # The trap frame lies where the called function was called from; fp is
                # already the interrupted function's (db_nextframe, db_trace.c).
                sp = called + 2 * size
                state = _from_trapframe(kernel, sp)
                pc, fp, exact = state["pc"], state["fp"], True
                sp += kernel.layouts.sizeof("trapframe")
                continue
            if not fp or fp % size:
                return
            called = fp
            pc = kernel.pointer(fp + arch.saved_pc * size)
            fp = kernel.pointer(fp + arch.saved_fp * size)
            sp = called + 2 * size
            exact = False
        except (MemoryFault, LayoutError):
            return


def _in_module(kernel: Kernel, pc: int) -> str:
    """ "zfs.ko+0x1234", or the plain address where no module is known to lie."""
    module = linker_file_of(kernel, pc)
    return f"{module.filename}+{pc - module.base:#x}" if module else f"{pc:#x}"


def is_trap(name: str) -> bool:
    """True for a function whose caller's state lies in a trap frame."""
    return name in _TRAP_NAMES or name.startswith(_TRAP_PREFIXES)


def backtrace(kernel: Kernel, thread: Thread) -> List[str]:
    """Function names of a thread's stack, innermost first.

    The target's own unwinder where it has one, else frame pointers.
    """
    own = kernel.target.backtrace(thread.tid)
    if own:
        return [function for _, function in own]
    return [frame.function for frame in frames(kernel, thread)]


@cached(MEMORY)
def stack_words(kernel: Kernel, thread: Thread) -> FrozenSet[int]:
    """The aligned words in use on a thread's kernel stack; none where it cannot be read."""
    top = thread.kstack + thread.kstack_size
    low = registers(kernel, thread).get("sp", 0)
    if not thread.kstack <= low < top:
        low = thread.kstack
    low -= low % kernel.pointer_size
    try:
        raw = kernel.read(low, min(top - low, 1 << 17))
    except (MemoryFault, LayoutError):
        return frozenset()
    code = "Q" if kernel.pointer_size == 8 else "I"
    return frozenset(struct.unpack_from(f"<{len(raw) // kernel.pointer_size}{code}", raw))
