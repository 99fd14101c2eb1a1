"""vmpage: pages decoded and searched, page arrays, and what a panic about a page is about."""

from __future__ import annotations

import argparse
from typing import Optional

from commands import Needs, number
from plugin.errors import UsageError
from plugin.kernel.proc import thread_by_tid
from plugin.kernel.vm_page import (
    encoding,
)
from plugin.kernel.vm_page_scan import (
    Predicates,
    resolve,
)
from plugin.render.report import Report
from plugin.render.vmpage import object_pages, page_array, pages_in_full, unasked
from plugin.render.vmscan import picked, whole_scan
from plugin.session import Kernel

HELP = (
    "pages: busy word bit by bit, owner, queue, flags, bogus_page; all busy ones; a pager's array "
    "against its contract; with no argument the page a panic is about"
)
EXAMPLE = (
    "vmpage 0xfffff807ebbd8f98\n"
    "vmpage --scan --busy exclusive\n"
    "vmpage --array 0xfffffe00b3c36400 16"
)
FORMS = ("", "--scan")
NEEDS = Needs(structs=("vm_page",))


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
        return page_array(kernel, *args.array)
    if args.scan and not wanted.any:
        return whole_scan(kernel, args.limit)
    if not args.scan and wanted == Predicates(object=args.object) and wanted.any:
        return object_pages(kernel, args.object)
    if wanted.any:
        return picked(kernel, wanted, args.limit)
    if args.page:
        return pages_in_full(kernel, [resolve(kernel, text) for text in args.page])
    return unasked(kernel)


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
