"""Feed every parser what nobody wrote: ``python tests/fuzz [NAME ...] --seconds N``.

Guided by coverage where atheris is installed (its wheels are for Linux and a few versions
of Python), else by chance alone: the head of the table says which.  Each parser runs in a
process of its own; an input on which one breaks a promise (an exception that is none of
plugin.errors, ``--slow`` seconds, ``--memory`` MB) is kept in the folder named by ``--keep``.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import List, Sequence, Tuple

import tabulate

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]


def main() -> int:
    """Runs the parsers named, prints the table; the number of inputs that broke a promise."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("name", nargs="*", help="of the parsers; default: all of them")
    parser.add_argument("--seconds", type=int, default=60, metavar="N", help="for each parser")
    parser.add_argument("--slow", type=int, default=20, metavar="N", help="seconds for one input")
    parser.add_argument("--memory", type=int, default=2048, metavar="MB")
    parser.add_argument("--keep", default="fuzz-found", metavar="DIR")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--corpus", help=argparse.SUPPRESS)
    args = parser.parse_args()
    guided = importlib.util.find_spec("atheris") is not None
    if args.one:
        return (_guided if guided else _by_chance)(args.one, args)
    from tests.fuzz.parsers import PARSERS

    unknown = set(args.name) - set(PARSERS)
    if unknown:
        parser.error(f"no parser {sorted(unknown)[0]!r}; there are: {', '.join(PARSERS)}")
    rows = []
    for name in args.name or PARSERS:
        runs, broken, features = _run(name, args)
        rows.append((name, PARSERS[name].reads, runs, features, broken or ""))
        print(tabulate.tabulate(rows[-1:], tablefmt="plain"), file=sys.stderr, flush=True)
    how = "guided by coverage (atheris)" if guided else "by chance, without coverage"
    print(f"{args.seconds} s for each parser, {how}; Python {sys.version.split()[0]}\n")
    print(tabulate.tabulate(rows, ("parser", "reads", "inputs", "edges met", "broke a promise")))
    return int(any(row[4] for row in rows))


def _run(name: str, args: argparse.Namespace) -> Tuple[int, str, str]:
    """(inputs tried, the file kept where one broke a promise, edges met) of one parser."""
    keep = Path(args.keep)
    keep.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="wchan-fuzz-") as corpus:
        words = [sys.executable, __file__, "--one", name, "--seconds", str(args.seconds)]
        words += ["--slow", str(args.slow), "--memory", str(args.memory)]
        words += ["--keep", str(keep), "--corpus", corpus]
        before = set(keep.iterdir())
        done = subprocess.run(words, capture_output=True, text=True, errors="replace", check=False)
        said = done.stdout + done.stderr
        (keep / f"{name}.log").write_text(said[-20_000:])
    made = sorted(str(each) for each in {*keep.glob(f"{name}-*")} - before)
    broken = ", ".join(made) or (f"exit status {done.returncode}" if done.returncode else "")
    runs = re.findall(r"^(?:Done |stat::number_of_executed_units: |#)(\d+)", said, re.MULTILINE)
    edges = re.findall(r"cov: (\d+)", said)
    return int(runs[-1]) if runs else 0, broken, edges[-1] if edges else "-"


def _guided(name: str, args: argparse.Namespace) -> int:
    import atheris

    with atheris.instrument_imports(include=["plugin", "elftools"]):
        from tests.fuzz.parsers import PARSERS, found
    parser = PARSERS[name]
    corpus = Path(args.corpus)
    for number, seed in enumerate((*parser.seeds(), *(data for _, data in found(name)))):
        (corpus / f"seed-{number}").write_bytes(seed)
    options = [
        f"-max_total_time={args.seconds}",
        f"-timeout={args.slow}",
        f"-rss_limit_mb={args.memory}",
        f"-artifact_prefix={args.keep}/{name}-",
        "-print_final_stats=1",
        str(corpus),
    ]
    atheris.Setup([sys.argv[0], *options], parser.run)
    atheris.Fuzz()
    return 0


def _by_chance(name: str, args: argparse.Namespace) -> int:
    from tests.fuzz.parsers import PARSERS, found

    parser = PARSERS[name]
    known = [*parser.seeds(), *(data for _, data in found(name))]
    chance = random.Random(0)
    runs, end = 0, time.monotonic() + args.seconds
    while time.monotonic() < end:
        data = changed(chance, known)
        begun = time.monotonic()
        try:
            parser.run(data)
            broke = time.monotonic() - begun > args.slow
        except Exception as error:
            print(repr(error))
            broke = True
        if broke:
            Path(args.keep, f"{name}-{runs}").write_bytes(data)
            break
        runs += 1
    print(f"#{runs}")
    return int(broke)


def changed(chance: random.Random, known: Sequence[bytes]) -> bytes:
    """One of the inputs with a few changes: bytes, stretches cut, doubled, or of another one."""
    data = bytearray(chance.choice(known))
    for _ in range(chance.choice((1, 1, 2, 4, 8))):
        at = chance.randrange(len(data) + 1)
        size = chance.choice((1, 2, 4, 8, 64))
        other = chance.choice(known)
        start = chance.randrange(len(other) + 1)
        pieces: List[bytes] = [
            bytes(chance.choice((0, 1, 0x7F, 0x80, 0xFF)) for _ in range(size)),
            bytes(chance.randrange(256) for _ in range(size)),
            b"",
            bytes(data[at : at + size]) * 2,
            other[start : start + size],
        ]
        data[at : at + size] = chance.choice(pieces)
    return bytes(data)


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status) if "--one" in sys.argv else sys.exit(status)
