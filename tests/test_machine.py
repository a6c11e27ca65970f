"""The law: every (state, command) pair as a table, the questions that others got wrong, small worlds in full."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import get_args

import pytest
from clocks import T0
from worlds import FUNCTIONS, LEASE, World, acquire, claim, create, fulfill, join, resolve

from dasync.core import ids
from dasync.core import protocol as p
from dasync.core.model import SETTLED, CallbackRecord, ListenerRecord, State, TaskRecord, TaskState
from dasync.core.protocol import Status

SOON = T0 + 500  # a deadline before any lease ends
NEVER = T0 + 1_000_000

# -- the table ---------------------------------------------------------------------------------------------
#
# A cell reads `status state`: the answer, and the state of the table's subject afterwards. `.` says more than
# the same state again: not one row of the store has changed.

PROMISES = """
                  | absent       | pending      | overdue      | resolved     | rejected     | canceled     | timedout     | timer        | rung
get               | 404 .        | 200 .        | 200 timedout | 200 .        | 200 .        | 200 .        | 200 .        | 200 .        | 200 resolved
create            | 201 pending  | 200 .        | 200 timedout | 200 .        | 200 .        | 200 .        | 200 .        | 200 .        | 200 resolved
create_targeted   | 201 pending  | 200 .        | 200 timedout | 200 .        | 200 .        | 200 .        | 200 .        | 200 .        | 200 resolved
create_timer      | 201 pending  | 200 .        | 200 timedout | 200 .        | 200 .        | 200 .        | 200 .        | 200 .        | 200 resolved
create_too_late   | 201 timedout | 200 .        | 200 timedout | 200 .        | 200 .        | 200 .        | 200 .        | 200 .        | 200 resolved
create_late_timer | 201 resolved | 200 .        | 200 timedout | 200 .        | 200 .        | 200 .        | 200 .        | 200 .        | 200 resolved
create_settled    | 201 rejected | 200 .        | 200 timedout | 200 .        | 200 .        | 200 .        | 200 .        | 200 .        | 200 resolved
create_awaited    | 201 pending  | 409 .        | 409 timedout | 409 .        | 409 .        | 409 .        | 409 .        | 409 .        | 409 resolved
create_heard      | 201 pending  | 409 .        | 409 timedout | 409 .        | 409 .        | 409 .        | 409 .        | 409 .        | 409 resolved
resolve           | 404 .        | 200 resolved | 200 timedout | 200 .        | 200 .        | 200 .        | 200 .        | 200 resolved | 200 resolved
reject            | 404 .        | 200 rejected | 200 timedout | 200 .        | 200 .        | 200 .        | 200 .        | 200 rejected | 200 resolved
cancel            | 404 .        | 200 canceled | 200 timedout | 200 .        | 200 .        | 200 .        | 200 .        | 200 canceled | 200 resolved
cancel_all        | 404 .        | 200 canceled | 200 timedout | 200 .        | 200 .        | 200 .        | 200 .        | 200 canceled | 200 resolved
call_back         | 404 .        | 201 pending  | 200 timedout | 200 resolved | 200 rejected | 200 canceled | 200 timedout | 201 pending  | 200 resolved
listen            | 404 .        | 200 pending  | 200 timedout | 200 .        | 200 .        | 200 .        | 200 .        | 200 pending  | 200 resolved
fence_create      | 201 pending  | 200 .        | 200 timedout | 200 .        | 200 .        | 200 .        | 200 .        | 200 .        | 200 resolved
fence_settle      | 404 .        | 200 resolved | 200 timedout | 200 .        | 200 .        | 200 .        | 200 .        | 200 resolved | 200 resolved
fence_cancel      | 404 .        | 200 canceled | 200 timedout | 200 .        | 200 .        | 200 .        | 200 .        | 200 canceled | 200 resolved
fence_again       | 404 .        | 422 .        | 200 timedout | 200 .        | 200 .        | 200 .        | 200 .        | 422 .        | 200 resolved
get_claimed       | 404 .        | 200 .        | 200 timedout | 200 .        | 200 .        | 200 .        | 200 .        | 200 .        | 200 resolved
suspend           | 422 .        | 200 pending  | 300 .        | 300 .        | 300 .        | 300 .        | 300 .        | 200 pending  | 300 .
task_get          | 404 .        | 404 .        | 404 .        | 404 .        | 404 .        | 404 .        | 404 .        | 404 .        | 404 .
task_create       | 201 pending  | 422 .        | 422 timedout | 422 .        | 422 .        | 422 .        | 422 .        | 422 .        | 422 resolved
task_create_heard | 201 pending  | 409 .        | 409 timedout | 409 .        | 409 .        | 409 .        | 409 .        | 409 .        | 409 resolved
fulfill           | 404 .        | 404 .        | 404 .        | 404 .        | 404 .        | 404 .        | 404 .        | 404 .        | 404 .
release           | 404 .        | 404 .        | 404 .        | 404 .        | 404 .        | 404 .        | 404 .        | 404 .        | 404 .
halt              | 404 .        | 404 .        | 404 .        | 404 .        | 404 .        | 404 .        | 404 .        | 404 .        | 404 .
continue          | 404 .        | 404 .        | 404 .        | 404 .        | 404 .        | 404 .        | 404 .        | 404 .        | 404 .
tick              | 200 .        | 200 .        | 200 timedout | 200 .        | 200 .        | 200 .        | 200 .        | 200 .        | 200 resolved
"""  # noqa: E501  # the table of promises: the subject is `x`, which has no target

PROMISE_STATES: dict[str, tuple[p.Command, ...]] = {
    "absent": (),
    "pending": (create("x", timeout_at=NEVER),),
    "overdue": (create("x", timeout_at=SOON),),
    "resolved": (create("x", timeout_at=SOON), resolve("x")),
    "rejected": (create("x", timeout_at=SOON), p.PromiseSettle("x", State.REJECTED)),
    "canceled": (create("x", timeout_at=SOON), p.PromiseSettle("x", State.CANCELED)),
    "timedout": (create("x", timeout_at=T0 - 1),),
    "timer": (create("x", timer=True, timeout_at=NEVER),),
    "rung": (create("x", timer=True, timeout_at=SOON),),
}

PROMISE_COMMANDS: dict[str, p.Command] = {
    "get": p.PromiseGet("x"),
    "create": create("x"),
    "create_targeted": create("x", "g"),
    "create_timer": create("x", timer=True, timeout_at=NEVER),
    "create_too_late": create("x", "g", timeout_at=SOON),
    "create_late_timer": create("x", timer=True, timeout_at=SOON),
    "create_settled": create("x", state=State.REJECTED, value=b"e"),
    "create_awaited": create("x", awaiter="waiter"),
    "create_heard": create("x", listener="me"),
    "resolve": resolve("x"),
    "reject": p.PromiseSettle("x", State.REJECTED, b"e"),
    "cancel": p.PromiseSettle("x", State.CANCELED),
    "cancel_all": p.PromiseCancel("x", b"why"),
    "call_back": p.RegisterCallback("x", "waiter"),
    "listen": p.RegisterListener("x", "me"),
    "fence_create": p.TaskFence(claim("waiter"), create("x")),
    "fence_settle": p.TaskFence(claim("waiter"), resolve("x")),
    "fence_cancel": p.TaskFence(claim("waiter"), p.PromiseCancel("x")),
    "fence_again": p.TaskFence(claim("waiter"), p.PromiseAgain("x:@1", b"")),
    "get_claimed": p.PromiseGet("x", claim("waiter")),
    "suspend": p.TaskSuspend(claim("waiter"), ("x",)),
    "task_get": p.TaskGet("x"),
    "task_create": p.TaskCreate("me", create("x", "g")),
    "task_create_heard": p.TaskCreate("me", create("x", "g", listener="me")),
    "fulfill": fulfill(claim("x")),
    "release": p.TaskRelease(claim("x")),
    "halt": p.TaskHalt("x"),
    "continue": p.TaskContinue("x"),
    "tick": p.Tick(),
}

TASKS = """
                   | absent        | pending       | mine          | again         | theirs        | crashed       | overdue       | suspended     | halted        | fulfilled
task_get           | 404 .         | 200 .         | 200 .         | 200 .         | 200 .         | 200 .         | 200 .         | 200 .         | 200 .         | 200 .
task_create        | 201 acquired  | 200 acquired  | 409 .         | 409 .         | 409 .         | 409 .         | 200 fulfilled | 409 .         | 409 .         | 200 .
task_acquire       | 200 .         | 200 acquired  | 200 .         | 200 .         | 200 .         | 409 .         | 200 .         | 200 .         | 200 .         | 200 .
fence_create       | 404 .         | 409 .         | 201 acquired  | 409 .         | 409 .         | 409 .         | 409 fulfilled | 409 .         | 409 .         | 409 .
fence_settle       | 404 .         | 409 .         | 200 acquired  | 409 .         | 409 .         | 409 .         | 409 fulfilled | 409 .         | 409 .         | 409 .
fence_cancel       | 404 .         | 409 .         | 200 acquired  | 409 .         | 409 .         | 409 .         | 409 fulfilled | 409 .         | 409 .         | 409 .
fence_again        | 404 .         | 409 .         | 201 acquired  | 409 .         | 409 .         | 409 .         | 409 fulfilled | 409 .         | 409 .         | 409 .
get_claimed        | 404 .         | 200 .         | 200 .         | 200 .         | 200 .         | 200 .         | 200 fulfilled | 200 .         | 200 .         | 200 .
suspend            | 404 .         | 409 .         | 200 suspended | 409 .         | 409 .         | 409 .         | 200 suspended | 200 .         | 409 .         | 409 .
suspend_on_settled | 404 .         | 409 .         | 300 .         | 409 .         | 409 .         | 409 .         | 300 .         | 200 .         | 409 .         | 409 .
suspend_on_nothing | 404 .         | 409 .         | 422 .         | 409 .         | 409 .         | 409 .         | 422 .         | 200 .         | 409 .         | 409 .
fulfill            | 404 .         | 409 .         | 200 fulfilled | 409 .         | 409 .         | 409 .         | 200 fulfilled | 409 .         | 409 .         | 200 .
release            | 404 .         | 409 .         | 200 pending   | 409 .         | 409 .         | 409 .         | 200 pending   | 409 .         | 409 .         | 409 .
halt               | 404 .         | 200 halted    | 200 halted    | 200 halted    | 200 halted    | 200 halted    | 200 halted    | 200 halted    | 200 .         | 409 .
continue           | 404 .         | 409 .         | 409 .         | 409 .         | 409 .         | 409 .         | 409 .         | 409 .         | 200 pending   | 409 .
get                | 404 .         | 200 .         | 200 .         | 200 .         | 200 .         | 200 .         | 200 fulfilled | 200 .         | 200 .         | 200 .
create             | 201 pending   | 200 .         | 200 .         | 200 .         | 200 .         | 200 .         | 200 fulfilled | 200 .         | 200 .         | 200 .
settle             | 404 .         | 200 fulfilled | 200 fulfilled | 200 fulfilled | 200 fulfilled | 200 fulfilled | 200 fulfilled | 200 fulfilled | 200 fulfilled | 200 .
cancel             | 404 .         | 200 fulfilled | 200 fulfilled | 200 fulfilled | 200 fulfilled | 200 fulfilled | 200 fulfilled | 200 fulfilled | 200 fulfilled | 200 .
call_back_from     | 404 .         | 201 pending   | 201 acquired  | 201 acquired  | 201 acquired  | 201 pending   | 200 fulfilled | 201 suspended | 201 halted    | 200 fulfilled
call_back_to       | 422 .         | 201 pending   | 201 acquired  | 201 acquired  | 201 acquired  | 201 pending   | 201 acquired  | 200 .         | 201 halted    | 200 .
call_back_at_once  | 422 .         | 200 pending   | 200 acquired  | 200 acquired  | 200 acquired  | 200 pending   | 200 acquired  | 200 pending   | 200 .         | 200 .
create_awaited     | 422 .         | 201 pending   | 201 acquired  | 201 acquired  | 201 acquired  | 201 pending   | 201 acquired  | 201 suspended | 201 halted    | 422 .
listen             | 404 .         | 200 pending   | 200 acquired  | 200 acquired  | 200 acquired  | 409 .         | 200 fulfilled | 200 suspended | 200 halted    | 200 .
join               | 409 .         | 409 .         | 409 .         | 409 .         | 409 .         | 201 pending   | 409 .         | 409 .         | 409 .         | 409 .
heartbeat          | 200 absent    | 200 pending   | 200 acquired  | 200 acquired  | 200 acquired  | 409 .         | 200 acquired  | 200 suspended | 200 halted    | 200 fulfilled
leave              | 200 absent    | 200 pending   | 200 pending   | 200 pending   | 200 acquired  | 200 .         | 200 pending   | 200 suspended | 200 halted    | 200 fulfilled
receive            | 200 .         | 200 .         | 200 .         | 200 .         | 200 .         | 200 .         | 200 .         | 200 .         | 200 .         | 200 .
tick               | 200 .         | 200 .         | 200 .         | 200 .         | 200 .         | 200 .         | 200 fulfilled | 200 .         | 200 .         | 200 .
"""  # noqa: E501  # the table of tasks: the subject is `t`, each claim says version 1 and process `me`

TASK_STATES: dict[str, tuple[p.Command, ...]] = {
    "absent": (),
    "pending": (create("t", "g"),),
    "mine": (create("t", "g"), acquire()),
    "again": (create("t", "g"), acquire(), p.TaskRelease(claim()), acquire()),
    "theirs": (create("t", "g"), acquire("other")),
    "crashed": (create("t", "g"), acquire(), p.ProcessLeave("me", ran=(ids.mark("t"),))),
    "overdue": (create("t", "g", timeout_at=SOON), acquire()),
    "suspended": (create("t", "g"), acquire(), p.TaskSuspend(claim(), ("x",))),
    "halted": (create("t", "g"), acquire(), p.TaskHalt("t")),
    "fulfilled": (create("t", "g"), acquire(), fulfill(claim())),
}

TASK_COMMANDS: dict[str, p.Command] = {
    "task_get": p.TaskGet("t"),
    "task_create": p.TaskCreate("me", create("t", "g")),
    "task_acquire": acquire(),
    "fence_create": p.TaskFence(claim(), create("t:0")),
    "fence_settle": p.TaskFence(claim(), resolve("y")),
    "fence_cancel": p.TaskFence(claim(), p.PromiseCancel("y")),
    "fence_again": p.TaskFence(claim(), p.PromiseAgain("t:@1", b"")),
    "get_claimed": p.PromiseGet("t", claim()),
    "suspend": p.TaskSuspend(claim(), ("x",)),
    "suspend_on_settled": p.TaskSuspend(claim(), ("x", "done")),
    "suspend_on_nothing": p.TaskSuspend(claim(), ("x", "unheard-of")),
    "fulfill": fulfill(claim()),
    "release": p.TaskRelease(claim()),
    "halt": p.TaskHalt("t"),
    "continue": p.TaskContinue("t"),
    "get": p.PromiseGet("t"),
    "create": create("t", "g"),
    "settle": resolve("t"),
    "cancel": p.PromiseCancel("t"),
    "call_back_from": p.RegisterCallback("t", "waiter"),
    "call_back_to": p.RegisterCallback("x", "t"),
    "call_back_at_once": p.RegisterCallback("done", "t"),
    "create_awaited": create("new", awaiter="t"),
    "listen": p.RegisterListener("t", "me"),
    "join": join(),
    "heartbeat": p.ProcessHeartbeat("me"),
    "leave": p.ProcessLeave("me"),
    "receive": p.Receive("me"),
    "tick": p.Tick(),
}

PROCESSES = """
               | absent     | alive      | renewed    | holding    | told
join           | 201 alive  | 409 .      | 409 .      | 409 .      | 409 .
heartbeat      | 409 .      | 200 alive  | 200 alive  | 200 alive  | 200 alive
leave          | 200 .      | 200 absent | 200 absent | 200 absent | 200 absent
leave_silent   | 200 .      | 200 absent | 200 .      | 200 absent | 200 absent
receive        | 200 .      | 200 .      | 200 .      | 200 .      | 200 .
acknowledge    | 200 .      | 200 .      | 200 .      | 200 .      | 200 alive
tick           | 200 .      | 200 .      | 200 .      | 200 .      | 200 .
acquire        | 409 .      | 200 alive  | 200 alive  | 200 alive  | 200 alive
acquire_alien  | 409 .      | 422 .      | 422 .      | 422 .      | 422 .
task_create    | 409 .      | 201 alive  | 201 alive  | 201 alive  | 201 alive
create_heard   | 422 .      | 201 alive  | 201 alive  | 201 alive  | 201 alive
listen         | 409 .      | 200 alive  | 200 alive  | 200 alive  | 200 alive
listen_settled | 200 .      | 200 .      | 200 .      | 200 .      | 200 .
fence          | 409 .      | 409 .      | 409 .      | 201 alive  | 409 .
suspend        | 409 .      | 409 .      | 409 .      | 200 alive  | 409 .
fulfill        | 409 .      | 409 .      | 409 .      | 200 alive  | 409 .
release        | 409 .      | 409 .      | 409 .      | 200 alive  | 409 .
"""  # the table of processes: the subject is `me`

PROCESS_STATES: dict[str, tuple[p.Command, ...]] = {
    "absent": (),
    "alive": (join(),),
    "renewed": (join(), p.ProcessHeartbeat("me")),
    "holding": (join(), acquire(limit=1), p.RegisterListener("x", "me")),
    "told": (join(), create("news", listener="me"), resolve("news")),
}

PROCESS_COMMANDS: dict[str, p.Command] = {
    "join": join(),
    "heartbeat": p.ProcessHeartbeat("me"),
    "leave": p.ProcessLeave("me"),
    "leave_silent": p.ProcessLeave("me", T0),
    "receive": p.Receive("me"),
    "acknowledge": p.Receive("me", ("news",)),
    "tick": p.Tick(),
    "acquire": acquire("me", "g", "g/me-name"),
    "acquire_alien": acquire("me", "g", "elsewhere"),
    "task_create": p.TaskCreate("me", create("new", "g")),
    "create_heard": create("new", listener="me"),
    "listen": p.RegisterListener("y", "me"),
    "listen_settled": p.RegisterListener("done", "me"),
    "fence": p.TaskFence(claim("t"), create("t:0")),
    "suspend": p.TaskSuspend(claim("t"), ("x",)),
    "fulfill": fulfill(claim("t")),
    "release": p.TaskRelease(claim("t")),
}


def _promise_world(state: str) -> World:
    world = World(join("me", lease_ms=2 * LEASE), create("waiter", "g"), acquire(), *PROMISE_STATES[state])
    world.now = SOON
    return world


def _task_world(state: str) -> World:
    world = World(join(), join("other", lease_ms=3 * LEASE), create("waiter", "h"), create("x"), create("y"))
    world.do(create("done"), resolve("done"), *TASK_STATES[state])
    world.now = SOON
    return world


def _process_world(state: str) -> World:
    world = World(create("t", "g"), create("u", "g"), create("x"), create("y"), create("done"), resolve("done"))
    if state != "absent":
        world.do(*PROCESS_STATES[state])
    world.now = SOON
    return world


def _promise_state(world: World) -> str:
    found = world.rows.promise("x")
    return found.state.value if found else "absent"


def _task_state(world: World) -> str:
    found = world.rows.task("t")
    return found.state.value if found else "absent"


def _process_state(world: World) -> str:
    found = world.rows.process("me")
    return "absent" if found is None else "alive"


def _cells(table: str) -> dict[tuple[str, str], str]:
    """(state, command) to the cell of a table."""
    head, *lines = ([cell.strip() for cell in line.split("|")] for line in table.strip("\n").splitlines())
    return {(state, line[0]): cell for line in lines for state, cell in zip(head[1:], line[1:], strict=True)}


Look = Callable[[World], str]
Make = Callable[[str], World]
TABLES: dict[str, tuple[str, dict[str, tuple[p.Command, ...]], dict[str, p.Command], Make, Look]] = {
    "promise": (PROMISES, PROMISE_STATES, PROMISE_COMMANDS, _promise_world, _promise_state),
    "task": (TASKS, TASK_STATES, TASK_COMMANDS, _task_world, _task_state),
    "process": (PROCESSES, PROCESS_STATES, PROCESS_COMMANDS, _process_world, _process_state),
}
PAIRS = [(subject, *pair) for subject, table in TABLES.items() for pair in _cells(table[0])]


@pytest.mark.parametrize(("subject", "state", "command"), PAIRS, ids=map("-".join, PAIRS))
def test_pair(subject: str, state: str, command: str) -> None:
    """Each command in each state answers and does what the table says."""
    table, _, commands, make, look = TABLES[subject]
    status, expected = _cells(table)[state, command].split()
    world = make(state)
    before = world.snapshot()
    reply = world.do(commands[command])
    became = "." if world.snapshot() == before else look(world)
    assert (reply.status, became) == (int(status), expected), reply.reason
    assert bool(reply.reason) is (reply.status >= Status.INVALID), "a refusal says why, and nothing else does"


def test_the_table_is_complete() -> None:
    """Every kind of command meets every state of what it names; no cell is missing."""
    for subject, (table, states, commands, _, _) in TABLES.items():
        assert _cells(table).keys() == {(state, command) for state in states for command in commands}, subject
    kinds = {
        subject: {type(command) for command in commands.values()} for subject, (_, _, commands, _, _) in TABLES.items()
    }
    assert kinds["task"] == set(get_args(p.Command)), "of tasks the table holds every kind there is"
    of_processes = {p.ProcessJoin, p.ProcessHeartbeat, p.ProcessLeave, p.Receive, p.TaskAcquire}
    assert kinds["promise"] == set(get_args(p.Command)) - of_processes, "these name no promise"
    assert kinds["process"] >= of_processes
    assert {state.value for state in State} <= PROMISE_STATES.keys()
    assert {state.value for state in TaskState} - {"acquired"} <= TASK_STATES.keys(), "acquired has five columns"


def test_a_refusal_of_a_claim_is_the_same_for_every_command_under_it() -> None:
    """Fence, suspend, fulfill and release stand behind one guard."""
    under = ("fence_create", "fence_settle", "suspend", "fulfill", "release")
    for state in ("again", "theirs", "crashed", "halted", "pending"):
        replies = {_task_world(state).do(TASK_COMMANDS[name]).reason for name in under}
        assert len(replies) == 1


# -- the questions in the head of machine.py -----------------------------------------------------------------


def test_every_deadline_is_armed() -> None:
    """A tick settles every promise whose deadline has passed: targeted or not, timer, child, root."""
    world = World(join(), create("root", "g", timeout_at=NEVER), acquire())
    kinds = {
        "targeted": create("targeted", "h", timeout_at=SOON),
        "external": create("external", timeout_at=SOON),
        "timer": create("timer", timer=True, timeout_at=SOON),
        "root:0": p.TaskFence(claim("root"), create("root:0", timeout_at=SOON)),
        "root:1": p.TaskFence(claim("root"), create("root:1", timer=True, timeout_at=SOON)),
    }
    world.do(*kinds.values())
    assert world.rows.next_due() == SOON
    world.now = SOON - 1
    assert world.do(p.Tick()).settled == ()
    world.now = SOON
    settled = world.do(p.Tick()).settled
    assert {promise.id for promise in settled} == kinds.keys()
    assert world.states(kinds) == ["timedout", "timedout", "resolved", "timedout", "resolved"]
    assert {promise.settled_at for promise in settled} == {SOON}
    assert world.task("targeted").state is TaskState.FULFILLED
    assert world.rows.next_due() == NEVER, "the others' deadlines are disarmed"


def test_timeout_wakes_awaiter_of_untargeted_promise() -> None:
    """An execution that waits for something outside is resumed when its time runs out."""
    world = World(join(), create("t", "g"), acquire(), create("x", timeout_at=SOON))
    world.do(p.TaskSuspend(claim(), ("x",)))
    world.now = SOON
    world.do(p.Tick())
    assert world.promise("x").state is State.TIMEDOUT
    assert world.task("t").state is TaskState.PENDING
    assert world.rung == ("bell:me",)
    assert not world.rows.callbacks("x")


def test_no_dispatch_for_settled_promise() -> None:
    """Born settled, settled from outside or timed out: there is nothing to acquire and no doorbell is rung."""
    world = World(join())
    world.do(create("late", "g", timeout_at=T0))
    assert (world.rung, world.task("late").state) == ((), TaskState.FULFILLED)
    world.do(create("outside", "g"), resolve("outside"))
    world.do(create("due", "g", timeout_at=SOON))
    world.now = SOON
    assert world.do(acquire()).acquired == (), "a due one is left to the tick"
    world.do(p.Tick())
    assert world.rung == ()
    assert world.do(acquire()).acquired == ()
    assert {world.task(id).state for id in ("late", "outside", "due")} == {TaskState.FULFILLED}


def test_a_halt_keeps_its_reason_until_it_is_over() -> None:
    """A second halt changes nothing; to continue, or a settlement of the promise, takes the reason away."""
    world = World(*TASK_STATES["mine"])
    assert world.do(p.TaskHalt("t", "first")).task == world.task("t")
    world.do(p.TaskHalt("t", "second"))
    assert (world.task("t").state, world.task("t").reason) == (TaskState.HALTED, "first")
    world.do(p.TaskContinue("t"))
    assert (world.task("t").state, world.task("t").reason) == (TaskState.PENDING, "")
    world.do(p.TaskHalt("t", "third"))
    assert world.task("t").reason == "third"
    world.do(resolve("t"))
    assert (world.task("t").state, world.task("t").reason) == (TaskState.FULFILLED, "")


def test_a_reason_is_text_of_limited_length() -> None:
    """What no row could hold is refused where it is said; `cut_reason` makes any text fit, whole characters of it."""
    for bad in ("x" * (p.MAX_REASON_BYTES + 1), "\udc80"):
        with pytest.raises(ValueError, match="a reason is text"):
            p.TaskHalt("t", bad)
        assert p.TaskHalt("t", p.cut_reason(bad)).reason in ("x" * p.MAX_REASON_BYTES, "\\udc80")
    assert p.cut_reason("x" + "ä" * p.MAX_REASON_BYTES) == "x" + "ä" * (p.MAX_REASON_BYTES // 2 - 1)


@pytest.mark.parametrize("end", [resolve("t"), p.TaskHalt("t")], ids=["settled", "halted"])
def test_resume_of_dead_awaiter_changes_nothing(end: p.Command) -> None:
    """What was awaited settles after its awaiter was settled or halted: the callback goes, nothing comes of it."""
    world = World(join(), create("t", "g"), create("x"), acquire(), p.TaskSuspend(claim(), ("x",)), end)
    dead = world.task("t")
    world.do(resolve("x"))
    assert world.task("t") == dead
    assert world.rung == ()
    assert not world.rows.callbacks("x")


def test_read_past_deadline_shows_verdict() -> None:
    """Between the deadline and the tick nobody sees the promise pending, and the verdict is written at the read."""
    world = World(create("x", timeout_at=SOON), create("timer", timer=True, timeout_at=SOON))
    world.now = SOON - 1
    assert [world.do(p.PromiseGet(id)).promise.state for id in ("x", "timer")] == [State.PENDING] * 2
    world.now = SOON + 7
    for id, verdict in (("x", State.TIMEDOUT), ("timer", State.RESOLVED)):
        shown = world.do(p.PromiseGet(id)).promise
        assert shown is not None
        assert (shown.state, shown.settled_at, shown.value) == (verdict, SOON, None)
        assert shown == world.promise(id)


def test_settle_past_deadline_times_out() -> None:
    """Settling after the deadline and before the tick is answered with the verdict; the value is not stored."""
    world = World(join(), create("x", timeout_at=SOON), create("t", "g", timeout_at=SOON), acquire())
    world.now = SOON
    for late in (resolve("x"), fulfill(claim())):
        settled = world.do(late).promise
        assert settled is not None
        assert (settled.state, settled.value) == (State.TIMEDOUT, None)


def test_callback_on_promise_settled_in_batch() -> None:
    """A suspend or a callback that shares its batch with the settlement is answered at once, not parked for ever."""
    world = World(join(), create("t", "g"), create("u", "g"), acquire(), create("x"), create("y"))
    assert world.do(resolve("x"), p.TaskSuspend(claim(), ("x",))).status is Status.RUN_AGAIN
    world.do(p.TaskSuspend(claim("u"), ("y",)), resolve("y"))
    assert world.task("u").state is TaskState.PENDING
    world.do(create("z"))
    assert world.do(p.TaskSuspend(claim(), ("z",))).status is Status.OK
    world.do(create("late"), resolve("late"), p.RegisterCallback("late", "t"))
    assert world.task("t").state is TaskState.PENDING


def test_duplicate_suspend_is_idempotent() -> None:
    """A suspend whose answer was lost is answered alike; one that comes after the resume is refused."""
    world = World(join(), create("t", "g"), create("x"), create("y"), acquire())
    suspend = p.TaskSuspend(claim(), ("x", "y", "x"))
    first = world.do(suspend)
    after = world.snapshot()
    assert world.do(suspend) == first
    assert world.snapshot() == after
    assert after.callbacks == {CallbackRecord("x", "t"), CallbackRecord("y", "t")}
    world.do(resolve("x"), acquire())
    assert world.do(suspend).status is Status.CONFLICT, "version 2 runs"
    again = p.TaskSuspend(claim(version=2), ("y",))
    assert world.do(again).status is Status.OK, "what is registered already is not registered twice"


# -- and more facts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settled", [False, True], ids=["pending", "settled"])
@pytest.mark.parametrize("waiter", [{"awaiter": "t"}, {"listener": "me"}], ids=["awaiter", "listener"])
def test_create_with_waiter_on_an_existing_promise_stores_nothing(waiter: dict[str, str], settled: bool) -> None:
    """Promise and waiter come into being together or not at all; under a fence and for a task too."""
    world = World(join(), create("t", "g"), acquire(), create("x"), create("v", "g"))
    if settled:
        world.do(resolve("x"), resolve("v"))
    before = world.snapshot()
    born = create("x", **waiter)
    for command in (born, p.TaskFence(claim(), born), p.TaskCreate("me", create("v", "g", **waiter))):
        reply = world.do(command)
        assert reply.status is Status.CONFLICT
        assert reply.promise is not None, "the answer shows what is there"
    assert world.snapshot() == before


def test_create_with_waiter_is_whole() -> None:
    """Where the promise is new, promise, task and waiter come with it."""
    world = World(join(), create("t", "g"), acquire(), create("x", "g", awaiter="t"), create("y", listener="me"))
    assert world.rows.callbacks("x") == [CallbackRecord("x", "t")]
    assert world.rows.listeners("y") == [ListenerRecord("y", "me", False)]
    assert world.task("x").state is TaskState.PENDING


@pytest.mark.parametrize("waiter", [{"awaiter": "nobody"}, {"awaiter": "done"}, {"listener": "nobody"}])
def test_a_promise_is_not_born_for_a_waiter_that_cannot_wait(waiter: dict[str, str]) -> None:
    """An unknown or fulfilled awaiter, an unknown listener: neither promise nor waiter is stored."""
    world = World(create("done", "g"), resolve("done"))
    before = world.snapshot()
    assert world.do(create("x", **waiter)).status is Status.UNPROCESSABLE
    assert world.snapshot() == before


def test_born_settled() -> None:
    """A child recorded as done is written once, nobody is dispatched, and its creator's deadline does not bind it."""
    world = World(join(), create("t", "g", timeout_at=NEVER), acquire())
    child = world.do(p.TaskFence(claim(), create("t:0", state=State.RESOLVED, value=b"8"))).promise
    assert child is not None
    assert (child.state, child.value, child.settled_at, child.creator) == (State.RESOLVED, b"8", T0, "t")
    assert world.rung == ()
    for invoked_at, kept in ((T0 - 7, T0 - 7), (T0 + 7, T0)):  # when it was invoked, but never later than now
        id = f"t:{invoked_at}"
        begun = world.do(p.TaskFence(claim(), create(id, state=State.RESOLVED, invoked_at=invoked_at))).promise
        assert begun is not None
        assert (begun.created_at, begun.settled_at) == (kept, T0)
    late = world.do(create("late", "g", timeout_at=T0 - 5)).promise
    assert late is not None
    assert (late.state, late.created_at, late.settled_at) == (State.TIMEDOUT, T0 - 5, T0 - 5)
    assert world.task("late").state is TaskState.FULFILLED


def test_listeners_fire_once() -> None:
    """In the transition that settles; the news stays until acknowledged, and no other read touches it."""
    world = World(join(), join("other"), create("x", listener="me"), p.RegisterListener("x", "other"))
    world.do(p.RegisterListener("x", "me"))
    assert world.do(p.Receive("me", ("x",))).settled == (), "what has not happened cannot be acknowledged"
    world.do(resolve("x"))
    assert world.rung == ("bell:me", "bell:other")
    world.do(resolve("x"), p.PromiseGet("x"), p.Tick())
    assert world.rung == ()
    news = world.do(p.Receive("me")).settled
    assert [promise.id for promise in news] == ["x"]
    assert world.do(p.Receive("me")).settled == news, "an answer may be lost"
    assert world.do(p.Receive("me", ("x", "unheard-of"))).settled == ()
    assert world.snapshot().listeners == {ListenerRecord("x", "other", True)}, "the other has its own news"


def test_a_lost_acquire_reply_is_seen_in_the_heartbeat() -> None:
    """The heartbeat names every task that the store counts as held, so that orphans are released."""
    world = World(join(), create("t", "g"), create("u", "g"), acquire("me", limit=1))
    assert world.do(p.ProcessHeartbeat("me")).held == {"t": 1}
    world.do(p.TaskRelease(claim("t")), acquire())
    assert world.do(p.ProcessHeartbeat("me")).held == {"t": 2, "u": 1}
    world.do(fulfill(claim("t", 2)), p.TaskRelease(claim("u")))
    assert world.do(p.ProcessHeartbeat("me")).held is None


def test_a_retried_fulfill_is_answered_with_the_outcome() -> None:
    """The asker compares: its own value, or what came first."""
    world = World(join(), create("t", "g"), acquire(), fulfill(claim(), b"mine"))
    after = world.snapshot()
    for value in (b"mine", b"another"):
        reply = world.do(fulfill(claim(), value))
        assert reply.status is Status.OK
        assert reply.promise is not None
        assert reply.promise.value == b"mine"
    assert world.do(fulfill(claim(version=2))).status is Status.CONFLICT
    assert world.snapshot() == after


def test_version_is_raised_by_acquire_only() -> None:
    """Through release, suspend, resume, halt, continue, the end of the process and fulfilment it stays."""
    world = World(join(), join("other"), create("t", "g"), create("x"))
    steps: list[tuple[p.Command, int]] = [
        (acquire(), 1),
        (p.TaskRelease(claim()), 1),
        (acquire(), 2),
        (p.TaskSuspend(claim(version=2), ("x",)), 2),
        (resolve("x"), 2),
        (acquire(), 3),
        (p.TaskHalt("t"), 3),
        (p.TaskContinue("t"), 3),
        (acquire(), 4),
        (p.ProcessLeave("me"), 4),
        (p.TaskCreate("other", create("t", "g")), 5),
        (fulfill(claim(version=5, process="other")), 5),
    ]
    for command, version in steps:
        world.do(command)
        assert world.task("t").version == version, command
    assert world.do(p.TaskCreate("other", create("u", "g"))).task == world.task("u")
    assert world.task("u").version == 1


def test_a_superseded_claim_moves_nothing() -> None:
    """An older version, another process, one that is gone: each by itself is refused."""
    world = World(join(), join("other", lease_ms=3 * LEASE), create("t", "g"), create("x"), acquire())
    world.do(p.TaskRelease(claim()), acquire())

    def refuses(stale: p.Claim) -> bool:
        before = world.snapshot()
        commands = (
            p.TaskFence(stale, create("t:0")), p.TaskFence(stale, resolve("x")),
            p.TaskSuspend(stale, ("x",)), p.TaskRelease(stale), fulfill(stale),
        )  # fmt: skip
        refused = {world.do(command).status for command in commands} == {Status.CONFLICT}
        return refused and world.snapshot() == before

    assert refuses(claim(version=1))
    assert refuses(claim(version=2, process="other"))
    assert world.after(create("u", "g"), acquire()).do(fulfill(claim("u"))).status is Status.OK
    world.do(p.ProcessLeave("me", T0))
    assert refuses(claim(version=2))


def test_a_child_does_not_outlive_its_parent() -> None:
    """Its deadline is capped by its parent's; a timer keeps its own, since it is no work."""
    world = World(join(), create("t", "g", timeout_at=NEVER), acquire())
    deadlines = [(None, NEVER), (NEVER + 1, NEVER), (NEVER - 1, NEVER - 1)]
    for place, (asked, given) in enumerate(deadlines):
        child = world.do(p.TaskFence(claim(), create(f"t:{place}", "g", timeout_at=asked))).promise
        assert child is not None
        assert child.timeout_at == given
    timer = world.do(p.TaskFence(claim(), create("t:9", timer=True, timeout_at=NEVER + 1))).promise
    assert timer is not None
    assert timer.timeout_at == NEVER + 1


def _tree() -> World:
    """Task `t` of process `me`, with something of every kind below it; `other` runs its remote child."""
    world = World(join(), join("other", "h"), create("t", "g"), acquire())
    timer = create("t:3", timer=True, timeout_at=NEVER)
    made = (p.PromiseCreate("t:0", "f"), p.PromiseCreate("t:0.0", "f"), create("t:1", "h"), create("t:2"), timer)
    world.do(*(p.TaskFence(claim(), one) for one in made), acquire("other", "h"))
    held = p.Claim("t:1", 1, "other")
    world.do(p.TaskFence(held, p.PromiseCreate("t:1.0", "f", timeout_at=SOON)), create("t:4", "g"))
    world.do(acquire(), p.TaskFence(p.Claim("t:4", 1, "me"), p.PromiseCreate("t:4.0", "f")))
    world.do(p.TaskFence(claim(), p.PromiseCreate("t:5", "f", state=State.RESOLVED)))
    return world


def test_a_cancel_ends_what_is_below() -> None:
    """The promise and what its execution made; never what is settled, stands alone or is settled outside."""
    world = _tree()
    reply = world.do(p.PromiseCancel("t", b"why"))
    assert reply.promise == world.promise("t")
    canceled = [world.promise(id) for id in ("t", "t:0", "t:0.0", "t:1", "t:1.0", "t:3")]
    assert {(one.state, one.value) for one in canceled} == {(State.CANCELED, b"why")}
    spared = ("t:2", "t:4", "t:4.0", "t:5")
    assert world.states(spared) == ["pending", "pending", "pending", "resolved"]
    assert world.do(p.PromiseCancel("t", b"another reason")).promise == world.promise("t"), "a settled one stays"


def test_a_cancel_goes_no_higher() -> None:
    """Of a child: what is beside it and above it goes on."""
    world = _tree()
    world.do(p.TaskFence(claim(), p.PromiseCancel("t:0")))
    assert world.states(("t", "t:0", "t:0.0", "t:1")) == ["pending", "canceled", "canceled", "pending"]


def test_a_cancel_leaves_deadlines_their_verdict() -> None:
    """A child whose deadline has come by then has timed out."""
    world = _tree()
    world.now = SOON
    world.do(p.PromiseCancel("t"))
    assert world.states(("t", "t:1", "t:1.0")) == ["canceled", "canceled", "timedout"]


def test_a_cancel_resumes_nobody_that_it_ends() -> None:
    """A suspended parent ends with its child; somebody else who waits for both is resumed, once."""
    world = _tree()
    world.do(create("u", "g"), acquire(), p.TaskSuspend(p.Claim("u", 1, "me"), ("t", "t:1")))
    world.do(p.TaskSuspend(claim(), ("t:1",)))
    world.do(p.PromiseCancel("t"))
    assert (world.task("t").state, world.task("u").state) == (TaskState.FULFILLED, TaskState.PENDING)
    world = _tree()
    world.do(p.TaskSuspend(claim(), ("t:1",)))
    world.do(p.PromiseCancel("t"))
    assert world.rung == ("bell:other",), "nobody is called for a task that has ended"


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (p.PromiseCancel("t:0"), {("t:0", "me"), ("t:0.0", "me")}),
        (p.PromiseCancel("t:1"), {("t:1", "other"), ("t:1", "me"), ("t:1.0", "other")}),
        (p.TaskFence(claim(), p.PromiseCancel("t:1")), {("t:1", "other"), ("t:1.0", "other")}),  # not told itself
        (p.TaskFence(claim(), p.PromiseCancel("t:0")), {("t:0.0", "me")}),  # who asks may run what is below
        (p.TaskFence(claim(), p.PromiseSettle("t:0", State.CANCELED)), set()),
        (p.PromiseSettle("t:0", State.CANCELED), {("t:0", "me")}),
        (fulfill(claim()), set()),
        (resolve("t:2"), {("t:2", "me")}),
    ],
)  # fmt: skip
def test_the_runner_is_told(command: p.Command, told: set[tuple[str, str]]) -> None:
    """Whoever runs a promise's code hears of it when another one settles it; and only then."""
    world = _tree()
    world.do(command)
    assert {listener[:2] for listener in world.snapshot().listeners if listener.fired} == told
    assert {bell.removeprefix("bell:") for bell in world.rung} == {process for _, process in told}


def test_a_runner_that_listens_is_told_once() -> None:
    """It has its listener already, which fires."""
    world = _tree()
    world.do(p.RegisterListener("t:0", "me"), p.PromiseSettle("t:0", State.CANCELED))
    assert [tuple(listener) for listener in world.snapshot().listeners] == [("t:0", "me", True)]


def test_python_is_recorded_at_the_first_acquire() -> None:
    """asyncio's task tree differs by minor version, so the first one stays known."""
    world = World(join(), create("t", "g"), acquire(python="3.11"), p.TaskRelease(claim()), acquire(python="3.13"))
    assert world.task("t").python == "3.11"
    born = world.do(p.TaskCreate("me", create("u", "g"), "3.12")).task
    assert born is not None
    assert born.python == "3.12"


def test_an_acquire_hands_over_the_children() -> None:
    """With the task come its promise and its children, and no grandchild, nor a root that it invoked."""
    world = World(join(), create("t", "g"), acquire())
    world.do(p.TaskFence(claim(), create("t:0", state=State.RESOLVED)), p.TaskFence(claim(), create("t:1", "g")))
    world.do(acquire(), p.TaskFence(claim("t:1"), create("t:1.0")))
    world.do(p.TaskFence(claim(), create("shared")), p.TaskRelease(claim()))
    (acquired,) = world.do(acquire()).acquired
    assert acquired.promise == world.promise("t")
    assert [child.id for child in acquired.preload] == ["t:0", "t:1"]


def test_an_acquire_hands_children_over_as_written() -> None:
    """A verdict that nobody has written has no turn yet: whoever asks for the child writes it, and takes it then."""
    world = World(join(), create("t", "g"), acquire())
    world.do(p.TaskFence(claim(), create("t:0", timeout_at=world.now + 10, timer=True)), p.TaskRelease(claim()))
    world.now += 10
    (acquired,) = world.do(acquire()).acquired
    assert [child.state for child in acquired.preload] == [State.PENDING]
    told = world.do(p.PromiseGet("t:0")).promise
    assert told is not None
    assert told.turn == world.turn


NOT_HIS = (p.PromiseGet("t:0", claim(version=2)), p.PromiseGet("t:0", claim(process="other")))
OVER = (p.PromiseGet("t:0"), *NOT_HIS, p.Tick())
TOLD = (*OVER, p.PromiseCancel("t:0"), p.PromiseCancel("t"), resolve("t:0"))
MINE = p.PromiseGet("t:0", claim())
UNTOLD = (MINE, p.TaskFence(claim(), p.PromiseCancel("t:0")), p.TaskFence(claim(), resolve("t:0")))


@pytest.mark.parametrize("command", [*TOLD, *UNTOLD])
def test_who_runs_an_execution_is_told_what_its_promises_come_to(command: p.Command) -> None:
    """Whoever else has settled them, without being asked for it; its own doing is no news to it."""
    child = p.TaskFence(claim(), p.PromiseCreate("t:0", "f", timeout_at=T0 + 10))
    world = World(join(), create("t", "g"), acquire(), child)
    world.now += 10 * (command in (*OVER, MINE))
    world.do(command)
    assert world.promise("t:0").state is not State.PENDING
    news = [record.id for record in world.do(p.Receive("me")).settled]
    assert ("t:0" in news) is (command in TOLD)


def test_whoever_has_handed_a_task_back_is_not_told() -> None:
    """Nor is anybody, until somebody acquires it, who gets what there is then."""
    world = World(join(), create("t", "g"), acquire(), p.TaskFence(claim(), create("t:0")), p.TaskRelease(claim()))
    world.do(resolve("t:0"))
    assert world.do(p.Receive("me")).settled == ()


def _again(id: str = "t:@1", param: bytes = b"next", held: p.Claim | None = None) -> p.TaskFence:
    return p.TaskFence(held or claim(), p.PromiseAgain(id, param))


def _loop() -> World:
    """Task `t` of process `me`, whose run has made something of every kind, all settled that is computed."""
    world = World(join(), join("other", "h"), create("t", "g", timeout_at=NEVER), acquire())
    timer = create("t:3", timer=True, timeout_at=NEVER)
    made = (p.PromiseCreate("t:0", "f"), p.PromiseCreate("t:0.0", "f"), create("t:1", "h"), create("t:2"), timer)
    world.do(*(p.TaskFence(claim(), one) for one in made), acquire("other", "h"))
    far = p.Claim("t:1", 1, "other")
    world.do(p.TaskFence(far, p.PromiseCreate("t:1.0", "f")), create("t:4", "g"), acquire())
    world.do(p.TaskFence(p.Claim("t:4", 1, "me"), p.PromiseCreate("t:4.0", "f")))
    world.do(p.TaskFence(far, resolve("t:1.0")), fulfill(far))
    return world.after(p.TaskFence(claim(), resolve("t:0.0")), p.TaskFence(claim(), resolve("t:0")))


def test_who_starts_over_begins_with_nothing() -> None:
    """All that its run has made goes, whatever it is; the promise, its task and what stands alone stay as they are."""
    world = _loop()
    promise, task = world.promise("t"), world.task("t")
    kept = world.do(_again()).promise
    assert kept == world.promise("t:@1")
    assert kept is not None
    assert (kept.param, kept.creator, kept.state, kept.version) == (b"next", "t", State.RESOLVED, 1)
    assert world.snapshot().promises.keys() == {"t", "t:@1", "t:4", "t:4.0"}
    assert world.snapshot().tasks.keys() == {"t", "t:4"}
    assert (world.promise("t"), world.task("t")) == (promise, task)
    world.do(p.TaskFence(claim(), create("t:@1.0", state=State.RESOLVED)), _again("t:@2"))
    assert world.snapshot().promises.keys() == {"t", "t:@2", "t:4", "t:4.0"}
    assert world.do(fulfill(claim())).promise == world.promise("t")


def test_a_local_child_starts_over_by_itself() -> None:
    """What is beside it and above it stays."""
    world = _loop()
    made = ("t:5", "t:5.0", "t:5.~0.0")
    world.do(*(p.TaskFence(claim(), p.PromiseCreate(id, "f")) for id in made))
    world.do(*(p.TaskFence(claim(), resolve(id)) for id in made[1:]))
    before = world.snapshot().promises.keys()
    world.do(_again("t:5.@1"))
    assert world.snapshot().promises.keys() == before - set(made[1:]) | {"t:5.@1"}
    world.do(_again("t:5.@2"))
    assert world.snapshot().promises.keys() == before - set(made[1:]) | {"t:5.@2"}


def test_who_starts_over_is_acquired_with_its_new_arguments() -> None:
    """A crash after it: the next holder gets what keeps them, and no child of the run before; before it: those."""
    world = _loop()
    world.do(p.TaskRelease(claim()))
    (old,) = world.do(acquire()).acquired
    assert {child.id for child in old.preload} == {"t:0", "t:0.0", "t:1", "t:2", "t:3"}
    world.do(_again(held=claim(version=2)), p.TaskRelease(claim(version=2)))
    (new,) = world.do(acquire()).acquired
    assert [(child.id, child.param) for child in new.preload] == [("t:@1", b"next")]
    assert new.promise.param == old.promise.param, "what the id stands for stays"


def test_to_start_over_twice_is_to_start_over_once() -> None:
    """Its answer may be lost; a run that is not the next one is refused."""
    world = _loop()
    world.do(_again())
    after = world.snapshot()
    assert world.do(_again()).promise == world.promise("t:@1")
    assert world.do(_again("t:@3")).status is Status.UNPROCESSABLE
    assert world.snapshot() == after


@pytest.mark.parametrize("runs", [p.PromiseCreate("t:6", "f"), create("t:6", "h")], ids=["local", "remote"])
def test_nobody_starts_over_while_what_it_made_runs(runs: p.PromiseCreate) -> None:
    """It is waited for or canceled first, as at any end. One whose deadline has come runs no more."""
    world = _loop()
    world.do(p.TaskFence(claim(), dataclasses.replace(runs, timeout_at=SOON)))
    before = world.snapshot()
    assert world.do(_again()).status is Status.UNPROCESSABLE
    assert world.snapshot() == before
    world.now = SOON
    assert world.do(_again()).status is Status.CREATED
    assert "t:6" not in world.snapshot().promises


def test_who_waits_for_what_goes_is_told() -> None:
    """Another process rings and finds it gone, another task is resumed; the asker's own are forgotten."""
    world = _loop()
    world.do(create("u", "g"), acquire(), p.TaskSuspend(claim("u"), ("t:2", "t:3")))
    for process in ("me", "other"):
        world.do(p.RegisterListener("t:2", process))
    world.do(p.RegisterCallback("t:2", "t"))
    world.do(_again())
    assert world.rung == ("bell:me", "bell:other")
    assert world.task("u").state is TaskState.PENDING
    assert not world.task("t").resumed
    assert world.snapshot().callbacks == frozenset()
    assert world.snapshot().listeners == {ListenerRecord("t:2", "other", True)}
    world.do(p.Receive("other", ("t:2",)))
    assert world.snapshot().listeners == frozenset()


def test_a_task_that_goes_may_leave_a_callback_behind() -> None:
    """It waited for two, and one was enough; when the other settles nobody is resumed."""
    world = _loop()
    world.do(create("x"), p.TaskFence(claim(), create("t:7", "h")), acquire("other", "h"))
    far = p.Claim("t:7", 1, "other")
    world.do(p.TaskSuspend(far, ("x", "t:2")), resolve("t:2"), acquire("other", "h"))
    world.do(fulfill(far._replace(version=2)), _again())
    assert world.snapshot().callbacks == {CallbackRecord("x", "t:7")}
    world.do(resolve("x"))
    assert world.snapshot().callbacks == frozenset()


def test_an_acquire_takes_the_oldest_that_it_can_run() -> None:
    """Of its targets and functions, up to its limit."""
    world = World(join())
    world.do(create("b", "g"), create("a", "g/me-name"), create("z", "h"), p.PromiseCreate("y", "other", target="g"))
    world.now += 1
    world.do(create("0", "g"))
    taken = world.do(acquire("me", "g", "g/me-name", limit=2)).acquired
    assert [acquired.task.id for acquired in taken] == ["a", "b"]
    assert [acquired.task.id for acquired in world.do(acquire()).acquired] == ["0"]


F, H = ("f", 1), ("h", 1)


def _crowd(**tasks: int) -> World:
    """So many pending tasks of each function, those of the first named the oldest."""
    world = World(join())
    for function, count in tasks.items():
        made = (p.PromiseCreate(f"{function}{at:04}", function, target="g") for at in range(count))
        world.do(*made, p.PromiseGet("none"))
        world.now += 1
    return world


def _take(world: World, *functions: tuple[str, int], limit: int = 10, rooms: tuple[p.Room, ...] = ()) -> list[str]:
    taken = world.do(p.TaskAcquire("me", ("g", "g/me-name"), functions, limit, "", rooms)).acquired
    return [acquired.task.id for acquired in taken]


def test_functions_take_turns() -> None:
    """One of each in turn, each one's oldest first, whichever function's are older."""
    assert _take(_crowd(f=20, h=2), F, H, limit=6) == ["f0000", "h0000", "f0001", "h0001", "f0002", "f0003"]
    assert _take(_crowd(f=20, h=2), F, H, limit=4) == ["f0000", "h0000", "f0001", "h0001"]


def test_the_turn_is_that_of_who_is_named_first() -> None:
    """So that whoever takes a single task at a time can be fair, too."""
    assert _take(_crowd(f=20, h=2), H, F, limit=1) == ["h0000"]
    assert _take(_crowd(f=20, h=2), F, H, limit=1) == ["f0000"]


def test_a_turn_that_nobody_uses_is_anothers() -> None:
    """An acquire takes as many as it may, however they are distributed."""
    world = _crowd(a=1, b=300, c=0, d=7)
    kinds = [(name, 1) for name in "abcd"]
    taken = _take(world, *kinds, limit=200)
    assert len(taken) == 200
    assert taken[:6] == ["a0000", "b0000", "d0000", "b0001", "d0001", "b0002"]
    assert len([id for id in taken if id[0] == "d"]) == 7
    assert len(_take(world, *kinds, limit=200)) == 108


def test_many_functions_share_few_places() -> None:
    """Those that are named first have the first turns; those of which nothing is pending have none."""
    world = _crowd(**{f"f{at:02}": 2 * (at % 2) for at in range(40)})
    kinds = [(f"f{at:02}", 1) for at in range(40)]
    assert _take(world, *kinds, limit=3) == ["f010000", "f030000", "f050000"]
    assert _take(world, *kinds[20:], *kinds[:20], limit=2) == ["f210000", "f230000"]
    assert len(_take(world, *kinds, limit=100)) == 35


def test_few_of_many_are_left() -> None:
    """Where those with the first turns may not be taken, those after them are."""
    rooms = (p.Room(("a", "b"), 1),)
    kinds = [(name, 1) for name in "abcd"]
    assert _take(_crowd(a=2, b=2, c=2, d=2), *kinds, limit=2, rooms=rooms) == ["a0000", "c0000"]


def test_versions_are_functions_of_their_own() -> None:
    """A flood of one version starves no other."""
    world = World(join(), *(p.PromiseCreate(f"a{at}", "f", 1, target="g") for at in range(9)))
    world.now += 1
    world.do(p.PromiseCreate("b", "f", 2, target="g"))
    assert _take(world, ("f", 1), ("f", 2), limit=3) == ["a0", "b", "a1"]


def test_a_room_holds_so_many_of_its_functions_together() -> None:
    """What there is no room for stays pending; the turns go on without it."""
    rooms = (p.Room(("f",), 2), p.Room(("h", "i"), 3))
    world = _crowd(f=9, h=9, i=9, z=3)
    taken = _take(world, F, H, ("i", 1), ("z", 1), limit=20, rooms=rooms)
    assert taken == ["f0000", "h0000", "i0000", "z0000", "f0001", "h0001", "z0001", "z0002"]
    assert _take(_crowd(f=9), F, rooms=(p.Room(("f",), 4), p.Room(("f",), 3))) == ["f0000", "f0001", "f0002"]


def test_an_acquire_sees_what_its_batch_has_done() -> None:
    """Tasks that were made or taken just before, in the same transaction, are there or gone."""
    world = _crowd(f=3)
    first = p.TaskAcquire("me", ("g",), (F, H), 2)
    made = p.PromiseCreate("h0", "h", target="g")
    second = dataclasses.replace(first, limit=9)
    taken = world.do(first, made, p.TaskRelease(p.Claim("f0000", 1, "me")), second).acquired
    assert [one.task.id for one in taken] == ["f0000", "h0", "f0002"]
    assert world.do(first).acquired == ()


def test_a_task_that_exists_is_taken_in_its_target_only() -> None:
    """By a task.create too; a new one may be run at once by whoever makes it."""
    world = World(join(), create("t", "h"))
    assert world.do(p.TaskCreate("me", create("t", "h"))).status is Status.CONFLICT
    assert world.do(p.TaskCreate("me", create("u", "h"))).status is Status.CREATED


def test_what_settled_while_it_ran_is_not_lost_at_the_suspend() -> None:
    """A callback consumed since the acquire makes the next suspend run again, once, whatever that one awaits."""
    world = World(join(), create("t", "g"), create("x"), create("y"), acquire(), p.RegisterCallback("x", "t"))
    world.do(resolve("x"))
    assert world.task("t").resumed
    suspend = p.TaskSuspend(claim(), ("y",))
    refused = world.do(suspend)
    assert (refused.status, refused.task) == (Status.RUN_AGAIN, world.task("t"))
    assert world.do(suspend).status is Status.OK
    world = World(join(), create("t", "g"), create("x"), p.RegisterCallback("x", "t"), resolve("x"))
    assert world.task("t").resumed
    world.do(acquire())
    assert not world.task("t").resumed, "a new run reads what is settled by itself"


def test_a_dead_process_has_its_tasks_sent_again() -> None:
    """By its own word or as seen by another, or when it has been silent; what it listened to is forgotten."""
    for end in (p.ProcessLeave("me"), p.ProcessLeave("me", T0)):
        world = World(join("other", lease_ms=3 * LEASE), join(), create("t", "g"), create("x", listener="me"))
        world.do(acquire())
        world.do(end)
        assert world.rung == ("bell:other",)
        assert world.task("t").state is TaskState.PENDING
        assert world.snapshot().listeners == frozenset()
        assert [process.id for process in world.rows.processes()] == ["other"]
        assert world.do(join()).status is Status.CREATED


def test_a_lease_is_not_ended_while_it_is_renewed() -> None:
    """Who saw a process as it was before its last heartbeat has not seen it silent, whatever the clocks say."""
    world = World(join(), create("t", "g"), acquire())
    world.now = T0 - 5000  # its clock is set back
    assert world.do(p.ProcessHeartbeat("me")).held == {"t": 1}
    assert world.rows.processes()[0].renewed_at == T0 + 1
    world.now = T0 + 100 * LEASE
    world.do(p.Tick(), p.ProcessLeave("me", T0))
    assert world.task("t").state is TaskState.ACQUIRED
    world.do(p.ProcessLeave("me", T0 + 1))
    assert world.task("t").state is TaskState.PENDING
    assert world.do(p.ProcessHeartbeat("me")).status is Status.CONFLICT


def test_a_task_that_ends_its_processes_is_poisoned() -> None:
    """As often in a row as is allowed, only the one that ran, and only with nothing new on record."""
    world = World(create("t", "g"), create("u", "g"))

    def crash(number: int, *before: p.Command) -> TaskRecord:
        world.do(join(f"w{number}"), acquire(f"w{number}"), *before)
        world.do(p.ProcessLeave(f"w{number}", None, (ids.mark("t"),), 3))
        return world.task("t")

    assert [crash(number).crashes for number in (1, 2)] == [1, 2]
    fence = p.TaskFence(claim("t", 3, "w3"), create("t:0", state=State.RESOLVED, value=b"v"))
    assert crash(3, fence).crashes == 1, "it has come further"
    assert [crash(number).crashes for number in (4, 5)] == [2, 3]
    assert world.task("t").state is TaskState.HALTED
    assert world.task("t").reason.startswith("poisoned: 3 processes in a row have ended while this ran, the last")
    assert (world.task("u").state, world.task("u").crashes) == (TaskState.PENDING, 0)
    world.do(p.TaskContinue("t"))
    assert (world.task("t").state, world.task("t").crashes) == (TaskState.PENDING, 0)
    assert crash(6).crashes == 1


def test_clocks_step_back() -> None:
    """A promise is not settled before it was created."""
    world = World(create("x"))
    world.now -= 1000
    settled = world.do(resolve("x")).promise
    assert settled is not None
    assert settled.settled_at == T0


def test_everything_that_settles_resumes() -> None:
    """Settled from outside, fulfilled, timed out: task, awaiters and listeners move with the promise."""
    ends: list[tuple[int, p.Command]] = [(0, resolve("x")), (0, fulfill(claim("x"))), (500, p.Tick())]
    for later, end in ends:
        world = World(join(), create("a", "g"), create("b", "g"), acquire())
        world.do(create("x", "g", timeout_at=SOON, listener="me"), acquire())
        world.do(p.TaskSuspend(claim("a"), ("x",)), p.TaskSuspend(claim("b"), ("x",)))
        world.now += later
        world.do(end)
        assert world.promise("x").state in SETTLED
        assert [world.task(id).state.value for id in "abx"] == ["pending", "pending", "fulfilled"]
        assert world.snapshot().listeners == {ListenerRecord("x", "me", True)}
        assert world.snapshot().callbacks == frozenset()


def test_a_tick_is_bounded() -> None:
    """It does at most 1,000 things and says so when there are more."""
    most = 1_000
    world = World(*(create(f"x{n}", timeout_at=SOON) for n in range(most + 1)))
    world.now = SOON
    first, second = world.do(p.Tick()), world.do(p.Tick())
    assert (first.status, len(first.settled)) == (Status.RUN_AGAIN, most)
    assert (second.status, len(second.settled)) == (Status.OK, 1)


def test_only_messages_of_this_batch_ring() -> None:
    """A doorbell is rung for a group, for a process by name, and for who listens; never for those without one."""
    silent = p.ProcessJoin("silent", "s", "g", "host", "", LEASE)
    world = World(join("a", "g"), join("b", "g"), join("c", "h"), silent)
    world.do(create("1", "g"))
    assert world.rung in (("bell:a",), ("bell:b",)), "one of them, for one task"
    world.do(create("4", "g"), create("5", "g"), create("6", "g"))
    assert world.rung == ("bell:a", "bell:b")
    world.do(create("2", "g/b-name"))
    assert world.rung == ("bell:b",)
    world.do(create("3", listener="c"))
    assert world.rung == ()
    world.do(resolve("3"))
    assert world.rung == ("bell:c",)


COMMANDS_THAT_CANNOT_BE = {
    "timer with a target": lambda: create("x", "g", timer=True, timeout_at=1),
    "timer without deadline": lambda: create("x", timer=True),
    "target without function": lambda: p.PromiseCreate("x", target="g"),
    "target without group": lambda: create("x", "/name"),
    "born timed out": lambda: create("x", state=State.TIMEDOUT),
    "pending with a value": lambda: create("x", value=b"v"),
    "born settled with a target": lambda: create("x", "g", state=State.RESOLVED),
    "born settled with a waiter": lambda: create("x", awaiter="t", state=State.RESOLVED),
    "deadline before time": lambda: create("x", timeout_at=-1),
    "colon in a root": lambda: create("a:b:c"),
    "no id": lambda: create(""),
    "settle as pending": lambda: p.PromiseSettle("x", State.PENDING),
    "settle as timed out": lambda: p.PromiseSettle("x", State.TIMEDOUT),
    "fulfill as timed out": lambda: p.TaskFulfill(claim(), State.TIMEDOUT),
    "await itself": lambda: p.RegisterCallback("x", "x"),
    "suspend on itself": lambda: p.TaskSuspend(claim(), ("t",)),
    "suspend on nothing": lambda: p.TaskSuspend(claim(), ()),
    "settle itself under its fence": lambda: p.TaskFence(claim(), resolve("t")),
    "task without target": lambda: p.TaskCreate("me", create("x")),
    "acquire nothing": lambda: acquire(limit=0),
    "acquire where there is no room": lambda: p.TaskAcquire("me", ("g",), FUNCTIONS, 1, "", (p.Room(("f",), 0),)),
    "start over for no time": lambda: p.PromiseAgain("t:@0", b""),
    "start over as a child": lambda: p.PromiseAgain("t:0", b""),
    "no lease": lambda: join(lease_ms=0),
    "group with a slash": lambda: join(group="g/h"),
}


@pytest.mark.parametrize("make", COMMANDS_THAT_CANNOT_BE.values(), ids=COMMANDS_THAT_CANNOT_BE)
def test_nonsense_cannot_be_said(make: Callable[[], p.Command]) -> None:
    """A command is valid from the moment it is made."""
    with pytest.raises(ValueError, match=r"\w"):
        make()


def test_functions_of_an_acquire_are_names_and_versions() -> None:
    """Another version of a function is another function."""
    world = World(join(), p.PromiseCreate("old", "f", 1, target="g"), p.PromiseCreate("new", "f", 2, target="g"))
    taken = world.do(p.TaskAcquire("me", ("g",), FUNCTIONS, 10)).acquired
    assert [acquired.task.id for acquired in taken] == ["old"]
