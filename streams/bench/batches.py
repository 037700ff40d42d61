"""Our transport alone: record batches, read, counted and acknowledged. Nothing is decoded and nothing is answered.

Partitions start from their beginning, as there is no store to ask. The clock runs from the first batch to the last.
"""

import asyncio
import time
from typing import Any

from faust.types import TP

from streams.app import WorkerOptions, create_app
from streams.bench.contestants import Order, Result, given_order, leave
from streams.settings import Settings
from streams.transport import BatchConsumer, BatchSchema, RecordBatch


async def main(order: Order) -> None:
    """Read all, leave the result."""
    settings = Settings(kafka=order.kafka, redis="", group=f"batches-{order.visits_topic}")
    app = create_app(settings, WorkerOptions(session_timeout_s=6.0))
    inputs = app.topic(order.visits_topic, schema=BatchSchema(), key_type=None, value_type=None)
    done = asyncio.Event()
    seen, began = 0, 0.0

    @app.agent(inputs, name="batches")  # type: ignore[untyped-decorator]
    async def batches(stream: Any) -> None:
        nonlocal seen, began
        async for event in stream.noack().events():
            began = began or time.monotonic()
            batch: RecordBatch = event.value
            seen += len(batch.records)
            event.message.ack(consumer)
            if seen >= order.visits:
                done.set()

    consumer: BatchConsumer = app.consumer
    tasks: set[asyncio.Task[None]] = set()

    async def resume(tps: set[TP], _generation: int) -> None:
        # Not awaited here: the transport must return from its rebalance before it can seek.
        tasks.add(asyncio.create_task(consumer.start_from(dict.fromkeys(tps, 0))))

    consumer.resume = resume
    await app.start()
    ended = asyncio.create_task(app.wait_until_stopped())
    finished = asyncio.create_task(done.wait())
    await asyncio.wait([ended, finished], return_when=asyncio.FIRST_COMPLETED)
    if not done.is_set():
        raise RuntimeError(f"the stream ended by itself: {app.crash_reason}")
    leave(order, Result(visits=seen, seconds=time.monotonic() - began))
    await app.stop()


if __name__ == "__main__":
    asyncio.run(main(given_order()))
