"""NVMe: the commands of a controller by queue pair, and whether it resets or has failed.

Mirrors sys/dev/nvme (nvme_private.h, nvme_qpair.c, nvme_ctrlr.c, nvme_sim.c, nvme_ns.c) and
sys/dev/nvd, 9.3 to 15.x.  A tracker on a queue pair's outstanding_tr carries a request; the
hardware has it once act_tr[cid] is that tracker.  A request on queued_req waits for a tracker, or
for the end of a reset.  From 13.0 on a tracker keeps its deadline, before it a callout.
"""

from __future__ import annotations

from typing import Dict, Iterator, List, Optional

from plugin.errors import LayoutError
from plugin.kernel.bio import try_bio_at
from plugin.kernel.controller import (
    GIVEN,
    KEPT,
    Command,
    Controller,
    bio_of_ccb,
    device_name,
)
from plugin.kernel.queue import stailq_foreach, tailq_foreach
from plugin.kernel.tc import uptime
from plugin.session import Kernel, View

#: sbintime_t: seconds times 2^32; SBT_MAX says that a command has no deadline
_SBT_1S = 1 << 32
_SBT_MAX = (1 << 63) - 1
_MAX_QPAIRS = 1 << 12
_MAX_COMMANDS = 1 << 16
#: the completion functions of requests, and what their argument is
_BIO_DONE, _CCB_DONE = "nvme_ns_bio_done", "nvme_sim_nvmeio_done"


def of_sim(kernel: Kernel, softc: int) -> Controller:
    """The controller of a cam_sim "nvme": ``softc`` is its struct nvme_sim_softc * (12.0 on)."""
    if "nvme_sim_softc" not in kernel.layouts:
        raise LayoutError("this kernel's nvme_sim_softc is in no layout")
    return controller_at(kernel, kernel.view("nvme_sim_softc", softc).s_ctrlr)


def of_nvd(kernel: Kernel, softc: int) -> Controller:
    """The controller of an nvd disk: ``softc`` is its struct nvd_disk *."""
    namespace = kernel.view("nvd_disk", softc).ns
    return controller_at(kernel, kernel.view("nvme_namespace", namespace).ctrlr)


def controller_at(kernel: Kernel, address: int) -> Controller:
    """The struct nvme_controller * at ``address`` with every command of its I/O queue pairs."""
    view = kernel.view("nvme_controller", address)
    name = device_name(kernel, view.dev)
    if not name.startswith("nvme"):
        raise LayoutError(f"nvme_controller {address:#x} belongs to no device called nvme")
    count = view.num_io_queues
    if not 0 < count <= _MAX_QPAIRS:
        raise LayoutError(f"nvme_controller {address:#x}: {count} I/O queues")
    size = kernel.layouts.sizeof("nvme_qpair")
    commands: List[Command] = []
    trouble = [word for word, holds in _states(view) if holds]
    recovering: Dict[str, List[int]] = {}
    with kernel.noting() as found:
        for index in range(count):
            pair = kernel.view("nvme_qpair", view.ioq + index * size)
            if pair.ctrlr != address:
                raise LayoutError(f"nvme_qpair {pair.address:#x} is of another controller")
            commands += _of_pair(kernel, pair, view.timeout_period)
            recovering.setdefault(_recovery(kernel, pair), []).append(pair.id)
    for words, pairs in recovering.items():
        if words:
            which = f"qpair {pairs[0]}" if len(pairs) == 1 else f"{len(pairs)} of {count} qpairs"
            trouble.append(f"{which} {words}")
    return Controller(
        name, "nvme_controller", address, tuple(commands), tuple(trouble), not found.partial
    )


def _states(view: View) -> Iterator[tuple[str, bool]]:
    yield "failed", bool(view.is_failed)
    yield "resetting", bool(view.is_resetting)
    yield "not initialized", not view.is_initialized


def _recovery(kernel: Kernel, pair: View) -> str:
    """What recovery_state says, "" for a queue pair at work; to 12.x is_enabled alone tells."""
    if not pair.has("recovery_state"):
        return "" if pair.is_enabled else "disabled"
    state = kernel.layouts.enum("nvme_recovery", pair.recovery_state)
    return {
        "RECOVERY_START": "with a command past its deadline",
        "RECOVERY_RESET": "to be reset",
        "RECOVERY_WAITING": "behind the reset",
        "RECOVERY_FAILED": "failed",
    }.get(state, "")


def _of_pair(kernel: Kernel, pair: View, allowed: int) -> Iterator[Command]:
    now = uptime(kernel)
    members = ["req", "cid"]
    timed = kernel.layouts.has("nvme_tracker", "deadline")
    if timed:
        members.append("deadline")
    slots = min(pair.num_entries, 1 << 16)
    for tracker, values in tailq_foreach(
        kernel,
        pair.at("outstanding_tr"),
        "nvme_tracker",
        "tailq",
        members,
        what=f"outstanding_tr of qpair {pair.id}",
        bound=_MAX_COMMANDS,
    ):
        request, cid = values[0], values[1]
        active = 0
        if cid < slots:
            active = kernel.pointer(pair.act_tr + cid * kernel.pointer_size)
        deadline = values[2] if timed else _SBT_MAX
        since = overdue = None
        if now is not None and 0 < deadline < _SBT_MAX:
            overdue = now - deadline / _SBT_1S
            since = max(0.0, overdue + allowed)
        yield _command(
            kernel,
            tracker,
            "nvme_tracker",
            request,
            GIVEN if active == tracker else KEPT,
            f"qpair {pair.id}, cid {cid}",
            "past its deadline" if overdue is not None and overdue > 0 else "",
            since,
        )
    for request, _ in stailq_foreach(
        kernel,
        pair.at("queued_req"),
        "nvme_request",
        "stailq",
        what=f"queued_req of qpair {pair.id}",
        bound=_MAX_COMMANDS,
    ):
        yield _command(
            kernel, request, "nvme_request", request, KEPT, f"qpair {pair.id}, queued_req"
        )


def _command(
    kernel: Kernel,
    address: int,
    struct: str,
    request: int,
    place: str,
    where: str,
    trouble: str = "",
    seconds: Optional[float] = None,
) -> Command:
    view = kernel.view("nvme_request", request)
    done = kernel.symbolize(view.cb_fn)
    ccb = view.cb_arg if done.startswith(_CCB_DONE) else 0
    bio = view.cb_arg if done.startswith(_BIO_DONE) else bio_of_ccb(kernel, ccb)
    return Command(
        address, struct, _whole(kernel, bio), ccb, place, where, trouble, seconds, view.retries
    )


def _whole(kernel: Kernel, bio: int) -> int:
    """The bio that nvd was given: of a child made by nvme_ns_split_bio() its parent."""
    found = try_bio_at(kernel, bio, "bio of an nvme_request") if bio else None
    if found is None or found.disk or not found.parent:
        return bio
    parent = try_bio_at(kernel, found.parent, "bio split by nvme")
    return found.parent if parent is not None and parent.disk else bio
