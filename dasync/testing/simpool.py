"""Functions with `process=True`, in a simulation: what the process of a pool would do, at a tick of the world.

Arguments, results and errors go through bytes as they do there. The function runs in this process: one that ends it, or
that counts on being alone, is not what this tries.
"""

from __future__ import annotations

import asyncio

from dasync.core import codec, failure
from dasync.runtime.function import Function
from dasync.runtime.registry import error_classes

MAX_PAYLOAD = 2 * 2**20


class SimPool:
    """In place of the pool of one EventLoop."""

    async def run(self, function: Function[..., object], id: str, param: bytes) -> object:
        """What the function returns for those arguments, or raise what it raises."""
        raw = await asyncio.get_running_loop().run_in_executor(None, _call, function, param)
        if isinstance(raw, tuple):
            raise failure.decode_error(raw[0], error_classes())
        return codec.decode(raw, function.result)

    def close(self) -> None:
        """There is nothing to end."""


def _call(function: Function[..., object], param: bytes) -> bytes | tuple[bytes]:
    try:
        args, kwargs = function.shape.decode(param)
        return codec.encode_result(function.fn(*args, **kwargs), function.result, MAX_PAYLOAD)[0]
    except Exception as error:
        return (failure.encode_error(error, MAX_PAYLOAD),)
