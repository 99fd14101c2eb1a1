"""Device nodes and the threads counted inside their drivers.

Mirrors sys/kern/kern_conf.c and sys/fs/devfs: every struct cdev is part of a struct cdev_priv
on cdevp_list, 7.x to 15.x.
"""

from __future__ import annotations

from typing import List, NamedTuple

from plugin.caching import MEMORY, cached
from plugin.errors import LayoutError, MemoryFault
from plugin.kernel.file import by_data
from plugin.kernel.queue import tailq_foreach
from plugin.session import Kernel


class Device(NamedTuple):
    """One struct cdev *; ``threads`` is si_threadcount."""

    address: int
    name: str
    threads: int


@cached(MEMORY)
def cdevs(kernel: Kernel) -> List[Device]:
    """Every device node, in the order in which they were made; [] where they cannot be read."""
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
            device = address + kernel.layouts.offsetof("cdev_priv", "cdp_c")
            found.append(Device(device, _name(kernel, device), count))
    except (MemoryFault, LayoutError) as error:
        kernel.warnings.add("cdevp_list", symbol.address, str(error), partial=False)
    return found


def _name(kernel: Kernel, device: int) -> str:
    """si_name: a pointer to room behind the struct to 8.x, an array since."""
    view = kernel.view("cdev", device)
    if kernel.layouts.resolve("cdev", "si_name").is_pointer:
        return kernel.name_at("a device", view.si_name)
    return view.text("si_name")


def cdevs_in_use(kernel: Kernel) -> List[Device]:
    """The devices that threads are inside of, by si_threadcount."""
    return [device for device in cdevs(kernel) if device.threads]


def users(kernel: Kernel, name: str) -> List[int]:
    """The struct proc * that have the device called ``name`` open.

    devfs_open() makes the struct cdev * the f_data of a device's open file.
    """
    return list(
        dict.fromkeys(
            opened.proc
            for device in cdevs(kernel)
            if device.name == name
            for opened in by_data(kernel).get(device.address, ())
        )
    )
