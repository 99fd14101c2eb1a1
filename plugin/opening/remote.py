"""Opening a machine behind its own gdb stub, with the kernel file that it runs."""

from __future__ import annotations

from typing import Callable, List, Optional, Tuple

from plugin.errors import KernelMismatch, KernelMissing
from plugin.opening.find_kernel import version_of_file
from plugin.opening.identify import require_match
from plugin.targets.remote import RemoteTarget, Stub
from plugin.vmcore.elf import ElfFile


def open_remote(
    address: str,
    kernel: Optional[str],
    *,
    force: bool = False,
    say: Callable[[str], None] = lambda text: None,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Tuple[RemoteTarget, List[str]]:
    """The machine as a target, and notes for the reports (a forced mismatch).

    ``say`` is told of answers that had to be asked for again, ``progress`` of what comes
    over the wire.  WchanError where no stub answers, KernelMismatch where the machine runs
    another kernel, unless ``force``.
    """
    if kernel is None:
        raise KernelMissing(f"a stub says nothing of its kernel: name the file of {address}'s, -k")
    elf = ElfFile(kernel)
    target = RemoteTarget(Stub(address, say), elf)
    target.wire.tell = progress
    notes: List[str] = []
    try:
        require_match(target, version_of_file(elf), kernel)
        target.wire.trusted = True
    except KernelMismatch as mismatch:
        if not force:
            target.stub.close()
            raise
        notes.append(f"forced: {str(mismatch).rsplit(';', 1)[0]}")
    return target, notes
