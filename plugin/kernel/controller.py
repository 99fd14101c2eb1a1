"""What a storage controller's own memory says of its commands: the common shape of all drivers.

Each driver has a module of its own (nvme.py, virtio.py, ahci.py, mps.py, umass.py), which reads
its structs and yields this.  A driver without one is never guessed at.
"""

from __future__ import annotations

from typing import NamedTuple, Optional, Tuple

from plugin.errors import MemoryFault
from plugin.session import Kernel

#: where a command is: the hardware has it, or the driver keeps it back
GIVEN = "given to the hardware"
KEPT = "kept by the driver"


class Command(NamedTuple):
    """A command in a driver's own memory.

    ``address``: the struct nvme_tracker *, vtblk_request *, ahci_slot *, ... (``struct`` says
    which).  ``bio`` and ``ccb``: the struct bio * and union ccb * it is for, 0 where it has none.
    ``place``: GIVEN or KEPT; ``where``: "qpair 3, cid 5".  ``trouble``: "timed out", "in
    recovery", "" for none.  ``seconds``: for how long the hardware has had it, None where the
    driver keeps no time.  ``retries`` likewise.
    """

    address: int
    struct: str
    bio: int
    ccb: int
    place: str
    where: str
    trouble: str = ""
    seconds: Optional[float] = None
    retries: Optional[int] = None


class Controller(NamedTuple):
    """A controller: its ``address`` is that of the driver's softc (``struct``).

    ``trouble``: what is wrong with all of it ("resetting"), in the order of weight.  ``whole``:
    every command that it may have was read, so one that is not among ``commands`` it has not.
    """

    name: str
    struct: str
    address: int
    commands: Tuple[Command, ...]
    trouble: Tuple[str, ...]
    whole: bool


def device_name(kernel: Kernel, device: int) -> str:
    """nameunit of a device_t ("nvme0"), "" where it cannot be read.

    Mirrors kern/subr_bus.c: struct device up to 13.x, struct _device since.
    """
    for struct in ("_device", "device"):
        if kernel.layouts.has(struct, "nameunit"):
            try:
                return kernel.try_cstring(kernel.view(struct, device).nameunit)
            except MemoryFault:
                return ""
    return ""


def bio_of_ccb(kernel: Kernel, ccb: int) -> int:
    """The struct bio * of a union ccb *: ppriv_ptr1, the second word of its periph_priv.

    0 where it has none.  da, ada, nda and cd keep it there, in every version.
    """
    if not ccb:
        return 0
    at = ccb + kernel.layouts.offsetof("ccb_hdr", "periph_priv") + kernel.pointer_size
    return kernel.pointer(at)
