"""provider against DDB's ``show geom`` of the same machine, and its drawings."""

from __future__ import annotations

import functools
import json
import re
import shutil
import xml.etree.ElementTree as ElementTree
from typing import Any, Dict, List, Set

import pytest
from answers import answer as shell

#: what README.md of the dumps says of the disks, from outside the guest
HEALTHY = {"vtbd0", "vtbd3", "vtbd5"}
SILENT = {"vtbd1", "vtbd2", "vtbd4"}

GEOM_FLAGS = {
    0x2: "G_PF_WITHER",
    0x4: "G_PF_ORPHAN",
    0x8: "G_PF_ACCEPT_UNMAPPED",
    0x10: "G_PF_DIRECT_SEND",
    0x20: "G_PF_DIRECT_RECEIVE",
}


@functools.cache
def provider(dump: Any, *arguments: str) -> Dict[str, Any]:
    status, out, err = shell(dump, "provider", "--json", *arguments)
    assert status == 0, err
    value: Dict[str, Any] = json.loads(out)["data"]
    return value


@pytest.fixture
def dump(real_dump: Any) -> Any:
    """A hashable handle on the dump, so that one command's output serves many tests."""
    return _Handle(real_dump)


@pytest.fixture
def any_dump(every_dump: Any) -> Any:
    """The same for every real machine, whatever it is stuck in."""
    return _Handle(every_dump)


class _Handle:
    def __init__(self, real: Any) -> None:
        self.vmcore, self.kernel, self.truth, self.ddb_log = real[1:]
        self.name = real.name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Handle) and other.name == self.name

    def __hash__(self) -> int:
        return hash(self.name)


def by_name(dump: Any) -> Dict[str, Dict[str, Any]]:
    return {p["name"]: p for p in provider(dump)["providers"]}


def show_geom(dump: Any) -> List[Dict[str, Any]]:
    """DDB's ``show geom``, its lines as they were printed: classes with their geoms."""
    text = dump.ddb_log.split("##### show geom\n", 1)[1].split("\ndb>", 1)[0]
    classes: List[Dict[str, Any]] = []
    for line in text.splitlines():
        found = re.match(r"( *)(class|geom|provider|consumer): (.*)", line)
        if not found:
            continue
        depth, kind, rest = len(found[1]), found[2], found[3]
        if kind == "class":
            name, at = re.fullmatch(r"(\S+) \((0x\w+)\)", rest).groups()  # type: ignore[union-attr]
            classes.append({"name": name, "address": at, "geoms": []})
        elif kind == "geom":
            name, at, rank = re.match(r"(\S+) \((0x\w+)\), rank=(\d+)", rest).groups()  # type: ignore[union-attr]
            classes[-1]["geoms"].append(
                {"name": name, "address": at, "rank": int(rank), "providers": [], "consumers": []}
            )
        elif kind == "provider":
            at = re.search(r"\((0x\w+)\)", rest)[1]  # type: ignore[index]
            classes[-1]["geoms"][-1]["providers"].append(at)
        elif depth == 4:
            at, name, access = re.match(  # type: ignore[union-attr]
                r"(0x\w+) \((\S+)\), access=(\w+)", rest
            ).groups()
            classes[-1]["geoms"][-1]["consumers"].append((at, name, access))
    return classes


def test_the_topology_is_the_one_ddb_showed(dump: Any) -> None:
    ours = [
        {
            "name": g_class["name"],
            "address": g_class["address"],
            "geoms": [
                {
                    "name": geom["name"],
                    "address": geom["address"],
                    "rank": geom["rank"],
                    "providers": geom["providers"],
                    "consumers": [
                        (c["address"], c["provider"], "r{}w{}e{}".format(*c["access"]))
                        for c in geom["consumers"]
                    ],
                }
                for geom in g_class["geoms"]
            ],
        }
        for g_class in provider(dump)["classes"]
    ]
    assert ours == show_geom(dump)


def test_names_classes_access_counts_and_flags_are_those_of_ddb(any_dump: Any) -> None:
    truth = {p["address"]: p for p in any_dump.truth["providers"]}
    found = {p["address"]: p for p in provider(any_dump)["providers"]}
    assert found.keys() == truth.keys()
    for at, row in truth.items():
        ours = found[at]
        assert [ours[k] for k in ("name", "class", "geom", "access")] == [
            row[k] for k in ("name", "class", "geom", "access")
        ]
        flags = int(row["flags"], 16)
        assert set(ours["flags"]) == {name for bit, name in GEOM_FLAGS.items() if flags & bit}


def test_the_silent_disks_owe_and_the_healthy_ones_owe_nothing(dump: Any) -> None:
    providers = by_name(dump)
    assert {n for n, p in providers.items() if p["verdict"] == "owes"} == SILENT
    assert {n for n in HEALTHY if providers[n]["verdict"] == "clear"} == HEALTHY
    for name in HEALTHY:
        assert providers[name]["in_flight"] == providers[name]["found"] == 0
    for name in SILENT:
        ours = providers[name]
        assert ours["queued"] == 0
        assert ours["at_device"] == ours["in_flight"] == ours["found"] > 0
        # The clones with the driver are as many as the disk's own devstat counts.
        assert ours["driver"] == ours["driver_found"]
        assert ours["oldest"] > 10


def test_request_counters_agree_with_the_bios_found_where_the_kernel_keeps_them(dump: Any) -> None:
    for ours in provider(dump)["providers"]:
        if ours["nstart"] is None:
            assert ours["nend"] is None
            assert ours["source"] != "nstart - nend"
        else:
            assert ours["nstart"] - ours["nend"] == ours["found"] == ours["in_flight"]


def test_geom_itself_is_reported_well(dump: Any) -> None:
    health = provider(dump)["health"]
    assert {t["role"]: t["state"] for t in health["threads"]} == dict.fromkeys(
        ("g_up", "g_down", "g_event"), "idle"
    )
    assert health["pacing"]["pace"] == 0
    assert health["pacing"]["active"] is False
    assert health["events"] == health["doorstep"] == []
    assert health["topology_lock"]["state"] == "unlocked"


def test_name_address_geom_and_class_select(dump: Any) -> None:
    at = by_name(dump)["vtbd1"]["address"]
    for word in ("vtbd1", "/dev/vtbd1", at):
        assert [p["address"] for p in provider(dump, word)["providers"]] == [at]
    names = {p["name"] for p in provider(dump, "DISK")["providers"]}
    assert names == HEALTHY | SILENT
    geom = next(
        g for c in provider(dump)["classes"] for g in c["geoms"] if g["name"] == "ffs.vtbd1"
    )
    consumer = geom["consumers"][0]["address"]
    assert [p["name"] for p in provider(dump, consumer)["providers"]] == ["vtbd1"]


def test_an_unknown_name_is_one_line_that_offers_those_there_are(dump: Any) -> None:
    status, out, err = shell(dump, "provider", "da17")
    assert status == 1
    assert out == ""
    assert err.startswith("provider: no provider, geom or class 'da17'; there are ")
    assert "vtbd1" in err
    assert len(err.splitlines()) == 1


def test_the_summary_names_who_owes_and_who_does_not(dump: Any) -> None:
    status, out, _ = shell(dump, "provider")
    assert status == 0
    first = " ".join(out.split("\n\n", 1)[0].split())
    assert first.startswith("3 devices owe I/O: vtbd1 ")
    assert "Nothing outstanding: vtbd0, vtbd3, vtbd5." in first
    assert max(map(len, out.splitlines())) <= 80


# Drawings


def xml_of(dump: Any, *arguments: str) -> ElementTree.Element:
    status, out, _ = shell(dump, "provider", "--xml", *arguments)
    assert status == 0
    return ElementTree.fromstring(out)


def test_confxml_holds_the_mesh_as_libgeom_reads_it(dump: Any) -> None:
    """What geom_xml2tree() relies on: every ref names an id of the document, modes and sizes."""
    mesh = xml_of(dump)
    assert mesh.tag == "mesh"
    ids = [e.get("id") for e in mesh.iter() if e.get("id")]
    assert len(ids) == len(set(ids))
    assert {e.get("ref") for e in mesh.iter() if e.get("ref")} <= set(ids)
    for g_class, shown in zip(mesh.findall("class"), show_geom(dump)):
        assert g_class.findtext("name") == shown["name"]
        assert [g.findtext("name") for g in g_class.findall("geom")] == [
            g["name"] for g in shown["geoms"]
        ]
    for geom in mesh.iter("geom"):
        if geom.get("id") is None:
            continue
        assert geom.find("class").get("ref") in ids  # type: ignore[union-attr]
        assert int(geom.findtext("rank") or "") >= 1
        for end in (*geom.findall("provider"), *geom.findall("consumer")):
            assert end.find("geom").get("ref") == geom.get("id")  # type: ignore[union-attr]
            assert re.fullmatch(r"r\d+w\d+e\d+", end.findtext("mode") or "")
    sizes = {
        p.findtext("name"): (int(p.findtext("mediasize") or 0), int(p.findtext("sectorsize") or 0))
        for p in mesh.iter("provider")
        if p.get("id")
    }
    assert sizes == {
        p["name"]: (p["mediasize"], p["sectorsize"]) for p in provider(dump)["providers"]
    }


def test_a_part_of_the_mesh_refers_to_nothing_outside_itself(dump: Any) -> None:
    mesh = xml_of(dump, "vtbd0")
    ids = {e.get("id") for e in mesh.iter() if e.get("id")}
    assert {e.get("ref") for e in mesh.iter() if e.get("ref")} <= ids
    names = {p.findtext("name") for p in mesh.iter("provider") if p.get("id")}
    assert "vtbd0" in names
    assert "vtbd1" not in names
    assert any((name or "").startswith("ufsid/") for name in names)


def graph(text: str) -> tuple[Dict[str, str], Set[tuple[str, str]]]:
    """Nodes {name: attributes} and edges of a DOT text, every line of which must be one."""
    lines = text.splitlines()
    assert lines[0] == "digraph geom {"
    assert lines[-1] == "}"
    nodes: Dict[str, str] = {}
    edges = set()
    for line in lines[1:-1]:
        node = re.fullmatch(r'(z0x\w+) \[(.*label="(?:[^"\\]|\\.)*".*)\];', line)
        edge = re.fullmatch(r"(z0x\w+) -> (z0x\w+);", line)
        assert node or edge, line
        if node:
            nodes[node[1]] = node[2]
        elif edge:
            edges.add((edge[1], edge[2]))
    return nodes, edges


def test_confdot_has_the_shape_of_the_kernels_own(dump: Any) -> None:
    status, out, _ = shell(dump, "provider", "--dot")
    assert status == 0
    nodes, edges = graph(out)
    shown = show_geom(dump)
    geoms = [g for g_class in shown for g in g_class["geoms"]]
    assert len(nodes) == sum(1 + len(g["providers"]) + len(g["consumers"]) for g in geoms)
    assert {name for edge in edges for name in edge} <= nodes.keys()
    where = {p["name"]: p["address"] for p in provider(dump)["providers"]}
    for geom in geoms:
        for at, name, access in geom["consumers"]:
            assert ("z" + geom["address"], "z" + at) in edges
            assert ("z" + at, "z" + where[name]) in edges
            assert f'label="{access}"' in nodes["z" + at]
        for at in geom["providers"]:
            assert ("z" + at, "z" + geom["address"]) in edges
            assert nodes["z" + at].startswith("shape=hexagon")


def test_what_is_stuck_is_coloured_in_the_graph(dump: Any) -> None:
    _, out, _ = shell(dump, "provider", "--dot")
    nodes, _ = graph(out)
    for ours in provider(dump)["providers"]:
        node = nodes["z" + ours["address"]]
        assert ("fillcolor" in node) == (ours["name"] in SILENT), ours["name"]
        if ours["name"] in SILENT:
            assert f"{ours['at_device']} at the device" in node


def test_svg_is_drawn_by_graphviz_or_says_that_it_is_missing(dump: Any) -> None:
    status, out, err = shell(dump, "provider", "--svg", "vtbd1")
    if shutil.which("dot"):
        assert status == 0
        drawn = ElementTree.fromstring(out.encode())
        assert drawn.tag.endswith("svg")
        assert "vtbd1" in out
    else:
        assert status == 1
        assert "graphviz" in err
        assert "--dot" in err


def test_the_tree_shows_what_stands_on_each_device(dump: Any) -> None:
    status, out, _ = shell(dump, "provider", "--tree")
    assert status == 0
    lines = out.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("vtbd1  DISK"))
    assert "at the device" in lines[at]
    above = []
    for line in lines[at + 1 :]:
        if not line.startswith(" "):
            break
        above.append(line.strip().rsplit("  ", 1)[0])
    assert "VFS ffs.vtbd1" in above
    assert sum(line.count("SWAP swap") for line in lines) == 1
