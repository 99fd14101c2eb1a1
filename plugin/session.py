"""Kernel: one target with its layouts and symbols, the object a command receives.

``open_core`` makes one from a dump and a kernel file; the debuggers' entries
make theirs from the target the user has open (``open_target``).  Reads are
ints and bytes; a failed read raises MemoryFault, which the walks in
``plugin.kernel`` turn into findings.
"""

from __future__ import annotations

import struct
from typing import (
    Any,
    Callable,
    Dict,
    FrozenSet,
    List,
    Optional,
    Protocol,
    Sequence,
    Tuple,
    TypeVar,
)

from plugin.arch import architecture
from plugin.caching import Kept, Lifetime, cached
from plugin.errors import MemoryFault, SymbolMissing
from plugin.findings import Findings
from plugin.structs import Layouts
from plugin.structs.layout import Fields
from plugin.symbol import Symbol
from plugin.targets import Target
from plugin.targets.wire import BUDGET

_UNSIGNED = {
    1: struct.Struct("<B"),
    2: struct.Struct("<H"),
    4: struct.Struct("<I"),
    8: struct.Struct("<Q"),
}
_T = TypeVar("_T")


class View:
    """One struct in memory, read once and decoded member by member.

    ``view.bio_cmd`` and ``view["bio_queue.tqe_next"]`` give ints (bytes for
    members that are no integer); structs held by value are walked by path.
    """

    __slots__ = ("_data", "_kernel", "_struct", "address")

    def __init__(self, kernel: Kernel, struct_name: str, address: int) -> None:
        self._kernel = kernel
        self._struct = struct_name
        self.address = address
        size = kernel.layouts.sizeof(struct_name)
        self._data: Optional[bytes] = None
        if kernel.target.wire is None:
            self._data = kernel.read(address, size)
        elif size:
            # What is asked for later comes then; that there is something to ask, now.
            kernel.read(address, 1)
            if address % kernel.page_size + size > kernel.page_size:
                kernel.read(address + size - 1, 1)

    def __getitem__(self, path: str) -> Any:
        fields = self._kernel.layouts.fields(self._struct, path)
        if self._data is None:
            return self._kernel.values(fields, self.address)[0]
        return fields.unpack(self._data)[0]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self[name]

    def get(self, path: str, default: Any = None) -> Any:
        """The value, or ``default`` where this kernel's struct has no such member."""
        return self[path] if self.has(path) else default

    def has(self, path: str) -> bool:
        return self._kernel.layouts.has(self._struct, path)

    def at(self, path: str) -> int:
        """The address of the member."""
        return self.address + self._kernel.layouts.offsetof(self._struct, path)

    def bytes(self, path: str) -> bytes:
        member = self._kernel.layouts.resolve(self._struct, path)
        if self._data is None:
            return self._kernel.read(self.address + member.offset, member.size)
        return self._data[member.offset : member.offset + member.size]

    def text(self, path: str) -> str:
        """A char array as text, up to its NUL."""
        if self._data is None:
            size = self._kernel.layouts.resolve(self._struct, path).size
            return self._kernel.cstring(self.at(path), size)
        return _text(self.bytes(path))

    def __repr__(self) -> str:
        return f"<{self._struct} at {self.address:#x}>"


class MoreSymbols(Protocol):
    """Symbols beside those of the kernel file: the modules'."""

    def symbols(self, name: str) -> Sequence[Symbol]: ...

    def symbolize(self, address: int) -> Optional[Tuple[str, int]]: ...


class Kernel:
    """A kernel to ask: memory, symbols, layouts, and what was found wrong so far."""

    def __init__(self, target: Target, layouts: Layouts, facts: KernelFacts) -> None:
        self.target = target
        self.layouts = layouts
        self.facts = facts
        self.warnings = Findings()
        self.read: Callable[[int, int], bytes] = target.read
        #: called with what is being done, and how much of it, by work that may take long
        self.progress: Callable[[str, int, int], None] = lambda what, done, total: None
        #: True where everything is to be read, over a wire too
        self.deep = False
        #: what had gone over the wire when this command began
        self._spent = 0
        self.arch = target.arch
        self.architecture = architecture(target.arch)
        self.pointer_size = self.architecture.pointer_size
        self._unpack_pointer = _UNSIGNED[self.pointer_size].unpack
        self.page_size = facts.page_size
        self._lowest = self.architecture.lowest
        #: told by walkers what they read that tells of people: what it is (a kind of
        #: plugin.capsule.redact), where it lies, its bytes; None where nobody asks
        self.private: Optional[Callable[[str, int, bytes], None]] = None
        #: what the loaded modules add to the kernel's own symbols, None where nothing does
        self.modules: Optional[MoreSymbols] = None
        self._symbols: Dict[str, Optional[Symbol]] = {}
        #: what cached walks returned, with what they found wrong (plugin.caching)
        self.kept: Kept = ({}, {})

    # What kernel this is

    @property
    def release(self) -> str:
        return self.facts.release

    @property
    def osreldate(self) -> int:
        return self.facts.osreldate

    @property
    def ident(self) -> str:
        return self.facts.ident

    @property
    def variant(self) -> List[str]:
        return sorted(self.facts.variant)

    @property
    def panicstr(self) -> Optional[str]:
        """The panic message, None where the kernel has not panicked."""
        return _panicstr(self)

    # Memory

    def reader(self, fields: Fields) -> Callable[[int, int], bytes]:
        """What reads a struct for ``fields.unpack``: ``read(address, fields.span)``.

        Over a wire only the members are asked for, the bytes between them are 0.
        """
        wire = self.target.wire
        if wire is None:
            return self.read
        return lambda address, size: wire.gather(address, fields.parts, size)

    def values(self, fields: Fields, address: int) -> Tuple[int, ...]:
        """The members of ``fields`` of the struct at ``address``, or MemoryFault."""
        return fields.unpack(self.reader(fields)(address, fields.span))

    @property
    def chosen(self) -> bool:
        """True where every byte is dear: only what a wait leads to is read, unless ``deep``."""
        return self.target.wire is not None and not self.deep

    def affords(self, what: str, size: int, *, partial: bool = True) -> bool:
        """Whether to read ``size`` bytes that are not needed; over a wire that may be too much.

        What is then left out is a finding, with ``partial`` one that hides data; no finding
        without ``what``.
        """
        wire = self.target.wire
        if wire is None or self.deep or wire.spent - self._spent + 2 * size <= BUDGET:
            return True
        why = "not read, too much for the wire: --deep reads it"
        if what:
            self.warnings.add(what, None, why, partial=partial)
        return False

    def exactly(self, address: int, size: int) -> bytes:
        """As ``read``; over a wire nothing beside it is asked for, because nobody will want it."""
        wire = self.target.wire
        if wire is None:
            return self.read(address, size)
        return wire.gather(address, ((0, size),), size)

    def unsigned(self, address: int, size: int) -> int:
        value: int = _UNSIGNED[size].unpack(self.read(address, size))[0]
        return value

    def signed(self, address: int, size: int) -> int:
        return int.from_bytes(self.read(address, size), "little", signed=True)

    def pointer(self, address: int) -> int:
        value: int = self._unpack_pointer(self.read(address, self.pointer_size))[0]
        return value

    def cstring(self, address: int, limit: int = 256) -> str:
        """The NUL-terminated text at ``address``, at most ``limit`` bytes of it."""
        taken = b""
        step_of = 64 if self.target.wire is None else 16
        while len(taken) < limit:
            step = min(step_of - address % step_of, limit - len(taken))
            try:
                piece = self.read(address, step)
            except MemoryFault:
                if taken:
                    break
                raise
            taken += piece
            if b"\0" in piece:
                break
            address += step
        return _text(taken)

    def try_cstring(self, address: int, default: str = "", limit: int = 256) -> str:
        """As cstring, with ``default`` for NULL and for what cannot be read."""
        if not address:
            return default
        try:
            return self.cstring(address, limit)
        except MemoryFault:
            return default

    def name_at(self, what: str, address: int, limit: int = 256) -> str:
        """The text at ``address``, "" for NULL; a finding and "?" where it cannot be read."""
        if not address:
            return ""
        try:
            return self.cstring(address, limit)
        except MemoryFault as fault:
            self.warnings.add(what, fault.address, f"its name: {fault.reason}")
            return "?"

    def view(self, struct_name: str, address: int) -> View:
        return View(self, struct_name, address)

    def is_kernel_address(self, address: int) -> bool:
        """True where ``address`` lies in the kernel's half of the address space."""
        return address >= self._lowest

    # Symbols

    def symbol(self, name: str) -> Optional[Symbol]:
        """The symbol of that name; of duplicates a global one, else the first.

        The kernel's own first; a module's where the kernel has none of that name.
        """
        try:
            return self._symbols[name]
        except KeyError:
            pass
        found = self.symbols(name)
        best = next((s for s in found if not s.local), found[0] if found else None)
        self._symbols[name] = best
        return best

    def symbols(self, name: str) -> Sequence[Symbol]:
        """Every symbol of that name: the kernel's, or where it has none the modules'."""
        found = self.target.symbols(name)
        if not found and self.modules is not None:
            found = self.modules.symbols(name)
        return found

    def has_symbol(self, name: str) -> bool:
        return self.symbol(name) is not None

    def address_of(self, name: str) -> int:
        """The symbol's address, or SymbolMissing."""
        found = self.symbol(name)
        if found is None:
            raise SymbolMissing(name)
        return found.address

    def global_value(
        self, name: str, default: Optional[int] = None, *, signed: bool = False
    ) -> int:
        """The integer or pointer that a kernel variable holds, by its symbol's size.

        ``default`` where the kernel has no such variable or, with a finding, where it
        cannot be read; without it SymbolMissing and MemoryFault.  A symbol without a
        size is a pointer's.
        """
        found = self.symbol(name)
        if found is None:
            if default is None:
                raise SymbolMissing(name)
            return default
        size = found.size if found.size in _UNSIGNED else self.pointer_size
        read = self.signed if signed else self.unsigned
        try:
            return read(found.address, size)
        except MemoryFault as fault:
            if default is None:
                raise
            self.warnings.add(name, fault.address, fault.reason)
            return default

    def symbolize(self, address: int) -> str:
        """ "name+0x12" for an address that a symbol covers, else ""."""
        found = self.covering(address)
        if found is None:
            return ""
        name, offset = found
        return f"{name}+{offset:#x}" if offset else name

    def covering(self, address: int) -> Optional[Tuple[str, int]]:
        """(name, offset) of the symbol of kernel or module that covers ``address``, or None."""
        found = self.target.symbolize(address)
        if found is None and self.modules is not None and address >= self._lowest:
            found = self.modules.symbolize(address)
        return found

    def start_command(self, *, deep: bool = False) -> None:
        """Begin a command: only what it finds, and what holds for the session, is reported.

        ``deep``: it reads what is dear as well.
        """
        if self.target.wire is not None and deep != self.deep:
            # What was left out is no answer any more; what went over the wire is still known.
            self.forget()
        self.deep = deep
        self.warnings = Findings()
        if self.target.wire is not None:
            self._spent = self.target.wire.spent
        if not self.target.stable:
            # A running kernel: what one command has read is one picture, the next needs its own.
            self.kept[Lifetime.MEMORY].clear()
        for note in self.facts.notes:
            self.warnings.add("kernel", None, note, partial=False)

    # Findings

    def noting(self) -> _Noting:
        """What is found wrong inside the ``with``, apart; afterwards it is reported as ever.

        A walk learns by it whether it is whole: ``not found.partial``.
        """
        return _Noting(self)

    # Caching

    def remember(
        self, lifetime: Lifetime, function: Callable[..., _T], arguments: Tuple[Any, ...]
    ) -> _T:
        """What ``function(self, *arguments)`` returns, computed and kept for ``lifetime``.

        What it found wrong is kept with it, and reported at every use.
        """
        outer, self.warnings = self.warnings, Findings()
        try:
            value = function(self, *arguments)
        finally:
            findings, self.warnings = self.warnings, outer
        # Asked a hundred thousand times in one command, mostly with nothing to report.
        found = findings if findings.partial or len(findings) else None
        self.kept[lifetime][function, arguments] = value, found
        if found is not None:
            outer.extend(found)
        return value

    def forget(self) -> None:
        """Drop everything read: the target has run."""
        for kept in self.kept:
            kept.clear()
        self._symbols.clear()
        self.warnings = Findings()

    def interrupted(self) -> bool:
        return self.target.interrupted()


class _Noting:
    """Kernel.noting(): a class, for a generator costs more than the short walks within it."""

    __slots__ = ("_inner", "_kernel", "_outer")

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    def __enter__(self) -> Findings:
        self._outer = self._kernel.warnings
        self._inner = self._kernel.warnings = Findings()
        return self._inner

    def __exit__(self, *_: object) -> None:
        self._kernel.warnings = self._outer
        self._outer.extend(self._inner)


class KernelFacts:
    """What tells one kernel from another, read before any layout is known."""

    def __init__(
        self,
        *,
        release: str,
        osreldate: int,
        ident: str,
        version: str,
        variant: FrozenSet[str],
        page_size: int,
        notes: Sequence[str] = (),
        roots: Sequence[str] = (),
    ) -> None:
        self.release = release
        self.osreldate = osreldate
        self.ident = ident
        self.version = version
        self.variant = variant
        self.page_size = page_size
        #: what every report must say about how this kernel is read
        self.notes = list(notes)
        #: folders under which the files of the machine lie that is looked at
        self.roots = list(roots)


@cached(Lifetime.MEMORY)
def _panicstr(kernel: Kernel) -> Optional[str]:
    try:
        pointer = kernel.global_value("panicstr", 0)
        return kernel.cstring(pointer, 512) if pointer else None
    except MemoryFault as fault:
        kernel.warnings.add("panicstr", fault.address, fault.reason)
        return None


def _text(data: bytes) -> str:
    return data.split(b"\0", 1)[0].decode("utf-8", "backslashreplace")
