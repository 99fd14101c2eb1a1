"""ZFS: pools, vdevs and their queues, zios, transaction groups, buffers, the log, its locks.

Mirrors contrib/openzfs (13.0 on) and cddl/contrib/opensolaris (9.3 to 12.x): the lists and
trees are linked as list_t and avl_tree are, and a zio at a device has a bio of GEOM whose
bio_caller1 it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict, List, Optional, Sequence

from tests.forge.builder import Obj
from tests.forge.geom import BIO_READ, BIO_WRITE, Consumer, Disk
from tests.forge.procs import SLEEPQ_CONDVAR, Thread
from tests.forge.vfs import Vnode

if TYPE_CHECKING:
    from tests.forge.machine import Machine

TXG_SIZE = 4
_QS_QUEUED, _QS_ACTIVE = 1, 2


class Zio:
    """A struct zio; an int wherever a pointer to one is wanted."""

    def __init__(self, pool: Pool, obj: Obj, kind: str) -> None:
        self.pool = pool
        self.obj = obj
        self.kind = kind
        self.vdev: Optional[Vdev] = None

    def __index__(self) -> int:
        return self.obj.address

    def over(self, *children: Zio) -> Zio:
        """These have to end before it does."""
        m = self.pool.machine
        for child in children:
            link = m.new("zio_link", zl_parent=self, zl_child=child)
            self.pool.append(self.obj.at("io_child_list"), "zio_link", "zl_child_node", link)
            self.pool.append(child.obj.at("io_parent_list"), "zio_link", "zl_parent_node", link)
        return self

    def about(self, objset: int, object: int, blkid: int, level: int = 0) -> Zio:
        """Which block it reads or writes: its bookmark."""
        raw = b"".join(n.to_bytes(8, "little") for n in (objset, object, level, blkid))
        self.obj["io_bookmark"] = raw
        return self

    def waited_by(self, thread: Thread, seconds: float = 60.0) -> Zio:
        """The thread is in zio_wait() of it."""
        self.obj.set(io_waiter=thread)
        self.pool.sleeps(thread, self.obj.at("io_cv"), "zio->io_cv", seconds)
        return self

    def at_device(self, seconds: float = 60.0) -> Zio:
        """Given to the disk: active in the vdev's queue, with a bio that the driver has."""
        m = self.pool.machine
        vdev = self.vdev
        assert vdev is not None
        self._stamp(seconds, "ZIO_STAGE_VDEV_IO_START")
        self.obj.probe(io_queue_state=_QS_ACTIVE)
        vdev.active.append(self)
        if vdev.consumer is not None:
            cmd = BIO_READ if self.kind == "READ" else BIO_WRITE
            offset, size = self.obj["io_offset"], self.obj["io_size"]
            bio = m.geom.request(
                vdev.consumer,
                cmd,
                offset,
                size,
                done="vdev_geom_io_intr",
                caller1=self,
                seconds=seconds,
            )
            bio.to_device()
            self.obj.probe(io_bio=bio)
        return self

    def dispatched(self) -> Obj:
        """A task of z_vdev_file (13.0 on), to be queued or run there."""
        m = self.pool.machine
        entry = m.new("taskq_ent", arena="kva", tqent_func="vdev_file_io_strategy")
        entry["tqent_arg"] = self
        return m.view("task", entry.at("tqent_task"))

    def queued(self, seconds: float = 60.0) -> Zio:
        """In the vdev's queue, not given to the disk yet."""
        assert self.vdev is not None
        self._stamp(seconds, "ZIO_STAGE_VDEV_IO_START")
        self.obj.probe(io_queue_state=_QS_QUEUED)
        self.vdev.waiting.append(self)
        return self

    def _stamp(self, seconds: float, stage: str) -> None:
        m = self.pool.machine
        self.obj["io_stage"] = m.constant(stage)
        at = int((m.uptime - seconds) * 1e9)
        self.obj.probe(io_timestamp=at, io_queued_timestamp=at)


class Vdev:
    """A leaf vdev, on a disk (``consumer``) or on nothing."""

    def __init__(self, obj: Obj, name: str, consumer: Optional[Consumer]) -> None:
        self.obj = obj
        self.name = name
        self.consumer = consumer
        self.active: List[Zio] = []
        self.waiting: List[Zio] = []

    def __index__(self) -> int:
        return self.obj.address


class Pool:
    """One pool.  Everything of it hangs on spa_namespace_avl, or on a mount."""

    def __init__(self, machine: Machine, name: str = "tank", *, symbols: bool = True) -> None:
        self.machine = m = machine
        self.name = name
        self._lists: Dict[int, List[Obj]] = {}
        self.vdevs: List[Vdev] = []
        self.volumes: List[Obj] = []
        self.spa = m.new("spa", arena="kva", align=64, spa_name=name)
        self.dsl_pool = m.new("dsl_pool", arena="kva", align=64, dp_spa=self.spa)
        self.root_vdev = self._vdev("root", "", leaf=False)
        self.spa.set(spa_dsl_pool=self.dsl_pool, spa_root_vdev=self.root_vdev)
        self.spa["spa_state"] = m.constant("POOL_STATE_ACTIVE", 0)
        self.tx = self.dsl_pool.sub("dp_tx")
        self.tx_cpu = m.array("tx_cpu", m.cpus)
        self.tx["tx_cpu"] = self.tx_cpu[0]
        m.at_the_end(self._link)
        self.objset = m.new("objset", arena="kva", os_spa=self.spa)
        directory = m.new("dsl_dir", arena="kva", dd_myname=name)
        self.dataset = m.new("dsl_dataset", arena="kva", ds_dir=directory, ds_object=54)
        self.objset["os_dsl_dataset"] = self.dataset
        self.txgs(open=104, syncing=103)
        if symbols:
            self._register()

    def _register(self) -> None:
        m = self.machine
        tree = m.lookup("spa_namespace_avl")
        if tree is None:
            m.symbol("spa_namespace_avl", "avl_tree", static=True)
        m.at_the_end(
            lambda: self.avl(m.address_of("spa_namespace_avl"), "spa", "spa_avl", [self.spa])
        )

    def mounted(self, on: str) -> Obj:
        """A mount of its root dataset; its zfsvfs."""
        m = self.machine
        mount = m.vfs.mount("zfs", on, self.name)
        zfsvfs = m.new("zfsvfs", arena="kva", z_os=self.objset)
        mount.obj["mnt_data"] = zfsvfs
        return zfsvfs

    # Lists and trees

    def append(self, head: int, struct: str, link: str, element: Obj) -> None:
        """Put an element on the list_t at ``head``."""
        m = self.machine
        on = self._lists.setdefault(head, [])
        on.append(element)
        ring = head + m.locate("list", "list_head").offset
        at = m.locate(struct, link).offset
        m.write_pointer(head + m.locate("list", "list_offset").offset, at)
        nodes = [ring, *(each.address + at for each in on)]
        for place, node in enumerate(nodes):
            m.write_pointer(node, nodes[(place + 1) % len(nodes)])
            m.write_pointer(node + m.pointer_size, nodes[place - 1])

    def empty_list(self, head: int, struct: str, link: str) -> None:
        """An initialised list_t without elements."""
        m = self.machine
        ring = head + m.locate("list", "list_head").offset
        m.write_pointer(
            head + m.locate("list", "list_offset").offset, m.locate(struct, link).offset
        )
        m.write_pointer(ring, ring)
        m.write_pointer(ring + m.pointer_size, ring)

    def avl(self, tree: int, struct: str, link: str, elements: Sequence[Obj]) -> None:
        """Make the avl_tree at ``tree`` of elements already in order."""
        m = self.machine
        offset = m.locate(struct, link).offset
        head = m.view("avl_tree", tree)
        head.set(avl_offset=offset, avl_numnodes=len(elements))
        head["avl_compar"] = "avl_compare_example"
        nodes = [each.address + offset for each in elements]
        packed = m.has("avl_node", "avl_pcb")

        def build(low: int, high: int, parent: int, side: int) -> int:
            if low >= high:
                return 0
            middle = (low + high) // 2
            node = m.view("avl_node", nodes[middle])
            if packed:
                # a balance of 0 is kept as 1
                node["avl_pcb"] = parent | side << 2 | 1
            else:
                node.set(avl_parent=parent, avl_child_index=side)
            node["avl_child[0]"] = build(low, middle, node.address, 0)
            node["avl_child[1]"] = build(middle + 1, high, node.address, 1)
            return node.address

        head["avl_root"] = build(0, len(nodes), 0, 0)

    def _link(self) -> None:
        for vdev in self.vdevs:
            self._link_queue(vdev)

    def _link_queue(self, vdev: Vdev) -> None:
        m = self.machine
        queue = vdev.obj.sub("vdev_queue")
        if queue.has("vq_active_list"):
            head = queue.at("vq_active_list")
            self.empty_list(head, "zio", "io_queue_node")
            for zio in vdev.active:
                self.append(head, "zio", "io_queue_node", zio.obj)
            queue["vq_active"] = len(vdev.active)
        else:
            self.avl(
                queue.at("vq_active_tree"), "zio", "io_queue_node", [z.obj for z in vdev.active]
            )
        size = m.sizeof("vdev_queue_class")
        for priority in sorted({zio.obj["io_priority"] for zio in vdev.waiting}):
            mine = [z.obj for z in vdev.waiting if z.obj["io_priority"] == priority]
            at = queue.at("vq_class") + priority * size
            if m.has("vdev_queue_class", "vqc_queued_tree"):
                tree = at + m.locate("vdev_queue_class", "vqc_queued_tree").offset
                self.avl(tree, "zio", "io_queue_node", mine)
            elif priority in (0, 1, 7):
                head = at + m.locate("vdev_queue_class", "vqc_list").offset
                for each in mine:
                    self.append(head, "zio", "io_queue_node", each)
                m.write_int(at, len(mine), m.pointer_size)
            else:
                self.avl(at, "zio", "io_queue_node", mine)

    # Devices

    def _vdev(self, kind: str, path: str, *, leaf: bool) -> Obj:
        m = self.machine
        ops = m.new("vdev_ops", vdev_op_type=kind, vdev_op_leaf=int(leaf))
        obj = m.new("vdev", arena="kva", align=64, vdev_ops=ops, vdev_spa=self.spa)
        obj["vdev_state"] = m.constant("VDEV_STATE_HEALTHY", 7)
        if path:
            obj["vdev_path"] = path
        return obj

    def disk(self, disk: Disk) -> Vdev:
        """A leaf on a disk of GEOM, child of the root."""
        m = self.machine
        geom = m.geom.geom("ZFS::VDEV", "zfs::vdev")
        consumer = m.geom.attach(geom, disk.provider)
        consumer.open()
        return self._leaf("disk", f"/dev/{disk.provider.name}", consumer)

    def file(self, path: str, vnode: Vnode) -> Vdev:
        """A leaf on a file."""
        m = self.machine
        made = self._leaf("file", path, None)
        vdev_file = m.new("vdev_file", arena="kva")
        if vdev_file.has("vf_file"):
            vdev_file["vf_file"] = m.new("file", f_vnode=vnode)
        else:
            vdev_file["vf_vnode"] = vnode
        made.obj["vdev_tsd"] = vdev_file
        return made

    def _leaf(self, kind: str, path: str, consumer: Optional[Consumer]) -> Vdev:
        m = self.machine
        obj = self._vdev(kind, path, leaf=True)
        obj.set(vdev_parent=self.root_vdev, vdev_id=len(self.vdevs))
        if consumer is not None:
            obj["vdev_tsd"] = consumer
        made = Vdev(obj, path, consumer)
        self.vdevs.append(made)
        table = m.take(len(self.vdevs) * m.pointer_size)
        for place, each in enumerate(self.vdevs):
            m.write_pointer(table + place * m.pointer_size, each)
        self.root_vdev.set(vdev_child=table, vdev_children=len(self.vdevs))
        return made

    # I/O

    def zio(
        self,
        kind: str = "NULL",
        vdev: Optional[Vdev] = None,
        *,
        offset: int = 0,
        size: int = 0,
        priority: int = 0,
    ) -> Zio:
        """A zio of this pool: with ``vdev`` a leaf for it, else part of a tree."""
        m = self.machine
        obj = m.new("zio", arena="kva", align=64, io_spa=self.spa, io_executor=1)
        obj["io_type"] = m.constant(f"ZIO_TYPE_{kind}")
        obj.set(io_offset=offset, io_size=size, io_priority=priority)
        obj["io_stage"] = m.constant("ZIO_STAGE_OPEN", 1)
        self.empty_list(obj.at("io_child_list"), "zio_link", "zl_child_node")
        self.empty_list(obj.at("io_parent_list"), "zio_link", "zl_parent_node")
        made = Zio(self, obj, kind)
        if vdev is not None:
            obj["io_vd"] = vdev
            made.vdev = vdev
        return made

    def tree(self, leaf: Zio) -> Zio:
        """As zio_read() makes it: a null root, the logical zio, and the leaf."""
        logical = self.zio(leaf.kind, size=leaf.obj["io_size"]).over(leaf)
        return self.zio().over(logical)

    # Sleeping in it

    def sleeps(self, thread: Thread, cv: int, wmesg: str, seconds: float = 60.0) -> None:
        """The thread sleeps on a condition variable of ZFS."""
        m = self.machine
        m.view("cv", cv).set(cv_description=wmesg, cv_waiters=1)
        thread.sleeps(cv, wmesg, kind=SLEEPQ_CONDVAR, seconds=seconds)

    def holds(self, thread: Thread, function: str, thing: Any, below: int = 2) -> None:
        """A local variable of a function on the thread's stack points at something."""
        m = self.machine
        m.write_pointer(thread.local(function, below * m.pointer_size), thing)

    # Transaction groups

    def txgs(
        self, *, open: int, syncing: int = 0, quiescing: int = 0, synced: Optional[int] = None
    ) -> None:
        self.tx.set(
            tx_open_txg=open,
            tx_syncing_txg=syncing,
            tx_synced_txg=(syncing or open) - 1 if synced is None else synced,
        )
        self.tx.probe(tx_quiescing_txg=quiescing)
        self.spa.probe(spa_syncing_txg=syncing)

    def threads(self) -> Dict[str, Thread]:
        """Its sync and quiesce threads; say what each of them does."""
        m = self.machine
        made = {
            role: m.procs.kthread("txg_thread_enter", "zfskern", (f"txg_{role}_thread",))
            for role in ("sync", "quiesce")
        }
        self.tx.set(tx_sync_thread=made["sync"], tx_quiesce_thread=made["quiesce"])
        return made

    def idle(self, thread: Thread, role: str) -> None:
        """A txg thread without work."""
        self.sleeps(thread, self.tx.at(f"tx_{role}_more_cv"), f"tx->tx_{role}_more_cv")

    def synced_by(self, thread: Thread, seconds: float = 60.0) -> None:
        """The thread is in txg_wait_synced()."""
        self.sleeps(thread, self.tx.at("tx_sync_done_cv"), "tx->tx_sync_done_cv", seconds)

    def transaction(self, thread: Thread, function: str, txg: int, cpu: int = 0) -> Obj:
        """A dmu_tx on the thread's stack that holds ``txg`` open."""
        m = self.machine
        tx = m.new("dmu_tx", tx_pool=self.dsl_pool, tx_txg=txg)
        tx["tx_txgh.th_cpu"] = self.tx_cpu[cpu]
        tx["tx_txgh.th_txg"] = txg
        self.holds(thread, function, tx)
        path = f"tc_count[{txg % TXG_SIZE}]"
        self.tx_cpu[cpu][path] = self.tx_cpu[cpu][path] + 1
        return tx

    def quiesces(self, thread: Thread, txg: int, cpu: int = 0) -> None:
        """The quiesce thread waits for the transactions of a txg on one CPU."""
        at = self.tx_cpu[cpu].at("tc_cv") + (txg % TXG_SIZE) * self.machine.sizeof("cv")
        self.sleeps(thread, at, "tc->tc_cv[g]")

    # Buffers, the log, ranges

    def dbuf(self, object: int, blkid: int, state: str = "READ") -> Obj:
        m = self.machine
        obj = m.new("dmu_buf_impl", arena="kva", db_objset=self.objset, db_blkid=blkid)
        obj["db.db_object"] = object
        obj["db_state"] = m.constant(f"DB_{state}")
        if obj.has("db_dirty_records"):
            self.empty_list(obj.at("db_dirty_records"), "dbuf_dirty_record", "dr_dbuf_node")
        return obj

    def in_dmu_sync(self, dbuf: Obj, txg: int) -> None:
        """Its dirty record of ``txg`` is being written for the log."""
        m = self.machine
        record = m.new("dbuf_dirty_record", arena="kva", dr_txg=txg, dr_dbuf=dbuf)
        at = record.address + m.locate("dbuf_dirty_record", "dt").offset
        at += m.locate("dirty_types", "dl").offset
        at += m.locate("dirty_leaf", "dr_override_state").offset
        m.write_int(at, m.constant("DR_IN_DMU_SYNC", 1), 4)
        if dbuf.has("db_dirty_records"):
            self.append(dbuf.at("db_dirty_records"), "dbuf_dirty_record", "dr_dbuf_node", record)
        else:
            dbuf["db_last_dirty"] = record

    def log_block(self, root: Zio, state: str = "ISSUED") -> Obj:
        m = self.machine
        zilog = m.new("zilog", arena="kva", zl_spa=self.spa, zl_os=self.objset)
        lwb = m.new("lwb", arena="kva", lwb_zilog=zilog, lwb_root_zio=root)
        lwb["lwb_state"] = m.constant(f"LWB_STATE_{state}")
        self.append(zilog.at("zl_lwb_list"), "lwb", "lwb_node", lwb)
        return lwb

    def old_log_block(self, write: Zio) -> Obj:
        """To 11.x a block has one zio, lwb_zio, and no state."""
        m = self.machine
        zilog = m.new("zilog", arena="kva", zl_spa=self.spa, zl_os=self.objset)
        lwb = m.new("lwb", arena="kva", lwb_zilog=zilog, lwb_zio=write)
        self.append(zilog.at("zl_lwb_list"), "lwb", "lwb_node", lwb)
        return lwb

    def commits(self, thread: Thread, lwb: Optional[Obj]) -> Obj:
        """The thread is in zil_commit_waiter() for a block of the log."""
        m = self.machine
        waiter = m.new("zil_commit_waiter", zcw_lwb=lwb)
        self.sleeps(thread, waiter.at("zcw_cv"), "zcw->zcw_cv")
        return waiter

    def locked_range(self, offset: int, length: int, object: int = 7) -> Obj:
        """A range of a file that is locked; who has it says ``holds``."""
        m = self.machine
        znode = m.new("znode", arena="kva", z_id=object)
        if m.has("znode", "z_rangelock"):
            lock = znode.sub("z_rangelock")
            lock["rl_arg"] = znode
            made = m.new("zfs_locked_range", lr_rangelock=lock, lr_offset=offset, lr_length=length)
            made["lr_type"] = 1
            self.avl(lock.at("rl_tree"), "zfs_locked_range", "lr_node", [made])
        else:
            made = m.new("rl", r_zp=znode, r_off=offset, r_len=length)
            made["r_type"] = 1
            self.avl(znode.at("z_range_avl"), "rl", "r_node", [made])
        return made

    def waits_for_range(self, thread: Thread, locked: Obj) -> None:
        new = locked.struct == "zfs_locked_range"
        member, wmesg = ("lr_write_cv", "lr->lr_write_cv") if new else ("r_wr_cv", "rl->r_wr_cv")
        self.sleeps(thread, locked.at(member), wmesg)

    # The allocation throttle

    def throttled(self, *waiting: Zio) -> None:
        """These wait for a slot, in the tree of the first allocator."""
        m = self.machine
        link = "io_alloc_node" if m.has("zio", "io_alloc_node") else "io_queue_node"
        elements = [zio.obj for zio in waiting]
        if self.spa.has("spa_alloc_tree"):
            tree = self.spa.at("spa_alloc_tree")
        elif self.spa.has("spa_alloc_trees"):
            tree = int(m.new("avl_tree", arena="kva"))
            self.spa.set(spa_alloc_trees=tree, spa_alloc_count=1)
        elif self.spa.has("spa_allocs"):
            allocator = m.new("spa_alloc", arena="kva")
            self.spa.set(spa_allocs=allocator, spa_alloc_count=1)
            tree = allocator.at("spaa_tree")
        else:
            start = m.locate("metaslab_class", "mc_allocator").offset
            size = start + m.sizeof("metaslab_class_allocator")
            at = m.take(size, "kva", 64)
            self.spa.set(spa_normal_class=at, spa_alloc_count=1)
            tree = at + start + m.locate("metaslab_class_allocator", "mca_tree").offset
        self.avl(tree, "zio", link, elements)

    # Suspension

    def suspend(self, *failed: Zio) -> Zio:
        """zio_suspend(): the pool has lost its devices; these zios wait for zpool clear."""
        m = self.machine
        root = self.zio().over(*failed)
        self.spa.set(spa_suspend_zio_root=root)
        self.spa["spa_suspended"] = m.constant("ZIO_SUSPEND_IOERR", 1)
        return root

    def config_lock(self, index: int) -> Obj:
        m = self.machine
        at = self.spa.at("spa_config_lock") + index * m.sizeof("spa_config_lock")
        return m.view("spa_config_lock", at)
