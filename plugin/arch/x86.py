"""What amd64 and i386 have in common: trap entries and the old floating-point unit."""

from __future__ import annotations

from typing import Mapping, Tuple

from plugin.arch.common import Saved, registers

#: db_nextframe() of both (sys/amd64/amd64/db_trace.c, sys/i386/i386/db_trace.c), 6.x to 15.x
TRAPS = frozenset(
    (
        "calltrap",
        "alltraps",
        "nmi_calltrap",
        "fast_syscall_common",
        "Xfast_syscall",
        "Xlcall_syscall",
        "Xint0x80_syscall",
        "Xtss",
        "Xnmi",
        "Xdblfault",
        "Xpage",
        "Xdbg",
        "fork_trampoline_trap",
    )
)
TRAP_PREFIXES = (
    "Xtimerint",
    "Xapic_isr",
    "Xatpic_intr",
    "Xcpu",
    "Xipi",
    "Xinvl",
    "Xrendezvous",
    "Xlazypmap",
    "Xxen",
    "Xerrorint",
    "Xcmcint",
)
X87 = (
    *registers(" ".join(f"st{i}" for i in range(8)), 80, "i387_ext"),
    *registers("fctrl fstat ftag fiseg fioff foseg fooff fop", 32, "int"),
)
FLOATING = frozenset(register.name for register in X87)
_RING = 3


def flags(member: str) -> Tuple[Saved, ...]:
    """The flags as the debuggers call them."""
    return (Saved(member, ("eflags",)),)


def from_user(registers: Mapping[str, int]) -> bool:
    """True where the code segment is one of ring 3."""
    return registers.get("cs", 0) & _RING == _RING
