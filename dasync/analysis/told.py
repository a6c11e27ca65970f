"""Values that only go into a log line or onto the screen: they steer nothing, so they may differ in a replay.

The time that something took, above all. Whatever else is done with a value, it is taken to steer something.
"""

from __future__ import annotations

import ast
import re

from dasync.analysis.names import Program, Scope

_TELLS = re.compile(r"builtins\.print|warnings\.warn|logging\.\w+|(logging\.getLogger|structlog\.get_logger)\(\)\.\w+")
_LOGGERS = re.compile(r"(\w+\.)*\w*(?i:log|logger)\.(critical|debug|error|exception|info|log|trace|warn(ing)?)")
_ROUNDS = re.compile(r"builtins\.(float|format|int|round|str)")
_ARITHMETIC = (ast.BinOp, ast.UnaryOp, ast.FormattedValue, ast.JoinedStr, ast.Attribute, ast.keyword)


class Told:
    """Where the values of one function go."""

    def __init__(self, program: Program, scope: Scope) -> None:
        self._program = program
        self._scope = scope
        self._parents = {part: node for node in ast.walk(scope.node) for part in ast.iter_child_nodes(node)}
        self._names: dict[str, bool] = {}

    def only(self, node: ast.AST) -> bool:
        """Whether what it gives is told, and nothing else."""
        parent = self._parents.get(node)
        match parent:
            case ast.Call(func=func):
                if func is node or _ROUNDS.fullmatch(self._program.name(func, self._scope)):
                    return self.only(parent)  # a method of it, such as isoformat()
                return self._tells(func)
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                return self._only_name(name)
        return isinstance(parent, _ARITHMETIC) and self.only(parent)

    def _tells(self, func: ast.expr) -> bool:
        name = self._program.name(func, self._scope)
        return bool(_TELLS.fullmatch(name) or _LOGGERS.fullmatch(ast.unparse(func)))

    def _only_name(self, name: str) -> bool:
        if name not in self._names:
            self._names[name] = True  # where it is told by way of itself
            self._names[name] = self._program.home(name, self._scope) is self._scope and all(
                self.only(node)
                for node in ast.walk(self._scope.node)
                if isinstance(node, ast.Name) and node.id == name and isinstance(node.ctx, ast.Load)
            )
        return self._names[name]
