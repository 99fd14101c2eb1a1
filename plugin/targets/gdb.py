"""The target inside gdb and kgdb.

Works with gdb's Python API as of gdb 12; what is newer is used where it is there.
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Sequence, Tuple

import gdb

from plugin import interrupt
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

#: gdb's name of an architecture to ours
ARCHES = {name: each.name for each in BY_NAME.values() for name in each.debuggers.gdb_names}
_NAME = re.compile(r"^[A-Za-z_.$][\w.$]*$")
_FAULT = re.compile(r"0x[0-9a-f]+")
_INFO_SYMBOL = re.compile(r"^(\S+)(?: \+ (\d+))? in section ")
_RECORDS = {
    gdb.TYPE_CODE_STRUCT: "struct",
    gdb.TYPE_CODE_UNION: "union",
    gdb.TYPE_CODE_ENUM: "enum",
}


class GdbTarget:
    """What gdb debugs now; memory from gdb, or from the dump's file where given."""

    def __init__(
        self, memory: Optional[Memory], truncated: bool = False, stub: bool = False
    ) -> None:
        """``stub``: the memory is that of a machine's own stub, not of a server of ours."""
        inferior = gdb.selected_inferior()
        arch = _architecture(inferior)
        if arch not in ARCHES:
            raise WchanError(f"gdb debugs a {arch} program; wchan knows {', '.join(ARCHES)}")
        if inferior.pid == 0 and not inferior.threads():
            foreign = _foreign()
            if foreign:
                raise WchanError(f"this gdb knows no {foreign}; one built for all of them does")
            raise WchanError("no kernel is being debugged: open a dump or connect first")
        self.arch = ARCHES[arch]
        self.description = "gdb"
        self.memory = memory
        self.in_pages = memory is not None and memory.in_pages
        self.truncated = truncated or (memory is not None and memory.truncated)
        self.page_size = 0
        self.stable = not _is_live()
        self._inferior = inferior
        self.image = KernelImage.open(gdb.current_progspace().filename)
        if self.image is not None:
            self.image.slide = _slide(self.image)
        self._is_whole = self.image is not None and self.image.is_whole
        self._symbolized: Dict[int, Optional[Tuple[str, int]]] = {}
        self.carried = memory.carried if memory is not None else {}
        self.files: Tuple[str, ...] = ()
        self.wire: Optional[Wire] = None
        if memory is None and stub and _is_remote():
            self.wire = Wire(self.read, self.image.read_only) if self.image else Wire(self.read)
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
        if found or self._is_whole or not _NAME.match(name):
            return found
        # There is no file to read, or one without statics: ask gdb.
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
            if found is None and not self._is_whole:
                found = _info_symbol(address)
            self._symbolized[address] = found
        return self._symbolized[address]

    def types(self, notes: List[str]) -> Optional[LayoutSource]:
        found = GdbTypes(architecture(self.arch).pointer_size)
        if found.find("thread") is not None:
            return found
        # CTF, or a debug file beside the kernel that only our own readers know.
        return self.image.types(notes) if self.image else None

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


def _foreign() -> str:
    """gdb's name of the kernel's architecture where this gdb was built without it, else ""."""
    image = KernelImage.open(gdb.current_progspace().filename)
    if image is None or not image.is_kernel or image.elf.arch not in BY_NAME:
        return ""
    name = BY_NAME[image.elf.arch].debuggers.gdb_names[0]
    with suppress(gdb.error):
        known = gdb.execute(f"complete set architecture {name}", to_string=True)
        return "" if known.strip() else name
    return ""


def _is_live() -> bool:
    """True where memory moves while gdb looks at it (kgdb on /dev/mem)."""
    connection = getattr(gdb.selected_inferior(), "connection", None)
    if connection is None:
        return False
    details = f"{connection.type} {getattr(connection, 'details', None) or ''}"
    return "/dev/" in details or connection.type in ("native", "kvm")


def _is_remote() -> bool:
    connection = getattr(gdb.selected_inferior(), "connection", None)
    if connection is None:
        # gdb before 11 does not say.
        return "remote" in gdb.execute("info target", to_string=True)[:2000].lower()
    return connection.type in ("remote", "extended-remote")


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
