"""What is behind a descriptor, who has its other end, and who has a thing open.

Mirrors sys/kern/kern_descrip.c, sys_pipe.c, uipc_usrreq.c, kern_lockf.c, 7.x to 15.x.
"""

from __future__ import annotations

from typing import Dict, List, NamedTuple, Optional, Tuple

from plugin.caching import MEMORY, cached
from plugin.errors import LayoutError, MemoryFault
from plugin.kernel.event import notes
from plugin.kernel.file import Open, OpenFile, by_data, file_at, folders, of_process
from plugin.kernel.lockf import Entry, locks_of
from plugin.kernel.pipe import pipe_at
from plugin.kernel.proc import Proc, processes
from plugin.kernel.socket import Socket, socket_at
from plugin.kernel.vnode import Vnode, vnode_at
from plugin.session import Kernel


class Peer(NamedTuple):
    """A process that has the other end of something open."""

    proc: Proc
    fd: int


class Described(NamedTuple):
    """One descriptor, or what a process has of the file tree beside them.

    ``fd`` is a number, or "cwd", "root", "jail", "text"; ``file`` None for those.  ``what``
    says what it is in words; ``peers`` who has the other end of it, ``locks`` the advisory
    locks that this process has through it, ``waiting`` True where one is waited for.
    """

    proc: Proc
    fd: str
    file: Optional[OpenFile]
    type: str
    what: str
    vnode: int
    peers: List[Peer]
    locks: List[Entry]
    waits: List[Entry]
    socket: Optional[Socket]


#: knotes that are named one by one
_NOTES = 8


@cached(MEMORY)
def _procs(kernel: Kernel) -> Dict[int, Proc]:
    return {proc.address: proc for proc in processes(kernel)}


def process_at(kernel: Kernel, address: int) -> Optional[Proc]:
    """The process whose struct proc is at ``address``, None if none is."""
    return _procs(kernel).get(address)


def peers_of(kernel: Kernel, data: int, but: int = 0) -> List[Peer]:
    """The processes that have ``data`` (an f_data) open, each once; without the struct proc but."""
    found: Dict[int, Peer] = {}
    for opened in by_data(kernel).get(data, ()):
        proc = _procs(kernel).get(opened.proc)
        if proc is not None and opened.proc != but:
            found.setdefault(opened.proc, Peer(proc, opened.fd))
    return list(found.values())


def files_of(kernel: Kernel, proc: Proc) -> List[Described]:
    """What a process has open: folders and text first, then its descriptors."""
    found = [
        Described(proc, name, None, "VNODE", _vnode(kernel, vnode), vnode, [], [], [], None)
        for name, vnode in folders(kernel, proc.address)
    ]
    for opened in of_process(kernel, proc.address):
        described = described_at(kernel, proc, opened)
        if described is not None:
            found.append(described)
    return found


def users_of(kernel: Kernel, things: List[int]) -> List[Described]:
    """Who has one of ``things`` open: vnodes, or what else is f_data, by address."""
    wanted = set(things)
    found: List[Described] = []
    for proc in processes(kernel):
        found += [
            Described(proc, name, None, "VNODE", _vnode(kernel, vnode), vnode, [], [], [], None)
            for name, vnode in folders(kernel, proc.address)
            if vnode in wanted
        ]
        for opened in of_process(kernel, proc.address):
            if opened.data in wanted or opened.file in wanted or opened.vnode in wanted:
                described = described_at(kernel, proc, opened)
                if described is not None:
                    found.append(described)
    return found


@cached(MEMORY)
def open_vnodes(kernel: Kernel) -> Dict[int, Vnode]:
    """{struct vnode *: it} of all that any process has open, works in or runs."""
    found: Dict[int, Vnode] = {}
    for proc in processes(kernel):
        vnodes = [vnode for _, vnode in folders(kernel, proc.address)]
        vnodes += [opened.vnode for opened in of_process(kernel, proc.address)]
        for address in vnodes:
            vnode = vnode_at(kernel, address) if address and address not in found else None
            if vnode is not None:
                found[address] = vnode
    return found


def described_at(kernel: Kernel, proc: Proc, opened: Open) -> Optional[Described]:
    """One descriptor in words; None, with a finding, where its struct file cannot be read."""
    try:
        file = file_at(kernel, opened.file)
    except (MemoryFault, LayoutError) as error:
        kernel.warnings.add(f"fd {opened.fd} of pid {proc.pid}", opened.file, str(error))
        return None
    what, peers, socket = behind(kernel, file, proc)
    vnode = file.vnode if file.type in ("VNODE", "FIFO", "DEV", "PTS") else 0
    held: List[Entry] = []
    waiting: List[Entry] = []
    if vnode:
        held, waiting = (
            [entry for entry in entries if _is_of(entry, proc, file)]
            for entries in locks_of(kernel, vnode)
        )
    return Described(
        proc, str(opened.fd), file, file.type, what, vnode, peers, held, waiting, socket
    )


def _is_of(entry: Entry, proc: Proc, file: OpenFile) -> bool:
    if entry.sysid:
        return False
    return entry.id == file.address if entry.is_flock else entry.pid == proc.pid


def behind(kernel: Kernel, file: OpenFile, proc: Proc) -> Tuple[str, List[Peer], Optional[Socket]]:
    """What a struct file is in words, who has its other end, and its socket if it is one."""
    try:
        if file.type == "SOCKET":
            return _socket(kernel, file.data, proc)
        if file.type == "PIPE":
            return (*_pipe(kernel, file.data, proc), None)
        if file.type == "FIFO":
            name = _vnode(kernel, file.vnode) if file.vnode else "FIFO"
            return name, peers_of(kernel, file.data, proc.address), None
        if file.vnode:
            return _vnode(kernel, file.vnode), [], None
        # What two processes have open in common each can use for the other.
        return _other(kernel, file), peers_of(kernel, file.data, proc.address), None
    except (MemoryFault, LayoutError) as error:
        kernel.warnings.add(f"{file.type} {file.data:#x}", file.data, str(error), partial=False)
        return f"{file.data:#x}, which cannot be read", [], None


def _vnode(kernel: Kernel, address: int) -> str:
    found = vnode_at(kernel, address)
    return found.label if found is not None else f"vnode {address:#x}, which cannot be read"


def _pipe(kernel: Kernel, data: int, proc: Proc) -> Tuple[str, List[Peer]]:
    pipe = pipe_at(kernel, data)
    if pipe is None:
        return f"pipe {data:#x}, which cannot be read", []
    peers = peers_of(kernel, pipe.peer, proc.address) if pipe.peer else []
    words = [f"pipe {data:#x}", f"{pipe.held} bytes"]
    if pipe.eof:
        words.append("the other end is closed")
    else:
        words += _own(kernel, pipe.peer, proc)
    return ", ".join(words), peers


def _own(kernel: Kernel, other: int, proc: Proc) -> List[str]:
    """That a process has the other end of a thing itself, in words; [] where it has not."""
    own = [opened.fd for opened in by_data(kernel).get(other, ()) if opened.proc == proc.address]
    return [f"the other end is its own fd {own[0]}"] if own else []


def _socket(kernel: Kernel, data: int, proc: Proc) -> Tuple[str, List[Peer], Optional[Socket]]:
    found = socket_at(kernel, data)
    words = [f"{found.family} {found.type}"]
    if found.name:
        words.append(found.name)
    if found.peer:
        words.append(f"-> {found.peer}")
    if found.state:
        words.append(f"({found.state})")
    if found.received or found.sending:
        words.append(f"{found.received or 0} bytes received, {found.sending or 0} to send")
    peers = peers_of(kernel, found.other, proc.address) if found.other else []
    own = _own(kernel, found.other, proc) if found.other else []
    return ", ".join([" ".join(words), *own]), peers, found


def _other(kernel: Kernel, file: OpenFile) -> str:
    """What is neither in a file system nor a pipe or socket, by what its struct says."""
    layouts = kernel.layouts
    kind, data = file.type, file.data
    if kind == "KQUEUE":
        waits = ", ".join(f"{note.filter} {note.ident}" for note in notes(kernel, data)[:_NOTES])
        ready = kernel.view("kqueue", data).kq_count
        return f"kqueue {data:#x}, {ready} ready, waits for {waits or 'nothing'}"
    if kind == "SHM" and layouts.has("shmfd", "shm_path"):
        view = kernel.view("shmfd", data)
        return f"shared memory {kernel.try_cstring(view.shm_path) or 'without a name'}"
    if kind == "SEM" and layouts.has("ksem", "ks_path"):
        view = kernel.view("ksem", data)
        name = kernel.try_cstring(view.ks_path) or "without a name"
        return f"semaphore {name}, value {view.ks_value}, {view.ks_waiters} waiting"
    if kind == "PROCDESC" and "procdesc" in layouts:
        return f"descriptor of pid {kernel.view('procdesc', data).pd_pid}"
    return f"{kind.lower()} {data:#x}"
