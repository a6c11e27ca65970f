"""Find what would come out otherwise when a function that invokes is replayed, or stops the loop that it runs on.

A body that invokes is run again after a crash, with the recorded results of what it invoked: it has to come to the
same invocations. One that invokes nothing, a leaf, may do as it likes, and nothing is said of it. What cannot be known
without running the program is passed over.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypedDict

from dasync.analysis.names import Program, Scope
from dasync.analysis.reach import Reach
from dasync.analysis.rules import rule
from dasync.analysis.sets import Kind, Sets
from dasync.analysis.told import Told
from dasync.errors import DasyncError

_SIGNALS = frozenset({"builtins.BaseException", "dasync.Suspended", "dasync.LeaseLost"})
_SUPPRESS = "contextlib.suppress"
_ORDERED = {
    Kind.SET: "sorted(...), or a list: dict.fromkeys() drops what is double and keeps the order",
    Kind.WAITED: "dasync.wait(), whose lists are in order",
}
_Place = ast.expr | ast.stmt | ast.excepthandler


class Finding(TypedDict):
    """A hazard: where it is, which function it endangers, the line, why, and what to use instead."""

    path: str
    line: int
    column: int
    code: str
    function: str
    source: str
    why: str
    use: str


class Checked(TypedDict):
    """What was looked at, how many of its functions invoke, how many hazards are excused, and those that are not."""

    files: int
    functions: int
    excused: int
    findings: list[Finding]


class _Fault(NamedTuple):
    """A hazard in a scope."""

    at: _Place
    code: str
    why: str
    use: str


class Finder:
    """Looks through the modules of a program.

    Example:
        >>> from pathlib import PurePath
        >>> from dasync.analysis.source import Source
        >>> text = b'''
        ... import dasync, time
        ... @dasync.function
        ... async def nap() -> float:
        ...     began = time.time()
        ...     await dasync.sleep(1)
        ...     return time.time() - began  # dasync: ok
        ... '''
        >>> program = Program([Source(PurePath("nap.py"), text)])
        >>> finder = Finder(program)
        >>> finder.look(program.modules[PurePath("nap.py")])
        >>> checked = finder.checked()
        >>> [(found["line"], found["code"], found["use"]) for found in checked["findings"]], checked["excused"]
        ([(5, 'clock', 'dasync.now()')], 1)
    """

    def __init__(self, program: Program) -> None:
        self._program = program
        self._findings: list[Finding] = []
        self._functions = self._excused = 0
        self._reach = Reach(program)
        self._sets = Sets(program)
        self._told: dict[Scope, Told] = {}
        self._looked: set[tuple[Scope, bool]] = set()
        self._known: set[tuple[ast.AST, str]] = set()

    def look(self, module: Scope) -> None:
        """Find the hazards of a module's functions, and of the helpers that they call, in whatever file these are."""
        try:
            for function in self._reach.roots(module):
                if self._reach.invokes(function):
                    self._functions += 1
                    for scope in self._reach.reached(function):
                        self._note(function, scope)
        except RecursionError:
            raise DasyncError(f"{module.source.name}:1:1: it is nested too deeply to follow; split it") from None

    def checked(self) -> Checked:
        """What has been found so far, by place."""
        findings = sorted(self._findings, key=lambda one: (one["path"], one["line"], one["column"], one["code"]))
        return Checked(
            files=len(self._program.modules), functions=self._functions, excused=self._excused, findings=findings
        )

    def _note(self, function: Scope, scope: Scope) -> None:
        run = (scope, function.is_async)
        if run in self._looked:
            return
        self._looked.add(run)
        for at, code, why, use in self._faults(scope, on_loop=function.is_async):
            if (at, code) in self._known:
                continue
            self._known.add((at, code))
            if scope.source.excuses(at):
                self._excused += 1
                continue
            self._findings.append(
                Finding(
                    path=scope.source.name,
                    line=at.lineno,
                    column=scope.source.column(at),
                    code=code,
                    function=function.name,
                    source=scope.source.line(at.lineno),
                    why=why,
                    use=use,
                )
            )

    def _faults(self, scope: Scope, *, on_loop: bool) -> Iterator[_Fault]:
        for node in self._reach.nodes(scope):
            match node:
                case ast.Call():
                    yield from self._call(node, scope, on_loop=on_loop)
                    yield from self._spread(node, scope)
                case ast.For(iter=over, body=body):
                    yield from self._loop([over], body, scope)
                case ast.ListComp(elt=made) | ast.SetComp(elt=made) | ast.GeneratorExp(elt=made):
                    yield from self._loop([one.iter for one in node.generators], [made], scope)
                case ast.DictComp(key=key, value=value):
                    yield from self._loop([one.iter for one in node.generators], [key, value], scope)
                case ast.Try() | ast.TryStar():
                    yield from self._try(node, scope)
                case ast.With() | ast.AsyncWith():
                    yield from self._with(node, scope)

    # -- calls

    def _call(self, call: ast.Call, scope: Scope, *, on_loop: bool) -> Iterator[_Fault]:
        name = self._program.name(call.func, scope)
        found = rule(f"{name}(...)" if call.args or call.keywords else f"{name}()") if name else None
        if found is None or (found.blocks and not on_loop) or (found.steers and self._is_only_told(call, scope)):
            return
        yield _Fault(call, found.code, f"{name.removeprefix('builtins.')}() {found.why}", found.use)

    def _is_only_told(self, call: ast.Call, scope: Scope) -> bool:
        if scope not in self._told:
            self._told[scope] = Told(self._program, scope)
        return self._told[scope].only(call)

    # -- what has no order

    def _loop(self, over: Sequence[ast.expr], done: Sequence[ast.AST], scope: Scope) -> Iterator[_Fault]:
        """Something is awaited or invoked for each element."""
        found = [(node, kind) for node in over if (kind := self._sets.kind(node, scope))]
        if found and self._reach.stirs(done, scope):
            yield from (self._unordered(node, kind) for node, kind in found)

    def _spread(self, call: ast.Call, scope: Scope) -> Iterator[_Fault]:
        """The elements are the arguments of what awaits them, or one of them is taken at random."""
        if self._program.name(call.func, scope) == "asyncio.gather" or self._reach.stirs([call.func], scope):
            for one in call.args:
                kind = self._sets.kind(one.value, scope) if isinstance(one, ast.Starred) else None
                if kind is not None:
                    yield self._unordered(one, kind)
        if isinstance(call.func, ast.Attribute) and call.func.attr == "pop" and not call.args:
            kind = self._sets.kind(call.func.value, scope)
            if kind is not None:
                yield self._unordered(call, kind)

    def _unordered(self, at: ast.expr, kind: Kind) -> _Fault:
        return _Fault(
            at, "set-order", f"{kind.value} has another order in a replay, and with it what is invoked", _ORDERED[kind]
        )

    # -- what lets no signal through

    def _try(self, node: ast.Try | ast.TryStar, scope: Scope) -> Iterator[_Fault]:
        if not self._reach.stirs(node.body, scope):
            return
        for handler in node.handlers:
            if self._catches_signals(handler.type, scope) and not self._raises_again(handler, scope):
                what = f"`except {ast.unparse(handler.type)}`" if handler.type else "a bare `except`"
                yield _swallowed(handler, what, "`except Exception`, or end it with `raise`")
        for left in self._reach.evaluated(node.finalbody, scope):
            if isinstance(left, ast.Return):
                yield _swallowed(left, "`return` in a `finally`", "a `return` after it")

    def _with(self, node: ast.With | ast.AsyncWith, scope: Scope) -> Iterator[_Fault]:
        for item in node.items:
            call = item.context_expr
            if isinstance(call, ast.Call) and self._program.name(call.func, scope) == _SUPPRESS:
                caught = any(self._catches_signals(one, scope) for one in call.args)
                if caught and self._reach.stirs(node.body, scope):
                    yield _swallowed(call, f"`{ast.unparse(call)}`", "suppress(Exception)")

    def _catches_signals(self, caught: ast.expr | None, scope: Scope) -> bool:
        if isinstance(caught, ast.Tuple):
            return any(self._catches_signals(one, scope) for one in caught.elts)
        return caught is None or self._program.name(caught, scope) in _SIGNALS

    def _raises_again(self, handler: ast.ExceptHandler, scope: Scope) -> bool:
        return any(
            isinstance(node, ast.Raise)
            and (node.exc is None or (isinstance(node.exc, ast.Name) and node.exc.id == handler.name))
            for node in self._reach.evaluated(handler.body, scope)
        )


def _swallowed(at: _Place, what: str, use: str) -> _Fault:
    return _Fault(at, "bare-except", f"{what} around an await swallows what suspends or cancels the function", use)
