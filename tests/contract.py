"""The JSON contract of wchan/1, checked: every field of every command, its type, what must agree.

``problems(report, command)`` yields one sentence for each breach; a report without any
keeps to the contract.  Fields that the contract does not name are free, with one
exception: a number is never NaN or infinite (``load`` refuses them, as JSON does).
"""

from __future__ import annotations

import json
import re
from typing import Any, Callable, Dict, Iterator, List, NoReturn, Tuple

#: A check takes a value and where it stands, and yields what is wrong with it.
Check = Callable[[Any, str], Iterator[str]]

_ADDRESS = re.compile(r"0x[0-9a-f]+\Z")


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


def problems(report: Any, command: str) -> Iterator[str]:
    """Every breach of the contract in the report of ``command``."""
    yield from _ENVELOPE(report, command)
    if not isinstance(report, dict) or not isinstance(report.get("data"), dict):
        return
    if report.get("schema") != "wchan/1":
        yield f"{command}: schema is {report.get('schema')!r}"
    if report.get("command") != command:
        yield f"{command}: says it is {report.get('command')!r}"
    layouts = str((report.get("kernel") or {}).get("layouts"))
    if layouts not in ("dwarf", "ctf") and not layouts.startswith("yaml:"):
        yield f"{command}: layouts are {layouts!r}"
    data = report["data"]
    found = list(_DATA[command](data, command))
    yield from found
    if not found:
        # What must agree can be compared only where everything is there.
        yield from _AGREES.get(command, _nothing)(data, command)


# Kinds of values


def _of(*types: type) -> Check:
    def check(value: Any, where: str) -> Iterator[str]:
        if isinstance(value, bool) and bool not in types:
            yield f"{where} is {value!r}, a bool"
        elif not isinstance(value, types):
            names = " or ".join(t.__name__ for t in types)
            yield f"{where} is {value!r}, not {names}"

    return check


text = _of(str)
whole = _of(int)
number = _of(int, float)
truth = _of(bool)


def natural(value: Any, where: str) -> Iterator[str]:
    yield from whole(value, where)
    if isinstance(value, int) and value < 0:
        yield f"{where} is {value}, below zero"


def address(value: Any, where: str) -> Iterator[str]:
    if not isinstance(value, str) or not _ADDRESS.match(value):
        yield f"{where} is {value!r}, no address"


def duration(value: Any, where: str) -> Iterator[str]:
    yield from number(value, where)
    if isinstance(value, (int, float)) and value < 0:
        yield f"{where} is {value}, a time below zero"


def maybe(check: Check) -> Check:
    """null, or what ``check`` wants."""

    def either(value: Any, where: str) -> Iterator[str]:
        if value is not None:
            yield from check(value, where)

    return either


def one_of(*words: str) -> Check:
    def check(value: Any, where: str) -> Iterator[str]:
        if value not in words:
            yield f"{where} is {value!r}, none of {', '.join(words)}"

    return check


def each(check: Check) -> Check:
    """A list of such."""

    def every(value: Any, where: str) -> Iterator[str]:
        if not isinstance(value, list):
            yield f"{where} is {value!r}, no list"
            return
        for index, item in enumerate(value):
            yield from check(item, f"{where}[{index}]")

    return every


def fields(**checks: Check) -> Check:
    """An object with at least these fields; a trailing ``_`` keeps a name off Python's own."""

    def check(value: Any, where: str) -> Iterator[str]:
        if not isinstance(value, dict):
            yield f"{where} is {value!r}, no object"
            return
        for key, inner in checks.items():
            name = key.rstrip("_")
            if name not in value:
                yield f"{where} has no {name}"
            else:
                yield from inner(value[name], f"{where}.{name}")

    return check


def _nothing(data: Any, where: str) -> Iterator[str]:
    return iter(())


def _three(value: Any, where: str) -> Iterator[str]:
    yield from each(whole)(value, where)
    if isinstance(value, list) and len(value) != 3:
        yield f"{where} has {len(value)} counts, not r, w and e"


tids = each(natural)
names = each(text)

# The envelope

_ENVELOPE = fields(
    schema=text,
    command=text,
    kernel=maybe(
        fields(
            release=text,
            osreldate=natural,
            ident=text,
            arch=one_of("amd64", "i386", "arm64", "riscv64"),
            variant=names,
            layouts=text,
            panic=maybe(text),
        )
    ),
    data=fields(),
    warnings=each(fields(what=text, address=maybe(address), detail=text)),
    partial=truth,
)

# The commands

_THREAD = fields(
    tid=natural,
    pid=natural,
    comm=text,
    name=text,
    address=address,
    state=one_of(
        "running",
        "runnable",
        "sleeping",
        "locked",
        "suspended",
        "swapped",
        "iwait",
        "inactive",
        "zombie",
    ),
    cpu=maybe(natural),
    wmesg=maybe(text),
    wchan=maybe(address),
    lock=maybe(fields(address=address, name=maybe(text), class_=maybe(text))),
    age=maybe(duration),
)

_BIO = fields(
    address=address,
    cmd=text,
    offset=whole,
    length=whole,
    error=whole,
    flags=names,
    from_=maybe(address),
    to=maybe(address),
    provider=maybe(text),
    parent=maybe(address),
    buf=maybe(address),
    age=maybe(duration),
)

_PAGE = fields(
    address=address,
    object=maybe(address),
    pindex=natural,
    phys_addr=address,
    busy=fields(
        raw=natural,
        state=one_of("unbusied", "exclusive", "shared", "freed"),
        sharers=natural,
        waiters=truth,
        owner=maybe(natural),
    ),
    valid=natural,
    dirty=natural,
    queue=maybe(text),
    flags=names,
    is_bogus=truth,
    verdict=text,
)

_CERTAINTY = one_of("proven", "catalogued", "guessed")

_DATA: Dict[str, Check] = {
    "kthreads": fields(threads=each(_THREAD)),
    "bioq": fields(
        queues=each(
            fields(name=text, address=address, length=maybe(whole), walked=natural, bios=each(_BIO))
        )
    ),
    "pbuf": fields(
        pools=each(
            fields(
                name=text,
                symbol=maybe(text),
                limit=maybe(whole),
                in_use=maybe(whole),
                free=maybe(whole),
                waiters=tids,
            )
        ),
        bufs=each(
            fields(
                address=address,
                pool=maybe(text),
                bio=maybe(address),
                provider=maybe(text),
                object=maybe(address),
                vnode=maybe(address),
            )
        ),
    ),
    "provider": fields(
        providers=each(
            fields(
                name=text,
                address=address,
                class_=maybe(text),
                geom=maybe(text),
                mediasize=whole,
                sectorsize=whole,
                access=_three,
                error=whole,
                flags=names,
                in_flight=maybe(whole),
                queued=maybe(natural),
                at_device=maybe(whole),
                nstart=maybe(whole),
                nend=maybe(whole),
                consumers=each(address),
            )
        )
    ),
    "vmpage": fields(pages=each(_PAGE)),
    "klocks": fields(
        locks=each(
            fields(
                address=address,
                name=text,
                class_=text,
                state=text,
                owners=tids,
                waiters=each(fields(tid=natural, mode=maybe(text))),
            )
        )
    ),
    "vmstate": fields(
        domains=each(
            fields(
                index=natural,
                page_count=maybe(whole),
                free=maybe(whole),
                active=maybe(whole),
                inactive=maybe(whole),
                laundry=maybe(whole),
                unswappable=maybe(whole),
                free_min=maybe(whole),
                free_target=maybe(whole),
                free_reserved=maybe(whole),
                free_severe=maybe(whole),
                waiters=tids,
            )
        ),
        swap=each(fields(name=text, used=whole, total=whole, in_flight=natural)),
        buffers=fields(),
        zones=each(
            fields(
                name=text,
                size=natural,
                used=maybe(whole),
                free=maybe(whole),
                limit=maybe(whole),
                sleepers=maybe(whole),
                fails=maybe(whole),
            )
        ),
    ),
    "kmsgbuf": fields(panic=maybe(text), version=text, text=text),
    "kprint": fields(),
    "structs": fields(),
    "why-stuck": fields(
        threads=fields(total=natural, idle=natural, stuck=natural),
        nodes=each(
            fields(
                id=text,
                kind=one_of(
                    "thread",
                    "lock",
                    "buf",
                    "bio",
                    "queue",
                    "provider",
                    "pool",
                    "page",
                    "object",
                    "vnode",
                    "memory",
                    "channel",
                    "cpu",
                ),
                label=text,
                address=maybe(address),
            )
        ),
        edges=each(
            fields(
                from_=text,
                to=text,
                kind=one_of("waits-for", "owned-by", "served-by", "needs", "contained-in"),
                certainty=_CERTAINTY,
                evidence=text,
            )
        ),
        chains=each(fields(tids=tids, path=each(text), end=text, verdict=text)),
        causes=each(
            fields(
                rank=natural,
                kind=one_of(
                    "deadlock",
                    "device",
                    "pacing",
                    "lost-wakeup",
                    "memory",
                    "running",
                    "runnable",
                    "external",
                    "unknown",
                ),
                node=text,
                tids=tids,
                summary=text,
                evidence=text,
            )
        ),
        residue=tids,
    ),
}

# What must agree within one report


def _kthreads(data: Any, where: str) -> Iterator[str]:
    addresses = [thread["address"] for thread in data["threads"]]
    if len(addresses) != len(set(addresses)):
        yield f"{where}: a thread stands twice"
    for thread in data["threads"]:
        # A running thread may be between CPUs only where memory is corrupt.
        if thread["state"] == "sleeping" and thread["wchan"] is None:
            yield f"{where}: thread {thread['tid']} sleeps on no channel"
    if "groups" in data:
        known = sorted(thread["tid"] for thread in data["threads"])
        grouped = sorted(tid for group in data["groups"] for tid in group["tids"])
        yield from each(fields(frames=names, tids=tids))(data["groups"], f"{where}.groups")
        if known != grouped:
            yield f"{where}: the groups do not hold the threads"


def _bioq(data: Any, where: str) -> Iterator[str]:
    for queue in data["queues"]:
        if queue["walked"] != len(queue["bios"]):
            yield f"{where}: {queue['name']} walked {queue['walked']}, shows {len(queue['bios'])}"


def _vmpage(data: Any, where: str) -> Iterator[str]:
    if "scanned" in data:
        yield from natural(data["scanned"], f"{where}.scanned")
        for state, count in data["counts"].items():
            yield from natural(count, f"{where}.counts.{state}")


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
    "vmpage": _vmpage,
    "why-stuck": _why_stuck,
}
