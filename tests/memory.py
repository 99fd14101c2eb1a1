"""A target over bytes laid out by a test, for states that no dump at hand is in.

It stands in for the memory alone; layouts come from structs.yaml as always.
"""

from __future__ import annotations

from typing import Dict, List, Mapping, Optional, Sequence, Tuple

from plugin.errors import MemoryFault
from plugin.opening import open_target
from plugin.session import Kernel
from plugin.symbol import Symbol
from plugin.vmcore.memory import CarriedModule


class MemoryTarget:
    """Kernel memory out of {address: bytes}; anything else faults."""

    stable = True
    in_pages = False
    carried: Mapping[str, CarriedModule] = {}
    wire = None
    page_size = 4096
    truncated = False
    files = ()
    message_buffer = b""
    description = "memory laid out by a test"

    def __init__(self, arch: str = "amd64") -> None:
        self.arch = arch
        self.pieces: Dict[int, bytearray] = {}
        self.names: Dict[str, Symbol] = {}
        self.stop = False

    def put(self, address: int, data: bytes) -> None:
        for base, piece in self.pieces.items():
            if base <= address and address + len(data) <= base + len(piece):
                piece[address - base : address - base + len(data)] = data
                return
        self.pieces[address] = bytearray(data)

    def word(self, address: int, value: int, size: int = 8) -> None:
        self.put(address, (value & (1 << 8 * size) - 1).to_bytes(size, "little"))

    def symbol(self, name: str, address: int, data: bytes = b"", kind: str = "object") -> None:
        self.names[name] = Symbol(name, address, len(data), kind, False)
        if data:
            self.put(address, data)

    def read(self, address: int, size: int) -> bytes:
        for base, piece in self.pieces.items():
            if base <= address < base + len(piece):
                found = bytes(piece[address - base : address - base + size])
                if len(found) < size:
                    found += self.read(address + len(found), size - len(found))
                return found
        raise MemoryFault(address)

    def symbols(self, name: str) -> Sequence[Symbol]:
        return [self.names[name]] if name in self.names else []

    def symbolize(self, address: int) -> Optional[Tuple[str, int]]:
        for symbol in self.names.values():
            if symbol.address <= address < symbol.address + max(symbol.size, 1):
                return symbol.name, address - symbol.address
        return None

    def types(self, notes: List[str]) -> None:
        return None

    def interrupted(self) -> bool:
        return self.stop


def kernel(release: str = "14.2-RELEASE", osreldate: int = 1402000) -> Tuple[Kernel, MemoryTarget]:
    """A kernel of that version with nothing in it yet."""
    target = MemoryTarget()
    base = 0xFFFFFFFF80000000
    target.symbol("osrelease", base, release.encode() + b"\0")
    target.symbol("osreldate", base + 0x100, osreldate.to_bytes(4, "little"))
    target.symbol("version", base + 0x200, f"FreeBSD {release} TEST".encode() + b"\0")
    target.symbol("kern_ident", base + 0x300, b"TEST\0")
    return open_target(target), target


def lay(k: Kernel, target: MemoryTarget, struct: str, at: int, **members: int) -> int:
    """Put a struct there, all of it zero but these members ("a.b" is written a__b); its address."""
    try:
        target.read(at, k.layouts.sizeof(struct))
    except MemoryFault:
        target.put(at, bytes(k.layouts.sizeof(struct)))
    for name, value in members.items():
        member = k.layouts.resolve(struct, name.replace("__", "."))
        target.word(at + member.offset, value, member.size)
    return at
