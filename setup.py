"""What a wheel holds: the folders of the repository, below one package ``wchan``.

Everything that can be said in pyproject.toml is said there; that the folders move one level
down, and that structs.yaml lies beside them as it does here, cannot.
"""

import shutil
from pathlib import Path

from setuptools import find_namespace_packages, setup
from setuptools.command.build_py import build_py

FOLDERS = ("plugin", "commands")


class BuildPy(build_py):
    """Adds structs.yaml, which lies in no package, beside the folders."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            shutil.copy("structs.yaml", Path(self.build_lib) / "wchan")


found = [
    name
    for folder in FOLDERS
    for name in (folder, *(f"{folder}.{inner}" for inner in find_namespace_packages(folder)))
    if name != "plugin.hosts.wheel"
]
setup(
    packages=["wchan", *(f"wchan.{name}" for name in found)],
    package_dir={"wchan": "plugin/hosts/wheel", **{f"wchan.{f}": f for f in FOLDERS}},
    package_data={"": ["*.yaml", "*.gz", "*.md", "*.css", "*.js", "kernel-gdb.py"]},
    cmdclass={"build_py": BuildPy},
)
