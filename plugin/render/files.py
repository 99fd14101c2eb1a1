"""files's report: what a process has open, or who has a thing open."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Tuple

from plugin.errors import UsageError
from plugin.judge.files import Described, Peer, files_of, open_vnodes, users_of
from plugin.kernel.file import of_process
from plugin.kernel.lockf import Entry
from plugin.kernel.mount import mounts
from plugin.kernel.prison import jail_of
from plugin.kernel.proc import Proc, arguments, processes
from plugin.render.report import Report
from plugin.session import Kernel
from plugin.words import address, count, did_you_mean

#: processes that are named one by one where several have the other end
_PEERS = 3
_COLUMNS = ["fd>", "type", "mode", "offset>", "what", "other end", "locks"]
_OPTIONAL = ["offset", "mode", "type", "locks", "other end"]


def files(kernel: Kernel, wanted: Optional[str] = None) -> Report:
    """Of the process, path, mount or address ``wanted``; without it, how much each has open."""
    if wanted is None:
        return _every(kernel)
    procs = _named(kernel, wanted)
    if procs:
        return _of_processes(kernel, procs)
    things, what = _things(kernel, wanted)
    found = users_of(kernel, things)
    report = Report({"processes": [], "files": [_data(each) for each in found]})
    if not found:
        so_far = ", as far as could be read" if kernel.warnings.partial else ""
        report.text(f"No process has {what} open{so_far}.")
        return report
    number = len({each.proc.address for each in found})
    report.text(f"{count(number, 'process', 'processes')} with {what} open.")
    report.table(
        ["pid>", "process", *_COLUMNS],
        [[each.proc.pid, each.proc.comm, *_row(each)] for each in found],
        optional=_OPTIONAL,
    )
    return report


def _every(kernel: Kernel) -> Report:
    procs = [proc for proc in processes(kernel) if of_process(kernel, proc.address)]
    report = Report({"processes": [_process(kernel, proc) for proc in procs], "files": []})
    report.table(
        ["pid>", "process", "open>", "jail", "arguments"],
        [
            (
                proc.pid,
                proc.comm,
                len(of_process(kernel, proc.address)),
                _jail(kernel, proc),
                " ".join(arguments(kernel, proc.address) or ()),
            )
            for proc in procs
        ],
        optional=["jail"],
    )
    report.text("files PID shows what one has open, files PATH who has a file or a mount open.")
    return report


def _of_processes(kernel: Kernel, procs: List[Proc]) -> Report:
    found = {proc.address: files_of(kernel, proc) for proc in procs}
    report = Report(
        {
            "processes": [_process(kernel, proc) for proc in procs],
            "files": [_data(each) for described in found.values() for each in described],
        }
    )
    for proc in procs:
        said = [f"pid {proc.pid} {proc.comm}"]
        jail = _jail(kernel, proc)
        if jail:
            said.append(f"jail {jail}")
        words = arguments(kernel, proc.address)
        if words:
            said.append(f"run as: {' '.join(words)}")
        report.heading(", ".join(said))
        if found[proc.address]:
            rows = [_row(each) for each in found[proc.address]]
            report.table(_COLUMNS, rows, optional=_OPTIONAL)
        else:
            report.text("It has nothing open that could be read.", 2)
    return report


def _named(kernel: Kernel, wanted: str) -> List[Proc]:
    """The processes of that pid or, for a word that is no path, of that name."""
    if wanted.isdigit():
        found = [proc for proc in processes(kernel) if proc.pid == int(wanted)]
        if not found:
            raise UsageError(f"there is no process {wanted}")
        return found
    if wanted.startswith(("/", "0x")):
        return []
    found = [proc for proc in processes(kernel) if proc.comm == wanted]
    if not found:
        names = sorted({proc.comm for proc in processes(kernel)})
        raise UsageError(f"no process is called {wanted!r}{did_you_mean(wanted, names)}")
    return found


def _things(kernel: Kernel, wanted: str) -> Tuple[List[int], str]:
    """The addresses that a path, a mount or an address stands for, and what they are."""
    if wanted.startswith("0x"):
        try:
            return [int(wanted, 16)], wanted
        except ValueError:
            raise UsageError(f"{wanted!r} is no address") from None
    path = wanted.rstrip("/") or "/"
    known = open_vnodes(kernel)
    there = [each for each in mounts(kernel) if each.on == path]
    if there:
        # The last mount there covers those before it.
        on = there[-1]
        below = [each.address for each in known.values() if each.mount == on.address]
        return below, f"something on {path} ({on.fstype})"
    found = [each.address for each in known.values() if each.path == path]
    if not found:
        near = did_you_mean(path, sorted({each.path for each in known.values() if each.path}))
        return [], f"{path}, by the names in the name cache{near},"
    return found, path


def _row(each: Described) -> List[Any]:
    file = each.file
    on_file = file is not None and bool(each.vnode) and file.type != "FIFO"
    return [
        each.fd,
        each.type.lower(),
        file.mode if file is not None else "",
        file.offset if file is not None and on_file else "",
        each.what,
        _peers(each.peers),
        _locks(each),
    ]


def _peers(peers: List[Peer]) -> str:
    named = ", ".join(
        f"{peer.proc.comm} (pid {peer.proc.pid}) fd {peer.fd}" for peer in peers[:_PEERS]
    )
    return named + (f" and {len(peers) - _PEERS} more" if len(peers) > _PEERS else "")


def _locks(each: Described) -> str:
    return "; ".join(
        [_lock(entry) for entry in each.locks]
        + [f"waits for {_lock(entry)}" for entry in each.waits]
    )


def _lock(entry: Entry) -> str:
    if entry.is_flock:
        return f"flock {entry.type}"
    return f"{entry.type} {entry.start}-{entry.end}"


def _jail(kernel: Kernel, proc: Proc) -> str:
    jail = jail_of(kernel, proc.address)
    return f"{jail.id} {jail.name}".strip() if jail is not None and jail.id else ""


def _process(kernel: Kernel, proc: Proc) -> Dict[str, Any]:
    jail = jail_of(kernel, proc.address)
    return {
        "pid": proc.pid,
        "comm": proc.comm,
        "address": address(proc.address),
        "open": len(of_process(kernel, proc.address)),
        "jail": None if jail is None else {"id": jail.id, "name": jail.name, "path": jail.path},
        "arguments": arguments(kernel, proc.address),
    }


def _data(each: Described) -> Dict[str, Any]:
    file, socket = each.file, each.socket
    return {
        "pid": each.proc.pid,
        "comm": each.proc.comm,
        "fd": each.fd,
        "type": each.type,
        "file": address(file.address) if file is not None else None,
        "data": address(file.data) if file is not None else None,
        "vnode": address(each.vnode or None),
        "mode": file.mode if file is not None else None,
        "offset": file.offset if file is not None else None,
        "what": each.what,
        "peers": [
            {"pid": peer.proc.pid, "comm": peer.proc.comm, "fd": peer.fd} for peer in each.peers
        ],
        "locks": [_lock_data(entry, held=True) for entry in each.locks]
        + [_lock_data(entry, held=False) for entry in each.waits],
        "socket": None
        if socket is None
        else {
            "family": socket.family,
            "type": socket.type,
            "name": socket.name or None,
            "peer": socket.peer or None,
            "other": address(socket.other or None),
            "state": socket.state,
            "received": socket.received,
            "sending": socket.sending,
        },
    }


def _lock_data(entry: Entry, *, held: bool) -> Dict[str, Any]:
    return {
        "address": address(entry.address),
        "kind": "flock" if entry.is_flock else "fcntl",
        "type": entry.type,
        "start": entry.start,
        "end": entry.end,
        "held": held,
    }
