"""``wchan known``: the diagnosed public bugs that wchan compares a machine with."""

from __future__ import annotations

import json
import sys
import textwrap
from typing import List, Sequence

from plugin.errors import EXIT_FAILED, EXIT_OK
from plugin.hosts.arguments import Parser
from plugin.waits.known import Known, shipped


def main(argv: List[str]) -> int:
    """``known list``, ``known show ID``, ``known search WORD...``; returns the exit status."""
    parser = Parser(prog="wchan known", description="Known hangs and panics, diagnosed in public.")
    parser.add_argument("--known", metavar="FILE", help="entries of your own, before the shipped")
    parser.add_argument("--json", action="store_true", help="as JSON")
    which = parser.add_subparsers(dest="what", metavar="list|show|search", required=True)
    which.add_parser("list", help="every entry, a line each")
    which.add_parser("show", help="one entry, whole").add_argument("id")
    searching = which.add_parser("search", help="entries that hold all these words")
    searching.add_argument("words", nargs="+")
    args = parser.parse_args(argv)
    entries = shipped(args.known)
    if args.what == "show":
        chosen = [entry for entry in entries if entry.id == args.id]
    elif args.what == "search":
        words = [word.lower() for word in args.words]
        chosen = [e for e in entries if all(word in _text(e) for word in words)]
    else:
        chosen = entries
    if not chosen:
        sys.stderr.write("wchan known: no such entry; wchan known list shows them\n")
        return EXIT_FAILED
    if args.json:
        print(json.dumps([entry._asdict() for entry in chosen], indent=1))
    elif args.what == "show":
        print("\n".join(_whole(chosen[0])))
    else:
        for entry in chosen:
            releases = ",".join(map(str, entry.releases)) or "?"
            print(f"{entry.id:32} {releases:12} {entry.title}")
    return EXIT_OK


def _text(entry: Known) -> str:
    return " ".join(str(value) for value in entry).lower()


def _whole(entry: Known) -> Sequence[str]:
    lines = [f"{entry.id}: {entry.title}"]
    for name, value in entry._asdict().items():
        if name in ("id", "title") or value in ("", (), False):
            continue
        if name == "threads":
            value = " | ".join(map(str, entry.threads))
        elif isinstance(value, tuple):
            value = ", ".join(map(str, value))
        lines += textwrap.wrap(
            f"{name}: {value}", 78, initial_indent="  ", subsequent_indent="    "
        )
    return lines
