"""An execution that waits for a person, for days if need be. In one terminal:

    python examples/06_human.py

and in another one, whenever you like; the first may have been stopped and started again meanwhile:

    dasync resolve expense-7-decision '{"approved": true, "by": "Ada"}' --store expenses.db
"""

import sys
from dataclasses import dataclass

import dasync


@dataclass
class Decision:
    approved: bool
    by: str


@dasync.function
async def pay(employee: str, cents: int) -> str:
    return f"{cents / 100:.2f} paid to {employee}"


@dasync.function
async def expense(number: int, employee: str, cents: int) -> str:
    asked = dasync.promise(Decision, id=f"expense-{number}-decision", timeout=7 * 86_400)
    await asked.created()
    print(f"waiting for a decision on {asked.id}", flush=True)  # again in every run that waits
    try:
        decision = await asked
    except dasync.PromiseTimedOut:
        return "nobody decided within a week"
    if not decision.approved:
        return f"refused by {decision.by}"
    return f"{await pay(employee, cents)}, approved by {decision.by}"


async def main() -> None:
    print(await expense.options(id="expense-7")(7, "Grace", 1250))


if __name__ == "__main__":
    dasync.run(main, store=sys.argv[1] if sys.argv[1:] else "expenses.db")
