"""mounts: every mount with what it counts, and who keeps whom from using it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Dict, List, NamedTuple

import pytest
from answers import answer
from conftest import RealDump
from test_why_stuck import thread

from tests.forge.machine import Machine
from tests.forge.nfs import NfsMount

VERSIONS = [(903000, "amd64"), (1201000, "amd64"), (1402000, "arm64"), (1500068, "amd64")]


class Dump(NamedTuple):
    vmcore: Path
    kernel: Path


def asked(dump: Dump, *words: str) -> List[Dict[str, Any]]:
    status, out, err = answer(dump, "mounts", *words, "--json")
    assert (status, err) == (0, "")
    found: List[Dict[str, Any]] = json.loads(out)["data"]["mounts"]
    return found


def shown(dump: Dump) -> str:
    out: str
    status, out, err = answer(dump, "mounts")
    assert (status, err) == (0, "")
    return out


def test_the_mounts_are_those_that_ddb_shows(every_dump: RealDump) -> None:
    ddb = re.search(r"show mount\n((?:0x.*\n)+)", every_dump.ddb_log)
    if ddb is None:
        pytest.skip("DDB's log of this machine shows no mounts")
    status, out, _ = answer(every_dump, "mounts", "--json")
    assert status == 0
    listed = [
        f"{m['address']} {m['from']} on {m['on']} ({m['type']})"
        for m in json.loads(out)["data"]["mounts"]
    ]
    assert listed == ddb[1].splitlines()


def test_a_real_mounts_references_are_its_vnodes_its_users_and_its_writers(
    every_dump: RealDump,
) -> None:
    """Each takes one; all three are counted per CPU from 13.0 on, and have to be summed."""
    _, out, _ = answer(every_dump, "mounts", "--json")
    for mount in json.loads(out)["data"]["mounts"]:
        known = mount["vnodes"] + mount["lockref"] + mount["writeopcount"]
        assert known <= mount["ref"] <= known + 1, mount["on"]
        assert mount["lockref"] >= 0 and mount["writeopcount"] >= 0


@pytest.mark.parametrize("osreldate, arch", VERSIONS)
def test_a_suspended_mount_names_who_suspended_it_and_who_waits(
    osreldate: int, arch: str, tmp_path: Path
) -> None:
    m = Machine(osreldate, arch)
    mount = m.vfs.mount("ufs", "/data", "/dev/da0")
    snapshot, writer = thread(m, "mksnap_ffs"), thread(m, "cp")
    mount.obj["mnt_kern_flag"] = m.constant("MNTK_SUSPEND") | m.constant("MNTK_SUSPENDED")
    mount.obj["mnt_susp_owner"] = snapshot.obj
    writer.sleeps(mount.obj.at("mnt_flag"), "suspfs", seconds=60)
    dump = Dump(*m.write(tmp_path))
    (found,) = asked(dump, "/data")
    assert sorted(found["suspension"]) == ["MNTK_SUSPEND", "MNTK_SUSPENDED"]
    assert found["suspended_by"] == snapshot.tid
    assert found["waiters"] == [{"tid": writer.tid, "wmesg": "suspfs"}]
    text = shown(dump)
    assert f"by {snapshot.tid} mksnap_ffs." in text
    assert f'{writer.tid} cp waits in "suspfs" for 1 m' in text


def test_a_mount_that_nobody_living_suspended_says_so(tmp_path: Path) -> None:
    m = Machine(1402000)
    mount = m.vfs.mount("ufs", "/data", "/dev/da0")
    mount.obj["mnt_kern_flag"] = m.constant("MNTK_SUSPENDED")
    mount.obj["mnt_susp_owner"] = m.take(8)
    dump = Dump(*m.write(tmp_path))
    (found,) = asked(dump)
    assert found["suspended_by"] is None and found["susp_owner"] is not None
    assert "by a thread that was not found" in shown(dump)


@pytest.mark.parametrize("osreldate, arch", VERSIONS)
def test_an_unmount_under_way_names_its_thread_and_what_holds_it_up(
    osreldate: int, arch: str, tmp_path: Path
) -> None:
    m = Machine(osreldate, arch)
    mount = m.vfs.mount("ufs", "/data", "/dev/da0")
    umount = thread(m, "umount")
    flags = ("MNTK_UNMOUNT", "MNTK_DRAINING")
    mount.obj["mnt_kern_flag"] = sum(map(m.constant, flags))
    mount.obj["mnt_lockref"] = 2
    mount.obj.probe(mnt_vfs_ops=1)
    umount.call("dounmount", "sys_unmount")
    m.write_pointer(umount.local("dounmount", 24), mount)
    umount.sleeps(mount.obj.at("mnt_lockref"), "mount drain", seconds=90)
    dump = Dump(*m.write(tmp_path))
    (found,) = asked(dump)
    assert (found["unmounting"], found["unmounted_by"]) == (list(flags), [umount.tid])
    assert found["lockref"] == 2
    assert found["waiters"] == [{"tid": umount.tid, "wmesg": "mount drain"}]


@pytest.mark.parametrize("osreldate, arch", VERSIONS)
@pytest.mark.parametrize("version, transport", [("3", "udp"), ("4.1", "tcp")])
def test_a_mount_of_nfs_shows_its_server_and_each_unanswered_request(
    version: str, transport: str, osreldate: int, arch: str, tmp_path: Path
) -> None:
    if osreldate < 1000000 and version == "4.1":
        pytest.skip("NFSv4.1 came with 10.1")
    m = Machine(osreldate, arch)
    mount = NfsMount(m, "/home", "filer", "192.0.2.17", transport=transport, version=version)
    askers = [thread(m, "ls"), thread(m, "cat")]
    for asker in askers:
        mount.request(asker, seconds=130)
    dump = Dump(*m.write(tmp_path))
    (found,) = asked(dump)
    nfs = found["nfs"]
    assert (nfs["hostname"], nfs["address"]) == ("filer", "192.0.2.17:2049")
    assert (nfs["version"], nfs["transport"]) == (version, transport)
    assert [request["tid"] for request in nfs["requests"]] == [asker.tid for asker in askers]
    assert all(129 < request["age"] < 131 for request in nfs["requests"])
    assert "2 requests unanswered" in shown(dump)


def test_a_forced_unmount_of_nfs_is_told_with_the_requests_that_are_left(tmp_path: Path) -> None:
    m = Machine(1402000)
    mount = NfsMount(m, "/home", "filer", "192.0.2.17")
    mount.request(thread(m, "ls"))
    umount = thread(m, "umount")
    mount.unmounted_by_force(umount)
    dump = Dump(*m.write(tmp_path))
    (found,) = asked(dump)
    assert found["unmounted_by"] == [umount.tid]
    assert found["nfs"]["state"] == ["being unmounted by force", "its client is closed"]
    assert len(found["nfs"]["requests"]) == 1
    assert "forced unmount, 1 request unanswered" in " ".join(shown(dump).split())


def test_a_mount_is_asked_for_by_where_what_or_address(tmp_path: Path) -> None:
    m = Machine(1402000)
    m.vfs.mount("ufs", "/", "/dev/da0")
    mount = m.vfs.mount("ufs", "/data", "/dev/da1")
    dump = Dump(*m.write(tmp_path))
    for wanted in ("/data", "/data/", "/dev/da1", f"{mount.obj.address:#x}"):
        status, out, _ = answer(dump, "mounts", wanted, "--json")
        assert status == 0
        assert [each["on"] for each in json.loads(out)["data"]["mounts"]] == ["/data"]
    status, _, err = answer(dump, "mounts", "/dat")
    assert status == 1 and "did you mean /data" in err


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_table_fits_the_terminal(width: int, every_dump: RealDump) -> None:
    _, out, _ = answer(every_dump, "mounts", width=width)
    assert max(map(len, out.splitlines())) <= width


@pytest.mark.parametrize("osreldate, arch", VERSIONS)
@pytest.mark.parametrize("idle", [0, 2])
def test_nfsd_s_threads_and_what_waits_for_one_are_told(
    osreldate: int, arch: str, idle: int, tmp_path: Path
) -> None:
    m = Machine(osreldate, arch)
    m.vfs.mount("ufs", "/", "/dev/da0")
    pool = m.new("__rpc_svcpool", sp_name=m.string("nfsd"), sp_maxthreads=8, sp_space_used=4096)
    m.variable("nfsrvd_pool", pool)
    group, prefix = pool, "sp_"
    if pool.has("sp_groupcount"):
        pool["sp_groupcount"] = 1
        group, prefix = m.view("__rpc_svcgroup", pool.at("sp_groups")), "sg_"
    group[f"{prefix}threadcount"] = 4
    resting = [m.new("__rpc_svcthread") for _ in range(idle)]
    m.list(group.at(f"{prefix}idlethreads"), "st_ilink", resting)
    connections = [m.new("__rpc_svcxprt") for _ in range(3)]
    m.tailq(group.at(f"{prefix}xlist"), "xp_link", connections)
    m.tailq(group.at(f"{prefix}active"), "xp_alink", connections[:2])
    dump = Dump(*m.write(tmp_path))
    said = " ".join(shown(dump).split())
    busy = f"{idle} idle" if idle else "all busy"
    assert f"nfsd: 4 threads of at most 8, {busy}; 3 connections, 2 with requests" in said
