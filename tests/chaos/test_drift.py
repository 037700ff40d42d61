"""Scenario 21: the meaning of URLs flips in mid-stream. The progressive metric recovers; that of a frozen copy does not.

Through a worker's own pipeline and a real store (`tests.one_partition`): visits are scored and remembered, outcomes come
later, silence becomes a negative answer when the watermark passes its deadline, and the metric is the one that the store keeps.
The frozen copy is what anybody can make from the store at the moment of the flip, by `Replica.rebuild`; it goes on scoring
the same visits and learns nothing.
"""

import asyncio
import logging
from dataclasses import dataclass, field, replace

import msgspec
import numpy as np
from numpy.typing import NDArray

from models.learner import Learner
from models.progressive import Progress
from models.settings import ModelSettings
from schemas.records import WebVisit
from streams.partition import Summary
from streams.replica import Replica
from streams.sessions import Sessioniser
from tests.one_partition import (
    BEGIN_MS,
    GAP_MS,
    OUTCOMES,
    TASKS,
    VISITS,
    Topics,
    Worker,
    outcome,
    settings_for,
)

log = logging.getLogger(__name__)

ROUNDS, FLIP, N = 150, 90, 64  # rounds of N visitors each
ROUND_MS = (
    90_000  # event time: more than the horizon and the lateness, so that answers of a round are there in the next
)
TASK = "bought"


@dataclass
class Losses:
    """Log-loss of each round, and what the store says of the rounds so far: (loss in all, answers judged)."""

    live: list[float] = field(default_factory=list)
    frozen: list[float] = field(default_factory=list)
    stored: list[tuple[float, int]] = field(default_factory=list)

    def progressive(self, rounds: slice) -> float:
        """The progressive metric over some rounds."""
        told = self.stored[rounds]
        return (told[-1][0] - told[0][0]) / (told[-1][1] - told[0][1])


def loss(chances: NDArray[np.float64], bought: NDArray[np.bool_]) -> float:
    p = np.clip(chances, 1e-6, 1 - 1e-6)
    return float(-np.mean(np.log(np.where(bought, p, 1 - p))))


def round_of(random: np.random.Generator, number: int) -> tuple[list[dict[str, object]], NDArray[np.bool_]]:
    """One visit each of N new visitors, and who of them bought. A page sells or repels; from FLIP on the other way round."""
    pages, devices = random.integers(40, size=N), random.integers(4, size=N)
    logit = np.where(pages % 2 == 0, 2.2, -2.2) + np.where(devices == 0, 0.8, -0.3)
    bought = random.random(N) < 1 / (1 + np.exp(logit if number >= FLIP else -logit))
    at_ms = BEGIN_MS + number * ROUND_MS
    return [
        {
            "event_id": f"e{number}-{n}", "visitor_id": f"v{number}-{n}", "timestamp": at_ms + n,
            "url": f"https://shop.example/{page}", "properties": {"device": f"d{device}"},
        }
        for n, (page, device) in enumerate(zip(pages.tolist(), devices.tolist(), strict=True))
    ], bought  # fmt: skip


async def run(url: str, seed: int) -> Losses:
    def new() -> Learner:
        return Learner(
            ModelSettings(dims=16, slots=16, table_bits=12, embedding_bits=10), [task.name for task in TASKS]
        )

    settings = replace(settings_for(url, "drift"), visitor_cache=1_000, pending_cache=10_000)
    topics, found, random = Topics(judged=False), Losses(), np.random.default_rng(seed)
    worker, frozen, sessions = Worker(settings, topics, new()), new(), Sessioniser(GAP_MS)
    try:
        await worker.take_up(1)
        for number in range(ROUNDS):
            visits, bought = round_of(random, number)
            if number == FLIP:
                await Replica(worker.store, frozen, None, worker.said.append).rebuild([0])
            for visit in visits:
                topics.write(VISITS, visit)
            worker.fetch(VISITS, N)
            await worker.work()
            for visit, buys in zip(visits, bought, strict=True):
                if buys:
                    topics.write(
                        OUTCOMES, outcome(str(visit["visitor_id"]), int(str(visit["timestamp"])) + 1_000, True)
                    )
            worker.fetch(OUTCOMES, N)
            worker.fetch(VISITS, 1)  # nothing: these are at their end
            await worker.work()
            await worker.checkpoint()
            found.live.append(loss(np.array([scores[TASK] for scores in topics.scores[-N:]]), bought))
            if number >= FLIP:
                events = [msgspec.convert(visit, WebVisit) for visit in visits]
                contexts = [sessions.visit(None, event, 0)[1] for event in events]
                found.frozen.append(loss(frozen.score(contexts).probability[:, 0].astype(float), bought))
            blob = Summary.of(await worker.store.position(0)).progress.get(TASK)
            progress = Progress.decode(blob) if blob else Progress()
            found.stored.append((progress.n * (progress.logloss() or 0.0), progress.n))
        assert len(topics.answered) == ROUNDS * N
        assert not worker.said
        return found
    finally:
        await worker.die()


def test_the_metric_recovers_from_a_flip_of_meaning_and_a_frozen_copy_does_not(store_url: str, seed: int) -> None:
    found = asyncio.run(run(store_url, seed))
    before, after = found.progressive(slice(FLIP - 25, FLIP)), found.progressive(slice(ROUNDS - 25, ROUNDS))
    flipped = found.progressive(slice(FLIP, FLIP + 5))
    frozen = float(np.mean(found.frozen[-25:]))
    log.info(
        f"seed {seed}: log-loss {before:.3f}, at the flip {flipped:.3f}, in the end {after:.3f}; frozen {frozen:.3f}"
    )
    log.info("rounds: %s", " ".join(f"{x:.2f}" for x in found.live))
    assert before < 0.5, "else there was nothing to lose"
    assert flipped > before + 0.8, "the flip is felt"
    assert after < before + 0.2, "and recovered from"
    assert frozen > before + 0.8, "a frozen copy does not recover"
    assert np.mean(found.live[-25:]) < before + 0.2, "nor is it only the store that says so"
