"""Small faults in a module's syntax tree, one at a time."""

from __future__ import annotations

import ast
import copy
from collections import Counter
from typing import Any, Dict, Iterable, Iterator, List, NamedTuple, Optional, Tuple, Type

_COMPARE: Dict[Type[ast.cmpop], Tuple[Type[ast.cmpop], ...]] = {
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
_BINARY: Dict[Type[ast.operator], Type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}


class Mutant(NamedTuple):
    """One fault: where it is, what it does, and how to make it."""

    line: int
    #: (name, first line) of the outermost function it lies in
    function: Tuple[str, int]
    what: str
    tree: ast.Module
    #: the node of the tree that is changed, and what stands in its place
    node: ast.AST
    change: ast.AST


def mutants(source: str) -> Iterator[Mutant]:
    """Every fault of every function of a module, function by function."""
    tree = ast.parse(source)
    for function in _functions(tree):
        first = min([function.lineno, *(d.lineno for d in function.decorator_list)])
        told: Counter[str] = Counter()
        for node, parent in _nodes(function.body, function):
            if _is_docstring(node, function):
                continue
            for what, change in _changes(node, parent):
                # what a reason names is one fault: the second of that name has its number
                told[what] += 1
                name = what if told[what] == 1 else f"{what} ({told[what]})"
                line = getattr(node, "lineno", first)
                yield Mutant(line, (function.name, first), name, tree, node, change)


def _nodes(nodes: Iterable[ast.AST], parent: ast.AST) -> Iterator[Tuple[ast.AST, ast.AST]]:
    """Each node with the one it stands in, in the order of the text."""
    for node in nodes:
        yield node, parent
        yield from _nodes(ast.iter_child_nodes(node), node)


def _functions(tree: ast.AST) -> Iterator[ast.FunctionDef]:
    """Functions of the module and methods of its classes; what lies in one belongs to it."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.FunctionDef):
            yield child
        elif isinstance(child, (ast.ClassDef, ast.If, ast.Try)):
            yield from _functions(child)


def _is_docstring(node: ast.AST, function: ast.FunctionDef) -> bool:
    first = function.body[0]
    return node is first and isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)


def _changes(node: ast.AST, parent: ast.AST) -> Iterator[Tuple[str, ast.AST]]:
    """(description, what stands in its place) for each fault of one node."""
    if isinstance(node, ast.Compare):
        for index, op in enumerate(node.ops):
            for other in _COMPARE.get(type(op), ()):
                changed = copy.deepcopy(node)
                changed.ops[index] = other()
                yield f"{ast.unparse(node)} -> {ast.unparse(changed)}", changed
    elif isinstance(node, (ast.BinOp, ast.AugAssign)):
        swapped = _BINARY.get(type(node.op))
        if swapped is not None:
            binary = copy.deepcopy(node)
            binary.op = swapped()
            yield f"{ast.unparse(node)} -> {ast.unparse(binary)}", binary
    elif isinstance(node, ast.BoolOp):
        both = copy.deepcopy(node)
        both.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield f"{ast.unparse(node)} -> {ast.unparse(both)}", both
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield f"{ast.unparse(node)} -> without not", node.operand
    elif isinstance(node, ast.Constant):
        yield from _constants(node, parent)
    else:
        yield from _statements(node)


def _constants(node: ast.Constant, parent: ast.AST) -> Iterator[Tuple[str, ast.AST]]:
    if isinstance(node.value, int):
        value = not node.value if isinstance(node.value, bool) else node.value + 1
        yield f"{node.value} -> {value} in {_short(parent)}", ast.Constant(value)


def _statements(node: ast.AST) -> Iterator[Tuple[str, ast.AST]]:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield f"{_short(node)} -> gone", ast.Pass()
    elif isinstance(node, ast.Continue):
        yield "continue -> break", ast.Break()
    elif isinstance(node, ast.Break):
        yield "break -> continue", ast.Continue()
    elif isinstance(node, ast.Return) and node.value is not None:
        # None is as false as False
        if not isinstance(node.value, ast.Constant) or node.value.value:
            yield f"{_short(node)} -> return None", ast.Return(ast.Constant(None))
    elif isinstance(node, (ast.If, ast.IfExp)) and not _turned_itself(node.test):
        turned = copy.deepcopy(node)
        turned.test = ast.UnaryOp(ast.Not(), turned.test)
        yield f"if {_short(node.test)} -> if not", turned


def _turned_itself(test: ast.expr) -> bool:
    """A condition one of whose own faults is its opposite."""
    if isinstance(test, ast.UnaryOp):
        return isinstance(test.op, ast.Not)
    return isinstance(test, ast.Compare) and isinstance(
        test.ops[0], (ast.Eq, ast.NotEq, ast.Is, ast.IsNot, ast.In, ast.NotIn)
    )


def _short(node: ast.AST) -> str:
    text = " ".join(ast.unparse(node).split())
    return text if len(text) < 70 else text[:67] + "..."


class _Replace(ast.NodeTransformer):
    def __init__(self, wanted: ast.AST, change: ast.AST) -> None:
        self.wanted = wanted
        self.change = change

    def visit(self, node: ast.AST) -> Any:
        return self.change if node is self.wanted else self.generic_visit(node)


def code_of(mutant: Mutant, path: str) -> Optional[Any]:
    """The code object of the function with the fault; None where it cannot be compiled."""
    change = ast.copy_location(mutant.change, mutant.node)
    _Replace(mutant.node, change).visit(mutant.tree)
    ast.fix_missing_locations(mutant.tree)
    try:
        whole = compile(mutant.tree, path, "exec")
    except (SyntaxError, ValueError):
        return None
    finally:
        _Replace(change, mutant.node).visit(mutant.tree)
    pending: List[Any] = [whole]
    while pending:
        code = pending.pop()
        for constant in code.co_consts:
            if hasattr(constant, "co_code"):
                if (constant.co_name, constant.co_firstlineno) == mutant.function:
                    return constant
                pending.append(constant)
    return None
