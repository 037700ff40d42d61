"""A worker with one fault, which begins when the test says so: `python -m tests.odd_worker worker …`.

The command line is the worker's own, and so is everything else that it does. The fault is named by URL2VEC_TEST_FAULT; it
begins once the file `now` is in the folder URL2VEC_TEST_FOLDER, and then the worker leaves a file `reached` there.

    fetch     the consumer's polls never come back, as when a driver waits for an answer that will not come
    loop      the event loop stands still; the threads beside it, the group's heartbeats among them, go on
    compute   the compute thread never comes back
    slow:S    one learning step takes S seconds, after which there is a file `over`, and the next are as always
    held      a model is not built from the store before `now` is gone again
"""

import asyncio
import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from streams.cli import main
from streams.pipeline import Pipeline
from streams.replica import Replica
from streams.scoring import Steps
from streams.transport import BatchConsumer


class Fault:
    """The files by which a test and its worker speak."""

    def __init__(self, folder: Path) -> None:
        self.now, self.reached, self.over = folder / "now", folder / "reached", folder / "over"

    def begins(self) -> bool:
        if not self.now.exists():
            return False
        self.reached.touch()
        return True


def fetch(fault: Fault) -> None:
    original = BatchConsumer.getmany

    async def getmany(self: BatchConsumer, timeout: float) -> AsyncIterator[Any]:  # noqa: ASYNC109
        if fault.begins():
            await asyncio.Event().wait()
        async for message in original(self, timeout):
            yield message

    BatchConsumer.getmany = getmany  # type: ignore[method-assign]


def loop(fault: Fault) -> None:
    original = Pipeline.put

    def put(self: Pipeline, event: Any) -> None:
        if fault.begins():
            threading.Event().wait()
        original(self, event)

    Pipeline.put = put  # type: ignore[method-assign]


def compute(fault: Fault) -> None:
    original = Steps.score

    def score(self: Steps, *arguments: Any) -> Any:
        if fault.begins():
            threading.Event().wait()
        return original(self, *arguments)

    Steps.score = score  # type: ignore[method-assign]


def slow(fault: Fault, seconds: float) -> None:
    original = Steps.learn

    def learn(self: Steps, *arguments: Any) -> None:
        if not fault.reached.exists() and fault.begins():
            time.sleep(seconds)
            fault.over.touch()
        original(self, *arguments)

    Steps.learn = learn  # type: ignore[method-assign]


def held(fault: Fault) -> None:
    original = Replica.rebuild

    async def rebuild(self: Replica, partitions: Sequence[int]) -> None:
        fault.begins()
        while fault.now.exists():  # noqa: ASYNC110 - a file tells
            await asyncio.sleep(0.02)
        await original(self, partitions)

    Replica.rebuild = rebuild  # type: ignore[method-assign]


def odd(fault: str, folder: Path) -> dict[str, Any]:
    """What `System.launch` must be given to start one."""
    return {
        "program": "tests.odd_worker",
        "environment": {"URL2VEC_TEST_FAULT": fault, "URL2VEC_TEST_FOLDER": str(folder)},
    }


if __name__ == "__main__":
    name, _, seconds = os.environ["URL2VEC_TEST_FAULT"].partition(":")
    fault = Fault(Path(os.environ["URL2VEC_TEST_FOLDER"]))
    if name == "slow":
        slow(fault, float(seconds))
    else:
        {"fetch": fetch, "loop": loop, "compute": compute, "held": held}[name](fault)
    main(sys.argv[1:])
