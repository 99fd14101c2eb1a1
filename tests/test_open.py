"""Opening a dump in the shell: the right kernel, the wrong one, and what is no dump."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, Sequence

import pytest
from hosts import ROOT, process, shell, wchan

from plugin.kernel.proc import threads
from plugin.opening import open_core, open_target
from plugin.symbol import Symbol
from plugin.targets.core import CoreTarget
from plugin.vmcore import open_memory
from plugin.vmcore.elf import ElfFile
from tests.forge.scenarios.deadlocks import diamond


def one_line(err: str) -> str:
    (line,) = err.strip().splitlines()
    return line


def other(real_dump: Any, shared: Path, tmp_path: Path) -> Path:
    """The kernel of another of the real dumps."""
    for folder in sorted((shared / "real").iterdir()):
        if folder.name != real_dump.name and (folder / "kernel.zst").exists():
            return folder / "kernel.zst"
    pytest.skip("there is only one real dump")


def test_the_kernel_beside_the_dump_is_found(real_dump: Any) -> None:
    status, out, _ = wchan(str(real_dump.vmcore), "kmsgbuf", "--json")
    assert status == 0
    assert json.loads(out)["kernel"]["release"] in real_dump.ddb_log


def test_a_dump_without_its_kernel_says_so(real_dump: Any, tmp_path: Path) -> None:
    alone = tmp_path / "vmcore.0"
    alone.symlink_to(real_dump.vmcore)
    status, out, err = wchan(str(alone), "kmsgbuf")
    assert (status, out) == (1, "")
    assert "no kernel found" in one_line(err)
    assert "-k KERNEL" in err


def test_a_wrong_kernel_beside_the_dump_is_passed_over(
    real_dump: Any, shared: Path, tmp_path: Path
) -> None:
    (tmp_path / "vmcore.0").symlink_to(real_dump.vmcore)
    shutil.copy(other(real_dump, shared, tmp_path), tmp_path / "kernel.zst")
    status, _, err = wchan(str(tmp_path / "vmcore.0"), "kmsgbuf")
    assert status == 1
    assert "no kernel found" in one_line(err)
    (tmp_path / "kernel").symlink_to(real_dump.kernel)
    assert wchan(str(tmp_path / "vmcore.0"), "kmsgbuf")[0] == 0


def test_another_kernel_is_refused_with_both_versions_and_forced_if_asked(
    real_dump: Any, shared: Path, tmp_path: Path
) -> None:
    wrong = other(real_dump, shared, tmp_path)
    status, out, err = wchan("-k", str(wrong), str(real_dump.vmcore), "kthreads")
    assert (status, out) == (1, "")
    line = one_line(err)
    release = real_dump.name.split("-")[0]
    assert "is not the kernel of this dump" in line
    # These kernel files carry no data, so of theirs only that can be said.
    assert "the kernel is of unknown version" in line
    assert f"the dump's is \"FreeBSD {release}-" in line
    status, out, _ = wchan("-k", str(wrong), "--force", str(real_dump.vmcore), "kthreads")
    assert status == 3
    assert "forced" in out
    assert "PARTIAL" in out


def test_the_versions_named_come_out_of_the_two_files(tmp_path: Path) -> None:
    """Two forged machines, each with its whole kernel file: both strings stand in the refusal."""
    vmcore, _ = diamond(osreldate=1402000).write(tmp_path / "first")
    _, kernel = diamond(osreldate=1300139).write(tmp_path / "second")
    status, _, err = wchan("-k", str(kernel), str(vmcore), "kthreads")
    assert status == 1
    line = one_line(err)
    assert 'the kernel is "FreeBSD 13.0-' in line
    assert "the dump's is \"FreeBSD 14.2-" in line


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda p: p.write_text("to be or not to be\n"), "no text that tells of threads"),
        (lambda p: p.write_bytes(b""), "empty"),
        (lambda p: p.write_bytes(bytes(8192)), "begins with zeros"),
        (lambda p: p.mkdir(), "is a directory"),
        (lambda p: None, "no such file"),
    ],
)
def test_what_is_no_dump_is_called_what_it_is(make: Any, says: str, tmp_path: Path) -> None:
    path = tmp_path / "thing"
    make(path)
    status, out, err = wchan(str(path), "kthreads")
    assert (status, out) == (1, "")
    assert says in one_line(err)


def test_a_truncated_dump_is_answered_as_far_as_it_goes(real_dump: Any, tmp_path: Path) -> None:
    cut = tmp_path / "vmcore"
    with real_dump.vmcore.open("rb") as source, cut.open("wb") as target:
        shutil.copyfileobj(source, target)
        target.truncate(real_dump.vmcore.stat().st_size * 3 // 5)
    status, out, err = wchan("-k", str(real_dump.kernel), str(cut), "kthreads")
    assert (status, err) in ((0, ""), (3, ""))
    assert "the dump is truncated" in out
    assert ("PARTIAL" in out) == (status == 3)


def test_a_dump_cut_off_in_the_middle_of_the_thread_list_is_partial(
    real_dump: Any, tmp_path: Path
) -> None:
    """However little is left: one clear line, or an answer marked partial."""
    whole = len(json.loads(shell(real_dump, "kthreads", "--json")[1])["data"]["threads"])
    size = real_dump.vmcore.stat().st_size
    cut = tmp_path / "vmcore"
    statuses = set()
    for percent in (50, 30, 20, 10, 1):
        with real_dump.vmcore.open("rb") as source:
            cut.write_bytes(source.read(size * percent // 100))
        status, out, err = wchan("-k", str(real_dump.kernel), str(cut), "kthreads", "--json")
        statuses.add(status)
        if status == 1:
            assert "truncated" in one_line(err) or "not in the dump" in one_line(err)
        else:
            answer = json.loads(out)
            assert answer["partial"] == (status == 3)
            assert answer["partial"] or len(answer["data"]["threads"]) == whole
    assert 3 in statuses


class Nameless(CoreTarget):
    """A dump of a kernel that does not say its version: only its offsets are left."""

    message_buffer = b""

    def symbols(self, name: str) -> Sequence[Symbol]:
        silent = ("version", "osreldate", "osrelease", "kern_ident", "msgbufp")
        return [] if name in silent else super().symbols(name)


@pytest.mark.parametrize(("osreldate", "release"), [(1402000, "14.2"), (1201000, "12.1")])
def test_a_kernel_that_names_no_version_is_told_by_its_offsets(
    osreldate: int, release: str, tmp_path: Path
) -> None:
    vmcore, file = diamond(osreldate=osreldate).write(tmp_path)
    elf = ElfFile(str(file))
    nameless = open_target(Nameless(open_memory(str(vmcore), elf), elf))
    assert nameless.layouts.name.startswith(f"yaml:{release}-amd64")
    assert any("does not say which FreeBSD" in note for note in nameless.facts.notes)
    whole = open_core(str(vmcore), str(file))
    assert [t.tid for t in threads(nameless)] == [t.tid for t in threads(whole)]


@pytest.mark.parametrize(
    ("arch", "kind", "count"),
    [("amd64", "full", 13), ("amd64", "minidump", 16), ("i386", "minidump", 13),
     ("arm64", "minidump", 10)],
)  # fmt: skip
def test_the_threads_of_llvms_dumps_are_found(arch: str, kind: str, count: int) -> None:
    """Real dumps, made sparse, of kernels that are stubs of eighteen symbols."""
    folder = os.environ.get("WCHAN_LLVM_VMCORES")
    if not folder:
        pytest.skip("WCHAN_LLVM_VMCORES does not name a folder of LLVM's FreeBSD vmcores")
    vmcore = str(Path(folder) / f"vmcore-{arch}-{kind}.bz2")
    status, out, _ = wchan("-k", str(Path(folder) / f"kernel-{arch}"), vmcore, "kthreads", "--json")
    assert status in (0, 3)
    assert len(json.loads(out)["data"]["threads"]) == count


def test_the_command_line_is_explained(real_dump: Any) -> None:
    status, out, _ = wchan("--help")
    assert status == 0
    assert max(map(len, out.splitlines())) <= 80
    assert "kthreads" in out
    assert process("--version")[1].startswith("wchan ")
    assert "no command 'kthread'" in one_line(shell(real_dump, "kthread")[2])
    assert "the dump comes first" in one_line(wchan("kthreads", "--json")[2])


@pytest.mark.parametrize(
    ("environment", "coloured"),
    [
        ({"TERM": "xterm"}, True),
        ({"TERM": "xterm", "NO_COLOR": "1"}, False),
        ({"TERM": "dumb"}, False),
    ],
)
def test_there_are_colours_on_a_terminal_alone(
    environment: Dict[str, str], coloured: bool, tmp_path: Path
) -> None:
    vmcore, kernel = map(str, diamond().write(tmp_path))
    pty = pytest.importorskip("pty", reason="a terminal to write to")
    master, slave = pty.openpty()
    words = ("-k", kernel, vmcore, "kthreads")
    running = subprocess.Popen(
        [sys.executable, "-m", "plugin", *words], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=slave,
        stderr=subprocess.PIPE, env={**os.environ, "NO_COLOR": "", **environment},
    )  # fmt: skip
    os.close(slave)
    shown = b""
    with contextlib.suppress(OSError):  # Linux's way to say that nobody writes any more
        while piece := os.read(master, 65536):
            shown += piece
    os.close(master)
    assert running.wait() == 0
    plain = re.sub(rb"\x1b\[[0-9;]*m", b"", shown).replace(b"\r\n", b"\n").decode()
    assert (b"\x1b[1m" in shown) == coloured
    assert plain == wchan(*words)[1]
