"""Which Python runs it?  ``python tests/pythons PYTHON ... [--write] [-n N]``

Each interpreter gets two environments of its own: "bare" has what the plugin needs and
the test runner, "all" the optional libraries too.  The tests run in both; what lacks a
library is skipped and says so.  ``--write`` puts the table into README.md.  Not part of
CI, which runs one interpreter: this takes some minutes for each.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Dict, List, Sequence

import tabulate

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
BEGIN, END = "<!-- made by tests/pythons -->", "<!-- end -->"
#: what the plugin needs (pyproject.toml's dependencies), and what runs its tests
BARE = ("tabulate", "PyYAML", "pytest", "pytest-xdist", "hypothesis", "jsonschema<4.18")
#: what is optional (pyproject.toml's extras), and numpy, which a page scan uses where it is
OPTIONAL = ("pyelftools", "zstandard", "graphviz", "numpy", "networkx")
_COUNTS = re.compile(r"(\d+) (passed|failed|skipped|errors?)")


def environment(python: str, folder: Path, packages: Sequence[str]) -> str:
    """A new virtual environment; the path of its interpreter."""
    subprocess.run([python, "-m", "venv", str(folder)], check=True)
    inside = str(folder / "bin" / "python")
    pip = [inside, "-m", "pip", "-q", "--disable-pip-version-check", "install"]
    subprocess.run([*pip, *packages], check=True)
    return inside


def run(python: str, workers: str) -> Dict[str, int]:
    """The suite's counts: passed, failed, skipped, error."""
    done = subprocess.run(
        [python, "-m", "pytest", "-q", "-n", workers, "-p", "no:cacheprovider"],
        cwd=ROOT, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    last = next((x for x in reversed(done.stdout.splitlines()) if _COUNTS.search(x)), "")
    counts = {word.rstrip("s"): int(number) for number, word in _COUNTS.findall(last)}
    if done.returncode or not counts:
        print(done.stdout[-6000:], done.stderr[-2000:], sep="\n", file=sys.stderr)
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("pythons", nargs="+", metavar="PYTHON", help="an interpreter")
    parser.add_argument("--write", action="store_true", help="put the table into README.md")
    parser.add_argument("-n", dest="workers", default="auto", help="tests at once")
    args = parser.parse_args()
    rows: List[List[str]] = []
    failed = 0
    for python in args.pythons:
        asked = [python, "-c", "import platform; print(platform.python_version())"]
        version = subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()
        for name, packages in (("needed alone", BARE), ("with all optional", BARE + OPTIONAL)):
            with tempfile.TemporaryDirectory(prefix="wchan-python-") as folder:
                counts = run(environment(python, Path(folder) / "venv", packages), args.workers)
            wrong = counts.get("failed", 0) + counts.get("error", 0)
            failed += wrong or not counts
            figures = [str(counts.get(word, 0)) for word in ("passed", "skipped")]
            rows.append([version, name, *figures, str(wrong)])
            print(*rows[-1], file=sys.stderr, flush=True)
    table = tabulate.tabulate(
        rows,
        ["Python", "libraries", "passed", "skipped", "failed"],
        tablefmt="github",
        disable_numparse=True,
    )
    text = f"On {platform.system()} {platform.machine()}, {time.strftime('%Y-%m-%d')}:\n\n{table}\n"
    print(text)
    if args.write and not failed:
        before, _, rest = README.read_text().partition(BEGIN)
        _, _, after = rest.partition(END)
        README.write_text(f"{before}{BEGIN}\n{text}{END}{after}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
