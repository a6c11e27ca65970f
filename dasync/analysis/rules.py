"""The calls that are hazards in a function that invokes: by their full names, why, and what to write instead.

A call is written here as its name with `()` where it takes no arguments and `(...)` where it takes some. What is no
call by a name, a set's order or an `except`, is in `hazards.py`.
"""

from __future__ import annotations

import re
from typing import NamedTuple

LEAF = "a function of its own, whose result is recorded"


class Rule(NamedTuple):
    """A hazard."""

    code: str
    calls: re.Pattern[str]
    why: str
    use: str
    steers: bool = False
    """It is none where what it gives is only logged."""
    blocks: bool = False
    """It is none in a thread."""


def _calls(*names: str, bare: tuple[str, ...] = ()) -> re.Pattern[str]:
    """Calls of these, and of those that are hazards without arguments only."""
    either = rf"({'|'.join(names)})\((\.\.\.)?\)"
    return re.compile(rf"{either}|({'|'.join(bare)})\(\)" if bare else either)


_CLOCK = _calls(
    r"time\.(time|monotonic|perf_counter|process_time|thread_time)(_ns)?",
    r"datetime\.(datetime|date)\.(now|utcnow|today)",
    r"asyncio\.(get_running_loop|get_event_loop)\(\)\.time",
    r"anyio\.current_time",
    r"django\.utils\.timezone\.(now|localtime|localdate)",
    r"(arrow|pendulum)\.(now|utcnow|today)",
    bare=(r"time\.(localtime|gmtime|ctime)",),
)
_SECRET = _calls(r"secrets\.(?!compare_digest)\w+", r"os\.(getrandom|urandom)", r"random\.SystemRandom")
_RANDOM = _calls(
    r"random\.[a-z]\w*",
    r"numpy\.random\.(?!default_rng)[a-z]\w*",
    bare=(r"random\.Random", r"numpy\.random\.(default_rng|RandomState)"),  # given a seed they draw the same again
)
_REQUESTS = "(delete|get|head|options|patch|post|put|request|send|stream)"
_BLOCKING = _calls(
    r"builtins\.(input|open)",
    r"io\.open",
    r"pathlib\.Path\(\)\.(open|read_bytes|read_text|write_bytes|write_text)",
    rf"(requests|httpx)\.{_REQUESTS}",
    rf"(requests\.(Session|session)|httpx\.Client)\(\)\.{_REQUESTS}",
    r"urllib\.request\.(urlopen|urlretrieve)",
    r"subprocess\.(call|check_call|check_output|getoutput|getstatusoutput|run)",
    r"subprocess\.Popen\(\)\.(communicate|wait)",
    r"os\.(popen|system|wait|waitpid)",
    r"shutil\.(copy\w*|move|rmtree)",
    r"smtplib\.SMTP(_SSL)?",
    r"socket\.(create_connection|getaddrinfo|gethostbyaddr|gethostbyname)",
    r"sqlite3\.connect",
)

_STOPS = "holds up all else on the asyncio loop, and happens again in a replay"
RULES = (
    Rule("clock", _CLOCK, "tells another time in a replay", "dasync.now()", steers=True),
    Rule("random", _SECRET, "draws anew in a replay", LEAF, steers=True),
    Rule("random", _RANDOM, "draws anew in a replay", "dasync.random()", steers=True),
    Rule("uuid", _calls(r"uuid\.uuid[1467]"), "makes another one in a replay", "dasync.uuid4()", steers=True),
    Rule(
        "as-completed",
        _calls(r"asyncio\.as_completed"),
        "goes by the clock, and in a replay in another order",
        "dasync.as_completed(), whose order is recorded",
    ),
    Rule("blocking", _calls(r"time\.sleep"), _STOPS, "await dasync.sleep()", blocks=True),
    Rule("blocking", _BLOCKING, _STOPS, f"{LEAF}; as a plain def it runs in a thread", blocks=True),
)


def rule(call: str) -> Rule | None:
    """The rule about a call; the first one that fits."""
    return next((one for one in RULES if one.calls.fullmatch(call)), None)
