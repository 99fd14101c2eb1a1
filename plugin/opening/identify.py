"""Which kernel is this, and does the kernel file belong to the dump?

Read before any struct layout is known: by symbols and plain variables that
conf/newvers.sh puts into every kernel (``version``, ``osrelease``,
``osreldate``, ``kern_ident``).  A dump may lack read-only pages, so each fact
has a second source.
"""

from __future__ import annotations

import re
from typing import Iterable, List, NamedTuple, Optional, Tuple

from plugin.arch import BY_NAME, architecture
from plugin.errors import KernelMismatch, MemoryFault, WchanError
from plugin.kernel.locks import lock_classes
from plugin.structs.kernels import osreldate_of
from plugin.targets import Target
from plugin.targets.msgbuf import MSG_MAGIC, ring

_BANNER = re.compile(r"FreeBSD (\d+)\.(\d+)-([A-Z]+[-\w]*)(?: ([^\n]*))?")


class Identity(NamedTuple):
    """``version`` is the whole version string, ``notes`` what is only inferred."""

    release: str
    osreldate: int
    ident: str
    version: str
    page_size: int
    notes: Tuple[str, ...]


def _first(target: Target, name: str) -> Optional[int]:
    found = target.symbols(name)
    return found[0].address if found else None


def _text_at(target: Target, name: str, limit: int = 256) -> str:
    address = _first(target, name)
    if address is None:
        return ""
    try:
        data = target.read(address, limit)
    except MemoryFault as fault:
        try:
            data = target.read(address, max(0, fault.address - address))
        except MemoryFault:
            return ""
    return data.split(b"\0", 1)[0].decode("utf-8", "backslashreplace").strip()


def _int_at(target: Target, name: str) -> int:
    address = _first(target, name)
    try:
        return int.from_bytes(target.read(address, 4), "little") if address else 0
    except MemoryFault:
        return 0


def message_buffer(target: Target) -> str:
    """The raw text of the message buffer, "" where it cannot be found."""
    try:
        data = ring(target).data
    except WchanError:
        # A minidump begins with a copy that takes no symbol to find.
        data = target.message_buffer
    return data.decode("utf-8", "backslashreplace")


def version_of_core(target: Target) -> str:
    """The version string that the memory of the core itself holds, else ""."""
    version = _text_at(target, "version")
    if "FreeBSD" in version:
        return version[version.index("FreeBSD") :]
    banner = _BANNER.search(message_buffer(target))
    return banner.group(0).strip() if banner else ""


def identify(target: Target) -> Identity:
    """Read who this kernel is.  Facts that are only inferred are said in ``notes``."""
    notes: List[str] = []
    version = version_of_core(target)
    release = _text_at(target, "osrelease", 64)
    osreldate = _int_at(target, "osreldate")
    ident = _text_at(target, "kern_ident", 64)
    banner = _BANNER.search(version)
    if not re.match(r"\d+\.\d+", release):
        release = f"{banner.group(1)}.{banner.group(2)}-{banner.group(3)}" if banner else "unknown"
    if not 400000 <= osreldate <= 9999999:
        osreldate = osreldate_of(release)
        if osreldate:
            notes.append(f"osreldate is not in the dump; {osreldate} inferred from {release}")
    if not ident:
        words = (banner.group(4) or "").split() if banner else []
        named = [w for w in words if w not in BY_NAME and not w.startswith(("#", "r", "releng"))]
        ident = named[0] if named and not named[0].endswith(":") else "unknown"
    return Identity(
        release, osreldate, ident, version or f"FreeBSD {release}", _page_size(target), tuple(notes)
    )


def _page_size(target: Target) -> int:
    return target.page_size or architecture(target.arch).page_size


def contradictions(target: Target) -> List[str]:
    """Why the symbols of this kernel file cannot be those of this memory; [] if they fit.

    Data that holds addresses of symbols is the proof: lock_classes[] points to
    lock_class_* from 7.0-CURRENT on (sys/kern/subr_lock.c, subr_witness.c before), and
    msgbufp to a buffer with its magic number.
    """
    size = architecture(target.arch).pointer_size
    found: List[str] = []
    confirmed = False
    # What a truncated dump lacks proves nothing.
    truncated = target.truncated
    table = target.symbols("lock_classes")
    names = [kind.symbol for kind in lock_classes() if kind.symbol]
    classes = {s.address for name in names for s in target.symbols(name)}
    if table and classes:
        try:
            first = int.from_bytes(target.read(table[0].address, size), "little")
            if first in classes:
                confirmed = True
            else:
                found.append(f"lock_classes[0] is {first:#x}, which is no lock class")
        except MemoryFault as fault:
            if not truncated:
                found.append(f"lock_classes at {fault.address:#x} is not in the dump")
    version = _text_at(target, "version")
    if "FreeBSD" in version:
        confirmed = True
    elif version and not confirmed:
        found.append("the memory at `version` holds no version string")
    if confirmed:
        return found if not table else [f for f in found if "lock_classes" in f]
    address = _first(target, "msgbufp")
    if address is not None:
        try:
            header = int.from_bytes(target.read(address, size), "little")
            magic = int.from_bytes(target.read(header + size, 4), "little")
            if magic == MSG_MAGIC:
                return [f for f in found if "version" not in f]
            found.append(f"msgbufp leads to {header:#x}, where there is no message buffer")
        except MemoryFault as fault:
            if not truncated:
                found.append(f"msgbufp leads to {fault.address:#x}, which is not in the dump")
    return found


def require_match(
    target: Target, file_version: str, kernel_path: str, banners: Iterable[str] = ()
) -> None:
    """KernelMismatch, naming both versions, where the kernel file is another kernel's.

    ``file_version`` is the version string in the kernel file, "" if it has none;
    ``banners`` are version strings that the dump carries outside the kernel's memory.
    """
    core = _text_at(target, "version")
    core = core[core.index("FreeBSD") :] if "FreeBSD" in core else ""
    if core and file_version and _norm(core) == _norm(file_version):
        return
    reasons = contradictions(target)
    if reasons and _agrees(target, file_version, banners):
        # Noise in the middle of a dump contradicts everything that lies there.
        return
    if core and file_version and not reasons:
        reasons = ["the version strings differ"]
    if not reasons:
        return
    core = core or version_of_core(target) or next(iter(banners), "")
    raise KernelMismatch(
        f"{kernel_path} is not the kernel of this dump: "
        f"the kernel is {_quoted(file_version)}, the dump's is {_quoted(core)} "
        f"({reasons[0]}); name the right one with -k, or --force to go on"
    )


def _agrees(target: Target, file_version: str, banners: Iterable[str]) -> bool:
    """True where memory that is whole is this kernel's, whatever the rest of it looks like.

    Two ways that no other kernel goes: a version string outside the kernel's data is the
    file's, or the first process points back to ``allproc`` (p_list is the first member of
    struct proc in every version) and msgbufp leads to a message buffer.
    """
    told = _norm(file_version)
    if told and any(_norm(banner) and told.startswith(_norm(banner)) for banner in banners):
        return True
    size = architecture(target.arch).pointer_size
    head = _first(target, "allproc")
    try:
        first = int.from_bytes(target.read(head or 0, size), "little")
        back = int.from_bytes(target.read(first + size, size), "little")
        return head is not None and back == head and bool(ring(target).data)
    except WchanError:
        return False


def _norm(version: str) -> str:
    return " ".join(version.split())


def _quoted(version: str) -> str:
    if not version:
        return "of unknown version (no version string in it)"
    return '"' + _norm(version) + '"'
