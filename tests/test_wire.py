"""What goes over a wire to a machine's own stub, counted: FreeBSD's in the kernel, and QEMU's."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

import pytest
from hosts import ROOT, wchan
from hypothesis import given
from hypothesis import strategies as st
from stub import CountingStub, run_lengths

from plugin.errors import MemoryFault, WchanError
from plugin.hosts.runner import run_command
from plugin.kernel.proc import threads
from plugin.opening import open_core, open_target
from plugin.opening.remote import open_remote
from plugin.session import Kernel
from plugin.targets.remote import Stub, _expanded
from plugin.targets.wire import WORD, Wire
from tests.forge.scenarios.scale import crowd

#: bytes over the wire for why-stuck on a machine of 170 threads, both ways
BUDGET = 300_000
ENTRY = ROOT / "plugin" / "kernel-gdb.py"


# The cache above a wire

BASE, SIZE, HOLE = 0x10000, 0x4000, 0x12000


class Memory:
    """Four pages of which the third is not mapped; refused whole where a byte is missing."""

    def __init__(self) -> None:
        self.data = bytes((n * 7 + n // 256) & 0xFF for n in range(SIZE))
        self.reads: List[Tuple[int, int]] = []

    def fetch(self, address: int, size: int) -> bytes:
        self.reads.append((address, size))
        for page in range(address // 4096, (address + size - 1) // 4096 + 1):
            if not BASE <= page * 4096 < BASE + SIZE or page * 4096 == HOLE:
                raise MemoryFault(address)
        return self.data[address - BASE : address - BASE + size]

    def readable(self, address: int) -> bool:
        page = address // 4096 * 4096
        return BASE <= page < BASE + SIZE and page != HOLE


reads = st.lists(
    st.tuples(st.integers(BASE - 300, BASE + SIZE + 300), st.integers(1, 6000)), max_size=12
)


@given(reads)
def test_what_is_read_is_what_is_there_and_nothing_is_asked_for_twice(
    asked: List[Tuple[int, int]],
) -> None:
    memory = Memory()
    wire = Wire(memory.fetch)
    for address, size in asked:
        there = all(memory.readable(at) for at in range(address, address + size))
        if there:
            start = address - BASE
            assert wire.read(address, size) == memory.data[start : start + size]
        else:
            with pytest.raises(MemoryFault) as raised:
                wire.read(address, size)
            assert address <= raised.value.address < address + size
            assert not memory.readable(raised.value.address)
    got: Dict[int, int] = {}
    for address, size in memory.reads:
        if all(memory.readable(at) for at in range(address, address + size)):
            for word in range(address // WORD, (address + size) // WORD):
                got[word] = got.get(word, 0) + 1
    assert all(times == 1 for times in got.values())


def test_of_a_struct_the_members_wanted_are_asked_for_and_not_the_struct() -> None:
    memory = Memory()
    wire = Wire(memory.fetch)
    data = wire.gather(BASE, [(0, 8), (16, 24), (1000, 1004)], 1004)
    assert data[:8] == memory.data[:8]
    assert data[1000:] == memory.data[1000:1004]
    # Two that lie close are one packet, for less than two.
    assert memory.reads == [(BASE, 24), (BASE + 1000, 8)]


def test_what_the_kernel_cannot_change_comes_out_of_its_file() -> None:
    memory = Memory()
    wire = Wire(memory.fetch, lambda address, size: b"x" * size if address == 7 else None)
    with pytest.raises(MemoryFault):
        wire.read(7, 3)
    # Not before it is proven that it is the file of the kernel that runs.
    wire.trusted = True
    asked = len(memory.reads)
    assert wire.read(7, 3) == b"xxx"
    assert len(memory.reads) == asked


# The client

payloads = st.binary(max_size=300).map(lambda data: data.hex().encode())


@given(payloads)
def test_runs_that_the_kernels_stub_counts_are_written_out_again(payload: bytes) -> None:
    assert _expanded(run_lengths(payload)) == payload


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Tuple[Path, Path]:
    """A forged 14.2 of 170 threads that wait for locks, memory and a disk."""
    folder = tmp_path_factory.mktemp("many")
    return crowd(160, 20).write(folder)


@pytest.fixture
def stub(many: Tuple[Path, Path]) -> Iterator[CountingStub]:
    with CountingStub(open_core(*map(str, many))) as made:
        yield made


def over(stub: CountingStub, kernel: Path, *options: str) -> Tuple[int, str]:
    """why-stuck in this process, over the stub."""
    target, notes = open_remote(f"127.0.0.1:{stub.port}", str(kernel))
    out: List[str] = []
    opened = open_target(target, notes=notes)
    status = run_command("why-stuck", options, lambda: opened, out.append, out.append)
    target.stub.close()
    return status, "".join(out)


def direct(kernel: Kernel, *options: str) -> str:
    out: List[str] = []
    run_command("why-stuck", options, lambda: kernel, out.append, out.append)
    return "".join(out)


def test_170_threads_over_the_kernels_stub_cost_less_than_300_kb(
    stub: CountingStub, many: Tuple[Path, Path]
) -> None:
    status, out = over(stub, many[1])
    assert status in (0, 3)
    assert out.splitlines()[-1].startswith(("More:", "warning:"))
    assert len(stub.kernel.target.symbols("allproc")) == 1
    assert stub.total <= BUDGET, (stub.total, stub.packets)
    assert stub.packets <= 6000
    # Nothing but what the stub knows, in packets that its buffer takes.
    assert set(stub.kinds) <= {"?", "m"}
    assert stub.largest <= 400


def test_the_answer_is_the_dumps_or_says_what_it_lacks(
    stub: CountingStub, many: Tuple[Path, Path]
) -> None:
    _, out = over(stub, many[1])
    whole = direct(stub.kernel)
    assert out == whole or "--deep reads it" in out
    _, deep = over(stub, many[1], "--deep")
    assert deep == whole


def test_a_second_command_asks_for_what_the_first_left_out_and_a_third_for_nothing(
    stub: CountingStub, many: Tuple[Path, Path]
) -> None:
    target, notes = open_remote(f"127.0.0.1:{stub.port}", str(many[1]))
    opened = open_target(target, notes=notes)
    run_command("why-stuck", [], lambda: opened, lambda text: None, lambda text: None)
    first = stub.total
    run_command("why-stuck", [], lambda: opened, lambda text: None, lambda text: None)
    second = stub.total
    assert second - first < first / 3
    run_command("why-stuck", [], lambda: opened, lambda text: None, lambda text: None)
    assert stub.total - second < 1000


def test_progress_says_bytes_and_rate(stub: CountingStub, many: Tuple[Path, Path]) -> None:
    told: List[Tuple[str, int]] = []
    target, _ = open_remote(
        f"127.0.0.1:{stub.port}", str(many[1]), progress=lambda *said: told.append(said[:2])
    )
    open_target(target)
    what, done = told[-1]
    assert re.fullmatch(r"over the wire, \d+ packets, \d+\.\d KB/s, bytes", what)
    assert done > 0


def test_a_stub_that_does_not_hear_at_first_is_asked_again_and_it_is_said(
    many: Tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plugin.targets.remote._PATIENCE", 0.2)
    said: List[str] = []
    with CountingStub(open_core(*map(str, many)), deaf=1) as stub:
        target, _ = open_remote(f"127.0.0.1:{stub.port}", str(many[1]), say=said.append)
        target.stub.close()
    assert said == [f"127.0.0.1:{stub.port}: no answer, asked again"]


def test_a_stub_that_stays_silent_is_named_with_what_to_do(
    many: Tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plugin.targets.remote._PATIENCE", 0.1)
    with (
        CountingStub(open_core(*map(str, many)), deaf=99) as stub,
        pytest.raises(WchanError, match=r"does not answer; the machine has to be in it"),
    ):
        Stub(f"127.0.0.1:{stub.port}")


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("127.0.0.1:1", "no stub at 127.0.0.1:1"),
        ("nowhere", "is no HOST:PORT, device or socket"),
        ("/dev/null", "is no serial line"),
        ("/no/such/socket", "No such file"),
    ],
)
def test_where_there_is_no_stub_it_is_one_line(
    address: str, says: str, many: Tuple[Path, Path]
) -> None:
    status, out, error = wchan("-k", str(many[1]), f"remote:{address}", "why-stuck")
    assert (status, out) == (1, "")
    assert says in error
    assert len(error.splitlines()) == 1


def test_a_stub_does_not_say_which_kernel_it_runs(stub: CountingStub) -> None:
    status, _, error = wchan(f"remote:127.0.0.1:{stub.port}", "why-stuck")
    assert status == 1
    assert "-k" in error


# Inside the debuggers, and through the proxy


def test_gdb_on_the_kernels_stub_stays_below_300_kb(
    venv_gdb: Path, stub: CountingStub, many: Tuple[Path, Path]
) -> None:
    connect = ["-ex", f"target remote 127.0.0.1:{stub.port}", "-ex", f"source {ENTRY}"]
    done = subprocess.run(
        [str(venv_gdb), "-nx", "-q", "-batch", str(many[1]), *connect, "-ex", "why-stuck"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.count("chains\n") == 1, done.stderr
    assert stub.total <= BUDGET, (stub.total, stub.packets)


def test_lldb_on_qemus_stub_reads_as_little(venv_lldb: Path, many: Tuple[Path, Path]) -> None:
    with CountingStub(open_core(*map(str, many)), "qemu") as stub:
        done = run_lldb(venv_lldb, many[1], f"connect://127.0.0.1:{stub.port}", {})
        assert done.count("chains\n") == 1, done
        # QEMU counts no runs, and lldb is told of registers and threads besides.
        assert stub.total <= 2 * BUDGET, (stub.total, stub.packets)


def test_lldb_reaches_the_kernels_stub_through_the_proxy(
    venv_lldb: Path, stub: CountingStub, many: Tuple[Path, Path]
) -> None:
    words = [sys.executable, "-m", "plugin", "serve", "-k", str(many[1])]
    with subprocess.Popen(
        [*words, "--proxy", f"127.0.0.1:{stub.port}"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as proxy:
        assert proxy.stdout is not None
        told = [proxy.stdout.readline() for _ in range(3)]
        socket = re.search(r" on (/\S+)", told[0])
        secret = re.search(r"WCHAN_SESSION=(\w+)", told[1])
        assert socket is not None and secret is not None, told
        environment = {**os.environ, "WCHAN_SESSION": secret.group(1)}
        done = run_lldb(
            venv_lldb, many[1], f"unix-connect://{socket.group(1)}", environment, "thread list"
        )
        proxy.terminate()
    assert done.count("chains\n") == 1, done
    assert len(re.findall(r"^[* ] thread #", done, re.MULTILINE)) >= 170
    assert set(stub.kinds) <= {"?", "m"}


def run_lldb(program: Path, kernel: Path, url: str, environment: Any, *commands: str) -> str:
    lines = [
        f'command script import "{ROOT / "plugin"}"',
        f"process connect --plugin gdb-remote {url}",
        "why-stuck",
        *commands,
    ]
    done = subprocess.run(
        [str(program), "--no-lldbinit", "-b", *(w for line in lines for w in ("-o", line)), kernel],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=environment or None,
    )
    return done.stdout


# Real machines


def test_a_real_machine_over_the_kernels_stub(every_dump: Any) -> None:
    kernel = open_core(str(every_dump.vmcore), str(every_dump.kernel))
    with CountingStub(kernel) as stub:
        _, out = over(stub, every_dump.kernel)
        number = int(re.search(r"(\d+)\s+threads:", out).group(1))  # type: ignore[union-attr]
        assert number == len(threads(kernel))
        most = BUDGET * max(170, number) / 170
        assert stub.total <= most, (every_dump.name, stub.total, stub.packets)
        assert out == direct(kernel) or "--deep reads it" in out
