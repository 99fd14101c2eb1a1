"""wchan in gdb and kgdb: its commands, and an unwinder for kernels."""

from __future__ import annotations

import os
import re
import signal
import threading
from contextlib import suppress
from typing import (
    TYPE_CHECKING,
    Any,
    Dict,
    Hashable,
    Iterator,
    List,
    Optional,
    Sequence,
    Set,
    Tuple,
)

import gdb
import gdb.unwinder

import commands
from plugin.arch import BY_NAME
from plugin.arch.common import Architecture
from plugin.errors import EXIT_FAILED, WchanError
from plugin.hosts import debugger as shared
from plugin.hosts import gdb_threads
from plugin.kernel import stack
from plugin.session import Kernel
from plugin.targets.gdb import ARCHES, GdbTarget
from plugin.targets.image import KernelImage

if TYPE_CHECKING:
    from plugin.vmcore import Memory


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

    def target(self, memory: Optional[Memory], truncated: bool, stub: bool) -> GdbTarget:
        return GdbTarget(memory, truncated, stub)

    def let_run(self, seconds: float) -> None:
        """Continue a remote, and interrupt it as the user's Ctrl-C would."""
        connection = getattr(gdb.selected_inferior(), "connection", None)
        if connection is None or "remote" not in connection.type:
            raise WchanError("what gdb debugs is no remote that could be let run")
        timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        try:
            gdb.execute("continue", to_string=True)
        except gdb.error as error:
            raise WchanError(f"the remote does not run: {error}") from None
        finally:
            timer.cancel()

    def kernel_file(self) -> Optional[str]:
        value: Optional[str] = gdb.current_progspace().filename
        return value

    def add_symbols(self, path: str, base: int) -> bool:
        space, name = gdb.current_progspace(), os.path.basename(path)
        known = {os.path.basename(each.filename or "") for each in space.objfiles()}
        if space.solib_name(base) or name in known:
            return False
        try:
            gdb.execute(f'add-symbol-file "{path}" -s .text {base:#x}', to_string=True)
        except gdb.error:
            return False
        return True


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
        #: what gdb can unwind by, in the kernel file or in a separate debug file
        self._own_frames = False
        #: the frame that called, and what this one is told apart by
        self._links: Dict[_Key, Tuple[Optional[stack.Frame], int]] = {}
        #: walks to go on with at a frame, and the caller's greatest identity so far
        self._walks: Dict[_Key, Tuple[Iterator[stack.Frame], int]] = {}

    def __call__(self, pending: Any) -> Any:
        known = BY_NAME.get(ARCHES.get(pending.architecture().name(), ""))
        # While the kernel is opened gdb may ask for frames again.
        if known is None or self._busy:
            return None
        self._busy = True
        try:
            return self._unwind(pending, known)
        except (gdb.error, WchanError):
            return None
        finally:
            self._busy = False

    def _unwind(self, pending: Any, known: Architecture) -> Any:
        kernel = self._current()
        if kernel is None:
            return None
        roles = known.debuggers.roles
        names = (roles["pc"], roles["fp"], roles["sp"])
        values = [pending.read_register(name) for name in names]
        if any(value.is_optimized_out for value in values):
            return None
        mask = (1 << 8 * kernel.pointer_size) - 1
        pc, fp, sp = (int(value) & mask for value in values)
        link = self._link(kernel, (pc, fp, sp))
        if link is None:
            return None
        older, identity = link
        found = kernel.covering(pc)
        if self._own_frames and not (found and known.stacks.is_trap(found[0])):
            return None
        start = pc - found[1] if found else pc
        info = pending.create_unwind_info(_FrameId(identity, start))
        # A program counter of 0 is how gdb is told that there is no older frame.
        saved = (older.pc, older.fp, older.sp) if older else (0, fp, identity + 16)
        for name, value, kind in zip(names, saved, values):
            info.add_saved_register(name, gdb.Value(value).cast(kind.type))
        if "ra" in roles:
            # The unwinder that gdb asks beyond our last frame looks for the link register.
            link = pending.read_register(roles["ra"])
            info.add_saved_register(roles["ra"], gdb.Value(saved[0]).cast(link.type))
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
                self._own_frames = any(map(_has_frame_information, gdb.objfiles()))
                with suppress(WchanError):
                    self._kernel = self._session.kernel()
        return self._kernel


def _has_frame_information(objfile: Any) -> bool:
    image = KernelImage.open(objfile.filename)
    return image is not None and image.has_frame_information


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
        kernel = self._session.opened()
        return [found[skip:] for found in shared.complete(self._name, last, kernel)]


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
    debugger = GdbDebugger()
    session = shared.Session(debugger)
    gdb.unwinder.register_unwinder(None, KernelUnwinder(debugger, session), replace=True)
    gdb.invalidate_cached_frames()
    gdb_threads.install()
    ours = _registered()
    exiting = getattr(gdb.events, "gdb_exiting", None)
    if exiting is not None and not ours:
        exiting.connect(_Failures.at_exit)
    if not _exists("add-kld"):
        # kgdb knows FreeBSD's kernels; a plain gdb takes one for a program of FreeBSD's.
        gdb.events.new_objfile.connect(_without_osabi)
        _without_osabi()
    for name in commands.NAMES:
        if name not in ours and _exists(name):
            gdb.write(f"wchan: gdb has a command {name!r} already; not replaced\n", gdb.STDERR)
            continue
        _Command(name, session, shared.help_text(name))
        ours.add(name)


def _without_osabi(_: Any = None) -> None:
    """Keep gdb 13 from rejecting a remote kernel, which it takes for a 32-bit program."""
    image = KernelImage.open(gdb.current_progspace().filename)
    if image is not None and image.is_kernel and gdb.parameter("osabi") == "auto":
        with suppress(gdb.error):
            gdb.execute("set osabi none", to_string=True)


def _registered() -> Set[str]:
    """The commands that an earlier load of this entry registered in this gdb."""
    if not hasattr(gdb, "_wchan_commands"):
        gdb._wchan_commands = set()
    value: Set[str] = gdb._wchan_commands
    return value


def _exists(name: str) -> bool:
    return name in gdb.execute(f"complete {name}", to_string=True).split("\n")
