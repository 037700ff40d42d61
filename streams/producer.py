"""The producing end of the transport: whole record batches, packed here and acknowledged one by one.

`streams.emit` decides what goes out and in which order, and waits; this only packs and sends.
"""

from collections.abc import Iterable
from typing import Any

from faust.transport.drivers import aiokafka as driver

from streams.emit import Record


class Producer(driver.Producer):  # type: ignore[misc]
    """Produces whole record batches, in order per partition."""

    # Kafka refuses requests over 1 MB (`max.request.size`, `message.max.bytes`); headers and framing need some room.
    MAX_BATCH_BYTES = 900_000

    def pack(self, records: Iterable[Record]) -> list[Any]:
        """Record batches, closed and ready to send, holding (key, value, headers) in order."""
        batches = []
        builder, count = self._producer.create_batch(), 0
        for key, value, headers in records:
            # append answers None when the batch is full: start the next one rather than lose the record.
            while builder.append(key=key, value=value, timestamp=None, headers=headers) is None:
                if not count:
                    raise ValueError(f"a record of {len(value or b'')} bytes fits no batch")
                builder.close()
                batches.append(builder)
                builder, count = self._producer.create_batch(), 0
            count += 1
        if count:
            builder.close()
            batches.append(builder)
        return batches

    async def send(self, batch: Any, topic: str, partition: int) -> None:
        """Send one packed batch and wait until it is acknowledged. Raises KafkaError."""
        await (await self._producer.send_batch(batch, topic, partition=partition))
