"""What a durable function runs when its body does: its own code and that of the helpers it calls, and where it invokes.

Another durable function is not its own code, and neither is what is only handed on: a helper that is given to
`asyncio.to_thread` runs elsewhere, and what comes of it is as any raw await.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator

from dasync.analysis.names import Program, Scope, decorators, header

OPERATIONS = re.compile(
    r"dasync\.(all|all_settled|any|as_completed|invoke|now|patched|promise|race|sleep|timeout|wait)"
)  # each leaves a record, as an invocation does
_MAKES = re.compile(r"dasync\.function(\(\))?")
_TRANSPARENT = re.compile(
    r"contextlib\.(asynccontextmanager|contextmanager)|functools\.(cache|lru_cache|wraps)(\(\))?|builtins\.staticmethod"
)  # decorators that leave the code where it is
_THREADS = frozenset({"run_in_executor", "run_sync", "submit", "to_thread"})  # what takes a function to run in a thread
_BESIDE = frozenset({"fn", "name", "version"})  # attributes of a durable function that invoke nothing


class Reach:
    """Which code belongs to which function of a program."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._nodes: dict[Scope, list[ast.AST]] = {}
        self._reached: dict[Scope, list[Scope]] = {}
        self._invokes: dict[Scope, bool] = {}

    def roots(self, module: Scope) -> list[Scope]:
        """The durable functions that a module defines, or makes by calling `dasync.function`."""
        program, found = self._program, [scope for scope in module.all() if self._program.kind(scope) == "function"]
        for node in self.nodes(module):
            if isinstance(node, ast.Call) and node.args and _MAKES.fullmatch(program.name(node.func, module)):
                made = program.meaning(node.args[0], module)
                found += [made] if isinstance(made, Scope) and made.is_function else []
        return list(dict.fromkeys(found))

    def nodes(self, scope: Scope) -> list[ast.AST]:
        """What is evaluated when the body of `scope` runs."""
        if scope not in self._nodes:
            self._nodes[scope] = list(self.evaluated(scope.node.body, scope))
        return self._nodes[scope]

    def evaluated(self, nodes: Iterable[ast.AST], scope: Scope) -> Iterator[ast.AST]:
        """These nodes and all below them, but for the bodies of functions and what is run in threads."""
        left = list(nodes)
        for node in left:
            match node:
                case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                    left += header(node)
                    continue
                case ast.Attribute(attr=attr) if attr in _BESIDE and self._program.is_durable(node.value, scope):
                    continue
                case ast.Call(func=ast.Attribute(attr=attr) | ast.Name(id=attr)) if attr in _THREADS:
                    left += [part for part in ast.iter_child_nodes(node) if not isinstance(part, ast.Lambda)]
                case _:
                    left += ast.iter_child_nodes(node)
            yield node

    def reached(self, scope: Scope) -> list[Scope]:
        """The function itself and the helpers that it calls, they call, and so on."""
        if scope not in self._reached:
            found = [scope]
            for one in found:
                found += dict.fromkeys(helper for helper in self._helpers(one) if helper not in found)
            self._reached[scope] = found
        return self._reached[scope]

    def invokes(self, scope: Scope) -> bool:
        """Whether it, or a helper that it calls, invokes anything."""
        return any(self._invokes_itself(one) for one in self.reached(scope))

    def stirs(self, nodes: Iterable[ast.AST], scope: Scope) -> bool:
        """Whether something there awaits or invokes."""
        return any(
            isinstance(node, ast.Await | ast.AsyncFor | ast.AsyncWith)
            or self._is_invocation(node, scope)
            or (isinstance(node, ast.Call) and self._waits_or_invokes(node, scope))
            for node in self.evaluated(nodes, scope)
        )

    def _waits_or_invokes(self, call: ast.Call, scope: Scope) -> bool:
        if not scope.is_async and isinstance(call.func, ast.Attribute) and call.func.attr == "wait":
            return True  # as a function that runs in a thread awaits
        helper = self._helper(call, scope)
        return helper is not None and self.invokes(helper)

    def _invokes_itself(self, scope: Scope) -> bool:
        if scope not in self._invokes:
            self._invokes[scope] = any(self._is_invocation(node, scope) for node in self.nodes(scope))
        return self._invokes[scope]

    def _is_invocation(self, node: ast.AST, scope: Scope) -> bool:
        """A durable function, or operation, that is named is taken for one that is invoked."""
        return isinstance(node, ast.Name | ast.Attribute) and (
            self._program.is_durable(node, scope) or OPERATIONS.fullmatch(self._program.name(node, scope)) is not None
        )

    def _helpers(self, scope: Scope) -> Iterator[Scope]:
        for node in self.nodes(scope):
            helper = self._helper(node, scope) if isinstance(node, ast.Call) else None
            if helper is not None:
                yield helper

    def _helper(self, call: ast.Call, scope: Scope) -> Scope | None:
        """The function of the program whose body a call runs, on the spot."""
        called, program = call.func, self._program
        if isinstance(called, ast.Attribute) and called.attr == "start_soon" and call.args:
            called = call.args[0]
        if isinstance(called, ast.Attribute) and called.attr == "fn" and program.is_durable(called.value, scope):
            written = program.meaning(called.value, scope)
            return written if isinstance(written, Scope) else None
        found = program.meaning(called, scope)
        if not isinstance(found, Scope) or not found.is_function:
            return None
        names = (program.name(one, found.outer or found) for one in decorators(found))
        return found if all(_TRANSPARENT.fullmatch(name) for name in names) else None
