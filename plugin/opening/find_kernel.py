"""Opening a dump together with the kernel file that made it."""

from __future__ import annotations

import os
import re
from typing import Callable, Iterator, List, Optional, Tuple

from plugin.errors import DumpError, KernelMismatch, KernelMissing
from plugin.opening.identify import require_match
from plugin.targets.core import CoreTarget
from plugin.vmcore import Memory, open_any, open_capsule, open_memory
from plugin.vmcore.elf import ElfFile
from plugin.vmcore.encrypted import decrypted

_NAMES = ("kernel.debug", "kernel.full", "kernel", "boot/kernel/kernel")
_SUFFIXES = ("", ".zst", ".gz")
#: "... user@host:/usr/obj/usr/src/amd64.amd64/sys/GENERIC": where it was built.
_BANNER = re.compile(rb"FreeBSD \d+\.\d+-[A-Z][ -~]{3,200}")
_BUILT_IN = re.compile(r"@[^:\s]+:(/\S+)")


def open_dump(
    vmcore: str,
    kernel: Optional[str] = None,
    *,
    force: bool = False,
    key: Optional[str] = None,
    progress: Optional[Callable[[int, int], None]] = None,
) -> Tuple[CoreTarget, List[str]]:
    """The dump as a target, and notes for the reports (a forced mismatch).

    ``key`` is the file of the private key of an encrypted one.
    """
    if key is not None:
        plain = decrypted(vmcore, key, progress=progress)
        beside = kernel or next(candidates(vmcore), None)
        target, notes = open_dump(plain, beside, force=force, progress=progress)
        target.files = (*target.files, vmcore)
        target.description = vmcore
        kept = f"the dump was decrypted; the copy stays in {plain} until you remove it"
        return target, [*notes, kept]
    own = _capsule(vmcore, progress) if kernel is None else None
    if own is not None:
        return own
    if kernel is not None:
        elf = ElfFile(kernel)
        target = CoreTarget(open_any(vmcore, elf, progress=progress), elf)
        notes = []
        try:
            require_match(target, version_of_file(elf), kernel, _banners(target.memory))
        except KernelMismatch as mismatch:
            if not force:
                raise
            notes.append(f"forced: {str(mismatch).rsplit(';', 1)[0]}")
    else:
        target, notes = _search(vmcore, progress), []
    if target.truncated:
        notes.append("the dump is truncated; what it lacks is reported where it is missed")
    return target, notes


def _capsule(
    vmcore: str, progress: Optional[Callable[[int, int], None]]
) -> Optional[Tuple[CoreTarget, List[str]]]:
    """A capsule with the kernel in it, which was compared when it was made; None of a dump."""
    memory = open_capsule(vmcore, progress)
    if memory is None:
        return None
    return CoreTarget(memory, ElfFile(memory.kernel_file)), list(memory.notes)


def _search(vmcore: str, progress: Optional[Callable[[int, int], None]]) -> CoreTarget:
    tried: List[str] = []
    for path in candidates(vmcore):
        tried.append(path)
        try:
            elf = ElfFile(path)
        except DumpError:
            continue
        try:
            target = CoreTarget(open_memory(vmcore, elf, progress=progress), elf)
        except KernelMismatch:
            continue
        try:
            require_match(target, version_of_file(elf), path)
        except KernelMismatch:
            target.memory.close()
            continue
        return target
    # Opening it without a kernel tells a file that is no dump from a lone dump.
    memory = open_memory(vmcore, None, progress=progress)
    memory.close()
    seen = f" (looked at {', '.join(tried)})" if tried else ""
    raise KernelMissing(f"no kernel found that made {vmcore}{seen}; name it with -k KERNEL")


def candidates(vmcore: str) -> Iterator[str]:
    """Kernel files that may have made the dump, likeliest first.

    Beside the dump (savecore and crashinfo users copy it there), then where this
    machine boots from and keeps its debug files.
    """
    beside = os.path.dirname(os.path.abspath(vmcore))
    match = re.match(r"(?:vmcore|livecore)(?:_encrypted)?\.(\d+|last)", os.path.basename(vmcore))
    names = ([f"kernel.{match.group(1)}"] if match else []) + list(_NAMES)
    places = [os.path.join(beside, name) for name in names]
    places += [built for built in _built_in(vmcore) if built]
    places += ["/usr/lib/debug/boot/kernel/kernel.debug", "/boot/kernel/kernel"]
    for place in places:
        for suffix in _SUFFIXES:
            if os.path.isfile(place + suffix):
                yield place + suffix


def _built_in(vmcore: str) -> Iterator[str]:
    """Where savecore's info file beside the dump says the kernel was built."""
    folder, name = os.path.split(os.path.abspath(vmcore))
    number = name.split(".")[1] if "." in name else ""
    try:
        with open(os.path.join(folder, f"info.{number}"), encoding="utf-8", errors="replace") as f:
            text = f.read(65536)
    except OSError:
        return
    for found in _BUILT_IN.finditer(text):
        for kernel in ("kernel.debug", "kernel.full", "kernel"):
            yield os.path.join(found.group(1), kernel)


def version_of_file(elf: ElfFile) -> str:
    """The version string inside a kernel file, "" where its data was stripped."""
    for symbol in elf.symbols("version"):
        data = elf.read(symbol.address, symbol.size or 256)
        if data and b"FreeBSD" in data:
            text = data[data.index(b"FreeBSD") :].split(b"\0", 1)[0]
            return text.decode("utf-8", "backslashreplace").strip()
    return ""


def _banners(memory: Memory) -> Iterator[str]:
    """Version strings that a dump holds wherever they can be had without symbols.

    The dump's header, its message buffer, and at last the first one anywhere in
    the file: only asked for when a mismatch must be explained.
    """
    if memory.version:
        yield memory.version
    found = _BANNER.search(memory.message_buffer)
    if found:
        yield found.group(0).decode("ascii", "backslashreplace")
    overlap = b""
    with open(memory.file_path, "rb") as file:
        for piece in iter(lambda: file.read(1 << 20), b""):
            found = _BANNER.search(overlap + piece)
            if found:
                yield found.group(0).decode("ascii", "backslashreplace")
                return
            overlap = piece[-256:]
