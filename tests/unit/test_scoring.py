"""One micro-batch through the compute steps: scored first, then learned; each partition's lessons its own."""

import json
from dataclasses import dataclass, field
from typing import Any

import pytest
from faust.types import TP

from models.learner import Learner
from models.settings import ModelSettings
from streams.decode import RecordDecoder
from streams.outcomes import Task
from streams.partition import PartitionState, lessons_of
from streams.scoring import Answers, Steps
from streams.settings import Settings
from streams.store import LogIdentity, Position
from streams.transport import RecordBatch

SETTINGS = Settings(
    kafka="", redis="", tasks=(Task("bought", frozenset({"order"}), 600_000, "visitor"),), capacity=64, dims=8
)
NOW_MS = 1_800_000_000_000


@dataclass
class Record:
    """What the transport hands over of a Kafka record."""

    topic: str
    partition: int
    offset: int
    value: bytes | None
    key: bytes | None = b"v"
    timestamp: int = NOW_MS
    headers: list[tuple[str, bytes]] = field(default_factory=list)


class Bench:
    """The compute steps around a small model, with two partitions."""

    def __init__(self) -> None:
        self.learner = Learner(ModelSettings(dims=8, capacity=64, table_bits=10, embedding_bits=8), ["bought"])
        self.steps = Steps(SETTINGS, self.learner)
        self.decoder = RecordDecoder(SETTINGS)
        log = LogIdentity("cluster", "a", "b")
        self.states = {n: PartitionState(n, SETTINGS, Position(), log, []) for n in (0, 1)}
        self.offsets = {0: 0, 1: 0}

    def run(self, *visits: dict[str, Any], partition: int = 0, topic: str = "web-visits") -> Answers:
        """Take visits (or outcomes) of one partition through every step but the checkpoint."""
        records = []
        for visit in visits:
            value = visit["raw"] if "raw" in visit else json.dumps(visit).encode()
            records.append(Record(topic, partition, self.offsets[partition], value))
            self.offsets[partition] += 1
        decoded = self.decoder.decode(RecordBatch(TP(topic, partition), records, 1, 0), NOW_MS)
        state = self.states[partition]
        state.meet(state.unknown(decoded.visitor_ids()), {})
        answers = self.steps.score([decoded], self.states)
        self.steps.learn([decoded], answers, self.states)
        return answers

    def scores(self, answers: Answers, partition: int = 0) -> list[dict[str, Any]]:
        return [json.loads(value or b"") for _, value, _ in answers.records[partition]]


def visit(n: int, visitor: str = "v", url: str = "https://shop.example/cart", **more: Any) -> dict[str, Any]:
    return {
        "event_id": f"{visitor}-{n}",
        "timestamp": NOW_MS - 3_600_000 + n * 1_000,
        "visitor_id": visitor,
        "url": url,
    } | more


def order(n: int, visitor: str = "v", **more: Any) -> dict[str, Any]:
    return {"visitor_id": visitor, "outcome": "order", "timestamp": NOW_MS - 3_600_000 + n * 1_000} | more


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_no_score_of_a_micro_batch_depends_on_what_it_teaches(bench: Bench) -> None:
    together = bench.scores(bench.run(*(visit(n, f"v{n}") for n in range(50))))
    assert {answer["model"]["step"] for answer in together} == {0}
    assert bench.learner.step == 1, "the micro-batch was learned after it was scored"
    assert bench.scores(bench.run(visit(60)))[0]["model"]["step"] == 1


def test_an_answer_names_its_source_its_session_and_both_opinions(bench: Bench) -> None:
    answer = bench.scores(bench.run(visit(0)))[0]
    assert answer["source"] == {"topic": "web-visits", "partition": 0, "offset": 0}
    assert answer["session_id"] == f"v@{answer['timestamp']}"
    assert set(answer["flags"]) == {"new_url", "new_visitor"}
    assert 0 <= answer["scores"]["bought"] <= 1
    assert 0 <= answer["baseline"]["bought"] <= 1


def test_an_outcome_is_learned_with_the_features_of_its_visit(bench: Bench) -> None:
    bench.run(visit(0), visit(1))
    bench.run(order(5), topic="visit-outcomes")
    bench.steps.settle([bench.states[0]])
    assert bench.states[0].counters.examples_learned == 2
    assert bench.states[0].join.counts.joined == 1
    assert bench.learner.examples == 2


def test_a_visit_that_is_an_outcome_answers_those_before_it_and_not_itself(bench: Bench) -> None:
    bench.run(visit(0), visit(1), visit(2, event_name="order"))
    bench.steps.settle([bench.states[0]])
    assert bench.states[0].counters.examples_learned == 2, "its own question would be answered by its own name"


def test_a_duplicate_is_answered_and_teaches_nothing(bench: Bench) -> None:
    answers = bench.scores(bench.run(visit(0), visit(0)))
    assert [("duplicate" in answer["flags"]) for answer in answers] == [False, True]
    counters = bench.states[0].counters
    assert (counters.visits_scored, counters.visits_learned, counters.duplicates) == (2, 1, 1)


def test_what_cannot_be_read_is_set_aside_with_its_bytes(bench: Bench) -> None:
    records = [Record("web-visits", 0, 7, b"{not json")]
    decoded = bench.decoder.decode(RecordBatch(TP("web-visits", 0), records, 1, 0), NOW_MS)
    [(key, value, headers)] = decoded.rejected
    assert (key, value) == (b"v", b"{not json")
    assert dict(headers)["source_offset"] == b"7"
    assert dict(headers)["error"]


def test_lessons_stay_apart_by_partition(bench: Bench) -> None:
    bench.run(visit(0, "a", "https://shop.example/a"), partition=0)
    bench.run(visit(0, "b", "https://shop.example/b"), partition=1)
    taught = {n: lessons_of(state.checkpoint(1, 1).lesson) for n, state in bench.states.items()}
    assert [list(lesson.names.values()) for lesson in taught[0]] == [["https://shop.example/a"]]
    assert [list(lesson.names.values()) for lesson in taught[1]] == [["https://shop.example/b"]]


def test_answers_are_learned_in_the_order_of_their_visits(bench: Bench) -> None:
    """Whatever order they became known in: a run of one kind of answer would swing the learner."""
    bench.run(visit(0, "late"), visit(10, "early"))
    bench.run(order(20, "early"), topic="visit-outcomes")
    bench.run(order(21, "late", value=False), topic="visit-outcomes")
    bench.steps.settle([bench.states[0]])
    lesson = lessons_of(bench.states[0].checkpoint(1, 1).lesson)[-1]
    assert lesson.examples[:, 2].tolist() == [0, 1], "the earlier visit's answer comes first, though it was known last"
