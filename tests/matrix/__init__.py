"""The construct matrix: one small program for each way of writing concurrent Python inside a durable function.

Each calls `leaf(name)` for what others settle, and returns a value in which a wrong order, a loss or a repetition
shows. What is right is not written here: plain asyncio says what a first run comes to, undisturbed runs say what a
resumed one may.
"""

from matrix import anyios, clocks, durables, examples, groups, locks, outsides, tasks
from matrix.catalogue import EXAMPLES, PROGRAMS

__all__ = ["EXAMPLES", "PROGRAMS", "anyios", "clocks", "durables", "examples", "groups", "locks", "outsides", "tasks"]
