"""What system calls wait on: kqueues, selected files, semaphores, queues, asynchronous I/O.

Mirrors sys/kern/kern_event.c, sys_generic.c, sysv_sem.c, sysv_msg.c, uipc_sem.c, uipc_mqueue.c,
vfs_aio.c and sys/fs/cuse, 9.x to 15.x.
"""

from __future__ import annotations

from typing import Any, List, Sequence, Tuple

from tests.forge.builder import Obj
from tests.forge.machine import Machine
from tests.forge.procs import SLEEPQ_CONDVAR, Process, Thread

EVFILT_READ, EVFILT_PROC, EVFILT_TIMER = -1, -5, -7


def kqueue(machine: Machine, *notes: Tuple[int, int, Any]) -> Obj:
    """A kqueue with a knote for each (filter, ident, kn_ptr); those on files by descriptor."""
    m = machine
    made = m.new("kqueue")
    room, size = 8, m.pointer_size
    lists = {name: m.take(room * size) for name in ("kq_knlist", "kq_knhash")}
    made.set(kq_knlistsize=room, kq_knhashmask=room - 1, **lists)
    for filter_, ident, target in notes:
        note = m.new("knote", kn_kq=made)
        note["kn_kevent.filter"] = filter_ & 0xFFFF
        note["kn_kevent.ident"] = ident
        note["kn_ptr.p_fp"] = target
        of_file = filter_ in (EVFILT_READ, -2)
        head = lists["kq_knlist" if of_file else "kq_knhash"] + ident % room * size
        m.slist(head, "kn_link", [note])
    return made


def selects(machine: Machine, thread: Thread, selinfos: Sequence[int], **how: Any) -> None:
    """A thread in select(2) on what has these struct selinfos."""
    m = machine
    held = m.new("seltd")
    thread.obj["td_sel"] = held
    made = [m.new("selfd", sf_si=selinfo, sf_td=held) for selinfo in selinfos]
    m.stailq(held.at("st_selq"), "sf_link", made)
    thread.call("_cv_wait_sig", "seltdwait", "kern_select")
    thread.sleeps(
        held.at("st_wait"), "select", kind=SLEEPQ_CONDVAR, interruptible=True, seconds=100, **how
    )


def semaphore_set(machine: Machine, last: int = 0, *undo: Tuple[Process, int]) -> Obj:
    """The second set of sema[], of one semaphore at 0; who took from it with SEM_UNDO."""
    m = machine
    sets = m.take(4 * m.sizeof("semid_kernel"))
    m.variable("sema", sets)
    made = m.view("semid_kernel", sets + m.sizeof("semid_kernel"))
    semaphore = m.new("sem", sempid=last)
    member = "u.__sem_base" if made.has("u.__sem_base") else "u.sem_base"
    made[member] = semaphore
    made["u.sem_nsems"] = 1
    made["u.sem_perm.key"] = 0x5EED
    made["u.sem_perm.seq"] = 2
    entries: List[Obj] = []
    for process, value in undo:
        entry = m.new("sem_undo", un_proc=process, un_cnt=1)
        m.view("undo", entry.at("un_ent")).set(un_adjval=value & 0xFFFF, un_id=1)
        entries.append(entry)
    head = m.symbol("semu_list", size=m.pointer_size, static=True)
    m.list(head.address, "un_next", entries)
    return made


def message_queue(machine: Machine, sender: int, receiver: int) -> Obj:
    """The first queue of msqids[], and who used it last."""
    m = machine
    made = m.new("msqid_kernel")
    m.variable("msqids", made)
    made["u.msg_lspid"] = sender
    made["u.msg_lrpid"] = receiver
    made["u.msg_perm.key"] = 0x5EED
    made["u.msg_qbytes"] = 2048
    return made


def posix_queue(machine: Machine, name: str) -> Tuple[Obj, Obj]:
    """(mqueue, mqfs_node): a POSIX queue and the node that files on it have as f_data."""
    queue = machine.new("mqueue", mq_maxmsg=10)
    node = machine.new("mqfs_node", mn_data=queue)
    node["mn_name"] = name
    return queue, node


def aio_job(machine: Machine, process: Process, file: Obj, opcode: int = 2) -> Obj:
    """A job of the process's that is under way (11.0 on): LIO_READ is 2."""
    m = machine
    info = m.new("kaioinfo")
    process.obj["p_aioinfo"] = info
    job = m.new("kaiocb", fd_file=file, userproc=process)
    job["uaiocb.aio_lio_opcode"] = opcode
    job["uaiocb.aio_nbytes"] = 4096
    m.tailq(info.at("kaio_jobqueue"), "plist", [job])
    return job


def cuse_request(machine: Machine, server: Process, command: int = 5) -> Obj:
    """A command of a client's of a device that ``server`` serves: CUSE_CMD_IOCTL is 5."""
    m = machine
    held = m.new("cuse_server", pid=server.pid)
    client = m.new("cuse_client", server=held)
    at = client.at("cmds") + command * m.sizeof("cuse_client_command")
    return m.view("cuse_client_command", at).set(client=client)
