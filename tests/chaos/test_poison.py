"""Poison on both topics, in every place where it could hurt: alone, in long runs, at the end, under a kill, as a bomb.

What each kind of bad visit is refused for, and which odd ones are tolerated, is `test_contract`'s. Here the streams are
made of it: rejected + scored = received on both topics, each record once in the state, and nothing stands still.
"""

import gzip
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from confluent_kafka import Producer

from tests.system import BEGIN_MS, BOUGHT, Sent, System, Verdict, outcome, traffic, verify, visit
from tests.verdict import until_as_undisturbed
from tests.waiting import eventually_sync

if TYPE_CHECKING:
    from streams.settings import Topics

SETTINGS = 'max_in_flight = 1_000\ncheckpoint_interval = "100ms"\n' + BOUGHT
PARTITIONS = 2
LATE_MS = 4_102_444_800_000  # 2100


@pytest.fixture
def system(
    tmp_path: Path, embedded_kafka: str, store_url: str, make_topics: "Callable[..., Topics]"
) -> Iterator[System]:
    names = make_topics(embedded_kafka, PARTITIONS)
    with System(tmp_path, embedded_kafka, store_url, names, SETTINGS, partitions=PARTITIONS) as running:
        yield running


def bad_values(plain: dict[str, Any]) -> dict[str, bytes | None]:
    """What can be wrong with the value of either topic; `plain` is one that could be read."""
    text = json.dumps(plain).encode()

    def field(**changed: Any) -> bytes:
        return json.dumps(plain | changed).encode()

    return {
        "tombstone": None,
        "empty": b"",
        "a number": b"7",
        "a list": b"[]",
        "null": b"null",
        "torn": text[: len(text) // 2],
        "twice": text + text,
        "not UTF-8": b'{"visitor_id": "\xff"}',
        "UTF-16": text.decode().encode("utf-16"),
        "zeros": b"\0" * 100,
        "gzip": gzip.compress(text),
        "an Avro header": b"\0\0\0\0\x01" + text,
        "missing field": b'{"timestamp": 1}',
        "wrong type": field(visitor_id=5),
        "a visitor of nothing": field(visitor_id=""),
        "a visitor with NUL": field(visitor_id="a\0b"),
        "a visitor of a megabyte": field(visitor_id="v" * 500_000),
        "year 2100": field(timestamp=LATE_MS),
        "before 1970": field(timestamp=-1),
        "a time without a zone": field(timestamp="2023-11-14T22:13:20"),
        "a time that is no time": field(timestamp="soon"),
        "a time beyond 64 bits": text.replace(str(plain["timestamp"]).encode(), b"9" * 40),
        "NaN": text[:-1] + b', "properties": {"x": NaN}}',
        "infinity": text[:-1] + b', "value": Infinity}',
        "deep nesting": text[:-1] + b', "x": ' + b"[" * 5_000 + b"]" * 5_000 + b"}",
        "unknown version": field(schema_version=99),
    }


def odd_visits(topic: str, at_ms: int) -> list[Sent]:
    """What looks like poison and is not: hostile values in fields that may hold anything."""
    values: list[dict[str, Any]] = [
        {"properties": {"x": 1e308, "y": -1e308, "z": 5e-324, "n": 2**63 - 1, "m": -(2**63)}},
        {"properties": {f"p{n}": n for n in range(256)}},
        {"properties": {"": "", "__class__": "x", "a" * 2_000: "b" * 8_000}},
        {"event_name": "constructor", "user_id": "' OR 1=1 --", "session_id": "{x}:1"},
        {"url": "not a url at all"},
        {"url": "https://a.example/%00%ff/<script>alert(1)</script>?=;DROP TABLE"},
        {"url": "https://[::1/" + "\u202e" * 50, "title": "\ud83d\ude00" * 1_000, "referrer": "x" * 5_000},
        {"url": "javascript:alert(1)", "user_agent": "\x1b[31m" + "y" * 20_000},
        {"visitor_id": "{tag}:\r\n* 1", "url": "=cmd|' /C calc'!A0"},
        {"timestamp": 0},
    ]  # fmt: skip
    found = []
    for number, value in enumerate(values):
        who = f"odd-{number}"
        plain = {"event_id": who, "timestamp": at_ms, "visitor_id": who, "url": "https://a.example/"}
        found.append(Sent(topic, who, json.dumps(plain | value).encode(), b"\xff" * (1 + 1_000 * number)))
    return found


def poison(names: "Topics", at_ms: int) -> list[Sent]:
    """Each kind on each topic."""
    found = []
    for make in (
        visit(names.visits, "p", "poison", at_ms, "https://a.example/"),
        outcome(names.outcomes, "p", "bought", at_ms),
    ):
        for number, (kind, value) in enumerate(bad_values(json.loads(make.value or b"")).items()):
            who = f"poison-{number}"
            found.append(
                Sent(
                    make.topic, who, value, kind.encode(), [("ce_time", b"\xff\xfe"), ("", b""), (kind, kind.encode())]
                )
            )
    return found


def every_record_has_one_fate(system: System, bad: int) -> Verdict:
    """Wait until nothing waits; as many are rejected as are bad, and each with a reason and its own bytes."""
    eventually_sync(lambda: system.status().lag == 0, 60, "nothing waits")
    eventually_sync(lambda: system.status().rejected == bad, 20, f"{bad} are rejected")
    verdict = verify(system).holds()
    status = system.status()
    assert len(verdict.rejected) == bad
    assert status.visits_scored == len(verdict.scored)
    of_visits = sum(source[0] == system.names.visits for source in verdict.rejected)
    assert of_visits + len(verdict.scored) == len(verdict.visits)
    originals = {record.source: record for record in [*verdict.visits, *verdict.outcomes]}
    for source, record in verdict.rejected.items():
        assert dict(record.headers)["error"], source
        assert (record.key, record.value) == (originals[source].key, originals[source].value)
    return verdict


def test_poison_of_every_kind_on_both_topics_is_set_aside_and_the_stream_goes_on(system: System, seed: int) -> None:
    """Among other records, in whose batches it comes; a worker is killed in the middle of it."""
    names, draw = system.names, random.Random(seed)
    good = traffic(names, seed, 3_000)
    already = sum(record.value == b"{" for record in good)
    bad = poison(names, BEGIN_MS) * 3
    mixed = list(good)
    for record in [*bad, *odd_visits(names.visits, BEGIN_MS)]:
        mixed.insert(draw.randrange(len(mixed)), record)
    system.publish(mixed)
    worker = system.start()
    system.until_scored(draw.randrange(200, 2_000))
    worker.kill()
    worker = system.start()
    verdict = every_record_has_one_fate(system, len(bad) + already)
    tolerated = {json.loads(record.value or b"")["visitor_id"] for record in odd_visits(names.visits, BEGIN_MS)}
    assert tolerated <= {answer["visitor_id"] for answer in verdict.scored.values()}
    until_as_undisturbed(system)
    assert worker.stop() == 0


@pytest.mark.long
def test_a_stream_of_nothing_but_poison_is_read_to_its_end_and_not_again(system: System, seed: int) -> None:
    """Whole polls without one readable record, and the last record of each partition one of them."""
    names = system.names
    bad = poison(names, BEGIN_MS) * 60
    random.Random(seed).shuffle(bad)
    small = [replace(record, visitor=f"w{n}") for n, record in enumerate(bad) if len(record.value or b"") < 10_000]
    system.publish(small)
    worker = system.start()
    every_record_has_one_fate(system, len(small))
    assert worker.stop() == 0
    worker = system.start()
    system.publish(traffic(names, seed, 200))
    already = sum(record.value == b"{" for record in traffic(names, seed, 200))
    verdict = every_record_has_one_fate(system, len(small) + already)
    assert verdict.repeated == [], "what was rejected before the restart is not read again"
    assert worker.stop() == 0


@pytest.mark.partitions(1)
def test_a_bomb_is_rejected_without_its_bulk(
    tmp_path: Path, real_kafka: str, store_url: str, make_topics: "Callable[..., Topics]", seed: int
) -> None:
    """A batch of some kilobytes, as the broker counts, that holds records of 32 MB: what is rejected is cut."""
    names, bulk = make_topics(real_kafka, 1), 32_000_000
    with System(tmp_path, real_kafka, store_url, names, SETTINGS, partitions=1) as system:
        system.publish(traffic(names, seed, 300))
        producer = Producer(
            {"bootstrap.servers": real_kafka, "compression.type": "gzip", "message.max.bytes": 900_000_000}
        )
        plain = {"event_id": "bomb", "timestamp": BEGIN_MS, "visitor_id": "bomb", "url": "https://a.example/"}
        for topic in (names.visits, names.outcomes):
            for value in (b" " * bulk, json.dumps(plain).encode() + b" " * bulk):
                producer.produce(topic, value, b"bomb", 0)
                producer.flush(60)
        system.publish(traffic(names, seed + 1, 300, begin_ms=BEGIN_MS + 1_000_000))
        worker = system.start()
        eventually_sync(lambda: system.status().lag == 0, 60, "nothing waits")
        verdict = verify(system).holds()
        bombs = [record for record in verdict.rejected.values() if record.key == b"bomb"]
        assert len(bombs) == 4
        for record in bombs:
            about = dict(record.headers)
            assert b"at most" in about["error"]
            assert int(about["cut_from_bytes"]) >= bulk
            assert len(record.value or b"") <= 900_000
        assert worker.child.poll() is None
        assert worker.stop() == 0
