"""Facts about topics and their creation: what is asked of the broker outside the flow itself.

Promises: every call opens one connection, asks, closes, and either answers within `limit_s` or raises BrokerError with
one sentence. Does not read or write records, and keeps nothing between calls.

An offset means nothing without its log. A log is the pair (cluster id, topic id): a topic deleted and made anew has
another id, a broker that came back empty another cluster. Kafka has given topic ids since 2.8, and so does the embedded
broker. A broker that gives none yields `topic_id == ""`; then a topic made anew is recognised only where the offset to
resume from is no longer inside `begin_offsets` … `end_offsets`.

The embedded broker (Tansu 0.6) answers ListOffsets for the end with *one past the first record of the last batch*; the
high watermark in its answers to fetches is right. So its ends are taken from a fetch; it is known by its cluster id.
Whoever reads with a client of its own must do likewise there: aiokafka's `highwater()`, not its `end_offsets()`.
"""

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
from kafka.admin import OffsetSpec
from kafka.errors import KafkaError, KafkaTimeoutError, TopicAlreadyExistsError, UnknownTopicOrPartitionError, for_code

from streams.errors import BrokerError, ConfigError

NO_TOPIC_ID = "00000000-0000-0000-0000-000000000000"  # what the protocol sends for "none"
UNKNOWN_TOPIC = 3  # UNKNOWN_TOPIC_OR_PARTITION
DEFAULT_LIMIT_S = 10.0
EMBEDDED_PREFIX = "embedded-"  # of the cluster ids that `deploy.embedded` gives its broker


@dataclass(frozen=True, slots=True)
class TopicFacts:
    """What identifies a topic's log, and how wide it is. `topic_id` is "" where the broker gives none."""

    topic_id: str
    partitions: int


def cluster_id(kafka: str, limit_s: float = DEFAULT_LIMIT_S) -> str:
    """The id of the cluster behind `host:port`, "" where it has none. Raises BrokerError."""
    with _admin(kafka, limit_s) as admin:
        return str(admin.describe_cluster()["cluster_id"] or "")


def describe(kafka: str, names: Iterable[str], limit_s: float = DEFAULT_LIMIT_S) -> dict[str, TopicFacts]:
    """Facts of the named topics; those that do not exist are not in the answer. Creates nothing. Raises BrokerError."""
    with _admin(kafka, limit_s) as admin:
        return _describe(admin, kafka, list(names))


@dataclass(frozen=True, slots=True)
class Survey:
    """What one connection told: the cluster's id, facts of the topics that exist, and where their partitions end."""

    cluster: str
    topics: dict[str, TopicFacts]
    ends: dict[tuple[str, int], int]


def survey(kafka: str, names: Iterable[str], limit_s: float = DEFAULT_LIMIT_S) -> Survey:
    """Everything that a status needs, asked over one connection, since connecting costs most. Raises BrokerError."""
    with _admin(kafka, limit_s) as admin:
        cluster = str(admin.describe_cluster()["cluster_id"] or "")
        facts = _describe(admin, kafka, list(names))
        asked = [(name, partition) for name, fact in facts.items() for partition in range(fact.partitions)]
        ends = _listed(admin, asked, OffsetSpec.LATEST, limit_s)
    if ends and cluster.startswith(EMBEDDED_PREFIX):
        ends = _high_watermarks(kafka, ends, limit_s)
    return Survey(cluster, facts, ends)


def create(
    kafka: str, names: Iterable[str], partitions: int, replication: int = 1, limit_s: float = DEFAULT_LIMIT_S
) -> list[str]:
    """Create those of the topics that are missing, all `partitions` wide, and wait until each partition has a leader.

    Returns the names it created. Raises ConfigError, and creates nothing, where one exists with another width (a
    visitor's partition must be the same in each topic), and where the broker refuses the numbers; else BrokerError.
    """
    wanted = list(dict.fromkeys(names))
    if partitions < 1 or replication < 1:
        raise ConfigError(f"{partitions} partitions with {replication} replicas: both must be at least 1")
    with _admin(kafka, limit_s) as admin:
        before = _describe(admin, kafka, wanted)
        _same_width(before, partitions)
        missing = [name for name in wanted if name not in before]
        if missing:
            shape = {"num_partitions": partitions, "replication_factor": replication}
            # Somebody may create one between the question and this; whoever was first decided its width.
            answers = admin.create_topics(dict.fromkeys(missing, shape), raise_errors=False)["topics"]
            raced = {a["name"] for a in answers if a["error_code"] == TopicAlreadyExistsError.errno}
            refused = [a for a in answers if a["error_code"] and a["name"] not in raced]
            if refused:
                name, reason = (
                    refused[0]["name"],
                    refused[0]["error_message"] or _name(for_code(refused[0]["error_code"])()),
                )
                raise ConfigError(f"Kafka at {kafka} does not create the topic {name!r}: {reason}")
            admin.wait_for_topics(missing, timeout_ms=int(limit_s * 1000))
            _same_width(_describe(admin, kafka, wanted), partitions)
            missing = [name for name in missing if name not in raced]
        return missing


def delete(kafka: str, names: Sequence[str], limit_s: float = DEFAULT_LIMIT_S) -> None:
    """Delete topics with all their records; one that does not exist is deleted already. Raises BrokerError."""
    with _admin(kafka, limit_s) as admin:
        known = _describe(admin, kafka, list(names))
        with contextlib.suppress(UnknownTopicOrPartitionError):
            admin.delete_topics(list(known)) if known else None


def end_offsets(
    kafka: str, partitions: Iterable[tuple[str, int]], limit_s: float = DEFAULT_LIMIT_S
) -> dict[tuple[str, int], int]:
    """For each (topic, partition) the offset that the next record will get. Raises BrokerError, also where one of them
    does not exist."""
    listed = _offsets(kafka, partitions, OffsetSpec.LATEST, limit_s)
    if listed and cluster_id(kafka, limit_s).startswith(EMBEDDED_PREFIX):
        return _high_watermarks(kafka, listed, limit_s)
    return listed


def begin_offsets(
    kafka: str, partitions: Iterable[tuple[str, int]], limit_s: float = DEFAULT_LIMIT_S
) -> dict[tuple[str, int], int]:
    """For each (topic, partition) the offset of the oldest record that is still there (the end where there is none).
    Raises BrokerError, also where one of them does not exist."""
    return _offsets(kafka, partitions, OffsetSpec.EARLIEST, limit_s)


def _offsets(
    kafka: str, partitions: Iterable[tuple[str, int]], spec: OffsetSpec, limit_s: float
) -> dict[tuple[str, int], int]:
    asked = list(partitions)
    if not asked:
        return {}
    with _admin(kafka, limit_s) as admin:
        return _listed(admin, asked, spec, limit_s)


def _listed(
    admin: Any, partitions: Iterable[tuple[str, int]], spec: OffsetSpec, limit_s: float
) -> dict[tuple[str, int], int]:
    asked = {TopicPartition(topic, partition): spec for topic, partition in partitions}
    found = admin.list_partition_offsets(asked, timeout_ms=int(limit_s * 1000)) if asked else {}
    return {(where.topic, where.partition): int(answer.offset) for where, answer in found.items()}


def _high_watermarks(kafka: str, near: Mapping[tuple[str, int], int], limit_s: float) -> dict[tuple[str, int], int]:
    """The high watermarks that fetches from the offsets `near` the ends bring along."""
    where = {TopicPartition(topic, partition): offset for (topic, partition), offset in near.items()}
    deadline = time.monotonic() + limit_s
    with _translated(kafka):
        consumer = KafkaConsumer(
            bootstrap_servers=kafka.split(","),
            client_id="url2vec-ends",
            group_id=None,
            enable_auto_commit=False,
            fetch_max_wait_ms=10,  # an empty fetch is the usual answer, and is answer enough
            bootstrap_timeout_ms=max(1, int(limit_s * 1000)),
        )
        try:
            consumer.assign(list(where))
            for partition, offset in where.items():
                consumer.seek(partition, offset)
            while any(consumer.highwater(partition) is None for partition in where):
                if time.monotonic() > deadline:
                    raise BrokerError(f"Kafka at {kafka} did not tell the ends of its topics within {limit_s:g} s")
                consumer.poll(timeout_ms=20)
            return {(p.topic, p.partition): max(offset, consumer.highwater(p)) for p, offset in where.items()}
        finally:
            consumer.close(autocommit=False)


def _describe(admin: KafkaAdminClient, kafka: str, names: list[str]) -> dict[str, TopicFacts]:
    facts = {}
    for topic in admin.describe_topics(names) if names else ():
        if topic["error_code"] == UNKNOWN_TOPIC:
            continue
        if topic["error_code"]:
            reason = _name(for_code(topic["error_code"])())
            raise BrokerError(f"Kafka at {kafka} does not describe the topic {topic['name']!r}: {reason}")
        topic_id = str(topic["topic_id"] or "")
        facts[topic["name"]] = TopicFacts("" if topic_id == NO_TOPIC_ID else topic_id, len(topic["partitions"]))
    return facts


def _same_width(facts: Mapping[str, TopicFacts], partitions: int) -> None:
    for name, fact in facts.items():
        if fact.partitions != partitions:
            raise ConfigError(
                f"the topic {name!r} exists with {fact.partitions} partitions, not {partitions}; all four topics need "
                "the same count, so that a visitor's partition is the same in each"
            )


@contextlib.contextmanager
def _admin(kafka: str, limit_s: float) -> Iterator[Any]:
    """A client for one question, with `limit_s` to connect and as much for each answer."""
    limit_ms = max(1, int(limit_s * 1000))
    with (
        _translated(kafka),
        KafkaAdminClient(
            bootstrap_servers=kafka.split(","),
            client_id="url2vec-admin",
            bootstrap_timeout_ms=limit_ms,
            request_timeout_ms=limit_ms,
        ) as admin,
    ):
        yield admin


@contextlib.contextmanager
def _translated(kafka: str) -> Iterator[None]:
    """Whatever Kafka or the network raises leaves as BrokerError."""
    try:
        yield
    except KafkaTimeoutError as error:
        raise BrokerError(f"Kafka at {kafka} does not answer: is the address right, and the broker up?") from error
    except (KafkaError, OSError) as error:
        raise BrokerError(f"Kafka at {kafka} refuses: {_name(error)}") from error


def _name(error: BaseException) -> str:
    """The error without the request and the response that kafka-python prints into it."""
    return type(error).__name__.removesuffix("Error")
