"""Which layouts a target gets: debug information first, else what of structs.yaml fits.

The kernel's own figures (``plugin.structs.selfcheck``) decide: layouts that they
contradict are not used.  Everything that is not plainly right is said in a note.
"""

from __future__ import annotations

from typing import Dict, FrozenSet, Iterator, List, NamedTuple, Optional, Tuple

from plugin.errors import LayoutError
from plugin.structs import Layouts
from plugin.structs.choose import Choice, candidates, choose_yaml, kindred_arch
from plugin.structs.kept import KeptLayouts
from plugin.structs.kernels import RELEASE
from plugin.structs.layout import Layout, LayoutSource
from plugin.structs.selfcheck import Contradiction, check, options_of
from plugin.structs.yamlfile import KernelData, StructsFile, read_kernel
from plugin.targets import Target

#: without these nothing can be explained: refused as a whole where they are wrong
_CORE = ("thread", "proc")
#: what may be switched in or out when the symbol table was no help
_SWITCHES: Tuple[FrozenSet[str], ...] = (
    frozenset(("BUF_TRACKING",)),
    frozenset(("INVARIANTS",)),
    frozenset(("INVARIANTS", "BUF_TRACKING")),
)


_OPTIONS = frozenset(("INVARIANTS", "WITNESS", "BUF_TRACKING"))


#: variables enough to tell a debug file of another kernel
_TELLTALES = {"proc0": "struct proc", "vmspace0": "struct vmspace"}


#: what a kernel exports of its own offsets (sys/kern/kern_proc.c): enough to tell it by
_WITNESSES = ("thread_off_td_tid", "proc_off_p_pid")


class Selection(NamedTuple):
    """The layouts, the options found in the kernel, and what a report must say."""

    layouts: Layouts
    variant: FrozenSet[str]
    notes: List[str]


class _Attempt(NamedTuple):
    choice: Choice
    variant: FrozenSet[str]
    wrong: List[Contradiction]


def choose_layouts(
    target: Target, osreldate: int, *, override: Optional[str] = None, force: bool = False
) -> Selection:
    """Layouts for a target: its own debug information, then structs.yaml.

    ``override`` is a file of the user's: where it lists kernels it is used instead of
    both, else its structs come before theirs.  LayoutError, with the kernel's own
    evidence, where nothing fits and ``force`` is not given.
    """
    unread: List[str] = []
    over = StructsFile(override) if override is not None else None
    if over is None or not over.own_kernels:
        try:
            types = target.types(unread)
            if isinstance(types, KeptLayouts):
                return Selection(types.layouts, types.variant, types.notes)
            if types is not None:
                chosen = _with_types(target, types, osreldate, over)
                return chosen._replace(notes=unread + chosen.notes)
        except LayoutError as error:
            unread.append(f"the kernel's debug information is not used: {error}")
    chosen = _from_yaml(target, osreldate, override, force)
    return chosen._replace(notes=unread + chosen.notes)


def _from_yaml(target: Target, osreldate: int, override: Optional[str], force: bool) -> Selection:
    options = options_of(target)
    if not osreldate and any(target.symbols(name) for name in _WITNESSES):
        told = _by_figures(target, options, override)
        if told is not None:
            return told
    try:
        chosen = choose_yaml(osreldate, target.arch, options, override, None, force)
    except LayoutError:
        newer = _newer(target, osreldate, options, override)
        if newer is None:
            raise
        return newer
    first = _attempt(target, chosen, options)
    if not first.wrong:
        return _selection(first, [] if first.choice.exact else [first.choice.how])
    attempts = [first]
    for attempt in _others(target, osreldate, options, override, force):
        if not attempt.wrong:
            notes = [] if attempt.choice.row == first.choice.row else [_why(first, attempt)]
            return _selection(attempt, notes)
        attempts.append(attempt)
    return _mended(attempts, osreldate, force)


def _newer(
    target: Target, osreldate: int, options: FrozenSet[str], override: Optional[str]
) -> Optional[Selection]:
    """For a kernel newer than the table the newest layouts that it does not contradict.

    None for any other, and where its own figures contradict all of them or it has none.
    """
    known = [row for row in StructsFile(override).rows if row.arch == target.arch]
    if not known or osreldate <= max(row.last for row in known):
        return None
    if not any(target.symbols(name) for name in _WITNESSES):
        return None
    why = f"FreeBSD {osreldate // 100000} ({osreldate}) is newer than the table, "
    return _by_figures(target, options, override, why + "its own figures contradict none of them")


def _by_figures(
    target: Target,
    options: FrozenSet[str],
    override: Optional[str],
    why: str = "the dump does not say which FreeBSD made it, its offsets are those of that kernel",
) -> Optional[Selection]:
    """The newest kernel whose layouts this one's figures do not contradict; None if none."""
    newest_first = reversed(StructsFile(override).rows)
    for row in sorted(newest_first, key=lambda row: row.variant != RELEASE):
        if row.arch == target.arch and not row.vendor:
            choice = choose_yaml(row.first, target.arch, options, override, row.name, True)
            attempt = _attempt(target, choice, row.options & _OPTIONS)
            if not attempt.wrong:
                return _selection(attempt, [f"layouts of {row.name}: {why}"])
    return None


def _with_types(
    target: Target, types: LayoutSource, osreldate: int, over: Optional[StructsFile]
) -> Selection:
    """Debug information gives the structs, structs.yaml only constants and decoders."""
    options = options_of(target)
    notes = []
    path = over.path if over is not None else None
    try:
        choice = choose_yaml(osreldate, target.arch, options, path)
    except LayoutError:
        choice = choose_yaml(osreldate, kindred_arch(target.arch), options, path, force=True)
        notes.append(f"constants and decoders are those of {choice.row.name}: {choice.how}")
    sources: List[LayoutSource] = [types, choice.source]
    if over is not None:
        sources.insert(0, read_kernel(over, f"yaml:{over.path}", choice.row, {}))
    layouts = Layouts(sources, choice.tables)
    # asked at once, so that damaged debug information is met here and not in a command
    notes += [
        f"the debug information may be another kernel's: {wrong}"
        for wrong in check(target, layouts, _TELLTALES)[:3]
    ]
    return Selection(layouts, options, notes)


def _attempt(target: Target, choice: Choice, variant: FrozenSet[str]) -> _Attempt:
    wrong = check(target, Layouts([choice.source], choice.tables))
    return _Attempt(choice, variant, wrong)


def _others(
    target: Target, osreldate: int, options: FrozenSet[str], override: Optional[str], force: bool
) -> Iterator[_Attempt]:
    """The same kernel with other options, then the other kernels, nearest first."""
    for switch in _SWITCHES:
        variant = options ^ switch
        choice = choose_yaml(osreldate, target.arch, variant, override, None, force)
        yield _attempt(target, choice, variant)
    for row in candidates(StructsFile(override), osreldate, target.arch, options, force):
        choice = choose_yaml(osreldate, target.arch, options, override, row.name, force)
        yield _attempt(target, choice, row.options & _OPTIONS)


def _selection(attempt: _Attempt, notes: List[str]) -> Selection:
    choice = attempt.choice
    return Selection(Layouts([choice.source], choice.tables), attempt.variant, notes)


def _why(first: _Attempt, taken: _Attempt) -> str:
    evidence = "; ".join(str(wrong) for wrong in first.wrong[:3])
    more = f" and {len(first.wrong) - 3} more" if len(first.wrong) > 3 else ""
    return (
        f"layouts of {taken.choice.row.name}, which fit; those of {first.choice.row.name} do not: "
        f"{evidence}{more}"
    )


def _mended(attempts: List[_Attempt], osreldate: int, force: bool) -> Selection:
    """The nearest kernel, each struct it has wrong taken from one that has it right.

    Within its branch FreeBSD lets structs grow at their end only, so that one
    which is merely larger in a kernel of another version is kept, at its size.
    """
    best = min(attempts, key=lambda attempt: len(attempt.wrong))
    data = best.choice.source
    structs: Dict[str, Layout] = dict(data.structs)
    notes = [best.choice.how]
    refused: List[Contradiction] = []
    for struct in dict.fromkeys(wrong.struct for wrong in best.wrong):
        mine = [wrong for wrong in best.wrong if wrong.struct == struct]
        other = _right(struct, attempts)
        if other is not None:
            structs[struct] = other.choice.source.structs[struct]
            notes.append(f"struct {struct} as in {other.choice.row.name}: {mine[0]}")
        elif _grown(mine, best, osreldate):
            old = structs[struct]
            structs[struct] = Layout(struct, mine[0].says, old.members, old.kind, old.file)
            notes.append(f"struct {struct} is taken to have grown at its end: {mine[0]}")
        else:
            refused += mine
            if force:
                notes.append(
                    f"struct {struct} is wrong and used all the same, as forced: {mine[0]}"
                )
            else:
                structs.pop(struct)
                notes.append(f"struct {struct} is refused: {mine[0]}")
    core = [wrong for wrong in refused if wrong.struct in _CORE]
    if core and not force:
        raise LayoutError(
            f"no layouts in structs.yaml fit this kernel; nearest {best.choice.row.name}: "
            + "; ".join(str(wrong) for wrong in core)
            + "; give its debug file, or run `wchan structs generate` on it and use --structs"
        )
    fixed = KernelData(
        f"{data.name} (mended)",
        structs,
        data.constants,
        data.tables,
        data.aliases,
        data.heads,
        data.globals,
    )
    return Selection(Layouts([fixed], fixed), best.variant, notes)


def _right(struct: str, attempts: List[_Attempt]) -> Optional[_Attempt]:
    """The first attempt whose layout of ``struct`` nothing contradicts."""
    for attempt in attempts:
        if struct in attempt.choice.source.structs and all(
            w.struct != struct for w in attempt.wrong
        ):
            return attempt
    return None


def _grown(wrong: List[Contradiction], attempt: _Attempt, osreldate: int) -> bool:
    row = attempt.choice.row
    return (
        row.major == osreldate // 100000
        # a snapshot of the branch before its first release promises nothing
        and row.last > row.first
        and osreldate > row.last
        and not row.vendor
        and all(not w.member and w.says > w.layout for w in wrong)
        # arrays tell that a size is wrong, not what it should be
        and all("the array" not in w.evidence for w in wrong)
    )


def without_layouts(why: str) -> Selection:
    """No struct at all, for what needs none; ``why`` is said in every report."""
    none = KernelData("none", {}, {}, {}, {}, {}, {})
    return Selection(Layouts([none], none), frozenset(), [f"no struct can be read: {why}"])
