"""Damage put into a kernel that is open already: a reader that lies, and the damage it does.

``DamagedTarget`` stands before a target: words are replaced, pages are zero or missing, all
else is the target's own.  ``damaged(kernel, ...)`` makes a Kernel of it without opening the
dump again, so that hundreds of cases cost little more than their commands.
"""

from __future__ import annotations

import random
from typing import Any, Dict, Iterable, Set

from plugin.errors import MemoryFault
from plugin.kernel.module_file import ModuleSymbols
from plugin.session import Kernel

PAGE = 4096


class DamagedTarget:
    """A target whose memory is damaged: ``words`` {address: bytes}, pages zero or missing."""

    def __init__(
        self,
        target: Any,
        words: Dict[int, bytes],
        zeroed: Iterable[int] = (),
        missing: Iterable[int] = (),
        lost: float = 0.0,
        seed: int = 0,
    ) -> None:
        self._target = target
        self._words = words
        self._zeroed = {address // PAGE for address in zeroed}
        self._missing = {address // PAGE for address in missing}
        self._lost, self._seed = lost, seed
        self._asked: Dict[int, bool] = {}
        #: where damage was met
        self.met: Set[int] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)

    def _gone(self, page: int) -> bool:
        if not self._lost:
            return page in self._missing
        known = self._asked.get(page)
        if known is None:
            # By page and seed alone, whatever is read first.
            known = random.Random(f"{self._seed}:{page}").random() < self._lost
            self._asked[page] = known
        return known or page in self._missing

    def read(self, address: int, size: int) -> bytes:
        data = bytearray(self._target.read(address, size))
        for page in range(address // PAGE, (address + max(size, 1) - 1) // PAGE + 1):
            if self._gone(page):
                self.met.add(page * PAGE)
                raise MemoryFault(max(address, page * PAGE), "removed by the test")
            if page in self._zeroed:
                self.met.add(page * PAGE)
                low, high = max(address, page * PAGE), min(address + size, (page + 1) * PAGE)
                data[low - address : high - address] = bytes(high - low)
        for at, word in self._words.items():
            for offset, byte in enumerate(word):
                if address <= at + offset < address + size:
                    self.met.add(at)
                    data[at + offset - address] = byte
        return bytes(data)


def damaged(kernel: Kernel, **damage: Any) -> Kernel:
    """The same kernel seen through damaged memory; see DamagedTarget for ``damage``."""
    target: Any = DamagedTarget(kernel.target, damage.pop("words", {}), **damage)
    made = Kernel(target, kernel.layouts, kernel.facts)
    if kernel.modules is not None:
        made.modules = ModuleSymbols(made)
    made.start_command()
    return made
