"""USB mass storage: one command at a time.

Mirrors sys/dev/usb/storage/umass.c, 9.3 to 15.x: sc_transfer.ccb is the command under way.
"""

from __future__ import annotations

from plugin.errors import LayoutError
from plugin.kernel.controller import GIVEN, Command, Controller, bio_of_ccb
from plugin.session import Kernel


def controller(kernel: Kernel, softc: int) -> Controller:
    """``softc`` is the struct umass_softc *, that of the cam_sim "umass-sim"."""
    view = kernel.view("umass_softc", softc)
    name = view.text("sc_name")
    if not name.startswith("umass"):
        raise LayoutError(f"umass_softc {softc:#x} is called {name!r}")
    ccb = view["sc_transfer.ccb"]
    commands = []
    if ccb:
        at, bio = view.at("sc_transfer"), bio_of_ccb(kernel, ccb)
        commands = [Command(at, "umass_softc", bio, ccb, GIVEN, "on the bus")]
    return Controller(name, "umass_softc", softc, tuple(commands), (), True)
