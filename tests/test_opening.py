"""Dumps that are hard to open: damaged, newer than the table, without layouts, unnamed."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Sequence, Tuple

import pytest
from hosts import wchan

from plugin.opening import open_core
from plugin.structs import Layouts
from plugin.structs.choose import choose_yaml
from plugin.vmcore import ElfFile, open_memory
from tests.forge.machine import Machine


def machine(osreldate: int = 1402000) -> Machine:
    """One sleeping process under a kernel of 14.2's layouts, whatever version it says."""
    choice = choose_yaml(1402000, "amd64")
    made = Machine(osreldate, layouts=Layouts([choice.source], choice.tables))
    made.procs.process("sleepy").thread().sleeps(made.take(8), "nanslp")
    made.message("a line that the kernel wrote")
    return made


@pytest.fixture
def dump(tmp_path: Path) -> Tuple[Path, Path]:
    return machine().write(tmp_path)


def noise_over(vmcore: Path, kernel: Path, names: Sequence[str]) -> None:
    """Random bytes where the kernel's variables of these names lie."""
    elf = ElfFile(str(kernel))
    memory = open_memory(str(vmcore), elf)
    with vmcore.open("r+b") as file:
        for name in names:
            symbol = elf.symbol(name)
            assert symbol is not None, name
            file.seek(memory.physical.offset(memory.space.translate(symbol.address)))
            file.write(random.Random(1).randbytes(symbol.size or 8))


def test_noise_in_the_middle_of_a_dump_is_not_another_kernel(dump: Tuple[Path, Path]) -> None:
    vmcore, kernel = dump
    noise_over(vmcore, kernel, ["lock_classes", "version"])
    opened = open_core(str(vmcore), str(kernel))
    assert opened.osreldate == 1402000


def test_an_uptime_that_cannot_be_is_none(dump: Tuple[Path, Path]) -> None:
    vmcore, kernel = dump
    noise_over(vmcore, kernel, ["time_uptime"])
    status, out, _ = wchan("-k", str(kernel), str(vmcore), "why-stuck")
    assert status == 3
    assert ", up " not in out
    assert "time_uptime is" in out


def test_a_kernel_newer_than_the_table_gets_the_newest_layouts_it_agrees_with(
    tmp_path: Path,
) -> None:
    vmcore, kernel = machine(1700001).write(tmp_path)
    status, out, _ = wchan("-k", str(kernel), str(vmcore), "kthreads")
    assert status in (0, 3)
    assert "sleepy" in out
    assert "FreeBSD 17 (1700001) is newer than the table" in out


def test_the_messages_are_shown_though_no_layouts_fit(dump: Tuple[Path, Path]) -> None:
    vmcore, kernel = dump
    noise_over(vmcore, kernel, ["proc_off_p_pid", "thread_off_td_tid"])
    status, out, _ = wchan("-k", str(kernel), str(vmcore), "kmsgbuf")
    assert status in (0, 3)
    assert "a line that the kernel wrote" in out
    status, _, err = wchan("-k", str(kernel), str(vmcore), "kthreads")
    assert status == 1
    assert "no layouts" in err


def test_a_dump_alone_asks_why_the_machine_is_stuck(dump: Tuple[Path, Path]) -> None:
    vmcore, kernel = map(str, dump)
    for options in ([], ["--json"], ["--limit", "3"]):
        alone = wchan("-k", kernel, vmcore, *options)
        assert alone == wchan("-k", kernel, vmcore, "why-stuck", *options)
        assert alone[0] == 0


def test_a_folder_means_the_newest_dump_in_it(dump: Tuple[Path, Path], tmp_path: Path) -> None:
    vmcore, kernel = dump
    crash = tmp_path / "crash"
    crash.mkdir()
    for number in (9, 10, 2):
        (crash / f"vmcore.{number}").write_bytes(vmcore.read_bytes() if number == 10 else b"old")
        os.utime(crash / f"vmcore.{number}", (number, 1000 if number == 10 else number))
    (crash / "core.txt.11").write_text("a report")
    status, out, err = wchan("-k", str(kernel), str(crash), "kthreads")
    assert status == 0
    assert "sleepy" in out
    assert err == f"wchan: {crash}/vmcore.10 is the newest dump there\n"
    (tmp_path / "empty").mkdir()
    status, _, err = wchan(str(tmp_path / "empty"))
    assert status == 1
    assert "there is no vmcore.N in it" in err
