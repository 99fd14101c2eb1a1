"""Which layouts a target gets: debug information first, structs.yaml else."""

from __future__ import annotations

from typing import FrozenSet, List, NamedTuple, Optional

from plugin.structs import Layouts
from plugin.structs.choose import choose_yaml
from plugin.structs.layout import LayoutSource
from plugin.targets import Target


class Selection(NamedTuple):
    """The layouts, the options found in the kernel, and what a report must say."""

    layouts: Layouts
    variant: FrozenSet[str]
    notes: List[str]


#: A symbol that only a kernel with the option defines.
_OPTION_SYMBOLS = {
    # Destructors that exist for their assertions alone; static, but never inlined
    # since UMA calls them by pointer.  6.x to 15.x.
    "INVARIANTS": ("vm_object_zdtor", "vmspace_zdtor"),
    "WITNESS": ("w_data", "witness_watch"),
}


def variant_of(target: Target) -> FrozenSet[str]:
    """INVARIANTS, WITNESS, ... as the kernel's symbols tell."""
    return frozenset(
        option
        for option, names in _OPTION_SYMBOLS.items()
        if any(target.symbols(name) for name in names)
    )


def choose_layouts(
    target: Target, osreldate: int, *, override: Optional[str] = None, force: bool = False
) -> Selection:
    """Layouts for a target: the debugger's types, then structs.yaml.

    LayoutError where nothing fits and ``force`` is not given.
    """
    variant = variant_of(target)
    choice = choose_yaml(osreldate, target.arch, variant, override, force=force)
    sources: List[LayoutSource] = [choice.source]
    types = target.types()
    if types is not None and override is None:
        sources.insert(0, types)
    notes = [] if choice.exact else [choice.how]
    return Selection(Layouts(sources, choice.tables), variant, notes)
