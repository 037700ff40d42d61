"""Two facts of Faust 0.15 that the design rests on. Where one of these fails, Faust has changed: read what it changes here.

No broker: the stock consumer's accounting is driven directly, the stream through one of Faust's in-memory channels.
"""

import asyncio
from typing import Any

import faust
import pytest
from faust.transport.consumer import Consumer
from faust.types import TP, ConsumerMessage

from streams.transport import BatchConsumer

VISITS = TP("visits", 0)


def app_of_test(**settings: object) -> Any:
    return faust.App(
        "facts", broker="kafka://127.0.0.1:1", store="memory://", autodiscover=False, web_enabled=False, **settings
    )


async def _nothing(*_: object) -> None:
    """Called back by nobody here."""


class StockAccounting:
    """The stock consumer's accounting of one partition: its own methods on its own attributes, without a connection."""

    def __init__(self) -> None:
        app = app_of_test()
        app.topics._acking_topics.add(VISITS.topic)
        self.consumer = app.transport.create_consumer(
            callback=_nothing, on_partitions_revoked=_nothing, on_partitions_assigned=_nothing
        )

    def ack(self, offset: int) -> None:
        message = ConsumerMessage(VISITS.topic, 0, offset, 0.0, 0, None, None, b"", None, 0, 0, VISITS)
        assert Consumer.ack(self.consumer, message)

    def committable(self) -> int | None:
        found: int | None = Consumer._new_offset(self.consumer, VISITS)
        return found


async def test_the_stock_consumer_commits_past_an_unfinished_event() -> None:
    """Faust's issue 606: on a partition without a commit, event 0 is under way, event 1 is acknowledged: 2 is committed."""
    stock = StockAccounting()
    stock.ack(1)
    assert stock.committable() == 2, "the accounting of Faust has changed: BatchConsumer._new_offset may be needless"


async def test_ours_does_not() -> None:
    assert BatchConsumer._new_offset is not Consumer._new_offset


async def test_take_acknowledges_a_batch_whose_body_raised() -> None:
    """So a batch that failed would never be read again: the agent uses `noack` and acknowledges after the checkpoint."""
    app = app_of_test()
    app.flow_control.resume()
    acknowledged: list[int] = []
    channel = app.channel()
    stream = app.stream(channel)

    async def ack(event: Any) -> bool:
        acknowledged.append(event.value)
        return True

    stream.ack = ack
    batches = stream.take(2, within=10)

    async def body() -> None:
        assert await anext(batches) == [1, 2]
        assert acknowledged == []
        raise RuntimeError("the body failed")

    for value in (1, 2):
        await channel.send(value=value)
    with pytest.raises(RuntimeError, match="the body failed"):
        await asyncio.wait_for(body(), 10)
    await asyncio.wait_for(batches.aclose(), 10)  # which the event loop does with a generator that is left
    assert acknowledged == [1, 2]
    await asyncio.wait_for(stream.stop(), 10)
