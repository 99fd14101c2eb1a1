"""Path-compressed radix trees: an object's pages (from 15.0) and swap blocks (from 12.0).

Mirrors sys/kern/subr_pctrie.c, 12.0 to 15.x.  struct pctrie_node is private to that
file: an owner, a count or bitmap of children, the level, in some versions the
parent, and at its end the children.  How long all that is the nodes' zone tells.  A
child with bit 0 set is a leaf and points to the 64-bit key inside a value.
"""

from __future__ import annotations

from typing import Iterator, List, Optional, Set, Tuple

from plugin.errors import LayoutError
from plugin.kernel.uma import zone_named
from plugin.session import Kernel

_MAX_NODES = 1 << 24
#: no tree of 64-bit keys is deeper: a level takes at least 3 bits
_MAX_DEPTH = 24
#: nodes a look-up may visit: two ways at each node of one path, with room to spare
_MAX_VISITED = 8 * _MAX_DEPTH
_LEAF = 1
_POLL = 1024


def _form(kernel: Kernel, zone: str) -> Tuple[int, int]:
    """(children of a node, offset of the first); LayoutError for nodes of another form."""
    size = kernel.pointer_size
    slots = 16 if size == 8 else 8
    nodes = zone_named(kernel, zone)
    first = (nodes.size if nodes else 0) - slots * size
    if first not in (8 + 4, 8 + 8, 8 + 4 + size, 8 + 8 + size):
        raise LayoutError(f"the nodes of zone {zone} are of an unknown form")
    return slots, first


def _children(kernel: Kernel, node: int, slots: int, first: int) -> Tuple[bytes, List[int]]:
    size = kernel.pointer_size
    data = kernel.read(node, first + slots * size)
    return data, list(memoryview(data[first:]).cast("Q" if size == 8 else "I"))


def keys(kernel: Kernel, root: int, zone: str, bound: int) -> Iterator[int]:
    """Addresses of the keys in the tree whose root is ``root``, its nodes out of ``zone``.

    LayoutError where there are more than ``bound``, or the nodes are of no known form;
    MemoryFault where one cannot be read.
    """
    slots, first = _form(kernel, zone)
    stack, found = [root], 0
    seen: Set[int] = set()
    while stack:
        node = stack.pop()
        if not node & ~_LEAF:
            continue
        if node & _LEAF:
            found += 1
            if found > bound:
                raise LayoutError(f"the tree has more than {bound} leaves")
            yield node & ~_LEAF
            continue
        if node in seen:
            raise LayoutError(f"the tree comes back to its node {node:#x}")
        seen.add(node)
        if len(seen) > _MAX_NODES:
            raise LayoutError("the tree has no end")
        if not len(seen) % _POLL and kernel.interrupted():
            kernel.warnings.add("radix tree", node, f"interrupted after {len(seen)} nodes")
            return
        stack.extend(reversed(_children(kernel, node, slots, first)[1]))


def lookup(kernel: Kernel, root: int, zone: str, key: int) -> Optional[int]:
    """Address of the value's key that is ``key``, None if it is not in the tree.

    The level is one of slots to 13.x and one of bits since; both are tried.
    LayoutError where the tree is none: it comes back to a node, or has too many.
    """
    slots, first = _form(kernel, zone)
    width = slots.bit_length() - 1
    pending = [(root, 0)]
    seen: Set[int] = set()
    while pending:
        node, depth = pending.pop()
        if not node & ~_LEAF or node in seen:
            continue
        seen.add(node)
        if depth > _MAX_DEPTH or len(seen) > _MAX_VISITED:
            raise LayoutError(f"the tree at {root:#x} has no end")
        if node & _LEAF:
            at = node & ~_LEAF
            if kernel.unsigned(at, 8) == key:
                return at
            continue
        data, children = _children(kernel, node, slots, first)
        # pn_clev follows the popmap or the count, which takes a byte or two.
        level = data[9] if slots == 8 else data[10]
        for shift in {level, level * width}:
            pending.append((children[key >> shift & slots - 1], depth + 1))
    return None
