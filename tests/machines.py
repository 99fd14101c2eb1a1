"""Forged machines on which the debuggers are tried, one of each architecture."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from tests.forge.machine import Machine

#: innermost first, as a backtrace shows them
PANICKED = ["doadump", "kern_reboot", "panic", "example_syscall"]
WAITS = ["example_wait", "example_syscall"]
HZ = 250
#: pcb_x of arm64 changed in 14; i386 lies low in its address space from 12.0 on
KERNELS = ["14.2 amd64", "14.2 arm64", "13.0 arm64", "14.2 i386", "7.0 i386"]
_OSRELDATES = {"14.2": 1402000, "13.0": 1300139, "7.0": 700014}


class Example(NamedTuple):
    """A machine whose thread ``dumper`` panicked while ``second`` of ``waiter`` sleeps."""

    arch: str
    vmcore: Path
    kernel: Path
    dumper: int
    sleeper: int
    threads: int


def example(kernel: str, folder: Path, ident: str = "GENERIC") -> Example:
    version, arch = kernel.split()
    machine = Machine(_OSRELDATES[version], arch, hz=HZ, ident=ident)
    dumper = machine.procs.process("dumper").thread(calls=PANICKED)
    sleeper = machine.procs.process("waiter").thread("second", calls=WAITS)
    sleeper.sleeps(machine.take(8), "example")
    machine.panics(dumper, "example panic", 0)
    vmcore, file = machine.write(folder)
    threads = sum(len(process.threads) for process in machine.procs.all)
    return Example(arch, vmcore, file, dumper.tid, sleeper.tid, threads)
