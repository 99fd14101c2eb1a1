"""The target inside lldb.

Works with lldb's Python API as of lldb 14; what is newer is used where it is there.
"""

from __future__ import annotations

import re
from collections import Counter
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Sequence, Tuple

import lldb

from plugin.arch import BY_NAME, architecture
from plugin.errors import MemoryFault, WchanError
from plugin.structs.ctype import Field, Node, base_name
from plugin.symbol import Symbol
from plugin.targets.image import KernelImage
from plugin.targets.types import DebuggerTypes
from plugin.targets.wire import Wire

if TYPE_CHECKING:
    from plugin.structs import LayoutSource
    from plugin.vmcore import Memory

_ARCHES = {name: each.name for each in BY_NAME.values() for name in each.debuggers.lldb_names}
_RECORDS = {
    lldb.eTypeClassStruct: "struct",
    lldb.eTypeClassClass: "struct",
    lldb.eTypeClassUnion: "union",
}
_QUALIFIERS = ("const", "volatile", "restrict")


class LldbTarget:
    """What lldb debugs now; memory from lldb, or from the dump's file where given."""

    # A process that is stopped stands still; the session drops us once it runs.
    stable = True

    def __init__(
        self,
        debugger: Any,
        memory: Optional[Memory],
        truncated: bool = False,
        stub: bool = False,
    ) -> None:
        """``stub``: the memory is that of a machine's own stub, not of a server of ours."""
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
        self.in_pages = memory is not None and memory.in_pages
        self.truncated = truncated or (memory is not None and memory.truncated)
        self.page_size = 0
        self._debugger = debugger
        self._target = target
        self._process = process
        self._interrupted = getattr(debugger, "InterruptRequested", None)
        self.image = KernelImage.open(target.GetExecutable().fullpath)
        if self.image is not None:
            self.image.slide = _slide(target)
        self._is_whole = self.image is not None and self.image.is_whole
        self._symbolized: Dict[int, Optional[Tuple[str, int]]] = {}
        self.carried = memory.carried if memory is not None else {}
        self.files: Tuple[str, ...] = ()
        self.wire: Optional[Wire] = None
        if memory is None and stub and process.GetPluginName() == "gdb-remote":
            constant = {"constant": self.image.read_only} if self.image else {}
            self.wire = Wire(self._read_exactly, **constant)
            self.read = self.wire.read  # type: ignore[method-assign]
            self.files = (self.image.elf.path,) if self.image else ()
        if memory is not None:
            self.files = (memory.path, memory.file_path)
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

    def _read_exactly(self, address: int, size: int) -> bytes:
        """As ``read``, without the half kilobyte around it that lldb would keep."""
        name, setting = self._debugger.GetInstanceName(), "target.process.disable-memory-cache"
        self._debugger.SetInternalVariable(setting, "true", name)
        try:
            return LldbTarget.read(self, address, size)
        finally:
            self._debugger.SetInternalVariable(setting, "false", name)

    @property
    def message_buffer(self) -> bytes:
        """The copy of the message buffer that the dump itself carries, b"" if none."""
        return self.memory.message_buffer if self.memory is not None else b""

    # Symbols

    def symbols(self, name: str) -> Sequence[Symbol]:
        found = self.image.symbols(name) if self.image else []
        if found or self._is_whole:
            return found
        # There is no file to read, or one without statics: ask lldb.
        return [
            _symbol(name, context.GetSymbol(), self._target)
            for context in self._target.FindSymbols(name)
            if context.GetSymbol().IsValid()
        ]

    def symbolize(self, address: int) -> Optional[Tuple[str, int]]:
        if address not in self._symbolized:
            found = self.image.symbolize(address) if self.image else None
            if found is None and not self._is_whole:
                found = self._resolve(address)
            self._symbolized[address] = found
        return self._symbolized[address]

    def _resolve(self, address: int) -> Optional[Tuple[str, int]]:
        symbol = self._target.ResolveLoadAddress(address).GetSymbol()
        if not symbol.IsValid() or not symbol.GetName():
            return None
        start = symbol.GetStartAddress().GetLoadAddress(self._target)
        return symbol.GetName(), address - start

    def types(self, notes: List[str]) -> Optional[LayoutSource]:
        found = LldbTypes(self._target, architecture(self.arch).pointer_size)
        if found.find("thread") is not None:
            return found
        # CTF, or a debug file beside the kernel that only our own readers know.
        return self.image.types(notes) if self.image else None

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
