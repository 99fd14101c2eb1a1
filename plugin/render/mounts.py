"""mounts's report: every mount, its flags and counts, and who waits for whom at it."""

from __future__ import annotations

from typing import Any, Dict, List, Optional

from plugin.errors import UsageError
from plugin.judge.mounts import State, states
from plugin.kernel.mount import Mount
from plugin.kernel.proc import Thread
from plugin.kernel.svc import Pool, pools
from plugin.render.report import Report
from plugin.session import Kernel
from plugin.words import address, count, did_you_mean, seconds


def mounts(kernel: Kernel, wanted: Optional[str] = None) -> Report:
    """All of them, or those that ``wanted`` names: where it is mounted, what, or its address."""
    every = states(kernel)
    chosen = every if wanted is None else _chosen(every, wanted)
    served = pools(kernel) if wanted is None else []
    report = Report(
        {
            "mounts": [_data(kernel, state) for state in chosen],
            "servers": [{**pool._asdict(), "address": address(pool.address)} for pool in served],
        }
    )
    if not every:
        # Every kernel has a root file system: an empty list is one that could not be read.
        report.text("No mount could be read.")
        return report
    report.table(
        ["on", "type", "from", "flags", "refs>", "busy>", "writes>", "vnodes>", "state"],
        [_row(kernel, state) for state in chosen],
        optional=["vnodes", "busy", "refs", "flags"],
    )
    for state in chosen:
        if state.trouble or wanted is not None:
            _details(kernel, report, state)
    for pool in served:
        # A module that is loaded has its pool, served or not.
        if pool.threads or pool.connections:
            report.text(_pool(pool))
    return report


def _pool(pool: Pool) -> str:
    """What a server of this kernel's has to do, and whether it can."""
    busy = "all busy" if pool.threads and not pool.idle else f"{pool.idle} idle"
    text = (
        f"{pool.name}: {count(pool.threads, 'thread')} of at most {pool.most}, {busy}; "
        f"{count(pool.connections, 'connection')}, {pool.waiting} with requests that no thread "
        f"has taken; {pool.queued} bytes of requests under way"
    )
    return text + (", so many that it reads no more of them." if pool.throttled else ".")


def _chosen(every: List[State], wanted: str) -> List[State]:
    found = [
        state
        for state in every
        if wanted in (state.mount.on, state.mount.source, f"{state.mount.address:#x}")
        or (len(wanted) > 1 and wanted.rstrip("/") == state.mount.on)
    ]
    if not found:
        names = [state.mount.on for state in every]
        near = did_you_mean(wanted, sorted({*names, *(s.mount.source for s in every)}))
        raise UsageError(
            f"nothing is mounted on or from {wanted!r}{near or '; there are ' + ', '.join(names)}"
        )
    return found


def _flags(kernel: Kernel, mount: Mount) -> List[str]:
    return kernel.layouts.flags("mnt_flag", mount.flag)


def _row(kernel: Kernel, state: State) -> List[Any]:
    mount = state.mount
    short = [name[4:].lower() for name in _flags(kernel, mount)]
    return [
        mount.on,
        mount.fstype,
        mount.source,
        ", ".join(short),
        "?" if mount.ref is None else mount.ref,
        "" if mount.lockref is None else mount.lockref,
        "?" if mount.writeopcount is None else mount.writeopcount,
        mount.vnodes,
        _state(state),
    ]


def _state(state: State) -> str:
    words = []
    if "MNTK_SUSPENDED" in state.suspension:
        words.append("suspended")
    elif state.suspension:
        words.append("being suspended")
    if state.unmounting:
        forced = "MNTK_UNMOUNTF" in state.unmounting
        words.append("forced unmount" if forced else "unmount")
    if state.pending:
        words.append(count(len(state.pending), "request") + " unanswered")
    if state.waiters:
        words.append(f"{len(state.waiters)} waiting")
    return ", ".join(words)


def _details(kernel: Kernel, report: Report, state: State) -> None:
    mount = state.mount
    report.heading(
        f"{mount.on} ({mount.fstype} of {mount.source}), struct mount {mount.address:#x}"
    )
    if state.suspension:
        report.text(f"{' '.join(state.suspension)}: {_suspender(state)}.", 2)
    if state.unmounting:
        whom = ", ".join(map(_called, state.unmounters)) or "no thread whose stack shows it"
        report.text(f"{' '.join(state.unmounting)}: unmounted by {whom}.", 2)
    for waiter in state.waiters:
        report.text(f'{_called(waiter.thread)} waits in "{waiter.on}"{_since(waiter.thread)}.', 2)
    if state.server is not None:
        _server(report, state)


def _suspender(state: State) -> str:
    if state.suspender is not None:
        return f"by {_called(state.suspender)}"
    if state.mount.susp_owner:
        return f"by a thread that was not found, mnt_susp_owner {state.mount.susp_owner:#x}"
    return "by whom is not recorded"


def _server(report: Report, state: State) -> None:
    server = state.server
    assert server is not None
    state_of = f", {' '.join(server.state)}" if server.state else ""
    report.text(
        f"NFSv{server.version} server {server.hostname}"
        f"{f' at {server.address}' if server.address else ''}"
        f"{f' over {server.transport}' if server.transport else ''}, "
        f"{count(len(state.pending), 'request')} unanswered{state_of}.",
        2,
    )
    if state.pending:
        report.table(
            ["xid>", "thread", "since>", "sent", "error>"],
            [
                (
                    f"{request.xid:#x}",
                    _called(thread) if thread is not None else "",
                    "" if thread is None else seconds(thread.age),
                    "answered" if request.answered else "unanswered",
                    request.error or "",
                )
                for request, thread in state.pending
            ],
            optional=["error"],
        )


def _called(thread: Thread) -> str:
    return f"{thread.tid} {thread.label}"


def _since(thread: Thread) -> str:
    return f" for {seconds(thread.age)}" if thread.age is not None else ""


def _data(kernel: Kernel, state: State) -> Dict[str, Any]:
    mount = state.mount
    server = state.server
    return {
        "address": address(mount.address),
        "on": mount.on,
        "from": mount.source,
        "type": mount.fstype,
        "flags": _flags(kernel, mount),
        "kern_flags": kernel.layouts.flags("mnt_kern_flag", mount.kern_flag),
        "ref": mount.ref,
        "lockref": mount.lockref,
        "writeopcount": mount.writeopcount,
        "secondary_writes": mount.secondary_writes,
        "vnodes": mount.vnodes,
        "suspension": state.suspension,
        "susp_owner": address(mount.susp_owner or None),
        "suspended_by": state.suspender.tid if state.suspender is not None else None,
        "unmounting": state.unmounting,
        "unmounted_by": [thread.tid for thread in state.unmounters],
        "waiters": [{"tid": each.thread.tid, "wmesg": each.on} for each in state.waiters],
        "nfs": None
        if server is None
        else {
            "hostname": server.hostname,
            "address": server.address or None,
            "version": server.version,
            "transport": server.transport or None,
            "state": server.state,
            "requests": [
                {
                    "address": address(request.address),
                    "xid": request.xid,
                    "answered": request.answered,
                    "error": request.error,
                    "tid": thread.tid if thread is not None else None,
                    "age": thread.age if thread is not None else None,
                }
                for request, thread in state.pending
            ],
        },
    }
