"""Runs every debugger at hand over the dumps of real machines and makes the README's table of them.

    python tests/debugger_table.py [--write] [DEBUGGER ...]

A cell says how many of the threads that the kernel's own debugger (DDB) listed are listed with
their names, of how many the stack is the one it traced, frame by frame, and whether
``why-stuck`` says there what it says in the shell.  What a debugger cannot do is in the table
as well.  Debuggers not named are wchan's own and those on PATH.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("WCHAN_SHARED") or REPOSITORY.parent / "shared")
BEGIN, END = "<!-- made by tests/debugger_table.py -->\n", "<!-- end of that table -->\n"
_NAMES = re.compile(r"(gdb|lldb|kgdb)(-multiarch|-?\d+)?$")
_WAIT = 300


class Dump(NamedTuple):
    """A real machine: its files, decompressed, and what DDB said there."""

    name: str
    vmcore: Path
    kernel: Path
    truth: Dict[str, Any]


class Seen(NamedTuple):
    """What a debugger showed: {tid: name}, {tid: functions}, why-stuck's text."""

    threads: Dict[int, str]
    stacks: Dict[int, List[str]]
    answer: str
    trouble: str


def dumps(folder: Path) -> List[Dump]:
    """Every real dump, decompressed into ``folder``."""
    sys.path.insert(0, str(REPOSITORY / "tests"))
    from conftest import decompress

    found = []
    for packed in sorted(SHARED.glob("real*/*/vmcore.zst")):
        home = folder / packed.parent.name
        for name in ("vmcore", "kernel"):
            decompress(packed.parent / f"{name}.zst", home / name)
        truth = json.loads((packed.parent / "truth.json").read_text())
        found.append(Dump(packed.parent.name, home / "vmcore", home / "kernel", truth))
    return found


def debuggers() -> List[str]:
    """Wchan's own debuggers, and those on PATH whose names say what they are."""
    own = Path(sys.prefix) / "bin"
    places = [own, *map(Path, os.get_exec_path())]
    found: Dict[str, str] = {}
    for place in places:
        if place.is_dir():
            for path in sorted(place.iterdir()):
                if _NAMES.match(path.name) and os.access(path, os.X_OK):
                    found.setdefault(os.path.realpath(path), str(path))
    return list(found.values())


def version(program: str) -> str:
    """ "lldb 19.1.7", "gdb 13.1", as the debugger says."""
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    kind = "lldb" if "lldb" in said.stdout.lower() else "gdb"
    number = re.search(r"(\d+\.\d+(?:\.\d+)?)", said.stdout)
    multi = "-multiarch" if "multi" in os.path.basename(program) else ""
    return f"{kind}{multi} {number.group(1) if number else '?'}"


def run(*words: str) -> Tuple[int, str, str]:
    """``wchan WORDS``, in the repository."""
    command = [sys.executable, "-m", "plugin", *words]
    try:
        done = subprocess.run(
            command,
            cwd=REPOSITORY,
            env={**os.environ, "COLUMNS": "80"},
            capture_output=True,
            text=True,
            timeout=_WAIT,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return 124, "", f"not done after {_WAIT} s"
    return done.returncode, done.stdout, done.stderr


def ask(program: str, kind: str, dump: Dump) -> Seen:
    """One debugger on one dump."""
    opened = [kind, "-k", str(dump.kernel), "--debugger", program, str(dump.vmcore), "--"]
    if kind == "gdb":
        commands = ["info threads", "echo =why=\\n", "why-stuck", "echo =stacks=\\n"]
        commands.append("thread apply all bt -frame-arguments none")
        words = ["-nx", "-batch", *(w for c in commands for w in ("-ex", c))]
    else:
        commands = ["thread list", "script print('=why=')", "why-stuck"]
        commands += ["script print('=stacks=')", "thread backtrace all"]
        words = ["--no-lldbinit", "-b", *(w for c in commands for w in ("-o", c))]
    status, out, error = run(*opened, *words)
    threads, stacks = (of_gdb if kind == "gdb" else of_lldb)(out)
    answer = re.search(
        r"^=why=\n(.*?)^(?:\(lldb\) script print\('=stacks='\)|=stacks=)", out, re.M | re.S
    )
    text = answer.group(1) if answer else ""
    text = re.sub(r"^\(lldb\) why-stuck\n", "", text)
    trouble = ""
    if status < 0 or status > 128:
        trouble = f"ends with signal {status - 128 if status > 0 else -status}"
    elif not threads:
        lines = [line for line in (error or out).splitlines() if line.strip()]
        trouble = lines[-1][:80] if lines else "says nothing"
    return Seen(threads, stacks, text, trouble)


def of_gdb(out: str) -> Tuple[Dict[int, str], Dict[int, List[str]]]:
    threads = {
        int(tid): name
        for tid, name in re.findall(r'^[* ] +\d+ +Thread (\d+) "(.*?)" +\S', out, re.MULTILINE)
    }
    pieces = re.split(r"^Thread \d+ \(Thread (\d+) .*\n", out, flags=re.MULTILINE)
    frame = re.compile(r"^#\d+ +(?:0x[0-9a-f]+ in )?([\w.$]+) \(", re.MULTILINE)
    return threads, {int(t): frame.findall(text) for t, text in zip(pieces[1::2], pieces[2::2])}


def of_lldb(out: str) -> Tuple[Dict[int, str], Dict[int, List[str]]]:
    listed = re.findall(
        r"^[* ] thread #(\d+): tid = (\d+|0x[0-9a-f]+),.*?name = '(.*?)'", out, re.M
    )
    tids = {number: int(tid, 0) for number, tid, _ in listed}
    traced = out.partition("=stacks=')\n=stacks=")[2]
    pieces = re.split(r"^[* ] thread #(\d+),? .*\n", traced, flags=re.MULTILINE)
    frame = re.compile(r"^ +\*? *frame #\d+: 0x[0-9a-f]+ (?:[\w.]+`)?([\w.$]+)", re.MULTILINE)
    stacks = {
        tids[n]: frame.findall(text) for n, text in zip(pieces[1::2], pieces[2::2]) if n in tids
    }
    return {int(tid, 0): name for _, tid, name in listed}, stacks


def traced(truth: Dict[str, Any]) -> Dict[int, List[List[str]]]:
    """DDB's stacks, each frame the names it may have; those it could not trace left out."""
    plain = {tid: [[name] for name in frames] for tid, frames in truth["stacks"].items()}
    found = {}
    for tid, frames in truth.get("stacks2", plain).items():
        if frames and not any("kdb_reenter" in names for names in frames):
            found[int(tid)] = [names for names in frames if names != ["---"]]
    return found


def alike(seen: Optional[List[str]], ddb: List[List[str]]) -> bool:
    return seen is not None and len(seen) == len(ddb) and all(map(lambda s, d: s in d, seen, ddb))


def cell(seen: Seen, dump: Dump, shell: str) -> str:
    """What the table says of one debugger on one dump."""
    if seen.trouble:
        return seen.trouble.replace("|", "/")
    listed = [row for row in dump.truth["threads"] if row["tid"] is not None]
    named = sum(
        seen.threads.get(row["tid"], "").startswith(f"(pid {row['pid']}) {row['comm']}")
        for row in listed
    )
    stacks = traced(dump.truth)
    same = sum(alike(seen.stacks.get(tid), frames) for tid, frames in stacks.items())
    answer = "same" if squeezed(seen.answer) == squeezed(shell) else "differs"
    if not seen.answer.strip():
        answer = "none"
    return f"{named}/{len(listed)}, {same}/{len(stacks)}, {answer}"


def squeezed(text: str) -> str:
    return " ".join(text.split())


def table(programs: List[str], real: List[Dump]) -> str:
    """The whole table in Markdown."""
    answers = {}
    for dump in real:
        _, answers[dump.name], _ = run("-k", str(dump.kernel), str(dump.vmcore), "why-stuck")
    lines = ["| | " + " | ".join(dump.name.replace("-hang", "") for dump in real) + " |"]
    lines.append("|---" * (len(real) + 1) + "|")
    for program in programs:
        name = version(program)
        kind = "lldb" if name.startswith("lldb") else "gdb"
        cells = [cell(ask(program, kind, dump), dump, answers[dump.name]) for dump in real]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
        print(lines[-1], file=sys.stderr, flush=True)
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the table into README.md")
    parser.add_argument("debugger", nargs="*", help="programs to run instead of those at hand")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        made = table(args.debugger or debuggers(), dumps(Path(folder)))
    print(made, end="")
    if args.write:
        readme = REPOSITORY / "README.md"
        text = readme.read_text(encoding="utf-8")
        before, _, rest = text.partition(BEGIN)
        _, _, after = rest.partition(END)
        readme.write_text(before + BEGIN + made + END + after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
