"""virtio block and SCSI: the requests in a virtqueue, and those that wait for room in it.

Mirrors sys/dev/virtio (virtqueue.c, block/virtio_blk.c, scsi/virtio_scsi.c), 9.3 to 15.x.  A
cookie in vq_descx[], the array behind struct virtqueue, is a request that the device has.
"""

from __future__ import annotations

from typing import Iterator, List, Tuple

from plugin.errors import LayoutError
from plugin.kernel.controller import (
    GIVEN,
    KEPT,
    Command,
    Controller,
    bio_of_ccb,
    device_name,
)
from plugin.kernel.queue import tailq_foreach
from plugin.session import Kernel, View

#: the longest ring of the virtio standard
_MAX_ENTRIES = 1 << 15
_MAX_READY = 1 << 16
#: macros whose values differ between versions, and what they say
_VTBLK_FLAGS = (("VTBLK_FLAG_DETACH", "being detached"), ("VTBLK_FLAG_SUSPEND", "suspended"))
_VTSCSI_FLAGS = (("VTSCSI_FLAG_RESET", "being reset"), ("VTSCSI_FLAG_DETACH", "being detached"))
_VTSCSI_FROZEN = (
    ("VTSCSI_FROZEN_NO_REQUESTS", "out of requests"),
    ("VTSCSI_FROZEN_REQUEST_VQ_FULL", "its virtqueue is full"),
)


def _cookies(kernel: Kernel, queue: int) -> List[int]:
    """The cookies of a struct virtqueue *: one for each request that the device has."""
    view = kernel.view("virtqueue", queue)
    number = view.vq_nentries
    if not 0 < number <= _MAX_ENTRIES or view.vq_free_cnt > number:
        raise LayoutError(f"virtqueue {queue:#x}: {number} entries, {view.vq_free_cnt} free")
    if kernel.chosen and view.vq_free_cnt == number:
        return []
    size = kernel.layouts.sizeof("vq_desc_extra")
    at = kernel.layouts.offsetof("vq_desc_extra", "cookie")
    width = kernel.pointer_size
    if not kernel.affords("requests in a virtqueue", number * size, partial=False):
        raise LayoutError("not read, too much for the wire")
    raw = kernel.read(queue + kernel.layouts.sizeof("virtqueue"), number * size)
    words = (
        int.from_bytes(raw[begin : begin + width], "little")
        for begin in range(at, number * size, size)
    )
    found = [word for word in words if word]
    if len(found) > number - view.vq_free_cnt:
        raise LayoutError(f"virtqueue {queue:#x}: {len(found)} cookies, {view.vq_free_cnt} free")
    return found


def block(kernel: Kernel, softc: int) -> Controller:
    """A virtio disk: ``softc`` is its struct vtblk_softc *.

    vtblk_dump_request is the dump being written: none of the requests under way.
    """
    view = kernel.view("vtblk_softc", softc)
    name = device_name(kernel, view.vtblk_dev)
    if not name:
        raise LayoutError(f"vtblk_softc {softc:#x} belongs to no device")
    dump = view.at("vtblk_dump_request") if view.has("vtblk_dump_request") else 0
    commands = [
        _blk(kernel, address, GIVEN, "in its virtqueue")
        for address in _cookies(kernel, view.vtblk_vq)
        if address != dump
    ]
    with kernel.noting() as found:
        for address, _ in tailq_foreach(
            kernel,
            view.at("vtblk_req_ready"),
            "vtblk_request",
            "vbr_link",
            what=f"vtblk_req_ready of {name}",
            bound=_MAX_READY,
        ):
            commands.append(_blk(kernel, address, KEPT, "vtblk_req_ready"))
    trouble = _words(kernel, view.vtblk_flags, _VTBLK_FLAGS)
    return Controller(name, "vtblk_softc", softc, tuple(commands), trouble, not found.partial)


def _blk(kernel: Kernel, address: int, place: str, where: str) -> Command:
    bio = kernel.view("vtblk_request", address).vbr_bp
    return Command(address, "vtblk_request", bio, 0, place, where)


def dump_queue(kernel: Kernel, softc: int) -> int:
    """Address of a vtblk_softc's vtblk_dump_queue, 0 where it has none (9.3).

    vtblk_dump() puts there what the device has returned while the dump was begun: those
    requests are done, and are delivered if the machine ever goes on.
    """
    if not kernel.layouts.has("vtblk_softc", "vtblk_dump_queue"):
        return 0
    return softc + kernel.layouts.offsetof("vtblk_softc", "vtblk_dump_queue")


def scsi(kernel: Kernel, softc: int) -> Controller:
    """A virtio SCSI controller: ``softc`` is its struct vtscsi_softc *, that of a cam_sim."""
    view = kernel.view("vtscsi_softc", softc)
    name = device_name(kernel, view.vtscsi_dev)
    if not name:
        raise LayoutError(f"vtscsi_softc {softc:#x} belongs to no device")
    commands = list(_scsi(kernel, view))
    trouble = _words(kernel, view.vtscsi_flags, _VTSCSI_FLAGS) + _words(
        kernel, view.vtscsi_frozen, _VTSCSI_FROZEN
    )
    return Controller(name, "vtscsi_softc", softc, tuple(commands), trouble, True)


def _scsi(kernel: Kernel, view: View) -> Iterator[Command]:
    states = {"VTSCSI_REQ_STATE_TIMEDOUT": "timed out", "VTSCSI_REQ_STATE_ABORTED": "aborted"}
    for address in _cookies(kernel, view.vtscsi_request_vq):
        request = kernel.view("vtscsi_request", address)
        if request.vsr_softc != view.address:
            raise LayoutError(f"vtscsi_request {address:#x} is of another controller")
        yield Command(
            address,
            "vtscsi_request",
            bio_of_ccb(kernel, request.vsr_ccb),
            request.vsr_ccb,
            GIVEN,
            "in its virtqueue",
            states.get(kernel.layouts.enum("vtscsi_req_state", request.vsr_state), ""),
        )


def _words(kernel: Kernel, flags: int, meanings: Tuple[Tuple[str, str], ...]) -> Tuple[str, ...]:
    return tuple(word for name, word in meanings if flags & kernel.layouts.constant(name, 0))
