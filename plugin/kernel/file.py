"""Open files: which process has what open.

Mirrors struct file (sys/sys/file.h) and the descriptor tables of
sys/sys/filedesc.h, 6.x to 15.x: an array of struct file * to 9.x, of struct
filedescent in 10.x, behind struct fdescenttbl from 11.0 on.
"""

from __future__ import annotations

from typing import Dict, Iterator, List, NamedTuple, Set, Tuple

from plugin.caching import MEMORY, cached
from plugin.errors import LayoutError, MemoryFault
from plugin.kernel.proc import threads
from plugin.session import Kernel

_MAX_FILES = 1 << 20
#: bytes that a process's descriptors come to, roughly
_TABLE = 512


class OpenFile(NamedTuple):
    """One struct file *: what lies behind a descriptor.

    ``type`` is f_type's name without DTYPE_ ("VNODE", "PIPE", ...), ``flag`` f_flag (FREAD 1,
    FWRITE 2, ...), ``references`` f_count, ``vnode`` f_vnode (0 for what is no file of a file
    system), ``offset`` f_offset in bytes.
    """

    address: int
    type: str
    flag: int
    references: int
    data: int
    vnode: int
    offset: int

    @property
    def mode(self) -> str:
        """ "r", "w", "rw", or "" for a file opened for neither."""
        return ("r" if self.flag & 1 else "") + ("w" if self.flag & 2 else "")


def file_at(kernel: Kernel, address: int) -> OpenFile:
    """The struct file at ``address``; MemoryFault where it cannot be read."""
    view = kernel.view("file", address)
    kind = kernel.layouts.enum("f_type", view.f_type).replace("DTYPE_", "")
    return OpenFile(
        address, kind, view.f_flag, view.f_count, view.f_data, view.f_vnode, view.f_offset
    )


class Open(NamedTuple):
    """One descriptor: the process (address of its struct proc), its number, the struct file.

    ``data`` is f_data, ``vnode`` f_vnode or 0.
    """

    proc: int
    fd: int
    file: int
    data: int
    vnode: int = 0


@cached(MEMORY)
def by_data(kernel: Kernel) -> Dict[int, List[Open]]:
    """{f_data: the descriptors that refer to it}: pipes, sockets and vnodes to their users."""
    found: Dict[int, List[Open]] = {}
    fields = kernel.layouts.fields("file", "f_data", "f_vnode")
    known: Dict[int, Tuple[int, ...]] = {}
    for proc, fd, file in _descriptors(kernel):
        if file not in known:
            try:
                known[file] = kernel.values(fields, file)
            except MemoryFault as fault:
                kernel.warnings.add("struct file", fault.address, f"{file:#x}: {fault.reason}")
                known[file] = 0, 0
        data, vnode = known[file]
        if data:
            found.setdefault(data, []).append(Open(proc, fd, file, data, vnode))
    return found


def of_process(kernel: Kernel, proc: int) -> List[Open]:
    """The descriptors of a struct proc *, lowest first; a finding where they cannot be read."""
    return _by_proc(kernel).get(proc, [])


@cached(MEMORY)
def _by_proc(kernel: Kernel) -> Dict[int, List[Open]]:
    found: Dict[int, List[Open]] = {}
    for opened in by_data(kernel).values():
        for each in opened:
            found.setdefault(each.proc, []).append(each)
    for each_list in found.values():
        each_list.sort(key=lambda each: each.fd)
    return found


@cached(MEMORY)
def fifo_sockets(kernel: Kernel) -> Dict[int, int]:
    """{struct socket *: struct fifoinfo *} of every open FIFO; {} from 10.0 on (r232055).

    Until then a FIFO was two local sockets, fi_readsock and fi_writesock.
    """
    layouts = kernel.layouts
    found: Dict[int, int] = {}
    if not layouts.has("fifoinfo", "fi_readsock"):
        return found
    fields = layouts.fields("fifoinfo", "fi_readsock", "fi_writesock")
    for data, opened in by_data(kernel).items():
        try:
            if file_at(kernel, opened[0].file).type == "FIFO":
                for socket in fields.unpack(kernel.read(data, fields.span)):
                    found[socket] = data
        except MemoryFault:
            continue
    return found


#: what a process has of the file tree beside its descriptors, by member
_FOLDERS = (("cwd", "cdir"), ("root", "rdir"), ("jail", "jdir"))


def folders(kernel: Kernel, proc: int) -> List[Tuple[str, int]]:
    """("cwd" | "root" | "jail" | "text", struct vnode *) of a struct proc *.

    In struct filedesc to 12.x, in struct pwd behind struct pwddesc from 13.0 on (r368480);
    [] where they cannot be read.
    """
    layouts = kernel.layouts
    found: List[Tuple[str, int]] = []
    try:
        process = kernel.view("proc", proc)
        if process.has("p_pd") and "pwddesc" in layouts:
            held = process.p_pd
            pwd = kernel.pointer(held + layouts.offsetof("pwddesc", "pd_pwd")) if held else 0
            where, prefix, struct = pwd, "pwd_", "pwd"
        else:
            where, prefix, struct = process.p_fd, "fd_", "filedesc"
        if where and layouts.has(struct, f"{prefix}cdir"):
            view = kernel.view(struct, where)
            found += [(name, view[prefix + member]) for name, member in _FOLDERS]
        found.append(("text", process.p_textvp))
    except (MemoryFault, LayoutError) as error:
        kernel.warnings.add(f"folders of process {proc:#x}", proc, str(error), partial=False)
    return [(name, vnode) for name, vnode in found if vnode]


def _descriptors(kernel: Kernel) -> Iterator[Tuple[int, int, int]]:
    p_fd = kernel.layouts.offsetof("proc", "p_fd")
    seen: Set[int] = set()
    for thread in threads(kernel):
        if thread.proc in seen:
            continue
        seen.add(thread.proc)
        if not kernel.affords("files that processes have open", _TABLE):
            return
        try:
            table = kernel.pointer(thread.proc + p_fd)
            if table:
                for fd, file in _table(kernel, table):
                    yield thread.proc, fd, file
        except (MemoryFault, LayoutError) as error:
            at = getattr(error, "address", None)
            kernel.warnings.add(f"files of pid {thread.pid}", at, str(error))


def _table(kernel: Kernel, address: int) -> Iterator[Tuple[int, int]]:
    layouts = kernel.layouts
    size = kernel.pointer_size
    view = kernel.view("filedesc", address)
    if view.has("fd_files"):
        base = view.fd_files
        number = kernel.unsigned(base + layouts.offsetof("fdescenttbl", "fdt_nfiles"), 4)
        base += layouts.offsetof("fdescenttbl", "fdt_ofiles")
        stride = layouts.sizeof("filedescent")
    else:
        base, number = view.fd_ofiles, view.fd_nfiles
        whole = layouts.resolve("filedesc", "fd_ofiles").points_to == "filedescent"
        stride = layouts.sizeof("filedescent") if whole else size
    number = min(number, _MAX_FILES)
    if kernel.chosen and view.has("fd_map"):
        for fd in _in_use(kernel, view.fd_map, number):
            file = kernel.pointer(base + fd * stride)
            if file:
                yield fd, file
        return
    raw = kernel.read(base, number * stride)
    for fd in range(number):
        file = int.from_bytes(raw[fd * stride : fd * stride + size], "little")
        if file:
            yield fd, file


def _in_use(kernel: Kernel, address: int, number: int) -> Iterator[int]:
    """The descriptors whose bit is set in fd_map, an array of u_long (sys/filedesc.h)."""
    bits = int.from_bytes(kernel.read(address, -(-number // 64) * 8), "little")
    while bits:
        low = bits & -bits
        yield low.bit_length() - 1
        bits ^= low


def by_file(kernel: Kernel) -> Dict[int, List[Open]]:
    """{struct file *: the descriptors that refer to it}: what processes share after fork(2)."""
    found: Dict[int, List[Open]] = {}
    for opened in by_data(kernel).values():
        for each in opened:
            found.setdefault(each.file, []).append(each)
    return found
