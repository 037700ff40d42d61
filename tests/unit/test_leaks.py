"""Nothing may be known before its time. Each check is also run on a planted leak, and must catch it.

Two checks. Of *rows*: the row of a visit is the same bytes when everything after the visit, and every answer that was not
known yet, is cut off or turned round. Of *scores*: when the answers are coin flips nobody can foresee them, so the
progressive AUC of the whole model is one half, but for chance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.features import Features
from models.learner import Learner
from models.lesson import Example, Lesson, Steps
from models.settings import ModelSettings
from models.url2vec import URL2Vec
from models.visits import VisitContext
from schemas.records import WebVisit
from streams.sessions import Sessioniser
from streams.visitor_layouts import Visitor
from tests.unit.test_models_lesson import visit

SMALL = ModelSettings(dims=8, capacity=256, table_bits=12, embedding_bits=10, part_bits=8)
MODEL = URL2Vec(SMALL)
FEATURES = Features(SMALL, 1)

# -- rows ----------------------------------------------------------------------------------------------------------------

Event = tuple[WebVisit, bool]  # and the answer to its question, which nobody knows while visits are scored
Maker = Callable[[Sequence[Event]], list[bytes]]


def first_leak(maker: Maker, stream: Sequence[Event]) -> int | None:
    """The first visit whose row depends on what comes after it, or on an answer not known yet; None where none does."""
    rows = maker(stream)
    for k in range(len(stream)):
        read = stream[: k + 1]
        other_answers = [(event, not answer) for event, answer in stream]
        if not rows[k] == maker(read)[k] == maker(other_answers)[k]:
            return k
    return None


def contexts(stream: Sequence[Event]) -> list[VisitContext]:
    sessions, visitors = Sessioniser(1_800_000), dict[str, Visitor]()
    out = []
    for event, _ in stream:
        visitors[event.visitor_id], context, _ = sessions.visit(visitors.get(event.visitor_id), event, 0)
        out.append(context)
    return out


def as_built(stream: Sequence[Event]) -> list[bytes]:
    """Through sessions and features, as the pipeline does it, in one batch."""
    asked = contexts(stream)
    return [made.tobytes() for made in FEATURES.rows(asked, Steps.of(asked), MODEL)]


def knows_the_answer(stream: Sequence[Event]) -> list[bytes]:
    """A planted leak: the answer among the properties."""
    asked = [
        replace(context, properties={**context.properties, "bought": answer})
        for context, (_, answer) in zip(contexts(stream), stream, strict=True)
    ]
    return [made.tobytes() for made in FEATURES.rows(asked, Steps.of(asked), MODEL)]


def knows_the_length(stream: Sequence[Event]) -> list[bytes]:
    """A planted leak, of the kind that happens: how long the session lasts, counted before it has ended."""
    asked = contexts(stream)
    length = {context.session: context.position for context in asked}
    asked = [replace(context, position=length[context.session]) for context in asked]
    return [made.tobytes() for made in FEATURES.rows(asked, Steps.of(asked), MODEL)]


def event(at: int, visitor: str, minute: int, page: int, name: str, session_id: str | None) -> WebVisit:
    return WebVisit(
        event_id=str(at), timestamp_ms=1_700_000_000_000 + 60_000 * minute, visitor_id=visitor,
        url=f"https://shop.example/{page}", event_name=name, session_id=session_id, properties={"price": page / 2},
    )  # fmt: skip


STREAMS = st.lists(
    st.tuples(
        st.builds(
            event, st.integers(0, 1_000), st.sampled_from("ab"), st.integers(0, 90), st.integers(0, 4),
            st.sampled_from(["view", "cart"]), st.sampled_from([None, None, "s"]),
        ),
        st.booleans(),
    ),
    max_size=8,
)  # fmt: skip


@settings(derandomize=True, max_examples=100, deadline=None)
@given(STREAMS)
def test_a_row_depends_on_nothing_that_comes_after_its_visit(stream: list[Event]) -> None:
    assert first_leak(as_built, stream) is None


@pytest.mark.parametrize("leak", [knows_the_answer, knows_the_length])
def test_a_planted_leak_in_the_rows_is_caught(leak: Maker) -> None:
    stream = [(event(k, "a", k, k, "view", None), k % 2 == 0) for k in range(5)]
    assert first_leak(as_built, stream) is None
    assert first_leak(leak, stream) == 0


# -- scores --------------------------------------------------------------------------------------------------------------

BATCH, BATCHES, DELAY = 64, 40, 4
Ask = Callable[[Learner, list[VisitContext], list[bool]], tuple[np.ndarray, list[bytes]]]


def honest(learner: Learner, visits: list[VisitContext], answers: list[bool]) -> tuple[np.ndarray, list[bytes]]:
    scored = learner.score(visits)
    return scored.probability[:, 0], scored.features


def counts_first(learner: Learner, visits: list[VisitContext], answers: list[bool]) -> tuple[np.ndarray, list[bytes]]:
    """A planted leak: the batch is learned, count tables and all, and only then scored."""
    rows = learner.score(visits).features
    examples = [Example("bought", made, answer) for made, answer in zip(rows, answers, strict=True)]
    learner.learn(Lesson.of([], examples, 1))
    return honest(learner, visits, answers)


def answer_inside(learner: Learner, visits: list[VisitContext], answers: list[bool]) -> tuple[np.ndarray, list[bytes]]:
    """A planted leak: the answer is a property of the visit."""
    told = [replace(v, properties={**v.properties, "bought": a}) for v, a in zip(visits, answers, strict=True)]
    scored = learner.score(told)
    return scored.probability[:, 0], scored.features


def standard_errors_from_chance(ask: Ask, seed: int) -> float:
    """Progressive AUC on coin flips, learned `DELAY` batches later: its distance from one half in standard errors."""
    draw = np.random.default_rng(seed)
    learner = Learner(SMALL, ["bought"])
    waiting: list[tuple[list[VisitContext], list[Example]]] = []
    score: list[np.ndarray] = []
    label: list[bool] = []
    for _ in range(BATCHES):
        pages = draw.integers(0, 30, (BATCH, 3))
        visits = [
            visit(
                f"https://shop.example/{a}", f"https://shop.example/{30 + b}", event_name=f"kind {c % 4}",
                properties={"request": f"{draw.integers(2**60):x}", "price": float(a)},
            )
            for a, b, c in pages.tolist()
        ]  # fmt: skip
        answers = (draw.random(BATCH) < 0.5).tolist()
        given_scores, rows = ask(learner, visits, answers)
        score.append(given_scores)
        label += answers
        waiting.append((visits, [Example("bought", r, y) for r, y in zip(rows, answers, strict=True)]))
        if len(waiting) > DELAY:
            learner.learn(Lesson.of(*waiting.pop(0), 1))
    return from_chance(np.concatenate(score), np.array(label))


def from_chance(score: np.ndarray, label: np.ndarray) -> float:
    """(AUC - 1/2) in standard errors under no relation (Hanley & McNeil 1982): sqrt((P + N + 1) / 12PN). Ties count half."""
    values, at, times = np.unique(score, return_inverse=True, return_counts=True)
    rank = (np.cumsum(times) - (times - 1) / 2)[at]
    positives = int(label.sum())
    negatives = len(label) - positives
    assert len(values) > 1
    auc = (rank[label].sum() - positives * (positives + 1) / 2) / (positives * negatives)
    return float((auc - 0.5) / math.sqrt((positives + negatives + 1) / (12 * positives * negatives)))


def test_the_distance_from_chance_is_what_it_says() -> None:
    label = np.array([True] * 50 + [False] * 50)
    assert from_chance(label.astype(float), label) == pytest.approx(0.5 / math.sqrt(101 / 30_000))
    draw = np.random.default_rng(0)
    apart = [from_chance(draw.random(200), draw.random(200) < 0.5) for _ in range(300)]
    assert np.std(apart) == pytest.approx(1, abs=0.15)


def test_nobody_foresees_a_coin_flip() -> None:
    assert abs(standard_errors_from_chance(honest, seed=1)) < 3


@pytest.mark.parametrize("leak", [counts_first, answer_inside])
def test_a_planted_leak_in_the_scores_is_caught(leak: Ask) -> None:
    assert standard_errors_from_chance(leak, seed=1) > 3
