"""why-stuck: who waits for whom, to the end of each chain, and the ranked root causes."""

from __future__ import annotations

import argparse
from typing import Any, Dict, List

from plugin.errors import UsageError
from plugin.kernel.proc import Thread, threads
from plugin.kernel.tc import uptime
from plugin.render import chains as text
from plugin.report import Report, address, count, seconds
from plugin.runner import number
from plugin.session import Kernel
from plugin.waits.analysis import Analysis, Cause, Chain, Group, analyse
from plugin.waits.catalogue import with_file
from plugin.waits.graph import Edge, Node
from plugin.waits.verdict import sentences

HELP = "who waits for whom, to the end of each chain; the ranked root causes"
EXAMPLE = "why-stuck\nwhy-stuck 100104\nwhy-stuck --html hang.html"

#: chains shown on the first screen
SHOWN = 12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "who", nargs="*", metavar="TID|PID|NAME", help="only these threads, their chains in full"
    )
    parser.add_argument(
        "--tid", type=number, action="append", default=[], help="a thread, its chain in full"
    )
    parser.add_argument(
        "--all", action="store_true", help="every chain, those of idle and benign sleepers too"
    )
    parser.add_argument(
        "--catalogue", metavar="FILE", help="wait messages of your own, over the shipped ones"
    )


def run(kernel: Kernel, args: argparse.Namespace) -> Report:
    chosen = _chosen(kernel, args)
    catalogue = with_file(args.catalogue)
    analysis = analyse(kernel, catalogue, everything=args.all)
    report = Report(data(analysis))
    width = args.width
    if chosen:
        for thread in chosen:
            report.pre(text.in_full(analysis, thread, width))
        return report
    report.text(_heading(analysis))
    report.text("")
    report.text(" ".join(sentences(analysis)))
    if analysis.causes:
        report.heading("")
        report.table(
            ["#>", "cause", "what", "threads>", "since>"],
            [
                (c.rank, c.kind, c.summary, len(c.tids), seconds(c.since))
                for c in analysis.causes
            ],
        )
    _chains(report, analysis, args, width)
    _residue(report, analysis)
    return report


def _heading(analysis: Analysis) -> str:
    kernel = analysis.kernel
    up = uptime(kernel)
    since = f", up {seconds(up)}" if up is not None else ""
    total, stuck = len(analysis.threads), len(analysis.stuck)
    return (
        f"FreeBSD {kernel.release} {kernel.arch} {kernel.ident}{since}, "
        f"layouts: {kernel.layouts.name}.  {count(total, 'thread')}: {stuck} stuck, "
        f"{total - stuck} idle or running."
    )


def _chains(report: Report, analysis: Analysis, args: argparse.Namespace, width: int) -> None:
    shown = text.maximal(analysis)
    if not shown:
        return
    limit = args.limit if args.limit is not None else (0 if args.all else SHOWN)
    cut = shown[:limit] if limit else shown
    report.heading("chains")
    for chain, also in cut:
        report.pre(text.folded(analysis, chain, also, width))
    if len(cut) < len(shown):
        report.text(f"... {len(shown) - len(cut)} more chains; --all shows every one")


def _residue(report: Report, analysis: Analysis) -> None:
    if not analysis.residue:
        return
    report.heading("residue")
    for group in analysis.residue:
        where = f" at {group.where}" if group.where else ""
        report.text(
            f' {count(len(group.threads), "thread")} in "{group.wmesg}"{where}: '
            f"{group.why}  ({text.who(group.threads)})"
        )


def _chosen(kernel: Kernel, args: argparse.Namespace) -> List[Thread]:
    """The threads the arguments name: a tid, a pid, or a name of a process or thread."""
    found: List[Thread] = []
    every = threads(kernel)
    for word in [*map(str, args.tid), *args.who]:
        some = [t for t in every if str(t.tid) == word]
        some = some or [t for t in every if str(t.pid) == word]
        some = some or [t for t in every if word in (t.name, t.comm, t.label)]
        if not some:
            raise UsageError(f"why-stuck: no thread, process or name {word!r}")
        found.extend(t for t in some if t not in found)
    return found


# The JSON contract


def data(analysis: Analysis) -> Dict[str, Any]:
    graph = analysis.graph
    return {
        "threads": {
            "total": len(analysis.threads),
            "idle": len(analysis.threads) - len(analysis.stuck),
            "stuck": len(analysis.stuck),
        },
        "verdict": " ".join(sentences(analysis)),
        "nodes": [_node(node) for node in graph.nodes.values()],
        "edges": [_edge(edge) for edge in graph.edges],
        "chains": [_chain(chain) for chain in analysis.chains],
        "causes": [_cause(cause) for cause in analysis.causes],
        "residue": [thread.tid for group in analysis.residue for thread in group.threads],
        "residue_groups": [_group(group) for group in analysis.residue],
    }


def _node(node: Node) -> Dict[str, Any]:
    found: Dict[str, Any] = {
        "id": node.id,
        "kind": node.kind,
        "label": node.label,
        "address": address(node.address),
    }
    if node.tid is not None:
        found["tid"] = node.tid
    if node.facts:
        found["facts"] = list(node.facts)
    if node.end is not None:
        found["end"] = {"kind": node.end.kind, "summary": node.end.summary}
    return found


def _edge(edge: Edge) -> Dict[str, Any]:
    return {
        "from": edge.source,
        "to": edge.target,
        "kind": edge.kind,
        "certainty": edge.certainty,
        "evidence": edge.evidence,
        "causal": edge.causal,
    }


def _chain(chain: Chain) -> Dict[str, Any]:
    return {
        "tids": list(chain.tids),
        "path": [node.id for node in chain.path],
        "end": chain.end.id,
        "verdict": chain.verdict,
        "certainty": chain.certainty,
    }


def _cause(cause: Cause) -> Dict[str, Any]:
    return {
        "rank": cause.rank,
        "kind": cause.kind,
        "node": cause.node.id,
        "tids": list(cause.tids),
        "summary": cause.summary,
        "evidence": cause.evidence,
        "certainty": cause.certainty,
        "since": cause.since,
        "cycle": list(cause.cycle.nodes) if cause.cycle is not None else None,
    }


def _group(group: Group) -> Dict[str, Any]:
    return {
        "wmesg": group.wmesg,
        "channel": group.where,
        "why": group.why,
        "frames": list(group.stack),
        "tids": [thread.tid for thread in group.threads],
    }
