"""wchan in lldb: its commands, and the frames of kernels that lldb cannot unwind itself."""

from __future__ import annotations

import re
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Dict, Hashable, Iterator, List, Optional

import lldb

import commands
from plugin.errors import EXIT_FAILED, WchanError
from plugin.hosts import debugger as shared
from plugin.kernel import stack
from plugin.targets.image import KernelImage
from plugin.targets.lldb import LldbTarget

if TYPE_CHECKING:
    from plugin.session import Kernel
    from plugin.vmcore import Memory

_RESPONSE = re.compile(r"^\s*response: (.*)$", re.MULTILINE)


class LldbDebugger:
    """lldb as the session sees it (shared.Debugger)."""

    name = "lldb"

    def __init__(self, debugger: Any) -> None:
        self._debugger = debugger

    def state(self) -> Hashable:
        target = self._debugger.GetSelectedTarget()
        process = target.GetProcess()
        return (
            self._debugger.GetIndexOfTarget(target),
            target.GetExecutable().fullpath,
            process.GetUniqueID(),
            process.GetStopID(),
        )

    def ask_server(self, packet: str) -> str:
        result = lldb.SBCommandReturnObject()
        self._debugger.GetCommandInterpreter().HandleCommand(
            f"process plugin packet send {packet}", result, False
        )
        match = _RESPONSE.search(result.GetOutput() or "") if result.Succeeded() else None
        return match.group(1).strip() if match else ""

    def target(self, memory: Optional[Memory], truncated: bool, stub: bool) -> LldbTarget:
        return LldbTarget(self._debugger, memory, truncated, stub)

    def let_run(self, seconds: float) -> None:
        """Continue a remote, and stop it again."""
        process = self._debugger.GetSelectedTarget().GetProcess()
        if process.GetPluginName() not in ("gdb-remote", "kdp-remote"):
            raise WchanError("what lldb debugs is no remote that could be let run")
        before = self._debugger.GetAsync()
        self._debugger.SetAsync(True)
        try:
            error = process.Continue()
            until = time.monotonic() + seconds
            while error.Success() and time.monotonic() < until:
                time.sleep(min(0.1, seconds))
            if error.Success() and process.GetState() == lldb.eStateRunning:
                error = process.Stop()
        finally:
            self._debugger.SetAsync(before)
        if error.Fail():
            raise WchanError(f"the remote does not run: {error}")

    def kernel_file(self) -> Optional[str]:
        return self._debugger.GetSelectedTarget().GetExecutable().fullpath or None

    def add_symbols(self, path: str, base: int) -> bool:
        target = self._debugger.GetSelectedTarget()
        if target.ResolveLoadAddress(base).GetModule().IsValid():
            return False
        section = target.AddModule(path, None, None).FindSection(".text")
        placed = section.IsValid() and target.SetSectionLoadAddress(section, base).Success()
        return bool(placed)


def frame_provider(session: shared.Session) -> Optional[type]:
    """A class for ``target frame-provider register`` (lldb 22 on), None before that.

    lldb unwinds by call-frame information or, without debug information, by looking
    at code, which a dump may lack and a trap frame does not follow.  For a kernel
    without call-frame information this class gives lldb the frames that the frame
    pointers lead to, which every FreeBSD kernel keeps.
    """
    try:
        from lldb.plugins.scripted_frame_provider import ScriptedFrameProvider
    except ImportError:
        return None

    class Frames(ScriptedFrameProvider):  # type: ignore[misc]
        def __init__(self, input_frames: Any, args: Any) -> None:
            super().__init__(input_frames, args)
            # Asked later, lldb holds the lock on its frames that it would need to answer.
            first = input_frames.GetFrameAtIndex(0)
            self._start = first.GetPC(), first.GetFP(), first.GetSP()
            self._kernel: Optional[Kernel] = None
            with suppress(WchanError):
                self._kernel = session.kernel()
            self._pcs: List[int] = []
            self._walk: Optional[Iterator[stack.Frame]] = None

        @staticmethod
        def get_description() -> str:
            return "FreeBSD kernel stacks by frame pointers"

        @staticmethod
        def applies_to_thread(thread: Any) -> bool:
            # Registered for kernels only; a debug file may have been added since.
            return not _has_frame_information(thread.GetProcess().GetTarget())

        def get_frame_at_index(self, index: int) -> Any:
            if index == 0:
                # Not asking how many there are: lldb would unwind them all to count.
                return 0
            if self._kernel is None:
                return index if index < self.input_frames.GetSize() else None
            # One frame at a time: a list of 5000 threads asks for the innermost ones alone.
            if self._walk is None:
                self._walk = stack.walk(self._kernel, *self._start)
            while len(self._pcs) <= index:
                frame = next(self._walk, None)
                if frame is None:
                    return None
                self._pcs.append(frame.pc)
            return {"idx": index, "pc": self._pcs[index]}

    return Frames


def _needs_frames(target: Any) -> bool:
    image = KernelImage.open(target.GetExecutable().fullpath)
    return image is not None and image.is_kernel and not _has_frame_information(target)


def _has_frame_information(target: Any) -> bool:
    """True where lldb has what it can unwind by, in the kernel or in a separate debug file."""
    section = target.FindModule(target.GetExecutable()).FindSection(".debug_frame")
    value: bool = section.IsValid() and section.GetFileByteSize() > 0
    return value


def command_class(name: str, session: shared.Session) -> type:
    """A class for ``command script add --class``: one wchan command in lldb."""

    class Command:
        def __init__(self, debugger: Any, internal_dict: Dict[str, Any]) -> None:
            pass

        def __call__(self, debugger: Any, line: str, context: Any, result: Any) -> None:
            # lldb prints a traceback and goes on, exit status 0, if anything is raised.
            try:
                self._run(debugger, line, result)
            except BaseException as error:
                result.SetError(f"{name}: {type(error).__name__}: {error}")

        def _run(self, debugger: Any, line: str, result: Any) -> None:
            errors: List[str] = []
            status = shared.run(
                session,
                name,
                line,
                lambda text: result.PutCString(text.rstrip("\n")),
                errors.append,
                width=shared.output_width(debugger.GetTerminalWidth()),
            )
            if status == EXIT_FAILED:
                result.SetError("\n".join(errors) or f"{name} failed")
                return
            for text in errors:
                result.AppendWarning(text)
            result.SetStatus(lldb.eReturnStatusSuccessFinishResult)

        def get_short_help(self) -> str:
            return commands.load(name).HELP

        def get_long_help(self) -> str:
            return shared.help_text(name)

    return Command


def register(debugger: Any, namespace: str) -> None:
    """Register every command in ``debugger``; ``namespace`` is the module lldb imported.

    A name that lldb knows already is refused with a line saying so, never shadowed.
    """
    session = shared.Session(LldbDebugger(debugger))
    interpreter = debugger.GetCommandInterpreter()
    module = sys.modules[namespace]
    for name in commands.NAMES:
        if interpreter.CommandExists(name) or interpreter.AliasExists(name):
            print(f"wchan: lldb has a command {name!r} already; not replaced")
            continue
        attribute = "lldb_" + name.replace("-", "_")
        setattr(module, attribute, command_class(name, session))
        _quietly(interpreter, f"command script delete {name}")
        problem = _quietly(
            interpreter, f"command script add --class {namespace}.{attribute} {name}"
        )
        if problem:
            print(f"wchan: lldb refuses the command {name!r}: {problem}")
    _register_frames(debugger, namespace, session)


def _register_frames(debugger: Any, namespace: str, session: shared.Session) -> None:
    target = debugger.GetSelectedTarget()
    # Before the process: lldb 23 announces each thread of one whose frames change.
    if not target.IsValid() or target.GetProcess().IsValid() or not _needs_frames(target):
        return
    frames = frame_provider(session)
    if frames is not None:
        setattr(sys.modules[namespace], "lldb_frames", frames)  # noqa: B010
        _quietly(
            debugger.GetCommandInterpreter(),
            f"target frame-provider register -C {namespace}.lldb_frames",
        )


def _quietly(interpreter: Any, command: str) -> str:
    """Run an lldb command, showing nothing; its error, "" if it succeeded."""
    result = lldb.SBCommandReturnObject()
    interpreter.HandleCommand(command, result, False)
    return "" if result.Succeeded() else (result.GetError() or "").strip()
