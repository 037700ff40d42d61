"""The contract of the learner: honest, deterministic, restorable, and never in the way of the stream."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.learner import CorruptSnapshot, Example, Learner, Lesson
from models.settings import ModelSettings
from models.visits import VisitBatch, VisitContext, url_identity
from tests.unit.test_models_lesson import visit

SMALL = ModelSettings(dims=8, slots=4, successor_slots=3, table_bits=10, embedding_bits=8, chunk=16)
TASKS = ("bought", "continues")


def sessions(seed: int, count: int, pages: int = 12) -> list[list[VisitContext]]:
    """Random walks inside one of two groups of pages; the group is also a property."""
    random = np.random.default_rng(seed)
    out = []
    for _ in range(count):
        group = random.integers(2)
        urls = [f"https://shop.example/{group}/{random.integers(pages)}" for _ in range(random.integers(1, 7))]
        walk = []
        for k, url in enumerate(urls):
            repeat = k > 0 and urls[k - 1] == url
            walk.append(visit(url, *urls[:k][::-1], properties={"group": int(group), "n": k / 3}, repeat=repeat))
        out.append(walk)
    return out


def lesson(learner: Learner, seed: int, count: int = 20) -> Lesson:
    """Sessions with examples of both tasks, as the pipeline would make them: scored, then taught."""
    visits = [v for walk in sessions(seed, count) for v in walk]
    rows = learner.score(visits).features
    random = np.random.default_rng(seed)
    examples = [Example(task, row, bool(random.random() < 0.5)) for row in rows for task in TASKS]
    return Lesson.of(visits, examples, seed)


@pytest.fixture
def taught() -> Learner:
    learner = Learner(SMALL, TASKS)
    for seed in range(3):
        learner.learn(lesson(learner, seed))
    return learner


def copy_of(learner: Learner) -> Learner:
    other = Learner(SMALL, TASKS)
    other.restore(learner.snapshot())
    return other


def same(a: Any, b: Any) -> bool:
    return np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b


def test_a_restored_learner_answers_and_learns_the_same_bits(taught: Learner) -> None:
    restored = copy_of(taught)
    assert restored.snapshot() == taught.snapshot()
    for seed in range(10, 13):
        teaching = lesson(taught, seed)
        asked = [v for walk in sessions(seed + 50, 5) for v in walk]
        taught.learn(teaching)
        restored.learn(teaching)
        one, two = taught.score(asked), restored.score(asked)
        assert all(same(getattr(one, name), getattr(two, name)) for name in vars(one))
    assert restored.snapshot() == taught.snapshot()
    assert (restored.step, restored.trained_through_ms) == (6, 12)


def test_a_lesson_teaches_the_same_bits_after_the_wire(taught: Learner) -> None:
    replica = copy_of(taught)
    for seed in range(20, 23):
        teaching = lesson(taught, seed)
        taught.learn(teaching)
        replica.learn(Lesson.decode(teaching.encode()))
    assert replica.snapshot() == taught.snapshot()


def test_a_learned_lesson_keeps_only_names_that_were_news(taught: Learner) -> None:
    known = sessions(0, 1)[0][0]
    teaching = Lesson.of([known, visit("https://shop.example/new")], [], 0)
    taught.learn(teaching)
    assert list(teaching.names.values()) == ["https://shop.example/new"]


def test_a_replica_names_a_url_once_the_name_arrives() -> None:
    learner = Learner(SMALL, TASKS)
    lesson = Lesson.of([visit("a"), visit("b", "a")], [], 0)
    del lesson.names[url_identity("a")]  # its sender had known it for long
    learner.learn(lesson)
    assert learner.knows("a")
    assert learner.nearest("b", 5) == []  # the neighbour has no name yet
    learner.learn(Lesson.of([visit("a")], [], 0))
    assert [url for url, _ in learner.nearest("b", 5)] == ["a"]


def test_scoring_changes_nothing(taught: Learner) -> None:
    before = taught.snapshot()
    taught.score([v for walk in sessions(99, 10) for v in walk])
    assert taught.snapshot() == before


def test_a_score_does_not_depend_on_what_shares_its_batch_or_comes_later(taught: Learner) -> None:
    visits = [v for walk in sessions(7, 8) for v in walk]
    together = taught.score(visits)
    for k, one in enumerate(visits):
        alone = taught.score([one])
        assert alone.features[0] == together.features[k]
        assert alone.next_urls[0] == together.next_urls[k]
        assert alone.novelty[0] == together.novelty[k]
        assert alone.baseline[0] == pytest.approx(together.baseline[k])
        assert alone.probability[0] == pytest.approx(together.probability[k], abs=1e-5)


def test_the_next_url_is_proposed_and_its_rank_is_told() -> None:
    learner = Learner(SMALL, TASKS)
    for _ in range(20):
        learner.learn(Lesson.of([visit("a"), visit("b", "a"), visit("b", "a"), visit("c", "a"), visit("d")], [], 0))
    scored = learner.score([visit("a"), visit("b", "a"), visit("z", "a"), visit("b", "a", repeat=True)])
    assert [url for url, _ in scored.next_urls[0]][:2] == ["b", "c"]
    assert scored.next_urls[0][0][1] == pytest.approx(2 / 3, abs=0.1)
    assert scored.ranks.tolist() == [[-1] * 3, [1, 1, 1], [0] * 3, [-1] * 3]


def test_a_step_never_seen_is_stranger_than_a_usual_one_and_a_new_url_than_both(taught: Learner) -> None:
    for _ in range(20):
        taught.learn(Lesson.of([visit("a"), visit("b", "a"), visit("c", "b", "a")], [], 0))
    usual, unusual, new = taught.score([visit("b", "a"), visit("a", "b"), visit("never", "a")]).novelty
    assert 0 <= usual < unusual < new < 1


def test_repeats_teach_no_pairs() -> None:
    learner = Learner(SMALL, TASKS)
    learner.learn(Lesson.of([visit("a"), visit("b"), visit("a", repeat=True), visit("a", "b", repeat=True)], [], 0))
    assert learner.nearest("a", 3) == []
    learner.learn(Lesson.of([visit("a", "b")], [], 0))
    assert learner.score([visit("b")]).next_urls[0][0][0] == "a"
    assert [url for url, _ in learner.nearest("a", 3)] == ["b"]


def test_nothing_at_all_is_answered_with_nothing() -> None:
    learner = Learner(SMALL, TASKS)
    scored = learner.score([])
    assert scored.features == []
    assert scored.probability.shape == scored.baseline.shape == (0, 2)
    learner.learn(Lesson.of([], [], 5))
    assert (learner.step, learner.trained_through_ms) == (1, 5)
    assert learner.vectors()[1].shape == (0, 8)
    assert learner.nearest("unknown", 3) == []


anything = st.one_of(st.text(max_size=9), st.integers(), st.floats(), st.booleans())
NASTY: dict[str, Any] = {
    "huge": 10**400, "-huge": -(10**400), "nan": float("nan"), "inf": float("inf"), "empty": "", "lone": "\ud800",
}  # fmt: skip


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.text(max_size=20),
    st.lists(st.text(max_size=3), max_size=8),
    st.dictionaries(st.text(max_size=6), anything, max_size=40),
    st.text(max_size=9),
    st.integers(-(2**53), 2**53),
)
def test_no_visit_stops_the_learner(
    taught: Learner, url: str, earlier: list[str], properties: dict[str, Any], text: str, time_ms: int
) -> None:
    asked = visit(
        url, *earlier, properties=properties | NASTY, event_name=text, referrer=text, user_agent=text,
        timestamp_ms=time_ms, since_start_ms=time_ms, since_previous_ms=time_ms,
    )  # fmt: skip
    scored = taught.score([asked, visit("\ud800://\x00")])
    for answer in (scored.probability, scored.baseline, scored.novelty):
        assert np.isfinite(answer).all()
        assert ((answer >= 0) & (answer <= 1)).all()
    teaching = Lesson.of([asked], [Example("bought", scored.features[0], True)], 0)
    taught.learn(Lesson.decode(teaching.encode()))
    assert np.isfinite(taught.score([asked]).probability).all()
    assert taught.skipped_steps == 0


def test_examples_of_unknown_tasks_and_foreign_rows_are_counted_and_left_out(taught: Learner) -> None:
    row = taught.score([visit("a")]).features[0]
    before = taught.examples
    taught.learn(Lesson.of([], [Example("unknown", row, True), Example("bought", b"other layout", True)], 0))
    taught.learn(Lesson.of([], [Example("bought", row, True), Example("bought", b"", True)], 0))
    assert taught.foreign_examples == 3
    assert taught.examples == before + 1


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_a_torn_or_damaged_snapshot_is_refused_and_changes_nothing(taught: Learner, data: st.DataObject) -> None:
    whole = taught.snapshot()
    at = data.draw(st.integers(0, len(whole) - 1))
    flipped = bytearray(whole)
    flipped[at] ^= 1 << data.draw(st.integers(0, 7))
    for blob in (whole[:at], bytes(flipped), b""):
        with pytest.raises(CorruptSnapshot):
            taught.restore(blob)
    assert taught.snapshot() == whole


@pytest.mark.parametrize(
    ("other", "tasks", "word"),
    [(ModelSettings(), TASKS, "dims"), (SMALL, ("bought",), "tasks"), (SMALL, ("continues", "bought"), "tasks")],
)
def test_a_snapshot_of_another_shape_is_refused_by_name(
    taught: Learner, other: ModelSettings, tasks: tuple[str, ...], word: str
) -> None:
    with pytest.raises(CorruptSnapshot, match=word):
        Learner(other, tasks).restore(taught.snapshot())


def test_a_full_vocabulary_refuses_what_was_seen_once_counts_and_goes_on() -> None:
    learner = Learner(ModelSettings(dims=4, capacity=10, table_bits=8, embedding_bits=8, part_bits=6), TASKS)
    for k in range(0, 60, 2):
        learner.learn(Lesson.of([visit(f"u{k}"), visit(f"u{k + 1}", f"u{k}")], [], 0))
    assert learner.urls == 5  # from there on a URL must be seen twice
    assert learner.refused_urls == 55
    assert learner.score([visit("u59", "u58")]).new_url.tolist() == [True]
    learner.learn(Lesson.of([visit("u59")], [], 0))
    assert learner.score([visit("u59")]).new_url.tolist() == [False]
    other = Learner(learner.settings, TASKS)
    other.restore(learner.snapshot())
    assert other.snapshot() == learner.snapshot()


def test_a_learner_without_tasks_still_learns_urls() -> None:
    learner = Learner(SMALL, ())
    learner.learn(Lesson.of([visit("a"), visit("b", "a")], [], 0))
    assert learner.score([visit("a")]).probability.shape == (1, 0)
    learner.restore(learner.snapshot())
    assert learner.knows("b")


def test_warming_up_leaves_the_learner_as_it_was(taught: Learner) -> None:
    before = taught.snapshot()
    taught.warm_up()
    assert taught.snapshot() == before


def test_an_identity_is_that_of_the_utf8() -> None:
    assert url_identity("") == 0x2D06800538D394C2  # published test vector of xxh3
    assert url_identity("https://é.example/") == xxhash.xxh3_64_intdigest("https://é.example/".encode())


def digest() -> str:
    """Of a learner taught some lessons from nothing."""
    learner = Learner(SMALL, TASKS)
    for seed in range(6):
        learner.learn(lesson(learner, seed))
    return xxhash.xxh3_64_hexdigest(learner.snapshot())


def test_another_process_learns_the_same_bits() -> None:
    program = "from tests.unit.test_models_learner import digest; print(digest())"
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    said = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=Path(__file__).parents[2], capture_output=True, check=True
    )
    assert said.stdout.decode().strip() == digest()


def test_a_visit_that_is_to_teach_nothing_gets_no_row_and_is_not_called_new() -> None:
    learner = Learner(SMALL, TASKS)
    for _ in range(3):
        learner.learn(Lesson.of([visit("logo.png", teaches=False)], [], 0))
    assert not learner.knows("logo.png")
    scored = learner.score([visit("logo.png", "a", teaches=False), visit("b", "a")])
    assert scored.new_url.tolist() == [False, True]
    assert scored.ranks[0].tolist() == [-1] * 3


def test_an_unseen_page_is_near_to_the_pages_beside_it(taught: Learner) -> None:
    assert not taught.knows("https://shop.example/0/never")
    assert taught.composed("https://shop.example/0/never")[0] == "path shop.example/0"
    near = taught.most_similar(["https://shop.example/0/never"], [], 5)
    assert all(url.startswith("https://shop.example/0/") for url, _ in near)
    with pytest.raises(KeyError):
        taught.most_similar(["ftp://elsewhere.example/"], [], 5)


def test_what_was_found_in_scoring_teaches_the_same_as_what_is_found_anew(taught: Learner) -> None:
    plain = copy_of(taught)
    for seed in range(5, 12):
        visits = [v for walk in sessions(seed, 12, pages=12 + 5 * seed) for v in walk]
        lessons = [Lesson.of(part, [], seed) for part in (visits, visits[1::2], visits[::-1], [visit("never scored")])]
        for one in lessons:  # all of a batch, a partition's share of it, others, and what the batch did not hold
            taught.score(visits)
            taught.learn(Lesson.decode(one.encode()))
            plain.learn(Lesson.decode(one.encode()))
            assert taught.snapshot() == plain.snapshot()
            if seed % 2:
                continue
            taught.learn(Lesson.decode(one.encode()))  # the model has changed since it scored
            plain.learn(Lesson.decode(one.encode()))
            assert taught.snapshot() == plain.snapshot()


def test_a_lesson_without_names_teaches_the_same_after_a_score_as_without(taught: Learner) -> None:
    plain, visits = copy_of(taught), [visit("x"), visit("y", "x"), visit("z", "y", "x")]
    nameless = Lesson.of(visits, [], 1)
    nameless.names.clear()
    taught.score(visits)
    taught.learn(Lesson.decode(nameless.encode()))
    plain.learn(Lesson.decode(nameless.encode()))
    assert taught.snapshot() == plain.snapshot()


def test_the_columns_of_proposals_say_what_the_list_says(taught: Learner) -> None:
    scored = taught.score([v for walk in sessions(7, 8) for v in walk])
    assert scored.next_rows.shape == scored.next_share.shape == (len(scored.features), 10)
    for rows, shares, urls in zip(scored.next_rows, scored.next_share, scored.next_urls, strict=True):
        told = [(scored.names[row], float(p)) for row, p in zip(rows, shares, strict=True) if row >= 0]
        assert told == urls
        assert (rows >= 0).sum() == len(urls)


def test_a_batch_of_columns_is_scored_and_taught_as_its_visits_are(taught: Learner) -> None:
    visits, other = [v for walk in sessions(8, 8) for v in walk], copy_of(taught)
    batch = VisitBatch.of(visits)
    part = batch.take(np.arange(len(batch)))
    assert taught.score(part).features == other.score(visits).features
    taught.learn(Lesson.of(batch, [], 1))
    other.learn(Lesson.of(visits, [], 1))
    assert taught.snapshot() == other.snapshot()
