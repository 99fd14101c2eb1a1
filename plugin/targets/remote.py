"""A machine's own gdb stub, spoken to without a debugger: FreeBSD's in the kernel, QEMU's, bhyve's.

FreeBSD's (sys/gdb/gdb_main.c, gdb_packet.c) knows ``m``, ``?`` and the list of threads,
takes packets of a few hundred bytes, wants each acknowledged and counts runs of one
character instead of sending them.  Nothing is asked here that it would not understand, and
nothing that writes or runs: the machine stays as it is.
"""

from __future__ import annotations

import os
import re
import select
import socket
import termios
import time
import tty
from contextlib import suppress
from typing import TYPE_CHECKING, Callable, List, Mapping, Optional, Sequence, Tuple

from plugin import interrupt
from plugin.errors import MemoryFault, WchanError
from plugin.structs.debuginfo import open_debug
from plugin.symbol import Symbol
from plugin.targets.wire import Wire

if TYPE_CHECKING:
    from plugin.structs import LayoutSource
    from plugin.vmcore.elf import ElfFile
    from plugin.vmcore.memory import CarriedModule

#: seconds to wait for an answer, and how often a packet is sent
_PATIENCE, _TRIES = 5.0, 3
#: bytes of memory a packet: the answer has two characters for each (GDB_BUFSZ of 400 and more)
_PIECE = 192
_RUN = re.compile(rb"(.)\*(.)", re.DOTALL)
_PACKET = re.compile(rb"\$([^$#]*)#([0-9a-fA-F]{2})")
_BAUDS = (9600, 19200, 38400, 57600, 115200, 230400)


class Stub:
    """The line to a stub; ``ask`` sends a packet and gives the answer's payload."""

    def __init__(self, address: str, say: Callable[[str], None] = lambda text: None) -> None:
        """``address``: HOST:PORT, a serial line's device (``/dev/ttyU0``, ``,115200`` behind it
        for its speed), or a unix socket.  WchanError where nothing answers.
        """
        self.address = address
        self._say = say
        self._buffer = b""
        self._socket: Optional[socket.socket] = None
        self._fd = self._open(address)
        #: characters sent and received, packets sent
        self.sent = self.received = self.packets = 0
        try:
            # A machine that ran stops now, and what it had under way may come first.
            if not self.ask(b"?").startswith((b"S", b"T")):
                raise WchanError(f"what answers at {address} is no gdb stub")
        except BaseException:
            self.close()
            raise

    def _open(self, address: str) -> int:
        path, _, speed = address.partition(",")
        try:
            if path.startswith("/dev/"):
                return _serial(path, int(speed) if speed.isdigit() else None)
            if path.startswith("/"):
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                self._socket.connect(path)
            else:
                host, _, port = address.rpartition(":")
                if not port.isdigit():
                    raise WchanError(f"{address!r} is no HOST:PORT, device or socket of a stub")
                self._socket = socket.create_connection((host or "localhost", int(port)), 10)
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except (OSError, OverflowError) as error:
            if self._socket is not None:
                self._socket.close()
            reason = getattr(error, "strerror", None) or error
            raise WchanError(f"no stub at {address}: {reason}") from None
        return self._socket.fileno()

    def close(self) -> None:
        """Leave the machine as it is."""
        if self._socket is not None:
            self._socket.close()
        elif self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def ask(self, payload: bytes) -> bytes:
        """The answer to one packet; WchanError where none comes, whatever was tried."""
        packet = b"$%s#%02x" % (payload, sum(payload) & 0xFF)
        for attempt in range(_TRIES):
            if attempt:
                self._say(f"{self.address}: no answer, asked again")
            self._send(packet)
            answer = self._answer()
            if answer is not None:
                return answer
        raise WchanError(
            f"the stub at {self.address} does not answer; the machine has to be in it: "
            "boot -d, sysctl debug.kdb.enter=1 or a break, then gdb in DDB"
        )

    def _send(self, data: bytes) -> None:
        self.packets += 1
        self.sent += len(data)
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError as error:
            raise WchanError(f"the stub at {self.address} has gone: {error.strerror}") from None

    def _answer(self) -> Optional[bytes]:
        """The next whole packet, acknowledged; None where none comes in time."""
        until = time.monotonic() + _PATIENCE
        while True:
            found = _PACKET.search(self._buffer)
            if found is not None:
                self._buffer = self._buffer[found.end() :]
                whole = sum(found.group(1)) & 0xFF == int(found.group(2), 16)
                os.write(self._fd, b"+" if whole else b"-")
                self.sent += 1
                if whole:
                    return _expanded(found.group(1))
                continue
            left = until - time.monotonic()
            if left <= 0 or not select.select([self._fd], [], [], left)[0]:
                # Half a packet is of no use to the next question.
                self._buffer = b""
                return None
            try:
                data = os.read(self._fd, 1 << 16)
            except OSError as error:
                raise WchanError(f"the stub at {self.address} has gone: {error.strerror}") from None
            if not data:
                raise WchanError(f"the stub at {self.address} has closed the connection")
            self.received += len(data)
            self._buffer += data

    def read(self, address: int, size: int) -> bytes:
        """Memory, or MemoryFault."""
        pieces = []
        for at in range(address, address + size, _PIECE):
            wanted = min(_PIECE, address + size - at)
            answer = self.ask(b"m%x,%x" % (at, wanted))
            data = b""
            with suppress(ValueError):
                data = bytes.fromhex(answer.decode("ascii", "replace"))
            if len(data) != wanted:
                raise MemoryFault(at, "the stub cannot read it")
            pieces.append(data)
        return b"".join(pieces)


def _expanded(payload: bytes) -> bytes:
    """An answer with its runs written out: "0* " is four of 0."""
    if b"*" not in payload:
        return payload
    return _RUN.sub(lambda found: found.group(1) * (found.group(2)[0] - 28), payload)


def _serial(path: str, speed: Optional[int]) -> int:
    fd = os.open(path, os.O_RDWR | os.O_NOCTTY)
    try:
        tty.setraw(fd)
        if speed is not None:
            if speed not in _BAUDS:
                raise WchanError(f"{path}: no speed of {speed} baud")
            settings = termios.tcgetattr(fd)
            settings[4] = settings[5] = getattr(termios, f"B{speed}")
            termios.tcsetattr(fd, termios.TCSANOW, settings)
    except termios.error as error:
        os.close(fd)
        raise WchanError(f"{path} is no serial line: {error.args[-1]}") from None
    except BaseException:
        os.close(fd)
        raise
    return fd


class RemoteTarget:
    """A stopped machine behind its stub, symbols from the kernel's file."""

    stable = True
    in_pages = False
    truncated = False
    message_buffer = b""

    def __init__(self, stub: Stub, kernel: ElfFile) -> None:
        self.stub = stub
        self.kernel = kernel
        self.arch = kernel.arch
        self.page_size = 0
        self.description = f"the machine at {stub.address}"
        self.carried: Mapping[str, CarriedModule] = {}
        self.wire = Wire(stub.read, kernel.read_only)
        self.read = self.wire.read
        self.files = (kernel.path, kernel.plain_path)

    def symbols(self, name: str) -> Sequence[Symbol]:
        return self.kernel.symbols(name)

    def symbolize(self, address: int) -> Optional[Tuple[str, int]]:
        return self.kernel.symbolize(address)

    def types(self, notes: List[str]) -> Optional[LayoutSource]:
        """The DWARF or CTF of the kernel file or of its separate debug file."""
        found = open_debug(self.kernel, notes)
        return found.source if found else None

    def interrupted(self) -> bool:
        return interrupt.requested()
