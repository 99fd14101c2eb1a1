"""The AVL trees of illumos, which ZFS keeps what it has to find in.

Mirrors sys/contrib/openzfs/include/sys/avl_impl.h (13.0 on) and
sys/cddl/contrib/opensolaris/uts/common/sys/avl_impl.h (to 12.x).  On 64-bit machines a node's
parent, which child of it the node is (bit 2) and the balance (bits 0 and 1) share ``avl_pcb``;
on 32-bit ones they are ``avl_parent``, ``avl_child_index`` and ``avl_balance``.
"""

from __future__ import annotations

from typing import Iterator, List, Set, Tuple

from plugin.errors import MemoryFault
from plugin.kernel.queue import LIMIT
from plugin.session import Kernel

#: the bits of avl_pcb that are no address
_PCB = 7
_POLL = 1024
#: an AVL tree of 2^64 nodes is not deeper
_DEEPEST = 96


def avl_foreach(kernel: Kernel, tree: int, *, what: str = "", bound: int = LIMIT) -> Iterator[int]:
    """Addresses of the elements of the ``avl_tree_t`` at ``tree``, in its order.

    A node met twice or not to be read, a wrong parent and a number of nodes that is not
    ``avl_numnodes`` are findings; the rest of the tree is walked.
    """
    what = what or f"AVL tree at {tree:#x}"
    layouts = kernel.layouts
    head = layouts.fields("avl_tree", "avl_root", "avl_offset", "avl_numnodes")
    parent = layouts.first_of("avl_node", "avl_pcb", "avl_parent") or "avl_pcb"
    node = layouts.fields("avl_node", "avl_child[0]", "avl_child[1]", parent)
    mask = ~_PCB if parent == "avl_pcb" else ~0
    try:
        root, offset, number = kernel.values(head, tree)
    except MemoryFault as fault:
        kernel.warnings.add(what, fault.address, f"root of the tree: {fault.reason}")
        return
    seen: Set[int] = set()
    whole = True
    #: nodes whose left side is done, with their right child
    above: List[Tuple[int, int]] = []
    at, parent_of = root, 0
    while at or above:
        while at:
            trouble = ""
            if at in seen:
                trouble = f"comes back to {at - offset:#x} after {len(seen)} nodes"
            elif len(above) > _DEEPEST:
                trouble = f"is deeper than {_DEEPEST} nodes"
            if not trouble:
                seen.add(at)
                try:
                    left, right, up = kernel.values(node, at)
                except MemoryFault as fault:
                    trouble = f"node {at - offset:#x} cannot be read ({fault.reason})"
            if trouble:
                kernel.warnings.add(what, parent_of or tree, trouble)
                whole = False
                break
            if up & mask != parent_of:
                kernel.warnings.add(
                    what,
                    at,
                    f"the parent is {up & mask:#x}, should be {parent_of:#x}",
                    partial=False,
                )
            above.append((at, right))
            at, parent_of = left, at
        if not above:
            break
        done, right = above.pop()
        yield done - offset
        at, parent_of = right, done
        if len(seen) % _POLL == 0 and (len(seen) > bound or kernel.interrupted()):
            kernel.warnings.add(what, at, f"given up after {len(seen)} nodes")
            return
    if whole and len(seen) != number:
        kernel.warnings.add(what, tree, f"avl_numnodes is {number}, {len(seen)} are in it")
