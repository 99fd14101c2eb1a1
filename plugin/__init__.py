"""wchan: asks a stuck FreeBSD kernel why.

The package is also lldb's entry: ``command script import DIR/plugin``, in lldb or
in ``~/.lldbinit``, registers the commands.  gdb's and kgdb's is ``kernel-gdb.py``.
"""

from __future__ import annotations

from typing import Any, Dict


def __lldb_init_module(debugger: Any, internal_dict: Dict[str, Any]) -> None:
    from plugin.hosts.prepare import prepare, too_old

    problems = too_old(debugger) or prepare()
    if problems:
        print("\n".join(problems))
        return
    from plugin.hosts.lldb import register

    register(debugger, __name__)
