"""Replacing what tells of people and places: names of hosts, users and processes, paths, addresses.

The same input has the same replacement within one run, whose salt is drawn at random and kept
nowhere; a replacement is as long as what it replaces, so that it fits where that lay.  The
kernel's own names stay: functions, wait messages, locks, devices, file systems, modules.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import re
from bisect import bisect_right
from typing import (
    TYPE_CHECKING,
    Callable,
    Dict,
    FrozenSet,
    Iterable,
    List,
    Mapping,
    Optional,
    Sequence,
    Tuple,
)

from plugin.errors import MemoryFault
from plugin.symbol import Symbol
from plugin.targets import Target

if TYPE_CHECKING:
    from plugin.structs import LayoutSource
    from plugin.vmcore.memory import CarriedModule

#: a name this short is replaced where it is known to be one, not wherever it is met in memory
_SHORT = 4
#: how far a path or a name may reach over the ends of what is read
_REACH = 1100
_TOKEN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")
_RUN = re.compile(rb"[\x20-\x7e\t]{4,}")
_SOME = re.compile(rb"[\x20-\x7e]{3}")
_AT = re.compile(r"(?<![\w.@/-])([A-Za-z_][\w.-]*)@([A-Za-z0-9](?:[\w.-]*\w)?)(?!@)")
#: users of FreeBSD's own, whom every machine has
EVERYBODYS = frozenset(("root", "daemon", "nobody", "_dhcp", "unbound", "ntpd", "www"))
_SERVER = re.compile(r"(?<![\w./-])([A-Za-z0-9][\w.-]*\w):/(?!/|dev/)\w")
_SYSLOG = re.compile(
    r"\b[A-Z][a-z]{2} [ 0-3]\d \d\d:\d\d:\d\d ([A-Za-z0-9][\w.-]*\w) [\w./-]+(?:\[\d+\])?: "
)
_PROMPT = re.compile(r"(?:^|\n|\()([A-Za-z0-9][\w.-]*\w)(?: login:|\) \(tty)")
_HOME = re.compile(r"/home/([A-Za-z0-9_][\w.-]*)")
_PATH = re.compile(r"(?<![\w/.%*-])((?:/[A-Za-z0-9_.,+@~#=^%$&!-]+)+)")
_IPV4 = re.compile(r"(?<![\w.])\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}(?!\.?\w)")
_IPV6 = re.compile(r"(?<![\w:.])[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}(?![\w:])")
_SOURCE = re.compile(r"/sys/[\w/.-]+\.[chSsm]$")
#: devices, and where the kernel and its modules lie
_KEPT = re.compile(r"^/(?:dev|boot/kernel|boot/modules)(?:/|$)")
_COMPONENT = re.compile(r"[^/]+")


class Redactor:
    """Replaces text and bytes; ``names`` are replaced wherever they stand as words.

    ``own`` are the kernel's own words, which stay even where a process bears one as its name.
    """

    def __init__(self, salt: bytes, names: Iterable[str] = (), own: Iterable[str] = ()) -> None:
        self._salt = salt
        #: of the names those of hosts, which are nobody else's words
        self._hosts: List[str] = []
        self._own: FrozenSet[str] = frozenset(own)
        self._names: Dict[str, str] = {}
        #: those with blanks, colons or slashes in them, and all of these as one expression
        self._odd: List[str] = []
        self._any_odd: Optional[re.Pattern[str]] = None
        for name in names:
            self.learn(name)

    def learn(self, name: str) -> None:
        """A name that is to be replaced from now on."""
        if len(name) < 2 or name in self._own or name in self._names:
            return
        self._names[name] = self.word(name)
        if not _TOKEN.fullmatch(name):
            self._odd.append(name)
            self._any_odd = None

    def learn_host(self, name: str) -> None:
        """A host's name, and each of its labels that tells it from others."""
        if _IPV4.fullmatch(name) or name in self._own:
            return
        for each in (name, *name.split(".")[:-1]):
            if len(each) >= _SHORT and each not in self._own:
                self._names[each] = self.host(each)
                self._hosts.append(each)

    def study(self, text: str) -> None:
        """Learn who is named where only the place tells: user@host, host:/path, syslog, prompts."""
        for match in _AT.finditer(text):
            if match[1] not in EVERYBODYS:
                self.learn(match[1])
            self.learn_host(match[2])
        for pattern in (_SERVER, _SYSLOG, _PROMPT):
            for match in pattern.finditer(text):
                self.learn_host(match[1])
        for match in _HOME.finditer(text):
            self.learn(match[1])

    def bare(self) -> Redactor:
        """The same without the names of processes and files, which mean something else there."""
        made = Redactor(self._salt, (), self._own)
        for name in self._hosts:
            made.learn_host(name)
        return made

    def word(self, text: str) -> str:
        """A word in place of another, of its length; "x" tells that it is none of the machine's."""
        digest = hmac.new(self._salt, text.encode("utf-8", "replace"), hashlib.sha256).digest()
        letters = base64.b32encode(digest).decode("ascii").lower().rstrip("=")
        return ("x" + letters * (len(text) // len(letters) + 1))[: len(text)]

    def path(self, path: str) -> str:
        """A path, component by component; devices and the kernel's sources keep theirs."""
        if _KEPT.match(path):
            return path
        source = _SOURCE.search(path)
        own = path[source.start() :] if source else ""
        return _COMPONENT.sub(self._component, path[: len(path) - len(own)]) + own

    def _component(self, match: re.Match[str]) -> str:
        name = match.group(0)
        # A directory may be called like a pool or a process of the kernel's; a module is one.
        own = name in (".", "..") or (name.endswith(".ko") and name in self._own)
        return name if own else self.word(name)

    def mount_source(self, source: str) -> str:
        """f_mntfromname: "/dev/da0p2" and a pool stay; "server:/export", "pool/home" do not."""
        if source.startswith("/") or "/" not in source:
            return self.path(source) if source.startswith("/") else source
        first, slash, rest = source.partition("/")
        if first.endswith(":"):
            host = first[:-1].strip("[]")
            return first.replace(host, self.host(host)) + slash + self.path(rest)
        return first + slash + self.path(rest)

    def host(self, name: str) -> str:
        """A host, by name (each label by itself) or address."""
        if _IPV4.fullmatch(name):
            return self.ipv4(name)
        if ":" in name:
            return self.ipv6(name)
        return ".".join(self.word(label) if label else "" for label in name.split("."))

    def ipv4(self, text: str) -> str:
        """An address of as many digits; this machine's own (127.0.0.0/8) and 0.0.0.0 stay."""
        parts = text.split(".")
        if any(int(part) > 255 for part in parts) or parts[0] == "127" or text == "0.0.0.0":
            return text
        digest = hmac.new(self._salt, text.encode(), hashlib.sha256).digest()
        low = (0, 1, 10, 100)
        spans = (1, 9, 90, 156)
        return ".".join(
            str(low[len(part)] + byte % spans[len(part)]) for part, byte in zip(parts, digest)
        )

    def ipv6(self, text: str) -> str:
        """An address with groups as long; what is no address, and ::1, stay."""
        groups = text.split(":")
        if "::" not in text and len(groups) not in (6, 8):
            return text
        if sum(map(bool, groups)) < 2:
            return text
        digits = hmac.new(self._salt, text.lower().encode(), hashlib.sha256).hexdigest()
        made, at = [], 0
        for group in groups:
            new = digits[at : at + len(group)]
            # No group begins with 0, so that it is as long when it is printed again.
            made.append("a" + new[1:] if new[:1] == "0" else new)
            at += len(group)
        return ":".join(made)

    def text(self, text: str) -> str:
        """Everything in a text that tells of people: addresses, user@host, paths, names."""
        if self._odd:
            if self._any_odd is None:
                longest_first = sorted(self._odd, key=len, reverse=True)
                self._any_odd = re.compile("|".join(map(re.escape, longest_first)))
            text = self._any_odd.sub(lambda m: self._names[m[0]], text)
        if "@" in text:
            text = _AT.sub(lambda m: f"{self.word(m[1])}@{self.host(m[2])}", text)
        if "/" in text:
            text = _PATH.sub(lambda m: self.path(m[1]), text)
        if "." in text:
            text = _IPV4.sub(lambda m: self.ipv4(m[0]), text)
        if ":" in text:
            text = _IPV6.sub(lambda m: self.ipv6(m[0]), text)
        return _TOKEN.sub(self._token, text) if self._names else text

    def _token(self, match: re.Match[str]) -> str:
        token = match.group(0)
        known = self._names.get(token)
        if known is not None:
            return known
        bare = token.rstrip(".-+")
        known = self._names.get(bare)
        return known + token[len(bare) :] if known is not None else token

    def memory(self, data: bytes) -> bytes:
        """The printable stretches of memory redacted in place; short words are left alone."""
        if _RUN.search(data) is None:
            return data
        return _RUN.sub(self._run, data)

    def _run(self, match: re.Match[bytes]) -> bytes:
        text = match.group(0).decode("ascii")
        new = self.text(text).encode("ascii", "replace")
        return new if len(new) == len(text) else match.group(0)


class Private(Dict[int, bytes]):
    """What lies where in memory that tells of people: address -> what stands there instead.

    Called by walkers through ``kernel.private`` with what they have read.
    """

    def __init__(self, redactor: Redactor) -> None:
        super().__init__()
        self.redactor = redactor

    def __call__(self, kind: str, address: int, data: bytes) -> None:
        new = _KINDS[kind](self.redactor, data)
        if len(new) == len(data):
            self[address] = new


def _name(redactor: Redactor, data: bytes) -> bytes:
    name = _string(data)
    redactor.learn(name)
    # What stands behind the NUL may be the end of a longer name of before.
    return redactor.word(name).encode("latin-1", "replace")[: len(data)].ljust(len(data), b"\0")


def _component(redactor: Redactor, data: bytes) -> bytes:
    name = _string(data)
    redactor.learn(name)
    return redactor.word(name).encode("latin-1", "replace").ljust(len(data), b"\0")


def _path(redactor: Redactor, data: bytes) -> bytes:
    return _padded(redactor.path(_string(data)), data)


def _arguments(redactor: Redactor, data: bytes) -> bytes:
    """A command line, NUL after each word: of options only "-x" says nothing."""
    made = []
    for raw in data.split(b"\0"):
        word = raw.decode("latin-1")
        if word.startswith("/"):
            word = redactor.path(word)
        elif word and not (word.startswith("-") and len(word) < 3):
            redactor.learn(word)
            word = redactor.word(word)
        made.append(word.encode("latin-1", "replace"))
    return b"\0".join(made)


def _source(redactor: Redactor, data: bytes) -> bytes:
    source = _string(data)
    if not source.startswith("/") and "/" in source:
        host, colon, _ = source.partition(":")
        if colon:
            redactor.learn_host(host.strip("[]"))
        for part in source.split("/")[1:]:
            redactor.learn(part)
    return _padded(redactor.mount_source(source), data)


def _host(redactor: Redactor, data: bytes) -> bytes:
    name = _string(data)
    redactor.learn_host(name)
    return _padded(redactor.host(name), data)


def _address(redactor: Redactor, data: bytes) -> bytes:
    if len(data) == 4:
        return ipaddress.IPv4Address(redactor.ipv4(str(ipaddress.IPv4Address(data)))).packed
    try:
        return ipaddress.IPv6Address(redactor.ipv6(str(ipaddress.IPv6Address(data)))).packed
    except ValueError:
        return data


def _string(data: bytes) -> str:
    return data.split(b"\0", 1)[0].decode("latin-1")


def _padded(text: str, data: bytes) -> bytes:
    return text.encode("latin-1", "replace")[: len(data)].ljust(len(data), b"\0")


_KINDS: Mapping[str, Callable[[Redactor, bytes], bytes]] = {
    "name": _name,
    "component": _component,
    "arguments": _arguments,
    "path": _path,
    "source": _source,
    "host": _host,
    "address": _address,
}


class RedactedTarget:
    """``target`` with its memory redacted, whatever is read of it and in what pieces.

    ``spare``: [start, end) of what is the kernel's own (its image, its modules), where a
    process's name stands for something else; paths and hosts are replaced there too.
    """

    in_pages = False
    wire = None

    def __init__(
        self,
        target: Target,
        redactor: Redactor,
        private: Mapping[int, bytes],
        spare: Sequence[Tuple[int, int]] = (),
        carried: Optional[Mapping[str, CarriedModule]] = None,
    ) -> None:
        self._target = target
        self._redactor = redactor
        self._bare = redactor.bare()
        self._spare = list(spare)
        self.carried = target.carried if carried is None else carried
        self._places = sorted(private)
        self._private = dict(private)
        self._longest = max(map(len, private.values()), default=0)
        self.arch = target.arch
        self.page_size = target.page_size
        self.stable = target.stable
        self.truncated = target.truncated
        self.description = target.description

    def read(self, address: int, size: int) -> bytes:
        data = self._target.read(address, size)
        if _SOME.search(data) is not None:
            data = self._in_context(address, data)
        return self._overlaid(address, data)

    def _in_context(self, address: int, data: bytes) -> bytes:
        """``data`` redacted as part of what lies around it: a name may be read in pieces."""
        before = self._around(address - _REACH, address)[::-1]
        after = self._around(address + len(data), address + len(data) + _REACH)
        before, after = _run_at_start(before)[::-1], _run_at_start(after)
        own = any(start <= address < end for start, end in self._spare)
        redactor = self._bare if own else self._redactor
        return redactor.memory(before + data + after)[len(before) : len(before) + len(data)]

    def _around(self, start: int, end: int) -> bytes:
        """What can be read next to something: as context only."""
        page = self.page_size or 4096
        for first, last in ((start, end), (end & -page, end), (start, (start | page - 1) + 1)):
            try:
                if start <= first < last <= end:
                    return self._target.read(first, last - first)
            except MemoryFault:
                continue
        return b""

    def _overlaid(self, address: int, data: bytes) -> bytes:
        """What walkers know to be private put in its place, over all that was guessed."""
        places = self._places
        at = bisect_right(places, address - self._longest)
        changed: Optional[bytearray] = None
        while at < len(places) and places[at] < address + len(data):
            start = places[at]
            new = self._private[start]
            at += 1
            first, last = max(start, address), min(start + len(new), address + len(data))
            if first < last:
                changed = bytearray(data) if changed is None else changed
                changed[first - address : last - address] = new[first - start : last - start]
        return data if changed is None else bytes(changed)

    # The rest of the port

    @property
    def files(self) -> Sequence[str]:
        return self._target.files

    @property
    def message_buffer(self) -> bytes:
        return self._redactor.memory(self._target.message_buffer)

    def symbols(self, name: str) -> Sequence[Symbol]:
        return self._target.symbols(name)

    def symbolize(self, address: int) -> Optional[Tuple[str, int]]:
        return self._target.symbolize(address)

    def types(self, notes: List[str]) -> Optional[LayoutSource]:
        return self._target.types(notes)

    def interrupted(self) -> bool:
        return self._target.interrupted()


def _run_at_start(data: bytes) -> bytes:
    found = _RUN_AT_START.match(data)
    return found.group(0) if found is not None else b""


_RUN_AT_START = re.compile(rb"[\x20-\x7e\t]*")
