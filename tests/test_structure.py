"""The house keeps its order: what may import what, read from every import in the tree.

Function-level imports count; those for the type checker alone do not, which run nothing.
"""

from __future__ import annotations

import ast
import itertools
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Set, Tuple

REPOSITORY = Path(__file__).resolve().parent.parent

#: The rooms from the top of the house down: each may use those below it, and its own floor.
FLOORS: Tuple[Tuple[str, ...], ...] = (
    ("plugin", "plugin.__main__", "plugin.kernel-gdb"),
    ("plugin.api",),
    ("plugin.hosts", "plugin.batch"),
    ("plugin.opening",),
    ("commands",),
    ("plugin.render", "plugin.waits", "plugin.captures", "plugin.capsule"),
    ("plugin.judge",),
    ("plugin.kernel",),
    ("plugin.session",),
    ("plugin.structs", "plugin.targets", "plugin.catalogue", "plugin.yamldata"),
    ("plugin.vmcore",),
    ("plugin.arch",),
    ("plugin.cachedir", "plugin.caching", "plugin.interrupt", "plugin.words", "plugin.written"),
    ("plugin.findings", "plugin.symbol"),
    ("plugin.errors", "plugin.version"),
)
#: Who may import a debugger's own module.
DEBUGGERS = {
    "lldb": {"plugin.targets.lldb", "plugin.hosts.lldb"},
    "gdb": {"plugin.targets.gdb", "plugin.hosts.gdb", "plugin.hosts.gdb_threads"},
}
#: opening finds out which kernel it is: for those who start a session.
OPENERS = ("plugin.api", "plugin.hosts", "plugin.batch", "plugin.opening")
#: Imports inside functions, with the reason: what is optional, or costs a start its time.
LATE: Dict[Tuple[str, str], str] = {
    ("plugin", "plugin.hosts.prepare"): "the package is lldb's entry, and everybody's",
    ("plugin", "plugin.hosts.lldb"): "only inside lldb, once its Python has what we need",
    ("plugin.kernel-gdb", "plugin.hosts.prepare"): "sys.path must know our folder first",
    ("plugin.kernel-gdb", "plugin.hosts.gdb"): "once gdb's Python has what we need",
    ("plugin.hosts.shell", "plugin.hosts.runner"): "a missing library is told, not a traceback",
    ("plugin.hosts.runner", "plugin.hosts.redacting"): "only --redact needs it",
    ("plugin.hosts.runner", "plugin.hosts.moments"): "only --since opens a second machine",
    ("plugin.hosts.shell", "plugin.opening"): "a missing library is told, not a traceback",
    ("plugin.hosts.lldb", "lldb.plugins.scripted_frame_provider"): "lldb 22 on",
    ("plugin.structs.kernels", "difflib"): "only a mistake in a span needs it",
    ("plugin.words", "difflib"): "only where a name was wrong",
    ("plugin.interrupt", "ctypes"): "a Python may be built without it",
    ("plugin.captures.lines", "zstandard"): "optional",
    ("plugin.kernel.vm_page_columns", "numpy"): "optional",
    ("plugin.yamldata", "yaml"): "most starts find it parsed in the cache",
    ("plugin.batch.workers", "distributed"): "optional: only --dask needs it",
    ("plugin.hosts.shell", "plugin.captures"): "a dump needs no reader of text",
    ("plugin.structs.dwarf", "elftools"): "optional, and slow to load",
    ("commands.structs", "plugin.structs.making"): "no command loads the making of layouts",
    ("plugin.hosts.structs", "plugin.structs.making"): "list and show do without",
}


class Import(NamedTuple):
    """One import: who, what, and whether it stands inside a function."""

    module: str
    imported: str
    late: bool


def modules() -> Dict[str, Path]:
    found: Dict[str, Path] = {}
    for top in ("plugin", "commands"):
        for path in sorted((REPOSITORY / top).rglob("*.py")):
            name = ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)
            found[name[: -len(".__init__")] if name.endswith(".__init__") else name] = path
    return found


def imports() -> List[Import]:
    known = modules()
    return [each for name, path in known.items() for each in imports_of(name, path, known)]


def imports_of(name: str, path: Path, known: Dict[str, Path]) -> Iterator[Import]:
    def visit(node: ast.AST, late: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(name, alias.name, late)
            elif isinstance(child, ast.ImportFrom):
                assert not child.level, f"{name}: relative imports hide the room"
                for alias in child.names:
                    whole = f"{child.module}.{alias.name}"
                    yield Import(name, whole if whole in known else str(child.module), late)
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                continue
            else:
                inner = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
                yield from visit(child, late or inner)

    yield from visit(ast.parse(path.read_text()), False)


IMPORTS = imports()
OURS = [each for each in IMPORTS if each.imported.split(".")[0] in ("plugin", "commands")]


def room(module: str) -> str:
    """The longest name of FLOORS that the module lies in."""
    names = [n for floor in FLOORS for n in floor if module == n or module.startswith(n + ".")]
    return max(names, key=len)


def test_every_module_lies_on_a_floor() -> None:
    homeless = {m for m in modules() if m != "plugin" and room(m) == "plugin"}
    assert not homeless, "name their room in FLOORS, and DESIGN.md's arrows"


def test_dependencies_point_down() -> None:
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    up = {
        (each.module, each.imported)
        for each in OURS
        if floor[room(each.imported)] < floor[room(each.module)]
        or (room(each.imported) == "plugin.opening" and not each.module.startswith(OPENERS))
    }
    # `import plugin.x` runs plugin/__init__.py, which imports nothing by itself.
    up = {(who, what) for who, what in up if what != "plugin"}
    assert not up


def test_no_modules_import_each_other_in_a_circle() -> None:
    above: Dict[str, Set[str]] = {}
    for each in OURS:
        if each.imported != each.module:
            above.setdefault(each.module, set()).add(each.imported)
    assert list(circles(above)) == []


def circles(graph: Dict[str, Set[str]]) -> Iterator[Tuple[str, ...]]:
    """Strongly connected components of more than one module."""
    reached = {name: reachable(graph, name) for name in graph}
    done: Set[str] = set()
    for name in sorted(graph):
        if name in reached[name] and name not in done:
            circle = {other for other in reached[name] if name in reached.get(other, ())}
            done |= circle
            yield tuple(sorted(circle))


def reachable(graph: Dict[str, Set[str]], start: str) -> Set[str]:
    found: Set[str] = set()
    pending = [start]
    while pending:
        for name in graph.get(pending.pop(), ()):
            if name not in found:
                found.add(name)
                pending.append(name)
    return found


def test_only_the_named_modules_import_a_debugger() -> None:
    for debugger, allowed in DEBUGGERS.items():
        users = {each.module for each in IMPORTS if each.imported.split(".")[0] == debugger}
        assert users == allowed


def test_imports_inside_functions_are_of_what_is_optional_or_costly() -> None:
    def reason(each: Import) -> Iterator[Tuple[str, str]]:
        parts = each.imported.split(".")
        names = itertools.accumulate(parts, lambda left, right: f"{left}.{right}")
        return ((each.module, name) for name in names if (each.module, name) in LATE)

    late = [each for each in IMPORTS if each.late]
    used = {key for each in late for key in reason(each)}
    assert {(i.module, i.imported) for i in late if not any(reason(i))} == set()
    assert used == set(LATE), "reasons for imports that are gone"


def test_a_command_is_arguments_one_call_and_one_report() -> None:
    lines = {
        p.name: len(p.read_text().splitlines()) for p in (REPOSITORY / "commands").glob("*.py")
    }
    assert {name for name, count in lines.items() if count >= 150} == set()


def test_the_forge_knows_nothing_of_the_analysis_it_proves() -> None:
    for path in (REPOSITORY / "tests" / "forge").rglob("*.py"):
        for each in imports_of(path.stem, path, modules()):
            assert not each.imported.startswith(
                ("plugin.kernel", "plugin.judge", "plugin.waits", "commands")
            ), f"{path.name} imports {each.imported}"


def test_every_architecture_is_a_whole_one() -> None:
    """A module in arch/ without an ARCHITECTURE is one that others share, not half of one."""
    from plugin.arch import BY_NAME

    files = {path.stem for path in (REPOSITORY / "plugin" / "arch").glob("*.py")}
    assert files - set(BY_NAME) == {"__init__", "common", "space", "x86"}
    for arch in BY_NAME.values():
        numbered = {register.name for register in arch.debuggers.registers}
        assert set(arch.debuggers.roles.values()) <= numbered, arch.name
        assert {"pc", "sp", "fp"} <= set(arch.debuggers.roles), arch.name
        for saved in (*arch.stacks.pcb, *arch.stacks.trapframe):
            assert set(saved.registers) <= numbered, (arch.name, saved)
        assert arch.stacks.traps or arch.stacks.trap_prefixes, arch.name
