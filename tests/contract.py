"""The JSON contract of wchan/1, checked: docs/schema, and what must agree within one report.

``problems(report, command)`` yields one sentence for each breach; a report without any
keeps to the contract.  ``undescribed(report, command)`` names the fields that the schema
says nothing of: a program may ignore them, but none of ours may be left unexplained.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NoReturn, Tuple

import jsonschema

SCHEMAS = Path(__file__).resolve().parent.parent / "docs" / "schema"


def load(text: str) -> Any:
    """A report's text as strict JSON: no NaN, no Infinity, no key twice."""

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is no JSON")

    def unique(pairs: List[Tuple[str, Any]]) -> Dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError(f"a key stands twice among {[key for key, _ in pairs]}")
        return found

    return json.loads(text, parse_constant=refuse, object_pairs_hook=unique)


@functools.cache
def schema(name: str) -> Any:
    """A schema of docs/schema, what it takes from the other files in its place.

    No reference is left in it: every version of jsonschema reads it without a registry.
    """

    def inlined(node: Any) -> Any:
        if isinstance(node, list):
            return [inlined(each) for each in node]
        if not isinstance(node, dict):
            return node
        reference = node.get("$ref")
        if reference is None:
            return {key: inlined(value) for key, value in node.items()}
        file, _, fragment = reference.partition("#")
        found = schema(file.partition(".")[0])
        for step in filter(None, fragment.split("/")):
            found = found[step]
        return {**found, **{key: value for key, value in node.items() if key != "$ref"}}

    made = inlined(json.loads((SCHEMAS / f"{name}.schema.json").read_text(encoding="utf-8")))
    jsonschema.Draft202012Validator.check_schema(made)
    return made


def problems(report: Any, command: str) -> Iterator[str]:
    """Every breach of the contract in the report of ``command``."""
    found = [
        f"{'.'.join(map(str, error.absolute_path)) or 'the report'}: {error.message[:200]}"
        for error in jsonschema.Draft202012Validator(schema(command)).iter_errors(report)
    ]
    yield from found
    if not found:
        # What must agree can be compared only where everything is there.
        yield from _AGREES.get(command, _nothing)(report["data"], command)
        text = report["kernel"]["layouts"].startswith("text")
        if command == "kthreads" and not (text or report["partial"]):
            # Text may say of a thread what cannot be; damaged memory says that it does.
            yield from _in_memory(report["data"], command)


def undescribed(report: Any, command: str) -> List[str]:
    """Fields of a report that its schema does not describe, by their paths."""
    return sorted(set(_undescribed(report, [schema(command)], "")))


def _undescribed(value: Any, schemas: List[Any], path: str) -> Iterator[str]:
    schemas = [each for one in schemas for each in _alternatives(one)]
    if isinstance(value, list):
        items = [each["items"] for each in schemas if "items" in each]
        for item in value:
            yield from _undescribed(item, items, path + "[]")
    if not isinstance(value, dict):
        return
    known: Dict[str, List[Any]] = {}
    for each in schemas:
        for name, inner in each.get("properties", {}).items():
            known.setdefault(name, []).append(inner)
    free = any("additionalProperties" in each for each in schemas)
    for name, inner in value.items():
        if name in known:
            yield from _undescribed(inner, known[name], f"{path}.{name}")
        elif not free:
            yield f"{path}.{name}"


def _alternatives(one: Any) -> Iterator[Any]:
    yield one
    for word in ("allOf", "anyOf", "oneOf"):
        for each in one.get(word, ()):
            yield from _alternatives(each)


def descriptions(command: str) -> Iterator[Tuple[str, str]]:
    """(path, description or "") of every field that a command's schema names."""

    def walk(node: Any, path: str) -> Iterator[Tuple[str, str]]:
        for each in _alternatives(node):
            for name, inner in each.get("properties", {}).items():
                yield f"{path}.{name}", inner.get("description", "")
                yield from walk(inner, f"{path}.{name}")
            if "items" in each:
                yield from walk(each["items"], path + "[]")

    yield from walk(schema(command), "")


# What must agree within one report

#: A check takes a command's data and its name, and yields what is wrong with it.
Check = Callable[[Any, str], Iterator[str]]


def _nothing(data: Any, where: str) -> Iterator[str]:
    return iter(())


def _kthreads(data: Any, where: str) -> Iterator[str]:
    if "groups" in data:
        known = sorted(thread["tid"] for thread in data["threads"])
        grouped = sorted(tid for group in data["groups"] for tid in group["tids"])
        if known != grouped:
            yield f"{where}: the groups do not hold the threads"


def _in_memory(data: Any, where: str) -> Iterator[str]:
    """What holds of threads that were read and not printed."""
    addresses = [t["address"] for t in data["threads"] if t["address"] is not None]
    if len(addresses) != len(set(addresses)):
        yield f"{where}: a thread stands twice"
    for thread in data["threads"]:
        # A running thread may be between CPUs only where memory is corrupt.
        if thread["state"] == "sleeping" and thread["wchan"] is None:
            yield f"{where}: thread {thread['tid']} sleeps on no channel"


def _bioq(data: Any, where: str) -> Iterator[str]:
    for queue in data["queues"]:
        if queue["walked"] != len(queue["bios"]):
            yield f"{where}: {queue['name']} walked {queue['walked']}, shows {len(queue['bios'])}"


def _provider(data: Any, where: str) -> Iterator[str]:
    for found in data["providers"]:
        # What is lost was started, and is neither queued nor at the device.
        parts = [found["queued"], found["at_device"], found.get("lost", 0)]
        flying = found["in_flight"]
        if flying is not None and None not in parts and flying != sum(parts):
            yield f"{where}: {found['name']} has {flying} in flight, {parts} add up"


def _why_stuck(data: Any, where: str) -> Iterator[str]:
    total, idle, stuck = (data["threads"][key] for key in ("total", "idle", "stuck"))
    if total != idle + stuck:
        yield f"{where}: {total} threads are not {idle} idle and {stuck} stuck"
    ids = [node["id"] for node in data["nodes"]]
    known = set(ids)
    if len(ids) != len(known):
        yield f"{where}: a node id stands twice"
    for node in data["nodes"]:
        if (node["kind"] == "thread") != ("tid" in node):
            yield f"{where}: node {node['id']} of kind {node['kind']} and its tid do not agree"
    used: List[Tuple[str, Tuple[Any, ...]]]
    used = [(f"edge {e['from']} -> {e['to']}", (e["from"], e["to"])) for e in data["edges"]]
    used += [(f"chain of {c['tids'][:3]}", (*c["path"], c["end"])) for c in data["chains"]]
    used += [(f"cause {c['rank']}", (c["node"],)) for c in data["causes"]]
    for what, wanted in used:
        for missing in sorted(set(wanted) - known):
            yield f"{where}: {what} names {missing}, which is no node"
    joined = {(edge["from"], edge["to"]) for edge in data["edges"]}
    for chain in data["chains"]:
        for pair in zip(chain["path"], chain["path"][1:]):
            if pair not in joined:
                yield f"{where}: the chain of {chain['tids'][:3]} goes {pair}, which is no edge"
        if chain["path"] and chain["end"] not in chain["path"]:
            yield f"{where}: the chain of {chain['tids'][:3]} does not reach its end"
    ranks = [cause["rank"] for cause in data["causes"]]
    if ranks != list(range(1, len(ranks) + 1)):
        yield f"{where}: causes are ranked {ranks}"
    explained = [tid for cause in data["causes"] for tid in cause["tids"]]
    if len(explained) != len(set(explained)):
        yield f"{where}: a thread is counted under two causes"
    if set(explained) & set(data["residue"]):
        yield f"{where}: a thread is both explained and residue"


_AGREES: Dict[str, Check] = {
    "kthreads": _kthreads,
    "bioq": _bioq,
    "provider": _provider,
    "why-stuck": _why_stuck,
}
