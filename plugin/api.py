"""wchan from Python: open a core, a capsule or text, walk what is in it, ask for the verdict.

    from plugin.api import open_machine

    machine = open_machine("vmcore.0")
    print(machine.why_stuck().verdict)
    for thread in machine.threads():
        print(thread.tid, thread.comm, thread.wmesg)

What stands in ``__all__`` keeps its meaning; docs/api.md shows it.  Everything else in wchan may
change between versions.
"""

from __future__ import annotations

import html
import json
from typing import Any, Dict, List, Optional, Sequence, TypeVar

import commands
from plugin.captures.lines import looks_like_text
from plugin.captures.machine import TextKernel
from plugin.captures.reader import read_one
from plugin.errors import WchanError
from plugin.findings import Finding
from plugin.hosts.runner import run_command
from plugin.kernel.bio import Bio, BioQueue, g_bioqs
from plugin.kernel.geom import Provider, mesh
from plugin.kernel.mount import Mount, mounts
from plugin.kernel.proc import Proc, Thread, processes, threads
from plugin.kernel.vm_page import Page, page_at
from plugin.kernel.vm_page_scan import Predicates, scan
from plugin.opening import open_core
from plugin.render.text import escape
from plugin.session import Kernel, View
from plugin.words import did_you_mean

__all__ = ["Answer", "Machine", "Rows", "Verdict", "WchanError", "open_machine"]

_SHOWN = 50


def open_machine(
    *files: str,
    kernel: Optional[str] = None,
    structs: Optional[str] = None,
    sysroot: Optional[str] = None,
    force: bool = False,
) -> Machine:
    """A core, a capsule, or the texts of one machine (DDB log, procstat, ...), told by content.

    ``kernel`` names the kernel file, which is else looked for beside the core; the others are as
    in the shell.  WchanError, in one line, where it cannot be opened.
    """
    if not files:
        raise WchanError("name a core, a capsule or text")
    if looks_like_text(files[0]):
        return Machine(TextKernel(read_one(files), files))
    if len(files) > 1:
        raise WchanError(f"{files[0]} is no text: one dump at a time")
    opened = open_core(files[0], kernel, force=force, structs=structs, sysroot=sysroot)
    return Machine(opened)


_T = TypeVar("_T")


class Rows(List[_T]):
    """A list of what a walk found, which a notebook shows as a table of ``columns``."""

    def __init__(self, found: Sequence[_T], columns: Sequence[str]) -> None:
        super().__init__(found)
        self.columns = tuple(columns)

    def _repr_html_(self) -> str:
        rows = [[_cell(getattr(row, name, None), name) for name in self.columns] for row in self]
        head = "".join(f"<th>{html.escape(name)}</th>" for name in self.columns)
        body = "".join(
            f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>"
            for row in rows[:_SHOWN]
        )
        more = f"<p>{len(self) - _SHOWN} more</p>" if len(self) > _SHOWN else ""
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}"


def _cell(value: object, name: str) -> str:
    if value is None:
        return ""
    if isinstance(value, int) and name in _ADDRESSES:
        return f"{value:#x}"
    return escape(str(value))


#: columns whose numbers are addresses
_ADDRESSES = frozenset(("address", "object", "phys_addr"))


class Machine:
    """One machine at one moment.

    ``kernel`` is the object that wchan's own walkers take: memory by ``kernel.read(address,
    size)``, symbols, layouts.
    """

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        kernel.start_command()

    @property
    def release(self) -> str:
        """As in uname -r."""
        return self.kernel.release

    @property
    def arch(self) -> str:
        """As in uname -p."""
        return self.kernel.arch

    @property
    def panic(self) -> Optional[str]:
        """The panic message, None where nothing panicked."""
        return self.kernel.panicstr

    @property
    def findings(self) -> List[Finding]:
        """What could not be read or did not agree so far: (what, address, detail)."""
        return list(self.kernel.warnings)

    @property
    def partial(self) -> bool:
        """True where something that was asked for could not be read."""
        return self.kernel.warnings.partial

    # Walks

    def processes(self) -> Rows[Proc]:
        """Every process, zombies too."""
        return Rows(processes(self._memory()), ("pid", "comm", "numthreads"))

    def threads(self) -> Rows[Thread]:
        """Every thread: state, what it waits for, since when."""
        kernel = self.kernel
        every = kernel.threads if isinstance(kernel, TextKernel) else threads(kernel)
        return Rows(every, ("tid", "pid", "label", "state", "wmesg", "age"))

    def queues(self) -> Rows[BioQueue]:
        """GEOM's queues of bios, each with its bios."""
        return Rows(g_bioqs(self._memory()), ("name", "length"))

    def bios(self) -> Rows[Bio]:
        """The bios in GEOM's queues."""
        found = [bio for queue in g_bioqs(self._memory()) for bio in queue.bios]
        return Rows(found, ("address", "bio_cmd", "bio_offset", "bio_length"))

    def providers(self) -> Rows[Provider]:
        """GEOM's providers."""
        found = list(mesh(self._memory()).providers.values())
        return Rows(found, ("name", "mediasize", "sectorsize", "access", "error"))

    def mounts(self) -> Rows[Mount]:
        """Mounted file systems."""
        return Rows(mounts(self._memory()), ("on", "source", "fstype"))

    def page(self, address: int) -> Page:
        """The struct vm_page at an address."""
        return page_at(self._memory(), address)

    def busy_pages(self, limit: int = 10_000) -> Rows[Page]:
        """Pages that are busied, at most ``limit`` of them."""
        found = scan(self._memory(), Predicates(busy="any"), keep=limit).pages
        return Rows(found, ("address", "object", "pindex", "phys_addr"))

    def locks(self) -> List[Dict[str, Any]]:
        """Contended locks, their owners and waiters, as ``klocks --json`` has them."""
        found: List[Dict[str, Any]] = self.ask("klocks").data["locks"]
        return found

    def struct(self, name: str, address: int) -> View:
        """A struct in memory: ``machine.struct("bio", address).bio_cmd``."""
        return self._memory().view(name, address)

    def _memory(self) -> Kernel:
        if isinstance(self.kernel, TextKernel):
            raise WchanError(f"{self.kernel.target.description} is text: it holds no memory")
        return self.kernel

    # Reports

    def ask(self, command: str, *arguments: str) -> Answer:
        """What a command answers: ``ask("vmstate", "--zones").data``; WchanError if it fails."""
        return Answer(command, self._run(command, *arguments, "--json"), self, arguments)

    def why_stuck(self, *arguments: str) -> Verdict:
        """Why the machine is stuck."""
        return Verdict("why-stuck", self._run("why-stuck", *arguments, "--json"), self, arguments)

    def text(self, command: str, *arguments: str, width: int = 100) -> str:
        """A command's report as a terminal shows it."""
        return self._run(command, *arguments, width=width)

    def _run(self, command: str, *arguments: str, width: int = 100) -> str:
        if command not in commands.NAMES:
            near = did_you_mean(command, commands.NAMES)
            raise WchanError(f"no command {command!r}{near}")
        out: List[str] = []
        errors: List[str] = []
        status = run_command(
            command, arguments, lambda: self.kernel, out.append, errors.append, width=width
        )
        if status == 1:
            raise WchanError("; ".join(errors) or f"{command} failed")
        return "".join(out)

    def __repr__(self) -> str:
        return f"<FreeBSD {self.release} {self.arch}: {self.kernel.target.description}>"

    def _repr_html_(self) -> str:
        return f"<b>{html.escape(repr(self)[1:-1])}</b>{self.why_stuck()._repr_html_()}"


class Answer:
    """A report: ``data`` as docs/schema has it, ``warnings``, ``partial``, ``kernel``."""

    def __init__(
        self, command: str, report: str, machine: Machine, arguments: Sequence[str]
    ) -> None:
        told = json.loads(report)
        self.command = command
        self.json: Dict[str, Any] = told
        self.data: Dict[str, Any] = told["data"]
        self.warnings: List[Dict[str, Any]] = told["warnings"]
        self.partial: bool = told["partial"]
        self._machine, self._arguments = machine, arguments

    @property
    def text(self) -> str:
        """The same as a terminal shows it."""
        return self._machine.text(self.command, *self._arguments)

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(self.text)}</pre>"


class Verdict(Answer):
    """why-stuck's answer."""

    @property
    def verdict(self) -> str:
        """The verdict in a few sentences."""
        found: str = self.data["verdict"]
        return found

    @property
    def causes(self) -> List[Dict[str, Any]]:
        """The root causes, the worst first: kind, summary, evidence, tids, since."""
        found: List[Dict[str, Any]] = self.data["causes"]
        return found

    @property
    def stuck(self) -> int:
        """How many threads are stuck."""
        found: int = self.data["threads"]["stuck"]
        return found
