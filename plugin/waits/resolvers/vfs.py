"""File systems: suspended mounts, unmounts, file offsets, vnlru, soft updates.

Mirrors sys/kern/vfs_vnops.c, vfs_mount.c, vfs_subr.c, 7.0 to 15.x.
"""

from __future__ import annotations

from typing import Optional, Sequence

from plugin.errors import LayoutError, MemoryFault
from plugin.judge.channel import object_fits
from plugin.kernel.mount import Mount, mount_at, suspension
from plugin.kernel.vnode import vnode_at, vnode_of_lock
from plugin.waits.builder import Builder, Case, Verdict
from plugin.waits.graph import End, Node
from plugin.waits.kinds import CauseKind, Certainty, EdgeKind, NodeKind, Status
from plugin.waits.registry import resolver
from plugin.waits.resolvers.common import generic
from plugin.waits.resolvers.nfs import askers
from plugin.waits.resolvers.stacks import guess_holders, sleepers_on
from plugin.words import count


def _mount(case: Case, *members: str) -> Optional[Mount]:
    """The mount whose member, or which itself, the thread sleeps on."""
    layouts = case.kernel.layouts
    for member in members:
        if not layouts.has("mount", member):
            continue
        address = case.address - layouts.offsetof("mount", member)
        if object_fits(case.kernel, "mount", address, None):
            return mount_at(case.kernel, address)
    if object_fits(case.kernel, "mount", case.address, None) is not False:
        return mount_at(case.kernel, case.address)
    return None


def mount_node(builder: Builder, mount: Mount) -> Node:
    node = builder.object(NodeKind.OBJECT, mount.address, f"mount {mount.on} ({mount.fstype})")
    flags = suspension(builder.kernel, mount)
    if flags and not node.facts:
        node.facts = flags
    return node


@resolver("mount_suspended")
def mount_suspended(case: Case) -> Optional[Verdict]:
    """suspfs: the file system is suspended; who did it has to resume it."""
    mount = _mount(case, "mnt_flag", "mnt_secondary_writes")
    if mount is None:
        return None
    builder = case.builder
    node = case.waits_for(mount_node(builder, mount), Certainty.PROVEN, case.said())
    if node.end is not None or builder.graph.successors(node.id):
        return Verdict(Status.STUCK, "waits for a suspended file system", case.row)
    owner = builder.thread_node_at(mount.susp_owner)
    if owner is not None:
        builder.join(
            node,
            owner,
            EdgeKind.OWNED_BY,
            Certainty.PROVEN,
            f"mnt_susp_owner {mount.susp_owner:#x}",
        )
    elif mount.susp_owner:
        node.end = _dead_owner(builder, node, mount, case)
    elif not suspension(case.kernel, mount) and case.thread.wmesg == "suspfs":
        node.end = End(
            CauseKind.LOST_WAKEUP,
            f"{node.label} is not suspended, yet threads wait for it to be resumed",
            f"mnt_kern_flag {mount.kern_flag:#x}",
            case.thread.age,
        )
    elif not _by_stack(
        builder, node, mount, ("vfs_write_suspend", "ffs_snapshot", "ffs_suspend"), case
    ):
        node.end = End(CauseKind.UNKNOWN, f"{node.label} is suspended; by whom is not recorded")
    return Verdict(Status.STUCK, "waits for a suspended file system", case.row)


def _dead_owner(builder: Builder, node: Node, mount: Mount, case: Case) -> End:
    """mnt_susp_owner names no thread: nobody is left to call vfs_write_resume()."""
    word = f"mnt_susp_owner {mount.susp_owner:#x}"
    if builder.kernel.warnings.partial:
        said = f"{node.label} is suspended by a thread that was not found"
        return End(CauseKind.UNKNOWN, said, f"{word}; not every thread could be read")
    said = f"{node.label} was suspended by a thread that no longer exists; nobody will resume it"
    return End(CauseKind.LEAK, said, f"{word} is no thread of this machine", case.thread.age)


def _by_stack(
    builder: Builder, node: Node, mount: Mount, functions: Sequence[str], case: Case
) -> bool:
    waiting = sleepers_on(builder, case.address)
    return bool(guess_holders(builder, node, mount.address, functions, waiting, 8))


def _leaked(case: Case, node: Node, what: str, evidence: str) -> End:
    """Something is counted that no thread's stack shows: most likely nobody will give it back."""
    if case.kernel.warnings.partial:
        said = f"{what}: by whom is not recorded"
        return End(CauseKind.UNKNOWN, said, f"{evidence}; not every thread could be read")
    return End(
        CauseKind.LEAK,
        f"{what}, no thread inside: leaked",
        f"{evidence}; no kernel stack holds the mount",
        case.thread.age,
        certainty=Certainty.GUESSED,
    )


@resolver("mount_writers")
def mount_writers(case: Case) -> Optional[Verdict]:
    """suspwt: writes under way have to finish before the file system is suspended."""
    mount = _mount(case, "mnt_writeopcount")
    if mount is None:
        return None
    builder = case.builder
    node = builder.node(
        NodeKind.POOL, f"writes:{mount.address:#x}", f"writes under way on {mount.on}", case.address
    )
    case.waits_for(node, Certainty.PROVEN, case.said())
    if node.end is not None or builder.graph.successors(node.id):
        return Verdict(Status.STUCK, "waits for writes under way", case.row)
    writes = mount.writeopcount
    node.facts = [f"mnt_writeopcount {writes}"] if writes is not None else []
    # Between vn_start_write() and vn_finished_write() the mount is on the stack.
    functions = ("vn_write", "vn_open_cred", "kern_", "VOP_", "ffs_", "ufs_", "vn_io_fault")
    if not _by_stack(builder, node, mount, functions, case):
        if writes:
            what = f"{count(writes, 'write')} on {mount.on}"
            node.end = _leaked(case, node, what, f"mnt_writeopcount {writes}")
        elif writes is not None:
            node.end = End(
                CauseKind.LOST_WAKEUP,
                f"no write is under way on {mount.on}, yet its suspension waits for them",
                "mnt_writeopcount 0",
                case.thread.age,
            )
        else:
            node.end = End(CauseKind.UNKNOWN, f"{node.label}: by whom is not recorded")
    return Verdict(Status.STUCK, "waits for writes under way", case.row)


@resolver("mount_busy")
def mount_busy(case: Case) -> Optional[Verdict]:
    """vfs_busy waits for an unmount; an unmount waits for those who use the mount."""
    mount = _mount(case, "mnt_lockref")
    if mount is None:
        return None
    builder = case.builder
    named = mount_node(builder, mount)
    if case.thread.wmesg != "vfs_busy":
        # Its users: who waits for the unmount to end waits for the one that waits for them.
        key = f"{mount.address:#x}:users"
        named = builder.node(NodeKind.OBJECT, key, named.label, mount.address)
    node = case.waits_for(named, Certainty.PROVEN, case.said())
    node.facts = node.facts or [f"mnt_ref {mount.ref}, mnt_lockref {mount.lockref}"]
    if node.end is None and not builder.graph.successors(node.id):
        functions = ("dounmount",) if case.thread.wmesg == "vfs_busy" else ()
        member, number = "mnt_lockref", mount.lockref
        if case.thread.wmesg == "mntref":
            member, number = "mnt_ref", mount.ref
        if _by_stack(builder, node, mount, functions, case) or _asking(builder, node, mount, case):
            pass
        elif case.thread.wmesg != "vfs_busy" and number is not None and number > 0:
            what = f"{count(number, 'reference')} to {node.label}"
            node.end = _leaked(case, node, what, f"{member} {number}")
        else:
            node.end = End(
                CauseKind.UNKNOWN,
                f"{node.label} is in use or being unmounted; by whom is not recorded",
            )
    return Verdict(Status.STUCK, "waits for a mount", case.row)


def _asking(builder: Builder, node: Node, mount: Mount, case: Case) -> bool:
    """On NFS: who has a request to the mount's server under way is inside the mount."""
    found = [t for t in askers(builder, mount.address) if t.address != case.thread.address]
    for thread in found[:64]:
        builder.join(
            node,
            builder.thread(thread),
            EdgeKind.OWNED_BY,
            Certainty.GUESSED,
            "it has a request to the mount's server under way",
        )
    return bool(found)


@resolver("vnlru")
def vnlru(case: Case) -> Optional[Verdict]:
    """vlruwk: too many vnodes; vnlru has to reclaim some."""
    builder, kernel = case.builder, case.kernel
    node = case.waits_for(
        builder.node(NodeKind.POOL, "vnodes", "vnodes", case.address), Certainty.PROVEN, case.said()
    )
    try:
        number = kernel.global_value("numvnodes", 0)
        most = kernel.global_value("desiredvnodes", 0)
        node.facts = [f"{number} of {most}"]
    except MemoryFault:
        pass
    servers = builder.named(["vnlru"])
    if not servers:
        return generic(case, "message")
    builder.served_by(node, servers, "vnlru reclaims vnodes")
    return Verdict(Status.STUCK, "waits for a vnode to be reclaimed", case.row)


@resolver("file_offset")
def file_offset(case: Case) -> Optional[Verdict]:
    """vofflock: another thread reads or writes the same open file."""
    try:
        address = case.channel.container("file", "f_vnread_flags")
    except LayoutError:
        return None
    builder = case.builder
    node = builder.object(NodeKind.OBJECT, address, f"offset of file {address:#x}")
    case.waits_for(node, Certainty.PROVEN, case.said())
    if node.end is None and not builder.graph.successors(node.id):
        waiting = sleepers_on(builder, case.address)
        functions = ("vn_", "dofile", "kern_", "devfs_", "VOP_", "sys_")
        if not guess_holders(builder, node, address, functions, waiting, 1):
            node.end = End(CauseKind.UNKNOWN, f"{node.label} is in use; by whom is not recorded")
    return Verdict(Status.STUCK, "waits for a file's offset", case.row)


@resolver("file_range")
def file_range(case: Case) -> Optional[Verdict]:
    """rangelk: another thread holds a range of the same file (inside vn_io_fault())."""
    builder, layouts = case.builder, case.kernel.layouts
    if not layouts.has("vnode", "v_rl"):
        return None
    member = layouts.resolve("vnode", "v_rl")
    base = layouts.offsetof("vnode", "v_lock")
    for inside in range(0, member.size, case.kernel.pointer_size):
        address = case.address - member.offset - inside
        if vnode_of_lock(case.kernel, address + base) == address:
            break
    else:
        return None
    vnode = vnode_at(case.kernel, address)
    name = vnode.label if vnode is not None else f"{address:#x}"
    node = builder.node(NodeKind.VNODE, f"{address:#x}:range", f"range of vnode {name}", address)
    case.waits_for(node, Certainty.PROVEN, case.said())
    if node.end is None and not builder.graph.successors(node.id):
        waiting = sleepers_on(builder, case.address)
        if not guess_holders(
            builder, node, address, ("vn_io_fault", "vn_write", "vn_read"), waiting, 4
        ):
            node.end = End(CauseKind.UNKNOWN, f"{node.label} is locked; by whom is not recorded")
    return Verdict(Status.STUCK, "waits for a range of a file", case.row)
