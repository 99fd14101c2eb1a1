"""A pile of cores and captures: grouped into problems, resumed, no core able to spoil it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, List

import pytest

from plugin.batch.signature import nearness, normal
from plugin.batch.store import SUMMARY, Store, read
from plugin.batch.where import parse
from plugin.errors import UsageError
from plugin.hosts.batch import main
from tests.forge.scenarios import deadlocks, memory
from tests.test_captures import DDB, PROCSTAT

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def pile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three problems, three machines each; captures; a truncated core; one of a wrong kernel."""
    folder = tmp_path_factory.mktemp("pile")
    for name, machine in (
        ("abba", deadlocks.abba()),
        ("chain", deadlocks.chain()),
        ("memory", memory.exhausted()),
    ):
        first = folder / f"{name}-1"
        machine.write(first)
        for number in (2, 3):
            shutil.copytree(first, folder / f"{name}-{number}")
    (folder / "console.log").write_text(DDB)
    (folder / "second.log").write_text(DDB.replace("0xfffffe0001213e60", "0xfffffe0009999e60"))
    (folder / "zz").mkdir()
    (folder / "zz" / "last.log").write_text(DDB.replace("hangtest", "tester"))
    (folder / "notes.txt").write_text("to be or not to be\n")
    (folder / "stacks").write_text(PROCSTAT)
    truncated = folder / "truncated"
    shutil.copytree(folder / "abba-1", truncated)
    with open(truncated / "vmcore", "r+b") as file:
        file.truncate(20000)
    wrong = folder / "wrong"
    wrong.mkdir()
    shutil.copy(folder / "abba-1" / "vmcore", wrong / "vmcore")
    return folder


def rows(folder: Path) -> List[Dict[str, Any]]:
    return read(str(folder / SUMMARY))


def by_name(folder: Path, pile: Path) -> Dict[str, Dict[str, Any]]:
    return {os.path.relpath(row["path"], pile): row for row in rows(folder)}


def test_cores_of_one_problem_are_one_group_and_failures_are_named(
    pile: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main([str(pile), "-o", str(tmp_path), "--jobs", "2", "--json"])
    found = json.loads(capsys.readouterr().out)
    sizes = sorted(len(group["paths"]) for group in found["groups"])
    assert sizes == [1, 3, 3, 3, 3], [g["signature"] for g in found["groups"]]
    assert status == 1
    failed = {os.path.relpath(row["path"], pile): row["error"] for row in found["failed"]}
    assert set(failed) == {"truncated/vmcore", "wrong/vmcore"}
    assert "no kernel found" in failed["wrong/vmcore"]
    for row in rows(tmp_path):
        if row["report"]:
            assert json.loads(Path(row["report"]).read_text())["schema"] == "wchan/1"
    page = (tmp_path / "index.html").read_text()
    assert "http" not in page and "5 problems" in page


def test_kernels_kept_elsewhere_are_tried(
    pile: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong, kernels = str(pile / "wrong"), str(pile / "abba-1")
    assert main([wrong, "-o", str(tmp_path), "--kernels", kernels]) == 0
    assert by_name(tmp_path, pile)["wrong/vmcore"]["cause"] == "deadlock"


@pytest.mark.parametrize(
    "variable, status, limits",
    [
        ("WCHAN_BATCH_HANG", "timeout", ["--timeout", "3"]),
        ("WCHAN_BATCH_EAT", "memory", ["--memory", "1500"]),
    ],
    ids=["hangs", "eats memory"],
)
def test_a_core_that_spoils_its_worker_costs_itself_alone(
    variable: str,
    status: str,
    limits: List[str],
    pile: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(variable, "console.log")
    assert main([str(pile), "-o", str(tmp_path), "--jobs", "2", *limits]) == 1
    found = by_name(tmp_path, pile)
    assert found["console.log"]["status"] == status, found["console.log"]
    assert found["second.log"]["status"] == "ok" and found["abba-1/vmcore"]["status"] == "ok"


def test_a_run_that_was_killed_goes_on_without_doing_anything_twice(
    pile: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "plugin", "batch", str(pile)]
    command += ["-o", str(tmp_path), "--jobs", "1", "--timeout", "60"]
    slow = {**os.environ, "WCHAN_BATCH_HANG": "last.log"}
    process = subprocess.Popen(command, cwd=ROOT, env=slow, start_new_session=True)
    deadline = time.monotonic() + 120
    # It stops at the file that hangs: everything before that is done.
    while time.monotonic() < deadline and len(rows(tmp_path)) < 14:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = {row["path"] for row in rows(tmp_path)}
    assert len(before) == 14
    with open(tmp_path / SUMMARY, "ab") as file:
        file.write(b'{"path": "cut sho')
    subprocess.run(command, cwd=ROOT, check=False, stdout=subprocess.DEVNULL)
    lines = [json.loads(line) for line in _whole(tmp_path / SUMMARY)]
    paths = [row["path"] for row in lines]
    assert len(paths) == len(set(paths)), "a core was done twice"
    assert {os.path.relpath(path, pile) for path in paths} == {
        *(f"{name}-{n}/vmcore" for name in ("abba", "chain", "memory") for n in (1, 2, 3)),
        *("console.log", "second.log", "zz/last.log", "stacks"),
        *("truncated/vmcore", "wrong/vmcore"),
    }


def _whole(path: Path) -> List[bytes]:
    return [line for line in path.read_bytes().splitlines() if b"cut sho" not in line]


def test_a_changed_core_is_done_again_and_a_new_one_added(pile: Path, tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    (folder / "a.log").write_text(DDB)
    out = tmp_path / "out"
    main([str(folder), "-o", str(out)])
    (folder / "a.log").write_text(DDB + DDB.replace("biord", "wdrain"))
    (folder / "b.log").write_text(PROCSTAT)
    main([str(folder), "-o", str(out)])
    lines = (out / SUMMARY).read_text().splitlines()
    assert len(lines) == 3 and len(rows(out)) == 2


def test_what_is_new_since_another_batch_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.log").write_text(DDB)
    (tmp_path / "b.log").write_text(PROCSTAT)
    main([str(tmp_path / "a.log"), "-o", str(tmp_path / "old")])
    both = [str(tmp_path / "a.log"), str(tmp_path / "b.log")]
    capsys.readouterr()
    main([*both, "-o", str(tmp_path / "now"), "--diff", str(tmp_path / "old"), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert len(found["groups"]) == 2 and len(found["new"]) == 1


def test_two_batches_cannot_write_one_folder(tmp_path: Path) -> None:
    first = Store(str(tmp_path))
    try:
        with pytest.raises(Exception, match="another batch"):
            Store(str(tmp_path))
    finally:
        first.close()


@pytest.mark.parametrize(
    "terms, fits",
    [
        ("cause=device and release>=14", True),
        ("cause=device and release<14.2", False),
        ("cause=pacing or known=zfs-x", True),
        ("verdict~'owes I/O'", True),
        ("stuck>100", False),
        ("cause!=device", False),
    ],
)
def test_rows_are_chosen_by_their_fields(terms: str, fits: bool) -> None:
    row = {
        "cause": "device",
        "release": "14.2-RELEASE",
        "known": ["zfs-x"],
        "verdict": "da0 owes I/O.",
        "stuck": 12,
    }
    assert parse(terms)(row) is fits


@pytest.mark.parametrize("terms", ["cause", "cause=device release=14", "", "a=b and"])
def test_terms_that_make_no_sense_are_refused(terms: str) -> None:
    with pytest.raises(UsageError, match="--where"):
        parse(terms)


def test_a_signature_has_nothing_of_one_machine_alone() -> None:
    one = normal("vtbd1 (/data) has 3 reads, oldest 0xfffff80002cf1af0 for 1 m 16 s")
    assert one == normal("vtbd4 (/data) has 12 reads, oldest 0xfffff80002aaaaaa for 9 m 01 s")
    assert nearness("device da", "device da") == 1.0 > nearness("device da", "device ada") > 0


def test_the_same_work_goes_to_a_dask_cluster(pile: Path, tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed", reason="dask.distributed is not installed")
    import dask

    in_the_tests_folder = dask.config.set({"temporary-directory": str(tmp_path)})
    with (
        in_the_tests_folder,
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
    ):
        paths = [str(pile / "abba-1"), str(pile / "console.log")]
        main([*paths, "-o", str(tmp_path), "--dask", cluster.scheduler_address])
    assert {row["status"] for row in rows(tmp_path)} == {"ok"}
