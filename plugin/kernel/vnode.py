"""Vnodes: which one a lock or object belongs to, and what to call it.

Mirrors sys/sys/vnode.h and sys/kern/vfs_subr.c, 6.x to 15.x.
"""

from __future__ import annotations

from typing import List, NamedTuple, Optional

from plugin.caching import MEMORY, cached
from plugin.errors import LayoutError, MemoryFault
from plugin.kernel.mount import mount_at
from plugin.session import Kernel

#: enum vtype, the same since 4.4BSD
VTYPES = ("VNON", "VREG", "VDIR", "VBLK", "VCHR", "VLNK", "VSOCK", "VFIFO", "VBAD", "VMARKER")


class Vnode(NamedTuple):
    """``type`` is VREG, VDIR, ...; ``mount`` the struct mount, ``on`` where it is mounted.

    ``path`` is what the name cache knows of the vnode's name, "" if nothing.
    """

    address: int
    type: str
    fstype: str
    mount: int
    on: str
    path: str
    object: int

    @property
    def label(self) -> str:
        """ "ufs /data/dir1", or as much of it as is known."""
        words = [self.fstype or "?"]
        if self.path:
            words.append(self.path)
        elif self.on:
            words.append(f"{self.type} on {self.on}")
        else:
            words.append(self.type)
        return " ".join(words)


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
    """The vnode at ``address``, None if it cannot be read."""
    try:
        view = kernel.view("vnode", address)
        number, mount = view.v_type, view.v_mount
        vm_object = view.get("v_bufobj.bo_object", 0)
    except (MemoryFault, LayoutError):
        return None
    kind = VTYPES[number] if number < len(VTYPES) else str(number)
    found = mount_at(kernel, mount) if mount else None
    fstype = found.fstype if found is not None else ""
    if not fstype:
        name = kernel.layouts.first_of(
            "vnode", "v_lock.lock_object.lo_name", "v_lock.lk_wmesg", "v_tag"
        )
        fstype = kernel.try_cstring(view[name], limit=32) if name else ""
    return Vnode(
        address,
        kind,
        fstype,
        mount,
        found.on if found is not None else "",
        _path(kernel, address, found.on if found is not None else ""),
        vm_object,
    )


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
    dst = layouts.offsetof("vnode", "v_cache_dst")
    fields = layouts.fields("namecache", "nc_dvp", "nc_nlen")
    name_at = layouts.offsetof("namecache", "nc_name")
    names: List[str] = []
    try:
        for _ in range(64):
            if kernel.unsigned(vnode + vflag.offset, vflag.size) & root_flag:
                base = root if root != "/" else ""
                return base + "".join("/" + name for name in reversed(names)) or "/"
            entry = kernel.pointer(vnode + dst)
            if not entry:
                return ""
            vnode, length = fields.unpack(kernel.read(entry, fields.span))
            names.append(kernel.read(entry + name_at, length).decode("utf-8", "backslashreplace"))
    except MemoryFault:
        pass
    return ""
