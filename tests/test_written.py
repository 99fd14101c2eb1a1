"""Reports as files: whole, private, and never over their own input."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from plugin.errors import WchanError
from plugin.written import write_file


def test_a_report_is_its_owners_alone(tmp_path: Path) -> None:
    report = tmp_path / "hang.html"
    write_file(str(report), "who waits for whom")
    assert report.read_text() == "who waits for whom"
    assert stat.S_IMODE(report.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["hang.html"]


@pytest.mark.parametrize("way", ["itself", "a link", "a hard link"])
def test_a_report_is_never_written_over_the_dump(tmp_path: Path, way: str) -> None:
    dump, output = tmp_path / "vmcore.0", tmp_path / "report"
    dump.write_bytes(b"minidump")
    if way == "itself":
        output = dump
    elif way == "a link":
        output.symlink_to(dump)
    else:
        os.link(dump, output)
    with pytest.raises(WchanError, match="what the report is made of"):
        write_file(str(output), "gone", [str(tmp_path / "no such file"), str(dump)])
    assert dump.read_bytes() == b"minidump"


def test_what_cannot_be_written_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(WchanError, match=r"cannot write .*: No such file"):
        write_file(str(tmp_path / "none" / "report"), "")
    with pytest.raises(WchanError, match="cannot write"):
        write_file(str(tmp_path), "")
    assert not os.listdir(tmp_path)


def test_a_device_is_written_to_and_not_replaced() -> None:
    write_file(os.devnull, "nobody reads this")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)
