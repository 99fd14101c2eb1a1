"""Buffers: background writes, soft updates and the buffer cache's own shortages, to the disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Tuple

import pytest
from test_why_stuck import Answer, check_contract, explain, thread

from tests.forge.bufs import Buf
from tests.forge.builder import Obj
from tests.forge.machine import Machine
from tests.forge.vfs import Mount

VERSIONS = [(700014, "i386"), (903000, "amd64"), (1201000, "amd64"), (1402000, "arm64")]
BIO_WRITE = 2


def machine(osreldate: int, arch: str) -> Tuple[Machine, Mount]:
    m = Machine(osreldate, arch)
    disk = m.geom.disk("vtbd", 0, mediasize=1 << 30)
    return m, m.vfs.ffs("/data", m.geom.vfs(disk.provider))


def write(m: Machine, mount: Mount, lblkno: int = 0, **how: Any) -> Buf:
    """A write of a buffer of a vnode that the disk does not return."""
    buf = m.bufs.buf(m.vfs.vnode(mount), lblkno, blkno=64 + lblkno, cmd=BIO_WRITE, **how)
    assert m.bufs.start(buf, mount, seconds=70).to_device()
    return buf


def the_cause(answer: Answer) -> Dict[str, Any]:
    check_contract(answer)
    cause: Dict[str, Any]
    (cause,) = answer.causes
    return cause


def softdeps(m: Machine, mount: Mount, flusher: Any = 0) -> Obj:
    """softdep_mount(): soft updates of a mount, 12 items of work and 3 of the journal."""
    ump = m.new("ufsmount", um_cp=mount.consumer)
    mount.obj["mnt_data"] = ump
    mount.obj["mnt_flag"] = m.constant("MNT_SOFTDEP", 0x200000)
    if m.osreldate < 1000000:
        return ump.set(softdep_on_worklist=12, softdep_on_journal=3, softdep_deps=40)
    made = m.new("mount_softdeps", sd_ump=ump, sd_flushtd=flusher)
    made.set(sd_on_worklist=12, sd_on_journal=3, sd_deps=40)
    head = m.symbol("softdepmounts", size=2 * m.pointer_size, static=True)
    m.at_the_end(lambda: m.tailq(head.address, "sd_next", [made]))
    return made


@pytest.mark.parametrize("osreldate, arch", VERSIONS)
def test_who_waits_for_a_background_write_waits_for_the_copy_that_is_written(
    osreldate: int, arch: str, tmp_path: Path
) -> None:
    m, mount = machine(osreldate, arch)
    vnode = m.vfs.vnode(mount)
    copy = m.bufs.buf(vnode, 3, blkno=96, cmd=BIO_WRITE)
    assert m.bufs.start(copy, mount, seconds=70).to_device()
    copy.lock.owned_by_io()
    who = thread(m, "flusher")
    buf = m.bufs.buf(vnode, 3, blkno=96, owner=who)
    m.at_the_end(lambda: copy.obj.set(b_xflags=m.constant("BX_BKGRDMARKER", 0x20)))
    m.at_the_end(lambda: buf.obj.set(b_vflags=m.constant("BV_BKGRDINPROG", 2)))
    who.sleeps(buf.obj.at("b_xflags"), "getbuf", seconds=60)
    answer = explain(m, tmp_path)
    cause = the_cause(answer)
    assert cause["summary"] == "vtbd0 (/data) has not returned 1 write"
    assert (cause["kind"], cause["certainty"], cause["tids"]) == ("device", "proven", [who.tid])
    assert any("BX_BKGRDMARKER" in edge["evidence"] for edge in answer.data["edges"])


@pytest.mark.parametrize("osreldate, arch", VERSIONS[1:])
def test_soft_updates_are_worked_off_by_their_own_flusher(
    osreldate: int, arch: str, tmp_path: Path
) -> None:
    m, mount = machine(osreldate, arch)
    name = "softdepflush" if osreldate < 1000000 else "/data worker"
    flusher = m.procs.kthread(name, calls=("softdep_flush",))
    made = softdeps(m, mount, flusher)
    buf = write(m, mount, owner=flusher)
    buf.waited_by(flusher, "biowr", seconds=65)
    who = thread(m, "rm")
    member = "softdep_deps" if osreldate < 1000000 else "sd_deps"
    who.sleeps(made.at(member), "softdeps", seconds=60)
    answer = explain(m, tmp_path)
    cause = the_cause(answer)
    assert cause["summary"] == "vtbd0 (/data) has not returned 1 write"
    assert set(cause["tids"]) == {who.tid, flusher.tid}
    assert "soft updates of /data" in answer.labels(who.tid)
    assert "12 on the worklist, 3 on the journal, 40 dependencies" in " ".join(
        answer.run(str(who.tid)).split()
    )


@pytest.mark.parametrize("osreldate, arch", VERSIONS[1:])
def test_a_dependency_names_its_mount_and_ends_at_its_disk_while_the_flusher_rests(
    osreldate: int, arch: str, tmp_path: Path
) -> None:
    m, mount = machine(osreldate, arch)
    softdeps(m, mount)
    write(m, mount)
    item = m.new("worklist", wk_mp=mount)
    who = thread(m, "fsync")
    who.sleeps(item, "jwait", seconds=60)
    cause = the_cause(explain(m, tmp_path))
    assert cause["summary"] == "vtbd0 (/data) has not returned 1 write"
    assert cause["certainty"] == "catalogued"


def test_soft_updates_that_nothing_works_off_are_not_explained_away(tmp_path: Path) -> None:
    m, mount = machine(1402000, "amd64")
    made = softdeps(m, mount)
    who = thread(m, "rm")
    who.sleeps(made.at("sd_deps"), "softdeps", seconds=60)
    answer = explain(m, tmp_path)
    check_contract(answer)
    assert answer.data["residue"] == [who.tid]
    assert "its flusher is idle and its disk owes nothing" in " ".join(answer.text.split())


@pytest.mark.parametrize("osreldate, arch", VERSIONS)
def test_a_shortage_of_buffers_with_idle_daemons_ends_at_the_writes_under_way(
    osreldate: int, arch: str, tmp_path: Path
) -> None:
    m, mount = machine(osreldate, arch)
    write(m, mount).lock.owned_by_io()
    who = thread(m, "writer")
    modern = osreldate >= 1200000
    at = m.bufs.bdomain.at("bd_wanted") if modern else m.address_of("needsbuffer")
    who.sleeps(at, "newbuf", seconds=60)
    if modern:
        m.at_the_end(lambda: m.bufs.bdomain.set(bd_bufspace=1 << 40))
    else:
        m.at_the_end(lambda: m.assign("bufspace", (1 << 31) - 1))
    answer = explain(m, tmp_path)
    cause = the_cause(answer)
    assert cause["summary"] == "vtbd0 (/data) has not returned 1 write"
    assert (cause["kind"], cause["tids"]) == ("device", [who.tid])
    (edge,) = [e for e in answer.data["edges"] if "no buffer daemon is at work" in e["evidence"]]
    assert (edge["kind"], edge["certainty"]) == ("needs", "proven")
