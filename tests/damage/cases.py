"""Kinds of damage, each made by chance from a seed, over what a command really reads.

A case is a kind, a command and a number: the same three are the same damage again.  Words
are damaged where the undamaged command read; whole pages and headers, where they lie.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from typing import Any, Callable, Dict, List, NamedTuple, Sequence, Tuple

from plugin.session import Kernel
from tests.damage import PAGE, damaged


class Read(NamedTuple):
    address: int
    size: int


class Places:
    """What one command read of the undamaged kernel, and what the words there hold."""

    def __init__(self, kernel: Kernel, reads: Sequence[Tuple[int, int]]) -> None:
        self.kernel = kernel
        self.width = kernel.pointer_size
        self.reads = sorted({Read(address, size) for address, size in reads})
        self.pages = sorted({read.address // PAGE * PAGE for read in self.reads})
        #: (address, value) of each word that leads into the kernel
        self.pointers: List[Tuple[int, int]] = []
        #: the others
        self.numbers: List[int] = []
        for read in self.reads:
            first = -(-read.address // self.width) * self.width
            for at in range(first, read.address + read.size - self.width + 1, self.width):
                value = kernel.pointer(at)
                if kernel.is_kernel_address(value):
                    self.pointers.append((at, value))
                else:
                    self.numbers.append(at)
        self.pointers = sorted(set(self.pointers))
        self.numbers = sorted(set(self.numbers))

    def word(self, value: int) -> bytes:
        return (value & ((1 << 8 * self.width) - 1)).to_bytes(self.width, "little")

    def near(self, address: int, chance: random.Random) -> Tuple[int, int]:
        """A pointer that lies close to another: of the same list, or the same struct."""
        place = bisect_right(self.pointers, (address, 0))
        return self.pointers[(place + chance.randrange(-40, 40)) % len(self.pointers)]


#: a way to damage a kernel: what it is given is chosen by chance alone
Damage = Callable[[Places, random.Random], Dict[str, Any]]


def cut(places: Places, chance: random.Random) -> Dict[str, Any]:
    at, _ = chance.choice(places.pointers)
    return {"words": {at: places.word(0)}}


def cross_linked(places: Places, chance: random.Random) -> Dict[str, Any]:
    at, _ = chance.choice(places.pointers)
    return {"words": {at: places.word(places.near(at, chance)[1])}}


def looped(places: Places, chance: random.Random) -> Dict[str, Any]:
    at, _ = chance.choice(places.pointers)
    target, _ = places.near(at, chance)
    return {"words": {at: places.word(target - chance.choice((0, 0, 8, 16, 64)))}}


def shifted(places: Places, chance: random.Random) -> Dict[str, Any]:
    at, value = chance.choice(places.pointers)
    return {"words": {at: places.word(value + chance.choice((-8, -4, -1, 1, 4, 8, 4096)))}}


def wild(places: Places, chance: random.Random) -> Dict[str, Any]:
    at, _ = chance.choice(places.pointers)
    value = chance.choice((0xDEADC0DEDEADC0DE, 1, (1 << 64) - 1, chance.getrandbits(64)))
    return {"words": {at: places.word(value)}}


def number(places: Places, chance: random.Random) -> Dict[str, Any]:
    at = chance.choice(places.numbers)
    value = chance.choice((0, 1, 0x7FFFFFFF, -1, chance.getrandbits(32), chance.getrandbits(64)))
    return {"words": {at: places.word(value)}}


def bit(places: Places, chance: random.Random) -> Dict[str, Any]:
    read = chance.choice(places.reads)
    at = read.address + chance.randrange(read.size)
    value = places.kernel.read(at, 1)[0] ^ 1 << chance.randrange(8)
    return {"words": {at: bytes((value,))}}


def several(places: Places, chance: random.Random) -> Dict[str, Any]:
    words: Dict[int, bytes] = {}
    for _ in range(chance.randrange(2, 9)):
        words.update(chance.choice((cut, cross_linked, wild, number))(places, chance)["words"])
    return {"words": words}


def page_missing(places: Places, chance: random.Random) -> Dict[str, Any]:
    return {"missing": [chance.choice(places.pages)]}


def page_zero(places: Places, chance: random.Random) -> Dict[str, Any]:
    return {"zeroed": [chance.choice(places.pages)]}


def page_noise(places: Places, chance: random.Random) -> Dict[str, Any]:
    return {"words": {chance.choice(places.pages): chance.randbytes(PAGE)}}


def pages_lost(places: Places, chance: random.Random) -> Dict[str, Any]:
    share = chance.choice((0.001, 0.01, 0.01, 0.03, 0.1))
    return {"lost": share, "seed": chance.randrange(1 << 30)}


class Kind(NamedTuple):
    """``lossy``: nothing is invented by it, so that what differs has to be marked."""

    name: str
    make: Damage
    lossy: bool


KINDS = (
    Kind("a pointer is NULL: a list cut", cut, False),
    Kind("a pointer leads to another element: cross-linked", cross_linked, False),
    Kind("a pointer leads back: a loop", looped, False),
    Kind("a pointer is off by a little", shifted, False),
    Kind("a pointer is wild", wild, False),
    Kind("a count, flag, lock word or size is another", number, False),
    Kind("one bit is another", bit, False),
    Kind("two to eight words are others", several, False),
    Kind("a page that is read is missing", page_missing, True),
    Kind("a page that is read is zero", page_zero, False),
    Kind("a page that is read is noise", page_noise, False),
    Kind("0.1 to 10 % of all pages are missing", pages_lost, True),
)


def broken(places: Places, kind: Kind, seed: str) -> Kernel:
    """The kernel with that damage, the same one for the same seed."""
    make = kind.make
    if not places.pointers or not places.numbers:
        # a command that reads no list: its bytes and pages are damaged all the same
        make = make if make in (page_missing, page_zero, page_noise, pages_lost) else bit
    return damaged(places.kernel, **make(places, random.Random(seed)))
