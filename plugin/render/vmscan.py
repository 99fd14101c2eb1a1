"""vmpage --scan's report: pages counted by state, queue, object and owner."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Sequence, Tuple

from plugin.kernel.proc import Thread
from plugin.kernel.vm_object import Object, label, try_object_at
from plugin.kernel.vm_page import (
    Page,
    owners_by_bits,
    page_sleepers,
    try_page_at,
)
from plugin.kernel.vm_page_scan import (
    Predicates,
    Scan,
    checks,
    objects_by_type,
    scan,
)
from plugin.render.report import Report
from plugin.render.vmpage import page_data, show_pages
from plugin.session import Kernel
from plugin.words import address, count

#: pages kept of a scan unless --limit says otherwise
_KEEP = 100_000


def picked(kernel: Kernel, wanted: Predicates, limit: Optional[int]) -> Report:
    """The pages that the predicates pick, and no more of the rest than its states."""
    keep = _KEEP if limit is None else limit or 1 << 40
    found = scan(kernel, wanted, keep=keep, counts=False)
    report = Report(_scan_data(kernel, found))
    report.text(_summary(found))
    report.heading(f"{count(found.matched, 'page')} picked:")
    _show_pages(kernel, report, found, found.pages)
    return report


def whole_scan(kernel: Kernel, limit: Optional[int]) -> Report:
    """Every page counted, the busy ones by object and owner."""
    found = scan(kernel, Predicates(busy="any"), keep=1 << 40 if limit == 0 else _KEEP)
    compared = checks(kernel, found)
    for check in compared:
        if not check.agrees:
            kernel.warnings.add(
                "vm_page_array",
                None,
                f"{check.what}: {check.scanned} pages by the scan, {check.counted} by the "
                "kernel's counter",
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


def _scan_data(kernel: Kernel, found: Scan) -> Dict[str, Any]:
    return {
        "scanned": found.scanned,
        "missing": found.missing,
        "fictitious": found.fictitious,
        "counts": found.states,
        "matched": found.matched,
        "pages": [page_data(kernel, page) for page in found.pages],
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
        show_pages(kernel, report, pages)
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
    for at, threads in page_sleepers(kernel).items():
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
