"""A worker of its own for the tests of limits: `python -m tests.contract.limit_process STATE_URL FOLDER`.

Each line that it reads is a task as JSON, each line that it prints the answer. `burst`: reserve as often as told,
from 16 tasks at once, and answer how often it was let through and what for. `call`: one call with a key.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from modelport.access.keyring import KeyRing
from modelport.calls import Caller, Limits
from modelport.db.engine import open_database
from modelport.errors import LimitExceeded, ModelportError
from modelport.kit.clock import SystemClock
from modelport.limits.service import Limiter
from modelport.settings import AccessSettings
from modelport.state.open import open_state

CLIENTS = 16


def caller_of(run: str, limits: dict[str, int]) -> Caller:
    """A caller of an organization of this run alone."""
    return Caller(
        organization_id=f"org_{run}",
        project_id="proj",
        key_id=f"key_{run}",
        mode="live",
        scopes=frozenset({"inference"}),
        plan_id="custom",
        organization_limits=Limits(**limits),
    )


async def burst(limiter: Limiter, task: dict[str, Any]) -> dict[str, Any]:
    caller = caller_of(task["run"], task["limits"])
    refusals: dict[str, int] = {}
    passed = 0
    numbers = iter(range(task["attempts"]))

    async def client() -> None:
        nonlocal passed
        for number in numbers:
            try:
                reservation = await limiter.reserve(f"{task['run']}-{number}", caller, tokens=task["tokens"])
            except LimitExceeded as refused:
                refusals[refused.type] = refusals.get(refused.type, 0) + 1
            else:
                passed += 1
                await limiter.settle(reservation, tokens=task["used"])

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return {"passed": passed, "refused": refusals}


async def call(limiter: Limiter, ring: KeyRing, task: dict[str, Any]) -> dict[str, Any]:
    secret = task["secret"]
    try:
        caller = await ring.authenticate(secret, address="127.0.0.1")
        reservation = await limiter.reserve("call", caller, tokens=1)
        await ring.confirm(secret, caller, reservation.fence)
    except ModelportError as error:
        return {"answer": error.code}
    return {"answer": "ok"}


async def main(url: str, folder: Path) -> None:
    clock = SystemClock()
    state = open_state(url, data_dir=folder, workers=4, namespace=folder.name, clock=clock)
    db = open_database("", data_dir=folder, pool_size=1)
    await state.start()
    ring = KeyRing(db, state, clock=clock, settings=AccessSettings(touch_interval_s=3600))
    await ring.start()
    limiter = Limiter(state, management_per_minute=600)
    print("ready", flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        task = json.loads(line)
        answer = await (burst(limiter, task) if "run" in task else call(limiter, ring, task))
        print(json.dumps(answer), flush=True)
    await ring.close()
    await state.close()
    await db.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
