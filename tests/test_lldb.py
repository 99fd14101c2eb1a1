"""wchan in lldb: kernel threads as threads, and what is lldb's own about the commands."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any, Iterator

import debuggers
import pytest
from hosts import ROOT
from machines import HZ, KERNELS, PANICKED, WAITS, Example, example
from test_gdb import STRUCTS, compiled, layout

ENTRY = ROOT / "plugin"
IMPORT = f"command script import {ENTRY}"


def lldb(program: Path, *commands: str) -> debuggers.Batch:
    """An lldb of the user's own, nothing of wchan in it but what the commands say."""
    words = [word for command in commands for word in ("-o", command)]
    done = subprocess.run(
        [str(program), "--no-lldbinit", "-b", *words],
        capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    return debuggers.Batch(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def amd64(tmp_path_factory: pytest.TempPathFactory) -> Example:
    return example("14.2 amd64", tmp_path_factory.mktemp("amd64"))


@pytest.fixture(scope="module", params=KERNELS)
def machine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Example:
    """One forged machine after the other."""
    return example(request.param, tmp_path_factory.mktemp("machine"))


@pytest.fixture(scope="module")
def served(amd64: Example) -> Iterator[str]:
    """The port at which ``wchan serve`` serves the amd64 machine."""
    words = ["-m", "plugin", "serve", "--port", "0", "-k", str(amd64.kernel), str(amd64.vmcore)]
    server = subprocess.Popen([sys.executable, *words], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    first = server.stdout.readline()
    assert first.startswith(f"serving {amd64.vmcore} on 127.0.0.1:"), first
    yield first.split(" on ")[1].strip()
    server.terminate()
    assert server.wait(10) == 0
    server.stdout.close()


def has_frame_providers(program: Path) -> bool:
    """lldb 22 and later, which let a plugin say what a stack is."""
    version = re.search(r"version (\d+)", lldb(program, "version").out)
    return version is not None and int(version.group(1)) >= 22


def herring(kernel: Path, target: Path) -> Path:
    """A kernel file that says that it is one, as every real one does and a stub does not.

    lldb takes a file whose .interp is "/red/herring" for a FreeBSD kernel.
    """
    data = bytearray(kernel.read_bytes())
    (headers,) = struct.unpack_from("<Q", data, 40)
    size, count, names = struct.unpack_from("<3H", data, 58)
    (strings,) = struct.unpack_from("<Q", data, headers + names * size + 24)
    for at in range(headers, headers + count * size, size):
        start = strings + struct.unpack_from("<I", data, at)[0]
        if data[start : data.index(0, start)] == b".interp":
            struct.pack_into("<I", data, at + 4, 1)
            struct.pack_into("<QQ", data, at + 24, len(data), 13)
    target.write_bytes(bytes(data) + b"/red/herring\0")
    return target


# Threads


def test_lldb_lives_though_no_elf_header_lies_where_the_kernel_is(
    venv_lldb: Path, real_dump: Any, tmp_path: Path
) -> None:
    """lldb 19 to 23 crash on it: booted as a raw image, or the dump lacks the page."""
    kernel = herring(real_dump.kernel, tmp_path / "kernel")
    done = debuggers.lldb(venv_lldb, real_dump._replace(kernel=kernel), "thread list")
    assert done.status == 0, done.err
    assert len(done.threads) == len(real_dump.truth["threads"])


def test_every_thread_of_a_real_machine_is_listed(venv_lldb: Path, real_dump: Any) -> None:
    done = debuggers.lldb(venv_lldb, real_dump, "thread list")
    assert len(done.threads) == len(real_dump.truth["threads"])
    names = dict(done.threads)
    for row in real_dump.truth["threads"]:
        if row["tid"] is not None:
            assert names[row["tid"]].startswith(f"(pid {row['pid']}) {row['comm']}")


def test_their_stacks_are_those_ddb_traced(venv_lldb: Path, real_dump: Any) -> None:
    if not has_frame_providers(venv_lldb):
        pytest.skip("this lldb unwinds by code, of which the dump has none")
    done = debuggers.lldb(venv_lldb, real_dump, "thread list", "thread backtrace all")
    names = {str(tid): name for tid, name in done.threads}
    unique = [tid for tid, name in names.items() if list(names.values()).count(name) == 1]
    found, traced = done.stacks, real_dump.truth["stacks"]
    # DDB prints nothing for a thread that never ran, and faults on some while tracing;
    # the thread that took the dump it traced from where it entered DDB.
    compared = [t for t in unique if traced.get(t) and "kdb_reenter" not in traced[t]]
    same = [tid for tid in compared if found[names[tid]] == traced[tid]]
    assert len(compared) > 80
    assert len(same) >= len(compared) - 2, [t for t in compared if t not in same]


def test_a_machine_of_each_architecture_opens(venv_lldb: Path, machine: Example) -> None:
    done = debuggers.lldb(venv_lldb, machine, "thread list", "p *(int *)&hz", "register read")
    assert len(done.threads) == machine.threads
    names = dict(done.threads)
    assert names[machine.dumper] == "(pid 500) dumper (crashed)"
    assert names[machine.sleeper] == "(pid 501) waiter/second"
    assert "stop reason = panic: example panic" in done.out
    assert f"(int) {HZ}\n" in done.out
    pc = {"amd64": "rip", "i386": "eip", "arm64": "pc"}[machine.arch]
    assert re.search(rf"^ +{pc} = 0x[0-9a-f]+ +kernel\w*`doadump \+ \d+", done.out, re.MULTILINE)
    assert "registers were unavailable" in done.out


def test_one_can_switch_to_a_thread(venv_lldb: Path, amd64: Example) -> None:
    listed = debuggers.lldb(venv_lldb, amd64, "thread list").threads
    number = [tid for tid, _ in listed].index(amd64.sleeper) + 1
    done = debuggers.lldb(venv_lldb, amd64, f"thread select {number}", "bt")
    assert f"* thread #{number}, name = '(pid 501) waiter/second'" in done.out
    found = debuggers.functions(done.out)
    assert found[0] == "sched_switch"
    if has_frame_providers(venv_lldb):
        assert found[found.index(WAITS[0]) :][: len(WAITS)] == WAITS


def test_the_stack_of_a_panic(venv_lldb: Path, machine: Example) -> None:
    if not has_frame_providers(venv_lldb):
        pytest.skip("this lldb unwinds by code, of which forged kernels have none")
    done = debuggers.lldb(venv_lldb, machine, "bt")
    assert debuggers.functions(done.out)[: len(PANICKED)] == PANICKED


def test_a_dump_stays_as_it_is(venv_lldb: Path, amd64: Example) -> None:
    done = debuggers.lldb(venv_lldb, amd64, "memory write &hz 1")
    assert done.status == 1
    assert "memory write" in done.err
    # Where a continued process stops at once with an exception, lldb -b ends.
    assert "This is a dump: it cannot run." in debuggers.lldb(venv_lldb, amd64, "continue").out


# The commands in an lldb that the user started


@pytest.mark.parametrize("which", ["venv_lldb", "system_lldb"])
def test_the_entry_serves_an_lldb_connected_by_hand(
    which: str, served: str, amd64: Example, request: pytest.FixtureRequest
) -> None:
    program = request.getfixturevalue(which)
    opened = [f"target create {amd64.kernel}", f"gdb-remote {served}"]
    for order in ([*opened, IMPORT], [IMPORT, *opened]):
        done = lldb(program, *order, "kthreads")
        assert done.status == 0, done.err
        assert re.search(rf"^{amd64.sleeper} +501  second +sleeping +example", done.out, re.M)


def test_a_kernel_file_of_another_machine_is_refused(
    venv_lldb: Path, served: str, tmp_path: Path
) -> None:
    wrong = example("14.2 amd64", tmp_path, ident="OTHER")
    done = lldb(
        venv_lldb, f"target create {wrong.kernel}", f"gdb-remote {served}", IMPORT, "kthreads"
    )
    assert done.status == 1
    assert re.search("is not the kernel of this dump: .*OTHER.*GENERIC.*WCHAN_FORCE", done.err)


def test_without_a_kernel_a_command_says_what_to_do(venv_lldb: Path) -> None:
    done = lldb(venv_lldb, IMPORT, "kthreads")
    assert done.status == 1
    assert "kthreads: no kernel is being debugged: open a dump or connect first" in done.err


def test_a_failed_command_stops_the_batch(venv_lldb: Path) -> None:
    done = lldb(venv_lldb, IMPORT, "kthreads --no-such-option", "script print('went on')")
    assert done.status == 1
    assert "went on" not in done.out.replace("script print('went on')", "")


def test_help_is_lldbs_help(venv_lldb: Path) -> None:
    done = lldb(venv_lldb, IMPORT, "help kthreads", "help")
    assert "usage: kthreads" in done.out
    assert re.search(r"^  kthreads +-- every thread as ", done.out, re.MULTILINE)


def test_a_command_that_lldb_has_already_is_not_replaced(venv_lldb: Path) -> None:
    done = lldb(venv_lldb, "command alias kmsgbuf version", IMPORT, "kthreads --help")
    assert "wchan: lldb has a command 'kmsgbuf' already; not replaced" in done.out
    assert "usage: kthreads" in done.out


def test_the_entry_can_be_loaded_again(venv_lldb: Path) -> None:
    done = lldb(venv_lldb, IMPORT, IMPORT, "kthreads --help")
    assert (done.status, done.err) == (0, "")


def test_a_foreign_module_of_our_name_is_told(venv_lldb: Path) -> None:
    take = "script import sys, types; sys.modules['commands'] = types.ModuleType('commands')"
    done = lldb(venv_lldb, take, IMPORT, "version")
    assert "another module named 'commands' is loaded already" in done.out
    assert done.status == 0


def test_missing_libraries_are_told_with_what_to_do(venv_lldb: Path) -> None:
    done = lldb(venv_lldb, "script import sys; sys.modules['yaml'] = None", IMPORT)
    assert re.search(r"Python \(3\.\d+\) has no yaml; run .*/install\.sh", done.out)


def test_layouts_out_of_lldbs_types_are_those_of_our_own_reader(
    venv_lldb: Path, tmp_path: Path
) -> None:
    from plugin.structs.dwarf import Dwarf
    from plugin.vmcore.elf import ElfFile

    program = compiled(tmp_path)
    paths = [str(ROOT), str(ROOT / "tests"), os.path.dirname(pytest.__path__[0])]
    done = lldb(
        venv_lldb,
        f"target create {program}",
        f"script import sys, json; sys.path += {paths!r}",
        "script from test_gdb import STRUCTS, layout; from plugin.targets.lldb import LldbTypes",
        "script types = LldbTypes(lldb.debugger.GetSelectedTarget(), 8)",
        "script print('found', json.dumps([layout(types, name) for name in STRUCTS]))",
    )
    own = Dwarf(ElfFile(program))
    found = re.search(r"^found (.*)$", done.out, re.MULTILINE)
    assert found is not None, done.err
    assert json.loads(found.group(1)) == [layout(own, name) for name in STRUCTS]
