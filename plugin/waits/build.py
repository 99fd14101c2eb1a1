"""Building the wait-for graph: every thread explained, and what it waits for, to the end.

``Builder`` holds what all resolvers share: the graph, the threads, the
catalogue.  It finds for each waiting thread the lock, or the row of the
catalogue and its resolver; the resolvers (``plugin.waits.resolvers``) add nodes
and edges and say where a chain ends.
"""

from __future__ import annotations

from typing import Dict, Iterable, List, NamedTuple, Optional, Tuple

from plugin.errors import WchanError
from plugin.judge.locks import LockWait, lock_waits, thread_sleeps
from plugin.kernel.proc import Thread, thread_at, threads
from plugin.kernel.sleepqueue import Sleep
from plugin.session import Kernel
from plugin.waits.catalogue import Catalogue, Row
from plugin.waits.channel import Channel
from plugin.waits.graph import CATALOGUED, PROVEN, Edge, End, Graph, Node

#: what a thread is taken for; "stuck" ones are those that have to be explained
STUCK, IDLE, BENIGN, TIMED, RUNNING, OTHER = "stuck", "idle", "benign", "timed", "running", "other"


class Standing(NamedTuple):
    """What one thread is taken for, on what grounds, and by which row of the catalogue."""

    status: str
    why: str
    row: Optional[Row] = None


def short(thread: Thread) -> str:
    """comm/name, or the thread's own name alone where both are long."""
    return thread.label if len(thread.label) <= 18 else thread.name


class Case:
    """One sleeping thread on its way through a resolver."""

    def __init__(
        self, builder: Builder, thread: Thread, node: Node, channel: Channel, row: Optional[Row]
    ) -> None:
        self.b = builder
        self.kernel = builder.kernel
        self.thread = thread
        self.node = node
        self.channel = channel
        self.row = row

    @property
    def address(self) -> int:
        return self.channel.address

    def waits_for(self, target: Node, certainty: str, evidence: str) -> Node:
        """The thread sleeps on ``target``."""
        self.b.join(self.node, target, "waits-for", certainty, evidence)
        return target

    def said(self) -> str:
        """The evidence every sleep has: message and channel as the thread keeps them."""
        return f'td_wchan {self.address:#x}, td_wmesg "{self.thread.wmesg}"'

    def channel_node(self, label: str = "") -> Node:
        """The channel itself, for what is no object of its own."""
        if self.channel.is_pause:
            # pause(9)'s channel is shared by all who pause: no meeting point of theirs.
            return self.b.node("channel", f"pause:{self.thread.tid}", label or self._label())
        # One channel may serve several waits (a driver's softc): the message tells them apart.
        key = f"{self.address:#x}:{self.thread.wmesg}"
        return self.b.node("channel", key, label or self._label(), self.address)

    def _label(self) -> str:
        return f'"{self.thread.wmesg}" at {self.channel.name}'


class Builder:
    """Explains threads; ``graph`` is what comes of it."""

    def __init__(self, kernel: Kernel, catalogue: Catalogue) -> None:
        self.kernel = kernel
        self.catalogue = catalogue
        self.graph = Graph()
        self.threads: List[Thread] = threads(kernel)
        self.standings: Dict[int, Standing] = {}
        self.sleeps: Dict[int, Sleep] = thread_sleeps(kernel)
        self.lock_waits: Dict[int, LockWait] = lock_waits(kernel)
        self._channels: Dict[int, Channel] = {}
        self._rows: Dict[Tuple[str, int], Tuple[Optional[Row], str]] = {}
        self._pending: List[Thread] = []

    # Nodes and edges

    def node(self, kind: str, key: str, label: str, address: Optional[int] = None) -> Node:
        """The node ``kind:key``, made with that label if it is new."""
        id = f"{kind}:{key}"
        known = self.graph.nodes.get(id)
        return known if known is not None else self.graph.add(Node(id, kind, label, address))

    def object(self, kind: str, address: int, label: str) -> Node:
        """The node of a thing at an address."""
        return self.node(kind, f"{address:#x}", label, address)

    def thread(self, thread: Thread) -> Node:
        """The node of a thread; the thread will be explained too."""
        id = f"thread:{thread.tid}"
        known = self.graph.nodes.get(id)
        if known is None:
            known = self.graph.add(
                Node(id, "thread", f"{thread.tid} {short(thread)}", thread.address, thread.tid)
            )
            self._pending.append(thread)
        return known

    def thread_node_at(self, address: int) -> Optional[Node]:
        found = thread_at(self.kernel, address) if address else None
        return self.thread(found) if found is not None else None

    def join(
        self,
        source: Node,
        target: Node,
        kind: str,
        certainty: str,
        evidence: str,
        causal: bool = True,
    ) -> None:
        self.graph.join(Edge(source.id, target.id, kind, certainty, evidence, causal))

    # Finding threads

    def named(self, names: Iterable[str]) -> List[Thread]:
        """Kernel threads whose own name, or whose process's, begins with one of ``names``."""
        wanted = tuple(names)
        return [
            thread
            for thread in self.threads
            if self.is_kernel_thread(thread)
            and (thread.name.startswith(wanted) or thread.comm.startswith(wanted))
        ]

    def is_kernel_thread(self, thread: Thread) -> bool:
        """P_SYSTEM / P_KPROC: a thread of the kernel's own."""
        constant = self.kernel.layouts.constant
        return bool(thread.p_flag & (constant("P_SYSTEM", 0x200) | constant("P_KPROC", 0x4)))

    def waits_for_work(self, thread: Thread) -> bool:
        """The thread sleeps where the catalogue says a service waits for work to come."""
        if thread.state != "sleeping" or thread.address in self.lock_waits:
            return False
        row, _ = self._row(thread, self.channel(thread))
        return row is not None and row.klass == "idle"

    def standing(self, thread: Thread) -> Standing:
        """What a thread is taken for; explains it now if that has not been done."""
        known = self.standings.get(thread.address)
        if known is None:
            self.thread(thread)
            self.settle()
            known = self.standings[thread.address]
        return known

    # Explaining them

    def build(self) -> Graph:
        """Explain every thread that waits, and every thread that a chain leads to."""
        for thread in self.threads:
            if thread.waits or thread.state == "suspended" or thread.address in self.lock_waits:
                self.thread(thread)
        self.settle()
        return self.graph

    def settle(self) -> None:
        while self._pending:
            thread = self._pending.pop()
            if thread.address not in self.standings:
                # Set before it is worked out: a resolver may come back to this thread.
                self.standings[thread.address] = Standing(STUCK, "being explained")
                self.standings[thread.address] = self._explain(thread)

    def _explain(self, thread: Thread) -> Standing:
        node = self.graph.nodes[f"thread:{thread.tid}"]
        wait = self.lock_waits.get(thread.address)
        if wait is not None:
            from plugin.waits.resolvers.locks import wait_for_lock

            wait_for_lock(self, thread, node, wait)
            return Standing(STUCK, f"waits for a {wait.lock.klass} lock")
        if thread.state == "sleeping" or (thread.wchan and thread.state != "locked"):
            return self._explain_sleep(thread, node)
        return self._explain_state(thread, node)

    def _explain_state(self, thread: Thread, node: Node) -> Standing:
        who = node.label
        if thread.state == "running":
            on = "" if thread.cpu is None else f" on CPU {thread.cpu}"
            node.end = End("running", f"{who} runs{on}", f"td_state TDS_RUNNING{on}")
            if thread.cpu is not None:
                cpu = self.node("cpu", str(thread.cpu), f"CPU {thread.cpu}")
                self.join(node, cpu, "contained-in", PROVEN, f"td_oncpu {thread.cpu}", False)
            return Standing(RUNNING, f"runs{on}")
        if thread.state == "runnable":
            node.end = End("runnable", f"{who} is runnable and waits for a CPU", "on a run queue")
            return Standing(RUNNING, "waits for a CPU")
        if thread.state == "locked":
            node.end = End("unknown", f"{who} is blocked on a lock that cannot be read")
            return Standing(STUCK, "blocked on a lock that cannot be read")
        if thread.state == "suspended":
            from plugin.waits.resolvers.procs import single_threading

            found = single_threading(self, thread, node)
            if found is not None:
                return found
        words = {
            "suspended": "is stopped (a signal, a debugger, or its process single-threading)",
            "swapped": "is swapped out and has to be brought in",
            "iwait": "waits for an interrupt",
            "inactive": "is not started, or has ended",
            "zombie": "has ended; its parent has to wait for it",
        }
        text = words.get(thread.state, thread.state)
        node.end = End("external", f"{who} {text}", f"thread state {thread.state}")
        return Standing(OTHER, text)

    def channel(self, thread: Thread) -> Channel:
        address = thread.wchan or 0
        known = self._channels.get(address)
        if known is None:
            known = Channel(self.kernel, address, self.sleeps.get(thread.address))
            self._channels[address] = known
        return known

    def _row(self, thread: Thread, channel: Channel) -> Tuple[Optional[Row], str]:
        """The row of a sleep; thousands of threads may share message and channel."""
        key = thread.wmesg or "", channel.address
        known = self._rows.get(key)
        if known is None:
            known = self.catalogue.match(
                key[0], channel.symbol, channel.fits, self.kernel.osreldate
            )
            self._rows[key] = known
        return known

    def _explain_sleep(self, thread: Thread, node: Node) -> Standing:
        from plugin.waits.resolvers import RESOLVERS
        from plugin.waits.resolvers.common import generic, unknown

        channel = self.channel(thread)
        row, why = self._row(thread, channel)
        case = Case(self, thread, node, channel, row)
        if row is None:
            return unknown(case)
        resolver = RESOLVERS.get(row.resolver) if row.resolver else None
        try:
            found = resolver(case) if resolver is not None else None
        except WchanError as error:
            self.kernel.warnings.add(
                f'thread {thread.tid} in "{thread.wmesg}"', channel.address, str(error)
            )
            found = None
        return found if found is not None else generic(case, why)

    def served_by(self, node: Node, servers: List[Thread], evidence: str) -> None:
        """Threads that the catalogue names as those who end the waits at ``node``."""
        for server in servers:
            self.join(node, self.thread(server), "served-by", CATALOGUED, evidence)
        if len(servers) > 1:
            node.any = True
