"""LSI's SAS controllers, mps(4) and mpr(4): the commands they have, and which are in recovery.

Mirrors sys/dev/mps (mpsvar.h, mps_sas.c) and sys/dev/mpr, 9.3 to 15.x: the same driver twice.
commands[] holds one for each request frame, the first never used.  Up to 11.x a command whose
time was over had a state of its own, since then flags.
"""

from __future__ import annotations

from typing import Iterator

from plugin.errors import LayoutError
from plugin.kernel.controller import GIVEN, KEPT, Command, Controller, bio_of_ccb, device_name
from plugin.session import Kernel, View

#: a request's number has 16 bits
_MAX_COMMANDS = 1 << 16


def mps(kernel: Kernel, softc: int) -> Controller:
    """An mps controller: ``softc`` is its struct mpssas_softc *, that of the cam_sim "mps"."""
    return _controller(kernel, softc, "mps")


def mpr(kernel: Kernel, softc: int) -> Controller:
    """An mpr controller: ``softc`` is its struct mprsas_softc *, that of the cam_sim "mpr"."""
    return _controller(kernel, softc, "mpr")


def _controller(kernel: Kernel, softc: int, kind: str) -> Controller:
    view = kernel.view(f"{kind}_softc", kernel.view(f"{kind}sas_softc", softc).sc)
    if view.sassc != softc:
        raise LayoutError(f"{kind}_softc {view.address:#x} does not lead back to {softc:#x}")
    name = device_name(kernel, view[f"{kind}_dev"])
    constant = kernel.layouts.constant
    upper = kind.upper()
    flags = view[f"{kind}_flags"]
    trouble = []
    if flags & constant(f"{upper}_FLAGS_DIAGRESET", 0x10):
        trouble.append("resetting")
    if flags & constant(f"{upper}_FLAGS_SHUTDOWN", 0x8):
        trouble.append("shutting down")
    if view.tm_cmds_active:
        trouble.append(f"{view.tm_cmds_active} task management commands under way")
    commands = tuple(_commands(kernel, view, kind))
    return Controller(name, f"{kind}_softc", view.address, commands, tuple(trouble), True)


def _commands(kernel: Kernel, view: View, kind: str) -> Iterator[Command]:
    struct, number = f"{kind}_command", view.num_reqs
    if not 0 < number <= _MAX_COMMANDS:
        raise LayoutError(f"{kind}_softc {view.address:#x}: {number} commands")
    upper, constant = kind.upper(), kernel.layouts.constant
    free, busy = constant(f"{upper}_CM_STATE_FREE", 0), constant(f"{upper}_CM_STATE_BUSY", 1)
    in_queue = constant(f"{upper}_CM_STATE_INQUEUE", -1)
    late_state = constant(f"{upper}_CM_STATE_TIMEDOUT", -1)
    late = constant(f"{upper}_CM_FLAGS_TIMEDOUT", 0)
    recovering = constant(f"{upper}_CM_FLAGS_ON_RECOVERY", 0)
    size = kernel.layouts.sizeof(struct)
    fields = kernel.layouts.fields(struct, "cm_state", "cm_flags", "cm_ccb")
    if not kernel.affords(f"commands of {kind}", number * size, partial=False):
        raise LayoutError("not read, too much for the wire")
    raw = kernel.read(view.commands, number * size)
    for index in range(1, number):
        state, flags, ccb = fields.unpack_from(raw, index * size)
        if state == free or not ccb:
            continue
        trouble = "timed out" if state == late_state or flags & late else ""
        if flags & recovering:
            trouble = f"{trouble}, in recovery" if trouble else "in recovery"
        # Where no state says that it was sent, one that is busy was.
        kept = in_queue != -1 and state == busy
        yield Command(
            view.commands + index * size,
            struct,
            bio_of_ccb(kernel, ccb),
            ccb,
            KEPT if kept else GIVEN,
            f"SMID {index}",
            trouble,
        )
