"""A lesson survives the wire whole, or is refused with a sentence."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.lesson import UNKNOWN, WHOLE, CorruptLesson, Example, Examples, Lesson
from models.visits import RECENT, VisitContext, url_identity


def visit(url: str, *earlier: str, **changes: object) -> VisitContext:
    """A visit of `url` after `earlier` ones, newest first."""
    facts: dict[str, object] = {
        "url": url,
        "url_id": url_identity(url),
        "recent": tuple(url_identity(u) for u in earlier),
        "entry": url_identity(earlier[-1] if earlier else url),
        "position": len(earlier) + 1,
        "timestamp_ms": 1_700_000_000_000,
        "since_previous_ms": 1000 if earlier else -1,
        "since_start_ms": 1000 * len(earlier),
        "visits_before": len(earlier),
        "sessions_before": 0,
        "event_name": "page_view",
        "referrer": None,
        "user_agent": None,
        "title": None,
        "properties": {},
        "repeat": False,
    }
    return VisitContext(**{**facts, **changes})  # type: ignore[arg-type]


@given(
    st.lists(st.lists(st.text(max_size=6), min_size=1, max_size=RECENT + 3), max_size=8),
    st.lists(st.tuples(st.sampled_from(["bought", "left"]), st.binary(max_size=12), st.booleans()), max_size=8),
    st.integers(0, 2**50),
)
def test_a_decoded_lesson_equals_the_one_encoded(
    visits: list[list[str]], examples: list[tuple[str, bytes, bool]], through: int
) -> None:
    lesson = Lesson.of([visit(*urls) for urls in visits], [Example(*e) for e in examples], through)
    again = Lesson.decode(lesson.encode())
    for mine, other in (
        (lesson.steps.url, again.steps.url),
        (lesson.steps.recent, again.steps.recent),
        (lesson.steps.repeat, again.steps.repeat),
        (lesson.examples, again.examples),
    ):
        assert mine.dtype == other.dtype
        assert np.array_equal(mine, other)
    assert (lesson.names, lesson.tasks, lesson.features) == (again.names, again.tasks, again.features)
    assert again.trained_through_ms == through
    assert again.encode() == lesson.encode()


def test_a_row_shared_by_two_tasks_travels_once() -> None:
    lesson = Lesson.of([], [Example("a", b"x" * 400, True), Example("b", b"x" * 400, False)], 0)
    assert lesson.features == [b"x" * 400]
    assert lesson.examples.tolist() == [[0, 0, 1, WHOLE, *[UNKNOWN] * 3], [1, 0, 0, WHOLE, *[UNKNOWN] * 3]]


@given(st.data())
def test_a_torn_or_damaged_lesson_is_refused(data: st.DataObject) -> None:
    whole = Lesson.of([visit("b", "a")], [Example("bought", b"row", True)], 7).encode()
    cut = data.draw(st.integers(0, len(whole) - 1))
    flipped = bytearray(whole)
    flipped[cut] ^= 1 << data.draw(st.integers(0, 7))
    for blob in (whole[:cut], bytes(flipped), b"", whole + b"\0"):
        with pytest.raises(CorruptLesson):
            Lesson.decode(blob)


def test_earlier_visits_beyond_the_context_are_ignored() -> None:
    lesson = Lesson.of([visit("z", *"abcdefghijklmn")], [], 0)
    assert lesson.steps.recent[0].tolist() == [url_identity(u) for u in "abcdefghij"]


@given(
    st.lists(
        st.tuples(
            st.integers(0, 1), st.integers(0, 3), st.booleans(), st.floats(0.01, 1), st.integers(-1, 9), st.integers(-1, 2**40),
            st.integers(-1, 15),
        ),
        max_size=9,
    )
)  # fmt: skip
def test_examples_may_come_as_columns(told: list[tuple[int, int, bool, float, int, int, int]]) -> None:
    names, rows = ["bought", "left"], [b"a", b"b", b"c", b"d"]
    one_by_one = [Example(names[t], rows[r], *rest) for t, r, *rest in told]
    columns = [np.array(column) for column in zip(*told, strict=True)] if told else [np.zeros(0, int)] * 7
    given_ = Examples.from_columns(names, rows, *columns[:4], np.stack(columns[4:], axis=1))
    mine, theirs = Lesson.of([], given_, 1), Lesson.of([], one_by_one, 1)

    def meant(lesson: Lesson) -> list[object]:
        return [(lesson.tasks[t], lesson.features[r], *rest) for t, r, *rest in lesson.examples.tolist()]

    assert meant(mine) == meant(theirs) == meant(Lesson.decode(mine.encode()))
    assert [later for *_, later in meant(mine)] == [UNKNOWN if a < 0 else a for *_, a in told]
