"""How each kind of wait goes on: one function for every resolver named in the catalogue.

A resolver gets a Case, adds nodes and edges to its graph and returns the
thread's Standing, or None to leave the sleep to the catalogue's row alone.
"""

from __future__ import annotations

from typing import Callable, Dict, Optional

from plugin.waits.build import Case, Standing
from plugin.waits.resolvers import (
    common,
    geom,
    io,
    limits,
    memory,
    pages,
    procs,
    remote,
    vfs,
    zfs,
)

Resolver = Callable[[Case], Optional[Standing]]

RESOLVERS: Dict[str, Resolver] = {
    "buf": io.buf,
    "bio": io.bio,
    "running_space": io.running_space,
    "bufobj_output": io.bufobj_output,
    "dirty": io.dirty,
    "newbuf": io.newbuf,
    "g_down_idle": geom.worker_idle,
    "g_up_idle": geom.worker_idle,
    "g_event_idle": geom.worker_idle,
    "g_pace": geom.pace,
    "g_transient": geom.transient,
    "g_events": geom.events,
    "g_dev_close": geom.dev_close,
    "memory": memory.memory,
    "pageout_memory": memory.pageout_memory,
    "pagedaemon_idle": memory.pagedaemon_idle,
    "pagedaemon_wait": memory.pagedaemon_wait,
    "laundry_idle": memory.laundry_idle,
    "pacing_memory": memory.pacing_memory,
    "swapper": procs.swapper,
    "children": procs.children,
    "pipe": procs.pipe,
    "socket": procs.socket,
    "umtx": procs.umtx,
    "service": procs.service,
    "lock": common.no_lock,
    "pbuf": limits.pbufs,
    "uma_limit": limits.uma_limit,
    "vmem": limits.vmem,
    "page": pages.page,
    "object_pip": pages.object_pip,
    "swap_read": pages.swap_read,
    "vm_map": pages.vm_map,
    "mount_suspended": vfs.mount_suspended,
    "mount_writers": vfs.mount_writers,
    "mount_busy": vfs.mount_busy,
    "vnlru": vfs.vnlru,
    "softdep": vfs.softdep,
    "file_offset": vfs.file_offset,
    "file_range": vfs.file_range,
    "nfs_request": remote.nfs_request,
    "fuse": remote.fuse,
    "cam": remote.cam,
    "zfs_zio": zfs.zio,
    "zfs_dbuf": zfs.dbuf,
    "zfs_txg": zfs.txg,
    "zfs_suspended": zfs.suspended,
    "zfs_other": zfs.other,
}
