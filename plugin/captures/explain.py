"""The wait-for graph out of text: the same nodes, edges and verdicts as out of memory.

What DDB or WITNESS printed is proven; what a message or a stack says is catalogued or
guessed; each edge names the line it rests on.
"""

from __future__ import annotations

import functools
import os
import re
from bisect import bisect_left
from typing import Dict, FrozenSet, List, NamedTuple, Optional, Sequence, Tuple

from plugin.caching import MEMORY, cached
from plugin.captures.machine import TextKernel
from plugin.captures.model import TextBuf, TextLock, TextThread, TextVnode
from plugin.catalogue import Catalogue, Row, SleepClass, Spec
from plugin.judge import panics
from plugin.kernel.proc import Thread
from plugin.session import Kernel
from plugin.waits import analysis
from plugin.waits.analysis import Analysis, conclude
from plugin.waits.builder import GraphBuilder, Verdict
from plugin.waits.explain import STATE_WORDS
from plugin.waits.graph import End, Node
from plugin.waits.kinds import CauseKind, Certainty, EdgeKind, NodeKind, Status
from plugin.waits.resolvers.common import served, told_by
from plugin.words import count
from plugin.yamldata import load

_FRAMES = os.path.join(os.path.dirname(__file__), "frames.yaml")
#: the lock of a vnode or a buf lies this far into it at most
_INSIDE = 0x400
_MEMORY = ("memory", "pageout_memory", "pacing_memory")
#: functions that only do the sleeping: what is beneath them says what for
_UNLISTED = "is in no listing that tells its state"


class _Wait(NamedTuple):
    """What a thread sleeps for, and how surely that is known."""

    wmesg: str
    certainty: Certainty
    said: str


@cached(MEMORY)
def analyse(kernel: TextKernel, catalogue: Catalogue, everything: bool = False) -> Analysis:
    """The whole answer, as ``plugin.waits.analysis.analyse`` gives it of memory."""
    return conclude(TextBuilder(kernel, catalogue), everything=everything)


def answer(kernel: Kernel, catalogue: Catalogue, everything: bool = False) -> Analysis:
    """The whole answer of a kernel, be it memory or text."""
    if isinstance(kernel, TextKernel):
        return analyse(kernel, catalogue, everything)
    return analysis.analyse(kernel, catalogue, everything)


def panic(kernel: TextKernel) -> Optional[panics.Panic]:
    """The panic that text tells of; None where it tells of none."""
    message = kernel.panicstr
    if not message:
        return None
    thread = next((t for t in kernel.threads if t.tid == kernel.capture.panicked_tid), None)
    frames = tuple(kernel.capture.panic_frames)
    if thread is not None and not frames:
        frames = tuple(kernel.stack(thread))
    verdict = panics.who_panicked(thread, frames)
    return panics.Panic(message, "other", verdict, thread, None, frames)


class TextBuilder(GraphBuilder):
    """Explains the threads of a capture."""

    def __init__(self, kernel: TextKernel, catalogue: Catalogue) -> None:
        super().__init__(kernel, kernel.threads)
        self.text_kernel = kernel
        self.capture = kernel.capture
        self.texts = kernel.texts
        self.catalogue = catalogue
        self._tid_of: Dict[int, int] = {
            text.tid: tid for tid, text in kernel.texts.items() if text.tid is not None
        }
        self._tid_of_text = {id(text): tid for tid, text in kernel.texts.items()}
        # Asked for every sleeper: worked out once, so that a log costs time linear in its size.
        self._pacer = next((t for t in self.threads if t.name == t.wmesg == "g_down"), None)
        self._vnodes = sorted(self.capture.vnodes)
        self._devices: Dict[int, List[TextVnode]] = {}
        for vnode in self.capture.vnodes.values():
            lock = self.capture.locks.get(vnode.lock or "")
            for tid in lock.owners if lock is not None and vnode.device else ():
                self._devices.setdefault(tid, []).append(vnode)
        self._busy: Dict[Tuple[str, int], List[Thread]] = {}
        self._completed: Dict[str, List[str]] = {}

    def stack(self, thread: Thread) -> Sequence[str]:
        return self.text_kernel.stack(thread)

    def place(self, thread: Thread) -> str:
        return f"{thread.wchan:#x}" if thread.wchan else ""

    def explain(self, thread: Thread) -> Verdict:
        text = self.texts[thread.tid]
        node = self.graph.nodes[f"thread:{thread.tid}"]
        if thread.address < 0:
            node.address = None
        blocked = self.capture.blocked.get(text.tid) if text.tid is not None else None
        if blocked is not None:
            lock = self.capture.locks[blocked.lock]
            said = f"{blocked.source}: blocked on {lock.lc_name} {lock.name}"
            self._wait_for(node, lock, Certainty.PROVEN, said)
            return Verdict(Status.STUCK, f"waits for a {lock.lc_name} lock")
        if thread.state == "locked":
            return self._turnstile(text, node)
        if thread.state == "sleeping":
            return self._sleep(thread, text, node)
        return self._state(thread, text, node)

    # States

    def _state(self, thread: Thread, text: TextThread, node: Node) -> Verdict:
        where = f"{text.listed or text.stacked}"
        if thread.state == "running":
            on = "" if thread.cpu is None else f" on CPU {thread.cpu}"
            node.end = End(CauseKind.RUNNING, f"{node.label} runs{on}", where)
            return Verdict(Status.IDLE if text.idle else Status.RUNNING, f"runs{on}")
        if thread.state == "runnable":
            node.end = End(
                CauseKind.RUNNABLE, f"{node.label} is runnable and waits for a CPU", where
            )
            return Verdict(Status.RUNNING, "waits for a CPU")
        unknown = thread.state == "unknown"
        words = _UNLISTED if unknown else STATE_WORDS.get(thread.state, thread.state)
        kind = CauseKind.UNKNOWN if unknown else CauseKind.EXTERNAL
        node.end = End(kind, f"{node.label} {words}", where)
        return Verdict(Status.OTHER, words)

    # Locks

    def _wait_for(self, node: Node, lock: TextLock, certainty: Certainty, said: str) -> None:
        self.join(node, self._lock_node(lock), EdgeKind.WAITS_FOR, certainty, said)

    def _lock_node(self, lock: TextLock) -> Node:
        where = f" {lock.address:#x}" if lock.address is not None else ""
        made = self.node(
            NodeKind.LOCK, lock.key, f'{lock.lc_name} "{lock.name}"{where}', lock.address
        )
        if made.end is not None or self.graph.out.get(made.id):
            return made
        for tid, source in lock.owners.items():
            owner = self.by_tid(self._tid_of.get(tid, tid))
            if owner is not None:
                self.join(
                    made,
                    self.thread(owner),
                    EdgeKind.OWNED_BY,
                    Certainty.PROVEN,
                    f"{source}: holds it",
                )
        for text, source in lock.holders:
            owner = self.by_tid(self._tid_of_text[id(text)])
            if owner is not None:
                said = f"{source}: holds it"
                self.join(made, self.thread(owner), EdgeKind.OWNED_BY, Certainty.PROVEN, said)
        if lock.kernproc is not None:
            made.end = End(
                CauseKind.UNKNOWN,
                f"{made.label} is disowned (LK_KERNPROC): an I/O in flight ends it, "
                "which one is not printed",
                str(lock.kernproc),
            )
        elif not lock.owners and not lock.holders:
            shared = f"held shared by {lock.shared}, and" if lock.shared else "but"
            said = f"{made.label}: {shared} who holds it is not printed"
            if lock.mode == "UNLOCKED":
                said = f"{made.label} was printed unlocked: a wakeup is under way, or was lost"
            made.end = End(CauseKind.UNKNOWN, said, str(lock.source))
        return made

    def _turnstile(self, text: TextThread, node: Node) -> Verdict:
        """``*name`` in ps and no chain: the lock of that name, if only one was printed."""
        name = text.lock_name or "?"
        fit = [lock for lock in self.capture.locks.values() if name and lock.name.startswith(name)]
        if len(fit) == 1:
            said = f"{text.listed}: the one lock printed whose name begins so"
            self._wait_for(node, fit[0], Certainty.GUESSED, said)
        else:
            lock = TextLock(f"named {name}", None, "lock", name, source=text.listed)
            self._wait_for(node, lock, Certainty.PROVEN, f'{text.listed}: "*{name}"')
        return Verdict(Status.STUCK, "blocked on a lock")

    def _vnode_or_buf_lock(self, text: TextThread, wmesg: str) -> Optional[Tuple[TextLock, str]]:
        """The printed vnode or buf whose lock is the channel."""
        if text.wchan is None:
            return None
        for at in range(bisect_left(self._vnodes, text.wchan) - 1, -1, -1):
            vnode = self.capture.vnodes[self._vnodes[at]]
            if text.wchan - vnode.address >= _INSIDE:
                break
            if vnode.lock and wmesg[:6] == vnode.tag[:6]:
                what = f"{vnode.source}: vnode {vnode.address:#x}, which the channel lies in"
                return self.capture.locks[vnode.lock], what
        return None

    # Sleeps

    def _sleep(self, thread: Thread, text: TextThread, node: Node) -> Verdict:
        wait = self._wait(text)
        if wait is None:
            channel = self.node(NodeKind.CHANNEL, f"of {thread.tid}", "a sleep of unknown kind")
            self.join(
                node,
                channel,
                EdgeKind.WAITS_FOR,
                Certainty.PROVEN,
                f"{text.listed or text.stacked}",
            )
            channel.end = End(CauseKind.UNKNOWN, "neither message nor stack was printed")
            return Verdict(Status.STUCK, "neither message nor stack was printed")
        held = self._vnode_or_buf_lock(text, wait.wmesg)
        if held is not None:
            self._wait_for(node, held[0], Certainty.CATALOGUED, f"{wait.said}; {held[1]}")
            return Verdict(Status.STUCK, "waits for a vnode lock")
        row, why = self._row(wait, text)
        idle = row is not None and row.sleep_class is SleepClass.IDLE
        if row is None or (idle and self._is_no_service(thread, text)):
            channel = self._channel_node(text, wait)
            self.join(node, channel, EdgeKind.WAITS_FOR, wait.certainty, wait.said)
            channel.end = channel.end or End(
                CauseKind.UNKNOWN, f"{channel.label}: no known server", "not in the catalogue"
            )
            return Verdict(Status.STUCK, "not in the catalogue")
        if row.resolver in ("buf", "bio") and row.sleep_class is SleepClass.WORK:
            return self._buf(thread, text, node, wait, row)
        return self._generic(thread, text, node, wait, row, why)

    def _is_no_service(self, thread: Thread, text: TextThread) -> bool:
        """A process in state D, which no signal wakes: services without work are the kernel's."""
        state = text.raw_state
        return state.startswith("D") and "L" not in state and not self.is_kernel_thread(thread)

    def _wait(self, text: TextThread) -> Optional[_Wait]:
        if text.wmesg:
            at = f" at {text.wchan:#x}" if text.wchan else ""
            said = f'{text.listed or text.stacked}: "{text.wmesg}"{at}'
            return _Wait(text.wmesg, Certainty.PROVEN, said)
        for frame in text.frames or ():
            wmesg = _by_frame(frame)
            if wmesg is not None:
                return _Wait(wmesg, Certainty.GUESSED, f"{text.stacked}: in {frame}()")
        if text.frames:
            inner = _beneath(text.frames)
            if inner is not None:
                return _Wait(
                    f"{inner}()", Certainty.GUESSED, f"{text.stacked}: sleeps in {inner}()"
                )
        return None

    def _row(self, wait: _Wait, text: TextThread) -> Tuple[Optional[Row], str]:
        """The catalogue's row: of several for a message, that of a function on the stack."""
        for wmesg in self._messages(wait.wmesg, text):
            for row in self.catalogue.named(wmesg):
                for frame in text.frames or ():
                    if frame in _functions(row):
                        return row, f"message, called in {frame}()"
        return match(self.catalogue, wait.wmesg, text.wmesg_cut, self.kernel.osreldate)

    def _messages(self, wmesg: str, text: TextThread) -> List[str]:
        if not text.wmesg_cut or wmesg != text.wmesg:
            return [wmesg]
        known = self._completed.get(wmesg)
        if known is None:
            known = self._completed[wmesg] = [wmesg, *_begun(self.catalogue, wmesg.lstrip("*"))]
        return known

    def _channel_node(self, text: TextThread, wait: _Wait) -> Node:
        if text.wchan:
            label = f'"{wait.wmesg}" at {text.wchan:#x}'
            return self.node(NodeKind.CHANNEL, f"{text.wchan:#x}:{wait.wmesg}", label, text.wchan)
        # Without an address a message is no meeting point: each sleeper has its own.
        return self.node(NodeKind.CHANNEL, f"{wait.wmesg}:{id(text)}", f'"{wait.wmesg}"')

    def _generic(
        self, thread: Thread, text: TextThread, node: Node, wait: _Wait, row: Row, why: str
    ) -> Verdict:
        if row.resolver in _MEMORY:
            target = self._memory()
        else:
            target = self._channel_node(text, wait)
        self.join(node, target, EdgeKind.WAITS_FOR, wait.certainty, wait.said)
        # Text tells no start of a retry: this may be the first look or the thousandth.
        end, verdict = told_by(row, wait.wmesg, why, fresh=True)
        servers = self._servers(thread, row) if served(row) else []
        if servers:
            self.served_by(target, servers, f"by {why}: {row.woken_by}")
            return Verdict(Status.STUCK, row.function, row)
        if served(row) and row.sleep_class is SleepClass.WORK:
            idle = [t for t in self.named(row.server) if t.tid != thread.tid]
            said = f"whom nothing shows to be at work ({idle[0].label})" if idle else "not printed"
            end = end._replace(summary=f"{end.summary}, {said}")
        target.end = target.end or end
        return verdict

    def _servers(self, thread: Thread, row: Row) -> List[Thread]:
        """The threads a row names that are not idle themselves: an idle one serves nobody."""
        key = row.source, row.number
        busy = self._busy.get(key)
        if busy is None:
            named = self.named(row.server) if row.server else []
            busy = self._busy[key] = [each for each in named if not self._idles(each)]
        return [each for each in busy if each.tid != thread.tid]

    def _idles(self, thread: Thread) -> bool:
        """The thread sleeps where a service waits for work to come."""
        text = self.texts[thread.tid]
        wait = self._wait(text) if thread.state == "sleeping" else None
        row = self._row(wait, text)[0] if wait is not None else None
        return row is not None and row.sleep_class is SleepClass.IDLE

    def _memory(self) -> Node:
        free = [d.counts["free"] for d in self.capture.domains.values() if "free" in d.counts]
        number = sum(free) if free else self.capture.counters.get("v_free_count")
        least = self.capture.counters.get("v_free_min")
        label = "free pages"
        if number is not None:
            label += f" ({number} free" + (f", the minimum is {least})" if least else ")")
        return self.node(NodeKind.MEMORY, "free", label)

    # Buffers and devices

    def _buf(self, thread: Thread, text: TextThread, node: Node, wait: _Wait, row: Row) -> Verdict:
        """Waits for the I/O of a buffer: to the device, where a line names it."""
        target = self._channel_node(text, wait)
        buf = self.capture.bufs.get(text.wchan or 0)
        if buf is not None:
            target = self.node(
                NodeKind.BUF, f"{buf.address:#x}", f"buf {buf.address:#x}", buf.address
            )
        self.join(node, target, EdgeKind.WAITS_FOR, wait.certainty, wait.said)
        device, certainty, said = self._device(text, buf)
        pacer = self._pacer
        if pacer is not None:
            # Which bios are in its queue is in memory alone; those it has passed on are few.
            said = f"{self.texts[pacer.tid].listed}: GEOM is pacing, I/O goes through g_down"
            self.join(target, self.thread(pacer), EdgeKind.SERVED_BY, Certainty.GUESSED, said)
        elif device:
            self.join(target, self._provider(device), EdgeKind.SERVED_BY, certainty, said)
        elif target.end is None:
            target.end = End(
                CauseKind.UNKNOWN,
                f"{target.label}: its I/O has not come back, from which device is not printed",
                wait.said,
            )
        return Verdict(Status.STUCK, "waits for the I/O of a buffer", row)

    def _device(self, text: TextThread, buf: Optional[TextBuf]) -> Tuple[str, Certainty, str]:
        """The device of a buffer: that of its vnode, or of a vnode that the thread has locked."""
        if buf is not None and (buf.vnode or buf.bufobj) is not None:
            vnode = self._vnode_of(buf)
            if vnode is not None and vnode.device:
                return (
                    vnode.device,
                    Certainty.PROVEN,
                    f"{buf.source}: b_vp; {vnode.source}: its device",
                )
        mine = self._devices.get(text.tid, []) if text.tid is not None else []
        names = sorted({vnode.device for vnode in mine})
        if len(names) == 1:
            said = f"{mine[0].source}: the vnode it holds locked is there"
            return names[0], Certainty.GUESSED, said
        return "", Certainty.GUESSED, ""

    def _vnode_of(self, buf: TextBuf) -> Optional[TextVnode]:
        """The printed vnode that a buf is of: b_vp, or the one its b_bufobj lies in."""
        if buf.vnode is not None:
            return self.capture.vnodes.get(buf.vnode)
        if buf.bufobj is None:
            return None
        at = bisect_left(self._vnodes, buf.bufobj) - 1
        if at < 0 or buf.bufobj - self._vnodes[at] >= _INSIDE:
            return None
        return self.capture.vnodes[self._vnodes[at]]

    def _provider(self, name: str) -> Node:
        made = self.node(NodeKind.PROVIDER, name, name)
        if made.end is None:
            mounts = [m.on for m in self.capture.mounts if m.source in (name, f"/dev/{name}")]
            on = f" ({', '.join(mounts)})" if mounts else ""
            made.end = End(
                CauseKind.DEVICE,
                f"{name}{on} has not returned what is waited for",
                "by the buffers",
            )
        return made


def match(catalogue: Catalogue, wmesg: str, cut: bool, osreldate: int) -> Tuple[Optional[Row], str]:
    """The row of a message that text shows; of a cut one, the row of the only message it begins."""

    def untold(spec: Spec) -> Optional[bool]:
        return None

    row, why = catalogue.match(wmesg, None, untold, osreldate)
    if (row is not None and "*" not in row.wmesg) or not cut:
        return row, why
    found = _begun(catalogue, wmesg.lstrip("*"))
    if len(found) == 1:
        row, why = catalogue.match(found[0], None, untold, osreldate)
        return row, f'{why}; "{wmesg}" taken for "{found[0]}"'
    rows = [catalogue.match(full, None, untold, osreldate)[0] for full in found]
    classes = {each.sleep_class for each in rows if each is not None}
    if len(classes) == 1 and rows[0] is not None:
        return rows[0], f'"{wmesg}" begins {count(len(found), "message")} of one kind'
    return row, why


def _begun(catalogue: Catalogue, start: str) -> List[str]:
    """The catalogue's messages that begin with what is left of a cut one."""
    return sorted(
        {
            full
            for row in catalogue.rows
            for full in row.wmesg
            if full.startswith(start) and full != "*"
        }
    )


@functools.lru_cache(maxsize=4096)
def _functions(row: Row) -> FrozenSet[str]:
    """The names of functions that a row says its sleepers are in."""
    return frozenset(re.findall(r"[A-Za-z_]\w*", row.function.split("(")[0]))


@functools.lru_cache(maxsize=1)
def _frames() -> Tuple[Dict[str, str], List[Tuple[str, str]]]:
    """frames.yaml: the message of a function, and of functions that begin so."""
    loaded = load(_FRAMES, "the stacks")
    whole: Dict[str, str] = {}
    begun: List[Tuple[str, str]] = []
    for entry in loaded:
        for name in entry["functions"]:
            if name.endswith("*"):
                begun.append((name[:-1], entry["wmesg"]))
            else:
                whole[name] = entry["wmesg"]
    return whole, begun


def _by_frame(function: str) -> Optional[str]:
    whole, begun = _frames()
    found = whole.get(function)
    if found is not None:
        return found
    return next((wmesg for start, wmesg in begun if function.startswith(start)), None)


def _beneath(frames: Sequence[str]) -> Optional[str]:
    """The first function that does more than the sleeping itself."""
    for frame in frames:
        if not frame.startswith(
            ("sched_", "mi_switch", "sleepq_", "_sleep", "msleep", "_cv_", "turnstile_")
        ):
            return frame
    return None
