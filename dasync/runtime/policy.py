"""Retry policies: data, and the pure function that says when to try again.

What is counted, recorded and waited for is the execution's business; this file knows no clock and draws nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dasync.errors import NonDeterminismError, PayloadTooLarge, Terminal, UnserializableValue

MAX_DELAY_S = 366 * 86_400.0  # of one backoff: a longer one is a mistake in the units
MAX_ATTEMPTS = 1_000_000
_FOR_GOOD = (Terminal, UnserializableValue, PayloadTooLarge, NonDeterminismError)  # another attempt gives the same
_KINDS = {
    "never": (), "constant": ("initial",), "linear": ("initial", "step", "cap"),
    "exponential": ("initial", "factor", "cap", "jitter"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Retry:
    """When a function that failed is run again. Made by `exponential`, `linear`, `constant` and `never`.

    Delays are in seconds; `attempts` counts every run, the first included (None: without end). A policy applies to a
    function that invoked nothing durable; an exception, not a crash, is what it counts: a crash is always resumed.

    Example:
        >>> import dasync
        >>> tries = []
        >>> @dasync.function(retry=dasync.Retry.exponential(initial=0.01, attempts=5))
        ... async def flaky() -> str:
        ...     tries.append(1)
        ...     if len(tries) < 3:
        ...         raise OSError("not yet")
        ...     return f"took {len(tries)} attempts"
        >>> dasync.run(flaky)
        'took 3 attempts'
    """

    kind: Literal["never", "constant", "linear", "exponential"]
    initial: float = 0.0
    factor: float = 1.0
    step: float = 0.0
    cap: float = MAX_DELAY_S
    attempts: int | None = None
    jitter: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise ValueError(f"a retry policy is one of {', '.join(_KINDS)}, not {self.kind!r}")
        for name, least, most in (
            ("initial", 0, MAX_DELAY_S), ("step", 0, MAX_DELAY_S), ("cap", 0, MAX_DELAY_S), ("factor", 1, 1_000),
            ("jitter", 0, 1),
        ):  # fmt: skip
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
                raise ValueError(f"Retry: {name} is a number from {least} to {most:g}, not {value!r}")
        count = self.attempts
        if count is not None and (type(count) is not int or not 1 <= count <= MAX_ATTEMPTS):
            raise ValueError(f"Retry: attempts is None or a whole number from 1 to {MAX_ATTEMPTS}, not {count!r}")

    @classmethod
    def exponential(
        cls,
        initial: float = 1.0,
        factor: float = 2.0,
        cap: float = 60.0,
        attempts: int | None = None,
        jitter: float = 0.1,
    ) -> Retry:
        """Wait `initial`, then `factor` times as long each time, at most `cap`; give or take the share `jitter`."""
        return cls("exponential", initial, factor, cap=cap, attempts=attempts, jitter=jitter)

    @classmethod
    def linear(cls, initial: float = 1.0, step: float = 1.0, cap: float = 60.0, attempts: int | None = None) -> Retry:
        """Wait `initial`, then `step` longer each time, at most `cap`."""
        return cls("linear", initial, step=step, cap=cap, attempts=attempts)

    @classmethod
    def constant(cls, delay: float = 1.0, attempts: int | None = None) -> Retry:
        """Wait `delay` each time."""
        return cls("constant", delay, attempts=attempts)

    @classmethod
    def never(cls) -> Retry:
        """One attempt: an exception rejects the promise."""
        return cls("never", attempts=1)

    def delay_s(self, failures: int, draw: float) -> float | None:
        """How long to wait after that many failures; None: no more. `draw` is random, from 0 to 1."""
        if self.kind == "never" or (self.attempts is not None and failures >= self.attempts):
            return None
        try:
            delay = self.initial * float(self.factor) ** (failures - 1) + self.step * (failures - 1)
        except OverflowError:
            delay = self.cap if self.initial else 0.0
        return min(self.cap, min(self.cap, delay) * (1 + self.jitter * (2 * draw - 1)))

    def text(self) -> str:
        """The policy in a word or two, as `parse` reads it."""
        told = [f"{name}={getattr(self, name)!r}" for name in _KINDS[self.kind]]
        return " ".join([self.kind, *told, *([] if self.attempts is None else [f"attempts={self.attempts}"])])

    @classmethod
    def parse(cls, text: str) -> Retry:
        """What `text()` gave. Raises ValueError for anything else."""
        kind, *told = text.split() or [""]
        names = {"attempts", *_KINDS.get(kind, ())}
        values: dict[str, float] = {}
        for one in told:
            name, _, value = one.partition("=")
            if name not in names:
                raise ValueError(f"not a retry policy: {text!r}")
            values[name] = int(value) if name == "attempts" else float(value)
        return cls(kind, **values)  # type: ignore[arg-type]  # checked when it is made


def is_final(error: BaseException) -> bool:
    """Whether no policy has a function run again after that error."""
    if isinstance(error, BaseExceptionGroup):
        return error.subgroup(_FOR_GOOD) is not None or not isinstance(error, Exception)
    return not isinstance(error, Exception) or isinstance(error, _FOR_GOOD)
