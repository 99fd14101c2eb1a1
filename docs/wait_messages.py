"""Writes docs/wait-messages.md from the catalogue of wait messages.

Run ``python docs/wait_messages.py`` in the repository's root after a change to
``plugin/catalogue``; tests/test_docs.py fails until that was done.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Iterator, List

REPOSITORY = Path(__file__).resolve().parent.parent
TARGET = REPOSITORY / "docs" / "wait-messages.md"
sys.path.insert(0, str(REPOSITORY))

from plugin.catalogue import SHIPPED, Row, shipped  # noqa: E402

HEAD = """\
# Wait messages

What each message at a sleep means, as `plugin/catalogue` says it; `docs/wait_messages.py` writes
this page. *Then* is what `why-stuck` does with such a sleep: a resolver's name where it goes on to
the next thing by the wait channel, else what the sleep means for its thread (`work` waits for work
to be done, `drain` for users to leave, `retry` looks again by itself, `pacing` slows itself down,
`benign` and `idle` are no trouble).
"""


def cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").strip()


def line(row: Row) -> str:
    messages = ", ".join(f"`{message}`" for message in row.wmesg).replace("|", "\\|")
    then = row.resolver or str(row.sleep_class)
    more = [
        f"look at {row.look_at}" if row.look_at else "",
        "timed" if row.timed else "",
        "an alarm by itself" if row.alarm else "",
        row.versions,
    ]
    columns = (
        messages,
        cell(row.function),
        cell(row.woken_by),
        then,
        cell("; ".join(filter(None, more))),
    )
    return "| " + " | ".join(columns) + " |"


def page() -> str:
    """The whole page."""
    return "\n".join(_parts()) + "\n"


def _parts() -> Iterator[str]:
    yield HEAD
    rows = shipped().rows
    for path in SHIPPED:
        own: List[Row] = [row for row in rows if row.source in (path, Path(path).name)]
        yield f"## {Path(path).stem}\n"
        yield "| message | sleeps in | woken by | then | |"
        yield "|---|---|---|---|---|"
        yield from map(line, own)
        yield ""


if __name__ == "__main__":
    TARGET.write_text(page(), encoding="utf-8")
    print(f"{TARGET}: {len(shipped().rows)} rows")
