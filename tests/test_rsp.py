"""The remote-protocol server, packet by packet, on an inferior made up here."""

from __future__ import annotations

import json
import os
import re
import socket
import stat
import xml.etree.ElementTree as ElementTree
from typing import Any, Dict, Iterator, List, Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plugin.arch import BY_NAME, architecture
from plugin.errors import MemoryFault, WchanError
from plugin.hosts import rsp
from plugin.hosts.rsp import Connection, Framer, Server, Thread, escape, frame

BASE = 0xFFFFFFFF80200000
#: every byte value, so that each one that must be escaped is there
MEMORY = bytes(range(256)) * 32
NASTY = '(pid 7) <"&> }#$* \x01 ü'


class Inferior:
    """Two pages of memory and three threads, the second of which panicked."""

    arch = "amd64"
    page_size = 4096
    stopped_tid = 100002
    stop_reason = "panic: it's }#$*"
    still = "This is a dump: it cannot run."

    def threads(self) -> Sequence[Thread]:
        return [Thread(100001, "(pid 1) init"), Thread(100002, NASTY), Thread(100003, "(pid 9) x")]

    def registers(self, tid: int) -> Mapping[str, int]:
        if tid == 100003:
            return {}
        return {"rip": BASE + tid, "rsp": 1 << 63, "rbx": 0x1122334455667788}

    def read(self, address: int, size: int) -> bytes:
        for at in (address, address + size - 1):
            if not BASE <= at < BASE + len(MEMORY):
                raise MemoryFault(max(address, BASE + len(MEMORY)) if address >= BASE else address)
        return MEMORY[address - BASE : address - BASE + size]

    def present(self, address: int) -> bool:
        return BASE <= address < BASE + len(MEMORY)

    def code(self, address: int) -> bool:
        return BASE - 4096 <= address < BASE

    def session(self) -> Mapping[str, object]:
        return {"vmcore": "/a/vmcore"}


@pytest.fixture
def log() -> List[str]:
    return []


@pytest.fixture
def client(log: List[str]) -> Connection:
    return Connection(Inferior(), log.append)


def ask(client: Connection, packet: str) -> str:
    reply = client.handle(packet.encode("latin-1"))
    assert reply is not None
    return reply.decode("latin-1")


def unescape(reply: bytes) -> bytes:
    """As a debugger does it."""
    out, taken = bytearray(), iter(reply)
    for byte in taken:
        out.append(next(taken) ^ 0x20 if byte == 0x7D else byte)
    return bytes(out)


# Framing


@given(st.lists(st.binary(max_size=40)), st.data())
def test_packets_are_found_however_the_stream_is_cut(payloads: List[bytes], data: Any) -> None:
    stream = b"".join(frame(escape(p)) for p in payloads)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)))))
    framer, found = Framer(), []
    for start, end in zip([0, *cuts], [*cuts, len(stream)]):
        found += list(framer.feed(stream[start:end]))
    assert [(kind, unescape(p), good) for kind, p, good in found] == [
        ("packet", p, True) for p in payloads
    ]


def test_a_wrong_checksum_is_told() -> None:
    assert list(Framer().feed(b"$g#00")) == [("packet", b"g", False)]


@pytest.mark.parametrize("garbage", [b"hello\r\n", b"+++", b"$half a packet", b"\xff\x00", b"#67"])
def test_after_garbage_the_next_packet_is_understood(garbage: bytes) -> None:
    events = list(Framer().feed(garbage + frame(b"qC")))
    assert ("packet", b"qC", True) in events


def test_a_packet_without_an_end_is_not_kept_for_ever() -> None:
    framer = Framer(limit=100)
    assert list(framer.feed(b"$" + b"x" * 1000)) == []
    assert list(framer.feed(frame(b"g"))) == [("packet", b"g", True)]


@given(st.binary(max_size=60))
def test_no_packet_makes_the_connection_fail(payload: bytes) -> None:
    log: List[str] = []
    connection = Connection(Inferior(), log.append)
    connection.handle(payload)
    assert log == []
    assert connection.handle(b"qOffsets") == b"Text=0;Data=0;Bss=0"


@given(st.sampled_from("gpmxHTqQjvzZkD?"), st.text("0123456789abcdef,;:-+p", max_size=30))
def test_no_malformed_argument_makes_it_fail(kind: str, rest: str) -> None:
    log: List[str] = []
    Connection(Inferior(), log.append).handle((kind + rest).encode())
    assert log == []


# Start-up


def test_what_is_announced_is_answered(client: Connection) -> None:
    features = ask(client, "qSupported:multiprocess+;xmlRegisters=i386").split(";")
    assert {"QStartNoAckMode+", "qXfer:features:read+", "qXfer:threads:read+"} <= set(features)
    assert f"PacketSize={rsp.PACKET_SIZE:x}" in features
    assert ask(client, "QStartNoAckMode") == "OK"
    assert client.no_ack


def test_lldb_reads_globals_only_if_told_that_nothing_has_moved(client: Connection) -> None:
    assert ask(client, "qOffsets") == "Text=0;Data=0;Bss=0"


@pytest.mark.parametrize(
    ("arch", "triple", "width"),
    [
        ("amd64", "x86_64-unknown-freebsd", 8),
        ("i386", "i386-unknown-freebsd", 4),
        ("arm64", "aarch64-unknown-freebsd", 8),
    ],
)
def test_the_triple_is_the_kernels(arch: str, triple: str, width: int) -> None:
    inferior = Inferior()
    inferior.arch = arch
    connection = Connection(inferior, print)
    for packet in ("qHostInfo", "qProcessInfo"):
        told = dict(pair.split(":") for pair in ask(connection, packet).rstrip(";").split(";"))
        assert bytes.fromhex(told["triple"]).decode() == triple
        assert told["ptrsize"] == str(width)
        assert told["endian"] == "little"


@pytest.mark.parametrize("arch", sorted(BY_NAME))
def test_the_target_description_numbers_a_saved_register_first(arch: str) -> None:
    description = architecture(arch).debuggers
    root = ElementTree.fromstring(re.sub("<!DOCTYPE.*>", "", rsp.target_xml(description)))
    registers = root.findall("feature/reg")
    names = [r.attrib["name"] for r in registers]
    assert [int(r.attrib["regnum"]) for r in registers] == list(range(len(registers)))
    assert len(set(names)) == len(names)
    # lldb reads register 0 to learn whether single registers can be read at all.
    assert any(names[0] in saved.registers for saved in architecture(arch).stacks.pcb)
    assert set(description.roles.values()) <= set(names)


def test_what_needs_a_kernel_stub_is_left_alone(client: Connection) -> None:
    for packet in ("vMustReplyEmpty", "vCont?", "qTStatus", "R00", "_M1000,rwx", "vRun;"):
        assert ask(client, packet) == ""


# Documents in pieces


@pytest.mark.parametrize("size", [1, 7, 100, 0x1FFFF])
def test_a_document_is_read_in_pieces(client: Connection, size: int) -> None:
    whole, offset = b"", 0
    while True:
        reply = ask(client, f"qXfer:features:read:target.xml:{offset:x},{size:x}")
        piece = unescape(reply[1:].encode("latin-1"))
        whole, offset = whole + piece, offset + len(piece)
        if reply[0] == "l":
            break
    assert whole.decode() == rsp.target_xml(architecture("amd64").debuggers)


def test_the_thread_list_is_xml_whatever_a_thread_is_called(client: Connection) -> None:
    reply = ask(client, "qXfer:threads:read::0,ffff")
    root = ElementTree.fromstring(unescape(reply[1:].encode("latin-1")))
    assert [int(t.attrib["id"], 16) for t in root] == [100001, 100002, 100003]
    assert root[1].attrib["name"] == NASTY.replace("\x01", "?")


def test_unknown_documents_are_refused(client: Connection) -> None:
    assert ask(client, "qXfer:features:read:other.xml:0,10") == "E00"
    assert ask(client, "qXfer:auxv:read::0,10") == ""
    assert ask(client, "qXfer:features:write:target.xml:0:x") in ("", "E02")


# Threads


def test_threads_are_listed_the_old_way_too(client: Connection) -> None:
    assert ask(client, "qfThreadInfo") == "m186a1,186a2,186a3"
    assert ask(client, "qsThreadInfo") == "l"
    assert bytes.fromhex(ask(client, "qThreadExtraInfo,186a1")) == b"(pid 1) init"


def test_a_long_list_comes_in_several_packets() -> None:
    class Many(Inferior):
        def threads(self) -> Sequence[Thread]:
            return [Thread(tid, "x") for tid in range(1, 2501)]

    connection = Connection(Many(), print)
    found = ask(connection, "qfThreadInfo")[1:].split(",")
    while (reply := ask(connection, "qsThreadInfo")) != "l":
        found += reply[1:].split(",")
    assert [int(tid, 16) for tid in found] == list(range(1, 2501))


def test_the_thread_that_panicked_is_current(client: Connection) -> None:
    assert ask(client, "?").startswith("T05thread:186a2;")
    assert ask(client, "qC") == "QC186a2"
    assert ask(client, "Hg186a1") == "OK"
    assert ask(client, "qC") == "QC186a1"
    assert ask(client, "Hg0") == ask(client, "Hc-1") == "OK"
    assert ask(client, "qC") == "QC186a1"


def test_no_thread_that_is_not_there_can_be_selected(client: Connection) -> None:
    assert ask(client, "T186a3") == "OK"
    for packet in ("T1", "Hg1", "Hg", "T", "Hgzz", "qThreadExtraInfo,77", "g;thread:1;"):
        assert ask(client, packet).startswith("E"), packet


def test_lldb_gets_all_threads_with_names_and_registers_at_once(client: Connection) -> None:
    rows = json.loads(unescape(ask(client, "jThreadsInfo").encode("latin-1")))
    assert [row["tid"] for row in rows] == [100001, 100002, 100003]
    assert rows[1]["name"] == NASTY
    assert rows[1]["description"] == Inferior.stop_reason
    assert rows[0]["registers"]["0"] == "8877665544332211"
    assert rows[2]["registers"] == {}
    # lldb calls a process without a reason to stop running.
    assert [row["reason"] for row in rows] == ["none", "exception", "none"]


def test_only_lldb_is_told_names_in_the_stop_reply(client: Connection) -> None:
    assert "hexname" not in ask(client, "?")
    assert ask(client, "QListThreadsInStopReply") == "OK"
    told = dict(pair.split(":") for pair in ask(client, "?")[3:].rstrip(";").split(";"))
    assert bytes.fromhex(told["hexname"]).decode() == NASTY
    assert bytes.fromhex(told["description"]).decode() == Inferior.stop_reason
    assert told["threads"] == "186a1,186a2,186a3"


# Registers


def values(client: Connection, packet: str = "g") -> Dict[str, str]:
    reply, found, at = ask(client, packet), {}, 0
    for register in architecture("amd64").debuggers.registers:
        found[register.name] = reply[at : at + register.bits // 4]
        at += register.bits // 4
    assert at == len(reply)
    return found


def test_registers_the_kernel_did_not_save_are_unknown_not_zero(client: Connection) -> None:
    found = values(client)
    assert found["rbx"] == "8877665544332211"
    assert found["rax"] == "x" * 16
    assert found["st0"] == "x" * 20
    assert set("".join(values(client, "g;thread:186a3;").values())) == {"x"}


def test_single_registers(client: Connection) -> None:
    names = [r.name for r in architecture("amd64").debuggers.registers]
    assert ask(client, "p0") == "8877665544332211"
    rip = ask(client, f"p{names.index('rip'):x};thread:186a1;")
    assert int.from_bytes(bytes.fromhex(rip), "little") == BASE + 100001
    assert ask(client, f"p{names.index('rax'):x}") == "E01"
    assert ask(client, "pffff") == "E02"


# Memory


def test_memory_in_hexadecimal(client: Connection) -> None:
    assert bytes.fromhex(ask(client, f"m{BASE + 5:x},80")) == MEMORY[5 : 5 + 0x80]


def test_memory_as_gdb_16_and_lldb_21_want_it(client: Connection) -> None:
    reply = client.handle(f"x{BASE:x},100".encode())
    assert reply is not None
    assert unescape(reply) == b"b" + MEMORY[:0x100]


def test_memory_as_older_lldbs_want_it(client: Connection) -> None:
    assert ask(client, "x0,0") == "OK"
    reply = client.handle(f"x{BASE:x},100".encode())
    assert reply is not None
    assert unescape(reply) == MEMORY[:0x100]


def test_a_read_that_leaves_memory_gives_what_there_is(client: Connection) -> None:
    end = BASE + len(MEMORY)
    assert bytes.fromhex(ask(client, f"m{end - 3:x},10")) == MEMORY[-3:]
    assert ask(client, f"m{end:x},10").startswith("E")
    assert ask(client, "m0,8").startswith("E")
    assert ask(client, "mffffffffffffffff,8").startswith("E")


def test_no_reply_is_longer_than_announced() -> None:
    class Large(Inferior):
        def read(self, address: int, size: int) -> bytes:
            return b"}" * size

    connection = Connection(Large(), print)
    for packet in (b"m1000,ffffff", b"x1000,ffffff"):
        reply = connection.handle(packet)
        assert reply is not None
        assert 0 < len(reply) <= rsp.PACKET_SIZE


def test_memory_regions(client: Connection) -> None:
    assert ask(client, f"qMemoryRegionInfo:{BASE + 4097:x}") == (
        f"start:{BASE + 4096:x};size:1000;permissions:rwx;"
    )
    # User space is answered as one hole: lldb asks for each wild return address.
    assert ask(client, "qMemoryRegionInfo:1234") == "start:1000;size:7ffffffffffff000;"
    last = ask(client, f"qMemoryRegionInfo:{(1 << 64) - 1:x}")
    assert last == "start:fffffffffffff000;size:1000;"


# What a dump cannot do


@pytest.mark.parametrize("packet", [f"M{BASE:x},1:00", f"X{BASE:x},1:a", "G00", "P0=00"])
def test_nothing_can_be_written(client: Connection, packet: str) -> None:
    assert ask(client, packet) == "E01"
    assert ask(client, f"m{BASE:x},4") == "00010203"


@pytest.mark.parametrize("packet", [b"c", b"s", b"C05", b"vCont;c"])
def test_a_dump_does_not_run_and_says_so(client: Connection, packet: bytes) -> None:
    output = client.output_before(packet)
    assert output is not None
    assert bytes.fromhex(output[1:].decode()) == b"This is a dump: it cannot run.\n"
    assert (client.handle(packet) or b"").startswith(b"T05thread:186a2;")
    assert client.output_before(b"qC") is None


def test_a_debuggers_own_breakpoints_are_no_cause_for_complaint(client: Connection) -> None:
    assert ask(client, f"Z0,{BASE:x},1") == "OK"
    assert ask(client, f"z0,{BASE:x},1") == "OK"


@pytest.mark.parametrize("packet", [b"k", b"vKill;1", b"D"])
def test_to_kill_it_is_to_leave_it(client: Connection, packet: bytes) -> None:
    assert client.handle(packet) in (None, b"OK")
    assert client.closing


def test_the_plugin_may_ask_which_dump_this_is(client: Connection) -> None:
    assert json.loads(bytes.fromhex(ask(client, "qWchan.Session"))) == {"vmcore": "/a/vmcore"}


def test_an_error_of_the_dump_is_an_error_reply(log: List[str]) -> None:
    class Broken(Inferior):
        def threads(self) -> Sequence[Thread]:
            raise WchanError("no thread can be read from this dump")

        def registers(self, tid: int) -> Mapping[str, int]:
            raise RuntimeError("a defect")

    connection = Connection(Broken(), log.append)
    assert connection.handle(b"qfThreadInfo") == b"E01"
    assert connection.handle(b"?") == b"E03"
    assert log[0] == "no thread can be read from this dump"
    assert "a defect" in log[1]


# The server


@pytest.fixture
def server(log: List[str]) -> Iterator[Server]:
    made = Server(Inferior(), log=log.append)
    made.start()
    yield made
    made.close()


def connect(server: Server) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    made.settimeout(10)
    made.connect(server.address)
    return made


def receive(client: socket.socket, until: bytes) -> bytes:
    data = b""
    while not re.search(until, data):
        piece = client.recv(4096)
        assert piece, data
        data += piece
    return data


def test_the_socket_is_private_and_goes_with_the_server() -> None:
    server = Server(Inferior())
    folder = os.path.dirname(server.address)
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    server.close()
    assert not os.path.exists(folder)


def test_packets_are_acknowledged_until_told_otherwise(server: Server) -> None:
    client = connect(server)
    client.sendall(frame(b"qC"))
    assert receive(client, b"#..$") == b"+" + frame(b"QC186a2")
    client.sendall(b"$qC#00")
    assert receive(client, b"-") == b"-"
    client.sendall(b"-")
    assert receive(client, b"#..$") == frame(b"QC186a2")
    client.sendall(frame(b"QStartNoAckMode"))
    assert receive(client, b"#..$") == b"+" + frame(b"OK")
    client.sendall(b"+" + frame(b"qC"))
    assert receive(client, b"#..$") == frame(b"QC186a2")


def test_clients_come_go_and_are_several_at_once(server: Server) -> None:
    first = connect(server)
    first.sendall(frame(b"Hg186a1") + b"$broken off in the mid")
    receive(first, b"OK#..")
    second = connect(server)
    second.sendall(frame(b"qC"))
    # Each has its own selected thread.
    assert frame(b"QC186a2") in receive(second, b"#..$")
    first.close()
    second.sendall(frame(b"D"))
    assert frame(b"OK") in receive(second, b"OK#..")
    assert second.recv(10) == b""
    third = connect(server)
    third.sendall(frame(b"qC"))
    assert frame(b"QC186a2") in receive(third, b"#..$")


def test_a_port_is_opened_on_the_loopback_address_only() -> None:
    server = Server(Inferior(), port=0)
    server.start()
    try:
        host, port = server.address.split(":")
        assert host == "127.0.0.1"
        with socket.create_connection((host, int(port)), timeout=10) as client:
            client.sendall(frame(b"qC"))
            assert frame(b"QC186a2") in receive(client, b"#..$")
        with pytest.raises(WchanError, match=r"cannot listen on 127\.0\.0\.1 port"):
            Server(Inferior(), port=int(port))
    finally:
        server.close()


def test_an_architecture_that_is_not_known_is_refused_in_one_line() -> None:
    inferior = Inferior()
    inferior.arch = "sparc64"
    with pytest.raises(WchanError, match="sparc64"):
        Server(inferior)


# What keeps debuggers on their feet


def test_code_that_the_dump_lacks_is_code_all_the_same(client: Connection) -> None:
    """lldb ends a stack where a page is not executable."""
    assert ask(client, f"qMemoryRegionInfo:{BASE - 16:x}") == (
        f"start:{BASE - 4096:x};size:1000;permissions:rx;"
    )
    assert "permissions" not in ask(client, f"qMemoryRegionInfo:{BASE - 2 * 4096:x}")
    assert "permissions:rwx" in ask(client, f"qMemoryRegionInfo:{BASE:x}")


def test_lldbs_kernel_loader_is_shown_an_elf_file_that_is_no_kernel(client: Connection) -> None:
    """It crashes at memory without an ELF header, and does nothing with one of ET_NONE."""
    at = int(ask(client, "qShlibInfoAddr"), 16)
    header = bytes.fromhex(ask(client, f"m{at:x},40"))
    assert header[:4] == b"\x7fELF"
    assert not any(header[4:])
    assert len(ask(client, f"m{at + 16:x},8")) == 16
