"""Numbers and words in files that users write in bilby's syntax, read without ever evaluating them as code."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable

Literal = float | int | str | bool | None

_BINARY: dict[type, Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_NAMES = {"pi": math.pi, "np.pi": math.pi, "inf": math.inf, "np.inf": math.inf}


def parse(text: str) -> ast.expr:
    """The expression in `text`, not evaluated.

    Raises:
        ValueError: `text` is no expression.
    """
    try:
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError(f"'{text.strip()}' cannot be read") from None


def literal(node: ast.expr) -> Literal:
    """A number, a string, True, False or None; numbers may be joined by + - * / and pi or np.pi may stand for one.

    Raises:
        ValueError: anything else.
    """
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float | str | None):
        return node.value
    if (name := dotted(node)) in _NAMES:
        return _NAMES[name]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        value = _number(node.operand)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        left, right = _number(node.left), _number(node.right)
        if isinstance(node.op, ast.Div) and right == 0:
            raise ValueError(f"'{ast.unparse(node)}' divides by zero")
        return _BINARY[type(node.op)](left, right)
    raise ValueError(f"'{ast.unparse(node)}' is neither a number nor a string; a file holds no other code")


def dotted(node: ast.expr) -> str | None:
    """'a.b.c' of a chain of names, else None."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (base := dotted(node.value)):
        return f"{base}.{node.attr}"
    return None


def _number(node: ast.expr) -> float:
    value = literal(node)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"'{ast.unparse(node)}' is not a number")
    return value
