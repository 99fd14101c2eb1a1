"""An architecture is one record of plugin/arch: a machine of an invented one is explained whole."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, List, NamedTuple

import pytest
from structs_typegraph import dwarf, elf
from test_ctf import kernel_graph

from plugin import arch
from plugin.arch.common import Architecture
from plugin.errors import WchanError
from plugin.hosts import structs
from plugin.hosts.runner import run_command
from plugin.opening import open_core
from plugin.session import Kernel
from tests.forge.scenarios.deadlocks import every_lock

MACHINE = 258


class Renamed(NamedTuple):
    """A dump of an architecture without a record; ``said``: why-stuck of it as it was."""

    folder: Path
    vmcore: str
    kernel: str
    said: Any


def why_stuck(kernel: Kernel) -> Any:
    printed: List[str] = []
    assert run_command("why-stuck", ["--json"], lambda: kernel, printed.append, print) == 0
    data = json.loads("".join(printed))["data"]
    # The moment carries the machine's name, which is what differs.
    del data["moment"]["arch"]
    return data


@pytest.fixture
def dump(tmp_path: Path) -> Renamed:
    """An arm64 machine with every kind of lock, whose files then say that they are another's."""
    vmcore, kernel = every_lock(osreldate=1402000, arch="arm64").write(tmp_path)
    said = why_stuck(open_core(str(vmcore), str(kernel)))
    for path, at, new in ((vmcore, 17, b"cheri"), (kernel, 18, MACHINE.to_bytes(2, "little"))):
        data = bytearray(path.read_bytes())
        data[at : at + len(new)] = new
        path.write_bytes(data)
    return Renamed(tmp_path, str(vmcore), str(kernel), said)


@pytest.fixture
def cheri64(monkeypatch: pytest.MonkeyPatch) -> Architecture:
    """What a module of plugin/arch gives, and what the package makes of it."""
    arm64 = arch.BY_NAME["arm64"]
    minidumps = dataclasses.replace(arm64.minidumps, magic=b"minidump FreeBSD/cheri")
    made = dataclasses.replace(arm64, name="cheri64", machine=MACHINE, minidumps=minidumps)
    monkeypatch.setitem(arch.BY_NAME, made.name, made)
    monkeypatch.setitem(arch.BY_MAGIC, minidumps.magic, made)
    monkeypatch.setitem(arch.BY_MACHINE, MACHINE, made)
    return made


def test_a_dump_of_an_architecture_without_a_record_is_refused_by_name(dump: Renamed) -> None:
    with pytest.raises(WchanError, match="cheri"):
        open_core(dump.vmcore, dump.kernel)


def test_one_record_and_its_layouts_are_all_that_an_architecture_takes(
    dump: Renamed, cheri64: Architecture
) -> None:
    debug, mine = dump.folder / "kernel.debug", str(dump.folder / "mine.yaml")
    debug.write_bytes(elf(dwarf(kernel_graph("14.2-arm64")[0], 5, "strx"), machine=MACHINE))
    words = ["--osreldate", "1402000", "--name", "14.2-cheri64", "-o", mine]
    assert structs.main(["generate", str(debug), *words]) == 0
    kernel = open_core(dump.vmcore, dump.kernel, structs=mine)
    assert kernel.arch == cheri64.name
    assert why_stuck(kernel) == dump.said
