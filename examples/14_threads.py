"""Code that blocks: a plain `def` runs in a thread, and waits there for what it invokes as other code awaits.

Run it with `python examples/14_threads.py`: three digests are made at the same time. `report` gives a promise back
without awaiting it, and settles as that one does.
"""

import hashlib
import time

import dasync


@dasync.function
def digest(text: str) -> str:
    time.sleep(0.1)  # a driver, a parser, a subprocess
    return hashlib.sha256(text.encode()).hexdigest()[:8]


@dasync.function
def digests(texts: list[str]) -> dict[str, str]:
    promises = [digest(text) for text in texts]
    return {text: promise.wait() for text, promise in zip(texts, promises, strict=True)}


@dasync.function
async def report(texts: list[str]) -> dasync.Promise[dict[str, str]]:
    return digests(texts)


async def main() -> None:
    for text, digested in (await report(["tea", "cup", "pot"])).items():
        print(text, digested)


if __name__ == "__main__":
    dasync.run(main)
