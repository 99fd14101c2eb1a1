"""Wheel and sdist, built from the tracked files and installed in environments of their own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Dict, List, Set

import pytest

from plugin.version import VERSION

REPOSITORY = Path(__file__).resolve().parent.parent
#: what install.sh copies; it lies below wchan/ in a wheel
PARTS = ("plugin", "commands", "structs.yaml")

pytestmark = pytest.mark.skipif(
    shutil.which("git") is None or not (REPOSITORY / ".git").exists(),
    reason="no git checkout: which files are the project's own is not known",
)


def tracked() -> List[str]:
    found = subprocess.run(
        ["git", "ls-files", "-z"], cwd=REPOSITORY, check=True, capture_output=True, text=True
    ).stdout.split("\0")
    return [name for name in found if name and (REPOSITORY / name).exists()]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Dict[str, Path]:
    """ "wheel" and "sdist": made by the backend that pyproject.toml names."""
    folder = tmp_path_factory.mktemp("packaging")
    python = str(folder / "venv" / "bin" / "python")
    subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
    wanted = ["setuptools>=61", "wheel"]
    pip = [python, "-m", "pip", "-q", "--disable-pip-version-check", "install", *wanted]
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"setuptools cannot be had here: {done.stderr.strip().splitlines()[-1]}")
    for name in tracked():
        if not name.startswith("tests/facts/"):
            target = folder / "checkout" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, target)
    backend = "import setuptools.build_meta as b; b.build_sdist('../out'); b.build_wheel('../out')"
    subprocess.run(
        [python, "-c", backend], cwd=folder / "checkout", check=True, capture_output=True
    )
    wheel, sdist = (next((folder / "out").glob(end)) for end in ("*.whl", "*.tar.gz"))
    return {"wheel": wheel, "sdist": sdist}


def test_a_wheel_holds_what_install_sh_installs_below_one_folder(built: Dict[str, Path]) -> None:
    inside = set(zipfile.ZipFile(built["wheel"]).namelist())
    wanted: Set[str] = {
        f"wchan/{name}"
        for name in tracked()
        if name.split("/")[0] in PARTS and not name.startswith("plugin/hosts/wheel/")
    }
    assert wanted - inside == set()
    own = {name for name in inside if ".dist-info/" not in name and ".data/" not in name}
    assert own - wanted == {"wchan/__init__.py", "wchan/__main__.py"}
    assert [name for name in inside if name.endswith("share/man/man1/wchan.1")]


def test_an_sdist_holds_all_that_a_wheel_is_made_of(built: Dict[str, Path]) -> None:
    with tarfile.open(built["sdist"]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert {name for name in tracked() if name.split("/")[0] in PARTS} - names == set()
    assert {"pyproject.toml", "setup.py", "docs/wchan.1", "LICENSE", "README.md"} <= names


def test_the_installed_wheel_answers(built: Dict[str, Path], tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    pip = [str(python), "-m", "pip", "-q", "--disable-pip-version-check", "install"]
    done = subprocess.run([*pip, str(built["wheel"])], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"tabulate and PyYAML cannot be had here: {done.stderr.strip()[-200:]}")
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}

    def run(*words: str) -> str:
        return subprocess.run(
            words, check=True, capture_output=True, text=True, cwd=tmp_path, env=environment
        ).stdout

    wchan = str(python.parent / "wchan")
    assert run(wchan, "--version").startswith("wchan ")
    assert "GEOM is pacing, not blocked" in run(wchan, "demo")
    for line in run(str(python), "-m", "wchan").splitlines():
        path = line.split(" ", 1)[1].replace("command script import", "").replace("source", "")
        assert Path(path.strip().strip('"')).exists(), line
    # Nothing of it is importable by everybody's `import plugin`.
    importable = run(str(python), "-c", "import importlib.util as u; print(u.find_spec('plugin'))")
    assert importable.strip() == "None"
    assert (tmp_path / "venv" / "share" / "man" / "man1" / "wchan.1").exists()


def test_the_port_has_the_dependencies_of_the_project_and_its_version() -> None:
    """As far as a port can be checked without FreeBSD's own tools."""
    port = (REPOSITORY / "docs" / "port" / "Makefile").read_text()
    project = (REPOSITORY / "pyproject.toml").read_text()
    wanted: Dict[str, str] = {}
    for line in re.findall(r"(?m)^(?:dependencies|extras) = \[(.*?)\]$", project):
        wanted.update(re.findall(r'"([A-Za-z]+)>=([0-9.]+)"', line.replace("PyYAML", "pyyaml")))
    named = dict(re.findall(r"PKGNAMEPREFIX\}([a-z]+)>=([0-9.]+):\S+/py-\1@", port))
    assert len(wanted) > 4 and named.pop("setuptools") == "61"
    assert named == wanted
    assert f"DISTVERSION=\t{VERSION}\n" in port
