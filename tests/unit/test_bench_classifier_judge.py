"""How `url2vec bench classifier` judges: its numbers against slow ones, and answers that went out by their outcomes."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.logs_lines import LogRecord, Unreadable
from schemas.records import ModelStamp, ScoredVisit, Source, VisitOutcome
from streams.bench.classifier_judge import BINS, POSITIONS, auc, by_position, ece, first_half, judge, log_loss
from streams.bench.classifier_pipeline import at_rate, config, judged
from streams.settings import CONTINUES, Settings, resolve
from tests.unit.test_bench_classifier import BOUGHT, START_MS, order, visit

answers = st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9, 1.0]), st.booleans()), min_size=1, max_size=40)


def arrays(pairs: Sequence[tuple[float, bool]]) -> tuple[Any, Any]:
    return np.array([p for p, _ in pairs], np.float32), np.array([y for _, y in pairs], np.float32)


# -- the judge -----------------------------------------------------------------------------------------------------------


@given(answers)
def test_auc_is_the_share_of_pairs_in_the_right_order(pairs: list[tuple[float, bool]]) -> None:
    wins = [(p > q) + 0.5 * (p == q) for p, y in pairs if y for q, x in pairs if not x]
    assert auc(*arrays(pairs)) == (pytest.approx(sum(wins) / len(wins)) if wins else None)


@given(answers)
def test_log_loss_is_the_mean_surprise(pairs: list[tuple[float, bool]]) -> None:
    surprise = [-math.log(min(max(p if y else 1 - p, 1e-7), 1 - 1e-7)) for p, y in pairs]
    assert log_loss(*arrays(pairs)) == pytest.approx(sum(surprise) / len(surprise), rel=1e-4)


@given(st.lists(st.tuples(st.floats(0, 1, width=32), st.booleans()), min_size=1, max_size=60))
def test_ece_is_the_weighed_distance_between_said_and_happened(pairs: list[tuple[float, bool]]) -> None:
    total = 0.0
    for b in range(BINS):
        mine = [(p, y) for p, y in pairs if min(int(p * BINS), BINS - 1) == b]
        if mine:
            said, happened = sum(p for p, _ in mine) / len(mine), sum(y for _, y in mine) / len(mine)
            total += len(mine) / len(pairs) * abs(said - happened)
    assert ece(*arrays(pairs)) == pytest.approx(total, abs=1e-6)


def test_what_has_no_label_or_no_answer_is_not_judged() -> None:
    p, y = np.array([0.9, 0.1, np.nan, 0.4], np.float32), np.array([1, np.nan, 0, 0], np.float32)
    found = judge(p, y)
    assert (found.visits, found.auc, found.positive) == (2, 1.0, 0.5)
    assert judge(p[:0], y[:0]).log_loss is None


def test_halves_are_of_the_judged_visits_and_positions_tell_visits_apart() -> None:
    y = np.array([1, np.nan, 0, 1, np.nan, 0], np.float32)
    first = first_half(y)
    assert first.tolist() == [True, True, True, False, False, False]
    position = np.array([1, 2, 3, 4, 6, 9], np.int32)
    found = by_position(np.full(6, 0.5, np.float32), y, position, first)
    assert list(found) == list(POSITIONS)
    assert [judged.whole.visits for judged in found.values()] == [1, 0, 1, 1, 1]
    assert [judged.last_half.visits for judged in found.values()] == [0, 0, 0, 1, 1]


# -- through the pipeline ------------------------------------------------------------------------------------------------


def answer(offset: int, visitor: str, at_s: float, p: float = 0.5, **more: Any) -> ScoredVisit:
    known: dict[str, Any] = {
        "event_id": f"{visitor}-{at_s}", "visitor_id": visitor, "session_id": f"{visitor}@", "url": "u", "novelty": 0.0,
        "timestamp_ms": START_MS + int(at_s * 1000), "scored_at_ms": 0, "scores": {"bought": p},
        "baseline": {"bought": 1 - p}, "model": ModelStamp(step=0, trained_through_ms=0),
        "source": Source(topic="web-visits", partition=0, offset=offset),
    }  # fmt: skip
    return ScoredVisit(**known | more)


def test_answers_are_judged_by_what_is_on_the_topics() -> None:
    scored = [
        answer(1, "a", 30, 0.8),
        answer(0, "a", 0, 0.7),
        answer(1, "a", 30, 0.1),  # written again after a crash: the first one counts
        answer(2, "b", 40, 0.2),
        answer(3, "a", 31, flags=("duplicate",)),
        answer(4, "c", 50, 0.4),  # itself an order: it is not asked
        answer(5, "z", 5_000, 0.3),
    ]
    bought = VisitOutcome(visitor_id="a", outcome="order", timestamp_ms=START_MS + 60_000)
    found = judged(scored, [bought], {(0, 4): "order"}, [BOUGHT], Settings("", "", tasks=(BOUGHT,)))
    assert found.probability[:, 0] == pytest.approx([0.7, 0.8, 0.2, 0.4, 0.3])
    assert found.label[:, 0].tolist()[:3] == [1, 1, 0]
    assert np.isnan(found.label[3:, 0]).all(), "an order is no question, and the log ends too soon for the last"
    assert found.position.tolist() == [1, 2, 1, 1, 1]


def test_a_rate_dates_records_anew_and_leaves_what_they_say() -> None:
    items = [visit(k * 100, "a") for k in range(5)] + [order(900, "a")]
    paced = list(at_rate([Unreadable(1, "torn"), *items], 10.0))
    records = [item for item in paced if isinstance(item, LogRecord)]
    assert [record.timestamp_ms for record in records] == [0, 100, 200, 300, 400, 500]
    assert [record.value for record in records] == [item.value for item in items]


def test_the_worker_is_told_the_same_tasks(tmp_path: Any) -> None:
    file = tmp_path / "url2vec.toml"
    file.write_text(config([BOUGHT], Settings("", "").session_gap_ms, 3))
    settings = resolve(kafka="h:1", redis="redis://h:1/0", config=str(file))
    assert (settings.tasks, settings.seed) == ((BOUGHT,), 3)
    file.write_text(config([CONTINUES], CONTINUES.horizon_ms, 0))
    assert resolve(kafka="h:1", redis="redis://h:1/0", config=str(file)).tasks == (CONTINUES,)
