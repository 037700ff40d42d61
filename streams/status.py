"""Status of the group: what the store counted, what the broker still holds, what the living workers report.

Counters are sums over partitions of what was committed together with the offsets, so they count each source record once,
survive restarts, and do not depend on any worker being alive. Lag is the distance between the topics' ends and the
offsets in the store: what is read but not yet checkpointed is still lag.
"""

import asyncio
import os
import socket
from collections.abc import Sequence

import msgspec

from models.insight import Drifts, Insight, Racing
from models.progressive import Progress
from models.ranking import WHO, Ranking
from streams import topics as broker
from streams.errors import ConfigError
from streams.latency import quantile_ms
from streams.outcomes import Counts
from streams.partition import Counters, Summary
from streams.settings import Settings
from streams.store import Position, Store

STALLED_AFTER_S = 15.0  # a checkpoint comes twice a second; thirty missed ones with lag are no hiccup


class WorkerReport(msgspec.Struct):
    """What a worker says of itself once a second."""

    id: str
    pid: int
    host: str
    partitions: list[int]
    in_flight: int  # records read and not yet checkpointed
    visits_per_second: float
    urls: int
    model_step: int
    idle_s: float  # since it last scored or checkpointed anything
    ready: bool
    latency_counts: list[int] = []
    freshness_counts: list[int] = []
    # How far its model was behind what other workers' partitions had taught when it last looked, and how long ago that was.
    staleness_ms: int = 0  # event time
    lessons_behind: int = 0
    looked_s: float = 0.0


class WorkerStatus(msgspec.Struct):
    """A living worker, as `status` shows it."""

    id: str
    pid: int
    host: str
    partitions: list[int]
    in_flight: int
    visits_per_second: float
    ready: bool
    staleness_ms: int  # event time by which the model was behind the other partitions' lessons when it last looked
    lessons_behind: int  # the same in lessons
    looked_s: float  # since it looked; a second or so, unless the store is away or the worker is stuck


class Quantiles(msgspec.Struct):
    """Milliseconds over the last minute; null when nothing happened."""

    p50: float | None
    p99: float | None


class Progressive(msgspec.Struct):
    """Metrics of one task, each example scored before it was learned. Null before both classes were seen."""

    auc: float | None
    logloss: float | None
    baseline_auc: float | None
    baseline_logloss: float | None
    ece: float | None  # expected calibration error, 15 bins
    baseline_ece: float | None
    examples: int


class NextUrlQuality(msgspec.Struct):
    """How well the next URL was foreseen: proposed before the visit, judged by it. Null before the first step."""

    hit_rate_at_10: float | None
    mrr_at_10: float | None  # mean of 1 / rank, 0 beyond ten


class Status(msgspec.Struct):
    """The group at one moment; field names are the contract's."""

    workers: list[WorkerStatus]
    lag: int  # records in both input topics that are not checkpointed
    seconds_to_drain: float | None  # null when nothing moves
    visits_scored: int
    visits_learned: int
    outcomes_joined: int
    outcomes_late: int
    outcomes_duplicate: int
    outcomes_unmatched: int
    examples_learned: int
    rejected: int
    duplicates: int
    keyless: int
    learning_share: float
    urls: int
    model_step: int
    latency_ms: Quantiles
    freshness_ms: Quantiles
    progressive: dict[str, Progressive]
    drift: dict[str, Drifts]  # task → how often the losses rose beyond chance
    experts: dict[str, dict[str, float]]  # task → expert → its weight in the answer
    racing: dict[str, Racing]  # task, or "" for all → what was chosen by progressive loss
    memory: int  # labelled sessions remembered
    next_url_hit_rate_at_10: float | None
    next_url: dict[str, NextUrlQuality]  # "model", and its opponents: "popularity", "markov"
    visits_per_second: float
    stalled: bool


def me() -> str:
    """This worker's id: unique among those that run."""
    return f"{socket.gethostname()}-{os.getpid()}"


async def read_status(settings: Settings, store: Store) -> Status:
    """Ask the store and the broker. Raises StoreError, BrokerError, ConfigError when topics are missing."""
    names = (settings.topics.visits, settings.topics.outcomes)
    seen = await asyncio.to_thread(broker.survey, settings.kafka, names)
    facts = seen.topics
    if missing := [name for name in names if name not in facts]:
        raise ConfigError(
            f"no topic {', '.join(missing)} on {settings.kafka}: create them with `url2vec topics --create`"
        )
    partitions = range(min(facts[name].partitions for name in names))
    positions = await asyncio.gather(*(store.position(p) for p in partitions))
    reports = [msgspec.msgpack.decode(blob, type=WorkerReport) for blob in await store.reports()]
    ids = tuple(facts[name].topic_id for name in names)
    lag = 0
    for partition, position in zip(partitions, positions, strict=True):
        log = position.log
        same = log is not None and (log.cluster, log.visits_topic, log.outcomes_topic) == (seen.cluster, *ids)
        read = (
            (position.visits, position.outcomes) if same else (0, 0)
        )  # offsets of another log say nothing of this one
        lag += sum(max(0, seen.ends[name, partition] - at) for name, at in zip(names, read, strict=True))
    return gather(positions, reports, lag)


def gather(positions: Sequence[Position], reports: Sequence[WorkerReport], lag: int) -> Status:
    """Add partitions and workers up."""
    counters, outcomes, progress, step, urls = Counters(), Counts(), dict[str, Progress](), 0, 0
    ranking = Ranking()
    said = list[tuple[int, bytes]]()
    for position in positions:
        summary = Summary.of(position)
        said.append((summary.model_step, summary.insight))
        if summary.ranking:
            ranking.merge(Ranking.decode(summary.ranking))
        counters.add(summary.counters)
        outcomes = outcomes + summary.outcomes
        step, urls = max(step, summary.model_step), max(urls, summary.urls)
        for task, blob in summary.progress.items():
            progress.setdefault(task, Progress()).merge(Progress.decode(blob))
    rate = sum(report.visits_per_second for report in reports)
    stalled = lag > 0 and all(report.idle_s > STALLED_AFTER_S for report in reports)
    insight = newest(said)
    originals = counters.visits_scored - counters.duplicates
    return Status(
        workers=[
            WorkerStatus(
                r.id,
                r.pid,
                r.host,
                r.partitions,
                r.in_flight,
                round(r.visits_per_second, 1),
                r.ready,
                r.staleness_ms,
                r.lessons_behind,
                round(r.looked_s, 1),
            )
            for r in sorted(reports, key=lambda r: r.id)
        ],
        lag=lag,
        seconds_to_drain=0.0 if not lag else round(lag / rate, 1) if rate else None,
        visits_scored=counters.visits_scored,
        visits_learned=counters.visits_learned,
        outcomes_joined=outcomes.joined,
        outcomes_late=outcomes.late,
        outcomes_duplicate=outcomes.duplicate,
        outcomes_unmatched=outcomes.unmatched,
        examples_learned=counters.examples_learned,
        rejected=counters.rejected,
        duplicates=counters.duplicates,
        keyless=counters.keyless,
        learning_share=round(counters.visits_learned / originals, 4) if originals else 1.0,
        urls=max([urls, *(report.urls for report in reports)]),
        model_step=max([step, *(report.model_step for report in reports)]),
        latency_ms=_quantiles([report.latency_counts for report in reports]),
        freshness_ms=_quantiles([report.freshness_counts for report in reports]),
        progressive={task: _progressive(kept) for task, kept in progress.items()},
        drift=insight.drift,
        experts={
            task: {name: round(weight, 4) for name, weight in weights.items() if weight == weight}
            for task, weights in insight.experts.items()
        },
        racing=insight.racing,
        memory=insight.memory,
        next_url_hit_rate_at_10=_finite(ranking.hits()),
        next_url={
            who: NextUrlQuality(_finite(ranking.hits(who)), _finite(ranking.reciprocal_rank(who))) for who in WHO
        },
        visits_per_second=round(rate, 1),
        stalled=stalled,
    )


def newest(said: Sequence[tuple[int, bytes]]) -> Insight:
    """Of insights with the model's step at which they were given, that of the highest; bytes that are none are passed over:
    a status without them is better than none."""
    for _, blob in sorted((pair for pair in said if pair[1]), key=lambda pair: pair[0], reverse=True):
        try:
            return Insight.decode(blob)
        except ValueError:
            continue
    return Insight()


def _quantiles(histograms: Sequence[Sequence[int]]) -> Quantiles:
    total = [sum(column) for column in zip(*histograms, strict=True)]
    return Quantiles(quantile_ms(total, 0.5), quantile_ms(total, 0.99))


def _progressive(kept: Progress) -> Progressive:
    return Progressive(
        auc=_finite(kept.auc()),
        logloss=_finite(kept.logloss()),
        baseline_auc=_finite(kept.baseline_auc()),
        baseline_logloss=_finite(kept.baseline_logloss()),
        ece=_finite(kept.ece()),
        baseline_ece=_finite(kept.baseline_ece()),
        examples=kept.n,
    )


def _finite(value: float | None) -> float | None:
    return None if value is None or value != value else round(value, 4)
