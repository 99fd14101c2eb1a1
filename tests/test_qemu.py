"""QEMU's own gdb stub, on a guest whose memory is a forged machine's: nothing is built or booted.

The forged pages are put where a full dump has them, and the processor is told over the stub
itself to use their page tables; it never runs.  ``WCHAN_QEMU`` names a QEMU that is not on PATH.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Tuple

import pytest
from hosts import ROOT, process, wchan

from plugin.errors import WchanError
from plugin.opening import open_core
from plugin.targets.remote import Stub
from plugin.vmcore import ElfFile
from plugin.vmcore.elf import PT_LOAD
from tests.forge.bufs import BIO_READ
from tests.forge.formats import Format
from tests.forge.machine import Machine

QEMU = os.environ.get("WCHAN_QEMU") or shutil.which("qemu-system-x86_64")
pytestmark = pytest.mark.skipif(QEMU is None, reason="no qemu-system-x86_64 on PATH")

#: CR0.PE, ET, PG; CR4.PAE, PGE; EFER.LME, LMA, NXE
LONG_MODE = {"cr4": 0xA0, "efer": 0xD00, "cr0": 0x80000011}


#: below it lies the PC's own firmware
LOW = 0x100000


def stuck() -> Machine:
    """A machine of which six readers wait for a disk, one of them with a lock that others want."""
    made = Machine(1402000, "amd64", ram_start=LOW, ram=64 << 20, nbuf=64)
    disk = made.geom.disk("da", 0, mediasize=1 << 40)
    mount = made.vfs.ffs("/", made.geom.vfs(disk.provider))
    for number in range(6):
        reader = made.procs.process(f"reader{number}").thread()
        buf = made.bufs.buf(None, 0, blkno=number * 32, cmd=BIO_READ, owner=reader)
        made.bufs.start(buf, mount, seconds=number + 60).to_device()
        buf.waited_by(reader, "biord", seconds=number + 60)
        if number == 0:
            lock = made.locks.sx("the lock")
            lock.owned_by(reader)
            for other in range(20):
                lock.slept_on_by(made.procs.process(f"other{other}").thread(), seconds=59)
    return made


class Guest(NamedTuple):
    """A guest that is stopped, the kernel it seems to run, and the dump that its memory is from."""

    address: str
    kernel: Path
    vmcore: Path


def numbers(stub: Stub) -> Dict[str, int]:
    """QEMU's numbers of its registers, from its target description."""
    found: Dict[str, int] = {}

    def read(annex: str) -> str:
        text, at = "", 0
        while True:
            piece = stub.ask(f"qXfer:features:read:{annex}:{at:x},800".encode()).decode("latin-1")
            text, at = text + piece[1:], at + len(piece) - 1
            if piece.startswith("l"):
                return re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)

    for annex in re.findall(r'<xi:include href="([^"]+)"', read("target.xml")):
        for attributes in re.findall(r"<reg ([^>]*)/>", read(annex)):
            number = re.search(r'regnum="(\d+)"', attributes)
            at = int(number.group(1)) if number else max(found.values(), default=-1) + 1
            found[re.search(r'name="([^"]+)"', attributes).group(1)] = at  # type: ignore[union-attr]
    return found


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    folder = tmp_path_factory.mktemp("guest")
    made = stuck()
    vmcore, kernel = made.write(folder, form=Format("full"))
    with ElfFile(vmcore) as core:
        segments = [s for s in core.segments if s.type == PT_LOAD]
        assert min(s.paddr for s in segments) >= LOW
        top = max(s.paddr + s.filesz for s in segments)
        image = folder / "memory"
        with image.open("wb") as file:
            for segment in segments:
                file.seek(segment.paddr - LOW)
                file.write(core.pread(segment.offset, segment.filesz))
    opened = open_core(str(vmcore), str(kernel))
    root = opened.global_value("KPML4phys")
    port = free_port()
    command = [str(QEMU), "-machine", "pc", "-nodefaults", "-display", "none", "-S"]
    command += ["-m", f"{-(-top // (1 << 20)) + 1}M", "-gdb", f"tcp:127.0.0.1:{port}"]
    command += ["-device", f"loader,file={image},addr={LOW:#x},force-raw=on"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
        try:
            address = f"127.0.0.1:{port}"
            stub = connected(address, running)
            known = numbers(stub)
            for name, value in {"cr3": root, **LONG_MODE}.items():
                packet = f"P{known[name]:x}={value.to_bytes(8, 'little').hex()}"
                assert stub.ask(packet.encode()) == b"OK", name
            stub.close()
            yield Guest(address, kernel, vmcore)
        finally:
            running.terminate()


def connected(address: str, running: subprocess.Popen[str]) -> Stub:
    for _ in range(100):
        if running.poll() is not None:
            assert running.stderr is not None
            pytest.fail(f"qemu: {running.stderr.read()}")
        try:
            return Stub(address)
        except WchanError:
            time.sleep(0.1)
    return Stub(address)


def answer(dump: Guest) -> List[str]:
    """What why-stuck says of the same memory as a dump, without the last lines."""
    return body(wchan("-k", str(dump.kernel), str(dump.vmcore), "why-stuck")[1])


def body(out: str) -> List[str]:
    lines = out[out.index("FreeBSD ") :].splitlines()
    return [line for line in lines if line and not line.startswith("warning:")]


def test_the_shell_says_over_qemus_stub_what_it_says_of_the_dump(guest: Guest) -> None:
    status, out, error = wchan("-k", str(guest.kernel), f"remote:{guest.address}", "why-stuck")
    assert status in (0, 3), error
    assert body(out) == answer(guest)


def test_gdb_says_the_same(guest: Guest, venv_gdb: Path) -> None:
    words = ["-nx", "-q", "-batch", str(guest.kernel), "-ex", f"target remote {guest.address}"]
    entry = ROOT / "plugin" / "kernel-gdb.py"
    out, _ = run(
        str(venv_gdb), *words, "-ex", f"source {entry}", "-ex", "why-stuck", "-ex", "disconnect"
    )
    assert body(out)[:20] == answer(guest)[:20]


def test_lldb_says_the_same_through_the_proxy(guest: Guest, venv_lldb: Path) -> None:
    words = ["lldb", "-k", str(guest.kernel), "--debugger", str(venv_lldb)]
    status, out, error = process(
        *words, f"remote:{guest.address}", "--", "--no-lldbinit", "-b", "-o", "why-stuck"
    )
    assert status == 0, error
    assert body(out)[:20] == answer(guest)[:20]


def run(*words: str) -> Tuple[str, str]:
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    return done.stdout, done.stderr
