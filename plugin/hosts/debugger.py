"""What the lldb and gdb entries share: the session's Kernel, running a command.

A debugger's back end (``plugin.hosts.lldb``, ``plugin.hosts.gdb``) gives a
``Debugger``; ``Session`` makes one Kernel out of it, keeps it while nothing moves,
and reads the dump's file directly where the server the debugger is connected to
says which file that is.
"""

from __future__ import annotations

import atexit
import hmac
import json
import os
import shutil
import stat
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from typing import (
    TYPE_CHECKING,
    Any,
    Callable,
    Dict,
    Hashable,
    List,
    Optional,
    Protocol,
    Set,
    Tuple,
)

import commands
from plugin import interrupt
from plugin.errors import EXIT_FAILED, KernelMismatch, WchanError
from plugin.hosts.module_elf import write_symbol_files
from plugin.hosts.progress import Progress
from plugin.hosts.rsp import SESSION_PACKET
from plugin.hosts.runner import parser_for, run_command, split
from plugin.hosts.things import things
from plugin.kernel.module_file import module_tables
from plugin.opening import open_target
from plugin.opening.find_kernel import version_of_file
from plugin.opening.identify import require_match
from plugin.targets.image import KernelImage
from plugin.vmcore import Memory, open_any
from plugin.vmcore.elf import ElfFile

if TYPE_CHECKING:
    from plugin.session import Kernel
    from plugin.targets import Target

#: What only our own server knows, for the debugger that it started or told to be started.
SECRET_VARIABLE = "WCHAN_SESSION"
#: Set to "no": read memory through the debugger even where the dump's file is known.
BYPASS_VARIABLE = "WCHAN_BYPASS"
#: Set to "yes": go on with a kernel file that does not match the memory.
FORCE_VARIABLE = "WCHAN_FORCE"


def output_width(columns: Optional[int]) -> int:
    """Columns to fill: the debugger's own idea on a terminal, 80 where nobody looks."""
    if not os.isatty(1):
        return 80
    return columns if columns and columns > 20 else 80


class Debugger(Protocol):
    """What ``Session`` must know of a debugger."""

    #: "lldb" or "gdb"
    name: str

    def state(self) -> Hashable:
        """A value that differs once the target ran, changed or was replaced."""
        ...

    def ask_server(self, packet: str) -> str:
        """The reply of the remote stub to one packet, "" if there is none."""
        ...

    def target(self, memory: Optional[Memory], truncated: bool, stub: bool) -> Target:
        """The back end for what is debugged now, reading from ``memory`` if given.

        ``truncated`` says that the dump is known to lack memory it announces, ``stub`` that
        a debugger connected to a server is connected to a machine's, and not to one of ours.

        WchanError where no kernel is being debugged.
        """
        ...

    def let_run(self, seconds: float) -> None:
        """Let a remote target run for so long and stop it again; WchanError where it cannot."""
        ...

    def kernel_file(self) -> Optional[str]:
        """Path of the executable that is debugged, None if there is none."""
        ...

    def add_symbols(self, path: str, base: int) -> bool:
        """Load a module's symbols, its one section at ``base``; False where it knows them."""
        ...


class Session:
    """The Kernel of a debugger's session."""

    def __init__(self, debugger: Debugger) -> None:
        self._debugger = debugger
        # sys.stderr is the debugger's own object, which never claims to be a terminal.
        self.progress = Progress(sys.__stderr__ or sys.stderr)
        self._kernel: Optional[Kernel] = None
        self._memory: Optional[Memory] = None
        self._state: Hashable = None
        #: the folder of modules' symbol files, and the modules already given to the debugger
        self._folder: Optional[str] = None
        self._named: Set[Tuple[str, int]] = set()
        #: what is debugged is a dump that our own server shows
        self._is_dump = False

    @property
    def reads_file(self) -> bool:
        """True while memory comes from the dump's file, not through the debugger."""
        return self._memory is not None

    def kernel(self) -> Kernel:
        """The Kernel that is debugged now: the one from before if nothing has moved."""
        state = self._debugger.state()
        if self._kernel is None or state != self._state:
            self.forget()
            self._kernel = self._open()
            self._state = state
        return self._kernel

    def opened(self) -> Optional[Kernel]:
        """The Kernel of the command before, where nothing has moved since; opens nothing."""
        return self._kernel if self._debugger.state() == self._state else None

    def name_modules(self, kernel: Kernel) -> List[str]:
        """Give the debugger the symbols of modules that it does not know; their names.

        From the kernel's own memory, so that frames are named, and breakpoints found, in a
        debugger that its user opened where no .ko is at hand.  Not while it unwinds.
        """
        added: List[str] = []
        with suppress(WchanError, OSError):
            tables = [(t, (t.file.filename, t.file.base)) for t in module_tables(kernel)]
            if all(key in self._named for _, key in tables):
                return added
            if self._folder is None:
                self._folder = tempfile.mkdtemp(prefix="wchan-modules-")
                atexit.register(shutil.rmtree, self._folder, ignore_errors=True)
            for path, base in write_symbol_files(kernel, tempfile.mkdtemp(dir=self._folder)):
                name = os.path.basename(path)
                if (name, base) not in self._named and self._debugger.add_symbols(path, base):
                    added.append(name)
            self._named.update(key for _, key in tables)
            # What was just loaded is no sign that the kernel has moved.
            self._state = self._debugger.state()
        return added

    def let_run(self) -> Optional[Callable[[float], None]]:
        """What lets the target run for so many seconds; None of a dump, which cannot."""
        if self._is_dump:
            return None
        return self._wait if self._kernel and not self._kernel.target.stable else self._resume

    def _wait(self, seconds: float) -> None:
        """A kernel that is looked at while it runs: nothing has to be done."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if self._kernel is not None and self._kernel.interrupted():
                raise KeyboardInterrupt
            time.sleep(min(0.1, seconds))

    def _resume(self, seconds: float) -> None:
        self._debugger.let_run(seconds)
        # It has moved, and the runner forgets what was read: the Kernel itself stays.
        self._state = self._debugger.state()

    def after_command(self) -> None:
        """Drop what an interrupted command has read in part, lest the next one believe it."""
        if self._kernel is not None and self._kernel.interrupted():
            self._kernel.forget()

    def forget(self) -> None:
        """Drop what is known of the target."""
        self._kernel = None
        if self._memory is not None:
            self._memory.close()
            self._memory = None

    def _open(self) -> Kernel:
        info = self._server_info()
        self._is_dump = bool(info)
        notes: List[str] = []
        self._memory = self._bypass(info, notes)
        stub = not info or info.get("wire") is True
        target = self._debugger.target(self._memory, info.get("truncated") is True, stub)
        if target.wire is not None:
            target.wire.tell = self.progress
        force = info.get("force") is True or os.environ.get(FORCE_VARIABLE) == "yes"
        file = self._debugger.kernel_file()
        if file is not None and file == info.get("kernel"):
            # The server has compared it with the dump already.
            told = info.get("notes")
            notes += map(str, told) if isinstance(told, list) else []
        elif file is not None:
            forced = _mismatch(target, file, force)
            notes += forced
            if target.wire is not None:
                target.wire.trusted = not forced
        kernel = open_target(
            target,
            structs=_text(info.get("structs")),
            force=force,
            notes=notes,
            sysroot=_text(info.get("sysroot")),
        )
        kernel.progress = self.progress
        return kernel

    def _server_info(self) -> Dict[str, Any]:
        secret = os.environ.get(SECRET_VARIABLE)
        if not secret:
            return {}
        try:
            reply = self._debugger.ask_server(SESSION_PACKET)
            info = json.loads(bytes.fromhex(reply)) if reply else {}
        except (WchanError, ValueError):
            return {}
        # A stub that is not ours may answer anything, but for this.
        ours = isinstance(info, dict) and hmac.compare_digest(
            str(info.get("secret")).encode(), secret.encode()
        )
        return info if ours else {}

    def _bypass(self, info: Dict[str, Any], notes: List[str]) -> Optional[Memory]:
        """The dump's file, opened, where the server says which one it is."""
        path, kernel = _text(info.get("vmcore")), _text(info.get("kernel"))
        if path is None or os.environ.get(BYPASS_VARIABLE) == "no" or not _is_plain_file(path):
            return None
        try:
            return open_any(path, ElfFile(kernel) if kernel else None)
        except WchanError as error:
            notes.append(f"memory is read through {self._debugger.name}: {error}")
            return None


def _mismatch(target: Target, path: str, force: bool) -> List[str]:
    """KernelMismatch where the file loaded did not make this memory; a note if forced."""
    image = KernelImage.open(path)
    if image is None:
        return []
    try:
        require_match(target, version_of_file(image.elf), path)
    except KernelMismatch as mismatch:
        what = str(mismatch).rsplit(";", 1)[0]
        if not force:
            raise KernelMismatch(
                f"{what}; load the right file, or set {FORCE_VARIABLE}=yes in the environment"
            ) from None
        return [f"forced: {what}"]
    return []


def _text(value: object) -> Optional[str]:
    return value if isinstance(value, str) and value else None


def _is_plain_file(path: str) -> bool:
    try:
        return os.path.isabs(path) and stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False


def run(
    session: Session,
    name: str,
    line: str,
    write: Callable[[str], None],
    write_error: Callable[[str], None],
    *,
    width: int,
    catch_interrupts: bool = False,
) -> int:
    """Run a command on a debugger's command line; returns its exit status.

    ``catch_interrupts`` for a debugger that does not say itself that its user
    pressed Ctrl-C.
    """

    def clear_and_write(text: str) -> None:
        session.progress.clear()
        write(text)

    try:
        words = split(line)
    except WchanError as error:
        write_error(f"{name}: {error}")
        return EXIT_FAILED
    with ExitStack() as until_done:

        def kernel() -> Kernel:
            opened = session.kernel()
            # A remote that does not answer is the debugger's to interrupt.
            if catch_interrupts and session.reads_file:
                until_done.enter_context(interrupt.caught())
            named = session.name_modules(opened)
            if named:
                write_error(f"symbols of {', '.join(named)} are loaded, out of the kernel's memory")
            return opened

        try:
            return run_command(
                name,
                words,
                kernel,
                clear_and_write,
                write_error,
                width=width,
                let_run=session.let_run,
            )
        finally:
            session.progress.clear()
            session.after_command()


def complete(name: str, word: str, kernel: Optional[Kernel] = None) -> List[str]:
    """What ``word``, the last one on a command's line, may become: options, fixed choices.

    Of a kernel that has been opened already also the things that the command can be asked
    about (``COMPLETES`` of its module).
    """
    found: List[str] = []
    for action in parser_for(name)._actions:
        found += action.option_strings
        if action.choices is not None and not action.option_strings:
            found += [str(choice) for choice in action.choices]
    if kernel is not None and not word.startswith("-"):
        for kind in getattr(commands.load(name), "COMPLETES", ()):
            with suppress(WchanError):
                found += things(kernel, kind)
    return sorted({text for text in found if text.startswith(word)})


def help_text(name: str) -> str:
    """The help of a command: its one line, then how it is used."""
    parser = parser_for(name)
    line, parser.description = parser.description, None
    return f"{line}\n\n{parser.format_help()}"
