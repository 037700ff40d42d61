"""The order in which a replica learns: each partition's own, all of them by event time, however little is read at once."""

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.lesson import Example, Lesson
from streams import replica as module
from streams.replica import AHEAD_LEAST, BESIDE, MissingLessons, Reading, Replica, taught_at_ms
from streams.store import IMPORTS, LessonEntry
from tests.unit.test_models_lesson import visit

Told = tuple[int, int]  # partition and number of an entry


def entry(number: int, at_ms: int, partition: int = 0) -> LessonEntry:
    """The entry of a checkpoint with one visit at that time; `trained_through_ms` tells which it is."""
    lesson = Lesson.of([visit("a", timestamp_ms=at_ms)], [], 1_000 * partition + number)
    return LessonEntry(number, number - 1, msgspec.msgpack.encode([lesson.encode()]))


class Shelf:
    """The streams of a store in memory, which notes how much was asked for."""

    def __init__(self, times: Sequence[Sequence[int]]) -> None:
        self.streams = [[entry(n, at, p) for n, at in enumerate(each, 1)] for p, each in enumerate(times)]
        self.limits: set[int] = set()

    async def lessons(self, partition: int, after: int, limit: int) -> list[LessonEntry]:
        if partition == IMPORTS:
            return []
        self.limits.add(limit)
        return [one for one in self.streams[partition] if one.step > after][:limit]

    async def last_lesson(self, partition: int) -> int:
        return self.streams[partition][-1].step if self.streams[partition] else 0

    async def snapshots(self) -> list[Any]:
        return []


class Diary:
    """A learner that only writes down what it is given."""

    def __init__(self) -> None:
        self.told: list[Told] = []

    def learn(self, lesson: Lesson) -> None:
        self.told.append(divmod(lesson.trained_through_ms, 1_000))

    def snapshot(self) -> bytes:
        return b""

    def restore(self, blob: bytes) -> None:
        self.told.clear()


def rebuilt(shelf: Shelf, said: list[str] | None = None) -> list[Told]:
    """What a new replica learned from these streams, in order."""
    diary = Diary()
    replica = Replica(shelf, diary, None, (said if said is not None else []).append)  # type: ignore[arg-type]
    asyncio.run(replica.rebuild(range(len(shelf.streams))))
    assert replica.applied == {p: len(stream) for p, stream in enumerate(shelf.streams) if stream}
    return diary.told


times = st.lists(st.lists(st.integers(1, 10_000), max_size=40), min_size=1, max_size=5)


@given(times)
def test_every_entry_is_learned_once_and_in_its_partitions_own_order(drawn: list[list[int]]) -> None:
    told = rebuilt(Shelf(drawn))
    for partition, stream in enumerate(drawn):
        assert [n for p, n in told if p == partition] == list(range(1, len(stream) + 1))


@given(times)
def test_where_clocks_only_grow_the_order_is_that_of_event_time_ties_by_partition(drawn: list[list[int]]) -> None:
    grown = [sorted(each) for each in drawn]
    told = rebuilt(Shelf(grown))
    assert told == sorted(told, key=lambda one: (grown[one[0]][one[1] - 1], one[0]))


@given(st.integers(0, 30), st.integers(1, BESIDE), st.booleans())
def test_some_clocks_that_are_wrong_hold_nothing_back(at: int, wrong: int, future: bool) -> None:
    right = [list(range(10, 500, 10)), list(range(15, 500, 10))]
    crooked = [list(right[0]), right[1]]
    for k in range(at, at + wrong):
        crooked[0][k] = 4_000_000_000_000 if future else 1
    place = {one: k for k, one in enumerate(rebuilt(Shelf(right)))}
    moved = [abs(k - place[one]) for k, one in enumerate(rebuilt(Shelf(crooked)))]
    assert max(moved) <= 2 * (BESIDE + 1)


def test_what_is_read_ahead_is_bounded_over_all_partitions(monkeypatch: pytest.MonkeyPatch) -> None:
    most = 0
    original = Reading.put

    def counted(self: Reading, entries: Sequence[LessonEntry], limit: int) -> None:
        nonlocal most
        original(self, entries, limit)
        most = max(most, len(self.ahead))

    monkeypatch.setattr(Reading, "put", counted)
    monkeypatch.setattr(module, "AHEAD", 60)
    shelf = Shelf([range(p, 400, 3) for p in range(3)])
    told = rebuilt(shelf)
    assert len(told) == 400
    assert shelf.limits == {20}
    assert most <= 20 + BESIDE
    many = Shelf([[1]] * 100)
    rebuilt(many)
    assert many.limits == {AHEAD_LEAST}


@given(times, st.integers(1, 8))
def test_how_much_is_read_at_once_changes_nothing(drawn: list[list[int]], most: int) -> None:
    whole = rebuilt(Shelf(drawn))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "AHEAD_MOST", most)
        assert rebuilt(Shelf(drawn)) == whole


def test_an_entry_of_examples_alone_has_the_time_of_the_visits_before_it() -> None:
    visits = Lesson.of([visit("a", timestamp_ms=9_000)], [], 9_000)
    examples = Lesson.of([], [Example("bought", b"row", True)], 7_000)
    assert taught_at_ms([visits, examples], 100) == 9_000
    assert taught_at_ms([examples], 9_000) == 9_000, "they are of visits that are a horizon old"
    assert taught_at_ms([examples], 0) == 7_000, "nothing else is known"
    assert taught_at_ms([], 5) == 5


def test_an_unusable_entry_is_said_and_left_out_and_the_others_stay_in_order() -> None:
    shelf = Shelf([[10, 30, 50], [20, 40, 60]])
    shelf.streams[0][1] = LessonEntry(2, 1, b"torn")
    said: list[str] = []
    assert rebuilt(shelf, said) == [(0, 1), (1, 1), (1, 2), (0, 3), (1, 3)]
    assert len(said) == 1
    assert "partition 0: the lesson of step 2" in said[0]


def test_a_gap_stops_a_replica_that_follows_before_anything_behind_it_is_learned() -> None:
    shelf, diary = Shelf([[10, 30, 50], [20, 40, 60]]), Diary()
    replica = Replica(shelf, diary, None, print)  # type: ignore[arg-type]
    del shelf.streams[1][0]
    with pytest.raises(MissingLessons, match="partition 1: lessons up to step 1"):
        asyncio.run(replica.follow([0, 1]))
    assert all(partition == 0 for partition, _ in diary.told)
    assert replica.applied == {0: len(diary.told)}
