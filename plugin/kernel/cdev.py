"""Device nodes and the threads counted inside their drivers.

Mirrors sys/kern/kern_conf.c and sys/fs/devfs: every struct cdev is part of a struct cdev_priv
on cdevp_list, 7.x to 15.x.
"""

from __future__ import annotations

from typing import List, NamedTuple

from plugin.caching import MEMORY, cached
from plugin.errors import LayoutError, MemoryFault
from plugin.kernel.queue import tailq_foreach
from plugin.session import Kernel


class Device(NamedTuple):
    """One struct cdev *; ``threads`` is si_threadcount."""

    address: int
    name: str
    threads: int


@cached(MEMORY)
def cdevs_in_use(kernel: Kernel) -> List[Device]:
    """The devices that threads are inside of, by si_threadcount; [] where they cannot be read."""
    symbol = kernel.symbol("cdevp_list")
    if symbol is None or "cdev_priv" not in kernel.layouts:
        return []
    found = []
    try:
        for address, (count,) in tailq_foreach(
            kernel,
            symbol.address,
            "cdev_priv",
            "cdp_list",
            ["cdp_c.si_threadcount"],
            what="cdevp_list",
            bound=1 << 20,
        ):
            if count:
                device = address + kernel.layouts.offsetof("cdev_priv", "cdp_c")
                view = kernel.view("cdev", device)
                found.append(Device(device, view.text("si_name"), count))
    except (MemoryFault, LayoutError) as error:
        kernel.warnings.add("cdevp_list", symbol.address, str(error), partial=False)
    return found
