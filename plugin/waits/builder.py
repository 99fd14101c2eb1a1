"""Building the wait-for graph: what every resolver shares.

``Builder`` holds the graph, the threads and the catalogue; a ``Case`` is one
sleeping thread on its way through a resolver; a ``Verdict`` is what a thread is
taken for.  Who explains a thread is given to the builder (``plugin.waits.explain``),
for a resolver may ask how another thread stands.
"""

from __future__ import annotations

from typing import Callable, Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple

from plugin.catalogue import Catalogue, Row, SleepClass
from plugin.judge.channel import Channel
from plugin.judge.locks import LockWait, lock_waits
from plugin.kernel.proc import Thread, thread_at, threads
from plugin.kernel.sched import is_idle_thread, on_cpu_for
from plugin.kernel.sleepqueue import Sleep, sleeps
from plugin.kernel.stack import backtrace
from plugin.session import Kernel
from plugin.waits.graph import Edge, Graph, Node
from plugin.waits.kinds import Certainty, EdgeKind, NodeKind, Status


class Verdict(NamedTuple):
    """What one thread is taken for, on what grounds, and by which row of the catalogue."""

    status: Status
    why: str
    row: Optional[Row] = None
    #: False where the message is in no catalogue, or retries: what it waits for is not known
    understood: bool = True


def short(thread: Thread) -> str:
    """comm/name, or the thread's own name alone where both are long."""
    return thread.label if len(thread.label) <= 18 else thread.name


class Case:
    """One sleeping thread on its way through a resolver."""

    def __init__(
        self, builder: Builder, thread: Thread, node: Node, channel: Channel, row: Optional[Row]
    ) -> None:
        self.builder = builder
        self.kernel = builder.kernel
        self.thread = thread
        self.node = node
        self.channel = channel
        self.row = row

    @property
    def address(self) -> int:
        return self.channel.address

    def waits_for(self, target: Node, certainty: Certainty, evidence: str) -> Node:
        """The thread sleeps on ``target``."""
        self.builder.join(self.node, target, EdgeKind.WAITS_FOR, certainty, evidence)
        return target

    def said(self) -> str:
        """The evidence every sleep has: message and channel as the thread keeps them."""
        return f'td_wchan {self.address:#x}, td_wmesg "{self.thread.wmesg}"'

    def channel_node(self, label: str = "") -> Node:
        """The channel itself, for what is no object of its own."""
        if self.channel.is_pause:
            # pause(9)'s channel is shared by all who pause: no meeting point of theirs.
            return self.builder.node(
                NodeKind.CHANNEL, f"pause:{self.thread.tid}", label or self._label()
            )
        # One channel may serve several waits (a driver's softc): the message tells them apart.
        key = f"{self.address:#x}:{self.thread.wmesg}"
        return self.builder.node(NodeKind.CHANNEL, key, label or self._label(), self.address)

    def _label(self) -> str:
        return f'"{self.thread.wmesg}" at {self.channel.name}'


#: explains one thread: adds to the graph, and says what the thread is taken for
Explainer = Callable[["Builder", Thread], Verdict]


class GraphBuilder:
    """Threads and the graph that explains them, wherever the threads were read."""

    def __init__(self, kernel: Kernel, threads: List[Thread]) -> None:
        self.kernel = kernel
        self.graph = Graph()
        self.threads = threads
        self.verdicts: Dict[int, Verdict] = {}
        self._pending: List[Thread] = []
        self._by_tid: Optional[Dict[int, Thread]] = None

    def stack(self, thread: Thread) -> Sequence[str]:
        """The functions on a thread's kernel stack, innermost first; [] where none is known."""
        raise NotImplementedError

    def place(self, thread: Thread) -> str:
        """What the thread's channel is, in a word; "" where it tells nothing of its own."""
        raise NotImplementedError

    def interruptible(self, thread: Thread) -> bool:
        """True where a signal ends the sleep: a wait for the world outside, most often."""
        return False

    def unswitched(self, thread: Thread) -> Optional[float]:
        """Seconds for which the CPU that runs the thread has not switched, None if not known."""
        return None

    def explain(self, thread: Thread) -> Verdict:
        """Add what a thread waits for to the graph, and say what the thread is taken for."""
        raise NotImplementedError

    def by_tid(self, tid: Optional[int]) -> Optional[Thread]:
        """The thread of that tid, None if there is none."""
        if self._by_tid is None:
            self._by_tid = {thread.tid: thread for thread in self.threads}
        return self._by_tid.get(tid) if tid is not None else None

    # Nodes and edges

    def node(self, kind: NodeKind, key: str, label: str, address: Optional[int] = None) -> Node:
        """The node ``kind:key``, made with that label if it is new."""
        id = f"{kind}:{key}"
        known = self.graph.nodes.get(id)
        return known if known is not None else self.graph.add(Node(id, kind, label, address))

    def object(self, kind: NodeKind, address: int, label: str) -> Node:
        """The node of a thing at an address."""
        return self.node(kind, f"{address:#x}", label, address)

    def thread(self, thread: Thread) -> Node:
        """The node of a thread; the thread will be explained too."""
        id = f"thread:{thread.tid}"
        known = self.graph.nodes.get(id)
        if known is None:
            known = self.graph.add(
                Node(
                    id, NodeKind.THREAD, f"{thread.tid} {short(thread)}", thread.address, thread.tid
                )
            )
            self._pending.append(thread)
        return known

    def join(
        self,
        source: Node,
        target: Node,
        kind: EdgeKind,
        certainty: Certainty,
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

    def verdict(self, thread: Thread) -> Verdict:
        """What a thread is taken for; explains it now if that has not been done."""
        known = self.verdicts.get(thread.address)
        if known is None:
            self.thread(thread)
            self.settle()
            known = self.verdicts[thread.address]
        return known

    # Explaining them

    def build(self) -> Graph:
        """Explain every thread that waits, and every thread that a chain leads to."""
        for thread in self.threads:
            if thread.waits or thread.state in ("suspended", "swapped"):
                self.thread(thread)
        self.settle()
        return self.graph

    def settle(self) -> None:
        while self._pending:
            thread = self._pending.pop()
            if thread.address not in self.verdicts:
                # Set before it is worked out: a resolver may come back to this thread.
                self.verdicts[thread.address] = Verdict(Status.STUCK, "being explained")
                self.verdicts[thread.address] = self.explain(thread)

    def served_by(self, node: Node, servers: List[Thread], evidence: str) -> None:
        """Threads that the catalogue names as those who end the waits at ``node``."""
        for server in servers:
            self.join(node, self.thread(server), EdgeKind.SERVED_BY, Certainty.CATALOGUED, evidence)
        if len(servers) > 1:
            node.any = True


class Builder(GraphBuilder):
    """Explains the threads of a kernel's memory; ``graph`` is what comes of it."""

    def __init__(self, kernel: Kernel, catalogue: Catalogue, explain: Explainer) -> None:
        super().__init__(kernel, threads(kernel))
        self.catalogue = catalogue
        self._explain = explain
        self.sleeps: Dict[int, Sleep] = sleeps(kernel)
        self.lock_waits: Dict[int, LockWait] = lock_waits(kernel)
        self._channels: Dict[int, Channel] = {}
        self._rows: Dict[Tuple[str, int], Tuple[Optional[Row], str]] = {}

    def explain(self, thread: Thread) -> Verdict:
        return self._explain(self, thread)

    def stack(self, thread: Thread) -> Sequence[str]:
        return backtrace(self.kernel, thread)

    def place(self, thread: Thread) -> str:
        channel = self.channel(thread)
        return "" if channel.is_pause or not channel.address else channel.name

    def interruptible(self, thread: Thread) -> bool:
        sleep = self.sleeps.get(thread.address)
        return sleep is not None and sleep.interruptible

    def unswitched(self, thread: Thread) -> Optional[float]:
        return on_cpu_for(self.kernel, thread.cpu) if thread.cpu is not None else None

    def build(self) -> Graph:
        for thread in self.threads:
            at_work = thread.state in ("running", "runnable")
            if thread.address in self.lock_waits or (
                at_work and not is_idle_thread(self.kernel, thread)
            ):
                self.thread(thread)
        return super().build()

    def thread_node_at(self, address: int) -> Optional[Node]:
        found = thread_at(self.kernel, address) if address else None
        return self.thread(found) if found is not None else None

    def waits_for_work(self, thread: Thread) -> bool:
        """The thread sleeps where the catalogue says a service waits for work to come."""
        if thread.state != "sleeping" or thread.address in self.lock_waits:
            return False
        row, _ = self.row(thread)
        return row is not None and row.sleep_class is SleepClass.IDLE

    def channel(self, thread: Thread) -> Channel:
        address = thread.wchan or 0
        known = self._channels.get(address)
        if known is None:
            known = Channel(self.kernel, address, self.sleeps.get(thread.address))
            self._channels[address] = known
        return known

    def row(self, thread: Thread) -> Tuple[Optional[Row], str]:
        """The row of a sleep and what it was told by; (None, "") where no row fits."""
        channel = self.channel(thread)
        # Thousands of threads may share message and channel.
        key = thread.wmesg or "", channel.address
        known = self._rows.get(key)
        if known is None:
            known = self.catalogue.match(
                key[0], channel.symbol, channel.fits, self.kernel.osreldate
            )
            self._rows[key] = known
        row = known[0]
        # A service without work is a thread of the kernel's own, or one a signal wakes:
        # a process that no signal ends sleeps here for a reason nobody knows.
        service = row is not None and row.sleep_class is SleepClass.IDLE and not row.resolver
        if service and not self.is_kernel_thread(thread) and not self.interruptible(thread):
            return None, ""
        return known
