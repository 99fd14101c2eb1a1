"""``wchan lldb``, ``wchan gdb``, ``wchan serve``: a stock debugger opened on a dump.

The dump is served over the remote protocol by this process; the debugger is its
child, connected and with the commands loaded, and the server ends with it.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress
from typing import (
    Callable,
    Dict,
    Iterator,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
    Union,
)

from plugin.arch import architecture
from plugin.errors import EXIT_OK, UsageError, WchanError
from plugin.hosts.arguments import Parser
from plugin.hosts.debugger import SECRET_VARIABLE
from plugin.hosts.frame_file import write_frame_file
from plugin.hosts.inferior import KernelInferior
from plugin.hosts.module_elf import SymbolFile, write_symbol_files
from plugin.hosts.prepare import ROOT, installer
from plugin.hosts.progress import Progress
from plugin.hosts.rsp import Server
from plugin.hosts.shell import REMOTE, core_options
from plugin.hosts.signals import Left, leave, on_signals
from plugin.opening import open_target
from plugin.opening.find_kernel import open_dump
from plugin.opening.remote import open_remote
from plugin.session import Kernel
from plugin.targets.core import CoreTarget
from plugin.targets.remote import RemoteTarget
from plugin.vmcore.elf import PF_X, PT_LOAD, ElfFile


def gdb_main(argv: Sequence[str]) -> int:
    """``wchan gdb VMCORE [options] [-- gdb's arguments]``; returns gdb's exit status."""
    return _launch("gdb", argv, _gdb_arguments)


def lldb_main(argv: Sequence[str]) -> int:
    """``wchan lldb VMCORE [options] [-- lldb's arguments]``; returns lldb's exit status."""
    return _launch("lldb", argv, _lldb_arguments)


def serve_main(argv: Sequence[str]) -> int:
    """``wchan serve VMCORE [options]``: serve until interrupted."""
    parser = Parser(
        prog="wchan serve",
        description="Serve a dump to a debugger: read-only, on a unix socket that only you "
        "can reach, until interrupted.",
    )
    core_options(parser)
    parser.add_argument(
        "--port",
        type=int,
        metavar="N",
        help="serve on TCP port N of the loopback address instead, where every user of this "
        "machine can connect; 0 for any free port",
    )
    parser.add_argument(
        "--proxy",
        metavar="ADDRESS",
        help="in place of a dump a stopped machine's own gdb stub, HOST:PORT or /dev/ttyU0[,BAUD], "
        "for a debugger that cannot speak to it: lldb to FreeBSD's",
    )
    parser.add_argument(
        "vmcore", metavar="VMCORE", nargs="?", help="a FreeBSD kernel dump (.zst, .gz too)"
    )
    args = parser.parse_args(list(argv))
    if (args.vmcore is None) == (args.proxy is None):
        raise UsageError("wchan serve: either a dump or --proxy ADDRESS")
    opened = _open(args, args.proxy)
    with _served(opened.inferior, args.port) as server:
        sys.stdout.write(_how_to_connect(server.address, opened) + "\n")
        sys.stdout.flush()
        with suppress(KeyboardInterrupt, Left):
            server.serve_forever()
    return EXIT_OK


@contextmanager
def _served(inferior: KernelInferior, port: Optional[int] = None) -> Iterator[Server]:
    """A server that is gone afterwards, socket and all, whatever signal ends this process."""
    on_signals(leave)
    server: Optional[Server] = None
    try:
        server = Server(inferior, port=port)
        yield server
    finally:
        on_signals(signal.SIG_IGN)
        if server is not None:
            server.close()


def _how_to_connect(address: str, opened: _Opened) -> str:
    file = shlex.quote(opened.file)
    url = f"unix-connect://{address}" if address.startswith("/") else f"connect://{address}"
    plugin = ROOT / "plugin"
    known = f"{SECRET_VARIABLE}={opened.secret}"
    lldb = (f'command script import "{plugin}"', f"process connect --plugin gdb-remote {url}")
    gdb = (f"target remote {address}", f"source {plugin / 'kernel-gdb.py'}")
    return "\n".join(
        (
            f"serving {opened.kernel.target.description} on {address}",
            " ".join((f"  {known} lldb", file, *(f"-o {shlex.quote(line)}" for line in lldb))),
            " ".join(
                (
                    f"  {known} gdb -iex 'set osabi none'",
                    file,
                    *(f"-ex {shlex.quote(c)}" for c in gdb),
                )
            ),
        )
    )


class _Opened(NamedTuple):
    kernel: Kernel
    inferior: KernelInferior
    #: the kernel as a debugger can load it: a compressed one has been spooled
    file: str
    #: by which the plugin in the debugger knows this server
    secret: str
    #: what the plugin in the debugger may know
    session: Dict[str, object]


def _open(args: argparse.Namespace, stub: Optional[str] = None) -> _Opened:
    """The dump, or the machine whose gdb stub is at ``stub``."""
    progress = Progress(sys.stderr)
    target: Union[CoreTarget, RemoteTarget]
    if stub is not None:
        target, notes = open_remote(
            stub,
            args.kernel,
            force=args.force,
            say=lambda text: print(f"wchan: {text}", file=sys.stderr),
            progress=progress,
        )
    else:
        target, notes = open_dump(
            args.vmcore,
            args.kernel,
            force=args.force,
            key=args.key,
            progress=lambda done, total: progress("decompressing", done, total),
        )
    kernel = open_target(
        target, structs=args.structs, force=args.force, notes=notes, sysroot=args.sysroot
    )
    progress.clear()
    file = os.path.abspath(target.kernel.plain_path)
    secret = secrets.token_hex(16)
    session: Dict[str, object] = {
        "secret": secret,
        "kernel": file,
        "structs": os.path.abspath(args.structs) if args.structs else None,
        "sysroot": os.path.abspath(args.sysroot) if args.sysroot else None,
        "force": bool(args.force),
        "truncated": target.truncated,
        "notes": notes,
        "wire": target.wire is not None,
    }
    if isinstance(target, CoreTarget):
        session["vmcore"] = os.path.abspath(target.memory.file_path)
    inferior = KernelInferior(kernel, session, _code(target.kernel))
    return _Opened(kernel, inferior, file, secret, session)


def _code(kernel: ElfFile) -> List[Tuple[int, int]]:
    """The [start, end) of a kernel file's executable segments."""
    return [
        (s.vaddr, s.vaddr + s.memsz)
        for s in kernel.segments
        if s.type == PT_LOAD and s.flags & PF_X
    ]


# Debuggers


#: of a debugger: from the server's address, the kernel file and its modules' files
_Arguments = Callable[[str, str, List[SymbolFile]], List[str]]


def _launch(name: str, argv: Sequence[str], arguments: _Arguments) -> int:
    words = list(argv)
    rest: List[str] = []
    if "--" in words:
        cut = words.index("--")
        words, rest = words[:cut], words[cut + 1 :]
    parser = Parser(
        prog=f"wchan {name}",
        usage=f"wchan {name} [options] VMCORE [-- {name.upper()}-ARGUMENT ...]",
        description=f"Open a dump in {name}: kernel threads as threads, wchan's commands loaded.",
        epilog=f"What follows -- goes to {name}: "
        + ("-- -b -o kthreads" if name == "lldb" else "-- -batch -ex kthreads"),
    )
    core_options(parser)
    parser.add_argument(
        "--debugger", metavar="PATH", help=f"the {name} to run (default: wchan's own, then PATH's)"
    )
    parser.add_argument(
        "vmcore",
        metavar="VMCORE",
        help="a FreeBSD kernel dump (.zst, .gz too), or remote:ADDRESS of a machine's gdb stub",
    )
    args = parser.parse_args(words)
    remote = args.vmcore.startswith(REMOTE)
    opened = _open(args, args.vmcore[len(REMOTE) :] if remote else None)
    program = args.debugger or find_debugger(name, opened.kernel.arch)
    try:
        with _served(opened.inferior) as server:
            server.start()
            folder = os.path.dirname(server.address)
            modules = write_symbol_files(opened.kernel, folder)
            opened.session["modules"] = modules
            file = opened.file
            if name == "lldb" and _takes_no_frames(program):
                copy = os.path.join(folder, os.path.basename(file))
                if write_frame_file(opened.kernel, ElfFile(file), copy):
                    file = opened.session["kernel"] = copy
            own = arguments(server.address, file, modules)
            return _run([program, *own, *rest], {SECRET_VARIABLE: opened.secret})
    except Left as left:
        return 128 + left.number


def _takes_no_frames(program: str) -> bool:
    """True for an lldb before 22, which no plugin can give frames."""
    try:
        said = subprocess.run(
            [program, "--version"], capture_output=True, text=True, timeout=30, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return False
    number = re.search(r"lldb version (\d+)\.", said)
    return number is not None and int(number.group(1)) < 22


def find_debugger(name: str, arch: str) -> str:
    """The debugger installed with wchan, else the newest one on PATH; WchanError if none."""
    own = os.path.join(sys.prefix, "bin", name)
    if os.access(own, os.X_OK):
        return own
    names = [name]
    if name == "gdb" and platform.machine() not in architecture(arch).debuggers.machines:
        # A distribution's gdb knows the machine it runs on alone.
        names.insert(0, "gdb-multiarch")
    plain = next(filter(None, map(shutil.which, names)), None)
    if plain is not None:
        return plain
    versioned = re.compile(re.escape(name) + r"-?(\d+)$")
    found = []
    for folder in os.get_exec_path():
        try:
            entries = os.listdir(folder)
        except OSError:
            continue
        for entry in entries:
            match = versioned.match(entry)
            if match and os.access(os.path.join(folder, entry), os.X_OK):
                found.append((int(match.group(1)), os.path.join(folder, entry)))
    if found:
        return max(found)[1]
    raise WchanError(
        f"no {name} found: run {installer()}, which installs one, "
        "or name yours with --debugger PATH"
    )


def _gdb_arguments(address: str, kernel: str, modules: List[SymbolFile]) -> List[str]:
    del modules  # our server tells gdb of them, as of shared libraries
    return [
        "-q",
        # gdb would look for a dynamic linker in the kernel, and gdb 13 takes the
        # FreeBSD kernel for a 32-bit one.
        *("-iex", "set osabi none"),
        # sys__umtx_op is no mangled name.
        *("-iex", "set print demangle off"),
        # The modules' files lie here, not behind the server.
        *("-iex", "set sysroot"),
        kernel,
        *("-ex", f"target remote {address}"),
        *("-x", str(ROOT / "plugin" / "kernel-gdb.py")),
    ]


def _lldb_arguments(address: str, kernel: str, modules: List[SymbolFile]) -> List[str]:
    # A file, because lldb echoes the commands of its own command line.
    commands = os.path.join(os.path.dirname(address), "start.lldb")
    entry = str(ROOT / "plugin").replace("\\", "\\\\").replace('"', '\\"')
    with open(commands, "w", encoding="utf-8") as file:
        file.write(
            f'command script import "{entry}"\n'
            f"process connect --plugin gdb-remote unix-connect://{address}\n"
        )
        for path, base in modules:
            file.write(f"target modules add {path}\n")
            file.write(f"target modules load --file {path} .text {base:#x}\n")
    return [kernel, "-o", f"command source -s 1 {commands}"]


def _run(command: List[str], environment: Mapping[str, str]) -> int:
    """Run the debugger to its end, handing it the terminal; its exit status."""
    # Ctrl-C is the debugger's.  A handler, unlike SIG_IGN, does not outlive exec.
    before = signal.signal(signal.SIGINT, lambda *_: None)
    child: Optional[subprocess.Popen[bytes]] = None
    try:
        child = subprocess.Popen(command, env={**os.environ, **environment})
        status = child.wait()
        return status if status >= 0 else 128 - status
    except OSError as error:
        raise WchanError(f"cannot run {command[0]}: {error.strerror}") from None
    except Left:
        if child is not None:
            _end(child)
        raise
    finally:
        signal.signal(signal.SIGINT, before)


def _end(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(2)
    except subprocess.TimeoutExpired:
        # gdb hears no signal while a command of its user's runs in a shell.
        child.kill()
        child.wait()
