"""Ranks of what came next: the measures equal their definitions, records add up, and survive the store."""

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.ranking import BEST, WHO, CorruptRanking, Ranking

asked = st.tuples(*[st.integers(0, BEST)] * 3)
steps = st.lists(asked | st.just((-1, -1, -1)), max_size=40)


def record(ranks: list[tuple[int, ...]]) -> Ranking:
    ranking = Ranking()
    ranking.add(np.array(ranks, np.int8).reshape(-1, 3))
    return ranking


def measures(ranking: Ranking) -> list[float | None]:
    return [measure(who) for who in WHO for measure in (ranking.hits, ranking.reciprocal_rank)]


@given(steps)
def test_hit_rate_and_reciprocal_rank_equal_their_definitions(ranks: list[tuple[int, ...]]) -> None:
    ranking, judged = record(ranks), [r for r in ranks if r[0] >= 0]
    assert ranking.n == len(judged)
    for who, name in enumerate(WHO):
        if not judged:
            assert ranking.hits(name) is ranking.reciprocal_rank(name) is None
            continue
        assert ranking.hits(name) == pytest.approx(sum(r[who] > 0 for r in judged) / len(judged))
        assert ranking.reciprocal_rank(name) == pytest.approx(
            sum(1 / r[who] if r[who] > 0 else 0.0 for r in judged) / len(judged)
        )


@given(steps, steps)
def test_records_of_two_partitions_add_up(one: list[tuple[int, ...]], two: list[tuple[int, ...]]) -> None:
    merged, whole = record(one), record(one + two)
    merged.merge(record(two))
    assert merged.n == whole.n
    assert measures(merged) == measures(whole)


@given(steps)
def test_a_record_survives_the_store(ranks: list[tuple[int, ...]]) -> None:
    ranking = record(ranks)
    again = Ranking.decode(ranking.encode())
    assert (again.n, measures(again)) == (ranking.n, measures(ranking))
    assert again.encode() == ranking.encode()


@pytest.mark.parametrize(
    "blob",
    [
        b"",
        b"nonsense",
        Ranking().encode()[:-3],
        msgspec.msgpack.encode([BEST + 1, bytes(8 * len(WHO) * (1 + BEST))]),
        msgspec.msgpack.encode([BEST, bytes(8)]),
        msgspec.msgpack.encode([BEST, b"\x01" + bytes(8 * len(WHO) * (1 + BEST) - 1)]),  # one step for the model alone
    ],
)
def test_bytes_that_are_no_record_are_refused(blob: bytes) -> None:
    with pytest.raises(CorruptRanking):
        Ranking.decode(blob)
