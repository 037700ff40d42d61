"""A worker that is stuck without knowing it ends itself, so that its partitions go to one that is not.

Heartbeats come from a thread of their own and go on whatever else stands still: the group would keep a stuck worker as its
member for ever, and nobody would read its partitions. So somebody has to look from outside. The rules:

1. *Whatever moves is progress*: a micro-batch, a checkpoint, a lesson learned from others, partitions that come or go, or
   that there was nothing to do. While it does, nothing is asked.
2. *Only lag makes a stall*, and lag is what the broker says to a client of the watchdog's own: the worker's own idea of
   where its topics end may be what is stuck.
3. *Absence is no stall.* Who waits for Kafka or Redis has said so and goes on alone; and where either does not answer the
   watchdog itself, nothing is known. A worker that owns nothing (a spare one, a long rebalance, its partitions still being
   taken up) has nothing to be late with. The count begins anew after each of these.
4. *A look that comes late says nothing*: the process itself stood still (SIGSTOP, a suspended machine) and may yet go on.

The watchdog is a thread, for the event loop may be what is stuck; and it ends the process on the spot, for what is stuck
cannot be asked to stop. That costs what any crash costs: answers since the last checkpoint come twice.
"""

import asyncio
import faulthandler
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Hashable
from typing import Never

from streams import topics as broker
from streams.errors import BrokerError, ConfigError, StoreError
from streams.patience import waits
from streams.pipeline import Pipeline
from streams.settings import Settings
from streams.store import Store

LOOKS = 10  # within the limit: the end comes at most a fifth of it late
LATE = 0.5  # of the limit, between two looks: longer than both servers may take to answer, far less than a stall
ASK_LIMIT_S = 5.0
EXIT_CODE = 1  # failed, as the contract has it


class Watchdog:
    """Judges from looks at a worker, each told its time (monotonic seconds), whether it is stuck."""

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self.every_s = limit_s / LOOKS
        self._moved: Hashable = None
        self._looked_s = -float("inf")
        self._since_s: float | None = None

    def look(self, at_s: float, moved: Hashable, waiting: Callable[[], int | None]) -> float | None:
        """For how long the worker has been stuck, in seconds; None while it is not, or not for longer than the limit.

        `moved` differs from that of the look before when anything was done in between. `waiting` is asked only when
        nothing was: how many records wait, None where that is not known or where there is a reason to stand still.
        """
        late, self._looked_s = at_s - self._looked_s > LATE * self.limit_s, at_s
        if late or moved != self._moved or not waiting():
            self._moved, self._since_s = moved, None
            return None
        if self._since_s is None:
            self._since_s = at_s
        stuck_s = at_s - self._since_s
        return stuck_s if stuck_s >= self.limit_s else None


def end_process(sentence: str) -> Never:
    """Say it and end, without waiting for anything. With --debug also where each thread stands."""
    if logging.getLogger("url2vec").isEnabledFor(logging.DEBUG):
        faulthandler.dump_traceback(sys.stderr)
    sys.stderr.write(f"url2vec: {sentence}\n")
    sys.stderr.flush()
    os._exit(EXIT_CODE)


class Guard:
    """The thread that looks after a pipeline, between `start` and `stop`."""

    def __init__(self, settings: Settings, pipeline: Pipeline, end: Callable[[str], None] = end_process) -> None:
        self._settings, self._pipeline, self._end = settings, pipeline, end
        self._watchdog = Watchdog(settings.stall_limit_ms / 1000)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more; does not wait for the thread, which may be asking."""
        self._stopped.set()

    def _watch(self) -> None:
        while not self._stopped.wait(self._watchdog.every_s):
            stuck_s = self._watchdog.look(time.monotonic(), self.moved(), self.waiting)
            if stuck_s is not None and not self._stopped.is_set():
                self._end(
                    f"stalled: records wait in partitions {sorted(self._pipeline.states)} of "
                    f"{self._settings.topics.visits}, Kafka and Redis answer, and nothing has moved for {stuck_s:.0f} s; the "
                    "worker ends so that another takes them over, which loses nothing"
                )

    def moved(self) -> Hashable:
        """What differs after anything was done. Read from a thread of its own: each part is read at once."""
        pipeline = self._pipeline
        replica = pipeline.replica
        return (
            pipeline.progressed_at,
            replica.learner.step,
            tuple(pipeline.states),
            sum(tuple(replica.applied.values())),
        )

    def waiting(self) -> int | None:
        """Records in the owned partitions that are not checkpointed; None where somebody is away, or nothing is owned."""
        topics = self._settings.topics
        read: dict[tuple[str, int], int] = {}
        for state in tuple(self._pipeline.states.values()):
            read[topics.visits, state.number] = state.position.visits
            read[topics.outcomes, state.number] = state.position.outcomes
        if not read or waits:
            return None
        try:
            ends = broker.end_offsets(self._settings.kafka, read, ASK_LIMIT_S)
            asyncio.run(self._ask_store())
        except (BrokerError, StoreError, ConfigError, TimeoutError):
            return None
        return sum(max(0, ends[where] - offset) for where, offset in read.items())

    async def _ask_store(self) -> None:
        store = Store(self._settings)
        try:
            await asyncio.wait_for(store.reports(), ASK_LIMIT_S)
        finally:
            await store.close()
