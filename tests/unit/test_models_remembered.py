"""The memory of what was derived: bounded, and its answers do not depend on it."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from models.remembered import LONGEST, Remembered, short


def derive(text: str) -> tuple[float, float]:
    return float(len(text)), float(sum(map(ord, text)))


@given(st.lists(st.lists(st.text(max_size=3), max_size=12), max_size=12))
def test_it_answers_as_if_it_remembered_nothing(batches: list[list[str]]) -> None:
    memory: Remembered[str] = Remembered(derive, 2, entries=5)
    for batch in batches:
        assert memory.rows(batch, batch).tolist() == [list(derive(text)) for text in batch]


def test_it_derives_once_and_forgets_when_it_is_full() -> None:
    asked: list[str] = []
    memory: Remembered[str] = Remembered(lambda text: (asked.append(text), (1.0,))[1], 1, entries=3)  # type: ignore[func-returns-value]
    for batch in (["a", "b", "a"], ["a", "b", "c"], ["c"], ["d"], ["a"]):
        memory.rows(batch, batch)
    assert asked == ["a", "b", "c", "d", "a"]
    everything = [str(k) for k in range(100)]
    memory.rows(everything, everything)
    memory.rows(["x"], ["x"])
    assert len(memory._rows) <= 100


def test_long_texts_are_known_by_a_short_key_that_tells_them_apart() -> None:
    long = "x" * 100_000
    assert short("x" * LONGEST) == "x" * LONGEST
    assert len(short(long)) < LONGEST + 40
    assert isinstance(short(long), bytes), "no text can be the key of another one"
    assert short(long) != short(long + "y")
    assert short("\ud800" * 1_000)


@given(st.lists(st.lists(st.one_of(st.none(), st.text(max_size=2), st.just("x" * 600)), max_size=12), max_size=12))
def test_texts_are_their_own_sources_and_none_is_an_empty_one(batches: list[list[str | None]]) -> None:
    memory: Remembered[str] = Remembered(derive, 2, entries=5)
    for batch in batches:
        expected = [list(derive(text or "")) for text in batch]
        assert np.broadcast_to(memory.of_texts(batch), (len(batch), 2)).tolist() == expected
