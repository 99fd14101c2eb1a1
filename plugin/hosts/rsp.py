"""The gdb remote serial protocol, server side: a dump shown to a stock debugger.

No stock debugger reads a FreeBSD minidump off FreeBSD, but every one of them
speaks this protocol.  The server is read-only: it answers questions about
memory, threads and registers and refuses everything that would change or run
the machine.  What it serves is an ``Inferior``; it knows no kernel structure.

Tried with gdb 13 and 18 and lldb 14 to 23; where they disagree (the ``x``
packet, thread names, thread suffixes) each is answered in its own form.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import sys
import tempfile
import threading
from contextlib import suppress
from typing import (
    Callable,
    Dict,
    Iterator,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Protocol,
    Sequence,
    Tuple,
)

from plugin.arch import architecture
from plugin.arch.common import Debuggers, Register
from plugin.errors import MemoryFault, WchanError

#: The largest packet we take or send; lldb and gdb size their reads by it.
PACKET_SIZE = 0x20000
#: The packet that asks which dump is served; see ``Inferior.session``.
SESSION_PACKET = "qWchan.Session"
_THREADS_A_PACKET = 1000
# lldb asks several times per frame: a short answer soon beats a complete one.
_REGION_PAGES = 16
#: an address that no kernel maps, by the size of a pointer; see Connection._loader
_NO_KERNEL = {8: 1 << 46, 4: 0xFFFFF000}
#: the header of an ELF file of type ET_NONE
_HEADER = b"\x7fELF".ljust(64, b"\0")
_NOTHING = ""
_TID = re.compile(r"^(?:p[0-9a-f]+\.)?(-?[0-9a-f]+)$")


class Thread(NamedTuple):
    """One kernel thread as the debugger lists it."""

    tid: int
    name: str


class Inferior(Protocol):
    """What the server shows; every call may raise WchanError."""

    arch: str
    page_size: int

    @property
    def stopped_tid(self) -> int:
        """The thread to be selected at first."""
        ...

    @property
    def stop_reason(self) -> str:
        """Why that thread stopped, for the user."""
        ...

    def threads(self) -> Sequence[Thread]:
        """Every thread, the same list each time."""
        ...

    def registers(self, tid: int) -> Mapping[str, int]:
        """The registers known of a thread, by the names of plugin.arch."""
        ...

    def read(self, address: int, size: int) -> bytes:
        """Exactly ``size`` bytes, or MemoryFault with the first bad address."""
        ...

    def present(self, address: int) -> bool:
        """True where the page of ``address`` can be read."""
        ...

    def code(self, address: int) -> bool:
        """True where the machine had code at ``address``, whether or not it can be read."""
        ...

    @property
    def still(self) -> str:
        """Why it does not run, for the user who tells it to."""
        ...

    def session(self) -> Mapping[str, object]:
        """What the plugin inside the debugger may know: the dump's path, ..."""
        ...


def target_xml(description: Debuggers) -> str:
    """The target description of one architecture, as gdb and lldb both read it."""
    roles = {register: role for role, register in description.roles.items()}
    lines = [
        '<?xml version="1.0"?>',
        '<!DOCTYPE target SYSTEM "gdb-target.dtd">',
        '<target version="1.0">',
        f"<architecture>{description.gdb_names[0]}</architecture>",
        f'<feature name="{description.feature}">',
    ]
    for number, register in enumerate(description.registers):
        group = "float" if register.name in description.floating else "general"
        generic = f' generic="{roles[register.name]}"' if register.name in roles else ""
        lines.append(
            f'<reg name="{register.name}" bitsize="{register.bits}" type="{register.type}" '
            f'regnum="{number}" group="{group}"{generic}/>'
        )
    lines += ["</feature>", "</target>", ""]
    return "\n".join(lines)


def threads_xml(threads: Sequence[Thread]) -> str:
    """The thread list document of qXfer:threads."""
    rows = [f'<thread id="{t.tid:x}" name="{_xml(t.name)}"/>' for t in threads]
    return "\n".join(['<?xml version="1.0"?>', "<threads>", *rows, "</threads>", ""])


def libraries_xml(modules: object) -> str:
    """The document of qXfer:libraries: (file, address of its one section) of each module."""
    rows = [
        f'<library name="{_xml(path)}"><section address="{base:#x}"/></library>'
        for path, base in (modules if isinstance(modules, list) else [])
    ]
    return "\n".join(["<library-list>", *rows, "</library-list>", ""])


def _xml(text: str) -> str:
    for char, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&quot;")):
        text = text.replace(char, entity)
    return "".join(c if c.isprintable() else "?" for c in text)


def _hex(text: str) -> str:
    return text.encode("utf-8", "replace").hex()


# Framing

_SPECIAL = re.compile(rb"[}#$*]")


def escape(data: bytes) -> bytes:
    """Binary data as a reply may carry it."""
    return _SPECIAL.sub(lambda m: bytes((0x7D, m.group()[0] ^ 0x20)), data)


def frame(payload: bytes) -> bytes:
    """A packet around an escaped payload."""
    return b"$%s#%02x" % (payload, sum(payload) & 0xFF)


class Framer:
    """Cuts a byte stream into packets; what is no packet is skipped.

    ``feed`` yields ("packet", payload, checksum good?), ("nak", ..) and
    ("interrupt", ..).  A ``$`` inside a packet starts a new one, so that a
    client that broke off in the middle is understood again at its next packet.
    """

    def __init__(self, limit: int = 2 * PACKET_SIZE) -> None:
        self._buffer = bytearray()
        self._limit = limit

    def feed(self, data: bytes) -> Iterator[Tuple[str, bytes, bool]]:
        buffer = self._buffer
        buffer += data
        while buffer:
            first = buffer[0]
            if first == 0x24:
                end = buffer.find(b"#", 1)
                restart = buffer.find(b"$", 1, end if end >= 0 else len(buffer))
                if restart > 0:
                    del buffer[:restart]
                    continue
                if end < 0 or len(buffer) < end + 3:
                    if len(buffer) > self._limit:
                        buffer.clear()
                    return
                payload = bytes(buffer[1:end])
                check = bytes(buffer[end + 1 : end + 3])
                del buffer[: end + 3]
                yield "packet", payload, check.lower() == b"%02x" % (sum(payload) & 0xFF)
                continue
            del buffer[0]
            if first == 0x2D:
                yield "nak", b"", True
            elif first == 0x03:
                yield "interrupt", b"", True


# One client


class Connection:
    """The state of one debugger's connection: packet in, reply out.

    ``handle(payload)`` gives the reply's payload, escaped, or None where the
    protocol wants no reply.  It never raises: what cannot be answered is an
    error reply.
    """

    def __init__(self, inferior: Inferior, log: Callable[[str], None]) -> None:
        self._inferior = inferior
        self._log = log
        self._arch = architecture(inferior.arch)
        self._description = self._arch.debuggers
        self._order = "little"
        self._selected = inferior.stopped_tid
        self._bare_x = False
        self._list_threads_in_stop = False
        self._documents: Dict[str, bytes] = {}
        self._names: Dict[int, str] = {}
        self.no_ack = False
        self.closing = False
        self._dispatch: List[Tuple[str, Callable[[str], Optional[bytes]]]] = [
            ("QStartNoAckMode", self._start_no_ack),
            ("QThreadSuffixSupported", self._ok),
            ("QListThreadsInStopReply", self._list_threads),
            ("qSupported", self._supported),
            ("qXfer:", self._transfer),
            (SESSION_PACKET, self._session),
            ("qShlibInfoAddr", self._loader),
            ("qOffsets", lambda _: b"Text=0;Data=0;Bss=0"),
            ("qHostInfo", self._host_info),
            ("qProcessInfo", self._process_info),
            ("qMemoryRegionInfo:", self._region),
            ("qThreadExtraInfo,", self._thread_extra),
            ("qThreadStopInfo", self._thread_stop),
            ("qfThreadInfo", lambda _: self._thread_ids(0)),
            ("qsThreadInfo", lambda _: self._thread_ids(self._listed)),
            ("qAttached", lambda _: b"1"),
            ("qSymbol", self._ok),
            ("qC", lambda _: b"QC%x" % self._selected),
            ("jThreadsInfo", self._threads_json),
            ("vKill", self._kill),
            ("vCont;", self._cannot_run),
            ("?", lambda _: self._stop_reply(self._inferior.stopped_tid)),
            ("H", self._select),
            ("T", self._alive),
            ("g", self._read_registers),
            ("p", self._read_register),
            ("m", self._read_hex),
            ("x", self._read_binary),
            ("k", self._kill),
            ("D", self._detach),
            ("c", self._cannot_run),
            ("C", self._cannot_run),
            ("s", self._cannot_run),
            ("S", self._cannot_run),
            ("M", self._refuse),
            ("X", self._refuse),
            ("G", self._refuse),
            ("P", self._refuse),
            # lldb and gdb set breakpoints of their own (dynamic linker) and complain
            # loudly when refused; in a machine that cannot run none is ever reached.
            ("Z", self._ok),
            ("z", self._ok),
        ]
        self._listed = 0

    def handle(self, payload: bytes) -> Optional[bytes]:
        packet = payload.decode("latin-1")
        try:
            for prefix, handler in self._dispatch:
                if packet.startswith(prefix):
                    return handler(packet[len(prefix) :])
        except MemoryFault:
            return b"E0e"
        except WchanError as error:
            self._log(str(error))
            return b"E01"
        except (ValueError, KeyError, IndexError, OverflowError):
            return b"E02"
        except Exception as error:
            # A defect of ours must not take the debugger's session with it.
            self._log(f"internal error at packet {packet[:40]!r}: {error!r}")
            return b"E03"
        return b""

    # What the server is

    def _ok(self, _: str) -> bytes:
        return b"OK"

    def _refuse(self, _: str) -> bytes:
        return b"E01"

    def _start_no_ack(self, _: str) -> bytes:
        self.no_ack = True
        return b"OK"

    def _list_threads(self, _: str) -> bytes:
        self._list_threads_in_stop = True
        return b"OK"

    def _supported(self, _: str) -> bytes:
        return (
            b"PacketSize=%x;QStartNoAckMode+;qXfer:features:read+;qXfer:threads:read+;"
            b"qXfer:libraries:read+;"
            b"binary-upload+;swbreak-;hwbreak-;multiprocess-" % PACKET_SIZE
        )

    def _transfer(self, rest: str) -> bytes:
        kind, action, annex, span = rest.split(":", 3)
        offset, length = (int(part, 16) for part in span.split(","))
        if action != "read" or kind not in ("features", "threads", "libraries"):
            return b""
        key = f"{kind}:{annex}"
        if offset == 0 or key not in self._documents:
            if kind == "threads":
                text = threads_xml(self._inferior.threads())
            elif kind == "libraries":
                text = libraries_xml(self._inferior.session().get("modules"))
            elif annex == "target.xml":
                text = target_xml(self._description)
            else:
                return b"E00"
            self._documents[key] = text.encode("utf-8", "replace")
        data = self._documents[key]
        # Escaping may double a byte; half a packet always fits.
        piece = data[offset : offset + min(length, PACKET_SIZE // 2)]
        return (b"m" if offset + len(piece) < len(data) else b"l") + escape(piece)

    def _session(self, _: str) -> bytes:
        return json.dumps(dict(self._inferior.session())).encode().hex().encode()

    def _machine(self) -> str:
        d = self._description
        return f"triple:{_hex(d.triple)};ptrsize:{self._arch.pointer_size};endian:{self._order};"

    def _host_info(self, _: str) -> bytes:
        # Answers can take as long as the thread list of a huge machine.
        page_size = self._inferior.page_size
        return (self._machine() + f"vm-page-size:{page_size};default_packet_timeout:60;").encode()

    def _process_info(self, _: str) -> bytes:
        return ("pid:1;ostype:freebsd;" + self._machine()).encode()

    # Threads

    def _name(self, tid: int) -> str:
        if not self._names:
            self._names = {t.tid: t.name for t in self._inferior.threads()}
        return self._names[tid]

    def _thread_ids(self, start: int) -> bytes:
        threads = self._inferior.threads()[start : start + _THREADS_A_PACKET]
        self._listed = start + len(threads)
        return b"m" + b",".join(b"%x" % t.tid for t in threads) if threads else b"l"

    def _parse_tid(self, text: str) -> int:
        match = _TID.match(text)
        if match is None:
            raise ValueError(text)
        tid = int(match.group(1), 16)
        return self._selected if tid <= 0 else tid

    def _select(self, rest: str) -> bytes:
        tid = self._parse_tid(rest[1:])
        self._name(tid)
        if rest[0] == "g":
            self._selected = tid
        return b"OK"

    def _alive(self, rest: str) -> bytes:
        self._name(self._parse_tid(rest))
        return b"OK"

    def _thread_extra(self, rest: str) -> bytes:
        return _hex(self._name(self._parse_tid(rest))).encode()

    def _thread_stop(self, rest: str) -> bytes:
        return self._stop_reply(self._parse_tid(rest))

    def _stop_reply(self, tid: int) -> bytes:
        inferior = self._inferior
        first = tid == inferior.stopped_tid
        reply = f"T{5 if first else 0:02x}thread:{tid:x};"
        reply += "".join(f"{n:02x}:{value};" for n, value in self._known_registers(tid))
        if self._list_threads_in_stop:
            # Only lldb asked for these; gdb would skip them.
            reply += f"hexname:{_hex(self._name(tid))};"
            if first:
                reason = _hex(inferior.stop_reason)
                reply += f"reason:exception;description:{reason};"
                reply += f"threads:{','.join(f'{t.tid:x}' for t in inferior.threads())};"
        return reply.encode()

    def _threads_json(self, _: str) -> bytes:
        inferior = self._inferior
        rows = []
        for thread in inferior.threads():
            row: Dict[str, object] = {"tid": thread.tid, "name": thread.name, "reason": "none"}
            if thread.tid == inferior.stopped_tid:
                row.update(reason="exception", description=inferior.stop_reason, signal=5)
            row["registers"] = {str(n): value for n, value in self._known_registers(thread.tid)}
            rows.append(row)
        return escape(json.dumps(rows, separators=(",", ":")).encode())

    # Registers

    def _encode(self, register: Register, value: int) -> str:
        size = register.bits // 8
        return (value & ((1 << register.bits) - 1)).to_bytes(size, "little").hex()

    def _known_registers(self, tid: int) -> Iterator[Tuple[int, str]]:
        known = self._inferior.registers(tid)
        for number, register in enumerate(self._description.registers):
            if register.name in known:
                yield number, self._encode(register, known[register.name])

    def _suffix(self, rest: str) -> Tuple[str, int]:
        """(text before, thread) of a packet with lldb's ``;thread:ID;`` suffix."""
        text, _, suffix = rest.partition(";thread:")
        return text, self._parse_tid(suffix.rstrip(";")) if suffix else self._selected

    def _read_registers(self, rest: str) -> bytes:
        _, tid = self._suffix(rest)
        self._name(tid)
        known = self._inferior.registers(tid)
        return "".join(
            self._encode(r, known[r.name]) if r.name in known else "x" * (r.bits // 4)
            for r in self._description.registers
        ).encode()

    def _read_register(self, rest: str) -> bytes:
        text, tid = self._suffix(rest)
        self._name(tid)
        register = self._description.registers[int(text, 16)]
        known = self._inferior.registers(tid)
        if register.name not in known:
            return b"E01"
        return self._encode(register, known[register.name]).encode()

    # Memory

    def _span(self, rest: str) -> Tuple[int, int]:
        address, _, size = rest.partition(",")
        return int(address, 16), int(size, 16)

    def _loader(self, _: str) -> bytes:
        """Where lldb is to look for the kernel in memory: at something that is none.

        lldb 19 to 23 crash (DynamicLoaderFreeBSDKernel::CheckForKernelImageAtAddress
        reports through a null pointer) where a kernel file says that it is one and the
        memory at its address holds no ELF header: it was booted as a raw image, or the
        dump lacks the page.  At this address, which no kernel maps, there is a header,
        but not that of an executable, and lldb goes on without that loader; what it
        would find out, the file and the dump's threads say already.
        """
        return b"%x" % _NO_KERNEL[self._arch.pointer_size]

    def _no_kernel(self, address: int, size: int) -> bytes:
        """What is read at the address that _loader gives, b"" anywhere else."""
        start = address - _NO_KERNEL[self._arch.pointer_size]
        if not 0 <= start < len(_HEADER):
            return b""
        return _HEADER.ljust(start + size, b"\0")[start : start + size]

    def _read(self, address: int, size: int) -> bytes:
        """As many bytes as are readable from ``address`` on; MemoryFault if none."""
        made_up = self._no_kernel(address, size)
        if made_up:
            return made_up
        try:
            return self._inferior.read(address, size)
        except MemoryFault as fault:
            if not address < fault.address < address + size:
                raise
            return self._inferior.read(address, fault.address - address)

    def _read_hex(self, rest: str) -> bytes:
        address, size = self._span(rest)
        if not size:
            return b""
        return self._read(address, min(size, PACKET_SIZE // 2 - 8)).hex().encode()

    def _read_binary(self, rest: str) -> bytes:
        # Three dialects: lldb before 21 probes with a read of nothing, expects OK
        # and then bare data; gdb 16 and lldb 21 saw binary-upload+ and expect a "b".
        address, size = self._span(rest)
        if not size:
            self._bare_x = True
            return b"OK"
        data = escape(self._read(address, min(size, PACKET_SIZE // 2 - 8)))
        return data if self._bare_x else b"b" + data

    def _region(self, rest: str) -> bytes:
        inferior = self._inferior
        page = inferior.page_size
        start = int(rest, 16) & ~(page - 1)
        kind = self._kind(start)
        present = kind != _NOTHING
        end = start + page
        if not present and self._arch.pointer_size == 8 and start < 1 << 63:
            end = 1 << 63
        top = min(start + _REGION_PAGES * page, 1 << 8 * self._arch.pointer_size)
        while end < top and self._kind(end) == kind:
            end += page
        permissions = f"permissions:{kind};" if present else ""
        return f"start:{start:x};size:{end - start:x};{permissions}".encode()

    def _kind(self, address: int) -> str:
        """The permissions of a page.

        lldb unwinds only into code.  Of the pages present no dump says which are code,
        and those of code may be absent and are code all the same.
        """
        if self._inferior.present(address):
            return "rwx"
        return "rx" if self._inferior.code(address) else _NOTHING

    # What would change or end the machine

    def _cannot_run(self, _: str) -> bytes:
        return self._stop_reply(self._selected)

    def output_before(self, payload: bytes) -> Optional[bytes]:
        """Text for the user that precedes the reply to ``payload``, or None."""
        if payload[:1] in (b"c", b"C", b"s", b"S") or payload.startswith(b"vCont;"):
            return b"O" + _hex(self._inferior.still + "\n").encode()
        return None

    def _kill(self, rest: str) -> Optional[bytes]:
        self.closing = True
        return b"OK" if rest.startswith(";") else None

    def _detach(self, _: str) -> bytes:
        self.closing = True
        return b"OK"


class Server:
    """Serves one inferior on a unix socket (or loopback TCP) until closed.

    Clients may come and go and be several at once; each has its own thread,
    the inferior is asked by one at a time.  The unix socket lies in a directory
    of its own that only this user can enter, and goes with it.
    """

    def __init__(
        self,
        inferior: Inferior,
        *,
        port: Optional[int] = None,
        log: Optional[Callable[[str], None]] = None,
    ) -> None:
        architecture(inferior.arch)  # refused before there is a socket to remove
        self._inferior = inferior
        self._log = log or (lambda text: print(f"wchan serve: {text}", file=sys.stderr))
        self._lock = threading.Lock()
        self._directory: Optional[str] = None
        if port is None:
            self._directory = _private_directory()
            self.address = os.path.join(self._directory, "socket")
            self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._listener.bind(self.address)
        else:
            self._listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                self._listener.bind(("127.0.0.1", port))
            except (OSError, OverflowError) as error:
                self._listener.close()
                raise WchanError(f"cannot listen on 127.0.0.1 port {port}: {error}") from None
            self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._listener.listen(8)
        self._clients: List[socket.socket] = []
        self._closed = False

    def start(self) -> None:
        """Serve in a thread of this process."""
        threading.Thread(target=self.serve_forever, name="wchan serve", daemon=True).start()

    def serve_forever(self) -> None:
        """Accept clients until ``close``."""
        while not self._closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._clients.append(client)
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            if client.family == socket.AF_INET:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.converse(client)
        except OSError:
            # The client went away in the middle: nothing of ours depends on it.
            pass
        finally:
            client.close()
            if client in self._clients:
                self._clients.remove(client)

    def converse(self, client: socket.socket) -> None:
        """Answer one client until it leaves."""
        with self._lock:
            connection = Connection(self._inferior, self._log)
        framer, last = Framer(), b""
        while not connection.closing:
            data = client.recv(1 << 16)
            if not data:
                return
            for kind, payload, good in framer.feed(data):
                if kind == "nak" and not connection.no_ack and last:
                    client.sendall(last)
                if kind != "packet":
                    continue
                if not connection.no_ack:
                    client.sendall(b"+" if good else b"-")
                    if not good:
                        continue
                with self._lock:
                    reply = connection.handle(payload)
                output = connection.output_before(payload)
                if output is not None:
                    client.sendall(frame(output))
                if reply is not None:
                    last = frame(reply)
                    client.sendall(last)
                if connection.closing:
                    return

    def close(self) -> None:
        """Stop listening, drop the clients, remove the socket."""
        self._closed = True
        # Closing alone does not wake a thread that waits in accept.
        for sock in (self._listener, *self._clients):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)


def _private_directory() -> str:
    """A new directory, mode 0700, short enough for a socket's path (104 bytes)."""
    for base in (os.environ.get("XDG_RUNTIME_DIR"), None, "/tmp"):
        if base is not None and not os.access(base, os.W_OK):
            continue
        made = tempfile.mkdtemp(prefix="wchan-", dir=base)
        if len(os.fsencode(made)) < 90:
            return made
        os.rmdir(made)
    raise WchanError("no directory with a short enough name for a socket; set TMPDIR")
