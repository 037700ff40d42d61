"""The upper bound: a loop around confluent-kafka that reads, decodes, counts and answers. It knows nothing of sessions.

It is given what a worker must earn: no consumer group, nothing kept, nothing learned, an answer that is a constant of the
size of ours, sent without waiting, acknowledged once at the end. The clock runs from the assignment of partitions, on a
connection that stands, to the last acknowledgement: librdkafka fetches ahead in threads of its own, so that a clock which
started with the first records would start in the middle.
"""

import time
from collections import Counter

import msgspec
from confluent_kafka import Consumer, Producer, TopicPartition

from schemas.records import VisitOutcome, WebVisit
from streams.bench.contestants import Order, Result, given_order, leave
from streams.bench.load import PARTITIONS
from streams.errors import BrokerError

RECORDS_A_CALL = 1_000
WAIT_S = 0.02  # a call waits this long to become full, the last one in vain


def main(order: Order) -> None:
    """Read all, answer each visit, leave the result."""
    settings = {"bootstrap.servers": order.kafka, "group.id": "plain-loop", "enable.auto.commit": False}
    consumer = Consumer({**settings, "auto.offset.reset": "earliest"})
    topics = [order.visits_topic, order.outcomes_topic] if order.answer_bytes else [order.visits_topic]
    consumer.list_topics(order.visits_topic, 10)
    began = time.monotonic()
    consumer.assign([TopicPartition(topic, number, 0) for topic in topics for number in range(PARTITIONS)])
    # Lingers a few milliseconds, so that a request holds many answers.
    producer = Producer(
        {"bootstrap.servers": order.kafka, "linger.ms": 5, "queue.buffering.max.messages": 200_000, "acks": "all"}
    )
    decode_visit = msgspec.json.Decoder(WebVisit).decode
    decode_outcome = msgspec.json.Decoder(VisitOutcome).decode
    answer = b"x" * order.answer_bytes
    visits: Counter[str] = Counter()
    seen = outcomes = 0
    while seen < order.visits or (len(topics) > 1 and outcomes < order.outcomes):
        for message in consumer.consume(RECORDS_A_CALL, WAIT_S):
            if (error := message.error()) is not None:
                raise BrokerError(str(error))
            value = message.value()
            assert value is not None, "the load has no tombstones"
            if message.topic() != order.visits_topic:
                decode_outcome(value)
                outcomes += 1
                continue
            seen += 1
            if not answer:
                continue
            visits[decode_visit(value).visitor_id] += 1
            while True:
                try:
                    producer.produce(order.answers, answer, message.key(), partition=message.partition() or 0)
                    break
                except BufferError:  # its queue is full: let the broker catch up
                    producer.poll(0.05)
        producer.poll(0)
    producer.flush()
    leave(order, Result(visits=seen, seconds=time.monotonic() - began))
    consumer.close()


if __name__ == "__main__":
    main(given_order())
