"""What has no order that a replay would find again: sets, and the two that `asyncio.wait` gives.

A set of numbers has the same order in every process; any other may not, since texts and objects hash anew in each.
"""

from __future__ import annotations

import ast
import re
from enum import Enum

from dasync.analysis.names import Binding, Program, Scope

_MAKES = re.compile(r"builtins\.(set|frozenset)")
_KEEPS = re.compile(r"builtins\.(enumerate|filter|iter|list|map|reversed|tuple|zip)")  # the order of what it is given
_TYPES = re.compile(
    r"builtins\.(set|frozenset)|typing\.(AbstractSet|FrozenSet|MutableSet|Set)|collections\.abc\.(MutableSet|Set)"
)
_NUMBERS = re.compile(r"builtins\.(bool|float|int)")
_METHODS = frozenset({"copy", "difference", "intersection", "symmetric_difference", "union"})


class Kind(Enum):
    """Where a set comes from."""

    SET = "a set"
    WAITED = "what asyncio.wait() gives"


class Sets:
    """Which expressions of a program give sets, or their elements in the set's own order."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._open: set[tuple[Scope, str]] = set()

    def kind(self, node: ast.expr, scope: Scope) -> Kind | None:
        match node:
            case ast.Set(elts=elements):
                return None if all(_is_number(one) for one in elements) else Kind.SET
            case ast.SetComp():
                return Kind.SET
            case ast.Starred(value=value):
                return self.kind(value, scope)
            case ast.Name(id=name):
                return self._named(name, scope)
            case ast.IfExp(body=left, orelse=right):
                return self.kind(left, scope) or self.kind(right, scope)
            case ast.BinOp(left=ast.Call(func=ast.Attribute(attr="keys")), op=ast.BitAnd() | ast.BitOr() | ast.Sub()):
                return Kind.SET
            case ast.BinOp(left=left, op=ast.BitAnd() | ast.BitOr() | ast.BitXor() | ast.Sub(), right=right):
                return self.kind(left, scope) or self.kind(right, scope)
            case ast.Subscript(value=ast.Await(value=ast.Call(func=func))):
                return Kind.WAITED if self._program.name(func, scope) == "asyncio.wait" else None
            case ast.Call():
                return self._called(node, scope)
        return None

    def _called(self, call: ast.Call, scope: Scope) -> Kind | None:
        name = self._program.name(call.func, scope)
        if _MAKES.fullmatch(name):
            source = call.args[0] if call.args else None
            of_numbers = isinstance(source, ast.Call) and self._program.name(source.func, scope) == "builtins.range"
            return None if of_numbers else Kind.SET
        if _KEEPS.fullmatch(name):
            return next((kind for one in call.args if (kind := self.kind(one, scope))), None)
        if isinstance(call.func, ast.Attribute) and call.func.attr in _METHODS:
            return self.kind(call.func.value, scope)
        return None

    def _named(self, name: str, scope: Scope) -> Kind | None:
        """Of a name: what each of its bindings gives, if that is a set."""
        home = self._program.home(name, scope)
        if home is None or (home, name) in self._open:
            return None
        self._open.add((home, name))
        try:
            kinds = [self._bound(binding, home) for binding in home.bindings[name]]
        finally:
            self._open.discard((home, name))
        return kinds[0] if all(kinds) else None

    def _bound(self, binding: Binding, scope: Scope) -> Kind | None:
        match binding:
            case ast.arg(annotation=ast.expr() as annotation) | ast.AnnAssign(annotation=annotation):
                return self._annotated(annotation, scope)
            case ast.expr():
                return self.kind(binding, scope)
        return None

    def _annotated(self, node: ast.expr, scope: Scope) -> Kind | None:
        match node:
            case ast.BinOp(left=ast.Call(func=ast.Attribute(attr="keys")), op=ast.BitAnd() | ast.BitOr() | ast.Sub()):
                return Kind.SET
            case ast.BinOp(left=left, op=ast.BitOr(), right=right):
                return self._annotated(left, scope) or self._annotated(right, scope)
            case ast.Subscript(value=value, slice=of):
                return None if _NUMBERS.fullmatch(self._program.name(of, scope)) else self._annotated(value, scope)
        return Kind.SET if _TYPES.fullmatch(self._program.name(node, scope)) else None


def _is_number(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, int | float)
