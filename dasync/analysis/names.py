"""What a name means: through imports, aliases, assignments and scopes, and in the other files of the program.

A name that is bound to different things, or to what only a run could tell, means nothing here: a check that guesses
cries wolf. `import *` is not followed.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePath
from typing import NamedTuple, TypeAlias

from dasync.analysis.source import Source, locate

_DECORATOR = re.compile(r"dasync\.(batched|function|remote)(\(\))?")
_MADE = re.compile(r"dasync\.(batched|function|remote)(\(\))+")


class Imported(NamedTuple):
    """`import dotted`, or `from dotted import name`."""

    dotted: str
    level: int
    name: str | None


@dataclass(frozen=True, slots=True)
class Outside:
    """Something that the program does not define: `time.time`; with `()`, what a call of it gives."""

    name: str


class Scope:
    """A module, a class or a function, with what the names in it are bound to."""

    def __init__(self, source: Source, node: Node, outer: Scope | None = None) -> None:
        self.source = source
        self.node = node
        self.outer = outer
        self.inner: list[Scope] = []
        self.bindings: dict[str, list[Binding]] = {}
        _bind(self)

    @property
    def name(self) -> str:
        return "" if isinstance(self.node, ast.Module) else self.node.name

    @property
    def is_function(self) -> bool:
        return isinstance(self.node, FUNCTIONS)

    @property
    def is_async(self) -> bool:
        return isinstance(self.node, ast.AsyncFunctionDef)

    def all(self) -> Iterator[Scope]:
        """It, and all within it."""
        yield self
        for scope in self.inner:
            yield from scope.all()

    def bind(self, name: str, binding: Binding) -> None:
        self.bindings.setdefault(name, []).append(binding)


FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
Node: TypeAlias = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
Binding: TypeAlias = Imported | Scope | ast.expr | ast.arg | ast.AnnAssign | None  # None: to what only a run tells
Meaning: TypeAlias = Outside | Scope | None


class Program:
    """Source files, and what the names in them mean."""

    def __init__(self, sources: Iterable[Source]) -> None:
        self.modules = {source.path: Scope(source, source.tree) for source in sources}
        self._parts = {part for path in self.modules for part in path.with_suffix("").parts}
        self._known: dict[tuple[Scope, str], Meaning] = {}
        self._kinds: dict[Scope, str] = {}

    def meaning(self, node: ast.expr, scope: Scope) -> Meaning:
        """What an expression in `scope` stands for."""
        match node:
            case ast.Name(id=name):
                home = self.home(name, scope)
                return Outside(f"builtins.{name}") if home is None else self._bound(home, name)
            case ast.Attribute(value=value, attr=attr):
                return self._attribute(self.meaning(value, scope), attr, scope.source.path)
            case ast.Call(func=ast.Attribute(value=value, attr="options")) if self.is_durable(value, scope):
                return self.meaning(value, scope)
            case ast.Call(func=func):
                called = self.meaning(func, scope)
                return Outside(f"{called.name}()") if isinstance(called, Outside) else None
        return None

    def name(self, node: ast.expr, scope: Scope) -> str:
        """The full name of what the program does not define; empty for anything else."""
        meaning = self.meaning(node, scope)
        return meaning.name if isinstance(meaning, Outside) else ""

    def home(self, name: str, scope: Scope) -> Scope | None:
        """The scope whose name it is; None for a builtin's. The names of a class are none of its functions' names."""
        at: Scope | None = scope
        while at is not None and (name not in at.bindings or (at is not scope and isinstance(at.node, ast.ClassDef))):
            at = at.outer
        return at

    def is_durable(self, node: ast.expr, scope: Scope) -> bool:
        """Whether it is a durable function, defined here or declared."""
        meaning = self.meaning(node, scope)
        if isinstance(meaning, Outside):
            return _MADE.fullmatch(meaning.name) is not None
        return meaning is not None and self.kind(meaning) != ""

    def kind(self, scope: Scope) -> str:
        """Of a durable function how it was declared: `batched`, `function`, `remote`; empty for anything else."""
        if scope not in self._kinds:
            names = [self.name(one, scope.outer or scope) for one in decorators(scope)]
            found = [match[1] for name in names if (match := _DECORATOR.fullmatch(name))]
            self._kinds[scope] = found[0] if found else ""
        return self._kinds[scope]

    def _bound(self, scope: Scope, name: str) -> Meaning:
        key = (scope, name)
        if key not in self._known:
            self._known[key] = None  # for one that is bound to itself, while that is looked up
            meanings = {self._of(binding, scope) for binding in scope.bindings[name]}
            self._known[key] = meanings.pop() if len(meanings) == 1 else None
        return self._known[key]

    def _of(self, binding: Binding, scope: Scope) -> Meaning:
        match binding:
            case Imported():
                return self._imported(binding, scope.source.path)
            case Scope():
                return binding
            case ast.AnnAssign(value=ast.expr() as value) | (ast.expr() as value):
                return self.meaning(value, scope)
        return None

    def _imported(self, one: Imported, importer: PurePath) -> Meaning:
        module = self._module(importer, one.dotted, one.level)
        if one.name is None:
            return module or Outside(one.dotted)
        if module is not None and one.name in module.bindings:
            return self._bound(module, one.name)
        dotted = f"{one.dotted}.{one.name}"
        return self._module(importer, dotted.lstrip("."), one.level) or _outside("." * one.level + dotted)

    def _attribute(self, base: Meaning, attr: str, importer: PurePath) -> Meaning:
        if isinstance(base, Outside):
            dotted = f"{base.name}.{attr}"
            return self._module(importer, dotted, 0) or _outside(dotted)
        if base is None or base.is_function:
            return None
        if attr in base.bindings:
            return self._bound(base, attr)
        is_package = isinstance(base.node, ast.Module) and base.source.path.name == "__init__.py"
        return self._module(base.source.path, attr, 1) if is_package else None

    def _module(self, importer: PurePath, dotted: str, level: int) -> Scope | None:
        if not level and dotted.partition(".")[0] not in self._parts:
            return None  # as most, at once
        path = locate(importer, dotted, level, self.modules.__contains__)
        return None if path is None else self.modules[path]


def decorators(scope: Scope) -> list[ast.expr]:
    return [] if isinstance(scope.node, ast.Module) else scope.node.decorator_list


def header(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> list[ast.expr]:
    """What is evaluated where a class or a function is defined, not where it is called."""
    if isinstance(node, ast.ClassDef):
        return [*node.decorator_list, *node.bases, *(keyword.value for keyword in node.keywords)]
    return [*node.decorator_list, *node.args.defaults, *(one for one in node.args.kw_defaults if one is not None)]


def _outside(dotted: str) -> Outside:
    """dasync's own names are the public ones, wherever they come from."""
    return Outside(f"dasync.{dotted.rpartition('.')[2]}" if dotted.startswith("dasync.") else dotted)


def _bind(scope: Scope) -> None:
    """Bind the names of a scope; classes and functions in it become scopes of their own."""
    if isinstance(scope.node, FUNCTIONS):
        _bind_parameters(scope, scope.node.args)
    elsewhere: set[str] = set()
    nodes: list[ast.AST] = list(scope.node.body)
    for node in nodes:
        match node:
            case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                scope.inner.append(Scope(scope.source, node, scope))
                scope.bind(node.name, scope.inner[-1])
                nodes += header(node)
                continue
            case ast.AugAssign():  # what it gives is of the kind that was there
                nodes.append(node.value)
                continue
            case ast.Global() | ast.Nonlocal():
                elsewhere.update(node.names)
            case ast.Import() | ast.ImportFrom():
                _bind_import(scope, node)
            case _:
                nodes += _bind_names(scope, node)
    for name in elsewhere:
        scope.bindings.pop(name, None)


def _bind_import(scope: Scope, node: ast.Import | ast.ImportFrom) -> None:
    for alias in node.names:
        if isinstance(node, ast.ImportFrom):
            scope.bind(alias.asname or alias.name, Imported(node.module or "", node.level, alias.name))
        elif alias.asname:
            scope.bind(alias.asname, Imported(alias.name, 0, None))
        else:
            top = alias.name.partition(".")[0]
            scope.bind(top, Imported(top, 0, None))


def _bind_names(scope: Scope, node: ast.AST) -> list[ast.AST]:
    """Bind what a node binds by itself; gives those of its parts that are still to be looked at."""
    match node:
        case ast.Assign(targets=targets, value=value):
            left = [one for target in targets for one in _assign(scope, target, value)]
            return [*left, value]
        case ast.AnnAssign(target=ast.Name(id=name), value=value):
            scope.bind(name, node)
            return [] if value is None else [value]
        case ast.NamedExpr(target=ast.Name(id=name), value=value):
            scope.bind(name, value)
            return [value]
        case ast.withitem(context_expr=value, optional_vars=ast.Name(id=name)):
            scope.bind(name, value)  # a session, a file: most give themselves
            return [value]
        case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name):  # an arg that comes here is a lambda's
            scope.bind(name, None)
        case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr="sort")):
            scope.bind(name, None)  # it is no more in the order of what it was bound to
        case (
            ast.ExceptHandler(name=str(name))
            | ast.MatchAs(name=str(name))
            | ast.MatchStar(name=str(name))
            | ast.MatchMapping(rest=str(name))
        ):
            scope.bind(name, None)
    return list(ast.iter_child_nodes(node))


def _assign(scope: Scope, target: ast.expr, value: ast.expr) -> list[ast.expr]:
    """Bind a target; gives what of it binds no name."""
    if isinstance(target, ast.Name):
        scope.bind(target.id, value)
        return []
    if isinstance(target, ast.Tuple) and not any(isinstance(one, ast.Starred) for one in target.elts):
        left = []
        for place, one in enumerate(target.elts):
            part = ast.Subscript(value, ast.Constant(place), ast.Load())
            whole = isinstance(value, ast.Tuple) and len(value.elts) == len(target.elts)
            left += _assign(scope, one, value.elts[place] if whole and isinstance(value, ast.Tuple) else part)
        return left
    return [target]


def _bind_parameters(scope: Scope, args: ast.arguments) -> None:
    for one in (*args.posonlyargs, *args.args, *args.kwonlyargs):
        scope.bind(one.arg, one)
    for rest in (args.vararg, args.kwarg):  # whose annotation is that of each
        if rest is not None:
            scope.bind(rest.arg, None)
