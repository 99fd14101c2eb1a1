"""AHCI: the command slots of a channel, and what holds all of them up.

Mirrors sys/dev/ahci (ahci.h, ahci.c), 9.3 to 15.x.  slot[] has 32 places; rslots are those that
the hardware runs, toslots those whose time is over.
"""

from __future__ import annotations

from typing import Iterator, List, Tuple

from plugin.errors import LayoutError
from plugin.kernel.controller import GIVEN, KEPT, Command, Controller, bio_of_ccb, device_name
from plugin.session import Kernel, View

_SLOTS = 32


def channel(kernel: Kernel, softc: int) -> Controller:
    """A channel: ``softc`` is its struct ahci_channel *, that of the cam_sim "ahcich"."""
    view = kernel.view("ahci_channel", softc)
    name = device_name(kernel, view.dev)
    if not name.startswith("ahci"):
        raise LayoutError(f"ahci_channel {softc:#x} belongs to no device called ahcich")
    commands = list(_commands(kernel, view))
    return Controller(name, "ahci_channel", softc, tuple(commands), _trouble(view), True)


def _trouble(view: View) -> Tuple[str, ...]:
    found: List[str] = []
    if view.resetting:
        found.append("resetting")
    if view.fatalerr:
        found.append("after a fatal error")
    if view.get("recoverycmd", 0):
        found.append("reading what went wrong")
    if view.toslots:
        found.append(f"{bin(view.toslots).count('1')} of its slots timed out")
    if view.frozen:
        found.append(f"ccb {view.frozen:#x} is held back until others are done")
    return tuple(found)


def _commands(kernel: Kernel, view: View) -> Iterator[Command]:
    size = kernel.layouts.sizeof("ahci_slot")
    for index in range(_SLOTS):
        slot = kernel.view("ahci_slot", view.at("slot") + index * size)
        state = kernel.layouts.enum("ahci_slot_state", slot.state)
        if state == "AHCI_SLOT_EMPTY" or not slot.ccb:
            continue
        bit = 1 << index
        trouble = "timed out" if view.toslots & bit else ""
        if view.eslots & bit:
            trouble = trouble or "failed"
        yield Command(
            slot.address,
            "ahci_slot",
            bio_of_ccb(kernel, slot.ccb),
            slot.ccb,
            GIVEN if view.rslots & bit else KEPT,
            f"slot {index}",
            trouble,
        )
