"""vmpage: pages decoded and searched, page arrays, and what a panic about a page is about."""

from __future__ import annotations

import argparse
from typing import Any, Dict, List, Optional, Sequence, Tuple

from plugin.errors import UsageError
from plugin.hosts.runner import number
from plugin.judge.pages import (
    PageArray,
    array_verdict,
    check_array,
    page_panic,
)
from plugin.kernel.pbuf import holders
from plugin.kernel.proc import Thread, thread_by_tid
from plugin.kernel.swap_pager import device_of_block, swap_block
from plugin.kernel.uma import zone_of_page
from plugin.kernel.vm_object import Object, label, try_object_at, vnode_of
from plugin.kernel.vm_page import (
    DEV_BSIZE,
    EXCLUSIVE,
    SHARED,
    Page,
    domain_of,
    encoding,
    owners_by_bits,
    page_at,
    sleepers,
    try_page_at,
    valid_all,
    verdict,
)
from plugin.kernel.vm_page_scan import (
    Predicates,
    Scan,
    checks,
    objects_by_type,
    resident,
    resolve,
    scan,
)
from plugin.render.report import Report
from plugin.session import Kernel
from plugin.words import address, count

HELP = "pages: one decoded bit by bit, all busy ones, a pager's page array, an object's pages"
EXAMPLE = (
    "vmpage 0xfffff807ebbd8f98\n"
    "vmpage --scan --busy exclusive\n"
    "vmpage --array 0xfffffe00b3c36400 16"
)

#: pages kept of a scan unless --limit says otherwise
_KEEP = 100_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "page",
        nargs="*",
        metavar="PAGE",
        help="a vm_page's address, a physical address, or OBJECT:INDEX; without any, the page "
        "that the panic is about, or the pages that threads sleep on",
    )
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument(
        "--array",
        nargs=2,
        type=number,
        metavar=("ADDRESS", "COUNT"),
        help="the page array given to a pager, against the contract of VOP_GETPAGES",
    )
    shape.add_argument("--scan", action="store_true", help="all pages: counts, and the busy ones")
    pick = parser.add_argument_group("what --scan picks (all that is given must hold)")
    pick.add_argument(
        "--busy", nargs="?", const="any", choices=("exclusive", "shared", "any"), help="busied so"
    )
    pick.add_argument(
        "--object",
        type=number,
        metavar="ADDRESS",
        help="of this vm_object; alone, the object and the pages resident in it",
    )
    pick.add_argument("--queue", metavar="QUEUE", help="on this page queue: active, laundry, ...")
    pick.add_argument("--owner", type=int, metavar="TID", help="busied by this thread")
    pick.add_argument("--dirty", action="store_true", help="with a dirty bit set")
    pick.add_argument("--wired", action="store_true", help="wired")
    pick.add_argument("--domain", type=int, metavar="N", help="of this memory domain")


def run(kernel: Kernel, args: argparse.Namespace) -> Report:
    wanted = _predicates(kernel, args)
    if args.page and (args.scan or args.array or wanted.any):
        raise UsageError("vmpage: give pages, or --scan, --array or --object, not several")
    if args.array is not None:
        return _array(kernel, *args.array)
    if args.scan:
        return _scan(kernel, wanted, args.limit)
    if args.object is not None and wanted == Predicates(object=args.object):
        return _object(kernel, args.object)
    if wanted.any:
        return _scan(kernel, wanted, args.limit)
    if args.page:
        return _pages(kernel, [resolve(kernel, text) for text in args.page])
    return _unasked(kernel)


def _predicates(kernel: Kernel, args: argparse.Namespace) -> Predicates:
    bits: Optional[int] = None
    if args.owner is not None:
        thread = thread_by_tid(kernel, args.owner)
        if thread is None:
            raise UsageError(f"vmpage: there is no thread {args.owner}")
        bits = thread.address & 0xFFFFFFF8
        if encoding(kernel).freed is None or "INVARIANTS" not in kernel.variant:
            kernel.warnings.add(
                "--owner",
                None,
                "this kernel does not record who busied a page (only kernels with INVARIANTS do, "
                "from 13.0 on)",
                partial=False,
            )
    return Predicates(args.busy, args.object, args.queue, bits, args.dirty, args.wired, args.domain)


# Pages


def _pages(kernel: Kernel, chosen: Sequence[int]) -> Report:
    pages = [page_at(kernel, at) for at in chosen]
    report = Report({"pages": [_data(kernel, page) for page in pages]})
    for page in pages:
        _show(kernel, report, page)
    return report


def _unasked(kernel: Kernel) -> Report:
    """Without arguments: the page of the panic, else the pages that threads sleep on."""
    panic = page_panic(kernel)
    if panic is not None:
        report = Report({"pages": [_data(kernel, panic.page)], "verdict": panic.verdict})
        report.text(panic.verdict)
        thread = panic.thread
        if thread is not None:
            report.data["thread"] = thread.tid
            report.text(f"Thread {thread.tid} {thread.label}: {' <- '.join(panic.frames[:12])}")
        _show(kernel, report, panic.page)
        if panic.array is not None and panic.found is not None:
            report.data["array"] = _array_data(panic.array)
            report.data["array"]["found_by"] = panic.found.how
            report.data["pages"] += [
                _data(kernel, entry.page)
                for entry in panic.array.entries
                if entry.page is not None and entry.page.address != panic.page.address
            ]
            report.heading(f"page array at {panic.array.address:#x}:")
            report.text(f"Found by {panic.found.how}.", 2)
            _show_array(kernel, report, panic.array)
        return report
    waited = sleepers(kernel)
    found = [page for page in (try_page_at(kernel, at) for at in waited) if page is not None]
    report = Report({"pages": [_data(kernel, page) for page in found]})
    if kernel.panicstr:
        report.text(f"The panic is not about a page: {kernel.panicstr}")
    if not found:
        report.text(
            "No thread sleeps on a page.  vmpage ADDRESS decodes one, vmpage --scan counts all."
        )
        return report
    report.heading(f"{count(len(found), 'page')} that threads sleep on:")
    _table(kernel, report, found)
    return report


def _object(kernel: Kernel, owner: int) -> Report:
    found = try_object_at(kernel, owner)
    if found is None:
        raise UsageError(f"vmpage: there is no vm_object at {owner:#x}")
    pages = resident(kernel, owner)
    report = Report(
        {"object": _object_data(kernel, found), "pages": [_data(kernel, page) for page in pages]}
    )
    flags = " ".join(kernel.layouts.flags("obj_flags", found.flags))
    report.text(
        f"vm_object {owner:#x}: {label(kernel, found)}, {found.size} pages, "
        f"{found.resident_page_count} resident, {found.ref_count} references, "
        f"paging_in_progress {found.paging_in_progress}, {flags or 'no flags'}"
    )
    if len(pages) != found.resident_page_count:
        kernel.warnings.add(
            f"vm_object {owner:#x}",
            owner,
            f"resident_page_count is {found.resident_page_count}, {len(pages)} found",
        )
    _table(kernel, report, pages)
    return report


def _show(kernel: Kernel, report: Report, page: Page) -> None:
    """One page in full."""
    waiting = sleepers(kernel).get(page.address, [])
    name = " (bogus_page)" if page.is_bogus else " (fictitious)" if page.fictitious else ""
    report.heading(f"vm_page {page.address:#x}{name}")
    report.text(verdict(kernel, page, waiting) + ".", 2)
    lines = [
        f"  object {page.object:#x}, pindex {page.pindex:#x}, phys_addr {page.phys_addr:#x}"
        + ("" if domain_of(kernel, page) is None else f", domain {domain_of(kernel, page)}")
    ]
    owner = try_object_at(kernel, page.object)
    if owner is not None:
        lines.append(
            f"  {label(kernel, owner)}, {owner.resident_page_count} of {owner.size} pages "
            f"resident, paging_in_progress {owner.paging_in_progress}"
        )
    block = swap_block(kernel, page.object, page.pindex) if _swaps(owner) else None
    if block is not None:
        device = device_of_block(kernel, block)
        lines.append(f"  swap block {block:#x}" + (f" on {device.name}" if device else ""))
    zone = zone_of_page(kernel, page.address) if page.slab or not page.object else None
    if zone is not None:
        lines.append(f"  memory of the UMA zone {zone.name}")
    lines += _busy_lines(kernel, page)
    lines.append("  valid " + _bits(kernel, page.valid) + "  dirty " + _bits(kernel, page.dirty))
    queue = page.queue if page.enqueued or page.queue == "none" else f"{page.queue}, not on it yet"
    counts = f"wire_count {page.wire_count}"
    if page.ref_count is not None:
        counts = f"ref_count {page.ref_count:#x} ({_refs(kernel, page)})"
    elif page.hold_count:
        counts += f", hold_count {page.hold_count}"
    lines.append(f"  queue {queue}, act_count {page.act_count}, {counts}")
    if page.order is not None:
        lines.append(f"  heads a free block of {1 << page.order} pages")
    lines.append("  flags " + (" ".join(page.flags) or "none"))
    for buf in holders(kernel).get(page.address, ()):
        lines.append(f"  in the pages of buf {buf:#x}, whose I/O it takes part in")
    for thread in waiting:
        lines.append(f'  thread {thread.tid} {thread.label} sleeps on it in "{thread.wmesg}"')
    report.pre(*lines)


def _swaps(owner: Optional[Object]) -> bool:
    return owner is not None and owner.type in ("swap", "default")


def _refs(kernel: Kernel, page: Page) -> str:
    words = [count(page.wire_count, "wiring")]
    words += kernel.layouts.flags("ref_count", (page.ref_count or 0) & ~0x3FFFFFFF)
    return ", ".join(words)


def _busy_lines(kernel: Kernel, page: Page) -> List[str]:
    """The busy word drawn bit by bit, a call-out under each bit that says something."""
    way, busy = encoding(kernel), page.busy
    word = busy.raw
    width = 32 if way.member == "busy_lock" else 16 if word > 0xFF or way.member == "flags" else 8
    digits = f"{word:0{width}b}"
    grouped = " ".join(digits[at : at + 8] for at in range(0, width, 8))
    head = f"  {way.member} {word:#04x} = "
    lines = [head + grouped]
    notes = _call_outs(kernel, page)
    for place, note in notes:
        column = len(head) + (width - 1 - place) + (width - 1 - place) // 8
        # To the left of the arrow, where there is room for it.
        lines.append(f"{note} ^".rjust(column + 1))
    return lines


def _call_outs(kernel: Kernel, page: Page) -> List[Tuple[int, str]]:
    """(bit, what it says), the lowest bit first so that the arrows do not cross."""
    way, busy = encoding(kernel), page.busy
    word = busy.raw
    if way.member != "busy_lock":
        prefix = "VPO" if way.member == "oflags" else "PG"
        notes = []
        if word & way.exclusive:
            notes.append((0, f"{prefix}_BUSY: exclusively busied"))
        if word & way.wanted:
            notes.append((1, f"{prefix}_WANTED: a thread waits"))
        if busy.sharers:
            notes.append((0, f"and busy is {busy.sharers}: shared"))
        return notes or [(0, f"no {prefix}_BUSY, busy is 0: not busied")]
    if word == way.freed:
        return [(0, "VPB_FREED: the page is free")]
    if not word:
        return [(0, "not initialised")]
    notes = []
    if word & way.shared:
        notes.append((0, "VPB_BIT_SHARED" + (": VPB_UNBUSIED" if word == way.shared else "")))
    if word & way.exclusive:
        notes.append((1, "VPB_BIT_EXCLUSIVE"))
    if word & way.wanted:
        notes.append((2, "VPB_BIT_WAITERS: a thread waits"))
    if word & way.exclusive and busy.owner_bits:
        tids = owners_by_bits(kernel).get(busy.owner_bits, ())
        who = f"thread {', '.join(map(str, tids))}" if tids else "no thread there now"
        notes.append((3, f"owner ...{busy.owner_bits:08x}: {who}"))
    elif word & way.shared and busy.sharers:
        notes.append((3, f"{count(busy.sharers, 'sharer')}"))
    return notes


def _bits(kernel: Kernel, value: int) -> str:
    """A bit per DEV_BSIZE bytes: "11111111 all"."""
    width = kernel.page_size // DEV_BSIZE
    every = valid_all(kernel)
    what = "all" if value == every else "none" if not value else f"{value.bit_length()} at most"
    if value and value != every:
        what = f"{bin(value).count('1')} of {width}"
    return f"{value:0{width}b} ({what})"


def _table(kernel: Kernel, report: Report, pages: Sequence[Page]) -> None:
    """A line a page: the buf whose I/O holds it and who waits for it, where there is any."""
    waiting = sleepers(kernel)
    held = holders(kernel) if any(page.busy.state in (EXCLUSIVE, SHARED) for page in pages) else {}
    bufs = any(page.address in held for page in pages)
    waits = any(page.address in waiting for page in pages)
    headers = ["vm_page", "pindex>", "of", "busy"]
    headers += ["buf"] if bufs else ["queue"]
    headers += ["waiters"] if waits else []
    rows = []
    for page in pages:
        row = [address(page.address), f"{page.pindex:#x}", _of(kernel, page), _busy(page)]
        if bufs:
            row.append(", ".join(f"{buf:#x}" for buf in held.get(page.address, ())))
        else:
            row.append(page.queue)
        if waits:
            row.append(", ".join(str(thread.tid) for thread in waiting.get(page.address, ())))
        rows.append(row)
    report.table(headers, rows)


def _of(kernel: Kernel, page: Page) -> str:
    if page.is_bogus:
        return "bogus_page"
    owner = try_object_at(kernel, page.object)
    return label(kernel, owner) if owner else ""


def _busy(page: Page) -> str:
    if page.busy.state == SHARED:
        return f"shared {page.busy.sharers}"
    if page.busy.state == EXCLUSIVE and page.busy.owner is not None:
        return f"excl {page.busy.owner}"
    return page.busy.state


# Arrays


def _array(kernel: Kernel, at: int, length: int) -> Report:
    if length <= 0:
        raise UsageError("vmpage --array: COUNT must be positive")
    array = check_array(kernel, at, length)
    report = Report(
        {
            "pages": [_data(kernel, e.page) for e in array.entries if e.page is not None],
            "array": _array_data(array),
            "verdict": array_verdict(kernel, array),
        }
    )
    report.text(array_verdict(kernel, array))
    _show_array(kernel, report, array)
    return report


def _show_array(kernel: Kernel, report: Report, array: PageArray) -> None:
    report.table(
        ["#>", "vm_page", "pindex>", "busy", "contract"],
        [
            (
                entry.place,
                address(entry.address),
                "" if entry.page is None or entry.page.is_bogus else f"{entry.page.pindex:#x}",
                "" if entry.page is None else _busy(entry.page),
                "; ".join(entry.problems) or "ok",
            )
            for entry in array.entries
        ],
    )


def _array_data(array: PageArray) -> Dict[str, Any]:
    return {
        "address": address(array.address),
        "count": len(array.entries),
        "object": address(array.object) if array.object else None,
        "pindex": array.pindex,
        "bogus": array.bogus,
        "ok": not array.broken,
        "entries": [
            {
                "index": entry.place,
                "page": address(entry.address),
                "is_bogus": bool(entry.page and entry.page.is_bogus),
                "problems": list(entry.problems),
            }
            for entry in array.entries
        ],
    }


# The scan


def _scan(kernel: Kernel, wanted: Predicates, limit: Optional[int]) -> Report:
    if wanted.any:
        keep = _KEEP if limit is None else limit or 1 << 40
        return _picked(kernel, scan(kernel, wanted, keep=keep, counts=False))
    found = scan(kernel, Predicates(busy="any"), keep=1 << 40 if limit == 0 else _KEEP)
    compared = checks(kernel, found)
    for check in compared:
        if not check.agrees:
            kernel.warnings.add(
                "vm_page_array",
                None,
                f"{check.what}: {check.scanned} pages by the scan, {check.counted} by the "
                "kernel's counter",
                partial=False,
            )
    types, _ = objects_by_type(kernel, found)
    report = Report(
        {
            **_scan_data(kernel, found),
            "queues": found.queues,
            "domains": [
                {
                    "index": each.domain,
                    "pages": each.pages,
                    "counts": each.states,
                    "queues": each.queues,
                    "free": each.free,
                    "wired": each.wired,
                    "dirty": each.dirty,
                }
                for each in found.domains
            ],
            "object_types": {kind or "none": pages for kind, pages in types.items()},
            "checks": [
                {"what": c.what, "scanned": c.scanned, "counted": c.counted, "agrees": c.agrees}
                for c in compared
            ],
            "busy": _groups_data(kernel, found),
        }
    )
    _show_counts(report, found, types, compared)
    _show_groups(kernel, report, found)
    # The kernel's own pages stay busied from 13.0 on: a count says enough of them.
    own = {page.address for page in found.pages if _is_kernels(kernel, page)}
    pages = [page for page in found.pages if page.address not in own]
    more = f", and {len(own)} of the kernel's own objects" if own else ""
    report.heading(f"{count(len(pages), 'busy page')}{more}:")
    _show_pages(kernel, report, found, pages)
    return report


def _picked(kernel: Kernel, found: Scan) -> Report:
    """The pages that the predicates pick, and no more of the rest than its states."""
    report = Report(_scan_data(kernel, found))
    report.text(_summary(found))
    report.heading(f"{count(found.matched, 'page')} picked:")
    _show_pages(kernel, report, found, found.pages)
    return report


def _scan_data(kernel: Kernel, found: Scan) -> Dict[str, Any]:
    return {
        "scanned": found.scanned,
        "missing": found.missing,
        "fictitious": found.fictitious,
        "counts": found.states,
        "matched": found.matched,
        "pages": [_data(kernel, page) for page in found.pages],
    }


def _summary(found: Scan) -> str:
    states = ", ".join(f"{pages} {state}" for state, pages in found.states.items() if pages)
    line = f"{found.scanned} pages scanned: {states}."
    if found.fictitious:
        line += f"  {found.fictitious} fictitious pages beside them."
    if found.missing:
        line += f"  {found.missing} pages are not in the dump."
    return line


def _show_pages(kernel: Kernel, report: Report, found: Scan, pages: Sequence[Page]) -> None:
    if pages:
        _table(kernel, report, pages)
    if len(found.pages) < found.matched:
        report.text(f"{found.matched - len(found.pages)} more were not kept; --limit 0 keeps all.")


def _show_counts(
    report: Report, found: Scan, types: Dict[str, int], compared: Sequence[Any]
) -> None:
    report.text(_summary(found))
    report.table(
        ["domain", "pages>", "free>", "active>", "inactive>", "laundry>", "unsw>", "wired>"],
        [
            (
                "none" if each.domain is None else each.domain,
                each.pages,
                each.free,
                *(each.queues.get(q, 0) for q in ("active", "inactive", "laundry", "unswappable")),
                each.wired,
            )
            for each in found.domains
        ],
        limit=False,
    )
    of = ", ".join(
        f"{pages} {kind or 'of no object'}"
        for kind, pages in sorted(types.items(), key=lambda item: -item[1])
    )
    report.text(f"By object: {of}.")
    if compared and all(check.agrees for check in compared):
        report.text("The kernel's own counters of free pages, queues and objects agree.")


def _show_groups(kernel: Kernel, report: Report, found: Scan) -> None:
    groups = _groups(kernel, found)
    if not groups:
        return
    report.heading("busy pages by object and owner:")
    report.table(
        ["vm_object", "of", "busy", "owner", "pages>", "waiters"],
        [
            (
                address(owner) if owner else "none",
                what,
                state,
                _owner_text(kernel, bits),
                pages,
                ", ".join(str(thread.tid) for thread in waiting[:4]),
            )
            for owner, what, _, state, bits, pages, waiting in groups
        ],
    )


def _groups(
    kernel: Kernel, found: Scan
) -> List[Tuple[int, str, Optional[Object], str, int, int, List[Thread]]]:
    """(object, what it is, itself, state, owner's bits, pages, threads asleep on them)."""
    waiting: Dict[Tuple[int, str, int], List[Thread]] = {}
    for at, threads in sleepers(kernel).items():
        page = try_page_at(kernel, at)
        if page is not None:
            key = (page.object, page.busy.state, page.busy.owner_bits or 0)
            waiting.setdefault(key, []).extend(threads)
    groups = []
    for (owner, state, bits), pages in found.busy.items():
        held = try_object_at(kernel, owner)
        what = label(kernel, held) if held else "no object"
        threads = waiting.get((owner, state, bits), [])
        groups.append((owner, what, held, state, bits, pages, threads))
    groups.sort(key=lambda group: (-len(group[6]), -group[5]))
    return groups


def _groups_data(kernel: Kernel, found: Scan) -> List[Dict[str, Any]]:
    return [
        {
            "object": address(owner) if owner else None,
            "label": what,
            "type": held.type if held else None,
            "state": state,
            "owner": _owner(kernel, bits),
            "pages": pages,
            "waiters": [thread.tid for thread in waiting],
        }
        for owner, what, held, state, bits, pages, waiting in _groups(kernel, found)
    ]


def _owner(kernel: Kernel, bits: int) -> Optional[int]:
    tids = owners_by_bits(kernel).get(bits, ()) if bits else ()
    return tids[0] if len(tids) == 1 else None


def _owner_text(kernel: Kernel, bits: int) -> str:
    if not bits:
        return ""
    tid = _owner(kernel, bits)
    return str(tid) if tid is not None else f"...{bits:08x}"


def _is_kernels(kernel: Kernel, page: Page) -> bool:
    owner = try_object_at(kernel, page.object)
    return owner is not None and bool(owner.name)


# Data


def _data(kernel: Kernel, page: Page) -> Dict[str, Any]:
    busy = page.busy
    waiting = sleepers(kernel).get(page.address, [])
    owner = try_object_at(kernel, page.object)
    vnode = vnode_of(kernel, owner) if owner else None
    return {
        "address": address(page.address),
        "object": address(page.object) if page.object else None,
        "object_type": owner.type if owner else None,
        "vnode": address(vnode.address) if vnode else None,
        "of": label(kernel, owner) if owner else None,
        "swap_block": swap_block(kernel, page.object, page.pindex) if _swaps(owner) else None,
        "pindex": page.pindex,
        "phys_addr": address(page.phys_addr),
        "busy": {
            "raw": busy.raw,
            "member": encoding(kernel).member,
            "state": busy.state,
            "sharers": busy.sharers,
            "waiters": busy.waiters,
            "owner": busy.owner,
        },
        "valid": page.valid,
        "dirty": page.dirty,
        "queue": page.queue,
        "enqueued": page.enqueued,
        "flags": list(page.flags),
        "wire_count": page.wire_count,
        "hold_count": page.hold_count,
        "ref_count": page.ref_count,
        "act_count": page.act_count,
        "is_bogus": page.is_bogus,
        "fictitious": page.fictitious,
        "bufs": [address(buf) for buf in holders(kernel).get(page.address, ())],
        "waiters": [thread.tid for thread in waiting],
        "verdict": verdict(kernel, page, waiting),
    }


def _object_data(kernel: Kernel, found: Object) -> Dict[str, Any]:
    vnode = vnode_of(kernel, found)
    return {
        "address": address(found.address),
        "type": found.type,
        "label": label(kernel, found),
        "vnode": address(vnode.address) if vnode else None,
        "size": found.size,
        "resident_page_count": found.resident_page_count,
        "ref_count": found.ref_count,
        "shadow_count": found.shadow_count,
        "paging_in_progress": found.paging_in_progress,
        "backing_object": address(found.backing_object) if found.backing_object else None,
        "flags": kernel.layouts.flags("obj_flags", found.flags),
    }
