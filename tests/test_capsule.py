"""A capsule answers as the dump it was made of, is small, and harms nobody who opens one."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Tuple

import debuggers
import pytest
from hosts import process, wchan

import commands
from plugin.hosts.capsule import forms, main
from plugin.hosts.runner import run_command
from plugin.opening import open_core
from plugin.vmcore.capsule import BLOCK, HEADER, XZ, ZERO, ZLIB, Capsule, unpack
from plugin.vmcore.file import DumpFile
from tests.forge.machine import Machine
from tests.forge.scenarios import deadlocks, geom_tour, sendfile_panic, storage_deadlock

MACHINES: Dict[str, Callable[[], Machine]] = {
    "storage deadlock": storage_deadlock.storage_deadlock,
    "page panic": sendfile_panic.sendfile_panic,
    "abba": deadlocks.abba,
    "geom": geom_tour.geom_tour,
    "arm64": lambda: Machine(1402000, "arm64"),
    "13.0 i386": lambda: Machine(1300139, "i386"),
}


class Pair(NamedTuple):
    """A dump and the capsule made of it."""

    vmcore: Path
    kernel: Path
    capsule: Path


def paired(folder: Path, vmcore: Path, kernel: Path) -> Pair:
    path = folder / "it.capsule"
    assert main(["-k", str(kernel), str(vmcore), "-o", str(path)]) == 0
    return Pair(vmcore, kernel, path)


@pytest.fixture(scope="module", params=MACHINES)
def forged(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("machine")
    return paired(tmp_path_factory.mktemp("capsule"), *MACHINES[request.param]().write(folder))


@pytest.fixture(scope="module")
def abba(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("abba")
    return paired(tmp_path_factory.mktemp("capsule"), *deadlocks.abba().write(folder))


def asked(path: Path, kernel: Any = None) -> Dict[Tuple[str, ...], Any]:
    """Every command's JSON, in every form that the contract is tested with."""
    opened = open_core(str(path), kernel and str(kernel))
    answers: Dict[Tuple[str, ...], Any] = {}
    for name in commands.NAMES:
        for words in map(str.split, commands.load(name).FORMS):
            out: List[str] = []
            status = run_command(name, [*words, "--json"], lambda: opened, out.append, out.append)
            text = re.sub(r'"seconds": [^,\n]*', "", "".join(out))
            line = (name, *words)
            answers[line] = status, text
    return answers


def assert_alike(pair: Pair) -> None:
    of_dump, of_capsule = asked(pair.vmcore, pair.kernel), asked(pair.capsule)
    assert [line for line in of_dump if of_dump[line] != of_capsule[line]] == []


def test_every_command_answers_of_a_capsule_as_of_its_dump(forged: Pair) -> None:
    assert_alike(forged)


def test_a_real_machine_fits_into_two_megabytes_and_answers_the_same(
    every_dump: Any, tmp_path: Path
) -> None:
    pair = paired(tmp_path, every_dump.vmcore, every_dump.kernel)
    assert pair.capsule.stat().st_size < 2_000_000
    assert_alike(pair)


def test_every_form_of_every_command_is_recorded() -> None:
    lines = set(forms())
    for line in (
        ("kthreads", "--stacks"), ("klocks", "--vnodes"), ("vmpage", "--scan"),
        ("bioq", "down", "--limit", "20"),
        ("vmstate", "--zones"), ("why-stuck", "--all"), ("structs", "list"), ("hang-report",),
        ("kprint", "proc", "allproc", "--list", "p_list", "--members", "p_pid,p_comm,p_flag"),
    ):  # fmt: skip
        assert line in lines
    assert not any({"-o", "--html", "--svg"} & set(line) for line in lines)


def test_a_capsule_opens_in_the_shell_alone_far_from_kernel_and_dump(
    abba: Pair, tmp_path: Path
) -> None:
    alone = tmp_path / "report-1234"
    alone.write_bytes(abba.capsule.read_bytes())
    status, out, err = wchan(str(alone))
    assert (status, err) == (0, "") and "Deadlock" in out
    assert out == wchan("-k", str(abba.kernel), str(abba.vmcore))[1]


@pytest.mark.parametrize("host", ["lldb", "gdb"])
def test_a_capsule_opens_in_a_debugger_as_its_dump_does(
    abba: Pair, host: str, request: pytest.FixtureRequest
) -> None:
    program = request.getfixturevalue(f"venv_{host}")
    lines = {
        "lldb": ("thread list", "thread backtrace all", "why-stuck", "kthreads --stacks"),
        "gdb": ("info threads", "thread apply all bt", "why-stuck", "kthreads --stacks"),
    }[host]
    rest = [word for line in lines for word in ("-o" if host == "lldb" else "-ex", line)]
    first = ["--no-lldbinit", "-b"] if host == "lldb" else ["-nx", "-batch"]
    status, out, err = process(
        host, "--debugger", str(program), str(abba.capsule), "--", *first, *rest
    )
    of_dump = getattr(debuggers, host)(program, abba, *lines)
    of_capsule = debuggers.Batch(status, out, err)
    assert of_capsule.status == of_dump.status == 0, err
    assert of_capsule.threads == of_dump.threads and len(of_dump.threads) > 5
    assert of_capsule.stacks == of_dump.stacks
    assert out[out.index("Deadlock") :] == of_dump.out[of_dump.out.index("Deadlock") :]


def test_what_no_report_reads_is_left_out_and_said_to_be_outside(tmp_path: Path) -> None:
    """User memory and file contents lie in a dump; nothing asks for them."""
    m = Machine(1402000)
    secret = b"MY-DIARY-OF-TODAY"
    place = m.take(1024)
    m.space.write(place + 8, secret)
    vmcore, kernel = m.write(tmp_path)
    assert secret in vmcore.read_bytes()
    pair = paired(tmp_path, vmcore, kernel)
    assert secret not in everything(pair.capsule)
    status, out, err = wchan(str(pair.capsule), "kprint", "proc", f"{place:#x}")
    assert status == 1 and "not in the capsule" in err + out


def everything(path: Path) -> bytes:
    """All that is in a capsule, unpacked."""
    capsule = Capsule(DumpFile(str(path)), str(path))
    facts = json.dumps(capsule.facts).encode()
    return facts + b"".join(capsule.member(name) for name in capsule.names)


def test_a_truncated_dump_gives_a_capsule_that_lacks_the_same(tmp_path: Path) -> None:
    vmcore, kernel = geom_tour.geom_tour().write(tmp_path)
    size = vmcore.stat().st_size
    with open(vmcore, "r+b") as file:
        file.truncate(size * 9 // 10 + 100)
    pair = paired(tmp_path, vmcore, kernel)
    assert_alike(pair)
    assert json.loads(asked(pair.capsule)[("why-stuck",)][1])["partial"]


def test_the_reports_lie_in_it_and_can_be_read_without_opening_it(
    abba: Pair, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(abba.capsule), "--report", "why-stuck.json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["data"]["causes"][0]["kind"] == "deadlock"
    assert main([str(abba.capsule)]) == 0
    assert "report hang-report.txt" in capsys.readouterr().out


def test_batch_takes_capsules_for_cores(abba: Pair, tmp_path: Path) -> None:
    (tmp_path / "pile").mkdir()
    (tmp_path / "pile" / "sent-by-mail").write_bytes(abba.capsule.read_bytes())
    status, out, err = wchan("batch", str(tmp_path / "pile"), "-o", str(tmp_path / "out"))
    assert status == 0, out + err
    assert "deadlock" in out.lower()


# Hostile files


def one_line(path: Path) -> str:
    """What the shell says of it: one line and status 1."""
    status, out, err = wchan(str(path))
    assert (status, out) == (1, ""), out
    assert err.count("\n") == 1 and "internal error" not in err, err
    return str(err)


@pytest.mark.parametrize("share", [0.0001, 0.01, 0.5, 0.99])
def test_a_capsule_cut_short_is_named_as_one(abba: Pair, tmp_path: Path, share: float) -> None:
    data = abba.capsule.read_bytes()
    cut = tmp_path / "cut"
    cut.write_bytes(data[: max(40, int(len(data) * share))])
    assert "copy it again" in one_line(cut)


def test_a_flipped_bit_is_met_wherever_it_lies(abba: Pair, tmp_path: Path) -> None:
    data = bytearray(abba.capsule.read_bytes())
    for at in (20, HEADER.size + 3, len(data) // 2, len(data) - 20):
        changed = bytearray(data)
        changed[at] ^= 0x10
        path = tmp_path / "flipped"
        path.write_bytes(changed)
        assert re.search("damaged|version|bytes", one_line(path))


def reindexed(source: Path, path: Path, change: Callable[[Any], Any]) -> Path:
    """A capsule whose index says something else, its checksum made right again."""
    import hashlib
    import zlib

    data = source.read_bytes()
    magic, version, codec, _, at, packed, _, _ = HEADER.unpack_from(data)
    index = json.loads(zlib.decompress(data[at : at + packed]))
    raw = json.dumps(change(index) or index).encode()
    new = zlib.compress(raw)
    head = HEADER.pack(
        magic, version, codec, at + len(new), at, len(new), len(raw),
        hashlib.sha256(new).digest(),
    )  # fmt: skip
    path.write_bytes(head + data[HEADER.size : at] + new)
    return path


def bomb(index: Any) -> None:
    """A terabyte of zeros, block by block, which costs the file nothing."""
    index["members"]["memory"] = [[0, 0, BLOCK, 0, ZERO]] * (1 << 20)


HOSTILE: Dict[str, Callable[[Any], Any]] = {
    "a block larger than any": lambda i: i["members"]["memory"][0].__setitem__(2, 1 << 40),
    "a terabyte of zeros": bomb,
    "a kernel of a terabyte": lambda i: i["members"].update(
        kernel=[[0, 0, BLOCK, 0, ZERO]] * (1 << 16)
    ),
    "a negative offset": lambda i: i["members"]["ranges"][0].__setitem__(0, -1),
    "a block beyond the end": lambda i: i["members"]["ranges"][0].__setitem__(1, 1 << 30),
    "an unknown codec": lambda i: i["members"]["ranges"][0].__setitem__(4, 77),
    "no kernel": lambda i: i["members"].pop("kernel"),
    "no facts": lambda i: i.update(facts={}),
    "facts of another kind": lambda i: i.update(facts=[1, 2]),
    "members of another kind": lambda i: i.update(members=["kernel"]),
    "an unknown machine": lambda i: i["facts"].update(arch="vax"),
    "a page size of 1": lambda i: i["facts"].update(page_size=1),
    "ranges that do not fit": lambda i: i["members"].update(
        ranges=i["members"]["kernel"], kernel=i["members"]["kernel"]
    ),
    "not even an object": lambda i: ["facts", "members"],
}


@pytest.mark.parametrize("what", HOSTILE)
def test_an_index_that_lies_is_one_clear_line(abba: Pair, tmp_path: Path, what: str) -> None:
    err = one_line(reindexed(abba.capsule, tmp_path / "hostile", HOSTILE[what]))
    assert "capsule" in err or "no ELF file" in err


def test_no_name_in_a_capsule_becomes_a_path(
    abba: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def climb(index: Any) -> None:
        members = index["members"]
        members["../../evil"] = members["kernel"]
        index["facts"]["modules"] = [
            {"name": "../../../evil.ko", "member": "../../evil", "path": "/etc/passwd"}
        ]

    path = reindexed(abba.capsule, tmp_path / "climbing", climb)
    assert wchan(str(path), "modules")[0] == 0
    there = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert not [name for name in there if "evil" in name]
    assert all(name.startswith(("cache/", "climbing")) for name in there)


def test_a_block_never_becomes_larger_than_it_says() -> None:
    import lzma
    import zlib

    for codec, pack in ((ZLIB, zlib.compress), (XZ, lzma.compress)):
        whole = pack(bytes(64 << 20))
        for size in (0, 1, BLOCK):
            with pytest.raises(ValueError):
                unpack(whole, codec, size)
        with pytest.raises(ValueError):
            unpack(pack(b"short"), codec, 100)
        assert unpack(pack(b"right"), codec, 5) == b"right"
        with pytest.raises(ValueError):
            unpack(pack(b"right")[:-6], codec, 5)


def test_layouts_that_make_no_sense_are_one_clear_line(abba: Pair, tmp_path: Path) -> None:
    kernel = Capsule(DumpFile(str(abba.capsule)), "it").member("kernel")
    for old, new in ((b'"sources":[', b'"sources":5,"x":['), (b'"tables":{', b'"tables":0,"y":{')):
        path = tmp_path / "kernel"
        path.write_bytes(kernel.replace(old, new))
        status, _, err = wchan("-k", str(path), str(abba.capsule))
        assert status == 1 and err.count("\n") == 1 and "internal" not in err


def test_a_capsule_is_never_written_over_what_it_is_made_of(tmp_path: Path) -> None:
    vmcore, kernel = deadlocks.abba().write(tmp_path)
    before = vmcore.read_bytes()
    status, _, err = wchan("capsule", str(vmcore), "-o", str(vmcore))
    assert status == 1 and "made of" in err
    assert vmcore.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([vmcore.name, kernel.name])
    assert struct.calcsize("<16sIIQQII32s") == HEADER.size
