"""gdb's and kgdb's entry: ``source DIR/plugin/kernel-gdb.py`` registers the commands.

Named so that gdb's auto-load takes it for a kernel called ``kernel`` too.
"""

import os
import sys


def _load(folder: str) -> None:
    root = os.path.dirname(folder)
    for name in ("plugin", "commands"):
        # What is already loaded would be used in place of ours.
        module = sys.modules.get(name)
        home = os.path.dirname(os.path.abspath(getattr(module, "__file__", None) or ""))
        if module is not None and home != os.path.join(root, name):
            print(
                f"wchan: another module named {name!r} is loaded already ({home}); "
                "wchan cannot be loaded into the same gdb"
            )
            return
    sys.path.insert(0, root)
    from plugin.hosts.prepare import prepare

    problems = prepare()
    if problems:
        print("\n".join(problems))
        return
    from plugin.hosts.gdb import register

    register()


# gdb forgets __file__ once this script has run.
_load(os.path.dirname(os.path.realpath(__file__)))
