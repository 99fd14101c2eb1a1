"""One set of commands in three hosts: lldb and gdb say word for word what the shell says."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, Dict, List

import debuggers
import pytest
from debuggers import Batch
from hosts import ROOT

import commands
from plugin.hosts.runner import run_command
from plugin.opening import open_core
from tests.forge.machine import Machine
from tests.forge.scenarios.storage_deadlock import storage_deadlock

#: by the name of a file: what is run; every command there is, in all its FORMS
LINES: Dict[str, str] = {
    f"{name}.{number}": f"{name} {form} --json --limit 0"
    for name in commands.NAMES
    for number, form in enumerate(commands.load(name).FORMS)
}
LINES["table"] = "kthreads --limit 0"

Host = Callable[..., Batch]


def in_the_shell(dump: Any) -> Dict[str, str]:
    """What each line writes on a dump opened without a debugger."""
    kernel = open_core(str(dump.vmcore), str(dump.kernel))
    written: Dict[str, str] = {}
    for key, line in LINES.items():
        pieces: List[str] = []
        name, *words = line.split()
        run_command(name, words, lambda: kernel, pieces.append, pieces.append)
        written[key] = "".join(pieces)
    return written


def in_a_debugger(host: Host, dump: Any, folder: Path, **environment: str) -> Dict[str, str]:
    lines = [f"{line} -o {folder / key}" for key, line in LINES.items()]
    done = host(dump, *lines, **environment)
    assert done.status == 0, done.err
    return {key: (folder / key).read_text(encoding="utf-8") for key in LINES}


def timeless(text: str) -> str:
    """A report without the times its sections took."""
    return re.sub(r'"seconds": [0-9.e-]+', '"seconds": 0', text)


def assert_same(found: Dict[str, str], expected: Dict[str, str]) -> None:
    for key in LINES:
        assert timeless(found[key]) == timeless(expected[key]), key


class Forged:
    """A forged dump and its kernel."""

    def __init__(self, folder: Path) -> None:
        self.vmcore, self.kernel = storage_deadlock().write(folder)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Forged:
    """The first report from the field: i386, 7.0-CURRENT."""
    return Forged(tmp_path_factory.mktemp("demo"))


@pytest.fixture(params=["gdb", "lldb"])
def host(request: pytest.FixtureRequest) -> Host:
    """Each debugger installed with wchan."""
    program = request.getfixturevalue(f"venv_{request.param}")
    run: Host = getattr(debuggers, request.param)
    return lambda *args, **environment: run(program, *args, **environment)


@pytest.fixture(params=["gdb", "lldb"])
def system_host(request: pytest.FixtureRequest) -> Host:
    """Each debugger of the system, whose Python is not the one of these tests."""
    program = request.getfixturevalue(f"system_{request.param}")
    run: Host = getattr(debuggers, request.param)
    return lambda *args, **environment: run(program, *args, **environment)


def test_every_report_of_the_demo_is_the_same(host: Host, demo: Forged, tmp_path: Path) -> None:
    expected = in_the_shell(demo)
    assert json.loads(expected["bioq.0"])["data"]["queues"][0]["length"] == 559
    assert_same(in_a_debugger(host, demo, tmp_path), expected)


def test_every_report_of_a_real_machine_is_the_same(
    host: Host, real_dump: Any, tmp_path: Path
) -> None:
    expected = in_the_shell(real_dump)
    assert len(json.loads(expected["kthreads.0"])["data"]["threads"]) == len(
        real_dump.truth["threads"]
    )
    assert_same(in_a_debugger(host, real_dump, tmp_path), expected)


def test_every_report_of_a_real_machine_with_modules_is_the_same(
    host: Host, zfs_dump: Any, tmp_path: Path
) -> None:
    assert_same(in_a_debugger(host, zfs_dump, tmp_path), in_the_shell(zfs_dump))


def test_a_modules_variables_are_named_and_read_alike_without_its_file(
    host: Host, tmp_path: Path
) -> None:
    """A debugger finds them in the symbol file it was given, where they have no type."""

    class WithModule:
        machine = Machine(1402000, "amd64")
        machine.modules.load("example.ko", "example_")
        sleeper = machine.procs.process("user").thread(calls=["example_wait"])
        sleeper.sleeps(machine.symbol("example_cv", size=16, static=True).address, "example")
        vmcore, kernel = machine.write(tmp_path)

    expected = in_the_shell(WithModule)
    assert "example_cv" in expected["why-stuck.0"]
    assert_same(in_a_debugger(host, WithModule, tmp_path), expected)


def test_memory_read_through_the_debugger_gives_the_same_reports(
    host: Host, demo: Forged, tmp_path: Path
) -> None:
    found = in_a_debugger(host, demo, tmp_path, WCHAN_BYPASS="no")
    assert_same(found, in_the_shell(demo))


def test_the_systems_debuggers_give_the_same_reports(
    system_host: Host, demo: Forged, tmp_path: Path
) -> None:
    assert_same(in_a_debugger(system_host, demo, tmp_path), in_the_shell(demo))


def test_what_a_command_prints_is_printed_whole(host: Host, demo: Forged) -> None:
    done = host(demo, "kthreads --json --limit 0")
    text = done.out[done.out.index("{\n") :]
    printed, _ = json.JSONDecoder().raw_decode(text)
    assert printed == json.loads(in_the_shell(demo)["kthreads.0"])


def test_a_failed_command_fails_the_batch_even_if_others_follow(host: Host, demo: Forged) -> None:
    done = host(demo, "kthreads --no-such-option", "help")
    assert done.status == 1
    assert "kthreads: unrecognized arguments: --no-such-option" in done.err
    assert "Traceback" not in done.out + done.err


def test_help_needs_no_dump_and_is_no_failure(host: Host, demo: Forged) -> None:
    done = host(demo, "kthreads --help")
    assert done.status == 0
    assert "usage: kthreads" in done.out


def test_a_kernel_that_is_not_the_dumps_is_refused_before_the_debugger_starts(
    host: Host, demo: Forged, tmp_path: Path
) -> None:
    class Wrong:
        vmcore = demo.vmcore
        kernel = Machine(700014, "i386", ident="OTHER").write(tmp_path)[1]

    done = host(Wrong, "kthreads")
    assert done.status == 1
    assert re.search("not the kernel (of|that made) this dump", done.err)
    assert done.out == ""


def test_server_and_debugger_end_together(venv_gdb: Path, demo: Forged) -> None:
    where = "python print(gdb.selected_inferior().connection.details, flush=True)"
    dump = ["-k", str(demo.kernel), str(demo.vmcore)]
    rest = ["-nx", "-batch", "-ex", where, "-ex", "shell exec sleep 60"]
    started = subprocess.Popen(
        [sys.executable, "-m", "plugin", "gdb", "--debugger", str(venv_gdb), *dump, "--", *rest],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert started.stdout is not None
    socket = next(line.strip() for line in started.stdout if line.startswith("/"))
    assert os.path.exists(socket)
    started.terminate()
    assert started.wait(20) == 128 + signal.SIGTERM
    assert not os.path.exists(os.path.dirname(socket))
    started.stdout.close()


def test_a_debugger_that_cannot_be_run_is_told_in_one_line(demo: Forged, tmp_path: Path) -> None:
    done = debuggers.gdb(tmp_path / "gdb", demo, "kthreads")
    assert (done.status, done.err.count("\n")) == (1, 1)
    assert f"cannot run {tmp_path / 'gdb'}: No such file or directory" in done.err
