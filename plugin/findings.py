"""What went wrong while reading a kernel: collected, never raised to the user.

A corrupt list or an unreadable struct ends one walk, not the report.  Each
finding says what, where and why; the report that carries any of the kind that
hides data is marked partial.
"""

from __future__ import annotations

from typing import Dict, Iterator, List, NamedTuple, Optional, Set, Tuple


class Finding(NamedTuple):
    """``what`` was being read, ``address`` of the trouble if any, ``detail``."""

    what: str
    address: Optional[int]
    detail: str


#: findings kept: garbage can give one for each of millions of elements
LIMIT = 10_000


class Findings:
    """An append-only list of findings without repeats; ``partial`` if data is missing.

    Of more than ``LIMIT`` the first are kept, and how many there were.
    """

    def __init__(self) -> None:
        self._list: List[Finding] = []
        self._seen: Set[Tuple[str, Optional[int], str]] = set()
        #: what was taken over whole, by identity: a cached result is used many times
        self._taken: Dict[int, Findings] = {}
        self._more = 0
        self.partial = False

    def add(
        self, what: str, address: Optional[int] = None, detail: str = "", *, partial: bool = True
    ) -> None:
        """Record one finding; ``partial=False`` where nothing is missing for it."""
        finding = Finding(what, address, detail)
        self.partial = self.partial or partial
        if finding in self._seen:
            return
        if len(self._list) >= LIMIT:
            self._more += 1
            return
        self._seen.add(finding)
        self._list.append(finding)

    def extend(self, other: Findings) -> None:
        """Take over what another list, now complete, has found; once, however often asked."""
        self.partial = self.partial or other.partial
        if not other._list or self._taken.get(id(other)) is other:
            return
        self._taken[id(other)] = other
        for finding in other._list:
            self.add(*finding, partial=False)
        self._more += other._more

    def __iter__(self) -> Iterator[Finding]:
        yield from self._list
        if self._more:
            yield Finding("findings", None, f"{self._more} more, not kept")

    def __len__(self) -> int:
        return len(self._list) + bool(self._more)
