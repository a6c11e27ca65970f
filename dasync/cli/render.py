"""Facts as text for people: a promise, a call tree, a list.

Plain text everywhere; on a terminal the call tree gets colors. What comes out of payloads is shown as JSON and
stripped of control characters, so that no payload can drive the terminal. This file looks nothing up.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dasync.analysis.hazards import Checked, Finding
    from dasync.cli.facts import Arguments, Attempt, Brief, Check, ErrorFacts, Listing, Node, Shown, Tree

COLORS = {"pending": "yellow", "resolved": "green", "rejected": "red", "canceled": "magenta", "timedout": "red"}
OUTSIDE = "(settled outside)"
RETRY = "dasync.retry"  # the function of a timer that keeps a failed attempt
AGAIN = "dasync.again"  # of what keeps the arguments of a function that has started over
MAX_ATTEMPTS = 20  # that are told of, the latest
MAX_BELOW = 20  # promises below one that are told of, the first
_UNITS = (("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1000))


def promise(facts: Shown) -> str:
    """All that is known of one promise, a line per fact."""
    error, task, span = facts["error"], facts["task"], duration(facts["duration_ms"])
    lines = [
        ("promise", facts["id"]),
        ("state", facts["state"]),
        ("function", f"{facts['function']} version {facts['version']}" if facts["function"] else OUTSIDE),
        ("arguments", _call(facts["arguments"]) if facts["function"] else ""),
        ("value", _json(facts["value"]) if facts["state"] == "resolved" else ""),
        ("error", _error(error) if error else ""),
        ("reason", facts["reason"] or ""),
        *_attempts(facts),
        ("created", _time(facts["created_at"])),
        ("settled", _time(facts["settled_at"]) + (f", after {span}" if facts["settled_at"] else "")),
        ("deadline", _time(facts["timeout_at"])),
        ("parent", facts["parent"] or ""),
        ("task", _task(facts) + (f", target {facts['target']}" if task else "")),
        ("python", (task["python"] or "") if task else ""),
        ("tags", _json(facts["tags"]) if facts["tags"] else ""),
        ("waits for", ", ".join(facts["awaits"])),
        *_below(facts),
        ("awaited by", ", ".join([*facts["awaited_by"], *(f"process {one}" for one in facts["listeners"])])),
    ]
    text = "\n".join(f"{name:<10}  {clean(value)}" for name, value in lines if value)
    halted = (task["reason"] or "") if task else ""
    for more in (error["traceback"] if error else "", halted):
        if more:
            text += "\n\n" + "\n".join(map(clean, more.rstrip().splitlines()))
    return text


def tree(facts: Tree) -> str:
    """A call tree, drawn with lines."""
    nodes = facts["promises"]
    last = _last_children(nodes)
    open_levels: list[bool] = []
    lines = []
    for index, node in enumerate(nodes):
        depth = node["depth"]
        del open_levels[max(depth - 1, 0) :]
        edge = "" if depth == 0 else "└─ " if last[index] else "├─ "
        lines.append("".join("│  " if more else "   " for more in open_levels) + edge + "  ".join(_node(node)))
        if depth:
            open_levels.append(not last[index])
    return "\n".join(lines)


def print_tree(facts: Tree) -> None:
    """A call tree on a terminal, in color."""
    from rich.console import Console
    from rich.text import Text
    from rich.tree import Tree as RichTree

    path: list[RichTree] = []
    for node in facts["promises"]:
        id, what, state, *rest = _node(node)
        label = Text("  ").join([Text(id, "bold"), Text(what), Text(state, COLORS[node["state"]])])
        label.append("".join(f"  {one}" for one in rest), "dim")
        del path[node["depth"] :]
        path.append(path[-1].add(label) if path else RichTree(label))
    Console().print(path[0])


def listing(facts: Listing) -> str:
    """A list of promises, a line each, and for one that is halted what is first said of why."""
    found = facts["promises"]
    rows = [[one["id"], _state(one), _function(one), _task(one), _time(one["created_at"])] for one in found]
    head, reasons = ["ID", "STATE", "FUNCTION", "TASK", "CREATED"], [first_line(_reason(one)) for one in found]
    if any(reasons):
        head, rows = [*head, "REASON"], [[*row, reason] for row, reason in zip(rows, reasons, strict=True)]
    return columns(head, rows) if rows else "no promises"


def checks(found: Sequence[Check]) -> str:
    """What a doctor has found, a line per check."""
    rows = [(one["status"], one["check"], one["detail"], one["remedy"]) for one in found]
    return "\n".join(
        clean(f"{status:<4}  {check:<9}  {detail}" + (f"; {remedy}" if remedy else ""))
        for status, check, detail, remedy in rows
    )


def checked(facts: Checked) -> str:
    """What is hazardous in a program, each with its line and what to use instead; then how much was looked at."""
    count, excused = len(facts["findings"]), facts["excused"]
    told = ", ".join(
        [
            _count(facts["files"], "file"),
            _count(facts["functions"], "function") + f" that invoke{'s' if facts['functions'] == 1 else ''}",
            _count(count, "finding") + (f" ({excused} excused)" if excused else ""),
        ]
    )
    return "\n".join([*map(_finding, facts["findings"]), told])


def columns(head: Sequence[str], rows: Sequence[Sequence[str]], *, right: Iterable[int] = ()) -> str:
    """Rows under a head, each column as wide as it must be; those numbered in `right` are aligned there."""
    table = [head, *([clean(cell) for cell in row] for row in rows)]
    widths = [max(len(row[index]) for row in table) for index in range(len(head))]
    aligned = set(right)
    return "\n".join(
        "  ".join(
            cell.rjust(width) if index in aligned else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    )


def duration(ms: int) -> str:
    """A time span, to two units."""
    if ms < 1000:
        return f"{ms} ms"
    if ms < 60_000:
        return f"{ms / 1000:.1f} s"
    parts: list[str] = []
    for unit, size in _UNITS:
        count, ms = divmod(ms, size)
        if count or parts:
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2])


def first_line(text: str) -> str:
    """What comes first, of a text of several lines."""
    return text.partition("\n")[0]


def clean(text: str) -> str:
    """Without control characters."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


# -- parts -------------------------------------------------------------------------------------------------


def _node(node: Node) -> list[str]:
    """A promise in a call tree; then, where there is any, who waits."""
    parts = _parts(node)
    if node["awaits"]:
        parts.append(f"waits for {_some(node['awaits'])}")
    if node["pending_below"]:
        parts.append(f"pending below it: {_some([one['id'] for one in node['pending_below']])}")
    if node["awaited_by"]:
        parts.append(f"awaited by {_some(node['awaited_by'])}")
    if node["listeners"] and node["state"] == "pending":
        parts.append(f"awaited in {_some(node['listeners'])}")
    return [clean(part) for part in parts]


def _parts(one: Brief) -> list[str]:
    """Id, function, state; while it is pending, what that depends on: its task, the time."""
    parts, task = [one["id"], _function(one), _state(one)], one["task"]
    if one["state"] != "pending":
        return parts
    if task is not None:
        parts.append(_task(one) + (f", target {one['target']}" if task["state"] == "pending" else ""))
    if one["timeout_at"] is not None:
        parts.append(f"deadline {_time(one['timeout_at'])}")
    return parts


def _state(one: Brief) -> str:
    verb = "for" if one["state"] == "pending" else "in"
    return f"{one['state']} {verb} {duration(one['duration_ms'])}"


def _function(one: Brief) -> str:
    if one["function"] in (None, RETRY, AGAIN):  # whose version counts the failures or the runs, as its id does
        return one["function"] or OUTSIDE
    return one["function"] + (f" version {one['version']}" if one["version"] != 1 else "")


def _task(one: Brief) -> str:
    task = one["task"]
    if task is None:
        return ""
    by = f" by {task['process']}" if task["process"] else ""
    return f"task {task['state']}{by}, version {task['version']}"


def _reason(one: Brief) -> str:
    return "" if one["task"] is None else one["task"]["reason"] or ""


def _attempts(facts: Shown) -> list[tuple[str, str]]:
    """A line for each attempt that failed, where there was or will be more than one."""
    failed = facts["attempts"]
    if not failed or (len(failed) == 1 and facts["state"] == "rejected"):
        return []
    told = [_attempt(one) for one in failed[-MAX_ATTEMPTS:]]
    left = len(failed) - len(told)
    lines = [f"{left} before these failed too", *told] if left else told
    return list(zip(["attempts", *[""] * (len(lines) - 1)], lines, strict=True))


def _attempt(one: Attempt) -> str:
    due = f"; the next one at {_time(one['next_at'])}" if one["next_at"] else ""
    return f"{one['number']} failed at {_time(one['failed_at'])}, {_error(one['error'])}{due}"


def _below(facts: Shown) -> list[tuple[str, str]]:
    """A line for each promise that a running execution may wait for."""
    task, found = facts["task"], facts["pending_below"]
    if task is None or task["state"] != "acquired" or facts["state"] != "pending":
        return []
    told = ["  ".join(_parts(one)) for one in found[:MAX_BELOW]] or ["nothing that the store knows of is pending"]
    if len(found) > MAX_BELOW:
        told.append(f"and {len(found) - MAX_BELOW} more: `dasync tree {facts['id']}` shows them")
    return list(zip(["below it", *[""] * (len(told) - 1)], told, strict=True))


def _finding(one: Finding) -> str:
    at = f"{one['path']}:{one['line']}:{one['column']}"
    what = clean(f"{at}: {one['code']}: in {one['function']!r} {one['why']}; use {one['use']}")
    return f"{what}\n    {clean(one['source'])}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _error(error: ErrorFacts) -> str:
    return f"{error['type']}: {error['message']}"


def _call(arguments: Arguments) -> str:
    named = [f"{name}={_json(value)}" for name, value in arguments["kwargs"].items()]
    return f"({', '.join([*map(_json, arguments['args']), *named])})"


def _some(ids: Sequence[str]) -> str:
    return ", ".join(ids[:3]) + (f" and {len(ids) - 3} more" if len(ids) > 3 else "")


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _time(moment: str | None) -> str:
    return (moment or "").replace("T", " ").replace("Z", " UTC")


def _last_children(nodes: Sequence[Node]) -> list[bool]:
    """For each node whether it is the last one below its parent."""
    last, seen = [True] * len(nodes), set[int]()
    for index in reversed(range(len(nodes))):
        depth = nodes[index]["depth"]
        last[index] = depth not in seen
        seen = {one for one in seen if one < depth} | {depth}
    return last
