"""A kernel as the inferior of a debugger: its threads, their names and registers.

The names are those LLVM's FreeBSD kernel process gives, so that scripts that
read one read the other: ``(pid N) comm[/tdname]``, and ``(crashed)`` or
``(on CPU n)`` behind it.
"""

from __future__ import annotations

from typing import Dict, List, Mapping, Optional, Sequence, Tuple

from plugin.errors import LayoutError, MemoryFault, WchanError
from plugin.hosts.rsp import Thread
from plugin.kernel import proc, stack
from plugin.kernel.linker import LinkerFile, linker_files
from plugin.session import Kernel


class KernelInferior:
    """What the remote-protocol server shows of one dump (rsp.Inferior)."""

    def __init__(
        self,
        kernel: Kernel,
        session: Mapping[str, object],
        code: Sequence[Tuple[int, int]] = (),
    ) -> None:
        """``code`` are the [start, end) of the kernel's own code, as its file says."""
        self._kernel = kernel
        self._session = session
        self.arch = kernel.arch
        self.page_size = kernel.page_size
        self._threads: List[Thread] = []
        self._by_tid: Dict[int, proc.Thread] = {}
        self._registers: Dict[int, Dict[str, int]] = {}
        self._stopped: Optional[int] = None
        modules = [(f.base, f.base + f.size) for f in _modules(kernel)]
        self._text = list(code)
        self._code = [*code, *modules]

    def threads(self) -> Sequence[Thread]:
        if not self._threads:
            for thread in proc.threads(self._kernel):
                # The same tid twice is a corrupt dump; a debugger wants one thread each.
                if thread.tid > 0 and thread.tid not in self._by_tid:
                    self._by_tid[thread.tid] = thread
                    self._threads.append(Thread(thread.tid, self._name(thread)))
            if not self._threads:
                raise WchanError("no thread can be read from this dump")
        return self._threads

    @property
    def stopped_tid(self) -> int:
        """The thread that dumped, else one that runs, else the first."""
        if self._stopped is None:
            listed = [self._by_tid[t.tid] for t in self.threads()]
            dumped = self._dumped()
            best = next((t for t in listed if t.tid == dumped), None)
            best = best or next((t for t in listed if t.state == "running"), listed[0])
            self._stopped = best.tid
        return self._stopped

    @property
    def stop_reason(self) -> str:
        panic = self._kernel.panicstr
        return f"panic: {panic}" if panic else "kernel dump"

    def registers(self, tid: int) -> Mapping[str, int]:
        known = self._registers.get(tid)
        if known is None:
            self.threads()
            known = self._registers[tid] = thread_registers(self._kernel, self._by_tid[tid])
        return known

    def read(self, address: int, size: int) -> bytes:
        data = self._kernel.read(address, size)
        if self._kernel.target.wire is None and _within(self._text, address) and not any(data):
            # A dump reduced for privacy or size has no code.  Debuggers would decode
            # the zeros and unwind by them; without bytes they go by frame pointers.
            page = address & ~(self.page_size - 1)
            if not any(self._kernel.read(page, self.page_size)):
                raise MemoryFault(address, "the dump has no code here")
        return data

    def present(self, address: int) -> bool:
        if self._kernel.target.wire is not None:
            # Not worth a packet for each page that a debugger may come to.
            return self._kernel.is_kernel_address(address)
        try:
            return bool(self._kernel.read(address, 1))
        except MemoryFault:
            return False

    def code(self, address: int) -> bool:
        return _within(self._code, address)

    @property
    def still(self) -> str:
        """Why it does not run, for the user who tells it to."""
        if self._kernel.target.wire is not None:
            return "The machine stays stopped: it is only read."
        return "This is a dump: it cannot run."

    def session(self) -> Mapping[str, object]:
        return self._session

    def _dumped(self) -> Optional[int]:
        try:
            return self._kernel.global_value("dumptid", 0) or None
        except MemoryFault:
            return None

    def _panicked(self) -> bool:
        """False only where the dump proves that nothing did: a stuck machine, dumped by hand."""
        try:
            return self._kernel.global_value("panicstr", 1) != 0
        except MemoryFault:
            return True

    def _name(self, thread: proc.Thread) -> str:
        name = f"(pid {thread.pid}) {thread.label}"
        if thread.tid == self._dumped() and self._panicked():
            return name + " (crashed)"
        return name if thread.cpu is None else f"{name} (on CPU {thread.cpu})"


def _within(ranges: Sequence[Tuple[int, int]], address: int) -> bool:
    return any(start <= address < end for start, end in ranges)


def _modules(kernel: Kernel) -> Sequence[LinkerFile]:
    try:
        return linker_files(kernel)[1:]
    except WchanError:
        return ()


def thread_registers(kernel: Kernel, thread: proc.Thread) -> Dict[str, int]:
    """The registers the kernel saved of a thread, by their machine names; {} if none.

    dumppcb for the thread that dumped (sys/kern/kern_shutdown.c), stoppcbs for
    one on a stopped CPU (sys/kern/subr_smp.c), else td_pcb.
    """
    name = kernel.architecture.stacks.pc[0]
    for address in _pcbs(kernel, thread):
        try:
            found = stack.saved_registers(kernel, "pcb", address)
        except (MemoryFault, LayoutError):
            continue
        pc = found.get(name, 0)
        if pc and kernel.is_kernel_address(pc):
            return found
    return {}


def _pcbs(kernel: Kernel, thread: proc.Thread) -> List[int]:
    found: List[int] = []
    try:
        dumppcb = kernel.symbol("dumppcb")
        if dumppcb is not None and kernel.global_value("dumptid", 0) == thread.tid:
            found.append(dumppcb.address)
        if thread.state == "running" and thread.cpu is not None:
            found.append(stack.stoppcb_address(kernel, thread.cpu) or 0)
    except (MemoryFault, LayoutError):
        pass
    found.append(thread.pcb)
    return [address for address in found if address]
