"""``python -m wchan``: how a debugger loads the plugin from where the wheel put it."""

from pathlib import Path

_FOLDER = Path(__file__).parent
print(f'lldb: command script import "{_FOLDER / "plugin"}"')
print(f"gdb:  source {_FOLDER / 'plugin' / 'kernel-gdb.py'}")
