"""What explains the members: flag and enum tables, list heads, renamed members.

Which macro belongs to which member is knowledge that no debug information
carries; it is kept here once, and `wchan structs import` writes it into
structs.yaml with the values each kernel gives it.
"""

from __future__ import annotations

from typing import Dict, NamedTuple, Tuple


class TableRule(NamedTuple):
    """Which constants make a table, and the members it explains.

    ``match`` is a regular expression over the whole name of a macro (of an
    enumerator where ``kind`` is "enum" or "bits"); flags keep single bits only.
    Where two names of an enum have one value the one named first in ``first``
    is shown.
    """

    name: str
    kind: str
    of: str
    match: str
    first: str = ""


#: sys/bio.h, sys/buf.h, geom/geom.h, vm/vm_page.h, ... in this order
TABLES: Tuple[TableRule, ...] = (
    TableRule(
        "bio_cmd",
        "enum",
        "bio.bio_cmd buf.b_iocmd",
        r"BIO_(READ|WRITE|DELETE|GETATTR|FLUSH|CMD[012]|ZONE|SPEEDUP)",
    ),
    TableRule(
        "bio_flags",
        "flags",
        "bio.bio_flags buf.b_ioflags",
        r"BIO_(ERROR|ERROR_COMPAT|DONE|ONQUEUE|ORDERED|UNMAPPED|TRANSIENT_MAPPING|VLIST|SWAP"
        r"|EXTERR|SPEEDUP_WRITE|SPEEDUP_TRIM)",
    ),
    TableRule("b_flags", "flags", "buf.b_flags", r"B_(?!DEVMAGIC)(?!\w*(MASK|SHIFT)$)\w+"),
    TableRule("b_xflags", "flags", "buf.b_xflags", r"BX_\w+"),
    TableRule("b_vflags", "flags", "buf.b_vflags", r"BV_\w+"),
    TableRule(
        "b_qindex", "enum", "buf.b_qindex", r"QUEUE_(NONE|CLEAN|DIRTY\w*|EMPTY|EMPTYKVA|SENTINEL)"
    ),
    TableRule("bo_flag", "flags", "bufobj.bo_flag", r"BO_\w+"),
    TableRule("d_flags", "flags", "disk.d_flags", r"DISKFLAG_(?!RESERVED)\w+"),
    TableRule(
        "zone_cmd",
        "enum",
        "disk_zone_args.zone_cmd",
        r"DISK_ZONE_(OPEN|CLOSE|FINISH|REPORT_ZONES|RWP|GET_PARAMS)",
    ),
    TableRule(
        "devstat_support_flags",
        "flags",
        "devstat.flags",
        r"DEVSTAT_(NO_BLOCKSIZE|NO_ORDERED_TAGS|BS_UNAVAILABLE)",
    ),
    TableRule(
        "devstat_priority",
        "enum",
        "devstat.priority",
        r"DEVSTAT_PRIORITY_(?!MIN|MAX)\w+",
    ),
    TableRule("d_init_level", "enum", "disk.d_init_level", r"DISK_INIT_\w+"),
    TableRule("pr_state", "enum", "prison.pr_state", r"PRISON_STATE_\w+"),
    TableRule("pm_type", "enum", "pmap.pm_type", r"PT_(X86|EPT|RVI)"),
    TableRule("g_provider_flags", "flags", "g_provider.flags", r"G_PF_\w+"),
    TableRule("g_consumer_flags", "flags", "g_consumer.flags", r"G_CF_\w+"),
    TableRule("g_geom_flags", "flags", "g_geom.flags", r"G_GEOM_\w+"),
    TableRule(
        "v_type",
        "enum",
        "vnode.v_type xvnode.xv_type",
        r"V(NON|REG|DIR|BLK|CHR|LNK|SOCK|FIFO|BAD|MARKER)",
    ),
    TableRule("v_state", "enum", "vnode.v_state", r"VSTATE_\w+"),
    TableRule("v_iflag", "flags", "vnode.v_iflag", r"VI_(?!UNUSED)\w+"),
    TableRule("v_vflag", "flags", "vnode.v_vflag", r"VV_\w+"),
    TableRule("v_irflag", "flags", "vnode.v_irflag", r"VIRF_\w+"),
    TableRule(
        "mnt_flag",
        "flags",
        "mount.mnt_flag statfs.f_flags",
        r"MNT_(?!(WAIT|NOWAIT|LAZY|SUSPEND|CMDFLAGS|SPARE\w*|COUNT_\w+|BYFSID|NONBUSY|\w*MASK)$)\w+",
    ),
    TableRule("mnt_kern_flag", "flags", "mount.mnt_kern_flag", r"MNTK_(?!UNUSED)\w+"),
    TableRule("td_state", "enum", "thread.td_state", r"TDS_\w+"),
    TableRule("td_inhibitors", "flags", "thread.td_inhibitors", r"TDI_\w+"),
    TableRule(
        "td_flags",
        "flags",
        "thread.td_flags",
        r"TDF_(?!UNUSED)\w+",
        # kern/sched_ule.c has its own names for two of the scheduler's bits
        "TDF_SLICEEND TDF_PICKCPU",
    ),
    TableRule("td_pflags", "flags", "thread.td_pflags", r"TDP_(?!UNUSED)\w+"),
    TableRule("td_pflags2", "flags", "thread.td_pflags2", r"TDP2_\w+"),
    TableRule("td_dbgflags", "flags", "thread.td_dbgflags", r"TDB_\w+"),
    TableRule("td_ast", "bits", "thread.td_ast", r"TDA_(?!MAX)\w+"),
    TableRule(
        "pri_class",
        "enum",
        "thread.td_pri_class ksegrp.kg_pri_class priority.pri_class",
        r"PRI_(ITHD|REALTIME|TIMESHARE|IDLE|FIFO)",
    ),
    TableRule("p_state", "enum", "proc.p_state", r"PRS_\w+"),
    TableRule(
        "p_flag",
        "flags",
        "proc.p_flag kinfo_proc.ki_flag",
        r"P_(?!OSREL|MD_|TREE_|MAGIC|UNUSED|ZONEID|PID|PPID|PGID|SID|CID|UID|GID|ALL|LWPID|TASKID"
        r"|PROJID|POOLID|JAILID|CTID|CPUID|PSETID)\w+",
    ),
    TableRule("p_flag2", "flags", "proc.p_flag2", r"P2_\w+"),
    TableRule("p_treeflag", "flags", "proc.p_treeflag", r"P_TREE_\w+"),
    TableRule(
        "mtx_lock",
        "flags",
        "mtx.mtx_lock mtx_padalign.mtx_lock",
        r"MTX_(RECURSED|CONTESTED|UNOWNED)",
    ),
    TableRule(
        "rw_lock",
        "flags",
        "rwlock.rw_lock rwlock_padalign.rw_lock",
        r"RW_LOCK_(READ|READ_WAITERS|WRITE_WAITERS|WRITE_SPINNER|WRITER_RECURSED)",
    ),
    TableRule(
        "sx_lock",
        "flags",
        "sx.sx_lock",
        r"SX_LOCK_(SHARED|SHARED_WAITERS|EXCLUSIVE_WAITERS|WRITE_SPINNER|RECURSED)",
    ),
    TableRule(
        "lk_lock",
        "flags",
        "lock.lk_lock",
        r"LK_(SHARE|SHARED_WAITERS|EXCLUSIVE_WAITERS|EXCLUSIVE_SPINNERS|WRITER_RECURSED)",
    ),
    TableRule(
        "lk_flags",
        "flags",
        "lock.lk_flags",
        r"LK_(WANT_UPGRADE|WANT_EXCL|HAVE_EXCL|WAITDRAIN|DRAINING|SHARE_NONZERO|WAIT_NONZERO"
        r"|CANRECURSE|NOSHARE|NODUP|SLEEPFAIL|NOPROFILE|TIMELOCK|INTERNAL)",
    ),
    TableRule("lo_flags", "flags", "lock_object.lo_flags", r"LO_(?!CLASS)\w+"),
    TableRule("lc_flags", "flags", "lock_class.lc_flags", r"LC_\w+"),
    TableRule("li_flags", "flags", "lock_instance.li_flags", r"LI_(?!RECURSEMASK)\w+"),
    TableRule(
        "sq_type", "enum", "sleepqueue.sq_type", r"SLEEPQ_(SLEEP|MSLEEP|CONDVAR|PAUSE|SX|LK)"
    ),
    TableRule("umtx_key_type", "enum", "umtx_key.type", r"TYPE_\w+"),
    TableRule(
        "vm_page_flags",
        "flags",
        "vm_page.flags",
        r"PG_(BUSY|WANTED|WINATCFLS|FICTITIOUS|WRITEABLE|ZERO|REFERENCED|CLEANCHK|SWAPINPROG|NOSYNC"
        r"|UNMANAGED|MARKER|SLAB|CACHED|FREE|NODUMP|PCPU_CACHE|UNHOLDFREE|NOFREE)",
    ),
    TableRule("oflags", "flags", "vm_page.oflags", r"VPO_(?!UNUSED)\w+"),
    TableRule("aflags", "flags", "vm_page.aflags vm_page_astate.flags", r"PGA_\w+"),
    TableRule("busy_lock", "flags", "vm_page.busy_lock", r"VPB_BIT_(SHARED|EXCLUSIVE|WAITERS)"),
    TableRule("ref_count", "flags", "vm_page.ref_count", r"VPRC_(BLOCKED|OBJREF)"),
    TableRule(
        "queue",
        "enum",
        "vm_page.queue vm_page_astate.queue",
        r"PQ_(NONE|FREE|INACTIVE|ACTIVE|LAUNDRY|UNSWAPPABLE|HOLD)",
    ),
    TableRule(
        "vm_freepool", "enum", "vm_page.pool", r"VM_FREEPOOL_(DEFAULT|DIRECT|CACHE|LAZYINIT)"
    ),
    TableRule("obj_type", "enum", "vm_object.type", r"OBJT_(?!FIRST_DYN)\w+", "OBJT_SWAP"),
    TableRule("obj_flags", "flags", "vm_object.flags", r"OBJ_(?!MAX_SIZE)\w+"),
    TableRule(
        "uma_flags",
        "flags",
        "uma_zone.uz_flags uma_keg.uk_flags",
        r"UMA_(ZFLAG|ZONE)_(?!INHERIT)\w+",
    ),
    TableRule(
        "us_flags",
        "flags",
        "uma_slab.us_flags uma_slab_head.us_flags",
        r"UMA_SLAB_(BOOT|KMEM|KERNEL|PRIV|OFFP|MALLOC)",
    ),
    TableRule("sw_flags", "flags", "swdevt.sw_flags", r"SW_(UNMAPPED|CLOSING)"),
    TableRule("msg_flags", "flags", "msgbuf.msg_flags", r"MSGBUF_(NEEDNL|WRAP)"),
    TableRule(
        "pcb_flags", "flags", "pcb.pcb_flags", r"PCB_(?!(FP|LR|X\w+|FP_\w+|SINGLE_STEP_SHIFT)$)\w+"
    ),
    TableRule("pcb_fpflags", "flags", "pcb.pcb_fpflags", r"PCB_FP_\w+"),
    # cam/cam.h, cam/cam_ccb.h, cam/cam_periph.h
    TableRule("ccb_func_code", "enum", "ccb_hdr.func_code", r"XPT_(?!FC_|TYPE)[A-Z]\w+"),
    TableRule(
        "cam_periph_flags",
        "flags",
        "cam_periph.flags",
        r"CAM_PERIPH_(?!DRV_EARLY|MAXMAPS|DEVD_MSG_SIZE)\w+",
    ),
    TableRule("da_state", "enum", "da_softc.state", r"DA_STATE_\w+"),
    TableRule("da_softc_flags", "flags", "da_softc.flags", r"DA_FLAG_\w+"),
    TableRule("ada_state", "enum", "ada_softc.state", r"ADA_STATE_\w+"),
    TableRule("ada_softc_flags", "flags", "ada_softc.flags", r"ADA_FLAG_\w+"),
    TableRule("nda_softc_flags", "flags", "nda_softc.flags", r"NDA_FLAG_\w+"),
    TableRule("ahci_slot_state", "enum", "ahci_slot.state", r"AHCI_SLOT_\w+"),
    TableRule("cam_ed_flags", "flags", "cam_ed.flags", r"CAM_DEV_(UNCONFIGURED|REL_\w+)"),
    TableRule(
        "nvme_recovery",
        "enum",
        "nvme_qpair.recovery_state",
        r"RECOVERY_(NONE|START|RESET|WAITING|FAILED)",
    ),
    TableRule("g_mirror_disk_state", "enum", "g_mirror_disk.d_state", r"G_MIRROR_DISK_STATE_\w+"),
    TableRule("vtscsi_req_state", "enum", "vtscsi_request.vsr_state", r"VTSCSI_REQ_STATE_\w+"),
    TableRule("md_type", "enum", "md_s.type", r"MD_(MALLOC|PRELOAD|VNODE|SWAP|NULL)"),
    # sys/pipe.h, sys/socketvar.h, sys/sockbuf.h, sys/event.h, netinet/tcp_fsm.h
    TableRule("f_type", "enum", "file.f_type", r"DTYPE_\w+", "DTYPE_EVENTFD DTYPE_TIMERFD"),
    TableRule("pipe_state", "flags", "pipe.pipe_state", r"PIPE_(?!ACTIVE|CLOSING|FINALIZED)\w+"),
    TableRule("so_state", "flags", "socket.so_state", r"SS_\w+"),
    TableRule("sb_flags", "flags", "sockbuf.sb_flags", r"SB_\w+"),
    TableRule("sb_state", "flags", "sockbuf.sb_state", r"SBS_\w+"),
    TableRule("kn_status", "flags", "knote.kn_status", r"KN_(?!HASHSIZE)\w+"),
    TableRule(
        "kq_state",
        "flags",
        "kqueue.kq_state",
        r"KQ_(SEL|SLEEP|FLUXWAIT|ASYNC|CLOSING|TASKSCHED|TASKDRAIN|CPONFORK)",
    ),
    TableRule("t_state", "enum", "tcpcb.t_state", r"TCPS_\w+"),
    TableRule("nc_flag", "flags", "namecache.nc_flag", r"NCF_\w+"),
    # fs/nfsclient/nfsmount.h, fs/fuse/fuse_ipc.h, fs/fuse/fuse_kernel.h
    TableRule("nmcom_state", "flags", "nfsmount_common.nmcom_state", r"NFSSTA_\w+"),
    TableRule("nm_privflag", "flags", "nfsmount.nm_privflag", r"NFSMNTP_\w+"),
    TableRule("fuse_dataflags", "flags", "fuse_data.dataflags", r"FSESS_\w+"),
    TableRule(
        "fuse_opcode",
        "enum",
        "fuse_in_header.opcode",
        r"FUSE_(LOOKUP|FORGET|GETATTR|SETATTR|READLINK|SYMLINK|MKNOD|MKDIR|UNLINK|RMDIR|RENAME2?"
        r"|LINK|OPEN|READ|WRITE|STATFS|RELEASE|FSYNC|SETXATTR|GETXATTR|LISTXATTR|REMOVEXATTR|FLUSH"
        r"|INIT|OPENDIR|READDIR|RELEASEDIR|FSYNCDIR|GETLK|SETLKW?|ACCESS|CREATE|INTERRUPT|BMAP"
        r"|DESTROY|IOCTL|POLL|NOTIFY_REPLY|BATCH_FORGET|FALLOCATE|READDIRPLUS|LSEEK"
        r"|COPY_FILE_RANGE)",
    ),
    # OpenZFS: sys/zio.h, sys/dbuf.h, sys/zil_impl.h, sys/fs/zfs.h, sys/spa.h
    TableRule("zio_type", "enum", "zio.io_type", r"ZIO_TYPE_(?!NULL$)\w+|ZIO_TYPE_NULL"),
    TableRule("zio_child", "enum", "zio.io_child_type", r"ZIO_CHILD_(?!TYPES|\w*BIT)\w+"),
    TableRule(
        "zio_stage",
        "flags",
        "zio.io_stage zio.io_orig_stage zio.io_pipeline zio.io_orig_pipeline zio.io_pipeline_trace",
        r"ZIO_STAGE_\w+",
    ),
    TableRule(
        "zio_priority",
        "enum",
        "zio.io_priority vdev_queue.vq_last_prio",
        r"ZIO_PRIORITY_\w+",
    ),
    TableRule("zio_qstate", "enum", "zio.io_queue_state", r"ZIO_QS_\w+"),
    TableRule("zio_suspend_reason", "enum", "spa.spa_suspended", r"ZIO_SUSPEND_\w+"),
    TableRule("pool_state", "enum", "spa.spa_state", r"POOL_STATE_\w+"),
    TableRule("vdev_state", "enum", "vdev.vdev_state vdev.vdev_prevstate", r"VDEV_STATE_\w+"),
    TableRule("vdev_aux", "enum", "vdev_stat.vs_aux", r"VDEV_AUX_\w+"),
    TableRule(
        "db_state",
        "enum",
        "dmu_buf_impl.db_state",
        r"DB_(SEARCH|UNCACHED|FILL|NOFILL|READ|CACHED|EVICTING)",
    ),
    TableRule("dr_override_state", "enum", "dirty_leaf.dr_override_state", r"DR_(?!STRATEGY)\w+"),
    TableRule("lwb_state", "enum", "lwb.lwb_state", r"LWB_STATE_\w+"),
    TableRule(
        "lr_type", "enum", "zfs_locked_range.lr_type rl.r_type", r"RL_(READER|WRITER|APPEND)"
    ),
)

#: Enumerators declared inside a struct, where the constants of a kernel's headers
#: do not show them: thread.td_state and proc.p_state (sys/proc.h), the same in
#: every version from 5.x on.
NESTED_ENUMS: Dict[str, int] = {
    "TDS_INACTIVE": 0,
    "TDS_INHIBITED": 1,
    "TDS_CAN_RUN": 2,
    "TDS_RUNQ": 3,
    "TDS_RUNNING": 4,
    "PRS_NEW": 0,
    "PRS_NORMAL": 1,
    "PRS_ZOMBIE": 2,
}

#: Enums of the headers that decode nothing a hang tool reads.
NOISE = (
    r"Acpi\w*|ACPI_\w*|acpi_\w*|pmc_\w*|LAPIC_REGISTERS|tcp_\w*|sackstatus_t|isa_device_ivars"
    r"|random_entropy_source|hvmmem_type_t|xen_\w*|psci_fn|mca_stat_types|cpu_feat_\w*|efi_reset"
    r"|dbg_access_t|ktls_\w*|ccsignal_t|tt_\w*|intr_map_data_type|systrace_probe_t|evhdev_detach"
    r"|ring_type|sub_class|ktr_cap_\w*|VM_GUEST|pr_\w*|inp_lookup_t|device_property_type"
    r"|bus_dma\w*|proc_vector_type|fail_point_\w*|ucode_load_how|taskqueue_callback_type"
)

#: Likewise the enumerators of anonymous enums.
NOISE_NAMES = r"ACPI_\w+|HVM_CB_\w+|SGX_\w+|CPU_IVAR_\w+|_?DRT_\w+|KDB_ALT_\w+|IPI_\w+|TSP_\w+"

#: List heads whose elements could hang on more than one link: head -> the links
#: it may be, the first that the kernel's struct has.  A head whose elements have
#: a single link of its kind needs no entry.
LINKS: Dict[str, str] = {
    "buflists": "buf.b_bobufs buf.b_vnbufs",
    "bufv.bv_hd": "buf.b_bobufs buf.b_vnbufs",
    "bufqueue.bq_queue": "buf.b_freelist",
    "cdev.si_children": "cdev.si_siblings",
    "cdevsw.d_devs": "cdev.si_list",
    "g_class.geom": "g_geom.geom",
    "g_geom.consumer": "g_consumer.consumer",
    "g_geom.provider": "g_provider.provider",
    "g_provider.consumers": "g_consumer.consumers",
    "ksegrp.kg_runq": "thread.td_runq",
    "ksegrp.kg_threads": "thread.td_kglist",
    "mount.mnt_uppers": "mount.mnt_upper_link",
    "mount.mnt_nvnodelist": "vnode.v_nmntvnodes",
    "mount.mnt_activevnodelist": "vnode.v_actfreelist",
    "mount.mnt_lazyvnodelist": "vnode.v_lazylist",
    "pgrp.pg_members": "proc.p_pglist",
    "prison.pr_children": "prison.pr_sibling",
    "prison.pr_proclist": "proc.p_jaillist",
    "proc.p_children": "proc.p_sibling",
    "proc.p_orphans": "proc.p_orphan",
    "proc.p_reaplist": "proc.p_reapsibling",
    "proc.p_suspended": "thread.td_runq",
    "proc.p_threads": "thread.td_plist",
    "rqhead": "thread.td_runq",
    "rq_queue": "thread.td_runq",
    "sleepqueue.sq_blocked": "thread.td_slpq",
    "sleepqueue.sq_free": "sleepqueue.sq_hash",
    "sleepqueue_chain.sc_queues": "sleepqueue.sq_hash",
    "thread.td_contested": "turnstile.ts_link",
    "turnstile.ts_blocked": "thread.td_lockq",
    "turnstile.ts_free": "turnstile.ts_hash",
    "turnstile_chain.tc_turnstiles": "turnstile.ts_hash",
    "uma_keg.uk_part_slab": "uma_slab.us_link uma_slab.us_type._us_link",
    "uma_keg.uk_free_slab": "uma_slab.us_link uma_slab.us_type._us_link",
    "uma_keg.uk_full_slab": "uma_slab.us_link uma_slab.us_type._us_link",
    "umtx_pi.pi_blocked": "umtx_q.uq_lockq",
    "umtx_q.uq_pi_contested": "umtx_pi.pi_link",
    "vm_object.memq": "vm_page.listq",
    "vm_object.shadow_head": "vm_object.shadow_list",
    "vm_object.rvq": "vm_reserv.objq",
    "vm_object.un_pager.devp.devp_pglist": "vm_page.plinks.q vm_page.pageq",
    "vm_object.un_pager.sgp.sgp_pglist": "vm_page.plinks.q vm_page.pageq",
    "vm_pagequeue.pq_pl": "vm_page.plinks.q vm_page.pageq",
    "vpgqueues.pl": "vm_page.pageq vm_page.plinks.q",
}

#: Global list heads: symbol -> the links its elements may hang on.
HEADS: Dict[str, str] = {
    "allproc": "proc.p_list",
    "zombproc": "proc.p_list",
    "mountlist": "mount.mnt_list",
    "g_classes": "g_class.class",
    "geoms": "g_geom.geoms",
    "g_events": "g_event.events",
    "g_doorstep": "g_provider.orphan",
    "swtailq": "swdevt.sw_list",
    "linker_files": "linker_file.link",
    "cpuhead": "pcpu.pc_allcpu",
    "uma_kegs": "uma_keg.uk_link",
    "uma_cachezones": "uma_zone.uz_link",
    "allprison": "prison.pr_list",
    "vm_object_list": "vm_object.object_list",
    "event_list": "intr_event.ie_list",
    "cdevp_list": "cdev_priv.cdp_list",
    "bswlist": "buf.b_freelist",
    "modules": "module.link",
    "lf_lock_states": "lockf.ls_link",
    "softdepmounts": "mount_softdeps.sd_next",
    "unp_shead": "unpcb.unp_link",
    "unp_dhead": "unpcb.unp_link",
    "unp_sphead": "unpcb.unp_link",
    "vmem_list": "vmem.vm_alllist",
    "nlm_waiting_locks": "nlm_waiting_lock.nw_link",
    "nlm_hosts": "nlm_host.nh_link",
    "nfsclhead": "nfsclclient.nfsc_list",
    "bus_data_devices": "_device.devlink device.devlink",
    "bounce_zone_list": "bounce_zone.links",
    "md_softc_list": "md_s.list",
}

#: Members that became a macro for something inside another one: what is asked
#: for -> where it is now, tried in order where the struct has no such member.
ALIASES: Dict[str, str] = {
    # kern/sys: the recursion count moved into lock_object in 8.0
    "mtx.mtx_recurse": "lock_object.lo_data",
    "rwlock.rw_recurse": "lock_object.lo_data",
    "sx.sx_recurse": "lock_object.lo_data",
    "lock.lk_recurse": "lock_object.lo_data",
    # sys/bio.h, sys/buf.h: extended errors, 15-STABLE
    "bio.bio_error": "bio_exterr.error",
    "buf.b_error": "b_exterr.error",
    # sys/vnode.h: two bytes of v_rl, 15-STABLE
    "vnode.v_type": "v_rl.resv1",
    "vnode.v_state": "v_rl.resv2",
}
