"""Mounts and vnodes.

Mirrors sys/sys/mount.h and sys/sys/vnode.h, 7.0-CURRENT of 2006 to 15.0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Dict, List, Optional

from tests.forge.builder import Obj
from tests.forge.locks import Lockmgr

if TYPE_CHECKING:
    from tests.forge.geom import Consumer
    from tests.forge.machine import Machine
    from tests.forge.vm import VmObject

_TYPES = {"none": 0, "reg": 1, "dir": 2, "blk": 3, "chr": 4, "lnk": 5, "sock": 6, "fifo": 7}


class Mount:
    def __init__(self, machine: Machine, obj: Obj, fstype: str, on: str) -> None:
        self.machine = machine
        self.obj = obj
        self.fstype = fstype
        self.on = on
        self.vnodes: List[Vnode] = []
        #: the file system's consumer and the device's vnode, where it has them
        self.consumer: Optional[Consumer] = None
        self.devvp: Optional[Vnode] = None

    def __index__(self) -> int:
        return self.obj.address


class Vnode:
    """A vnode; ``lock`` is v_lock, ``object`` its VM object once asked for."""

    def __init__(self, machine: Machine, obj: Obj, mount: Optional[Mount], lock: Lockmgr) -> None:
        self.machine = machine
        self.obj = obj
        self.mount = mount
        self.lock = lock
        self._object: Optional[VmObject] = None

    def __index__(self) -> int:
        return self.obj.address

    @property
    def bufobj(self) -> Obj:
        return self.obj.sub("v_bufobj")

    def object(self, size: int = 0) -> VmObject:
        """The vnode's VM object."""
        if self._object is None:
            self._object = self.machine.vm.object("vnode", self, size=size)
            self.bufobj["bo_object"] = self._object
        return self._object


class Vfs:
    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.mounts: List[Mount] = []
        self._vfsconf: Dict[str, Obj] = {}
        machine.symbol("mountlist", size=2 * machine.pointer_size)
        machine.variable("rootvnode")
        self.count = 0

    def mount(self, fstype: str, on: str, source: str) -> Mount:
        """A mounted file system, without vnodes or device yet."""
        m = self.machine
        obj = m.new("mount", arena="kva", align=64)
        if fstype not in self._vfsconf:
            conf = m.new("vfsconf")
            conf.set(vfc_name=fstype)
            self._vfsconf[fstype] = conf
        obj["mnt_vfc"] = self._vfsconf[fstype]
        obj["mnt_stat.f_fstypename"] = fstype
        obj["mnt_stat.f_mntonname"] = on
        obj["mnt_stat.f_mntfromname"] = source
        obj.probe(mnt_ref=1)
        if m.has("mount", "mnt_pcpu"):
            obj["mnt_pcpu"] = m.counter(0)
        m.locks.initialize(obj.sub("mnt_mtx"), "sleep mutex", "struct mount mtx")
        made = Mount(m, obj, fstype, on)
        self.mounts.append(made)
        return made

    def ffs(self, on: str, consumer: Consumer) -> Mount:
        """A UFS file system on a consumer of its own, with the device's vnode."""
        made = self.mount("ufs", on, f"/dev/{consumer.provider.name}")
        made.consumer = consumer
        made.devvp = self.vnode(None, "chr", tag="devfs")
        bufobj = made.devvp.bufobj
        bufobj["bo_private"] = consumer
        # g_vfs_open(): the geom's softc leads to the bufobj.
        m = self.machine
        if "g_vfs_softc" in m.layouts:
            sc = m.new("g_vfs_softc", sc_bo=bufobj)
            consumer.geom.obj["softc"] = sc
        else:
            consumer.geom.obj["softc"] = bufobj
        return made

    def vnode(
        self,
        mount: Optional[Mount],
        type_: str = "reg",
        *,
        tag: Optional[str] = None,
        at: Optional[int] = None,
    ) -> Vnode:
        """getnewvnode(): its lock is named after the file system."""
        m = self.machine
        tag = tag or (mount.fstype if mount else "none")
        obj = m.allocate("vnode", at=at)
        obj.set(v_type=_TYPES[type_], v_mount=mount, v_usecount=1, v_holdcnt=1)
        obj.probe(v_tag=tag)
        lock = m.locks.lockmgr(tag, at=obj.at("v_lock"))
        obj["v_vnlock"] = obj.at("v_lock")
        m.locks.initialize(obj.sub("v_interlock"), "sleep mutex", "vnode interlock")
        bufobj = obj.sub("v_bufobj")
        if bufobj.has("bo_lock"):
            m.locks.initialize(bufobj.sub("bo_lock"), "rw", "bufobj interlock")
            bufobj["bo_lock.rw_lock"] = 1
        for queue in ("bo_clean", "bo_dirty"):
            m.tailq(bufobj.at(f"{queue}.bv_hd"), "b_bobufs", [])
        if bufobj.has("__bo_vnode"):
            bufobj["__bo_vnode"] = obj
        made = Vnode(m, obj, mount, lock)
        self.count += 1
        if mount is not None:
            mount.vnodes.append(made)
        return made

    def root(self, mount: Mount) -> Vnode:
        """The root directory of a mount."""
        made = self.vnode(mount, "dir")
        made.obj["v_vflag"] = self.machine.constant("VV_ROOT", 1)
        return made

    def named(self, vnode: Vnode, directory: Vnode, name: str, *dotdots: Vnode) -> Vnode:
        """What the name cache knows of a vnode: first the ".." of ``dotdots``, then its name."""
        m = self.machine
        entries = [self._cached(each, "..", m.constant("NCF_ISDOTDOT", 0)) for each in dotdots]
        entries.append(self._cached(directory, name, 0))
        m.tailq(vnode.obj.at("v_cache_dst"), "nc_dst", entries)
        return vnode

    def _cached(self, directory: Vnode, name: str, flags: int) -> Obj:
        m = self.machine
        raw = name.encode() + b"\0"
        timed = flags | m.constant("NCF_TS", 0)
        late = m.has("namecache_ts", "nc_name")
        # To 11.x an entry with a time is a struct of its own, with its name behind it.
        struct, flags = ("namecache_ts", timed) if late else ("namecache", flags)
        at = m.take(m.sizeof("namecache_ts" if late else "namecache") + len(raw))
        entry = m.view("namecache", at)
        entry.set(nc_dvp=directory, nc_nlen=len(name), nc_flag=flags)
        m.space.write(at + m.locate(struct, "nc_name").offset, raw)
        return entry

    def finish(self) -> None:
        m = self.machine
        m.tailq(m.address_of("mountlist"), "mnt_list", [x.obj for x in self.mounts])
        for mount in self.mounts:
            vnodes = [v.obj for v in mount.vnodes]
            m.tailq(mount.obj.at("mnt_nvnodelist"), "v_nmntvnodes", vnodes)
            mount.obj.probe(mnt_nvnodelistsize=len(vnodes))
        m.variable("numvnodes", self.count, size=m.pointer_size, static=True)
        wide = m.osreldate >= 1300000
        m.variable("desiredvnodes", 4096, size=m.pointer_size if wide else 4)
