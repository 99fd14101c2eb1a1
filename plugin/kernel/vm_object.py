"""struct vm_object: what a page belongs to, and the pages that are resident in one.

Mirrors sys/vm/vm_object.c and vm_object.h, 6.x to 15.x.
"""

from __future__ import annotations

from typing import Dict, Iterator, List, NamedTuple, Optional, Tuple

from plugin.caching import MEMORY, cached
from plugin.errors import LayoutError, MemoryFault
from plugin.kernel import pctrie
from plugin.kernel.queue import tailq_foreach
from plugin.kernel.vnode import Vnode, vnode_at
from plugin.session import Kernel

#: more objects, and more pages in one, than any machine has
_MAX_OBJECTS = 1 << 28
_MAX_PAGES = 1 << 32
#: blockcount_t (sys/_blockcount.h, 13.0): the count, and the bit for its waiters
_BLOCKCOUNT = 0x7FFFFFFF

_PATHS = (
    "type",
    "flags",
    "size",
    "resident_page_count",
    "ref_count",
    "shadow_count",
    "paging_in_progress",
    "backing_object",
    "handle",
)


class Object(NamedTuple):
    """One VM object; members as in the kernel, ``size`` in pages.

    ``type``: "swap", "vnode", "device", ... (OBJT_* in lower case).
    """

    address: int
    type: str
    flags: int
    size: int
    resident_page_count: int
    ref_count: int
    shadow_count: int
    paging_in_progress: int
    backing_object: int
    handle: int
    #: "kernel_object", "kmem_object", "kstack_object" or "" for one without a name
    name: str

    @property
    def vnode(self) -> int:
        """Address of the vnode that backs it, 0 if none does."""
        return self.handle if self.type == "vnode" else 0


@cached(MEMORY)
def object_types(kernel: Kernel) -> Dict[int, str]:
    """{objtype_t: name}: OBJT_* in lower case, dynamic ones (14.0 on) by their pagerops."""
    names = {
        value: name[len("OBJT_") :].lower() if name.startswith("OBJT_") else name
        for value, name in kernel.layouts.table("obj_type").items()
    }
    # From 14.0 OBJT_DEFAULT is another name of OBJT_SWAP.
    if kernel.layouts.constant("OBJT_DEFAULT", 0) == kernel.layouts.constant("OBJT_SWAP", 1):
        names[kernel.layouts.constant("OBJT_SWAP", 1)] = "swap"
    table = kernel.symbol("pagertab")
    if table is None or not table.size:
        return names
    size = kernel.pointer_size
    for number in range(table.size // size):
        if number in names:
            continue
        try:
            ops = kernel.pointer(table.address + number * size)
        except MemoryFault:
            break
        name = kernel.symbolize(ops) if ops else ""
        if name:
            names[number] = name.replace("_pager_ops", "").replace("pagerops", "")
    return names


@cached(MEMORY)
def named_objects(kernel: Kernel) -> Dict[int, str]:
    """The objects that the kernel has by name, {address: name}."""
    found = {}
    for name in ("kernel_object", "kmem_object", "kstack_object", "kstack_alt_object"):
        store = kernel.symbol(name + "_store")
        if store is not None:
            found[store.address] = name
            continue
        try:
            pointer = kernel.global_value(name, 0)
        except MemoryFault:
            continue
        if pointer:
            found[pointer] = name
    return found


@cached(MEMORY)
def object_at(kernel: Kernel, address: int) -> Object:
    """The VM object at ``address``; MemoryFault where it cannot be read."""
    fields = kernel.layouts.fields("vm_object", *_PATHS)
    return _object(kernel, address, kernel.values(fields, address))


def try_object_at(kernel: Kernel, address: int) -> Optional[Object]:
    """As object_at; None for NULL, and for what cannot be read, with a finding."""
    if not address:
        return None
    try:
        return object_at(kernel, address)
    except MemoryFault as fault:
        kernel.warnings.add(f"vm_object {address:#x}", fault.address, fault.reason)
        return None


def _object(kernel: Kernel, address: int, values: Tuple[int, ...]) -> Object:
    number, flags, size, resident, refs, shadows, paging, backing, handle = values
    types = object_types(kernel)
    return Object(
        address,
        types.get(number, str(number)),
        flags,
        size,
        resident,
        refs,
        shadows,
        paging & _BLOCKCOUNT,
        backing,
        handle,
        named_objects(kernel).get(address, ""),
    )


def objects(kernel: Kernel) -> Iterator[Object]:
    """Every VM object of vm_object_list."""
    for address, values in tailq_foreach(
        kernel,
        kernel.address_of("vm_object_list"),
        "vm_object",
        "object_list",
        _PATHS,
        what="vm_object_list",
        bound=_MAX_OBJECTS,
    ):
        yield _object(kernel, address, values)


def vnode_of(kernel: Kernel, found: Object) -> Optional[Vnode]:
    """The vnode behind a vnode object, or None."""
    return vnode_at(kernel, found.vnode) if found.vnode else None


def label(kernel: Kernel, found: Object) -> str:
    """What the object is, for people: "kernel_object", "vnode ufs /data/x", "swap"."""
    if found.name:
        return found.name
    vnode = vnode_of(kernel, found)
    if vnode is not None:
        return f"vnode {vnode.label}"
    anonymous = kernel.layouts.constant("OBJ_ANON", 0)
    if found.type in ("default", "swap") and found.flags & anonymous:
        return "anonymous"
    return found.type


def page_addresses(kernel: Kernel, found: Object) -> Optional[List[int]]:
    """The vm_pages resident in an object, None where only a scan of all pages can tell.

    Along memq to 14.x; from 15.0, where that list is gone, through the radix tree
    (sys/kern/subr_pctrie.c).
    """
    layouts = kernel.layouts
    bound = min(max(found.resident_page_count + 16, 16), _MAX_PAGES)
    if layouts.has("vm_object", "memq") and layouts.has("vm_page", "listq.tqe_next"):
        head = found.address + layouts.offsetof("vm_object", "memq")
        what = f"memq of object {found.address:#x}"
        walk = tailq_foreach(kernel, head, "vm_page", "listq", what=what, bound=bound)
        return [page for page, _ in walk]
    try:
        return _radix_pages(kernel, found)
    except (LayoutError, MemoryFault):
        return None


def _radix_pages(kernel: Kernel, found: Object) -> List[int]:
    """Pages in the object's tree; LayoutError where they are not as many as it says."""
    root = kernel.pointer(found.address + kernel.layouts.offsetof("vm_object", "rtree"))
    pindex = kernel.layouts.offsetof("vm_page", "pindex")
    leaves = pctrie.keys(kernel, root, "RADIX NODE", found.resident_page_count)
    pages = [key - pindex for key in leaves]
    if len(pages) != found.resident_page_count:
        raise LayoutError(
            f"it holds {len(pages)} pages, resident_page_count is {found.resident_page_count}"
        )
    return pages
