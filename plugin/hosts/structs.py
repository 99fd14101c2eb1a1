"""`wchan structs ...`: layouts without a dump; structs.yaml made and checked."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from typing import TYPE_CHECKING, Callable, Dict, List, Sequence, TextIO

from plugin.errors import EXIT_FAILED, EXIT_OK, LayoutError, WchanError
from plugin.findings import Findings
from plugin.hosts.arguments import Parser
from plugin.render import json as as_json
from plugin.render import text as as_text
from plugin.render.report import Report
from plugin.structs.layout import LayoutSource
from plugin.structs.yamlfile import SHIPPED, KernelData, StructsFile, read_kernel

if TYPE_CHECKING:
    from plugin.structs.making.tool import Difference
from plugin.render.structs import list_structs, show

EXAMPLE = (
    "wchan structs show bio --kernel 14.2-amd64\n"
    "wchan structs generate /usr/lib/debug/boot/kernel/kernel.debug -o vendor.yaml\n"
    "wchan structs check /boot/kernel/kernel"
)


def shell_parser() -> argparse.ArgumentParser:
    """The parser of `wchan structs ...`."""
    parser = Parser(
        prog="wchan structs",
        description="The layouts of kernel structs: list, show, compare them, make and check "
        "structs.yaml.",
        epilog="examples:\n  " + EXAMPLE.replace("\n", "\n  "),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    def action(name: str, help_: str) -> argparse.ArgumentParser:
        made = actions.add_parser(name, help=help_, description=help_)
        made.add_argument("--json", action="store_true", help="as JSON (schema wchan/1)")
        made.add_argument("--structs", metavar="FILE", help="another structs.yaml")
        return made

    listing = action("list", "the kernels of structs.yaml, or the structs of one")
    listing.add_argument("--kernel", metavar="NAME", help="a kernel of structs.yaml, or its file")
    show = action("show", "the members of structs")
    show.add_argument("struct", nargs="+", metavar="STRUCT")
    show.add_argument(
        "--kernel", metavar="NAME", required=True, help="a kernel of structs.yaml, or its file"
    )
    made = action("generate", "a structs.yaml for a kernel, out of its DWARF or CTF")
    made.add_argument("file", metavar="KERNEL", help="the kernel, or its debug file")
    made.add_argument("-o", "--output", metavar="FILE", help="write here, not to the terminal")
    made.add_argument("--into", metavar="FILE", help="add the kernel to this structs.yaml")
    made.add_argument("--name", help="VERSION-ARCH[-debug|-up]; else from the kernel's own version")
    made.add_argument("--osreldate", type=int, default=0, help="__FreeBSD_version")
    made.add_argument("--from", dest="kind", choices=("dwarf", "ctf"), help="only from this")
    made.add_argument("--struct", action="append", default=[], help="only this one (repeatable)")
    added = action("add", "bring a kernel into the shipped structs.yaml, out of its DWARF or CTF")
    added.add_argument("file", metavar="KERNEL", help="the kernel, or its debug file")
    added.add_argument("--into", metavar="FILE", help="another structs.yaml than the shipped one")
    added.add_argument(
        "--name", help="VERSION-ARCH[-debug|-up]; else from the kernel's own version"
    )
    added.add_argument("--osreldate", type=int, default=0, help="__FreeBSD_version")
    check = action("check", "a kernel's DWARF and CTF against structs.yaml, and each other")
    check.add_argument(
        "file", metavar="KERNEL|DIR", help="a kernel, or layout JSON: a folder or a tar archive"
    )
    check.add_argument("--kernel", metavar="NAME", help="the kernel of structs.yaml to hold it to")
    diff = action("diff", "the differences between two kernels")
    diff.add_argument("left", metavar="KERNEL", help="a kernel of structs.yaml, or its file")
    diff.add_argument("right", metavar="KERNEL")
    diff.add_argument("struct", nargs="*", metavar="STRUCT")
    imported = action("import", "write structs.yaml from layout JSON")
    imported.add_argument(
        "directory",
        metavar="DIR",
        help="a folder, or a tar archive of one, with layouts/, consts/, symbols/, kernels.json",
    )
    imported.add_argument(
        "-o", "--output", metavar="FILE", help="default: the shipped structs.yaml"
    )
    return parser


def main(argv: Sequence[str]) -> int:
    """Run `wchan structs ...`; returns the exit status."""
    return run_shell(shell_parser().parse_args(list(argv)), sys.stdout)


def run_shell(args: argparse.Namespace, out: TextIO) -> int:
    """Run one parsed `wchan structs` command; 0, or 1 where a check or diff found something."""
    return _ACTIONS[args.action](args, out)


def _write(args: argparse.Namespace, report: Report, out: TextIO) -> None:
    if args.json:
        out.write(as_json.render("structs", None, report, Findings()))
    else:
        width = shutil.get_terminal_size((100, 24)).columns
        out.write(as_text.render(report, Findings(), width=width, limit=None, verbose=True))


def _list(args: argparse.Namespace, out: TextIO) -> int:
    from plugin.structs.making.tool import known_names, named_source

    if args.kernel is not None:
        source = named_source(args.kernel, args.structs)
        report = Report({"layouts": source.name, "structs": []})
        names = known_names(source)
        list_structs(report, names, source.struct)
    else:
        file = StructsFile(args.structs)
        rows = []
        kernels = []
        for row in file.rows:
            dates = str(row.first) if row.first == row.last else f"{row.first}-{row.last}"
            options = " ".join(sorted(row.options - {"SMP"}))
            rows.append((row.name, dates, options, row.vendor or "", row.source))
            kernels.append({**row._asdict(), "options": sorted(row.options)})
        report = Report({"kernels": kernels})
        report.table(("kernel", "osreldate", "options", "vendor", "from"), rows, limit=False)
    _write(args, report, out)
    return EXIT_OK


def _show_shell(args: argparse.Namespace, out: TextIO) -> int:
    from plugin.structs.making.tool import named_source

    source = named_source(args.kernel, args.structs)
    found = []
    for name in args.struct:
        layout = source.struct(name)
        if layout is None:
            raise LayoutError(f"no struct {name} in {args.kernel}")
        found.append((name, layout))
    _write(args, show(found, source.name), out)
    return EXIT_OK


def _generate(args: argparse.Namespace, out: TextIO) -> int:
    from plugin.structs.making.tool import generate

    made = generate(
        args.file,
        name=args.name,
        osreldate=args.osreldate,
        kind=args.kind,
        only=args.struct,
        into=args.into,
    )
    target = args.output or args.into
    if target is None:
        out.write(made.text)
    else:
        _replace(target, made.text)
    said = f"{made.row.name} ({made.row.first}): {made.structs} structs out of {made.source}"
    if made.missing:
        said += f"; not described there: {', '.join(made.missing)}"
    sys.stderr.write(said + "\n")
    return EXIT_OK


def _add(args: argparse.Namespace, out: TextIO) -> int:
    from plugin.structs.making.facts import write_added
    from plugin.structs.making.tool import generate

    into = args.into or args.structs or SHIPPED
    made = generate(args.file, name=args.name, osreldate=args.osreldate, into=into)
    _replace(into, made.text)
    out.write(
        f"{into}: {made.row.name} ({made.row.first}), {made.structs} structs out of its "
        f"{made.source}\n"
    )
    if made.missing:
        out.write(f"Not described there: {', '.join(made.missing)}.\n")
    # what the file is made from lies with the tests: so that it can be made again
    facts = os.path.join(os.path.dirname(os.path.abspath(into)), "tests", "facts")
    if os.path.isdir(facts):
        out.write(f"{write_added(facts, made.made)}: what it is made from\n")
    return EXIT_OK


def _replace(path: str, text: str) -> None:
    """Write a file at once or not at all."""
    temporary = None
    try:
        directory = os.path.dirname(os.path.abspath(path))
        handle, temporary = tempfile.mkstemp(dir=directory, prefix=".structs-")
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
        raise WchanError(f"cannot write {path}: {error.strerror}") from None


def _check(args: argparse.Namespace, out: TextIO) -> int:
    report = Report({"compared": [], "differences": []})
    if os.path.isdir(args.file) or _is_archive(args.file):
        _check_folder(args, report)
    else:
        _check_kernel(args, report)
    _write(args, report, out)
    return EXIT_FAILED if report.data["differences"] else EXIT_OK


def _is_archive(path: str) -> bool:
    return os.path.basename(path).endswith((".tar", ".tar.gz", ".tar.xz"))


def _check_kernel(args: argparse.Namespace, report: Report) -> None:
    from plugin.structs.making.tool import KernelFile, near_yaml

    kernel = KernelFile(args.file)
    yaml = near_yaml(kernel, kernel.osreldate, args.kernel, args.structs)
    sources: List[LayoutSource] = [yaml]
    for kind in ("dwarf", "ctf"):
        try:
            sources.append(kernel.source(kind))
        except LayoutError as error:
            report.text(str(error))
    if len(sources) == 1:
        raise LayoutError(f"{args.file} has neither DWARF nor CTF to check structs.yaml with")
    for i, left in enumerate(sources):
        for right in sources[i + 1 :]:
            _compared(report, left, right, yaml.names())


def _check_folder(args: argparse.Namespace, report: Report) -> None:
    from plugin.structs.making.facts import read_facts
    from plugin.structs.making.tool import Difference

    file = StructsFile(args.structs)
    for source in read_facts(args.file, file.rows).sources:
        yaml = read_kernel(file, f"yaml:{source.row.name}", file.row(source.row.name), {})
        given = KernelData(source.row.name, source.structs, source.constants, {}, {}, {}, {})
        _compared(report, yaml, given, sorted({*yaml.names(), *given.names()}), strict=True)
        for name in sorted({*yaml.constants, *given.constants}):
            mine, theirs = yaml.constants.get(name), given.constants.get(name)
            if mine != theirs:
                shown = Difference("", name, str(mine), str(theirs))
                _differs(report, yaml.name, given.name, [shown])


def _compared(
    report: Report,
    left: LayoutSource,
    right: LayoutSource,
    names: Sequence[str],
    strict: bool = False,
) -> None:
    from plugin.structs.making.tool import Difference, compare_sources

    both, differences = compare_sources(left, right, names)
    if strict:
        for name in names:
            if (left.struct(name) is None) != (right.struct(name) is None):
                missing = "" if left.struct(name) is None else "known"
                differences.append(Difference(name, "", missing, "known" if not missing else ""))
    report.data["compared"].append({"left": left.name, "right": right.name, "structs": both})
    report.text(
        f"{left.name} and {right.name}: {both} structs that both know, "
        f"{len(differences)} differences."
    )
    _differs(report, left.name, right.name, differences)


def _differs(report: Report, left: str, right: str, differences: Sequence[Difference]) -> None:
    if differences:
        rows = [(f"{d.struct}.{d.member}".strip("."), d.left, d.right) for d in differences]
        report.table(("what", left, right), rows, limit=False)
        report.data["differences"] += [
            {
                "struct": d.struct,
                "member": d.member,
                "values": [{"in": left, "is": d.left}, {"in": right, "is": d.right}],
            }
            for d in differences
        ]


def _diff(args: argparse.Namespace, out: TextIO) -> int:
    from plugin.structs.making.tool import known_names, named_source

    left = named_source(args.left, args.structs)
    right = named_source(args.right, args.structs)
    names = args.struct or known_names(left, right)
    report = Report({"compared": [], "differences": []})
    for name in args.struct:
        for source, word in ((left, args.left), (right, args.right)):
            if source.struct(name) is None:
                raise LayoutError(f"no struct {name} in {word}")
    _compared(report, left, right, names, strict=not args.struct)
    _write(args, report, out)
    return EXIT_FAILED if report.data["differences"] else EXIT_OK


def _import(args: argparse.Namespace, out: TextIO) -> int:
    from plugin.structs.making.corpus import Corpus
    from plugin.structs.making.facts import read_facts

    path = args.output or args.structs or SHIPPED
    # what the facts do not say of versions and options is kept from the file replaced
    known = args.structs or (SHIPPED if os.path.exists(SHIPPED) else None)
    old = StructsFile(known) if known else None
    facts = read_facts(args.directory, old.rows if old else ())
    options = facts.options or (old.option_structs if old else {})
    _replace(path, Corpus(facts.sources, options).write())
    out.write(f"{path}: {len(facts.sources)} kernels\n")
    return EXIT_OK


_ACTIONS: Dict[str, Callable[[argparse.Namespace, TextIO], int]] = {
    "list": _list,
    "show": _show_shell,
    "generate": _generate,
    "add": _add,
    "check": _check,
    "diff": _diff,
    "import": _import,
}
