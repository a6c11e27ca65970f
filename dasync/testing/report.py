"""A history as one page for a browser: who asked for what and when, and where it stops being linearizable.

The page stands by itself: it asks for no other file and no network. What a program has written into ids, values and
names is data on it, shown as text only; its policy lets nothing run but the one script that is meant to. This file
judges nothing and draws nothing: verdicts come in, `report.js` draws.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections import Counter
from collections.abc import Sequence
from hashlib import sha256
from html import escape
from importlib.resources import files

from dasync.testing.history import Mark, Operation, Plain, line, plain
from dasync.testing.linear import Ruling, Verdict, first_error
from dasync.testing.parts import partition

MAX_SHOWN_CHARS = 8_000  # of one request or response; an acquire may hold a thousand records

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header>
<h1>{title}</h1>
<label>Promise <select id="promise"><option value="">all</option></select></label>
<button id="jump">Jump to first error</button>
<p id="summary">{summary}</p>
</header>
<div id="scroll"><div id="time"><div id="names"></div><svg id="bars"></svg></div></div>
<div id="below">
<section><h2>The longest linearizable prefix</h2><p id="why"></p><ol id="order"></ol></section>
<section><h2 id="line">No operation is chosen</h2><p id="when"></p>
<h2>Request</h2><pre id="request"></pre><h2>Response</h2><pre id="response"></pre></section>
</div>
<script type="application/json" id="data">{data}</script>
<script>{script}</script>
</body>
</html>
"""


def page(history: Sequence[Operation], verdicts: Sequence[Verdict], marks: Sequence[Mark], title: str) -> str:
    """The page. `verdicts` are those of `linear.check` on the same history; operations are numbered from 0 on."""
    ordered = sorted(history, key=lambda operation: operation.number)
    style, script = _file("report.css"), _file("report.js")
    policy = f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; base-uri 'none'"
    return _PAGE.format(
        policy=policy,
        title=escape(title),
        style=style,
        script=script,
        summary=escape(_summary(ordered, verdicts)),
        data=_harmless(_data(ordered, verdicts, marks)),
    )


def _summary(history: Sequence[Operation], verdicts: Sequence[Verdict]) -> str:
    processes = len({operation.process for operation in history})
    rulings = Counter(verdict.ruling for verdict in verdicts)
    counted = ", ".join(f"{rulings[ruling]} {ruling.value}" for ruling in Ruling)
    lost = sum(operation.end is None for operation in history)
    return (
        f"{len(history)} operations by {processes} processes, {lost} of unknown outcome; "
        f"{len(verdicts)} promises: {counted}"
    )


def _data(history: Sequence[Operation], verdicts: Sequence[Verdict], marks: Sequence[Mark]) -> dict[str, Plain]:
    named = [operation.process for operation in history] + [mark.process for mark in marks if mark.process]
    processes = {name: place for place, name in enumerate(sorted(set(named)))}
    places = {operation.number: place for place, operation in enumerate(history)}
    promises = {verdict.promise: place for place, verdict in enumerate(verdicts)}
    concerned: dict[int, set[int]] = {operation.number: set() for operation in history}
    for id, steps in partition(history, {}).items():
        for part in (part for step in steps for part in step.parts):
            if id in promises:
                concerned[part.operation.number].add(promises[id])
    worst = first_error(verdicts)
    first: Plain = None
    if worst is not None:
        first = {
            "promise": promises[worst.promise],
            "number": None if worst.stuck is None else places[worst.stuck.number],
        }
    stuck = [verdict.stuck for verdict in verdicts]
    return {
        "operations": [
            _operation(operation, places, processes, sorted(concerned[operation.number])) for operation in history
        ],
        "processes": list(processes),
        "verdicts": [_verdict(verdict, places) for verdict in verdicts],
        "marks": [
            {"tick": mark.tick, "process": processes.get(mark.process) if mark.process else None, "text": mark.text}
            for mark in marks
        ],
        "stuck": [places[operation.number] for operation in stuck if operation is not None],
        "first": first,
    }


def _operation(
    operation: Operation, places: dict[int, int], processes: dict[str, int], promises: list[int]
) -> dict[str, Plain]:
    return {
        "number": places[operation.number],
        "process": processes[operation.process],
        "line": line(operation),
        "begin": operation.begin,
        "end": operation.end,
        "until": operation.until,
        "batch": operation.batch,
        "promises": list(promises),
        "request": _shown(operation.command),
        "response": _shown(operation.reply),
    }


def _verdict(verdict: Verdict, places: dict[int, int]) -> dict[str, Plain]:
    return {
        "promise": verdict.promise,
        "ruling": verdict.ruling.value,
        "why": verdict.why,
        "prefix": [places[operation.number] for operation in verdict.prefix],
        "stuck": None if verdict.stuck is None else places[verdict.stuck.number],
    }


def _shown(value: object) -> str:
    text = json.dumps(plain(value), indent=1, ensure_ascii=False)
    return text if len(text) <= MAX_SHOWN_CHARS else f"{text[:MAX_SHOWN_CHARS]}\n... {len(text)} characters in all"


def _harmless(data: dict[str, Plain]) -> str:
    """JSON that ends no element: whatever HTML would read as markup is written as an escape of JSON's own."""
    text = json.dumps(data, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _file(name: str) -> str:
    return files("dasync.testing").joinpath(name).read_text("utf-8")


def _hash(text: str) -> str:
    """The text as a policy of content names it."""
    return f"sha256-{b64encode(sha256(text.encode()).digest()).decode()}"
