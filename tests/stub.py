"""A gdb stub over a dump's memory that behaves as a kernel's own does, and counts.

``freebsd`` answers as sys/gdb/gdb_main.c and gdb_packet.c of 12.x do: packets of GDB_BUFSZ,
each acknowledged, ``m`` alone for memory and refused whole where a byte is missing, runs
counted, no qSupported, no qXfer, no QStartNoAckMode, all threads by their td_tid.  ``qemu``
answers as QEMU's gdbstub.c: qSupported with a target description, CPUs as threads, no runs.
"""

from __future__ import annotations

import re
import socket
import threading
from contextlib import suppress
from typing import Any, Dict, List, Optional

from plugin.arch import architecture
from plugin.errors import WchanError
from plugin.hosts.inferior import KernelInferior, thread_registers
from plugin.hosts.rsp import target_xml
from plugin.kernel.proc import threads
from plugin.session import Kernel

#: GDB_BUFSZ of amd64 to 12.x is 56 registers of 8 bytes, two characters each
_BUFSZ = 896
#: the registers as amd64's gdb_machdep.h numbers them (arm64's are x0 to x30, sp, pc)
_AMD64 = "rax rbx rcx rdx rsi rdi rbp rsp r8 r9 r10 r11 r12 r13 r14 r15 rip"


def run_lengths(payload: bytes) -> bytes:
    """The payload as gdb_tx_end() sends it: a run as its character, ``*`` and a count."""
    out, at = bytearray(), 0
    while at < len(payload):
        char = payload[at : at + 1]
        run = len(payload[at:]) - len(payload[at:].lstrip(char))
        at += run
        while run:
            more = min(run - 1, 97)
            # One or two more are sent as they are; counts that read as $, #, + or - are not sent.
            while more + 29 in b"#$+-":
                more -= 1
            out += char if more < 3 else char + b"*%c" % (more + 29)
            run -= 1 if more < 3 else more + 1
    return bytes(out)


class CountingStub:
    """Serves one client at a time on a loopback port; ``received`` and ``sent`` are bytes."""

    def __init__(self, kernel: Kernel, kind: str = "freebsd", *, deaf: int = 0) -> None:
        """``deaf``: so many packets are not heard, as of a guest that still has I/O under way."""
        self.kernel = kernel
        self.kind = kind
        self.received = self.sent = self.packets = 0
        self.kinds: Dict[str, int] = {}
        self.largest = 0
        self._deaf = deaf
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        inferior = KernelInferior(kernel, {})
        first = inferior.stopped_tid
        self._threads = sorted(threads(kernel), key=lambda thread: thread.tid != first)
        self._selected = self._threads[0]
        self._listed: Optional[int] = None
        self._closed = False
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def total(self) -> int:
        """Bytes that crossed the wire, both ways."""
        return self.received + self.sent

    def __enter__(self) -> CountingStub:
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with client, suppress(OSError):
                self._converse(client)

    def _converse(self, client: socket.socket) -> None:
        buffer, acknowledge = b"", True
        while True:
            data = client.recv(1 << 16)
            if not data:
                return
            self.received += len(data)
            buffer += data
            while True:
                found = re.search(rb"\$([^#]*)#..", buffer, re.DOTALL)
                if found is None:
                    break
                buffer = buffer[found.end() :]
                if self._deaf:
                    self._deaf -= 1
                    continue
                packet = found.group(1).decode("latin-1")
                self.packets += 1
                self.kinds[packet[:1]] = self.kinds.get(packet[:1], 0) + 1
                self.largest = max(self.largest, len(packet))
                answer = self._answer(packet).encode("latin-1")
                if self.kind == "freebsd":
                    assert len(answer) <= _BUFSZ, "overruns gdb_txbuf"
                    answer = run_lengths(answer)
                reply = b"+" if acknowledge else b""
                reply += b"$%s#%02x" % (answer, sum(answer) & 0xFF)
                if packet == "QStartNoAckMode" and answer == b"OK":
                    acknowledge = False
                self.sent += len(reply)
                client.sendall(reply)

    # What both answer

    def _answer(self, packet: str) -> str:
        common = getattr(self, f"_{packet[:1]}", None) if packet[:1].isalpha() else None
        if packet == "?":
            return f"T05thread:{self._ids()[0]:x};"
        if packet.startswith(("qfThreadInfo", "qsThreadInfo")):
            return self._thread_info(packet[1] == "f")
        if packet == "qC":
            return f"QC{self._ids()[0]:x}"
        if self.kind == "qemu":
            own = self._qemu(packet)
            if own is not None:
                return own
        answer = common(packet[1:]) if common is not None else ""
        return str(answer)

    def _ids(self) -> List[int]:
        if self.kind == "qemu":
            return [1]
        return [thread.tid for thread in self._threads]

    def _thread_info(self, first: bool) -> str:
        start = 0 if first else (self._listed or 0)
        ids = self._ids()[start : start + _BUFSZ // 9]
        self._listed = start + len(ids)
        return "m" + ",".join(f"{tid:x}" for tid in ids) if ids else "l"

    def _H(self, rest: str) -> str:
        number = int(rest[1:] or "0", 16) if not rest[1:].startswith("-") else 0
        if self.kind == "freebsd" and number > 0:
            found = [thread for thread in self._threads if thread.tid == number]
            if not found:
                return "E02"
            self._selected = found[0]
        return "OK"

    def _T(self, rest: str) -> str:
        return "OK" if int(rest, 16) in self._ids() else "E02"

    def _m(self, rest: str) -> str:
        address, size = (int(part, 16) for part in rest.split(","))
        try:
            return self.kernel.target.read(address, size).hex()
        except WchanError:
            return "E14" if self.kind == "qemu" else "E05"

    def _g(self, _: str) -> str:
        known = thread_registers(self.kernel, self._selected)
        if self.kind == "qemu":
            return "".join(
                f"{known[r.name].to_bytes(r.bits // 8, 'little').hex()}"
                if r.name in known
                else "0" * (r.bits // 4)
                for r in architecture(self.kernel.arch).debuggers.registers
            )
        names = _AMD64.split()
        text = "".join(
            known[name].to_bytes(8, "little").hex() if name in known else "x" * 16 for name in names
        )
        # eflags, cs, ss, ds, es, fs, gs follow, four bytes each
        return text + "x" * 56

    def _D(self, _: str) -> str:
        return "OK"

    # What QEMU answers besides

    def _qemu(self, packet: str) -> Optional[str]:
        if packet.startswith("qSupported"):
            return "PacketSize=1000;qXfer:features:read+;vContSupported+"
        if packet.startswith("qXfer:features:read:target.xml:"):
            offset, length = (int(part, 16) for part in packet.rsplit(":", 1)[1].split(","))
            text = target_xml(architecture(self.kernel.arch).debuggers)
            piece = text[offset : offset + length]
            return ("l" if offset + length >= len(text) else "m") + piece
        if packet == "qAttached":
            return "1"
        return None


def stub_of(opened: Any, kind: str = "freebsd", **more: Any) -> CountingStub:
    """A stub over an opened kernel."""
    return CountingStub(opened, kind, **more)
