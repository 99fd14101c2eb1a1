"""Writes what the README and the manual say of each command, from what the commands say.

Run ``python docs/commands_listed.py`` in the repository's root after a change to a command's
HELP or arguments; tests/test_docs.py fails until that was done.  Each list stands between two
lines that name this script.
"""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[0] = str(REPOSITORY)  # docs/ itself is no place to import from

import commands  # noqa: E402
from plugin.hosts.shell import DEFAULT, SHELL, core_options  # noqa: E402

#: What stands before and after a list in a file of that kind.
MARKS = {".md": "<!-- {} -->\n", ".1": '.\\" {}\n'}
BEGIN, END = "{} of docs/commands_listed.py", "end of the {} of docs/commands_listed.py"


def listed() -> List[str]:
    """Every command, the one that needs no name first."""
    return sorted(commands.NAMES, key=lambda name: (name != DEFAULT, name))


def parser_of(name: str) -> argparse.ArgumentParser:
    """A command's own arguments, without those that every command has."""
    parser = argparse.ArgumentParser(prog=name, add_help=False)
    commands.load(name).add_arguments(parser)
    return parser


# One argument


def words(action: argparse.Action) -> Tuple[str, str]:
    """(the longest option or "", what stands for its values) of an argument."""
    option = max(action.option_strings, key=len, default="")
    shown: Any = action.metavar
    if shown is None and action.choices is not None:
        shown = "|".join(map(str, action.choices))
    if isinstance(shown, tuple):
        return option, " ".join(shown)
    value = str(shown or action.dest.upper())
    if action.nargs == 0:
        value = ""
    elif action.nargs in ("*", "+"):
        value += " ..."
    elif action.nargs == "?" and option:
        value = f"[{value}]"
    return option, value


def optional(action: argparse.Action) -> bool:
    return bool(action.option_strings) or action.nargs in ("?", "*")


# The README


def synopsis(name: str) -> str:
    """``klocks [ADDRESS | --all | --bufs]``: without what has a heading of its own in --help."""
    parser = parser_of(name)
    details = {
        action
        for group in parser._action_groups
        if group.title not in ("positional arguments", "options", "optional arguments")
        for action in group._group_actions
    }
    pieces: Dict[int, str] = {}
    for action in sorted(parser._actions, key=lambda one: bool(one.option_strings)):
        if action in details:
            continue
        together = [g for g in parser._mutually_exclusive_groups if action in g._group_actions]
        key = id(together[0] if together else action)
        text = " ".join(filter(None, words(action)))
        if key in pieces:
            pieces[key] = f"{pieces[key][:-1]} | {text}]"
        else:
            pieces[key] = f"[{text}]" if optional(action) else text
    return " ".join((name, *pieces.values()))


def rows() -> Iterator[str]:
    yield "| command | answers |"
    yield "|---|---|"
    for name in listed():
        says = re.sub(r"--\w[\w-]*|\b\w+_\w+\b", r"`\g<0>`", commands.load(name).HELP)
        yield "| `{}` | {} |".format(synopsis(name).replace("|", "\\|"), says.replace("|", "\\|"))


# The manual


def mdoc(text: str) -> Iterator[str]:
    """A sentence as lines of mdoc(7)."""
    sentence = (text[0].upper() + text[1:]).rstrip(".").replace("\\", "\\e") + "."
    for piece in re.split(r"(?<!\S)(FreeBSD)(?!\S)", sentence):
        for line in textwrap.wrap(piece.strip(), 78, break_on_hyphens=False):
            yield ".Fx" if line == "FreeBSD" else "\\&" + line if line[0] in ".'" else line


def argument(action: argparse.Action) -> str:
    flags = " , ".join(f"Fl {option[1:]}" for option in action.option_strings)
    value = words(action)[1].replace("|", " | ")
    if value.startswith("["):
        value = f"Op Ar {value[1:-1]}"
    elif value:
        value = f"Ar {value}"
    return " ".join(filter(None, (flags, value)))


def options(of: List[argparse.Action]) -> Iterator[str]:
    if of:
        yield ".Bl -tag -width indent -compact"
        for action in of:
            yield f".It {argument(action)}"
            yield from mdoc(action.help or action.dest)
        yield ".El"


def items() -> Iterator[str]:
    for name in listed():
        yield f".It Cm {name}"
        yield from mdoc(commands.load(name).HELP)
        yield from options(parser_of(name)._actions)


def shell() -> Iterator[str]:
    for name, (_, _, says) in SHELL.items():
        yield f".It Cm {name}"
        yield from mdoc(says)


def opening() -> Iterator[str]:
    parser = argparse.ArgumentParser(add_help=False)
    core_options(parser)
    for action in parser._actions:
        yield f".It {argument(action)}"
        yield from mdoc(action.help or "")


#: File: its lists, by name.
LISTS = {
    "README.md": {"commands": rows},
    "docs/wchan.1": {"options": opening, "commands": items, "subcommands": shell},
}


def page(file: str, text: str) -> str:
    """The text of a file with its lists made anew; ValueError where their marks are gone."""
    mark = MARKS[Path(file).suffix]
    for name, made in LISTS[file].items():
        before, after = mark.format(BEGIN.format(name)), mark.format(END.format(name))
        start, end = text.index(before) + len(before), text.index(after)
        text = text[:start] + "".join(f"{line}\n" for line in made()) + text[end:]
    return text


if __name__ == "__main__":
    for file in LISTS:
        path = REPOSITORY / file
        path.write_text(page(file, path.read_text(encoding="utf-8")), encoding="utf-8")
        print(f"{path}: {', '.join(LISTS[file])}")
