"""A row belongs to one URL; who gets one, when, and which."""

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from models.vocabulary import Vocabulary

KEYS = ("ids", "names", "lengths", "sketch", "counters")


def ids(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.uint64)


def rows(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int32)


def named(n: int, capacity: int = 8) -> Vocabulary:
    vocabulary = Vocabulary(capacity)
    vocabulary.admit(ids(*range(1, n + 1)))
    vocabulary.name({k: f"/{k}" for k in range(1, n + 1)})
    return vocabulary


@pytest.mark.parametrize("after", [1, 2, 3, 5])
def test_a_url_gets_a_row_at_once_and_at_its_kth_visit_when_half_of_them_are_taken(after: int) -> None:
    vocabulary = Vocabulary(10, after)
    row, fresh = vocabulary.admit(ids(1, 2, 3, 4, 5))
    assert row.tolist() == fresh.tolist() == [0, 1, 2, 3, 4]
    for _ in range(after - 1):
        assert vocabulary.admit(ids(6, 1))[0].tolist() == [-1, 0]
    assert vocabulary.admit(ids(6, 1))[0].tolist() == [5, 0]
    assert vocabulary.refused == after - 1
    assert vocabulary.admit(ids(*[7] * after))[0].tolist() == [-1] * (after - 1) + [6]  # within one lesson too
    assert vocabulary.refused == 2 * (after - 1)


def test_half_is_half_of_the_capacity_however_the_visits_are_batched() -> None:
    for batch in (1, 7, 100, 3000):
        vocabulary = Vocabulary(5000, 2)
        for start in range(1, 3001, batch):
            vocabulary.admit(np.arange(start, min(start + batch, 3001), dtype=np.uint64))
        known = vocabulary.find(np.arange(1, 3001, dtype=np.uint64)) >= 0
        assert known[:2500].all(), batch
        # The sketch has 8,192 counters in a row: of 500 ids few meet others in both.
        assert known[2500:].sum() <= 5, batch


def test_when_all_rows_are_taken_nobody_gets_one_and_visits_are_counted_as_refused() -> None:
    vocabulary = Vocabulary(3)
    row, fresh = vocabulary.admit(ids(1, 2, 3, 4, 5, 1, 4))
    assert row.tolist() == [0, 1, 2, -1, -1, 0, -1]
    assert fresh.tolist() == [0, 1, 2]
    assert (vocabulary.refused, vocabulary.live, vocabulary.count) == (3, 3, 3)


def test_no_url_is_neither_found_nor_admitted_nor_refused() -> None:
    vocabulary = Vocabulary(4)
    assert vocabulary.admit(ids(0, 7, 0))[0].tolist() == [-1, 0, -1]
    assert vocabulary.find(np.zeros((2, 3), np.uint64)).tolist() == [[-1] * 3] * 2
    assert (vocabulary.refused, vocabulary.live) == (0, 1)


def test_the_lowest_free_row_is_used_first_and_has_no_name_then() -> None:
    vocabulary = named(6)
    vocabulary.remove(rows(4, 1, 3))
    assert vocabulary.live == 3
    assert vocabulary.find(ids(1, 2, 3, 4, 5, 6)).tolist() == [0, -1, 2, -1, -1, 5]
    assert vocabulary.names[:6] == ["/1", "", "/3", "", "", "/6"]
    row, fresh = vocabulary.admit(ids(20, 21, 22, 23))
    assert row.tolist() == fresh.tolist() == [1, 3, 4, 6]
    assert vocabulary.names[:7] == ["/1", "", "/3", "", "", "/6", ""]
    assert (vocabulary.live, vocabulary.count) == (7, 7)


def test_a_name_is_news_once_and_is_given_to_known_urls_alone() -> None:
    vocabulary = Vocabulary(4)
    vocabulary.admit(ids(5, 6))
    assert vocabulary.name({5: "/five", 9: "/nine"}) == {5: "/five"}
    assert vocabulary.name({5: "/other", 6: ""}) == {}
    assert vocabulary.names[:2] == ["/five", ""]
    assert vocabulary.name({}) == {}


def test_what_was_seen_once_long_ago_is_not_what_was_seen_once_today() -> None:
    vocabulary = Vocabulary(100, 2)
    vocabulary.admit(np.arange(1, 51, dtype=np.uint64))
    assert vocabulary.admit(ids(1000))[0].tolist() == [-1]
    counted = 0
    while vocabulary.state()["counters"][1] >= counted:  # until the sketch is halved: one visit and a half are none
        counted = vocabulary.state()["counters"][1]
        vocabulary.remove(vocabulary.admit(ids(2000))[1])
        assert vocabulary.admit(ids(1, 50))[0].tolist() == [0, 49]  # those that have a row do not count
    assert vocabulary.admit(ids(1000))[0].tolist() == [-1]
    assert vocabulary.admit(ids(1000))[0].tolist() == [50]


def test_many_urls_that_nobody_visits_twice_get_few_rows() -> None:
    """Ten times as many as there is room for, a thousand a lesson; rows that are given go back at once."""
    vocabulary, got = Vocabulary(8192, 2), 0
    vocabulary.admit(np.arange(1, 4097, dtype=np.uint64))
    for start in range(10_000, 90_000, 1000):
        _, fresh = vocabulary.admit(np.arange(start, start + 1000, dtype=np.uint64))
        got += len(fresh)
        vocabulary.remove(fresh)
    assert got < 0.03 * 80_000


def test_names_of_any_kind_survive_a_snapshot() -> None:
    vocabulary = Vocabulary(8, 2)
    vocabulary.admit(ids(1, 2, 3, 4, 5, 5, 6))
    vocabulary.name({1: "/ä💥", 2: "\ud800/x", 4: "", 5: "/" * 1000})
    vocabulary.remove(rows(2))
    again = Vocabulary(8, 2)
    again.load({key: array.copy() for key, array in vocabulary.state().items()})
    for one in (vocabulary, again):
        assert one.names[:5] == ["/ä💥", "\ud800/x", "", "", "/" * 1000]
        assert one.admit(ids(5, 6, 7, 1))[0].tolist() == [4, 2, -1, 0]  # the sixth for the second time
    for key in KEYS:
        assert np.array_equal(vocabulary.state()[key], again.state()[key]), key


@pytest.mark.parametrize(
    "wrong",
    [
        {"ids": ids(7, 8, 7)},
        {"ids": ids(7, 8)},
        {"ids": np.arange(1, 10, dtype=np.uint64), "lengths": np.zeros(9, np.int32), "names": np.zeros(0, np.uint8)},
        {"lengths": np.array([2, 2, 1], np.int32)},
        {"lengths": np.array([2, 2], np.int32)},
        {"names": np.full(6, 0xFF, np.uint8)},
        {"sketch": np.zeros((2, 512), np.uint8)},
    ],
    ids=["doubled", "a row short", "too many", "torn", "a length short", "no text", "another sketch"],
)
def test_a_state_that_contradicts_itself_is_refused(wrong: dict[str, np.ndarray]) -> None:
    state = named(3).state()
    Vocabulary(8).load(state)
    with pytest.raises(ValueError, match=r"."):
        Vocabulary(8).load({**state, **wrong})


class Rows(RuleBasedStateMachine):
    """Against a dictionary, across several growths of the tables."""

    def __init__(self) -> None:
        super().__init__()
        self.vocabulary, self.known = Vocabulary(3000), {}

    @rule(start=st.integers(1, 4000), n=st.integers(1, 900), step=st.sampled_from([1, 2, 7]))
    def visited(self, start: int, n: int, step: int) -> None:
        wanted = list(range(start, start + n * step, step))
        free = iter(sorted(set(range(3000)) - set(self.known.values())))
        for one in wanted:
            if one not in self.known and (row := next(free, None)) is not None:
                self.known[one] = row
        found, _ = self.vocabulary.admit(ids(*wanted))
        assert found.tolist() == [self.known.get(one, -1) for one in wanted]

    @rule(share=st.sampled_from([2, 3, 16]), which=st.integers(0, 15))
    def removed(self, share: int, which: int) -> None:
        gone = [one for one, row in self.known.items() if row % share == which % share]
        self.vocabulary.remove(rows(*(self.known.pop(one) for one in gone)))

    @invariant()
    def rows_are_those_of_the_dictionary(self) -> None:
        wanted = np.arange(1, 12_000, dtype=np.uint64)
        assert self.vocabulary.live == len(self.known) <= 3000
        found = self.vocabulary.find(wanted)
        assert {int(k): int(row) for k, row in zip(wanted, found, strict=True) if row >= 0} == self.known
        assert len(self.vocabulary.names) >= self.vocabulary.count


Rows.TestCase.settings = settings(max_examples=15, stateful_step_count=15, deadline=None)
TestRows = Rows.TestCase
