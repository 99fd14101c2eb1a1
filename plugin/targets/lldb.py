"""The target inside lldb, and wchan's commands there.

Works with lldb's Python API as of lldb 14; what is newer is used where it is there.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from contextlib import suppress
from itertools import takewhile
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
    Tuple,
)

import lldb

import commands
from plugin.errors import EXIT_FAILED, MemoryFault, WchanError
from plugin.hosts import debugger as shared
from plugin.kernel import stack
from plugin.structs.ctype import Field, Node, base_name
from plugin.targets import Symbol
from plugin.targets.image import KernelImage
from plugin.targets.types import DebuggerTypes

if TYPE_CHECKING:
    from plugin.session import Kernel
    from plugin.structs import LayoutSource
    from plugin.vmcore import KernelMemory

_ARCHES = {
    "x86_64": "amd64",
    "i386": "i386",
    "i486": "i386",
    "i586": "i386",
    "i686": "i386",
    "aarch64": "arm64",
    "arm64": "arm64",
    "riscv64": "riscv64",
}
_RESPONSE = re.compile(r"^\s*response: (.*)$", re.MULTILINE)
_RECORDS = {
    lldb.eTypeClassStruct: "struct",
    lldb.eTypeClassClass: "struct",
    lldb.eTypeClassUnion: "union",
}
_QUALIFIERS = ("const", "volatile", "restrict")
_MAX_FRAMES = 128


class LldbTarget:
    """What lldb debugs now; memory from lldb, or from the dump's file where given."""

    # A process that is stopped stands still; the session drops us once it runs.
    stable = True

    def __init__(self, debugger: Any, memory: Optional[KernelMemory]) -> None:
        target = debugger.GetSelectedTarget()
        process = target.GetProcess()
        if not target.IsValid() or not process.IsValid():
            raise WchanError("no kernel is being debugged: open a dump or connect first")
        if process.GetState() not in (lldb.eStateStopped, lldb.eStateSuspended):
            raise WchanError("the kernel is not stopped: interrupt it first")
        machine = target.GetTriple().split("-")[0]
        if machine not in _ARCHES:
            raise WchanError(f"lldb debugs a {machine or 'unknown'} program; wchan cannot")
        self.arch = _ARCHES[machine]
        self.description = "lldb"
        self.memory = memory
        self.truncated = memory is not None and memory.truncated
        self._debugger = debugger
        self._target = target
        self._process = process
        self._interrupted = getattr(debugger, "InterruptRequested", None)
        self.image = KernelImage.open(target.GetExecutable().fullpath)
        if self.image is not None:
            self.image.slide = _slide(target)
        self._symbolized: Dict[int, Optional[Tuple[str, int]]] = {}
        if memory is not None:
            self.description = memory.path
            self.page_size = memory.page_size
            # An instance attribute: no call of ours between a walk and the file.
            self.read = memory.read  # type: ignore[method-assign]

    def read(self, address: int, size: int) -> bytes:
        if size <= 0:
            return b""
        error = lldb.SBError()
        try:
            data: Optional[bytes] = self._process.ReadMemory(address, size, error)
        except (OverflowError, TypeError):
            raise MemoryFault(address, "no address") from None
        if data is None or len(data) != size:
            raise MemoryFault(address + len(data or b""), "lldb cannot read it")
        return data

    @property
    def message_buffer(self) -> bytes:
        """The copy of the message buffer that the dump itself carries, b"" if none."""
        return self.memory.message_buffer if self.memory is not None else b""

    # Symbols

    def symbols(self, name: str) -> Sequence[Symbol]:
        found = self.image.symbols(name) if self.image else []
        if found:
            return found
        # In a module, or there is no file to read: ask lldb.
        return [
            _symbol(name, context.GetSymbol(), self._target)
            for context in self._target.FindSymbols(name)
            if context.GetSymbol().IsValid()
        ]

    def symbolize(self, address: int) -> Optional[Tuple[str, int]]:
        if address not in self._symbolized:
            found = self.image.symbolize(address) if self.image else None
            self._symbolized[address] = found or self._resolve(address)
        return self._symbolized[address]

    def _resolve(self, address: int) -> Optional[Tuple[str, int]]:
        symbol = self._target.ResolveLoadAddress(address).GetSymbol()
        if not symbol.IsValid() or not symbol.GetName():
            return None
        start = symbol.GetStartAddress().GetLoadAddress(self._target)
        return symbol.GetName(), address - start

    # Threads

    def registers(self, tid: int) -> Optional[Mapping[str, int]]:
        """Every register lldb has a value of, by lldb's names; None if no such thread."""
        thread = self._process.GetThreadByID(tid)
        if not thread.IsValid():
            return None
        found: Dict[str, int] = {}
        sets = thread.GetFrameAtIndex(0).GetRegisters()
        for value in sets.GetValueAtIndex(0):
            error = lldb.SBError()
            number = value.GetValueAsUnsigned(error, 0)
            if error.Success() and value.GetError().Success():
                found[value.GetName()] = number
        return found

    def backtrace(self, tid: int) -> Optional[Sequence[Tuple[int, str]]]:
        """lldb's own frames, where it has call-frame information to find them by.

        Without it lldb guesses from code bytes, and the frame pointers that every
        FreeBSD kernel keeps are the better guide: None then.
        """
        thread = self._process.GetThreadByID(tid)
        if not _has_frame_information(self._target) or not thread.IsValid():
            return None
        frames = []
        for index in range(_MAX_FRAMES):
            frame = thread.GetFrameAtIndex(index)
            if not frame.IsValid():
                break
            frames.append((frame.GetPC(), frame.GetFunctionName() or ""))
        return frames

    def types(self) -> Optional[LayoutSource]:
        found = LldbTypes(self._target, 4 if self.arch == "i386" else 8)
        if found.find("thread") is not None:
            return found
        # CTF, or a debug file beside the kernel that only our own readers know.
        self.type_notes: List[str] = []
        return self.image.types(self.type_notes) if self.image else None

    def interrupted(self) -> bool:
        return self._interrupted is not None and bool(self._interrupted())


class LldbTypes(DebuggerTypes):
    """Layouts out of the debug information that lldb has read."""

    def __init__(self, target: Any, pointer_size: int) -> None:
        super().__init__(pointer_size)
        self._target = target

    def find(self, name: str) -> Optional[Any]:
        sizes: Counter[int] = Counter()
        first: Dict[int, Any] = {}
        for found in self._target.FindTypes(name):
            size = found.GetByteSize()
            if found.GetTypeClass() in _RECORDS and size and found.GetNumberOfFields():
                sizes[size] += 1
                first.setdefault(size, found)
        # Two source files may use one name for two structs: the more common one.
        return first[sizes.most_common(1)[0][0]] if sizes else None

    def describe(self, type_: Any) -> Node:
        kind = type_.GetTypeClass()
        qualifiers = _qualifiers(type_.GetName() or "", kind)
        if qualifiers:
            return self.qualified(qualifiers, type_.GetUnqualifiedType())
        if type_.GetBasicType() == lldb.eBasicTypeVoid and kind == lldb.eTypeClassBuiltin:
            return Node("void")
        if kind == lldb.eTypeClassTypedef:
            return Node("typedef", type_.GetName(), target=self.ref(type_.GetTypedefedType()))
        if kind in _RECORDS or kind == lldb.eTypeClassEnumeration:
            name = "" if _is_anonymous(type_) else type_.GetName().split("::")[-1]
            return Node(_RECORDS.get(kind, "enum"), name, type_.GetByteSize())
        if kind == lldb.eTypeClassPointer:
            size = type_.GetByteSize()
            return Node("pointer", size=size, target=self.ref(type_.GetPointeeType()))
        if kind == lldb.eTypeClassArray:
            element = type_.GetArrayElementType()
            count: Optional[int] = type_.GetByteSize() // (element.GetByteSize() or 1)
            if "[]" in type_.GetName():
                # A flexible array, to which lldb gives the size of one element.
                count = None
            return Node("array", target=self.ref(element), elements=count)
        if kind == lldb.eTypeClassFunction:
            params: List[Optional[int]] = [
                self.ref(each) for each in type_.GetFunctionArgumentTypes()
            ]
            if type_.GetName().endswith("...)"):
                params.append(None)
            result = self.ref(type_.GetFunctionReturnType())
            return Node("function", target=result, params=tuple(params))
        name = type_.GetName() or "void"
        # lldb calls it as C++ does.
        name = "_Bool" if name == "bool" else base_name(name)
        return Node("base", name, type_.GetByteSize())

    def members(self, type_: Any) -> List[Field]:
        return [
            Field(
                field.GetName() or "",
                self.ref(field.GetType()),
                field.GetOffsetInBits(),
                field.GetBitfieldSizeInBits() if field.IsBitfield() else 0,
            )
            for field in (type_.GetFieldAtIndex(i) for i in range(type_.GetNumberOfFields()))
        ]


def _qualifiers(name: str, kind: int) -> List[str]:
    """Qualifiers of a type itself, which lldb gives in its name only."""
    if kind in (lldb.eTypeClassFunction, lldb.eTypeClassArray):
        return []
    if kind == lldb.eTypeClassPointer:
        words = re.split(r"[*)]", name)[-1].split() if name.endswith(_QUALIFIERS) else []
    else:
        words = list(takewhile(_QUALIFIERS.__contains__, name.split()))
    return sorted(word for word in words if word in _QUALIFIERS)


def _is_anonymous(type_: Any) -> bool:
    return type_.IsAnonymousType() or "(" in (type_.GetName() or "(")


def _symbol(name: str, symbol: Any, target: Any) -> Symbol:
    start = symbol.GetStartAddress()
    address = start.GetLoadAddress(target)
    if address == lldb.LLDB_INVALID_ADDRESS:
        address = start.GetFileAddress()
    kinds = {
        lldb.eSymbolTypeData: "object",
        lldb.eSymbolTypeCode: "function",
        lldb.eSymbolTypeAbsolute: "absolute",
    }
    return Symbol(
        name,
        address,
        symbol.GetSize() if hasattr(symbol, "GetSize") else 0,
        kinds.get(symbol.GetType(), "other"),
        not symbol.IsExternal(),
    )


def _slide(target: Any) -> int:
    """How far lldb has moved the kernel from where the file says it lies."""
    module = target.FindModule(target.GetExecutable())
    for section in module.section_iter():
        loaded = section.GetLoadAddress(target)
        if loaded != lldb.LLDB_INVALID_ADDRESS:
            value: int = loaded - section.GetFileAddress()
            return value
    return 0


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

    def target(self, memory: Optional[KernelMemory]) -> LldbTarget:
        return LldbTarget(self._debugger, memory)

    def kernel_file(self) -> Optional[str]:
        return self._debugger.GetSelectedTarget().GetExecutable().fullpath or None


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
    value: bool = section.IsValid() and section.GetByteSize() > 0
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
