"""Small faults in a module's syntax tree, one at a time."""

from __future__ import annotations

import ast
import copy
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple, Type

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
    """One fault: where it is, what it does, and the whole tree that has it."""

    line: int
    #: (name, first line) of the outermost function it lies in
    function: Tuple[str, int]
    what: str
    tree: ast.Module


def mutants(source: str) -> Iterator[Mutant]:
    """Every fault of every function of a module, in the order of its lines."""
    tree = ast.parse(source)
    for function in _functions(tree):
        for node in ast.walk(function):
            if node is function or _is_docstring(node, function):
                continue
            for what, change in _changes(node):
                yield _mutant(tree, function, node, what, change)


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


def _changes(node: ast.AST) -> Iterator[Tuple[str, ast.AST]]:
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
        yield from _constants(node)
    else:
        yield from _statements(node)


def _constants(node: ast.Constant) -> Iterator[Tuple[str, ast.AST]]:
    if isinstance(node.value, bool):
        yield f"{node.value} -> {not node.value}", ast.Constant(not node.value)
    elif isinstance(node.value, int):
        yield f"{node.value} -> {node.value + 1}", ast.Constant(node.value + 1)


def _statements(node: ast.AST) -> Iterator[Tuple[str, ast.AST]]:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield f"{_short(node)} -> gone", ast.Pass()
    elif isinstance(node, ast.Continue):
        yield "continue -> break", ast.Break()
    elif isinstance(node, ast.Break):
        yield "break -> continue", ast.Continue()
    elif isinstance(node, ast.Return) and node.value is not None:
        if not (isinstance(node.value, ast.Constant) and node.value.value is None):
            yield f"{_short(node)} -> return None", ast.Return(ast.Constant(None))
    elif isinstance(node, (ast.If, ast.IfExp)):
        turned = copy.deepcopy(node)
        turned.test = ast.UnaryOp(ast.Not(), turned.test)
        yield f"if {_short(node.test)} -> if not", turned


def _short(node: ast.AST) -> str:
    text = " ".join(ast.unparse(node).split())
    return text if len(text) < 70 else text[:67] + "..."


class _Replace(ast.NodeTransformer):
    def __init__(self, wanted: Tuple[Any, ...], change: ast.AST) -> None:
        self.wanted = wanted
        self.change = change
        self.done = False

    def visit(self, node: ast.AST) -> Any:
        if not self.done and _place(node) == self.wanted:
            self.done = True
            return ast.copy_location(self.change, node)
        return super().visit(node)


def _place(node: ast.AST) -> Tuple[Any, ...]:
    return (
        type(node),
        getattr(node, "lineno", None),
        getattr(node, "col_offset", None),
        getattr(node, "end_lineno", None),
        getattr(node, "end_col_offset", None),
    )


def _mutant(
    tree: ast.Module, function: ast.FunctionDef, node: ast.AST, what: str, change: ast.AST
) -> Mutant:
    replaced = _Replace(_place(node), change).visit(copy.deepcopy(tree))
    ast.fix_missing_locations(replaced)
    first = min([function.lineno, *(d.lineno for d in function.decorator_list)])
    return Mutant(getattr(node, "lineno", 0), (function.name, first), what, replaced)


def code_of(mutant: Mutant, path: str) -> Optional[Any]:
    """The code object of the function with the fault; None where it cannot be compiled."""
    try:
        whole = compile(mutant.tree, path, "exec")
    except (SyntaxError, ValueError):
        return None
    pending: List[Any] = [whole]
    while pending:
        code = pending.pop()
        for constant in code.co_consts:
            if hasattr(constant, "co_code"):
                if (constant.co_name, constant.co_firstlineno) == mutant.function:
                    return constant
                pending.append(constant)
    return None
