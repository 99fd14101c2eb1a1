"""The target inside gdb and kgdb, and wchan's commands there.

Works with gdb's Python API as of gdb 12; what is newer is used where it is there.
"""

from __future__ import annotations

import re
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

from plugin import debugger as shared
from plugin.errors import EXIT_FAILED, MemoryFault, WchanError
from plugin.targets import Symbol
from plugin.targets.image import KernelImage

if TYPE_CHECKING:
    from plugin.structs import LayoutSource
    from plugin.vmcore import KernelMemory

_ARCHES = {"i386:x86-64": "amd64", "i386": "i386", "aarch64": "arm64", "riscv:rv64": "riscv64"}
_NAME = re.compile(r"^[A-Za-z_.$][\w.$]*$")
_FAULT = re.compile(r"0x[0-9a-f]+")
_INFO_SYMBOL = re.compile(r"^(\S+)(?: \+ (\d+))? in section ")
_MAX_FRAMES = 128


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
        self.stable = not _is_live()
        self._inferior = inferior
        self._image = KernelImage.open(gdb.current_progspace().filename)
        if self._image is not None:
            self._image.slide = _slide(self._image)
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

    # Symbols

    def symbols(self, name: str) -> Sequence[Symbol]:
        found = self._image.symbols(name) if self._image else []
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
            found = self._image.symbolize(address) if self._image else None
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
        if self._image is None or not self._image.has_frame_information:
            return None
        with _Selected(self._inferior, tid) as selected:
            return list(_frames()) if selected else None

    def types(self) -> Optional[LayoutSource]:
        return None

    def interrupted(self) -> bool:
        # gdb turns Ctrl-C into KeyboardInterrupt.
        return False


def _architecture(inferior: Any) -> str:
    try:
        return inferior.architecture().name()
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


def _slide(image: KernelImage) -> int:
    """How far gdb has moved the kernel from where the file says it lies."""
    for name in ("allproc", "version", "kernbase"):
        own = [s for s in image.elf.symbols(name) if not s.local]
        if len(own) == 1:
            try:
                there = int(gdb.parse_and_eval(f"(unsigned long)&{name}"))
            except gdb.error:
                continue
            return there - own[0].address
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
        return gdb.current_progspace().filename


class _Command(gdb.Command):
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
        )
        if status == EXIT_FAILED:
            raise gdb.GdbError("\n".join(errors) or f"{self._name} failed")
        for text in errors:
            gdb.write(text + "\n", gdb.STDERR)

    def complete(self, text: str, word: Optional[str]) -> Sequence[str]:
        return shared.complete(self._name, text, word or "")


def _write(text: str) -> None:
    try:
        gdb.write(text)
        gdb.flush()
    except KeyboardInterrupt:
        # "q" at gdb's pager: the user has seen enough.
        pass


def register() -> None:
    """Register every command in this gdb.

    A name that gdb knows already is refused with a line saying so, never shadowed.
    """
    import commands

    session = shared.Session(GdbDebugger())
    ours = _registered()
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
    return gdb._wchan_commands


def _exists(name: str) -> bool:
    return name in gdb.execute(f"complete {name}", to_string=True).split("\n")
