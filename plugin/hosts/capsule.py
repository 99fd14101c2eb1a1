"""``wchan capsule``: a core reduced to what the reports read, in a file that one can send.

Every command is run once in each of its forms while the memory that it reads is watched; that
memory, the kernel's names and the layouts go into the file, and then every command is asked
again, of the file: it says whether each answers the same.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shlex
import sys
from typing import Dict, Iterator, List, NamedTuple, Sequence, Tuple

import commands
from plugin.capsule.elf import symbol_file
from plugin.capsule.record import Recorder
from plugin.capsule.redact import RedactedTarget, Redactor
from plugin.capsule.write import Writer, memory_blocks, range_table
from plugin.captures.lines import looks_like_text
from plugin.captures.reader import read_one
from plugin.errors import EXIT_OK, EXIT_PARTIAL, UsageError, WchanError
from plugin.hosts.arguments import Parser
from plugin.hosts.inferior import KernelInferior
from plugin.hosts.progress import Progress
from plugin.hosts.redacting import redacted_lines, redacted_target
from plugin.hosts.runner import parser_for, run_command
from plugin.hosts.shell import core_options
from plugin.kernel import stack
from plugin.kernel.linker import modules
from plugin.kernel.module_file import module_file, module_types
from plugin.opening import open_core, open_target
from plugin.opening.find_kernel import open_dump
from plugin.opening.identify import identify
from plugin.opening.layouts import choose_layouts
from plugin.render.text import escape
from plugin.session import Kernel
from plugin.structs.kept import kept_section
from plugin.structs.yamlfile import KernelData
from plugin.targets import Target
from plugin.targets.core import CoreTarget
from plugin.vmcore.capsule import MAGIC, Capsule
from plugin.vmcore.file import DumpFile
from plugin.words import count
from plugin.written import write_file

#: one command line, and the digest of what it answered
Form = Tuple[str, ...]
#: structs that lie in arrays large enough to be packed by columns
_ARRAYS = ("vm_page", "thread")
#: columns of the text that is kept beside the JSON
_WIDTH = 100
#: of more memory than this only the plain form of each command is asked of the capsule again
_CHECKED_WHOLE = 512 << 20
#: how long a section of hang-report took
_SECONDS = re.compile(r'"seconds": [^,\n]*')


class Made(NamedTuple):
    """What became of it, for the sentence at the end."""

    size: int
    memory: int
    alike: int
    differing: List[str]


def main(argv: Sequence[str]) -> int:
    """``wchan capsule VMCORE -o FILE``, or without ``-o`` what is in a capsule."""
    parser = Parser(
        prog="wchan capsule",
        usage="wchan capsule [options] VMCORE -o FILE\n       wchan capsule FILE [--report NAME]",
        description="Reduce a dump to the memory that the reports read, for a bug report; "
        "or show what a capsule holds.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="A capsule opens wherever a dump does: wchan FILE, wchan lldb FILE, wchan gdb FILE.",
    )
    core_options(parser)
    parser.add_argument("-o", "--output", metavar="FILE", help="the capsule to write")
    parser.add_argument(
        "--redact",
        action="store_true",
        help="replace names of hosts, users, processes, paths and addresses, each consistently; "
        "of text too",
    )
    parser.add_argument("--report", metavar="NAME", help="show a report that lies in a capsule")
    parser.add_argument("vmcore", metavar="VMCORE", help="a FreeBSD kernel dump, or a capsule")
    args = parser.parse_args(list(argv))
    if args.output is None:
        return _show(args.vmcore, args.report)
    if args.report is not None:
        raise UsageError("wchan capsule: --report shows what is there, -o writes: one of them")
    if looks_like_text(args.vmcore):
        return _text(args)
    progress = Progress(sys.stderr)
    made = make(args, progress)
    progress.clear()
    print(_sentence(args, made))
    for line in made.differing[:10]:
        sys.stderr.write(f"wchan capsule: {line} answers otherwise than on the dump\n")
    return EXIT_PARTIAL if made.differing else EXIT_OK


def _text(args: argparse.Namespace) -> int:
    """Text needs no reducing; what it tells of people can be taken out of it."""
    if not args.redact:
        raise UsageError(f"wchan capsule: {args.vmcore} is text, small as it is; --redact it")
    lines = redacted_lines(args.vmcore, read_one([args.vmcore]))
    write_file(args.output, "".join(f"{line}\n" for line in lines), [args.vmcore])
    print(escape(f"{args.output}: {args.vmcore} without what tells of people."))
    return EXIT_OK


def _sentence(args: argparse.Namespace, made: Made) -> str:
    whole = max(1, os.stat(args.vmcore).st_size)
    return escape(
        f"{args.output}: {_bytes(made.size)} for the {_bytes(whole)} of {args.vmcore} "
        f"({_bytes(made.memory)} of memory, packed); {count(made.alike, 'report')} "
        "read from it as from the dump."
    )


def _bytes(size: int) -> str:
    for unit in ("bytes", "KB", "MB", "GB"):
        if size < 10_000 or unit == "GB":
            return f"{size} {unit}"
        size = -(-size // 1000)
    return ""


# Making one


def make(args: argparse.Namespace, progress: Progress) -> Made:
    """Write the capsule that ``args`` ask for.  WchanError where that cannot be."""
    target, notes = open_dump(
        args.vmcore, args.kernel, force=args.force, progress=progress.spooling
    )
    lines = list(forms())
    source: Target = target
    if args.redact:
        source, redactor = _redacted(target, lines, args, progress)
        notes = [redactor.text(note) for note in notes]
    recorder = Recorder(source, target.page_size)
    kernel = open_target(
        recorder, structs=args.structs, force=args.force, notes=notes, sysroot=args.sysroot
    )
    selection = choose_layouts(
        recorder, identify(recorder).osreldate, override=args.structs, force=args.force
    )
    answers: Dict[Form, str] = {}
    for number, line in enumerate(lines):
        progress(" ".join(line), number, len(lines))
        answers[line] = _answer(line, kernel)
    _debuggers(kernel)
    strides = [kernel.layouts.sizeof(name) for name in _ARRAYS if name in kernel.layouts]
    if args.redact:
        for chosen in selection.layouts.sources:
            # A file of layouts is named by its path.
            chosen.name = redactor.text(chosen.name)
    tables = selection.layouts.tables
    assert isinstance(tables, KernelData)
    writer = Writer(args.output, strides)
    try:
        told = _modules(kernel, writer, tables)
        layouts = kept_section(
            selection.layouts.sources,
            tables,
            kernel.layouts.asked,
            selection.variant,
            selection.notes,
        )
        writer.add("kernel", symbol_file(target.kernel, layouts))
        ranges = recorder.ranges()
        writer.add("ranges", range_table(ranges))
        writer.stream(
            "memory",
            memory_blocks(ranges, source.read, lambda d, t: progress("packing", d, t)),
        )
        faults = recorder.faults()
        reasons = sorted({why for _, _, why in faults})
        number_of = {why: number for number, why in enumerate(reasons)}
        writer.add_json(
            "faults",
            {"reasons": reasons, "at": [[s, e, number_of[why]] for s, e, why in faults]},
        )
        writer.add("message buffer", recorder.copy)
        writer.facts = {
            "arch": target.arch,
            "page_size": target.page_size,
            "format": target.memory.format,
            "truncated": target.truncated,
            "notes": notes,
            "modules": told,
            "release": kernel.release,
            "ident": kernel.ident,
        }
        alike, differing = _checked(writer, lines, answers, progress)
        size = writer.finish(target.files)
    except BaseException:
        writer.abandon()
        raise
    return Made(size, sum(end - start for start, end in ranges), alike, differing)


def _redacted(
    target: CoreTarget, lines: Sequence[Form], args: argparse.Namespace, progress: Progress
) -> Tuple[RedactedTarget, Redactor]:
    """The dump without what tells of people, which a first run of all commands has met."""
    kernel = open_target(target, structs=args.structs, force=args.force, sysroot=args.sysroot)

    def visit(kernel: Kernel) -> None:
        for number, line in enumerate(lines):
            progress("looking for names: " + " ".join(line), number, len(lines))
            _answer(line, kernel)
        _debuggers(kernel)

    return redacted_target(kernel, visit)


def forms() -> Iterator[Form]:
    """Every command line that reads something of its own: a loop over the registry.

    A command in its own FORMS, with each of its switches and choices, and as its examples show it.
    """
    for name in commands.NAMES:
        parser = parser_for(name)
        own = [action for action in parser._actions if action.dest not in _SHARED]
        seen = set()
        command = commands.load(name)
        found: List[Form] = [(name, *shlex.split(line)) for line in command.FORMS]
        for action in own:
            words = action.option_strings[:1]
            if action.choices is not None and not action.required:
                found += [(name, *words, str(choice)) for choice in action.choices]
            elif words and action.nargs == 0:
                found.append((name, *words))
        found += [tuple(shlex.split(line)) for line in command.EXAMPLE.splitlines()]
        for form in found:
            if form not in seen and not _writes(parser, form[1:]):
                seen.add(form)
                yield form


#: of every command, or run by programs of others
_SHARED = frozenset(("help", "json", "limit", "verbose", "deep", "output", "redact", "svg"))


def _writes(parser: argparse.ArgumentParser, words: Sequence[str]) -> bool:
    """True of a line that writes a file, or that its own command does not accept."""
    try:
        args = parser.parse_args(list(words))
    except WchanError:
        return True
    files = [action.dest for action in parser._actions if action.metavar == "FILE"]
    return any(getattr(args, dest, None) for dest in files)


def _answer(line: Form, kernel: Kernel) -> str:
    """What a command answers, as JSON, and how it ended: as a digest; its own time left out."""
    digest = hashlib.sha256()

    def take(text: str) -> None:
        digest.update(_SECONDS.sub("", text).encode("utf-8", "backslashreplace"))

    status = run_command(line[0], [*line[1:], "--json"], lambda: kernel, take, take)
    return f"{status} {digest.hexdigest()}"


def _debuggers(kernel: Kernel) -> None:
    """Read what lldb and gdb are served: every thread's registers, and its stack from there."""
    roles = kernel.architecture.debuggers.roles
    try:
        inferior = KernelInferior(kernel, {})
        for thread in inferior.threads():
            found = inferior.registers(thread.tid)
            start = [found.get(roles[role], 0) for role in ("pc", "fp", "sp")]
            for _ in stack.walk(kernel, *start):
                pass
    except WchanError:
        # Where the threads cannot be read the reports say so.
        pass


def _modules(kernel: Kernel, writer: Writer, tables: KernelData) -> List[Dict[str, object]]:
    """Keep the names and types of each module's file; what was found of it, as facts."""
    told: List[Dict[str, object]] = []
    try:
        files = modules(kernel)
    except WchanError:
        return told
    for number, file in enumerate(files):
        found = module_file(kernel, file)
        member = f"module {number}"
        if found.elf is not None:
            types = module_types(kernel, file)
            layouts = b""
            if types is not None and types.name != "ctf":
                layouts = kept_section([types], tables, kernel.layouts.asked)
            writer.add(member, symbol_file(found.elf, layouts))
        told.append(
            {
                "name": file.filename,
                "member": member if found.elf is not None else None,
                "path": found.elf.path if found.elf is not None else None,
                "why": found.why,
                "refused": found.refused,
            }
        )
    return told


def _checked(
    writer: Writer, lines: Sequence[Form], answers: Dict[Form, str], progress: Progress
) -> Tuple[int, List[str]]:
    """Ask the capsule everything, put the reports into it; (how many answer alike, the others)."""
    writer.index()
    kernel = open_core(writer.part)
    reports: Dict[str, str] = {}
    differing = []
    if writer.size("memory") > _CHECKED_WHOLE:
        # Unpacking all of a large machine's page array once more for each form takes hours.
        lines = [line for line in lines if len(line) == 1]
    for number, line in enumerate(lines):
        progress("reading " + " ".join(line), number, len(lines))
        if _answer(line, kernel) != answers[line]:
            differing.append(" ".join(line))
        if len(line) == 1:
            reports[f"{line[0]}.json"] = _report(line[0], ["--json"], kernel)
    reports["hang-report.txt"] = _report("hang-report", [], kernel)
    target = kernel.target
    assert isinstance(target, CoreTarget)
    target.memory.close()
    writer.more()
    for name, text in reports.items():
        writer.add(f"report {name}", text.encode("utf-8", "backslashreplace"))
    return len(lines) - len(differing), differing


def _report(name: str, words: List[str], kernel: Kernel) -> str:
    out: List[str] = []
    run_command(name, words, lambda: kernel, out.append, out.append, width=_WIDTH)
    return "".join(out)


# Showing one


def _show(path: str, report: str) -> int:
    file = DumpFile(path)
    if file.read(0, len(MAGIC)) != MAGIC:
        raise UsageError(f"wchan capsule: {path} is no capsule: -o FILE makes one of it")
    capsule = Capsule(file, path)
    names = [name[len("report ") :] for name in capsule.names if name.startswith("report ")]
    if report is not None:
        if report not in names:
            raise UsageError(f"wchan capsule: no report {report!r}; there are {', '.join(names)}")
        text = capsule.member(f"report {report}").decode("utf-8", "backslashreplace")
        print("\n".join(escape(line) for line in text.splitlines()))
        return EXIT_OK
    facts = capsule.facts
    print(
        escape(
            f"capsule version {capsule.version} of a {facts.get('format')}: FreeBSD "
            f"{facts.get('release')} {facts.get('ident')} {facts.get('arch')}"
        )
    )
    for name in capsule.names:
        packed = sum(block.packed for block in capsule.blocks(name))
        print(escape(f"  {name:24} {capsule.size(name):>12} bytes, {packed:>9} packed"))
    return EXIT_OK
