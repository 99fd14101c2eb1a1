"""Vnodes: which one a lock or object belongs to, and what to call it.

Mirrors sys/sys/vnode.h and sys/kern/vfs_subr.c, 6.x to 15.x.
"""

from __future__ import annotations

from typing import List, NamedTuple, Optional, Tuple

from plugin.caching import MEMORY, cached
from plugin.errors import LayoutError, MemoryFault
from plugin.kernel.mount import Mount, mount_at
from plugin.session import Kernel, View

#: enum vtype, the same since 4.4BSD
VTYPES = ("VNON", "VREG", "VDIR", "VBLK", "VCHR", "VLNK", "VSOCK", "VFIFO", "VBAD", "VMARKER")


class Vnode(NamedTuple):
    """``type`` is VREG, VDIR, ...; ``mount`` the struct mount, ``on`` where it is mounted.

    ``path`` is what the name cache knows of the vnode's name, or the device node's own, "" if
    nothing; ``number`` the file's inode number where its file system's struct is known, else 0;
    ``over`` what a vnode of nullfs or unionfs lies over, in words, else "".
    """

    address: int
    type: str
    fstype: str
    mount: int
    on: str
    path: str
    object: int
    number: int = 0
    over: str = ""

    @property
    def label(self) -> str:
        """ "ufs /data/dir1", or as much of it as is known."""
        words = [self.fstype or "?"]
        if self.path:
            words.append(self.path)
        else:
            words.append(self.type)
            words += [f"inode {self.number}"] if self.number else []
            words += [f"on {self.on}"] if self.on else []
        return " ".join(words) + (f" over {self.over}" if self.over else "")


@cached(MEMORY)
def vnode_of_lock(kernel: Kernel, lock: int) -> Optional[int]:
    """The vnode whose v_lock is at ``lock``, None if that is no vnode's own lock.

    v_vnlock points at the lock in use; for the lock inside a vnode that is itself.
    """
    try:
        address = lock - kernel.layouts.offsetof("vnode", "v_lock")
        vnlock = kernel.pointer(address + kernel.layouts.offsetof("vnode", "v_vnlock"))
    except (MemoryFault, LayoutError):
        return None
    return address if vnlock == lock else None


@cached(MEMORY)
def vnode_at(kernel: Kernel, address: int) -> Optional[Vnode]:
    """The vnode at ``address``, None for NULL and, with a finding, where it cannot be read."""
    if not address:
        return None
    try:
        view = kernel.view("vnode", address)
        number, mount = view.v_type, view.v_mount
        vm_object = view.get("v_bufobj.bo_object", 0)
    except MemoryFault as fault:
        kernel.warnings.add(f"vnode {address:#x}", fault.address, fault.reason)
        return None
    except LayoutError:
        return None
    kind = VTYPES[number] if number < len(VTYPES) else str(number)
    found = mount_at(kernel, mount) if mount else None
    fstype = found.fstype if found is not None else ""
    if not fstype:
        name = kernel.layouts.first_of(
            "vnode", "v_lock.lock_object.lo_name", "v_lock.lk_wmesg", "v_tag"
        )
        fstype = kernel.name_at("a vnode's file system", view[name], 32) if name else ""
    on = found.on if found is not None else ""
    lower = _lower(kernel, fstype, view)
    below = vnode_at(kernel, lower) if lower and lower != address else None
    path = _path(kernel, address, on) or _device(kernel, view, kind, on)
    if not path and below is not None and found is not None:
        path = _above(kernel, found, below.path)
    return Vnode(
        address,
        kind,
        fstype,
        mount,
        on,
        path,
        vm_object,
        _number(kernel, fstype, view),
        below.label if below is not None else "",
    )


#: by file system: the struct at v_data, and its member with the file's number
_NUMBERS = {
    "ufs": ("inode", "i_number"),
    "zfs": ("znode", "z_id"),
    "tmpfs": ("tmpfs_node", "tn_id"),
    "msdosfs": ("denode", "de_inode"),
}
#: by file system that lies over another: the struct at v_data, its members with a vnode below
_STACKED = {
    "nullfs": ("null_node", ("null_lowervp",)),
    "unionfs": ("unionfs_node", ("un_uppervp", "un_lowervp")),
}


def _number(kernel: Kernel, fstype: str, view: View) -> int:
    struct, member = _NUMBERS.get(fstype, ("", ""))
    if not struct or not view.v_data or not kernel.layouts.has(struct, member):
        return 0
    found = kernel.layouts.resolve(struct, member)
    try:
        return kernel.unsigned(view.v_data + found.offset, found.size)
    except MemoryFault:
        return 0


def _lower(kernel: Kernel, fstype: str, view: View) -> int:
    """The vnode that one of nullfs or unionfs (the upper first) stands for, else 0."""
    struct, members = _STACKED.get(fstype, ("", ()))
    for member in members:
        if view.v_data and kernel.layouts.has(struct, member):
            try:
                found = kernel.pointer(view.v_data + kernel.layouts.offsetof(struct, member))
            except MemoryFault:
                continue
            if found:
                return found
    return 0


def _above(kernel: Kernel, mount: Mount, lower: str) -> str:
    """The path on a mount of nullfs for ``lower``, the path of what lies below it.

    f_mntfromname is the directory that is mounted.
    """
    base = mount.source.rstrip("/")
    if mount.fstype != "nullfs" or not lower or not (lower + "/").startswith(base + "/"):
        return ""
    return (mount.on.rstrip("/") + lower[len(base) :]) or "/"


def _device(kernel: Kernel, view: View, kind: str, on: str) -> str:
    """The path of a character device by its own name (si_name), on a mount of devfs."""
    layouts = kernel.layouts
    path = layouts.first_of("vnode", "v_rdev", "v_un.vu_cdev")
    if kind != "VCHR" or path is None or not view[path] or not layouts.has("cdev", "si_name"):
        return ""
    at = view[path] + layouts.offsetof("cdev", "si_name")
    try:
        if layouts.resolve("cdev", "si_name").is_pointer:
            at = kernel.pointer(at)
        name = kernel.cstring(at, 64)
    except MemoryFault:
        return ""
    return f"{(on or '/dev').rstrip('/')}/{name}" if name else ""


def _path(kernel: Kernel, vnode: int, root: str) -> str:
    """The path by the name cache, up to the file system's root; "" if it does not know.

    struct namecache (sys/kern/vfs_cache.c) is private to that file: without
    debug information, or a layout for it in structs.yaml, there is no path.
    """
    layouts = kernel.layouts
    if "namecache" not in layouts or not layouts.has("vnode", "v_cache_dst"):
        return ""
    vflag = layouts.resolve("vnode", "v_vflag")
    root_flag = layouts.constant("VV_ROOT", 1)
    names: List[str] = []
    try:
        for _ in range(64):
            if kernel.unsigned(vnode + vflag.offset, vflag.size) & root_flag:
                base = root if root != "/" else ""
                return base + "".join("/" + name for name in reversed(names)) or "/"
            found = _cached(kernel, vnode)
            if found is None:
                return ""
            vnode, name = found
            names.append(name)
    except MemoryFault:
        pass
    return ""


def _cached(kernel: Kernel, vnode: int) -> Optional[Tuple[int, str]]:
    """(the directory, the name in it) of a vnode: its first entry on v_cache_dst but ".."."""
    layouts = kernel.layouts
    fields = layouts.fields("namecache", "nc_dvp", "nc_nlen", "nc_flag", "nc_dst.tqe_next")
    dotdot = layouts.constant("NCF_ISDOTDOT", 0)
    stamped = layouts.constant("NCF_TS", 0)
    entry = kernel.pointer(vnode + layouts.offsetof("vnode", "v_cache_dst"))
    for _ in range(64):
        if not entry:
            break
        directory, length, flags, following = kernel.values(fields, entry)
        if not flags & dotdot:
            # To 11.x an entry with a time is a struct of its own, its name behind that.
            late = flags & stamped and layouts.has("namecache_ts", "nc_name")
            at = layouts.offsetof("namecache_ts" if late else "namecache", "nc_name")
            raw = kernel.read(entry + at, length)
            if kernel.private is not None:
                kernel.private("component", entry + at, raw)
            return directory, raw.decode("utf-8", "backslashreplace")
        entry = following
    return None
