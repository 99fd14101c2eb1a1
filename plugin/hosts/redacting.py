"""``--redact``: a kernel or text as it is, but for what tells of people and places."""

from __future__ import annotations

import os
import re
import secrets
import tempfile
from contextlib import suppress
from typing import Callable, Dict, Iterator, List, Sequence, Set, Tuple

from plugin.capsule.gather import gather, own_words
from plugin.capsule.redact import EVERYBODYS, Private, RedactedTarget, Redactor
from plugin.captures.lines import raw_lines
from plugin.captures.machine import TextKernel
from plugin.captures.model import Capture
from plugin.captures.reader import read_one
from plugin.errors import LayoutError, WchanError
from plugin.kernel.linker import modules
from plugin.kernel.module_file import ModuleSymbols, module_file
from plugin.session import Kernel, KernelFacts
from plugin.targets import Target
from plugin.vmcore.elf import SHF_ALLOC
from plugin.vmcore.memory import CarriedModule

_SALT = 32


def redacted(kernel: Kernel, visit: Callable[[Kernel], object]) -> Kernel:
    """The same kernel with its memory redacted.

    ``visit`` is run on it first as it is: what the walks meet of names and addresses is what
    is replaced, where it lies and wherever else it stands.
    """
    if isinstance(kernel, TextKernel):
        return redacted_text(kernel)
    target, redactor = redacted_target(kernel, visit)
    made = Kernel(target, kernel.layouts, redacted_facts(kernel.facts, redactor))
    made.modules = ModuleSymbols(made)
    made.progress = kernel.progress
    kernel.forget()
    return made


def redacted_target(
    kernel: Kernel, visit: Callable[[Kernel], object]
) -> Tuple[RedactedTarget, Redactor]:
    """A kernel's target redacted, and what redacts it."""
    redactor = Redactor(secrets.token_bytes(_SALT), own=own_words(kernel))
    private = Private(redactor)
    gather(kernel, private)
    kernel.forget()
    kernel.private = private
    try:
        visit(kernel)
    finally:
        kernel.private = None
    carried = _modules(kernel, redactor)
    return RedactedTarget(kernel.target, redactor, private, _image(kernel), carried), redactor


def redacted_facts(facts: KernelFacts, redactor: Redactor) -> KernelFacts:
    return KernelFacts(
        release=facts.release,
        osreldate=facts.osreldate,
        ident=facts.ident,
        version=redactor.text(facts.version),
        variant=facts.variant,
        page_size=facts.page_size,
        notes=[redactor.text(note) for note in facts.notes],
    )


def _modules(kernel: Kernel, redactor: Redactor) -> Dict[str, CarriedModule]:
    """The modules' files as found, where they lay redacted."""
    made = {}
    try:
        files = modules(kernel)
    except (LayoutError, WchanError):
        return {}
    for file in files:
        found = module_file(kernel, file)
        made[file.filename] = CarriedModule(
            found.elf.plain_path if found.elf is not None else None,
            redactor.path(found.elf.path) if found.elf is not None else "",
            redactor.text(found.why),
            [(redactor.path(path), redactor.text(why)) for path, why in found.refused],
        )
    return made


def _image(kernel: Kernel) -> List[Tuple[int, int]]:
    """[start, end) of the kernel and its modules, whose strings are the kernel's own."""
    found: List[Tuple[int, int]] = []
    target: Target = kernel.target
    image = getattr(target, "kernel", None) or getattr(getattr(target, "image", None), "elf", None)
    if image is not None:
        spans = [(s.addr, s.addr + s.size) for s in image.sections if s.flags & SHF_ALLOC]
        if spans:
            found.append((min(s for s, _ in spans), max(e for _, e in spans)))
    with suppress(WchanError):
        found += [(file.base, file.base + file.size) for file in modules(kernel)]
    return found


# Text


def redacted_text(kernel: TextKernel) -> TextKernel:
    """The same machine out of the same text, redacted before it is read again."""
    paths = list(kernel.target.files)
    if "-" in paths:
        raise WchanError("standard input is read once: save it to a file to have it redacted")
    with tempfile.TemporaryDirectory(prefix="wchan-") as folder:
        copies = []
        for number, path in enumerate(paths):
            place = os.path.join(folder, str(number))
            os.mkdir(place)
            copies.append(os.path.join(place, os.path.basename(path)))
            with open(copies[-1], "w", encoding="utf-8") as copy:
                copy.writelines(f"{line}\n" for line in redacted_lines(path, kernel.capture))
        return TextKernel(read_one(copies), paths)


def redacted_lines(path: str, capture: Capture) -> Iterator[str]:
    """The lines of a text without what tells of people; ``capture`` is what was read of it."""
    redactor = text_redactor(capture)
    for line in raw_lines(path):
        redactor.study(line)
    for user in _users(raw_lines(path)):
        redactor.learn(user)
    for line in raw_lines(path):
        yield _contextual(redactor, redactor.text(line))


def _users(lines: Iterator[str]) -> Iterator[str]:
    """Who stands in the column of users of ps -aux and top."""
    column = -1
    for line in lines:
        head = _USERS.match(line)
        if head is not None:
            column = line.split().index(head.group("column"))
            continue
        words = line.split()
        if column >= len(words):
            column = -1
        elif column >= 0 and words[column] not in EVERYBODYS:
            yield words[column]


#: the head of a listing that has a column of users
_USERS = re.compile(r"^\s*(?:PID\s+)?(?P<column>USER(?:NAME)?)\b.*\b(?:PID|THR|PRI|TIME)\b")


def text_redactor(capture: Capture) -> Redactor:
    """A redactor that knows the names that were read of a text."""
    own = {"kernel"}
    names: Set[str] = set()
    for thread in capture.everyone:
        ours = thread.kernel or thread.pid == 0
        (own if ours else names).update((thread.comm, thread.name))
        if thread.wmesg:
            own.add(thread.wmesg.lstrip("*"))
    own.update(mount.fstype for mount in capture.mounts)
    own.update(provider.name for provider in capture.providers.values())
    redactor = Redactor(secrets.token_bytes(_SALT), own=own | set(_WORDS))
    if capture.hostname:
        redactor.learn_host(capture.hostname)
    for name in names - own - {""}:
        redactor.learn(name)
    for mount in capture.mounts:
        if "/" in mount.source and not mount.source.startswith("/"):
            for part in mount.source.split("/")[1:]:
                redactor.learn(part)
    return redactor


#: where a process stands that is called like a word of the listing itself ("sleep")
_PLACES = re.compile(
    r"(?P<before>\(pid \d+, |Tracing command |^Process \d+ \(|^\s*\d+ +\d+ +\d+ +\d+ +\S+ .*  +"
    r"|\bpid \d+ \()(?P<name>[\w.+-]+)(?P<after>\)| pid|\s*$)"
)


def _contextual(redactor: Redactor, line: str) -> str:
    def replaced(match: re.Match[str]) -> str:
        name = match.group("name")
        if name not in _WORDS:
            return match.group(0)
        return match.group("before") + redactor.word(name) + match.group("after")

    return _PLACES.sub(replaced, line)


#: words of DDB's and other listings that a process may bear as its name too
_WORDS: Sequence[str] = (
    "sleep", "thread", "pid", "ps", "show", "mutex", "lock", "lockmgr", "sx", "rw", "rm", "spin",
    "exclusive", "shared", "blocked", "sleeping", "running", "on", "is", "CPU", "command", "cmd",
    "state", "wmesg", "wchan", "trace", "Tracing", "tid", "td", "panic", "vnode", "buf", "chain",
    "db", "kdb", "idle", "intr", "kernel", "at", "by", "count", "from", "frame", "object", "page",
    "queue", "mount", "class", "geom", "provider", "consumer", "name", "proc", "process", "version",
    "cpuid", "curthread", "none", "uid", "ppid", "pgrp", "stopped", "test", "time", "top", "type",
    "what", "who", "write", "read", "held", "waiting", "owner", "locked", "free", "used", "total",
)  # fmt: skip
