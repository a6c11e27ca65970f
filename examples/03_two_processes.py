"""A function that another process runs: `on=` names the group, and any worker of that group takes the invocation.

The two processes share nothing but the SQLite file. The caller here starts the worker itself, as you would in a
second terminal. Run it with `python examples/03_two_processes.py`.
"""

import os
import subprocess
import sys
from tempfile import TemporaryDirectory

import dasync


@dasync.function(on="kitchen")
async def cook(dish: str) -> str:
    return f"{dish} from process {os.getpid()}"


async def order() -> None:
    print(f"ordered in process {os.getpid()}", flush=True)
    for dish in await dasync.all(cook("soup"), cook("noodles")):
        print(dish)


def main() -> None:
    with TemporaryDirectory() as folder:
        store = f"{folder}/restaurant.db"
        worker = subprocess.Popen(
            [sys.executable, "-m", "dasync", "worker", __file__, "--group", "kitchen", "--store", store]
        )
        try:
            dasync.run(order, store=store)
        finally:
            worker.terminate()  # it drains: finishes what it runs, hands back the rest
            worker.wait()


if __name__ == "__main__":
    main()
