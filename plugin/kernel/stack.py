"""Registers of a thread that does not run, and its stack by frame pointers.

Mirrors kdb_thr_ctx() (sys/kern/subr_kdb.c) for where the registers are and
db_backtrace() (sys/<arch>/<arch>/db_trace.c) for how frames link, including
the trap frames that lie between them.
"""

from __future__ import annotations

import enum
import struct
from typing import Callable, Dict, FrozenSet, Iterator, List, NamedTuple, Optional, Tuple

from plugin.arch import common as arch
from plugin.caching import LAYOUT, MEMORY, cached
from plugin.errors import LayoutError, MemoryFault
from plugin.kernel.linker import linker_file_of
from plugin.kernel.proc import Thread
from plugin.session import Kernel
from plugin.structs.layout import Fields, Member

MAX_FRAMES = 128


#: functions and labels that no function calls: a stack ends there
_OUTERMOST = frozenset(("fork_trampoline", "btext", "begin", "mpentry", "init_secondary", "locore"))
#: labels behind the kernel's text: what lies there is no code, and so no return address
_NO_CODE = frozenset(("end", "_end", "edata", "_edata", "__bss_start", "etext"))
#: how far above the stack pointer a frame is looked for where the innermost one is lost
_LOOK_ABOVE = 4096
#: bytes of a sleeping thread's stack that are in use, roughly
_IN_USE = 1024
#: what saved the registers of the thread that dumped (sys/kern/kern_shutdown.c)
_SAVED_BY = frozenset(("dump_savectx", "savectx"))


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

    In order: the trap frame of the thread that entered the debugger; dumppcb
    for the thread that dumped; stoppcbs for a thread on a stopped CPU; td_pcb.
    That none was found because one cannot be read is a finding, unless it is swapped out.
    """
    return _saved_registers(kernel, thread)[0]


def _saved_registers(kernel: Kernel, thread: Thread) -> Tuple[Dict[str, int], bool]:
    """The registers, and whether they are those of the moment: td_pcb's of a thread that
    runs may be those of when it was last switched out."""
    lost: Optional[MemoryFault] = None
    for source in (_from_kdb_frame, _from_dumppcb, _from_stoppcbs, _from_td_pcb):
        try:
            found = source(kernel, thread)
        except MemoryFault as fault:
            lost = fault
            continue
        except LayoutError:
            continue
        if found.get("pc") and kernel.is_kernel_address(found["pc"]):
            return found, thread.state != "running" or source is not _from_td_pcb
    if lost is not None and not _swapped(kernel, thread):
        kernel.warnings.add("stack", lost.address, f"the registers of thread {thread.tid}")
    return {}, False


def _swapped(kernel: Kernel, thread: Thread) -> bool:
    """A stack that is swapped out is in no dump; that is no damage."""
    return bool(thread.inhibitors & kernel.layouts.constant("TDI_SWAPPED", 4))


def _from_kdb_frame(kernel: Kernel, thread: Thread) -> Dict[str, int]:
    if thread.state != "running" or kernel.global_value("kdb_thread", 0) != thread.address:
        return {}
    frame = kernel.global_value("kdb_frame", 0)
    return _roles(kernel, trapframe_registers(kernel, frame)) if frame else {}


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
    stacks = kernel.architecture.stacks
    wanted = frozenset((*stacks.pc, stacks.fp, stacks.sp)) if kernel.chosen else None
    return _roles(kernel, saved_registers(kernel, "pcb", address, wanted))


def trapframe_registers(kernel: Kernel, address: int) -> Dict[str, int]:
    """Every register that the struct trapframe at ``address`` holds, by its machine's name."""
    found = saved_registers(kernel, "trapframe", address)
    # i386 pushes no stack pointer within the kernel: it is where its member would be
    sp = kernel.architecture.stacks.sp
    if sp not in found and kernel.layouts.has("trapframe", "tf_esp"):
        found[sp] = address + kernel.layouts.offsetof("trapframe", "tf_esp")
    return found


def saved_registers(
    kernel: Kernel, struct: str, address: int, wanted: Optional[FrozenSet[str]] = None
) -> Dict[str, int]:
    """The registers in the struct pcb or struct trapframe at ``address``, by machine name.

    ``wanted``: members that hold none of these are not read.
    MemoryFault where it cannot be read, LayoutError where there is no such layout.
    """
    size, fields, names = _saved(kernel, struct, wanted)
    found: Dict[str, int] = {}
    for name, value in zip(names, fields.unpack(kernel.reader(fields)(address, size))):
        found.setdefault(name, value)
    pc = kernel.architecture.stacks.pc
    if found and pc[0] not in found:
        found.update((pc[0], found[name]) for name in pc[1:] if name in found)
    return found


@cached(LAYOUT)
def _saved(
    kernel: Kernel, name: str, wanted: Optional[FrozenSet[str]]
) -> Tuple[int, Fields, List[str]]:
    """Bytes of struct ``name``, what unpacks the registers it holds, and their names."""
    layouts = kernel.layouts
    stacks = kernel.architecture.stacks
    words: List[Member] = []
    for saved in stacks.pcb if name == "pcb" else stacks.trapframe:
        if not layouts.has(name, saved.member):
            continue
        if wanted is not None and wanted.isdisjoint(saved.registers):
            continue
        member = layouts.resolve(name, saved.member)
        # members of 4 bytes, such as flags, hold one register all the same
        several = len(saved.registers) > 1
        width = kernel.pointer_size if several else min(member.size, kernel.pointer_size)
        if width * len(saved.registers) != member.size:
            continue
        words += (
            member._replace(
                name=register, offset=member.offset + n * width, size=width, type="", ctype=""
            )
            for n, register in enumerate(saved.registers)
        )
    return layouts.sizeof(name), Fields(words), [word.name for word in words]


def _roles(kernel: Kernel, found: Dict[str, int]) -> Dict[str, int]:
    stacks = kernel.architecture.stacks
    names = (("pc", stacks.pc[0]), ("fp", stacks.fp), ("sp", stacks.sp))
    return {role: found[name] for role, name in names if name in found}


def frames(kernel: Kernel, thread: Thread) -> Iterator[Frame]:
    """Frames of a thread, innermost first, from where the kernel saved its registers."""
    start, sure = _saved_registers(kernel, thread)
    if start:
        fp = 0 if _swapped(kernel, thread) else start.get("fp", 0)
        yield from walk(kernel, start["pc"], fp, start.get("sp", 0), sure=sure)


class _Code(enum.Enum):
    """What lies at a program counter, for a walk up the frames."""

    FUNCTION = "function"
    TRAP = "trap"
    OUTERMOST = "outermost"
    NONE = "none"


class _Place(NamedTuple):
    """The function that covers a program counter; ``symbol`` is False where none is known."""

    name: str
    offset: int
    kind: _Code
    symbol: bool


@cached(MEMORY)
def _places(kernel: Kernel) -> Dict[int, _Place]:
    """{program counter: what lies there}: sleeping threads have few of them."""
    return {}


def _place(kernel: Kernel, pc: int) -> _Place:
    found = kernel.covering(pc)
    if found and found[0] in _NO_CODE:
        if linker_file_of(kernel, pc) is None:
            return _Place(*found, _Code.NONE, True)
        found = None
    if found is None:
        # A module's functions may have no symbol here, their frames link as all do.
        return _Place(_in_module(kernel, pc), 0, _Code.FUNCTION, False)
    if found[0] in _OUTERMOST:
        return _Place(*found, _Code.OUTERMOST, True)
    trap = kernel.architecture.stacks.is_trap(found[0])
    return _Place(*found, _Code.TRAP if trap else _Code.FUNCTION, True)


@cached(LAYOUT)
def _record(kernel: Kernel) -> Tuple[int, int, Callable[[bytes], Tuple[int, ...]]]:
    """Where a frame record lies from the frame pointer, its bytes, and what unpacks pc and fp."""
    stacks, size = kernel.architecture.stacks, kernel.pointer_size
    low = min(stacks.saved_fp, stacks.saved_pc)
    words = Fields(
        [
            Member(name, (at - low) * size, size, "", "")
            for name, at in (("pc", stacks.saved_pc), ("fp", stacks.saved_fp))
        ]
    )
    return low * size, words.span, words.unpack


def walk(kernel: Kernel, pc: int, fp: int, sp: int = 0, *, sure: bool = False) -> Iterator[Frame]:
    """Frames from these registers on.

    Where the chain leads to no memory that is a finding, if the registers are ``sure``.

    A frame pointer that decreases is no end: NMI and IST stacks lie anywhere.
    """
    stacks = kernel.architecture.stacks
    size = kernel.pointer_size
    above = max(2 + min(stacks.saved_fp, stacks.saved_pc), 0) * size
    callee: Optional[int] = sp - above if sp else None
    low, span, record = _record(kernel)
    places = _places(kernel)
    seen = set()
    exact = True
    for _ in range(MAX_FRAMES):
        if not kernel.is_kernel_address(pc):
            return
        # A return address may be the first byte of the next function where the
        # call does not return, so look one byte before it.
        where = pc if exact else pc - 1
        place = places.get(where)
        if place is None:
            place = places[where] = _place(kernel, where)
        if place.kind is _Code.NONE:
            return
        name = place.name
        yield Frame(pc, fp, name, place.offset if exact else place.offset + 1, sp)
        if place.kind is _Code.OUTERMOST or (fp, pc) in seen:
            return
        seen.add((fp, pc))
        try:
            if place.kind is _Code.TRAP:
                trapped = _trapped(kernel, name, fp, callee)
                if trapped is None:
                    return
                pc, fp, sp, callee, exact = *trapped, None, True
                continue
            if name in _SAVED_BY and exact:
                fp = _unbroken(kernel, fp, sp)
            if not fp or fp % size:
                return
            callee = fp
            pc, fp = record(kernel.exactly(fp + low, span))
            sp = callee + above
            exact = False
        except MemoryFault as fault:
            # With 32 bits what userland's frames point at cannot be told from the kernel's.
            known = place.symbol and size == 8 and kernel.is_kernel_address(fault.address)
            if sure and known:
                kernel.warnings.add("stack", fault.address, f"is cut short above {name}()")
            return
        except LayoutError:
            return


def _trapped(
    kernel: Kernel, name: str, fp: int, callee: Optional[int]
) -> Optional[Tuple[int, int, int]]:
    """pc, fp and sp that the trap or interrupt ``name`` was entered with; None from userland.

    MemoryFault and LayoutError where the trap frame cannot be read.
    """
    stacks = kernel.architecture.stacks
    at = stacks.trapframe_at(
        arch.Frame(fp, callee, kernel.layouts.sizeof("trapframe"), kernel.pointer, name)
    )
    if at is None:
        return None
    found = trapframe_registers(kernel, at)
    if stacks.from_user(found):
        return None
    roles = _roles(kernel, found)
    return roles.get("pc", 0), roles.get("fp", 0), roles.get("sp", 0)


def _unbroken(kernel: Kernel, fp: int, sp: int) -> int:
    """The frame to go on with from where the registers were saved for a dump.

    dump_savectx() has returned since, and what the dump itself called lies where
    its frame was; the frames of its callers are whole.  The first two linked
    frame records at or above the stack pointer are theirs.
    """
    size = kernel.pointer_size
    if _links_on(kernel, fp):
        return fp
    start = (sp or fp) & -size
    for at in range(start, start + _LOOK_ABOVE, size):
        if _links_on(kernel, at):
            return at
    return fp


def _links_on(kernel: Kernel, fp: int) -> bool:
    """True where a frame record at ``fp`` returns into code and leads up to one that does too."""
    size = kernel.pointer_size
    low, span, record = _record(kernel)
    for _ in range(2):
        try:
            pc, above = record(kernel.exactly(fp + low, span))
        except MemoryFault:
            return False
        if above % size or not fp < above < fp + (1 << 16) or not _is_code(kernel, pc - 1):
            return False
        fp = above
    return True


def _is_code(kernel: Kernel, pc: int) -> bool:
    if not kernel.is_kernel_address(pc):
        return False
    found = kernel.covering(pc)
    if found is None:
        return linker_file_of(kernel, pc) is not None
    return found[0] not in _NO_CODE and any(
        symbol.kind == "function" for symbol in kernel.symbols(found[0])
    )


def _in_module(kernel: Kernel, pc: int) -> str:
    """ "zfs.ko+0x1234", or the plain address where no module is known to lie."""
    module = linker_file_of(kernel, pc)
    return f"{module.filename}+{pc - module.base:#x}" if module else f"{pc:#x}"


def backtrace(kernel: Kernel, thread: Thread) -> List[str]:
    """Function names of a thread's stack, innermost first."""
    return [frame.function for frame in frames(kernel, thread)]


@cached(MEMORY)
def stack_words(kernel: Kernel, thread: Thread) -> FrozenSet[int]:
    """The aligned words in use on a thread's kernel stack; none where it cannot be read."""
    if not kernel.affords("stacks of threads that may hold a lock", _IN_USE):
        return frozenset()
    top = thread.kstack + thread.kstack_size
    low = registers(kernel, thread).get("sp", 0)
    if not thread.kstack <= low < top:
        low = thread.kstack
    low -= low % kernel.pointer_size
    try:
        raw = kernel.read(low, min(top - low, 1 << 17))
    except MemoryFault as fault:
        what = f"stack of thread {thread.tid}"
        kernel.warnings.add(what, fault.address, f"its words: {fault.reason}")
        return frozenset()
    code = "Q" if kernel.pointer_size == 8 else "I"
    return frozenset(struct.unpack_from(f"<{len(raw) // kernel.pointer_size}{code}", raw))
