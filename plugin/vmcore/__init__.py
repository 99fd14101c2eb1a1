"""FreeBSD's kernel dumps: from the file to physical and from there to virtual memory.

``open_memory`` takes whatever file the user has: a minidump, a full dump, one of
them compressed, or still on the dump device; and says in one line what any
other file is and what to do with it.  ``open_any`` takes capsules too;
``elf.ElfFile`` reads the kernel.
"""

from __future__ import annotations

import os
from typing import Optional

from plugin.errors import DumpError
from plugin.vmcore.capsule import MAGIC as CAPSULE
from plugin.vmcore.capsule import CapsuleMemory
from plugin.vmcore.elf import ElfFile
from plugin.vmcore.elfdump import check_kernel, open_full_dump, open_raw
from plugin.vmcore.file import DumpFile
from plugin.vmcore.identify import explain
from plugin.vmcore.kerneldump import DumpHeader, dump_on_device
from plugin.vmcore.memory import KernelMemory, Memory
from plugin.vmcore.minidump import MAGIC, open_minidump
from plugin.vmcore.spool import PathLike, Progress, plain_file, plain_part

__all__ = [
    "CapsuleMemory",
    "ElfFile",
    "KernelMemory",
    "Memory",
    "open_any",
    "open_capsule",
    "open_memory",
]


def open_any(
    path: PathLike,
    kernel: Optional[ElfFile] = None,
    *,
    progress: Optional[Progress] = None,
) -> Memory:
    """A capsule, or a dump as ``open_memory`` opens it; DumpError, KernelMismatch likewise."""
    return open_capsule(path, progress) or open_memory(path, kernel, progress=progress)


def open_capsule(path: PathLike, progress: Optional[Progress] = None) -> Optional[CapsuleMemory]:
    """The memory of a capsule, None of any other file; DumpError of a damaged one."""
    name = os.fspath(path)
    plain = plain_file(name, progress=progress)
    file = DumpFile(plain.path)
    try:
        if file.read(0, len(CAPSULE)) == CAPSULE:
            return CapsuleMemory(file, name, plain.path)
    except BaseException:
        file.close()
        raise
    file.close()
    return None


def open_memory(
    path: PathLike,
    kernel: Optional[ElfFile] = None,
    *,
    spool_dir: Optional[PathLike] = None,
    progress: Optional[Progress] = None,
) -> KernelMemory:
    """Open the dump at ``path``; ``kernel`` is needed for full dumps only.

    A compressed dump is decompressed into ``spool_dir`` (by default the user's
    cache), with ``progress`` called on the way.  DumpError where the file is no
    dump, or one that cannot be read; KernelMismatch where ``kernel`` cannot have
    made it: another architecture, or no page tables where its symbols point.
    """
    name = os.fspath(path)
    plain = plain_file(name, spool_dir=spool_dir, progress=progress)
    file = DumpFile(plain.path)
    try:
        found = _by_magic(file, name, plain.path, kernel, plain.truncated)
        header = dump_on_device(file, name) if found is None else None
        if header is not None and header.compression:
            file.close()
            plain = plain_part(
                plain.path, header.start, header.extent, spool_dir=spool_dir, progress=progress
            )
            file = DumpFile(plain.path)
            found = _by_magic(file, name, plain.path, kernel, plain.truncated)
        elif header is not None:
            file.start, file.end = header.start, header.start + header.length
            found = _by_magic(file, name, plain.path, kernel, plain.truncated)
        if found is None and kernel is not None:
            found = open_raw(file, name, plain.path, kernel)
        if found is None:
            raise DumpError(explain(file, name))
        check_kernel(kernel, name, found.arch)
        return _described(found, header) if header is not None else found
    except (OSError, OverflowError) as error:
        file.close()
        reason = getattr(error, "strerror", None) or "damaged offsets"
        raise DumpError(f"{name}: cannot be read: {reason}") from None
    except BaseException:
        file.close()
        raise


def _by_magic(
    file: DumpFile, path: str, plain: str, kernel: Optional[ElfFile], truncated: bool
) -> Optional[KernelMemory]:
    head = file.read(file.start, len(MAGIC))
    if head == MAGIC:
        return open_minidump(file, path, plain, truncated)
    if head.startswith(b"\x7fELF"):
        return open_full_dump(file, path, plain, kernel, truncated)
    return None


def _described(memory: KernelMemory, header: DumpHeader) -> KernelMemory:
    memory.format += " on a dump device"
    memory.panicstring = header.panicstring or None
    memory.version = header.version or None
    memory.hostname = header.hostname or None
    return memory
