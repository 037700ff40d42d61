"""The same question put to the running pipeline: broker, store and a worker, and what came out on the topics.

A log is replayed into an embedded broker. When a worker has scored, learned and checkpointed all of it, the answers are
read from `scored-visits`, ours and River's as they went out with each visit, and judged by the outcomes that are on the
topics: progressive by construction, as nobody can go back to an answer. How long outcomes took is the worker's affair: at
full speed it learns from a backlog, at `--rate` it has the time that a site would give it.

Labels are made here from the topics alone, by an `OutcomeJoin` that is given everything first and the end of time last.
"""

import asyncio
import itertools
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from kafka import KafkaConsumer, TopicPartition

from deploy.local import Local
from schemas.decoding import BadEvent, Decoder
from schemas.logs_lines import LogItem, LogRecord
from schemas.records import ScoredVisit, VisitOutcome
from streams import topics as broker
from streams.bench.classifier_judge import F32, I32, by_position, first_half, halves
from streams.bench.classifier_report import Row
from streams.cli_status import until_drained
from streams.decode import outcome_in
from streams.errors import BrokerError, ConfigError, StoreError
from streams.outcomes import OutcomeJoin, Task
from streams.replay import replay
from streams.settings import Settings

PARTITIONS = 4
DRAIN_LIMIT_S = 3_600.0
_READ_LIMIT_S = 60.0
_BEFORE_ALL_MS = -(2**62)  # a watermark that nothing is behind


@dataclass
class Judgement:
    """What stood on the topics in the end: n answers in the order of event time, duplicates left out. T tasks."""

    probability: F32  # (n, T)
    baseline: F32  # (n, T)
    label: F32  # (n, T), NaN where unknown
    position: I32  # (n,)
    seconds: float = 0.0  # from the first record published to the last one learned
    scored: int = 0


def config(tasks: Sequence[Task], session_gap_ms: int, seed: int) -> str:
    """Settings with these tasks and nothing else."""
    lines = [f'session_gap = "{session_gap_ms}ms"', "[model]", f"seed = {seed}"]
    for task in tasks:
        if task.outcomes:
            names = msgspec.json.encode(sorted(task.outcomes)).decode()
            lines += [f"[tasks.{task.name}]", f"outcomes = {names}", f'horizon = "{task.horizon_ms}ms"']
            lines.append(f'scope = "{task.scope}"')
    return "\n".join(lines) + "\n"


def run(
    items: Iterable[LogItem], tasks: Sequence[Task], seed: int, rate: float | None, say: Callable[[str], None]
) -> Judgement:
    """Start everything, replay, wait until all is learned, judge, and leave nothing behind."""
    with tempfile.TemporaryDirectory(prefix="url2vec-bench-") as folder:
        file = Path(folder) / "url2vec.toml"
        file.write_text(config(tasks, Settings("", "").session_gap_ms, seed), encoding="utf-8")
        with Local(config=str(file), data_dir=Path(folder) / "data", partitions=PARTITIONS, say=say) as local:
            stop = threading.Event()
            threading.Thread(target=_supervise, args=(local, stop, say), daemon=True).start()
            try:
                began = time.monotonic()
                asyncio.run(_replayed(items, local.settings, rate, say))
                seconds = time.monotonic() - began
                found = judgement(local.settings, tasks)
            finally:
                stop.set()
    found.seconds = seconds
    return found


def _supervise(local: Local, stop: threading.Event, say: Callable[[str], None]) -> None:
    try:
        local.supervise(stop)
    except (ConfigError, BrokerError, StoreError) as error:
        say(str(error))


async def _replayed(
    items: Iterable[LogItem], settings: Settings, rate: float | None, say: Callable[[str], None]
) -> None:
    topics = settings.topics
    paced = items if rate is None else at_rate(items, rate)
    await replay(
        paced, kafka=settings.kafka, visits_topic=topics.visits, outcomes_topic=topics.outcomes,
        speed=None if rate is None else 1.0, report=say,
    )  # fmt: skip
    await until_drained(settings, DRAIN_LIMIT_S)


def at_rate(items: Iterable[LogItem], rate: float) -> Iterator[LogItem]:
    """The same records, dated so that replay sends `rate` visits a second; what they say of themselves stays."""
    visits = 0
    for item in items:
        if isinstance(item, LogRecord):
            yield item._replace(timestamp_ms=int(visits / rate * 1000))
            visits += item.kind == "visit"
        else:
            yield item


# -- judging -------------------------------------------------------------------------------------------------------------


def judgement(settings: Settings, tasks: Sequence[Task]) -> Judgement:
    """Read all topics to their ends, and judge each answer by the outcome."""
    topics, decoder, now_ms = settings.topics, Decoder(), int(time.time() * 1000)
    event_names: dict[tuple[int, int], str] = {}  # partition, offset
    outcomes: list[VisitOutcome] = []
    listened = frozenset[str]().union(*(task.outcomes for task in tasks))
    for record in _all(settings.kafka, topics.visits):
        with suppress(BadEvent):
            visit = decoder.visit(record.key, record.value, record.headers, now_ms)
            event_names[record.partition, record.offset] = visit.event_name
            if visit.event_name in listened:
                outcomes.append(outcome_in(visit))
    for record in _all(settings.kafka, topics.outcomes):
        with suppress(BadEvent):
            outcomes.append(decoder.outcome(record.key, record.value, record.headers, now_ms))
    scored = [msgspec.json.decode(record.value, type=ScoredVisit) for record in _all(settings.kafka, topics.scored)]
    return judged(scored, outcomes, event_names, tasks, settings)


def judged(
    scored: Sequence[ScoredVisit], outcomes: Sequence[VisitOutcome], event_names: dict[tuple[int, int], str],
    tasks: Sequence[Task], settings: Settings,
) -> Judgement:  # fmt: skip
    """Answers with the labels that follow from the topics. `event_names` by partition and offset of a visit."""
    seen: set[tuple[int, int]] = set()
    kept: list[ScoredVisit] = []
    for answer in sorted(scored, key=lambda answer: (answer.source.partition, answer.source.offset)):
        place = (answer.source.partition, answer.source.offset)
        if place not in seen and "duplicate" not in answer.flags:  # one written twice, after a crash, counts once
            kept.append(answer)
        seen.add(place)
    # A visitor's visits keep their order: sorting is stable, and a visitor is in one partition.
    kept.sort(key=lambda answer: answer.timestamp_ms)
    names = [task.name for task in tasks]
    join = OutcomeJoin(tasks, settings.session_gap_ms)
    label = np.full((len(kept), len(tasks)), np.nan, np.float32)
    settled, open_questions = [], [0] * len(tasks)
    for k, answer in enumerate(kept):
        name = event_names.get((answer.source.partition, answer.source.offset), "")
        asked = {task.name: (0.5, 0.5) for task in tasks if name not in task.outcomes}
        for t, task in enumerate(tasks):
            open_questions[t] += task.name in asked
        settled += join.visit(
            answer.visitor_id, answer.session_id, answer.event_id, answer.timestamp_ms, b"%d" % k, asked, _BEFORE_ALL_MS
        )
    for outcome in sorted(outcomes, key=lambda outcome: outcome.timestamp_ms):
        settled += join.outcome(outcome.visitor_id, outcome, _BEFORE_ALL_MS)
    times = [answer.timestamp_ms for answer in kept] + [outcome.timestamp_ms for outcome in outcomes]
    end_ms = max(times, default=0) - settings.allowed_lateness_ms
    settled += join.advance(end_ms)
    for pair in settled:
        label[int(pair.features), names.index(pair.task)] = pair.label
        open_questions[names.index(pair.task)] -= 1
    at_ms = np.array([answer.timestamp_ms for answer in kept], np.int64)
    for t, task in enumerate(tasks):
        if open_questions[
            t
        ]:  # of visits that the log ends too soon for, only those are known that had their outcome soon
            label[at_ms + (task.horizon_ms if task.outcomes else settings.session_gap_ms) >= end_ms, t] = np.nan
    return Judgement(
        np.array([[answer.scores[name] for name in names] for answer in kept], np.float32).reshape(-1, len(names)),
        np.array([[answer.baseline[name] for name in names] for answer in kept], np.float32).reshape(-1, len(names)),
        label,
        _positions(kept),
        scored=len(scored),
    )


def _positions(kept: Sequence[ScoredVisit]) -> I32:
    """(n,) 1 for the first visit of a session."""
    counters: dict[tuple[str, str], Iterator[int]] = {}
    return np.array(
        [next(counters.setdefault((a.visitor_id, a.session_id), itertools.count(1))) for a in kept], np.int32
    )


def _all(kafka: str, topic: str) -> Iterator[Any]:
    """Every record of a topic as it is now. Raises BrokerError where they do not come."""
    facts = broker.describe(kafka, [topic])
    ends = broker.end_offsets(kafka, [(topic, number) for number in range(facts[topic].partitions)])
    waiting = {TopicPartition(*place): end for place, end in ends.items() if end}
    consumer = KafkaConsumer(bootstrap_servers=kafka, group_id=None, enable_auto_commit=False)
    try:
        consumer.assign(list(waiting))
        consumer.seek_to_beginning(*waiting)
        last_s = time.monotonic()
        while waiting:
            for where, records in consumer.poll(timeout_ms=500, max_records=10_000).items():
                last_s = time.monotonic()
                yield from records
                if where in waiting and records[-1].offset + 1 >= waiting[where]:
                    del waiting[where]
            if time.monotonic() - last_s > _READ_LIMIT_S:
                raise BrokerError(f"Kafka at {kafka} does not give {topic} to its end")
    finally:
        consumer.close(autocommit=False)


def rows(found: Judgement, tasks: Sequence[Task]) -> list[Row]:
    """Ours and River's, a row each and task."""
    out = []
    for t, task in enumerate(tasks):
        y = found.label[:, t]
        first = first_half(y)
        for name, p in (
            ("url2vec, as it went out", found.probability[:, t]),
            ("River, as it went out", found.baseline[:, t]),
        ):
            out.append(
                Row(
                    task=task.name,
                    name=name,
                    said=1.0,
                    all=halves(p, y, first),
                    by_position=by_position(p, y, found.position, first),
                )
            )
    return out
