"""What a walk of a queue of bios costs: in the shell, in lldb and in gdb, and by their own values.

Run by name: ``python tests/benchmarks/bench_walks.py [--bios N]``.  It prints
microseconds for one bio, its link followed and its members decoded, and the
ratios that the budget names.  A C compiler gives the debuggers debug
information of struct bio; without one their own values are left out.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

#: what both ways decode of each bio
MEMBERS = ("bio_cmd", "bio_flags", "bio_offset", "bio_length", "bio_from", "bio_to")
_MARK = "MEASURED "


def best(walk: Callable[[], int], times: int = 3) -> float:
    """Microseconds for each of the items that ``walk`` counts, the best of several runs."""
    found = []
    for _ in range(times):
        begun = time.perf_counter()
        items = walk()
        found.append((time.perf_counter() - begun) * 1e6 / items)
    return min(found)


def of_kernel(kernel: Any) -> float:
    """The walk that ``bioq`` makes."""
    from plugin.kernel.bio import bios_of_tailq

    head = kernel.address_of("g_bio_run_down") + kernel.layouts.offsetof("g_bioq", "bio_queue")
    # As while any command runs (plugin.hosts.runner.run_command).
    gc.disable()
    return best(lambda: sum(1 for _ in bios_of_tailq(kernel, head)))


# Inside the debuggers


def in_gdb(limit: int) -> None:
    import gdb

    from plugin.hosts.debugger import Session
    from plugin.hosts.gdb import GdbDebugger

    kernel = Session(GdbDebugger()).kernel()
    found = {"ours": of_kernel(kernel)}
    try:
        pointer = gdb.lookup_type("struct bio").pointer()
    except gdb.error:
        pointer = None
    head = kernel.address_of("g_bio_run_down") + kernel.layouts.offsetof("g_bioq", "bio_queue")

    def values() -> int:
        count, value = 0, gdb.Value(kernel.pointer(head)).cast(pointer)
        while int(value) and count < limit:
            bio = value.dereference()
            for member in MEMBERS:
                int(bio[member])
            value = bio["bio_queue"]["tqe_next"]
            count += 1
        return count

    if pointer is not None:
        found["values"] = best(values, 1)
    print(_MARK + json.dumps(found), flush=True)


def in_lldb(debugger: Any, limit: int) -> None:
    import lldb

    from plugin.hosts.debugger import Session
    from plugin.hosts.lldb import LldbDebugger

    kernel = Session(LldbDebugger(debugger)).kernel()
    found = {"ours": of_kernel(kernel)}
    target = debugger.GetSelectedTarget()
    type_ = target.FindFirstType("bio")
    head = kernel.address_of("g_bio_run_down") + kernel.layouts.offsetof("g_bioq", "bio_queue")

    def fresh() -> int:
        count, address = 0, kernel.pointer(head)
        while address and count < limit:
            bio = target.CreateValueFromAddress("bio", lldb.SBAddress(address, target), type_)
            for member in MEMBERS:
                bio.GetChildMemberWithName(member).GetValueAsUnsigned()
            link = bio.GetChildMemberWithName("bio_queue").GetChildMemberWithName("tqe_next")
            address = link.GetValueAsUnsigned()
            count += 1
        return count

    def chained() -> int:
        first = lldb.SBAddress(kernel.pointer(head), target)
        bio = target.CreateValueFromAddress("bio", first, type_)
        count = 0
        while count < limit // 10:
            for member in MEMBERS:
                bio.GetChildMemberWithName(member).GetValueAsUnsigned()
            link = bio.GetChildMemberWithName("bio_queue").GetChildMemberWithName("tqe_next")
            count += 1
            if not link.GetValueAsUnsigned():
                break
            bio = link.Dereference()
        return count

    if type_.IsValid():
        found["values"] = best(fresh, 1)
        found["values chained"] = best(chained, 1)
    print(_MARK + json.dumps(found), flush=True)


# Outside


def forge(folder: Path, bios: int) -> Any:
    """A machine of FreeBSD 14.2 with that many bios on g_bio_run_down."""
    from tests.forge.bufs import BIO_READ
    from tests.forge.machine import Machine

    machine = Machine(1402000, ram=max(64 << 20, bios * 1024))
    disk = machine.geom.disk("da", 0, mediasize=1 << 40)
    consumer = machine.geom.attach(machine.geom.geom("DEV", "da0"), disk.provider)
    consumer.open(1, 1, 0)
    for index in range(bios):
        machine.geom.request(consumer, BIO_READ, index * 4096, 4096).queued_down()
    return machine.write(folder)


def types_of_bio(kernel: Any, folder: Path) -> Optional[Path]:
    """An object file that describes this kernel's struct bio, None without a compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    layouts = kernel.layouts
    lines, at = [], 0
    wanted = sorted(
        [(layouts.resolve("bio", name), name) for name in MEMBERS]
        + [(layouts.resolve("bio", "bio_queue.tqe_next"), "")],
        key=lambda pair: pair[0].offset,
    )
    for member, name in wanted:
        if member.offset > at:
            lines.append(f"char pad{at}[{member.offset - at}];")
        sizes = {1: "char", 2: "short", 4: "int", 8: "long"}
        if name:
            lines.append(f"unsigned {sizes[member.size]} {name};")
            at = member.offset + member.size
        else:
            lines.append("struct { struct bio *tqe_next; struct bio **tqe_prev; } bio_queue;")
            at = member.offset + 16
    lines.append(f"char rest[{layouts.sizeof('bio') - at}];")
    source = folder / "bio.c"
    source.write_text("struct __attribute__((packed)) bio { " + "\n".join(lines) + " } one_bio;\n")
    made = folder / "bio.o"
    subprocess.run([compiler, "-g", "-c", "-o", str(made), str(source)], check=True)
    return made


def measure(name: str, dump: Any, rest: List[str], **environment: str) -> Dict[str, float]:
    """What the functions above print inside ``wchan gdb`` or ``wchan lldb``."""
    vmcore, kernel = dump
    done = subprocess.run(
        [sys.executable, "-m", "plugin", name, "-k", str(kernel), str(vmcore), "--", *rest],
        cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    found = re.search(f"^{_MARK}(.*)$", done.stdout, re.MULTILINE)
    if found is None:
        sys.exit(f"{name} measured nothing:\n{done.stdout}{done.stderr}")
    value: Dict[str, float] = json.loads(found.group(1))
    return value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--bios", type=int, default=100_000)
    args = parser.parse_args()
    from plugin.opening import open_core

    with tempfile.TemporaryDirectory(prefix="wchan-bench-") as name:
        folder = Path(name)
        dump = forge(folder, args.bios)
        kernel = open_core(str(dump[0]), str(dump[1]))
        shell = of_kernel(kernel)
        print(f"shell   {shell:8.2f} us a bio (budget 2)")
        types = types_of_bio(kernel, folder)
        limit = min(args.bios, 10_000)
        load = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import bench_walks"
        of_gdb = ["-nx", "-batch"]
        of_lldb = ["--no-lldbinit", "-b"]
        if types is not None:
            of_gdb += ["-ex", f"add-symbol-file {types} 0x1000"]
            of_lldb += ["-o", f"target modules add {types}"]
        of_gdb += ["-ex", f"python {load}; bench_walks.in_gdb({limit})"]
        of_lldb += ["-o", f"script {load}; bench_walks.in_lldb(lldb.debugger, {limit})"]
        for which, rest in (("gdb", of_gdb), ("lldb", of_lldb)):
            for how, bypass in (("", "yes"), (", memory through the debugger", "no")):
                found = measure(which, dump, rest, WCHAN_BYPASS=bypass)
                ours = found.pop("ours")
                print(f"{which:<7} {ours:8.2f} us a bio{how}, {ours / shell:.1f} x the shell")
                for label, own in found.items():
                    print(
                        f"        {own:8.2f} us by its {label}: ours is {own / ours:.1f} x faster"
                    )


if __name__ == "__main__":
    main()
