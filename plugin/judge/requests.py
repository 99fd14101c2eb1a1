"""Outstanding requests, grouped: what is asked of whom, how much, how old, on whose behalf."""

from __future__ import annotations

from typing import Dict, Iterable, List, NamedTuple, Optional, Tuple

from plugin.judge.geom_io import (
    QUEUED,
    STATES,
    OutstandingBio,
    Place,
    age,
    outstanding_by_address,
)
from plugin.kernel.bio import (
    Bio,
    BioQueue,
)
from plugin.kernel.disk import provider_of_disk
from plugin.kernel.geom import provider_at
from plugin.session import Kernel


def on_a_queue(kernel: Kernel, bio: Bio, queue: BioQueue) -> OutstandingBio:
    """A bio on a queue that is none of GEOM's own."""
    provider = provider_at(kernel, bio.to) or provider_of_disk(kernel, bio.disk)
    place = Place(QUEUED, f"on {queue.name}", "proven", provider, queue.name)
    return OutstandingBio(bio, place, (), age(kernel, bio))


class Requests(NamedTuple):
    provider: str
    cmd: str
    state: str
    requests: int
    bytes: int
    oldest: Optional[float]


def grouped(kernel: Kernel, requests: Iterable[OutstandingBio]) -> List[Requests]:
    """Per provider and command: how many, how much, how old; the oldest group first."""
    found: Dict[Tuple[str, str, str], List[OutstandingBio]] = {}
    for each in requests:
        key = (provider_name(kernel, each), each.bio.cmd, each.state)
        found.setdefault(key, []).append(each)
    groups = []
    for (provider, cmd, state), members in found.items():
        ages = [a for a in (age_of(kernel, m) for m in members) if a is not None]
        groups.append(
            Requests(
                provider,
                cmd,
                state,
                len(members),
                sum(m.bio.length for m in members),
                max(ages) if ages else None,
            )
        )
    return sorted(groups, key=lambda g: (STATES.index(g.state), -(g.oldest or 0), g.provider))


def age_of(kernel: Kernel, each: OutstandingBio) -> Optional[float]:
    """Its own age, or for a request without a clock of its own that of its oldest clone."""
    if each.age is not None:
        return each.age
    known = outstanding_by_address(kernel)
    ages = [known[c].age for c in each.clones if c in known]
    return max((a for a in ages if a is not None), default=None)


def provider_name(kernel: Kernel, each: OutstandingBio) -> str:
    """The provider asked; for a clone in a driver's hands the disk's."""
    provider = (
        provider_at(kernel, each.bio.to) or provider_of_disk(kernel, each.bio.disk) or each.provider
    )
    return provider.name if provider else ""


def clones_below(known: Dict[int, OutstandingBio], at: int) -> List[Bio]:
    found: List[Bio] = []
    todo = [at]
    seen = set()
    while todo:
        here = todo.pop(0)
        if here in seen or here not in known:
            continue
        seen.add(here)
        for clone in known[here].clones:
            if clone in known:
                found.append(known[clone].bio)
                todo.append(clone)
    return found
