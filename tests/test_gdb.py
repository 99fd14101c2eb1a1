"""wchan in gdb: kernel threads as threads, and what is gdb's own about the commands."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Iterator, List

import debuggers
import pytest
from build_vmcore import Sym, elf
from hosts import ROOT
from machines import HZ, KERNELS, PANICKED, WAITS, Example, example

from plugin.hosts.inferior import KernelInferior
from plugin.hosts.rsp import Server
from plugin.opening import open_core
from plugin.targets.image import KernelImage

ENTRY = ROOT / "plugin" / "kernel-gdb.py"


def gdb(program: Path, *words: str) -> debuggers.Batch:
    """A gdb of the user's own, nothing of wchan in it but what the words say."""
    done = subprocess.run(
        [str(program), "-nx", "-batch", "-iex", "set osabi none", *words],
        capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    return debuggers.Batch(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def amd64(tmp_path_factory: pytest.TempPathFactory) -> Example:
    return example("14.2 amd64", tmp_path_factory.mktemp("amd64"))


@pytest.fixture(scope="module", params=KERNELS)
def machine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Example:
    """One forged machine after the other."""
    return example(request.param, tmp_path_factory.mktemp("machine"))


@pytest.fixture(scope="module")
def served(amd64: Example) -> Iterator[str]:
    """The address at which ``wchan serve`` serves the amd64 machine."""
    words = ["-m", "plugin", "serve", "-k", str(amd64.kernel), str(amd64.vmcore)]
    server = subprocess.Popen([sys.executable, *words], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    first = server.stdout.readline()
    assert first.startswith(f"serving {amd64.vmcore} on /"), first
    address = first.split(" on ")[1].strip()
    yield address
    server.terminate()
    assert server.wait(10) == 0
    assert not os.path.exists(address)
    server.stdout.close()


# Threads


def test_every_thread_of_a_real_machine_is_listed(venv_gdb: Path, real_dump: Any) -> None:
    done = debuggers.gdb(venv_gdb, real_dump, "info threads")
    assert len(done.threads) == len(real_dump.truth["threads"])
    names = dict(done.threads)
    for row in real_dump.truth["threads"]:
        if row["tid"] is not None:
            assert names[row["tid"]].startswith(f"(pid {row['pid']}) {row['comm']}")


def test_their_stacks_are_those_ddb_traced(venv_gdb: Path, real_dump: Any) -> None:
    done = debuggers.gdb(venv_gdb, real_dump, "thread apply all bt")
    found, traced = done.stacks, real_dump.truth["stacks"]
    # DDB prints nothing for a thread that never ran, and faults on some while tracing;
    # the thread that took the dump it traced from where it entered DDB.
    compared = [t for t in traced if traced[t] and "kdb_reenter" not in traced[t]]
    same = [tid for tid in compared if found[tid] == traced[tid]]
    assert len(compared) > 100
    assert len(same) >= len(compared) - 2, [t for t in compared if t not in same]


def test_a_machine_of_each_architecture_opens(venv_gdb: Path, machine: Example) -> None:
    done = debuggers.gdb(
        venv_gdb, machine, "info threads", "bt", "print *(int *)&hz", "print $pc", "print $sp"
    )
    assert len(done.threads) == machine.threads
    names = dict(done.threads)
    assert names[machine.dumper] == "(pid 500) dumper (crashed)"
    assert names[machine.sleeper] == "(pid 501) waiter/second"
    assert debuggers.functions(done.out)[: len(PANICKED)] == PANICKED
    assert f"$1 = {HZ}\n" in done.out
    assert re.search(r"^\$2 = .* 0x[0-9a-f]+ <doadump\+\d+>$", done.out, re.MULTILINE)
    assert re.search(r"^\$3 = .*0x[0-9a-f]{8}", done.out, re.MULTILINE)


def test_one_can_switch_to_a_thread(venv_gdb: Path, amd64: Example) -> None:
    listed = debuggers.gdb(venv_gdb, amd64, "info threads").threads
    number = [tid for tid, _ in listed].index(amd64.sleeper) + 1
    done = debuggers.gdb(venv_gdb, amd64, f"thread {number}", "bt", "info registers rax rip")
    assert f"[Switching to thread {number} (Thread {amd64.sleeper})]" in done.out
    found = debuggers.functions(done.out)
    assert found[1:3] == ["sched_switch", "mi_switch"]
    assert found[found.index(WAITS[0]) :][: len(WAITS)] == WAITS
    assert re.search(r"^rax +<unavailable>$", done.out, re.MULTILINE)
    assert re.search(r"^rip .*<sched_switch\+\d+>$", done.out, re.MULTILINE)


#: what scripts written for kgdb do with a thread: find it by ptid[2], go there and back
KGDB_HABITS = """
import gdb
def thread_of(tid):
    return next((t for t in gdb.inferiors()[0].threads() if t.ptid[2] == tid), None)
class OnTid(gdb.Command):
    def __init__(self):
        super().__init__("on-tid", gdb.COMMAND_USER)
    def invoke(self, arg, from_tty):
        before = gdb.selected_thread()
        thread_of(gdb.parse_and_eval(arg)).switch()
        gdb.execute("bt")
        print("there:", gdb.selected_thread().ptid[2], isinstance(before, gdb.InferiorThread))
        before.switch()
        print("back:", gdb.selected_thread() == before, thread_of(before.ptid[2]) == before)
class Tid(gdb.Function):
    def __init__(self):
        super().__init__("TID")
    def invoke(self):
        return gdb.selected_thread().ptid[2]
OnTid()
Tid()
"""


@pytest.mark.parametrize("which", ["venv_gdb", "system_gdb"])
def test_a_script_written_for_kgdb_finds_a_thread_by_its_tid(
    which: str, amd64: Example, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    script = tmp_path / "habits.py"
    script.write_text(KGDB_HABITS, encoding="utf-8")
    program = request.getfixturevalue(which)
    tid = amd64.sleeper
    done = debuggers.gdb(program, amd64, f"source {script}", f"on-tid {tid}", "p $TID()")
    assert f"there: {tid} True\nback: True True\n" in done.out, done.err
    functions = debuggers.functions(done.out)
    assert functions[functions.index(WAITS[0]) :][: len(WAITS)] == WAITS
    assert re.search(r"^\$1 = (\d+)$", done.out, re.MULTILINE)


def test_a_dump_stays_as_it_is(venv_gdb: Path, amd64: Example) -> None:
    done = debuggers.gdb(venv_gdb, amd64, "continue", "set var *(int *)&hz = 1", "p *(int *)&hz")
    assert "This is a dump: it cannot run." in done.out + done.err
    assert f"$1 = {HZ}\n" in done.out


def test_compressed_files_open(venv_gdb: Path, shared: Path) -> None:
    pytest.importorskip("zstandard")
    found = sorted(shared.glob("real/*/vmcore.zst"))
    if not found:
        pytest.skip(f"no dump under {shared / 'real'}")

    class Packed:
        vmcore, kernel = found[0], found[0].parent / "kernel.zst"

    done = debuggers.gdb(venv_gdb, Packed, "p *(int *)&hz", "kthreads --limit 1")
    assert done.status == 0, done.err
    assert "$1 = 100\n" in done.out


# The commands in a gdb that the user started


@pytest.mark.parametrize("which", ["venv_gdb", "system_gdb"])
def test_the_entry_serves_a_gdb_connected_by_hand(
    which: str,
    served: str,
    amd64: Example,
    request: pytest.FixtureRequest,
) -> None:
    program = request.getfixturevalue(which)
    connect = ["-ex", f"target remote {served}"]
    load = ["-ex", f"source {ENTRY}"]
    for order in ([*connect, *load], [*load, *connect]):
        done = gdb(program, str(amd64.kernel), *order, "-ex", "kthreads", "-ex", "bt")
        assert done.status == 0, done.err
        assert re.search(rf"^{amd64.sleeper} +501  second +sleeping +example", done.out, re.M)
        assert debuggers.functions(done.out)[: len(PANICKED)] == PANICKED


def test_a_stub_that_knows_nothing_of_wchan_serves_as_well(
    venv_gdb: Path, amd64: Example, tmp_path: Path
) -> None:
    # It does not say which dump it serves, as a live kernel's does not.
    kernel = open_core(str(amd64.vmcore), str(amd64.kernel))
    server = Server(KernelInferior(kernel, {}))
    server.start()
    try:
        connect = ["-ex", f"target remote {server.address}", "-ex", f"source {ENTRY}"]
        done = gdb(
            venv_gdb, str(amd64.kernel), *connect, "-ex", f"kthreads --json -o {tmp_path / 'json'}"
        )
    finally:
        server.close()
    assert done.status == 0, done.err
    found = json.loads((tmp_path / "json").read_text())
    assert len(found["data"]["threads"]) == amd64.threads
    assert found["warnings"] == []


def test_a_kernel_file_of_another_machine_is_refused(
    venv_gdb: Path, served: str, tmp_path: Path
) -> None:
    wrong = example("14.2 amd64", tmp_path, ident="OTHER")
    words = [str(wrong.kernel), "-ex", f"target remote {served}", "-ex", f"source {ENTRY}"]
    done = gdb(venv_gdb, *words, "-ex", "kthreads", "-ex", "help")
    assert done.status == 1
    assert re.search("is not the kernel of this dump: .*OTHER.*GENERIC.*WCHAN_FORCE", done.err)


def test_without_a_kernel_a_command_says_what_to_do(venv_gdb: Path) -> None:
    done = gdb(venv_gdb, "-ex", f"source {ENTRY}", "-ex", "kthreads")
    assert done.status == 1
    assert done.err == "kthreads: no kernel is being debugged: open a dump or connect first\n"


def test_options_are_completed(venv_gdb: Path) -> None:
    done = gdb(venv_gdb, "-ex", f"source {ENTRY}", "-ex", "complete kthreads --st")
    assert done.out.split("\n")[:2] == ["kthreads --stacks", "kthreads --state"]


def test_what_a_command_may_be_asked_about_is_completed(venv_gdb: Path, amd64: Example) -> None:
    """Out of the kernel that the command before has opened: a key pressed opens none."""
    asked = "complete why-stuck 1000"
    done = debuggers.gdb(venv_gdb, amd64, asked, "echo ----\\n", "kthreads", asked)
    before, after = done.out.split("----\n", 1)
    assert "why-stuck 1000" not in before
    tids = re.findall(r"^ *(1000\d+) ", after, re.MULTILINE)
    assert tids and {f"why-stuck {tid}" for tid in tids} <= set(after.splitlines())
    done = debuggers.gdb(venv_gdb, amd64, "kthreads", "complete kprint turnst")
    assert "kprint turnstile" in done.out.splitlines()


def test_help_is_gdbs_help(venv_gdb: Path) -> None:
    done = gdb(venv_gdb, "-ex", f"source {ENTRY}", "-ex", "help kthreads", "-ex", "apropos -v ^x")
    assert done.out.startswith("every thread as DDB's ps shows it")
    assert "usage: kthreads" in done.out


def test_a_command_that_gdb_has_already_is_not_replaced(venv_gdb: Path) -> None:
    define = ["-ex", "alias kmsgbuf = help", "-ex", f"source {ENTRY}"]
    done = gdb(venv_gdb, *define, "-ex", "kmsgbuf kmsgbuf", "-ex", "kthreads --help")
    assert "wchan: gdb has a command 'kmsgbuf' already; not replaced" in done.err
    assert "usage: kmsgbuf" not in done.out
    assert "usage: kthreads" in done.out


def test_the_entry_can_be_loaded_again(venv_gdb: Path) -> None:
    done = gdb(venv_gdb, *["-ex", f"source {ENTRY}"] * 2, "-ex", "kthreads --help")
    assert (done.status, done.err) == (0, "")


@pytest.mark.parametrize("name", ["plugin", "commands"])
def test_a_foreign_module_of_our_name_is_told(venv_gdb: Path, name: str) -> None:
    take = f"python import sys, types; sys.modules['{name}'] = types.ModuleType('{name}')"
    done = gdb(venv_gdb, "-ex", take, "-ex", f"source {ENTRY}", "-ex", "echo on\\n")
    assert f"another module named '{name}' is loaded already" in done.out
    assert done.out.endswith("on\n")


def test_missing_libraries_are_told_with_what_to_do(venv_gdb: Path) -> None:
    hide = "python import sys; sys.modules['yaml'] = None"
    done = gdb(venv_gdb, "-ex", hide, "-ex", f"source {ENTRY}")
    assert re.search(r"Python \(3\.\d+\) has no yaml; run .*/install\.sh", done.out)


# Debug information

SOURCE = """
typedef unsigned int u_int;
struct vnode;
struct bio {
	unsigned short bio_cmd : 3, bio_more : 5;
	struct { struct bio *tqe_next; struct bio **tqe_prev; } bio_queue;
	union { int first; struct { short inner; long outer; }; };
	void (*bio_done)(struct bio *, ...);
	const volatile u_int bio_flags;
	struct { int x; } bio_parts[3];
	struct vnode *bio_vnodes[2][4];
	enum color { RED } bio_color;
	char bio_tail[];
};
union both { int a; long b; };
struct thread { struct bio bio; union both both; } thread0;
int main(void) { return 0; }
"""


def test_layouts_out_of_gdbs_types_are_those_of_our_own_reader(
    venv_gdb: Path, tmp_path: Path
) -> None:
    from plugin.structs.dwarf import Dwarf
    from plugin.vmcore.elf import ElfFile

    program = compiled(tmp_path)
    code = "import json; from plugin.targets.gdb import GdbTypes; types = GdbTypes(8)"
    done = gdb(venv_gdb, str(program), *python(code, "types"))
    assert done.err == ""
    own = Dwarf(ElfFile(program))
    assert json.loads(done.out) == [layout(own, name) for name in STRUCTS]


STRUCTS = ["bio", "both", "thread", "vnode", "nosuch"]


def layout(source: Any, name: str) -> Any:
    """A layout as JSON has it; qualifiers, of which a debugger loses some, left out."""
    found = source.struct(name)
    if found is None:
        return None
    members = [[m.name, m.offset, m.size, m.bare, m.bit_pos, m.bit_size] for m in found]
    return [found.kind, found.size, members]


def compiled(folder: Path) -> Path:
    """SOURCE as a program with debug information."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler to make debug information with")
    (folder / "program.c").write_text(SOURCE)
    program = folder / "program"
    command = [compiler, "-g", "-o", str(program), str(folder / "program.c")]
    subprocess.run(command, check=True, capture_output=True)
    return program


def python(code: str, types: str) -> List[str]:
    """Words for gdb that print the layouts of STRUCTS as JSON."""
    lines = [
        f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]",
        f"import site; site.addsitedir({os.path.dirname(pytest.__path__[0])!r})",
        code,
        "from test_gdb import STRUCTS, layout",
        f"print(json.dumps([layout({types}, name) for name in STRUCTS]))",
    ]
    return [word for line in lines for word in ("-ex", f"python {line}")]


def test_a_kernel_of_eighteen_symbols_is_a_kernel(tmp_path: Path) -> None:
    """LLVM's dumps come with files that have no more: what debuggers want of a kernel."""
    names = ["kernbase", "dumppcb", "thread_off_td_tid", "proc_off_p_pid", "allproc"]
    few, program = tmp_path / "kernel", tmp_path / "program"
    few.write_bytes(elf("amd64", [Sym(name, 0xFFFFFFFF80200000) for name in names]))
    program.write_bytes(elf("amd64", [Sym("main", 0x400000), Sym("allproc", 0x400008)]))
    found = [KernelImage.open(str(path)) for path in (few, program)]
    assert [image is not None and image.is_kernel for image in found] == [True, False]
