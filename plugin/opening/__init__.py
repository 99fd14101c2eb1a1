"""Which kernel is this, and how is it read: the kernel file, its identity, its layouts."""

from __future__ import annotations

from typing import Callable, Optional, Sequence

from plugin.errors import LayoutError
from plugin.kernel.module_file import ModuleSymbols, ModuleTypes
from plugin.opening.find_kernel import open_dump
from plugin.opening.identify import identify
from plugin.opening.layouts import choose_layouts, without_layouts
from plugin.session import Kernel, KernelFacts
from plugin.targets import Target


def open_core(
    vmcore: str,
    kernel: Optional[str] = None,
    *,
    force: bool = False,
    structs: Optional[str] = None,
    sysroot: Optional[str] = None,
    key: Optional[str] = None,
    progress: Optional[Callable[[int, int], None]] = None,
    bare: bool = False,
) -> Kernel:
    """Open a dump without a debugger.

    ``kernel`` names the kernel file; without it, it is looked for beside the dump,
    in /boot/kernel and where the dump's version string says.  KernelMismatch where
    it is another kernel's, unless ``force``; DumpError where the dump is none.
    ``sysroot`` is a folder with the files of the machine that crashed, for its modules,
    ``key`` the private key of an encrypted dump;
    ``bare`` goes on where no layouts fit, for what needs none.
    """
    target, notes = open_dump(vmcore, kernel, force=force, key=key, progress=progress)
    return open_target(
        target, structs=structs, force=force, notes=notes, sysroot=sysroot, bare=bare
    )


def open_target(
    target: Target,
    *,
    structs: Optional[str] = None,
    force: bool = False,
    notes: Sequence[str] = (),
    sysroot: Optional[str] = None,
    bare: bool = False,
) -> Kernel:
    """A Kernel on any target: finds out which kernel it is and chooses its layouts.

    LayoutError where none fit, but with ``bare`` a Kernel without layouts that says so.
    """
    identity = identify(target)
    try:
        chosen = choose_layouts(target, identity.osreldate, override=structs, force=force)
    except LayoutError as error:
        if not bare:
            raise
        chosen = without_layouts(str(error))
    facts = KernelFacts(
        release=identity.release,
        osreldate=identity.osreldate,
        ident=identity.ident,
        version=identity.version,
        variant=chosen.variant,
        page_size=identity.page_size,
        notes=[*notes, *identity.notes, *chosen.notes],
        roots=[sysroot] if sysroot else [],
    )
    kernel = Kernel(target, chosen.layouts, facts)
    kernel.modules = ModuleSymbols(kernel)
    # A module knows its own structs better than structs.yaml does, the kernel its own best.
    yaml = [n for n, source in enumerate(kernel.layouts.sources) if source.name.startswith("yaml")]
    kernel.layouts.sources.insert(max(yaml[0], 1) if yaml else 1, ModuleTypes(kernel))
    return kernel
