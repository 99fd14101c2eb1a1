"""What processes hold of each other: argument space, holds of a process, virtual CPUs.

Mirrors exec_alloc_args() in sys/kern/kern_exec.c, PHOLD() and exit1() in kern_exit.c, and
vm_handle_rendezvous() and vcpu_set_state_locked() of vmm(4), 11.0 to 15.x.
"""

from __future__ import annotations

from typing import Optional

from plugin.errors import MemoryFault
from plugin.kernel.proc import all_found
from plugin.kernel.stack import stack_words
from plugin.waits.builder import Case, Verdict
from plugin.waits.graph import End
from plugin.waits.kinds import CauseKind, Certainty, EdgeKind, NodeKind, Status
from plugin.waits.registry import resolver
from plugin.waits.resolvers.procs import threads_by_proc
from plugin.waits.resolvers.stacks import guess_holders, runs
from plugin.words import count

PROVEN, GUESSED = Certainty.PROVEN, Certainty.GUESSED
#: more threads than this are not joined to one thing
_MOST = 64


@resolver("exec_args")
def exec_args(case: Case) -> Optional[Verdict]:
    """execkva: every argument space is some other execve(2)'s, until that is done."""
    builder = case.builder
    asking = ("exec_alloc_args",)
    having = [
        thread
        for thread in builder.threads
        if thread.kstack
        and runs(builder, thread, ("kern_execve", "do_execve", "exec_map_first_page"))
        and not runs(builder, thread, asking)
    ]
    if not having:
        return None
    node = case.waits_for(case.channel_node("argument space of execve(2)"), PROVEN, case.said())
    if not builder.graph.successors(node.id):
        for thread in having[:_MOST]:
            why = "it is inside execve(2), past the allocation of its arguments"
            builder.join(node, builder.thread(thread), EdgeKind.OWNED_BY, GUESSED, why)
        node.any = len(having) > 1
    return Verdict(Status.STUCK, "waits for argument space of execve(2)", case.row)


@resolver("proc_hold")
def proc_hold(case: Case) -> Optional[Verdict]:
    """exithold: p_lock counts who looks into the process; each has it on its stack."""
    builder, kernel = case.builder, case.kernel
    address = case.thread.proc
    member = kernel.layouts.resolve("proc", "p_lock")
    try:
        held = kernel.unsigned(address + member.offset, member.size)
    except MemoryFault as fault:
        kernel.warnings.add("p_lock", fault.address, fault.reason)
        return None
    what = f"process {case.thread.pid} {case.thread.comm}"
    node = builder.node(NodeKind.OBJECT, f"{address:#x}:holds", f"holds of {what}", address)
    node.facts = [f"p_lock {held}"]
    case.waits_for(node, PROVEN, case.said())
    looking = ("kern_ptrace", "proc_", "sysctl_", "procfs_", "pfs_", "linprocfs_", "kern_kcmp")
    own = threads_by_proc(kernel).get(address, [])
    if not held:
        said = f"nobody holds {what} any more, yet its exit waits for that"
        node.end = End(CauseKind.LOST_WAKEUP, said, "p_lock 0", case.thread.age)
    elif not guess_holders(builder, node, address, looking, own, _MOST):
        certain = all_found(kernel) and not kernel.warnings.partial
        node.end = End(
            CauseKind.LEAK if certain else CauseKind.UNKNOWN,
            f"{count(held, 'hold')} of {what}, no thread inside"
            + (": leaked" if certain else " was found"),
            f"p_lock {held}; no other thread's stack has the process",
            case.thread.age,
            certainty=GUESSED,
        )
    return Verdict(Status.STUCK, "waits until nobody holds its process", case.row)


#: a struct vcpu is not larger, in bytes
_VCPU = 4096


@resolver("vcpus")
def vcpus(case: Case) -> Optional[Verdict]:
    """bhyve: a rendezvous needs each virtual CPU's thread; "vmstat" one that has to become idle.

    struct vcpu is the module's own: whose state the channel is, a pointer on the stack of
    the thread that runs it tells, a little below the channel.
    """
    builder, kernel = case.builder, case.kernel
    inside = ("vm_run", "vmmdev_ioctl", "vcpu_lock")
    if case.thread.wmesg == "vmstat":
        certainty, why = (
            GUESSED,
            "its kernel stack points at the struct vcpu that the channel is in",
        )
        found = [
            thread
            for thread in builder.threads
            if thread.address != case.thread.address
            and thread.kstack
            and runs(builder, thread, ("vm_run", "vm_handle_"))
            and any(0 <= case.address - word < _VCPU for word in stack_words(kernel, thread))
        ]
    else:
        certainty, why = Certainty.CATALOGUED, "a virtual CPU of the same machine that has not come"
        found = [
            thread
            for thread in threads_by_proc(kernel).get(case.thread.proc, [])
            if thread.wmesg != case.thread.wmesg and runs(builder, thread, inside)
        ]
    if not found:
        return None
    node = case.waits_for(case.channel_node(), PROVEN, case.said())
    for thread in found[:_MOST]:
        builder.join(node, builder.thread(thread), EdgeKind.NEEDS, certainty, why)
    return Verdict(Status.STUCK, "waits for virtual CPUs, again and again", case.row)
