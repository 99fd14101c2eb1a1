"""Full dumps: an ELF core whose segments are physical memory (sys/kern/kern_dump.c).

p_paddr of each PT_LOAD is the physical address; to 14 p_vaddr is the same.
Virtual addresses need the kernel's page tables, found by its symbols.  The
same holds for the memory of a guest that QEMU wrote (dump-guest-memory), told
by its QEMU notes.
"""

from __future__ import annotations

from typing import Iterator, Optional, Sequence, Set, Tuple

from plugin.arch import BY_NAME, architecture
from plugin.errors import DumpError, KernelMismatch
from plugin.vmcore.elf import ET_CORE, PT_LOAD, PT_NOTE, ElfFile, notes
from plugin.vmcore.file import DumpFile
from plugin.vmcore.memory import KernelMemory
from plugin.vmcore.physical import SegmentMemory

#: sections of a Xen guest's core; a frame's number that stands for none
_XEN_PAGES, _XEN_PFN, _XEN_PAGE, _NO_FRAME = ".xen_pages", ".xen_pfn", 4096, 1 << 40

_TYPES = {1: "an object file or kernel module", 2: "a kernel or program", 3: "a kernel or program"}


def open_full_dump(
    file: DumpFile, path: str, file_path: str, kernel: Optional[ElfFile], truncated: bool
) -> KernelMemory:
    """The memory of a full dump that begins at ``file.start``, or DumpError."""
    with ElfFile(file_path, offset=file.start) as core:
        core.path = path
        _check(core, path)
        arch = BY_NAME.get(core.arch)
        if arch is None:
            raise DumpError(f"{path} is a full dump of a {core.arch} machine, which cannot be read")
        check_kernel(kernel, path, core.arch)
        if kernel is None:
            raise DumpError(
                f"{path} is a full dump: its page tables are found by the kernel's symbols; "
                "give the kernel that made it (-k KERNEL)"
            )
        segments = [
            (s.paddr, s.filesz, s.offset + file.start) for s in core.segments if s.type == PT_LOAD
        ]
        form = "full ELF dump"
        if not segments and any(s.name == _XEN_PAGES for s in core.sections):
            segments, form = list(_of_xen(core, file.start, path)), "Xen memory image"
    return of_segments(file, path, file_path, kernel, segments, form, truncated)


def open_raw(file: DumpFile, path: str, file_path: str, kernel: ElfFile) -> Optional[KernelMemory]:
    """A file that is a machine's physical memory from address 0 on, and nothing else.

    What QEMU's pmemsave writes of a PC.  None where no page tables of ``kernel`` prove it.
    """
    arch = BY_NAME.get(kernel.arch)
    if arch is None or file.end - file.start < arch.page_size:
        return None
    segments = [(0, file.end - file.start, file.start)]
    try:
        return of_segments(file, path, file_path, kernel, segments, "raw memory image", False)
    except (DumpError, KernelMismatch):
        return None


def of_segments(
    file: DumpFile,
    path: str,
    file_path: str,
    kernel: ElfFile,
    segments: Sequence[Tuple[int, int, int]],
    form: str,
    truncated: bool,
) -> KernelMemory:
    """The memory of (physical address, bytes, file offset) each; KernelMismatch, DumpError."""
    arch = architecture(kernel.arch)
    physical = SegmentMemory(segments, file.end)
    if not physical.present:
        raise DumpError(f"{path} is a {form} without any memory in it: truncated?")

    def read_physical(pa: int, size: int) -> Optional[bytes]:
        offset, length = physical.extent(pa, size)
        data = file.read(offset, size) if offset >= 0 and length == size else b""
        return data if len(data) == size else None

    truncated = truncated or physical.present < physical.announced
    try:
        space = arch.full_space(kernel, physical, read_physical)
    except KernelMismatch as error:
        if truncated:
            raise DumpError(f"{error}, or {path} is truncated before it") from None
        raise
    return KernelMemory(
        file,
        path=path,
        file_path=file_path,
        arch=arch.name,
        format=form,
        page_size=arch.page_size,
        physical=physical,
        space=space,
        truncated=truncated,
    )


def _of_xen(core: ElfFile, start: int, path: str) -> Iterator[Tuple[int, int, int]]:
    """The runs of a guest's pages as xl dump-core writes them (xen/include/public, xc_core.h).

    .xen_pfn has the number of each page in .xen_pages; pages are of 4 KB.
    """
    homes = {section.name: section for section in core.sections}
    numbers, pages = core.section(_XEN_PFN), homes[_XEN_PAGES]
    if numbers is None:
        raise DumpError(
            f"{path} is the memory of a paravirtual Xen guest, whose pages are not where it says: "
            "take a dump inside the machine"
        )
    frames = memoryview(numbers[: len(numbers) & ~7]).cast("Q")
    at = 0
    while at < len(frames):
        end = at + 1
        while end < len(frames) and frames[end] == frames[end - 1] + 1:
            end += 1
        if frames[at] < _NO_FRAME:
            offset = start + pages.offset + at * _XEN_PAGE
            yield frames[at] * _XEN_PAGE, (end - at) * _XEN_PAGE, offset
        at = end


def check_kernel(kernel: Optional[ElfFile], path: str, arch: str) -> None:
    """KernelMismatch where ``kernel`` is of another architecture than the dump."""
    if kernel is not None and kernel.arch != arch:
        raise KernelMismatch(
            f"{kernel.path} is a kernel for {kernel.arch}, but {path} is a dump of {arch}"
        )


def _check(core: ElfFile, path: str) -> None:
    """Refuse ELF files that are no dump of a FreeBSD kernel's memory."""
    if core.etype != ET_CORE:
        what = _TYPES.get(core.etype, f"ELF of type {core.etype}")
        raise DumpError(
            f"{path} is {what} ({core.arch}), not a dump: give it with -k and name the vmcore here"
        )
    owners: Set[bytes] = set()
    for segment in core.segments:
        if segment.type == PT_NOTE:
            data = core.pread(segment.offset, min(segment.filesz, 1 << 20))
            owners.update(owner for owner, _, _ in notes(data))
    if b"VMCOREINFO" in owners:
        raise DumpError(f"{path} is a dump of a Linux kernel: read it with crash or drgn")
    if b"QEMU" in owners:
        return
    if owners & {b"CORE", b"LINUX"}:
        raise DumpError(f"{path} is a core of a Linux process, not of a FreeBSD kernel")
    if b"FreeBSD" in owners:
        raise DumpError(f"{path} is a core of a FreeBSD process, not of the kernel")
