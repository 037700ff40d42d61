"""Waiting for Kafka and Redis: once said, tried again until they answer, and their return said too."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from aiokafka.errors import KafkaError

from streams.errors import BrokerError, StoreError

Answer = TypeVar("Answer")
AWAY = (StoreError, BrokerError, KafkaError, TimeoutError, ConnectionError)
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 2.0  # the first is shorter than a failover, the last than an operator's patience
SAY_AGAIN_S = 30.0

# Who waits for Kafka or Redis now, and has said so: where somebody does, that nothing moves is no riddle.
waits: set[object] = set()


async def until_it_answers(
    ask: Callable[[], Awaitable[Answer]], say: Callable[[str], None], given_up: Callable[[], bool] = lambda: False
) -> Answer:
    """The answer of `ask`, asked again while what it needs is away.

    Raises what `ask` raised last when `given_up` turns true; anything that is not somebody's absence is raised at once.
    """
    pause_s, away_since, said_at, me = FIRST_PAUSE_S, 0.0, 0.0, object()
    try:
        while True:
            try:
                answer = await ask()
            except AWAY as error:
                now = time.monotonic()
                if given_up():
                    raise
                if now - said_at > SAY_AGAIN_S or not said_at:
                    away_since, said_at = away_since or now, now
                    say(
                        f"{str(error) or type(error).__name__}; waiting, nothing is lost, trying again until it answers"
                    )
                waits.add(me)
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
            else:
                if away_since:
                    say(f"it answers again after {time.monotonic() - away_since:.1f} s; going on")
                return answer
    finally:
        waits.discard(me)
