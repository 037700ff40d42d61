"""What Kafka tells about its logs, on both kinds of broker, and that the test kit's servers are what they say."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kafka import KafkaProducer

from deploy import ports
from streams import topics
from streams.errors import BrokerError, ConfigError
from streams.settings import Topics
from tests.servers import RealKafka


def produce(kafka: str, topic: str, partition: int, count: int) -> None:
    producer = KafkaProducer(bootstrap_servers=kafka, enable_idempotence=False)
    sent = [producer.send(topic, b"%d" % number, partition=partition) for number in range(count)]
    producer.flush(10)
    assert sent[-1].get(10).offset == count - 1
    producer.close()


def test_topics_are_described_with_their_id_and_width(kafka: str, topic_names: Topics) -> None:
    facts = topics.describe(kafka, topic_names.all)
    assert {fact.partitions for fact in facts.values()} == {4}
    assert len({fact.topic_id for fact in facts.values()} - {""}) == 4


@pytest.mark.partitions(1)
def test_the_partition_count_is_what_the_test_asks_for(kafka: str, topic_names: Topics) -> None:
    assert topics.describe(kafka, [topic_names.visits])[topic_names.visits].partitions == 1


def test_a_missing_topic_is_not_described_and_not_created(kafka: str) -> None:
    assert topics.describe(kafka, ["no-such-topic"]) == {}
    assert topics.describe(kafka, ["no-such-topic"]) == {}


def test_ends_count_every_record_of_a_batch(kafka: str, topic_names: Topics) -> None:
    topic = topic_names.visits
    assert topics.end_offsets(kafka, [(topic, 0), (topic, 3)]) == {(topic, 0): 0, (topic, 3): 0}
    produce(kafka, topic, 3, 10)
    assert topics.end_offsets(kafka, [(topic, 0), (topic, 3)]) == {(topic, 0): 0, (topic, 3): 10}
    assert topics.begin_offsets(kafka, [(topic, 0), (topic, 3)]) == {(topic, 0): 0, (topic, 3): 0}


def test_ends_of_a_missing_partition_are_an_error(kafka: str, topic_names: Topics) -> None:
    with pytest.raises(BrokerError, match="UnknownTopicOrPartition"):
        topics.end_offsets(kafka, [(topic_names.visits, 9)])


def test_a_topic_made_anew_has_another_id_and_no_records(kafka: str, topic_names: Topics) -> None:
    topic = topic_names.visits
    before = topics.describe(kafka, [topic])[topic]
    produce(kafka, topic, 0, 3)
    topics.delete(kafka, [topic])
    _until(lambda: topic not in topics.describe(kafka, [topic]))
    assert topics.create(kafka, topic_names.all, 4) == [topic]
    assert topics.describe(kafka, [topic])[topic].topic_id != before.topic_id
    assert topics.end_offsets(kafka, [(topic, 0)]) == {(topic, 0): 0}


def test_a_topic_of_another_width_is_refused_before_any_is_created(kafka: str, topic_names: Topics) -> None:
    with pytest.raises(ConfigError, match="exists with 4 partitions, not 5"):
        topics.create(kafka, [topic_names.visits, f"{topic_names.visits}-more"], 5)
    assert topics.describe(kafka, [f"{topic_names.visits}-more"]) == {}


def test_more_replicas_than_brokers_are_the_operators_mistake(real_kafka: str) -> None:
    with pytest.raises(ConfigError, match=r"does not create the topic 'too-safe': .*replication factor"):
        topics.create(real_kafka, ["too-safe"], 1, replication=3)


def test_the_cluster_id_is_stable(kafka: str) -> None:
    assert topics.cluster_id(kafka) == topics.cluster_id(kafka) != ""


def test_a_broker_that_is_away_is_one_sentence_within_the_limit() -> None:
    kafka = f"{ports.HOST}:{ports.any_free()}"
    started = time.monotonic()
    with pytest.raises(BrokerError, match=f"Kafka at {kafka} does not answer"):
        topics.cluster_id(kafka, limit_s=0.5)
    assert time.monotonic() - started < 5


@pytest.fixture(scope="module")
def own_kafka(kafka_libs: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealKafka]:
    with RealKafka(tmp_path_factory.mktemp("own-kafka")) as server:
        yield server


def test_a_restarted_kafka_has_its_address_its_id_and_its_records(own_kafka: RealKafka) -> None:
    topics.create(own_kafka.kafka, ["kept"], 1)
    produce(own_kafka.kafka, "kept", 0, 5)
    address, cluster = own_kafka.kafka, topics.cluster_id(own_kafka.kafka)
    facts = topics.describe(address, ["kept"])
    own_kafka.restart()
    assert (own_kafka.kafka, topics.cluster_id(address)) == (address, cluster)
    _until(lambda: topics.describe(address, ["kept"]) == facts)
    assert topics.end_offsets(address, [("kept", 0)]) == {("kept", 0): 5}


def test_a_paused_kafka_answers_nothing_and_then_goes_on(own_kafka: RealKafka) -> None:
    own_kafka.pause()
    try:
        with pytest.raises(BrokerError):
            topics.cluster_id(own_kafka.kafka, limit_s=0.5)
    finally:
        own_kafka.resume()
    assert topics.cluster_id(own_kafka.kafka)


def test_kafka_that_cannot_start_says_why(kafka_libs: None, tmp_path: Path) -> None:
    with pytest.raises(BrokerError, match="ended with 1"):
        RealKafka(tmp_path, settings=["log.retention.ms=never"]).start()


def _until(condition: Callable[[], bool], limit_s: float = 20.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.05)
