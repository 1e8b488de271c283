"""The rules that choose a config: a small expression language, read as Python and written as C++.

Allowed: names of shape and axes, whole numbers, True, False, 'text', + - * // %, comparisons, `in (...)`,
    and, or, not.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

_ARITHMETIC: dict[type, tuple[str, Callable[[Any, Any], Any]]] = {
    ast.Add: ("+", operator.add),
    ast.Sub: ("-", operator.sub),
    ast.Mult: ("*", operator.mul),
    # Shapes are never negative, where Python and C++ divide alike.
    ast.FloorDiv: ("/", operator.floordiv),
    ast.Mod: ("%", operator.mod),
}
_COMPARISONS: dict[type, tuple[str, Callable[[Any, Any], Any]]] = {
    ast.Lt: ("<", operator.lt),
    ast.LtE: ("<=", operator.le),
    ast.Gt: (">", operator.gt),
    ast.GtE: (">=", operator.ge),
    ast.Eq: ("==", operator.eq),
    ast.NotEq: ("!=", operator.ne),
}


class RuleError(ValueError):
    """A rule that is not in the language; the text says what is wrong."""


def parse(rule: str) -> ast.expr:
    try:
        return ast.parse(rule, mode="eval").body
    except SyntaxError as error:
        raise RuleError(f"is not an expression: {error.msg}") from error


def names(rule: str) -> set[str]:
    return {node.id for node in ast.walk(parse(rule)) if isinstance(node, ast.Name)}


def evaluate(rule: str, known: Mapping[str, Any]) -> bool | None:
    """Value of a rule when only some names are known; None where the answer depends on the others."""
    value = _evaluate(parse(rule), known)
    return None if value is None else bool(value)


def _evaluate(node: ast.expr, known: Mapping[str, Any]) -> Any:
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name):
        return known.get(node.id)
    if isinstance(node, ast.Tuple):
        return tuple(_evaluate(item, known) for item in node.elts)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        value = _evaluate(node.operand, known)
        return None if value is None else not value
    if isinstance(node, ast.BoolOp):
        values = [_evaluate(item, known) for item in node.values]
        decided = isinstance(node.op, ast.Or)
        if any(value is not None and bool(value) is decided for value in values):
            return decided
        return None if None in values else not decided
    if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        left, right = _evaluate(node.left, known), _evaluate(node.right, known)
        return None if left is None or right is None else _ARITHMETIC[type(node.op)][1](left, right)
    if isinstance(node, ast.Compare):
        return _evaluate_comparison(node, known)
    raise RuleError(f"may not use {ast.unparse(node)!r}")


def _evaluate_comparison(node: ast.Compare, known: Mapping[str, Any]) -> bool | None:
    sides = [_evaluate(side, known) for side in [node.left, *node.comparators]]
    verdicts: list[bool | None] = []
    for op, left, right in zip(node.ops, sides, sides[1:], strict=False):
        if left is None or right is None or (isinstance(right, tuple) and None in right):
            verdicts.append(None)
        elif isinstance(op, ast.In | ast.NotIn):
            verdicts.append((left in right) is isinstance(op, ast.In))
        elif type(op) in _COMPARISONS:
            verdicts.append(_COMPARISONS[type(op)][1](left, right))
        else:
            raise RuleError(f"may not use {ast.unparse(node)!r}")
    return False if False in verdicts else None if None in verdicts else True


def to_cpp(rule: str, cpp_names: Mapping[str, str], enums: Mapping[str, str]) -> str:
    """Writes a rule in C++.

    Args:
        rule: the expression.
        cpp_names: C++ expression of every name.
        enums: the C++ enum of each name that holds one (`{"T": "DType"}`); text beside it is an enumerator of
            that type.
    """
    return _Writer(cpp_names, enums).write(parse(rule))


class _Writer:
    def __init__(self, cpp_names: Mapping[str, str], enums: Mapping[str, str]) -> None:
        self._names = cpp_names
        self._enums = enums

    def write(self, node: ast.expr, enum: str | None = None) -> str:
        if isinstance(node, ast.Constant):
            return self._constant(node, enum)
        if isinstance(node, ast.Name):
            if node.id not in self._names:
                raise RuleError(f"uses the unknown name {node.id!r}")
            return self._names[node.id]
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return "!" + self._operand(node.operand)
        if isinstance(node, ast.BoolOp):
            joiner = " && " if isinstance(node.op, ast.And) else " || "
            return joiner.join(self._operand(item) for item in node.values)
        if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
            symbol = _ARITHMETIC[type(node.op)][0]
            return f"{self._operand(node.left)} {symbol} {self._operand(node.right)}"
        if isinstance(node, ast.Compare):
            return self._comparison(node)
        raise RuleError(f"may not use {ast.unparse(node)!r}")

    def _operand(self, node: ast.expr, enum: str | None = None) -> str:
        text = self.write(node, enum)
        simple = isinstance(node, ast.Name | ast.Constant)
        return text if simple else f"({text})"

    def _constant(self, node: ast.Constant, enum: str | None) -> str:
        if isinstance(node.value, bool):
            return "true" if node.value else "false"
        if isinstance(node.value, int):
            return str(node.value)
        if isinstance(node.value, str) and enum is not None:
            return f"{enum}::{node.value}"
        raise RuleError(f"may not use {node.value!r} here")

    def _comparison(self, node: ast.Compare) -> str:
        sides = [node.left, *node.comparators]
        enum = next(
            (self._enums[s.id] for s in sides if isinstance(s, ast.Name) and s.id in self._enums), None
        )
        parts = []
        for op, left, right in zip(node.ops, sides, sides[1:], strict=False):
            if isinstance(op, ast.In | ast.NotIn) and isinstance(right, ast.Tuple):
                equal, joiner = ("==", " || ") if isinstance(op, ast.In) else ("!=", " && ")
                tests = [
                    f"{self._operand(left, enum)} {equal} {self._operand(item, enum)}" for item in right.elts
                ]
                parts.append(joiner.join(tests) if len(tests) == 1 else f"({joiner.join(tests)})")
            elif type(op) in _COMPARISONS:
                symbol = _COMPARISONS[type(op)][0]
                parts.append(f"{self._operand(left, enum)} {symbol} {self._operand(right, enum)}")
            else:
                raise RuleError(f"may not use {ast.unparse(node)!r}")
        return " && ".join(parts)
