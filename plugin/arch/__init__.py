"""All that differs between the architectures, one module each.

A module of this folder with an ``ARCHITECTURE`` is one more that wchan knows:
nothing else lists them.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Dict, Iterator, Optional

from plugin.arch.common import Architecture
from plugin.errors import WchanError


def _all() -> Iterator[Architecture]:
    for module in pkgutil.iter_modules(__path__):
        found = getattr(importlib.import_module(f"{__name__}.{module.name}"), "ARCHITECTURE", None)
        if isinstance(found, Architecture):
            yield found


#: uname's name of the architecture to what is known of it
BY_NAME: Dict[str, Architecture] = {each.name: each for each in _all()}
#: the first bytes of a minidump to the architecture that made it
BY_MAGIC: Dict[bytes, Architecture] = {each.minidumps.magic: each for each in BY_NAME.values()}
#: e_machine to the architecture
BY_MACHINE: Dict[int, Architecture] = {each.machine: each for each in BY_NAME.values()}

#: e_machine of those that FreeBSD ran on and wchan knows by name alone
OTHERS = {8: "mips", 20: "powerpc", 21: "powerpc64", 40: "arm", 43: "sparc64", 50: "ia64"}


def name_of(machine: int) -> str:
    """uname -p's name for an ELF file's e_machine, "machine N" for an unknown one."""
    known = BY_MACHINE.get(machine)
    return known.name if known is not None else OTHERS.get(machine, f"machine {machine}")


def called(word: str) -> Optional[Architecture]:
    """The architecture that FreeBSD or a debugger calls ``word`` ("aarch64"), None if none."""
    for each in BY_NAME.values():
        if word in (each.name, *each.debuggers.lldb_names, *each.debuggers.gdb_names):
            return each
    return None


def architecture(name: str) -> Architecture:
    """The architecture of that name; WchanError where wchan does not know it."""
    found = BY_NAME.get(name)
    if found is None:
        raise WchanError(f"wchan knows {', '.join(sorted(BY_NAME))}, not {name}")
    return found
