"""What wchan believes, keeps and leaves behind: stubs, caches, half-written files."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, Hashable, Optional

import pytest
from hosts import ROOT, as_a_shell_starts_it

from plugin.cachedir import ours, writable
from plugin.hosts.debugger import SECRET_VARIABLE, Session
from plugin.structs.cache import cache_read, cache_write


class Stub:
    """A debugger on a remote stub that answers every packet, as a hostile one may."""

    name = "gdb"

    def __init__(self, answer: Dict[str, object]) -> None:
        self.answer = answer

    def state(self) -> Hashable:
        return 0

    def ask_server(self, packet: str) -> str:
        return json.dumps(self.answer).encode().hex()

    def target(self, memory: Optional[Any], truncated: bool, stub: bool) -> Any:
        raise AssertionError("not asked for")

    def let_run(self, seconds: float) -> None:
        raise AssertionError("nobody asked for it")

    def kernel_file(self) -> Optional[str]:
        return None

    def add_symbols(self, path: str, base: int) -> bool:
        raise AssertionError("not asked for")


@pytest.mark.parametrize(
    ("secret", "answered", "believed"),
    [("abc", "abc", True), ("abc", "abd", False), ("abc", None, False), ("", "", False)],
)
def test_only_our_own_server_is_believed(
    monkeypatch: pytest.MonkeyPatch, secret: str, answered: Optional[str], believed: bool
) -> None:
    """A stub may name any file as its dump; what it cannot know is our server's secret."""
    monkeypatch.setenv(SECRET_VARIABLE, secret)
    answer: Dict[str, object] = {"vmcore": "/etc/passwd", "secret": answered}
    assert (Session(Stub(answer))._server_info() == answer) is believed


def test_a_cache_that_others_may_write_to_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = tmp_path / "wchan"
    assert writable(folder) == folder
    folder.chmod(0o777)
    assert writable(folder) != folder
    folder.chmod(0o700)
    assert ours(folder)
    assert not ours(tmp_path / "none")


def test_kept_layouts_are_read_from_a_file_of_ours_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache_write("key", {"kept": 1})
    assert cache_read("key") == {"kept": 1}
    (tmp_path / "wchan").chmod(0o777)
    assert cache_read("key") is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_decompressing_leaves_nothing_behind(
    tmp_path: Path, number: signal.Signals
) -> None:
    packed, cache = tmp_path / "vmcore.0.gz", tmp_path / "cache"
    with gzip.open(packed, "wb", compresslevel=1) as out:
        piece = os.urandom(1 << 16) * 64
        for _ in range(24):
            out.write(piece)
    running = subprocess.Popen(
        [sys.executable, "-m", "plugin", str(packed), "kthreads"],
        cwd=ROOT,
        env={**os.environ, "XDG_CACHE_HOME": str(cache)},
        stderr=subprocess.PIPE,
        preexec_fn=as_a_shell_starts_it,
    )
    deadline = time.monotonic() + 30
    while not list(cache.rglob("*.part")) and time.monotonic() < deadline:
        time.sleep(0.005)
    running.send_signal(number)
    _, err = running.communicate(timeout=30)
    assert running.returncode == 128 + number, err
    assert not list(cache.rglob("*.part"))
    assert b"Traceback" not in err
