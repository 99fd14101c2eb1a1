"""``wchan demo``: the storage deadlock of a field report, explained.

The dump and its kernel file lie beside this module, gzipped, as tests/forge made them.
"""

from __future__ import annotations

import gzip
import shlex
import shutil
import sys
from pathlib import Path
from typing import List, Tuple

from plugin.cachedir import cache_path, writable
from plugin.hosts.arguments import Parser
from plugin.hosts.runner import run_command
from plugin.opening import open_core

_INTRODUCTION = """\
A FreeBSD 7.0-CURRENT i386 machine under Peter Holm's stress test, 2005: large
numbers of processes wait on "vmwait", "pfault" and "biord", the page daemon on
"wswbuf0", g_down on "g_down". Its owner walked the lists in kgdb for days. This
dump is forged from the figures of that report; three commands explain it.
"""

_STEPS = (["why-stuck"], ["bioq", "--limit", "8"], ["kthreads", "--limit", "12"])


def unpack(directory: Path) -> Tuple[Path, Path]:
    """Lay the shipped dump and kernel file into ``directory``: (vmcore, kernel)."""
    directory.mkdir(parents=True, exist_ok=True)
    here = Path(__file__).parent
    laid = []
    for name, target in (("dump.gz", "vmcore"), ("kernel.gz", "kernel")):
        path = directory / target
        with gzip.open(here / name) as packed, open(path, "wb") as unpacked:
            shutil.copyfileobj(packed, unpacked)
        laid.append(path)
    return laid[0], laid[1]


def _write(text: str) -> None:
    sys.stdout.write(text)


def _complain(text: str) -> None:
    sys.stderr.write(text + "\n")


def main(argv: List[str]) -> int:
    """Run the demo; returns the worst exit status of its commands."""
    parser = Parser(prog="wchan demo", description="Explain the dump of a storage deadlock.")
    parser.add_argument(
        "directory", nargs="?", help="where to leave the dump and its kernel (default: a cache)"
    )
    args = parser.parse_args(argv)
    directory = Path(args.directory) if args.directory else writable(cache_path() / "demo")
    vmcore, kernel_file = unpack(directory)
    print(_INTRODUCTION)
    kernel = open_core(str(vmcore), str(kernel_file))
    shown = f"wchan {shlex.quote(str(vmcore))}"
    worst = 0
    for words in _STEPS:
        print(f"$ wchan vmcore {' '.join(words)}")
        worst = max(
            worst,
            run_command(
                words[0],
                words[1:],
                lambda: kernel,
                _write,
                _complain,
                width=shutil.get_terminal_size((80, 24)).columns,
            ),
        )
        print()
    print(f"Go on with it:\n  {shown} why-stuck --help\n  {shown} provider --tree")
    for debugger in ("lldb", "gdb"):
        print(f"  wchan {debugger} {shlex.quote(str(vmcore))}")
    return worst
