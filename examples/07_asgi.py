"""Durable executions behind a web application. Needs `pip install starlette uvicorn`; then

    python examples/07_asgi.py
    curl -X POST http://127.0.0.1:8000/orders/42        # starts the execution, or joins it: twice is once
    curl http://127.0.0.1:8000/orders/42                # how far it is

The EventLoop is a guest of the server's own asyncio loop. Stopped, it hands back what runs; started again, it goes on.
"""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

import dasync

STORE, PORT = sys.argv[1] if sys.argv[1:] else "web.db", int(sys.argv[2]) if sys.argv[2:] else 8000


@dasync.function
async def reserve(order: str) -> str:
    await dasync.sleep(0.1)
    return f"{order} is reserved"


@dasync.function
async def fulfill(order: str) -> str:
    return f"{await reserve(order)} and on its way"


async def start(request: Request) -> JSONResponse:
    order = request.path_params["order"]
    return JSONResponse({"outcome": await fulfill.options(id=f"order-{order}")(order)})


async def look(request: Request) -> JSONResponse:
    page = await request.app.state.loop.search(id_prefix=f"order-{request.path_params['order']}")
    return JSONResponse({found.promise.id: found.promise.state.value for found in page.found})


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    async with dasync.EventLoop(STORE) as app.state.loop:
        yield


app = Starlette(
    lifespan=lifespan,
    routes=[Route("/orders/{order}", start, methods=["POST"]), Route("/orders/{order}", look)],
)

if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=PORT, log_level="warning")
