"""why-stuck's report: the first screen, the chains, one thread's chain in full; its JSON."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Sequence, Tuple

from plugin.captures import explain
from plugin.captures.machine import TextKernel
from plugin.judge.panics import Panic
from plugin.kernel.module_file import untyped
from plugin.kernel.proc import Thread
from plugin.kernel.tc import uptime
from plugin.render import chains, dot, html, svg
from plugin.render.picture import picture
from plugin.render.report import Report
from plugin.render.text import first_lines
from plugin.session import Kernel
from plugin.waits import advice
from plugin.waits.analysis import Analysis, Cause, Chain, Group
from plugin.waits.graph import Edge, Node
from plugin.waits.kinds import Status
from plugin.waits.known import Match
from plugin.waits.panic import panic, with_graph
from plugin.waits.verdict import sentences
from plugin.words import address, alike, count, seconds
from plugin.written import write_file

#: chains shown on the first screen
SHOWN = 12
#: known bugs shown below them
KNOWN = 3


def _facts(analysis: Analysis) -> Tuple[Report, Optional[Panic]]:
    """A report with the JSON in it, and the panic if there was one."""
    report = Report(data(analysis))
    kernel = analysis.kernel
    if isinstance(kernel, TextKernel):
        found = with_graph(analysis, explain.panic(kernel))
    else:
        found = panic(analysis)
    if found is not None:
        report.data["panic"] = _panic(found)
    return report, found


def drawn(analysis: Analysis, *, as_svg: bool) -> Report:
    """The graph in DOT, or drawn by graphviz."""
    report, _ = _facts(analysis)
    graph = dot.dot(picture(analysis))
    report.raw = svg.svg(graph) if as_svg else graph
    return report


def page(
    analysis: Analysis,
    path: str,
    inputs: Sequence[str],
    known: Sequence[Match] = (),
    warned: Sequence[Match] = (),
) -> Report:
    """The whole report as one HTML page at ``path``, with the known bugs that look like it.

    WchanError where it cannot be written, one of ``inputs`` for example.
    """
    report, found = _facts(analysis)
    # The page stands alone: what makes it less than whole is on it, above the verdict.
    lines = first_lines(analysis.kernel.warnings)
    lines += [f"panic: {found.message}", found.verdict] if found is not None else []
    told = [line for line, _ in known_lines(known, warned)]
    text = html.html(analysis, f"why-stuck: {_heading(analysis)}", lines, told)
    write_file(path, text, inputs)
    report.pre(f"written to {path}")
    return report


def in_full(analysis: Analysis, chosen: Sequence[Thread], width: int) -> Report:
    """The chains of the threads asked for, a step a line with its evidence."""
    report, found = _facts(analysis)
    drawing = chains.Drawing(analysis, width)
    for thread in chosen:
        report.pre(*drawing.in_full(thread).split("\n"))
        if found is not None and found.thread is not None and found.thread.tid == thread.tid:
            # That it runs is the least that can be said of it.
            report.text(f"It panicked: {found.message}", indent=2)
            report.text(found.verdict, indent=2)
            report.text("in " + " <- ".join(found.frames), indent=2)
            if found.held:
                report.text(f"It holds {', '.join(found.held)}.", indent=2)
    return report


def first_screen(
    analysis: Analysis, width: int, *, everything: bool = False, limit: Optional[int] = None
) -> Report:
    """The verdict in a few sentences, the causes, the chains, the residue."""
    report, found = _facts(analysis)
    report.text(_heading(analysis))
    report.pre("")
    if found is not None:
        report.text(f"panic: {found.message}")
        report.text(found.verdict)
    for sentence in sentences(analysis):
        report.text(sentence)
    report.behind_verdict = len(report.body)
    if analysis.causes:
        report.pre("")
        report.table(
            ["#>", "cause", "what", "threads>", "since>"],
            [_cause_row(group) for group in _alike(analysis.causes, everything)],
        )
        for line in _advice(analysis):
            report.text(line, indent=4)
    _chains(report, analysis, width, everything, limit)
    if analysis.residue:
        report.heading("residue")
        report.pre(*chains.residue_lines(analysis, width))
    if everything:
        _others(report, analysis)
    _more(report, analysis)
    return report


def add_known(report: Report, known: Sequence[Match], warned: Sequence[Match] = ()) -> None:
    """The diagnosed bugs that look like it, with what is seen of them and what is not."""
    report.data["known"] = [_known(match) for match in known]
    report.data["warned"] = [_known(match) for match in warned]
    for line, indent in known_lines(known, warned):
        if not indent:
            report.pre("")
        report.text(line, indent=indent)


def _known(match: Match) -> Dict[str, Any]:
    return {
        "id": match.known.id,
        "title": match.known.title,
        "seen": match.seen,
        "not_seen": match.not_seen,
        "fixed_in": match.known.fixed,
        "source": match.known.source,
        "caution": match.caution,
    }


def known_lines(known: Sequence[Match], warned: Sequence[Match]) -> List[Tuple[str, int]]:
    """Sentences about known bugs, each with its indentation: 0 begins another bug."""
    lines: List[Tuple[str, int]] = []
    for match in known[:KNOWN]:
        lines.append((f"Looks like {match.known.id}: {match.known.title}.", 0))
        lines.append((f"seen: {'; '.join(match.seen)}", 2))
        if match.not_seen:
            lines.append((f"not seen: {'; '.join(match.not_seen)}", 2))
        if match.caution:
            lines.append((f"but: {match.caution}", 2))
        lines.append((f"fixed: {match.known.fixed}; {match.known.source}", 2))
        if match.known.workaround:
            lines.append((f"until then: {match.known.workaround}", 2))
    if warned:
        lines.append(("This release also had, which its version alone says:", 0))
        for match in warned[:KNOWN]:
            known_as = f"{match.known.id}: {match.known.title}"
            lines.append(
                (f"{known_as} (seen: {'; '.join(match.seen)}; fixed: {match.known.fixed})", 2)
            )
        if len(warned) > KNOWN:
            rest = ", ".join(match.known.id for match in warned[KNOWN:])
            lines.append((f"and {rest}", 2))
    return lines


def _heading(analysis: Analysis) -> str:
    kernel = analysis.kernel
    up = uptime(kernel)
    since = f", up {seconds(up)}" if up is not None else ""
    return (
        f"{_which(kernel)}{since}, "
        f"layouts: {kernel.layouts.name}.  {count(len(analysis.threads), 'thread')}: "
        f"{', '.join(_figures(analysis))}.{_unread(kernel)}"
    )


def _which(kernel: Kernel) -> str:
    """ "FreeBSD 14.2-RELEASE amd64 GENERIC"; text may tell none of the three."""
    if kernel.release != "unknown":
        return f"FreeBSD {kernel.release} {kernel.arch} {kernel.ident}"
    return f"FreeBSD, version unknown, machine {kernel.arch}"


def _unread(kernel: Kernel) -> str:
    """What of the kernel's own types is not used, for the first lines: else the end tells it."""
    said = [note for note in kernel.facts.notes if "debug information is not used" in note][:1]
    said += untyped(kernel)
    return "".join(f"  {note[:1].upper()}{note[1:]}." for note in said)


def _figures(analysis: Analysis) -> List[str]:
    """ "59 stuck, 1 running, 2 runnable, 75 idle": what is none is left out, but the first."""
    told = {
        status: analysis.statuses.get(status, 0)
        for status in (Status.WAITING, Status.SPINNING, Status.RUNNABLE, Status.RUNNING)
    }
    words = [f"{len(analysis.stuck)} stuck"]
    words += [f"{number} {status}" for status, number in told.items() if number]
    # A sleep that nobody understands is not idle, though nothing says that it is stuck.
    stuck = {thread.tid for thread in analysis.stuck}
    counted = {*told, Status.STUCK}
    blind = [
        thread
        for thread in analysis.not_understood
        if thread.tid not in stuck and analysis.status(thread) not in counted
    ]
    if blind:
        words.append(f"{len(blind)} not understood")
    idle = len(analysis.threads) - len(analysis.stuck) - sum(told.values()) - len(blind)
    return [*words, f"{idle} idle"]


def _alike(causes: Sequence[Cause], everything: bool) -> List[List[Cause]]:
    """Causes in the order of rank, those that differ in an address or a thread alone together."""
    groups: Dict[Tuple[str, str], List[Cause]] = {}
    for cause in causes:
        shape = str(cause.rank) if everything else alike(cause.summary)
        groups.setdefault((cause.kind, shape), []).append(cause)
    return list(groups.values())


def _cause_row(group: Sequence[Cause]) -> Tuple[object, ...]:
    first = group[0]
    ages = [cause.since for cause in group if cause.since is not None]
    more = f" and {len(group) - 1} like it" if len(group) > 1 else ""
    threads = sum(len(cause.tids) for cause in group)
    since = seconds(max(ages)) if ages else ""
    return (first.rank, first.kind, first.summary + more, threads, since)


def _advice(analysis: Analysis) -> List[str]:
    """What to look at for the causes that memory does not prove, each said once."""
    found: Dict[str, List[int]] = {}
    for cause in analysis.causes[:SHOWN]:
        for said in advice.of_cause(analysis, cause):
            found.setdefault(said, []).append(cause.rank)
    return [f"#{', #'.join(map(str, ranks))}: {said}." for said, ranks in found.items()]


def _chains(
    report: Report, analysis: Analysis, width: int, everything: bool, limit: Optional[int]
) -> None:
    shown = chains.maximal(analysis, fold=not everything)
    if not shown:
        return
    if limit is None:
        limit = 0 if everything else SHOWN
    cut = shown[:limit] if limit else shown
    report.heading("chains")
    drawing = chains.Drawing(analysis, width)
    for each in cut:
        report.pre(*drawing.chain(each).split("\n"))
    if len(cut) < len(shown):
        report.text(f" ... {count(len(shown) - len(cut), 'more chain')}; --all shows every one")


def _others(report: Report, analysis: Analysis) -> None:
    """Threads that wait and are not stuck: what they were taken for."""
    rows = []
    for thread in analysis.threads:
        verdict = analysis.verdicts.get(thread.address)
        if verdict is not None and verdict.status is not Status.STUCK:
            rows.append((thread.tid, thread.label, thread.wmesg, verdict.status, verdict.why))
    if rows:
        report.heading("not stuck")
        report.table(["tid>", "name", "wmesg", "taken for", "because"], rows)


def _more(report: Report, analysis: Analysis) -> None:
    hints = []
    if analysis.chains:
        longest = max(analysis.chains, key=lambda chain: len(chain.path))
        hints.append(f"why-stuck {longest.tids[0]}")
        hints.append("why-stuck --html hang.html")
    devices = [c.node.label for c in analysis.causes if c.node.kind == "provider"]
    hints += [f"provider {name}" for name in devices[:1]]
    kinds = {node.kind for node in analysis.graph.nodes.values()}
    hints += [name for kind, name in (("pool", "pbuf"), ("lock", "klocks")) if kind in kinds]
    if hints:
        report.pre("")
        report.text("More: " + " | ".join(hints))


def data(analysis: Analysis) -> Dict[str, Any]:
    graph = analysis.graph
    return {
        "threads": {
            "total": len(analysis.threads),
            "idle": len(analysis.threads) - len(analysis.stuck),
            "stuck": len(analysis.stuck),
            "understood": analysis.understood,
            "not_understood": len(analysis.not_understood),
            "waiting": analysis.statuses.get(Status.WAITING, 0),
            "running": analysis.statuses.get(Status.RUNNING, 0),
            "spinning": analysis.statuses.get(Status.SPINNING, 0),
            "runnable": analysis.statuses.get(Status.RUNNABLE, 0),
        },
        "verdict": " ".join(sentences(analysis)),
        "nodes": [_node(node) for node in graph.nodes.values()],
        "edges": [_edge(edge) for edge in graph.edges],
        "chains": [_chain(chain) for chain in analysis.chains],
        "causes": [_cause(analysis, cause) for cause in analysis.causes],
        "residue": [thread.tid for group in analysis.residue for thread in group.threads],
        "residue_groups": [_group(analysis, group) for group in analysis.residue],
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
        end = node.end
        found["end"] = {"kind": end.kind, "summary": end.summary, "evidence": end.evidence}
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


def _cause(analysis: Analysis, cause: Cause) -> Dict[str, Any]:
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
        "advice": advice.of_cause(analysis, cause),
    }


def _panic(found: Panic) -> Dict[str, Any]:
    return {
        "message": found.message,
        "kind": found.kind,
        "verdict": found.verdict,
        "tid": found.thread.tid if found.thread is not None else None,
        "about": found.about.tid if found.about is not None else None,
        "frames": list(found.frames),
        "held": list(found.held),
    }


def _group(analysis: Analysis, group: Group) -> Dict[str, Any]:
    return {
        "wmesg": group.wmesg,
        "channel": group.where,
        "why": group.why,
        "frames": list(group.stack),
        "tids": [thread.tid for thread in group.threads],
        "advice": advice.of_group(analysis, group),
    }
