"""Open files, pipes, local sockets, advisory locks: what ties processes to each other.

Mirrors sys/sys/filedesc.h, kern/sys_pipe.c, kern/uipc_usrreq.c and kern/kern_lockf.c, 9.x to
15.x.
"""

from __future__ import annotations

import ipaddress
from typing import Any, Dict, List, Tuple

from tests.forge.builder import Obj
from tests.forge.machine import Machine
from tests.forge.procs import Process, Thread
from tests.forge.vfs import Vnode

_F_RDLCK, _F_WRLCK = 1, 3
#: f_type of what is behind a struct file
_KINDS = {
    "socket": "SOCKET",
    "pipe": "PIPE",
    "kqueue": "KQUEUE",
    "ksem": "SEM",
    "eventfd": "EVENTFD",
}


class Files:
    """The tables of open files of a machine's processes."""

    #: descriptors there is room for in each
    ROOM = 16

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        #: by process: where its table begins, how far apart descriptors lie, how many are used
        self._tables: Dict[int, List[int]] = {}

    def open(
        self, process: Process, data: Any, kind: str = "", *, flag: int = 3, offset: int = 0
    ) -> Obj:
        """A struct file of the process's whose f_data is ``data``.

        ``kind`` of f_type: told by the struct where it is not given.
        """
        m = self.machine
        made = m.new("file", f_data=data, f_count=1, f_flag=flag, f_offset=offset)
        vnode = isinstance(data, Vnode)
        kind = kind or ("VNODE" if vnode else _KINDS.get(getattr(data, "struct", ""), ""))
        if kind:
            made["f_type"] = m.constant(f"DTYPE_{kind}")
        if vnode:
            made["f_vnode"] = data
        return self.share(process, made)

    def works_in(self, process: Process, vnode: Any) -> None:
        """The process's working directory."""
        m = self.machine
        if m.has("proc", "p_pd"):
            pwd = m.new("pwd", pwd_cdir=vnode)
            process.obj["p_pd"] = made = m.new("pwddesc")
            m.write_pointer(made.at("pd_pwd"), pwd)
            return
        known = self._tables.get(process.obj.address)
        if known is None:
            self._tables[process.obj.address] = self._table(process)
        m.view("filedesc", process.obj["p_fd"])["fd_cdir"] = vnode

    def share(self, process: Process, file: Obj) -> Obj:
        """The same struct file in another process's table, as fork(2) leaves it."""
        known = self._tables.get(process.obj.address)
        if known is None:
            known = self._tables[process.obj.address] = self._table(process)
        base, stride, used = known
        self.machine.write_pointer(base + used * stride, file)
        known[2] += 1
        return file

    def _table(self, process: Process) -> List[int]:
        m = self.machine
        table = m.new("filedesc")
        process.obj["p_fd"] = table
        if table.has("fd_files"):
            stride = m.sizeof("filedescent")
            first = m.locate("fdescenttbl", "fdt_ofiles").offset
            held = m.take(first + stride * self.ROOM)
            m.write_int(held + m.locate("fdescenttbl", "fdt_nfiles").offset, self.ROOM)
            table["fd_files"] = held
            return [held + first, stride, 0]
        whole = m.layouts.resolve("filedesc", "fd_ofiles").points_to == "filedescent"
        stride = m.sizeof("filedescent") if whole else m.pointer_size
        base = m.take(stride * self.ROOM)
        table.set(fd_ofiles=base, fd_nfiles=self.ROOM)
        return [base, stride, 0]


def in_jail(machine: Machine, process: Process, number: int, name: str, path: str) -> Obj:
    """The process in a jail of its own."""
    made = machine.new("prison", pr_id=number, pr_ref=1)
    made.probe(pr_name=name)
    made["pr_path"] = path
    process.obj["p_ucred"] = machine.new("ucred", cr_prison=made)
    return made


def run_as(machine: Machine, process: Process, *words: str) -> None:
    """The arguments that the kernel keeps a copy of (p_args)."""
    raw = b"".join(word.encode() + b"\0" for word in words)
    at = machine.take(machine.sizeof("pargs") + len(raw))
    held = machine.view("pargs", at).set(ar_ref=1, ar_length=len(raw))
    machine.space.write(held.at("ar_args"), raw)
    process.obj["p_args"] = held


def device(machine: Machine, name: str) -> Obj:
    """The struct cdev of a device node, the only one on cdevp_list."""
    m = machine
    private = m.new("cdev_priv")
    made = m.view("cdev", private.at("cdp_c"))
    if m.layouts.resolve("cdev", "si_name").is_pointer:
        made["si_name"] = m.string(name)
    else:
        m.space.write(made.at("si_name"), name.encode() + b"\0")
    head = m.symbol("cdevp_list", size=2 * m.pointer_size, static=True)
    m.tailq(head.address, "cdp_list", [private])
    return made


def pipe(machine: Machine) -> Tuple[Obj, Obj]:
    """The two ends of a pipe, each the other's peer."""
    one, other = machine.new("pipe"), machine.new("pipe")
    one["pipe_peer"], other["pipe_peer"] = other, one
    return one, other


def old_fifo(machine: Machine) -> Tuple[Obj, Obj]:
    """(fifoinfo, the socket that readers sleep on): a FIFO to 9.x, two local sockets."""
    reads, writes = socketpair(machine)
    return machine.new("fifoinfo", fi_readsock=reads, fi_writesock=writes), reads


def socketpair(machine: Machine) -> Tuple[Obj, Obj]:
    """Two connected local sockets."""
    m = machine
    sockets = m.new("socket"), m.new("socket")
    pcbs = m.new("unpcb"), m.new("unpcb")
    for number in (0, 1):
        sockets[number]["so_pcb"] = pcbs[number]
        pcbs[number].set(unp_socket=sockets[number], unp_conn=pcbs[1 - number])
    return sockets


def connection(machine: Machine, port: int = 2049) -> Tuple[Obj, Obj]:
    """Two internet sockets of this machine, connected to each other over its own address."""
    m = machine
    sockets = m.new("socket"), m.new("socket")
    address = bytes(12) + ipaddress.IPv4Address("192.0.2.1").packed
    ports = (40000).to_bytes(2, "big"), port.to_bytes(2, "big")
    for number, socket in enumerate(sockets):
        pcb = m.new("inpcb", inp_socket=socket)
        socket["so_pcb"] = pcb
        # struct in_endpoints: foreign and local port, foreign and local address.
        ends = ports[1 - number] + ports[number] + address * 2
        m.space.write(pcb.at("inp_inc") + 4, ends)
    return sockets


def of_domain(machine: Machine, socket: Obj, family: int, kind: int = 1) -> Obj:
    """The socket's protocol: its domain's address family, its type (1: a stream)."""
    domain = machine.new("domain", dom_family=family)
    socket.set(so_proto=machine.new("protosw", pr_domain=domain), so_type=kind)
    return socket


def bound_to(machine: Machine, socket: Obj, path: str) -> None:
    """A local socket's own path."""
    raw = path.encode()
    at = machine.take(2 + len(raw) + 1)
    machine.space.write(at, bytes((2 + len(raw), 1)) + raw + b"\0")
    machine.view("unpcb", socket["so_pcb"])["unp_addr"] = at


def receive_channel(socket: Obj) -> int:
    """What sbwait() on a socket's receive buffer sleeps on."""
    return socket.at("so_rcv.sb_acc" if socket.has("so_rcv.sb_acc") else "so_rcv.sb_cc")


def file_lock(
    machine: Machine, vnode: Any, waiter: Thread, *, pid: int = -1, file: Any = 0, sysid: int = 0
) -> Obj:
    """A write lock in the way of ``waiter``'s, which sleeps on its own entry for it."""
    m = machine
    owner = m.new("lock_owner", lo_pid=pid & 0xFFFFFFFF, lo_id=file, lo_sysid=sysid)
    holds = m.new("lockf_entry", lf_type=_F_WRLCK, lf_owner=owner, lf_vnode=vnode)
    own = m.new("lock_owner", lo_pid=waiter.process.pid)
    waits = m.new("lockf_entry", lf_type=_F_RDLCK, lf_owner=own, lf_vnode=vnode)
    edge = m.new("lockf_edge", le_from=waits, le_to=holds)
    m.list(waits.at("lf_outedges"), "le_outlink", [edge])
    m.list(holds.at("lf_inedges"), "le_inlink", [edge])
    waiter.call("lf_advlockasync", "kern_fcntl")
    waiter.sleeps(waits, "lockf", seconds=200, interruptible=True)
    return holds
