"""The target inside gdb and kgdb, and wchan's commands there.

Works with gdb's Python API as of gdb 12; what is newer is used where it is there.
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import (
    TYPE_CHECKING,
    Any,
    Dict,
    Hashable,
    Iterator,
    List,
    Mapping,
    Optional,
    Sequence,
    Set,
    Tuple,
)

import gdb
import gdb.unwinder

from plugin import interrupt
from plugin.errors import EXIT_FAILED, MemoryFault, WchanError
from plugin.hosts import debugger as shared
from plugin.kernel import stack
from plugin.session import Kernel
from plugin.structs.ctype import Field, Node, base_name
from plugin.targets import Symbol
from plugin.targets.image import KernelImage
from plugin.targets.types import DebuggerTypes

if TYPE_CHECKING:
    from plugin.structs import LayoutSource
    from plugin.vmcore import KernelMemory

_ARCHES = {"i386:x86-64": "amd64", "i386": "i386", "aarch64": "arm64", "riscv:rv64": "riscv64"}
_NAME = re.compile(r"^[A-Za-z_.$][\w.$]*$")
_FAULT = re.compile(r"0x[0-9a-f]+")
_INFO_SYMBOL = re.compile(r"^(\S+)(?: \+ (\d+))? in section ")
_RECORDS = {
    gdb.TYPE_CODE_STRUCT: "struct",
    gdb.TYPE_CODE_UNION: "union",
    gdb.TYPE_CODE_ENUM: "enum",
}
_MAX_FRAMES = 128
#: gdb's names of pc, fp and sp
_UNWOUND = {
    "amd64": ("rip", "rbp", "rsp"),
    "i386": ("eip", "ebp", "esp"),
    "arm64": ("pc", "x29", "sp"),
}


class GdbTarget:
    """What gdb debugs now; memory from gdb, or from the dump's file where given."""

    def __init__(self, memory: Optional[KernelMemory]) -> None:
        inferior = gdb.selected_inferior()
        arch = _architecture(inferior)
        if arch not in _ARCHES:
            raise WchanError(f"gdb debugs a {arch} program; wchan knows {', '.join(_ARCHES)}")
        if inferior.pid == 0 and not inferior.threads():
            raise WchanError("no kernel is being debugged: open a dump or connect first")
        self.arch = _ARCHES[arch]
        self.description = "gdb"
        self.memory = memory
        self.truncated = memory is not None and memory.truncated
        self.stable = not _is_live()
        self._inferior = inferior
        self.image = KernelImage.open(gdb.current_progspace().filename)
        if self.image is not None:
            self.image.slide = _slide(self.image)
        #: what gdb can unwind by, in the kernel file or in a separate debug file
        self.has_frame_information = any(map(_has_frame_information, gdb.objfiles()))
        self._symbolized: Dict[int, Optional[Tuple[str, int]]] = {}
        if memory is not None:
            self.description = memory.path
            self.page_size = memory.page_size
            # An instance attribute: no call of ours between a walk and the file.
            self.read = memory.read  # type: ignore[method-assign]

    def read(self, address: int, size: int) -> bytes:
        if size <= 0:
            return b""
        try:
            return bytes(self._inferior.read_memory(address, size))
        except (gdb.MemoryError, OverflowError) as error:
            raise MemoryFault(_fault_address(str(error), address, size), "gdb cannot") from None
        except gdb.error as error:
            raise MemoryFault(address, str(error)) from None

    @property
    def message_buffer(self) -> bytes:
        """The copy of the message buffer that the dump itself carries, b"" if none."""
        return self.memory.message_buffer if self.memory is not None else b""

    # Symbols

    def symbols(self, name: str) -> Sequence[Symbol]:
        found = self.image.symbols(name) if self.image else []
        if found or not _NAME.match(name):
            return found
        # In a module, or there is no file to read: ask gdb.
        try:
            value = gdb.parse_and_eval("&" + name)
            kind = value.type.strip_typedefs()
            if kind.code != gdb.TYPE_CODE_PTR:
                return []
            code = kind.target().strip_typedefs().code
            what = "function" if code == gdb.TYPE_CODE_FUNC else "object"
            return [Symbol(name, int(value) & ((1 << 64) - 1), 0, what, False)]
        except gdb.error:
            return []

    def symbolize(self, address: int) -> Optional[Tuple[str, int]]:
        if address not in self._symbolized:
            found = self.image.symbolize(address) if self.image else None
            self._symbolized[address] = found or _info_symbol(address)
        return self._symbolized[address]

    # Threads

    def registers(self, tid: int) -> Optional[Mapping[str, int]]:
        """Every register gdb has a value of, by gdb's names; None if no such thread."""
        with _Selected(self._inferior, tid) as selected:
            if not selected:
                return None
            try:
                frame = gdb.newest_frame()
                return dict(_frame_registers(frame))
            except gdb.error:
                return None

    def backtrace(self, tid: int) -> Optional[Sequence[Tuple[int, str]]]:
        """gdb's own frames, where it has call-frame information to find them by.

        Without it gdb guesses from code bytes, and the frame pointers that every
        FreeBSD kernel keeps are the better guide: None then.
        """
        if not self.has_frame_information:
            return None
        with _Selected(self._inferior, tid) as selected:
            return list(_frames()) if selected else None

    def types(self) -> Optional[LayoutSource]:
        found = GdbTypes(4 if self.arch == "i386" else 8)
        if found.find("thread") is not None:
            return found
        # CTF, or a debug file beside the kernel that only our own readers know.
        self.type_notes: List[str] = []
        return self.image.types(self.type_notes) if self.image else None

    def interrupted(self) -> bool:
        return interrupt.requested()


class GdbTypes(DebuggerTypes):
    """Layouts out of the debug information that gdb has read."""

    def find(self, name: str) -> Optional[Any]:
        for kind in ("struct", "union"):
            with suppress(gdb.error):
                found = gdb.lookup_type(f"{kind} {name}")
                if found.sizeof and found.fields():
                    return found
        return None

    def describe(self, type_: Any) -> Node:
        bare = type_.unqualified()
        if type_ != bare:
            if type_ == bare.const():
                return self.qualified(["const"], bare)
            if type_ == bare.volatile():
                return self.qualified(["volatile"], bare)
            return self.qualified(["const", "volatile"], bare)
        code = type_.code
        if code == gdb.TYPE_CODE_VOID:
            return Node("void")
        if code == gdb.TYPE_CODE_TYPEDEF:
            return Node("typedef", type_.name, target=self.ref(type_.target()))
        if code in _RECORDS:
            return Node(_RECORDS[code], type_.tag or "", type_.sizeof)
        if code == gdb.TYPE_CODE_PTR:
            return Node("pointer", size=type_.sizeof, target=self.ref(type_.target()))
        if code == gdb.TYPE_CODE_ARRAY:
            low, high = type_.range()
            # Of a flexible array only the size tells.
            count = high - low + 1 if type_.sizeof else None
            return Node("array", target=self.ref(type_.target()), elements=count)
        if code == gdb.TYPE_CODE_FUNC:
            params: List[Optional[int]] = [self.ref(field.type) for field in type_.fields()]
            if str(type_).endswith("...)"):
                params.append(None)
            return Node("function", target=self.ref(type_.target()), params=tuple(params))
        return Node("base", base_name(type_.name or "void"), type_.sizeof)

    def members(self, type_: Any) -> List[Field]:
        return [
            Field(field.name or "", self.ref(field.type), field.bitpos, field.bitsize)
            for field in type_.fields()
            if hasattr(field, "bitpos")
        ]


def _architecture(inferior: Any) -> str:
    try:
        value: str = inferior.architecture().name()
        return value
    except gdb.error as error:
        raise WchanError(f"gdb debugs nothing: {error}") from None


def _is_live() -> bool:
    """True where memory moves while gdb looks at it (kgdb on /dev/mem)."""
    connection = getattr(gdb.selected_inferior(), "connection", None)
    if connection is None:
        return False
    details = f"{connection.type} {getattr(connection, 'details', None) or ''}"
    return "/dev/" in details or connection.type in ("native", "kvm")


def _fault_address(message: str, address: int, size: int) -> int:
    """The first bad address, which gdb names only in its message."""
    for text in _FAULT.findall(message):
        if address <= int(text, 16) < address + size:
            return int(text, 16)
    return address


def _info_symbol(address: int) -> Optional[Tuple[str, int]]:
    try:
        text = gdb.execute(f"info symbol {address:#x}", to_string=True)
    except gdb.error:
        return None
    match = _INFO_SYMBOL.match(text)
    return (match.group(1), int(match.group(2) or 0)) if match else None


def _frames() -> Iterator[Tuple[int, str]]:
    try:
        frame = gdb.newest_frame()
        for _ in range(_MAX_FRAMES):
            if frame is None:
                return
            yield frame.pc(), frame.name() or ""
            frame = frame.older()
    except gdb.error:
        # A frame that cannot be unwound further ends the stack.
        return


def _frame_registers(frame: Any) -> Iterator[Tuple[str, int]]:
    for descriptor in frame.architecture().registers("general"):
        try:
            value = frame.read_register(descriptor.name)
            if not value.is_optimized_out:
                yield descriptor.name, int(value) & ((1 << 64) - 1)
        except (gdb.error, ValueError, TypeError):
            # Not known of this thread, or no integer.
            continue


class _Selected:
    """Selects a thread by its kernel tid for a while; False where there is none."""

    def __init__(self, inferior: Any, tid: int) -> None:
        self._thread = next(
            (t for t in inferior.threads() if tid in (t.ptid[1], t.ptid[2])),
            None,
        )
        self._before: Any = None
        self._frame: Any = None

    def __enter__(self) -> bool:
        if self._thread is None:
            return False
        self._before = gdb.selected_thread()
        try:
            self._frame = gdb.selected_frame()
        except gdb.error:
            self._frame = None
        self._thread.switch()
        return True

    def __exit__(self, *_: object) -> None:
        if self._before is not None and self._before.is_valid():
            self._before.switch()
            if self._frame is not None and self._frame.is_valid():
                self._frame.select()


def _has_frame_information(objfile: Any) -> bool:
    image = KernelImage.open(objfile.filename)
    return image is not None and image.has_frame_information


def _slide(image: KernelImage) -> int:
    """How far gdb has moved the kernel from where the file says it lies.

    Read from "info files": evaluating an expression would ask for the selected
    frame, and the unwinder may be what asks.
    """
    try:
        text = gdb.execute("info files", to_string=True)
    except gdb.error:
        return 0
    for section in image.elf.sections:
        if section.name == ".text":
            found = re.search(r"^\s*(0x[0-9a-f]+) - 0x[0-9a-f]+ is \.text$", text, re.MULTILINE)
            return int(found.group(1), 16) - section.addr if found else 0
    return 0


class GdbDebugger:
    """gdb as the session sees it (shared.Debugger)."""

    name = "gdb"

    def __init__(self) -> None:
        self._moves = 0
        events = ("stop", "cont", "exited", "new_objfile", "clear_objfiles", "memory_changed")
        for event in (*events, "connection_removed"):
            registry = getattr(gdb.events, event, None)
            if registry is not None:
                registry.connect(self._moved)

    def _moved(self, _: object) -> None:
        self._moves += 1

    def state(self) -> Hashable:
        inferior = gdb.selected_inferior()
        return self._moves, inferior.num, inferior.pid, gdb.current_progspace().filename

    def ask_server(self, packet: str) -> str:
        try:
            text = gdb.execute(f"maintenance packet {packet}", to_string=True)
        except gdb.error:
            return ""
        match = re.search(r'received: "([^"]*)"', text)
        return match.group(1) if match else ""

    def target(self, memory: Optional[KernelMemory]) -> GdbTarget:
        return GdbTarget(memory)

    def kernel_file(self) -> Optional[str]:
        value: Optional[str] = gdb.current_progspace().filename
        return value


#: pc, fp and sp of a frame
_Key = Tuple[int, int, int]


class KernelUnwinder(gdb.unwinder.Unwinder):  # type: ignore[misc]
    """Unwinds FreeBSD kernels by frame pointers, and through trap frames.

    gdb itself finds its way by call-frame information, which FreeBSD's kernels
    have only with debug information, or by looking at code, which a dump may
    lack; the frame an interrupt or trap leaves it does not know at all.
    """

    def __init__(self, debugger: GdbDebugger, session: shared.Session) -> None:
        super().__init__("wchan")
        self._debugger = debugger
        self._session = session
        self._busy = False
        self._state: Hashable = None
        self._kernel: Optional[Kernel] = None
        #: the frame that called, and what this one is told apart by
        self._links: Dict[_Key, Tuple[Optional[stack.Frame], int]] = {}
        #: walks to go on with at a frame, and the caller's greatest identity so far
        self._walks: Dict[_Key, Tuple[Iterator[stack.Frame], int]] = {}

    def __call__(self, pending: Any) -> Any:
        names = _UNWOUND.get(_ARCHES.get(pending.architecture().name(), ""))
        # While the kernel is opened gdb may ask for frames again.
        if names is None or self._busy:
            return None
        self._busy = True
        try:
            return self._unwind(pending, names)
        except (gdb.error, WchanError):
            return None
        finally:
            self._busy = False

    def _unwind(self, pending: Any, names: Tuple[str, str, str]) -> Any:
        kernel = self._current()
        if kernel is None:
            return None
        values = [pending.read_register(name) for name in names]
        if any(value.is_optimized_out for value in values):
            return None
        mask = (1 << 8 * kernel.pointer_size) - 1
        pc, fp, sp = (int(value) & mask for value in values)
        link = self._link(kernel, (pc, fp, sp))
        if link is None:
            return None
        older, identity = link
        found = kernel.target.symbolize(pc)
        own = getattr(kernel.target, "has_frame_information", False)
        if own and not (found and stack.is_trap(found[0])):
            return None
        start = pc - found[1] if found else pc
        info = pending.create_unwind_info(_FrameId(identity, start))
        # A program counter of 0 is how gdb is told that there is no older frame.
        saved = (older.pc, older.fp, older.sp) if older else (0, fp, identity + 16)
        for name, value, kind in zip(names, saved, values):
            info.add_saved_register(name, gdb.Value(value).cast(kind.type))
        if names[0] == "pc":
            # The unwinder that gdb asks beyond our last frame looks for the link register.
            link = pending.read_register("x30")
            info.add_saved_register("x30", gdb.Value(saved[0]).cast(link.type))
        return info

    def _link(self, kernel: Kernel, key: _Key) -> Optional[Tuple[Optional[stack.Frame], int]]:
        known = self._links.get(key)
        if known is not None:
            return known
        if key in self._walks:
            walk, identity = self._walks.pop(key)
        else:
            walk, identity = stack.walk(kernel, *key), 0
            if next(walk, None) is None:
                return None
        # One frame at a time: a list of 5000 threads asks for the innermost ones alone.
        older = next(walk, None)
        # gdb stops where a caller's stack address is lower, as it is where an NMI
        # switched stacks; it compares, but never uses these.
        identity = max(older.sp if older else key[2], identity + 1)
        self._links[key] = older, identity
        if older is not None:
            self._walks[older.pc, older.fp, older.sp] = walk, identity
        return older, identity

    def _current(self) -> Optional[Kernel]:
        state = self._debugger.state()
        if state != self._state:
            self._state, self._kernel = state, None
            self._links.clear()
            self._walks.clear()
            image = KernelImage.open(self._debugger.kernel_file())
            if image is not None and image.is_kernel:
                with suppress(WchanError):
                    self._kernel = self._session.kernel()
        return self._kernel


class _FrameId:
    """What gdb tells frames apart by: their stack address and their function."""

    def __init__(self, sp: int, pc: int) -> None:
        self.sp = gdb.Value(sp)
        self.pc = gdb.Value(pc)


class _Command(gdb.Command):  # type: ignore[misc]
    """One wchan command in gdb."""

    def __init__(self, name: str, session: shared.Session, help_text: str) -> None:
        self.__doc__ = help_text
        super().__init__(name, gdb.COMMAND_DATA)
        self._name = name
        self._session = session

    def invoke(self, arg: str, from_tty: bool) -> None:
        errors: List[str] = []
        status = shared.run(
            self._session,
            self._name,
            arg,
            _write,
            errors.append,
            width=shared.output_width(gdb.parameter("width")),
            catch_interrupts=True,
        )
        if status == EXIT_FAILED:
            _Failures.any = True
            raise gdb.GdbError("\n".join(errors) or f"{self._name} failed")
        for text in errors:
            gdb.write(text + "\n", gdb.STDERR)

    def complete(self, text: str, word: Optional[str]) -> Sequence[str]:
        # gdb's words end at a dash: it wants back what follows the last one.
        last = text.split(" ")[-1]
        skip = len(last) - len(word or "")
        return [found[skip:] for found in shared.complete(self._name, last)]


def _write(text: str) -> None:
    try:
        gdb.write(text)
        gdb.flush()
    except KeyboardInterrupt:
        # "q" at gdb's pager: the user has seen enough.
        pass


class _Failures:
    """Whether a command of ours has failed: gdb -batch exits 0 unless the last one did."""

    any = False

    @classmethod
    def at_exit(cls, event: Any) -> None:
        """Have gdb exit with 1 instead of 0 after a failure, where nobody sits before it."""
        # Of what -batch sets only the unlimited height can be seen from here.
        scripted = gdb.parameter("height") is None
        if cls.any and scripted and not getattr(event, "exit_code", 0):
            cls.any = False
            gdb.execute("set confirm off")
            gdb.execute("quit 1")


def register() -> None:
    """Register every command in this gdb.

    A name that gdb knows already is refused with a line saying so, never shadowed.
    """
    import commands

    debugger = GdbDebugger()
    session = shared.Session(debugger)
    gdb.unwinder.register_unwinder(None, KernelUnwinder(debugger, session), replace=True)
    gdb.invalidate_cached_frames()
    ours = _registered()
    exiting = getattr(gdb.events, "gdb_exiting", None)
    if exiting is not None and not ours:
        exiting.connect(_Failures.at_exit)
    for name in commands.NAMES:
        if name not in ours and _exists(name):
            gdb.write(f"wchan: gdb has a command {name!r} already; not replaced\n", gdb.STDERR)
            continue
        _Command(name, session, shared.help_text(name))
        ours.add(name)


def _registered() -> Set[str]:
    """The commands that an earlier load of this entry registered in this gdb."""
    if not hasattr(gdb, "_wchan_commands"):
        gdb._wchan_commands = set()
    value: Set[str] = gdb._wchan_commands
    return value


def _exists(name: str) -> bool:
    return name in gdb.execute(f"complete {name}", to_string=True).split("\n")
