"""The examples as programs of the matrix: their durable functions, with somebody who settles what they wait for.

`03_two_processes.py` and `05_failures.py` are not here: one needs a second process, the other ends its own.
"""

from __future__ import annotations

import asyncio
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import dasync
from dasync.testing.leaves import adopt
from matrix.catalogue import EXAMPLES, program


def _load(name: str) -> ModuleType:
    path = Path(__file__).parents[2] / "examples" / f"{name}.py"
    spec = spec_from_file_location(f"example_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    with patch.object(sys, "argv", [f"{name}.py"]):  # one reads it, and is not to find what pytest was given
        spec.loader.exec_module(module)
    return module


_model, _order, _fibonacci = map(_load, ("01_model", "02_order", "04_fibonacci"))
_human, _asgi, _structured, _saga = map(_load, ("06_human", "07_asgi", "08_structured", "09_saga"))
_batching, _threads, _crowd = map(_load, ("10_batching", "14_threads", "15_crowd"))
PATIENCE_S = 7  # the order's: longer than a schedule without a pause
example = {"plain": False, "kinds": ("external",), "into": EXAMPLES}


@program("", **example)
async def model() -> Any:
    _model.looked.set()
    return await _model.outer()


@program("fulfilled", clocked=True, **example)
async def order() -> Any:
    adopt("order-1-fulfilled", "fulfilled")
    return await _order.process_order("order-1", 100, PATIENCE_S)


@program("", **example)
async def order_without_a_price() -> Any:
    return await _order.process_order("order-2", 0, PATIENCE_S)


@program("", **example)
async def fibonacci() -> Any:
    return await _fibonacci.local(5)


@program("decided", **example)
async def human() -> Any:
    adopt("expense-7-decision", "decided", {"approved": True, "by": "Ada"})
    return await _human.expense(7, "Grace", 1250)


@program("", clocked=True, **example)
async def web() -> Any:
    return await _asgi.fulfill("42")


@program("", clocked=True, **example)
async def structured() -> Any:
    return await _structured.program()


@program("", **example)
async def saga() -> Any:
    try:
        return await _saga.trip("flight", "hotel", "car")
    except LookupError as error:
        return str(error)


@program("", **example)
async def batching() -> Any:
    said = await asyncio.gather(*map(_batching.sign_up, ("Ada", "", "Grace")), return_exceptions=True)
    return [str(one).partition(" is user ")[0] for one in said]


@program("", **example)
async def threads() -> Any:
    return await _threads.report(["tea", "cup"])


@program("open", **example)
async def crowd() -> Any:
    adopt("door", "open")
    return await dasync.all(*map(_crowd.guest, range(3)))
