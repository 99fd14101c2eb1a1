"""vmpage's report: pages bit by bit, page arrays, objects, and the page a panic is about."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Sequence, Tuple

from plugin.errors import UsageError
from plugin.judge.pages import (
    PageArray,
    array_verdict,
    check_array,
)
from plugin.judge.panics import page_panic
from plugin.kernel.pbuf import holders
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
    page_sleepers,
    try_page_at,
    valid_all,
    verdict,
)
from plugin.kernel.vm_page_scan import (
    resident,
)
from plugin.render.report import Report
from plugin.session import Kernel
from plugin.words import address, count


def pages_in_full(kernel: Kernel, chosen: Sequence[int]) -> Report:
    pages = [page_at(kernel, at) for at in chosen]
    report = Report({"pages": [page_data(kernel, page) for page in pages]})
    for page in pages:
        _show(kernel, report, page)
    return report


def unasked(kernel: Kernel) -> Report:
    """Without arguments: the page of the panic, else the pages that threads sleep on."""
    panic = page_panic(kernel)
    if panic is not None:
        report = Report({"pages": [page_data(kernel, panic.page)], "verdict": panic.verdict})
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
                page_data(kernel, entry.page)
                for entry in panic.array.entries
                if entry.page is not None and entry.page.address != panic.page.address
            ]
            report.heading(f"page array at {panic.array.address:#x}:")
            report.text(f"Found by {panic.found.how}.", 2)
            _show_array(kernel, report, panic.array)
        return report
    waited = page_sleepers(kernel)
    found = [page for page in (try_page_at(kernel, at) for at in waited) if page is not None]
    report = Report({"pages": [page_data(kernel, page) for page in found]})
    if kernel.panicstr:
        report.text(f"The panic is not about a page: {kernel.panicstr}")
    if not found:
        report.text(
            "No thread sleeps on a page.  vmpage ADDRESS decodes one, vmpage --scan counts all."
        )
        return report
    report.heading(f"{count(len(found), 'page')} that threads sleep on:")
    show_pages(kernel, report, found)
    return report


def object_pages(kernel: Kernel, owner: int) -> Report:
    found = try_object_at(kernel, owner)
    if found is None:
        raise UsageError(f"vmpage: there is no vm_object at {owner:#x}")
    pages = resident(kernel, owner)
    report = Report(
        {
            "object": _object_data(kernel, found),
            "pages": [page_data(kernel, page) for page in pages],
        }
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
    show_pages(kernel, report, pages)
    return report


def _show(kernel: Kernel, report: Report, page: Page) -> None:
    """One page in full."""
    waiting = page_sleepers(kernel).get(page.address, [])
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


def show_pages(kernel: Kernel, report: Report, pages: Sequence[Page]) -> None:
    """A line a page: the buf whose I/O holds it and who waits for it, where there is any."""
    waiting = page_sleepers(kernel)
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


def page_array(kernel: Kernel, at: int, length: int) -> Report:
    if length <= 0:
        raise UsageError("vmpage --array: COUNT must be positive")
    array = check_array(kernel, at, length)
    report = Report(
        {
            "pages": [page_data(kernel, e.page) for e in array.entries if e.page is not None],
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


def page_data(kernel: Kernel, page: Page) -> Dict[str, Any]:
    busy = page.busy
    waiting = page_sleepers(kernel).get(page.address, [])
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
