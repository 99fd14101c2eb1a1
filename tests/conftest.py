"""What the tests share: the real dumps, and the debuggers this machine has."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
#: the sources of structs.yaml, tests/facts/README.md
FACTS = REPOSITORY / "tests" / "facts" / "layouts.tar.xz"
SHARED = Path(os.environ.get("WCHAN_SHARED") or REPOSITORY.parent / "shared")


def _real_dumps(folders: str = "real") -> List[Optional[Path]]:
    """Where they are absent, one None: the tests are then skipped with a reason."""
    return [*sorted(SHARED.glob(f"{folders}/*/vmcore.zst"))] or [None]


class RealDump(NamedTuple):
    """A dump of a real stuck machine, decompressed, and what its own debugger (DDB) said of it.

    ``truth`` is DDB's output parsed, ``ddb_log`` that output as it was printed.
    """

    name: str
    vmcore: Path
    kernel: Path
    truth: Dict[str, Any]
    ddb_log: str


def decompress(source: Path, target: Path) -> None:
    """A .zst file's content, zeros as holes: most of a dump is free pages, which take no room."""
    zstandard = pytest.importorskip("zstandard", reason="zstandard is needed for the real dumps")
    target.parent.mkdir(parents=True, exist_ok=True)
    zeros = bytes(65536)
    with source.open("rb") as packed, target.open("wb") as out:
        for piece in zstandard.ZstdDecompressor().read_to_iter(packed, write_size=len(zeros)):
            if piece == zeros:
                out.seek(len(zeros), os.SEEK_CUR)
            else:
                out.write(piece)
        out.truncate(out.tell())


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Spooled dumps go neither into nor come out of the cache of whoever runs the tests."""
    cache = tmp_path_factory.mktemp("cache")
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(cache)
    yield
    if before is None:
        del os.environ["XDG_CACHE_HOME"]
    else:
        os.environ["XDG_CACHE_HOME"] = before
    shutil.rmtree(cache, ignore_errors=True)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of facts, reports and real dumps beside the repository."""
    if not SHARED.is_dir():
        pytest.skip(f"no {SHARED}: WCHAN_SHARED says where the real dumps lie")
    return SHARED


@pytest.fixture(scope="session")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources of structs.yaml, unpacked: layouts/, consts/, symbols/."""
    folder = tmp_path_factory.mktemp("facts")
    with tarfile.open(FACTS) as archive:
        for member in archive:
            if member.isdir():
                (folder / member.name).mkdir(exist_ok=True)
                continue
            packed = archive.extractfile(member)
            assert packed is not None, member.name
            (folder / member.name).write_bytes(packed.read())
    return folder


def _name_of(packed: Optional[Path]) -> str:
    return packed.parent.name if packed else "none"


def _real_dump(
    packed: Optional[Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RealDump]:
    if packed is None or not packed.is_file():
        where = packed or SHARED / "real"
        pytest.skip(f"no dump at {where}: WCHAN_SHARED says where the real dumps lie")
    folder = tmp_path_factory.mktemp(packed.parent.name)
    for name in ("vmcore", "kernel"):
        decompress(packed.parent / f"{name}.zst", folder / name)
    yield RealDump(
        packed.parent.name,
        folder / "vmcore",
        folder / "kernel",
        json.loads((packed.parent / "truth.json").read_text()),
        (packed.parent / "ddb.log").read_text(errors="replace"),
    )
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session", params=_real_dumps(), ids=_name_of)
def real_dump(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RealDump]:
    """Each of the two machines stuck on silent disks in turn, for as long as it is used."""
    yield from _real_dump(request.param, tmp_path_factory)


@pytest.fixture(scope="session", params=_real_dumps("real*"), ids=_name_of)
def every_dump(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RealDump]:
    """Each dump of a real stuck machine: other architectures, modules, pacing among them."""
    yield from _real_dump(request.param, tmp_path_factory)


@pytest.fixture(scope="session")
def zfs_dump(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealDump]:
    """A real 14.2 with zfs, nullfs and fusefs as modules and CTF; no .ko beside its kernel."""
    packed = SHARED / "real2" / "14.2-amd64-zfs-ko-hang" / "vmcore.zst"
    yield from _real_dump(packed, tmp_path_factory)


@pytest.fixture(scope="session")
def witness_dump(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealDump]:
    """A real 14.2 with INVARIANTS and WITNESS, pacing in GEOM."""
    packed = SHARED / "real2" / "14.2-amd64-debug-pacing" / "vmcore.zst"
    yield from _real_dump(packed, tmp_path_factory)


def _own_debugger(name: str) -> Path:
    path = Path(sys.prefix) / "bin" / name
    if not path.exists():
        pytest.skip(f"no {name} beside {sys.executable}: install.sh found no wheel of it")
    return path


@pytest.fixture(scope="session")
def venv_lldb() -> Path:
    """The lldb installed with wchan, from its wheel."""
    return _own_debugger("lldb")


@pytest.fixture(scope="session")
def venv_gdb() -> Path:
    """The gdb installed with wchan, from its wheel."""
    return _own_debugger("gdb")


def _system_programs(pattern: str) -> List[Path]:
    """Programs on PATH whose whole name matches, without this environment's own; newest first."""
    own = Path(sys.prefix) / "bin"
    found = [
        path
        for folder in map(Path, os.get_exec_path())
        if folder != own and folder.is_dir()
        for path in folder.iterdir()
        if re.fullmatch(pattern, path.name) and os.access(path, os.X_OK)
    ]
    return sorted(found, key=lambda p: [int(n) for n in re.findall(r"\d+", p.name)], reverse=True)


#: In every lldb and gdb with Python: does it see the libraries without help?
_ASK = (
    "import importlib.util as u; print('libraries:', all(map(u.find_spec, ('tabulate', 'yaml'))))"
)


def _why_not(command: List[str]) -> Optional[str]:
    """Why the Python embedded in a debugger cannot run wchan, None if it can."""
    asked = subprocess.run(
        command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL, check=False
    )
    said = re.findall(r"^libraries: (True|False)$", asked.stdout, re.MULTILINE)
    recorded = REPOSITORY / ".wchan-deps"
    if not said:
        return f"{command[0]} embeds no Python"
    if said == ["False"] and not recorded.exists():
        return (
            f"the Python in {command[0]} lacks tabulate or PyYAML, and install.sh has recorded "
            f"none in {recorded}"
        )
    return None


def _first_that_serves(kind: str, candidates: List[Path], arguments: List[str]) -> Path:
    reason: Optional[str] = f"this system has no {kind} of its own"
    for path in candidates:
        reason = _why_not([str(path), *arguments])
        if reason is None:
            return path
    pytest.skip(str(reason))


@pytest.fixture(scope="session")
def system_lldb() -> Path:
    """An lldb of the system, as a rule with another Python than that of the tests."""
    programs = _system_programs(r"lldb(-?\d+)?")
    return _first_that_serves("lldb", programs, ["--no-lldbinit", "-b", "-o", f"script {_ASK}"])


@pytest.fixture(scope="session")
def system_gdb() -> Path:
    """A gdb of the system, as a rule with another Python than that of the tests."""
    programs = _system_programs("gdb")
    return _first_that_serves("gdb", programs, ["-nx", "-batch", "-ex", f"python {_ASK}"])


@pytest.fixture(autouse=True)
def _enters(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test marked ``enters("name", ..)`` has asked those resolvers by its end."""
    wanted = {name for mark in request.node.iter_markers("enters") for name in mark.args}
    if not wanted:
        yield
        return
    from plugin.waits import explain  # every resolver registers
    from plugin.waits.registry import RESOLVERS

    assert explain and wanted <= set(RESOLVERS)
    own, seen = dict(RESOLVERS), set()

    def recorded(name: str) -> Any:
        def asked(case: Any) -> Any:
            seen.add(name)
            return own[name](case)

        return asked

    RESOLVERS.update({name: recorded(name) for name in wanted})
    try:
        yield
    finally:
        RESOLVERS.update(own)
    assert wanted <= seen, f"not entered: {', '.join(sorted(wanted - seen))}"
