"""The nearest rows are exactly the nearest, whatever else stands in the table."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.neighbours import NOWHERE, ONE, nearest_rows

SEEDS = st.integers(0, 2**32 - 1)


def table(rows: int, dims: int, seed: int) -> tuple[NDArray[np.int16], NDArray[np.float64]]:
    """Unit vectors in fixed point, a third of them copies of others, and masses of which a quarter are 0."""
    draw = np.random.default_rng(seed)
    unit = draw.normal(size=(rows, dims))
    unit[: rows // 3] = unit[rows - rows // 3 :]
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    return np.rint(unit * ONE).astype(np.int16), draw.random(rows) * (draw.random(rows) < 0.75)


def by_sorting(
    vectors: NDArray[np.int16], mass: NDArray[np.float64], query: NDArray[np.int16], k: int, but: list[int]
) -> list[int]:
    """The same by sorting everything, in integers of any size."""
    score = vectors.astype(object) @ query.astype(object)
    live = [r for r in range(len(vectors)) if mass[r] > 0 and r not in but]
    return sorted(live, key=lambda r: (-score[r], r))[:k]


@given(
    rows=st.integers(1, 700), dims=st.integers(1, 40), k=st.integers(1, 30),
    left_out=st.lists(st.integers(-1, 20), min_size=2, max_size=2), seed=SEEDS,
)  # fmt: skip
def test_the_rows_are_those_that_sorting_everything_finds(
    rows: int, dims: int, k: int, left_out: list[int], seed: int
) -> None:
    vectors, mass = table(rows, dims, seed)
    asked = [0, rows // 2, rows - 1]
    queries = vectors[asked].astype(np.float32)
    # What it scans with is the query brought to length one again, in fixed point.
    unit = queries / np.linalg.norm(queries.astype(np.float64), axis=1)[:, None] * ONE
    found, cosine = nearest_rows(vectors, mass, queries, k, np.array([left_out] * 3))
    assert found.shape == cosine.shape == (3, min(k, rows))
    for query, these, cosines in zip(np.rint(unit).astype(np.int16), found, cosine, strict=True):
        wanted = by_sorting(vectors, mass, query, k, left_out)
        assert these[these >= 0].tolist() == wanted
        assert (these[len(wanted) :] == -1).all()
        assert (cosines[len(wanted) :] == NOWHERE).all()
        exact = vectors[wanted].astype(np.float64) @ query / ONE**2
        np.testing.assert_allclose(cosines[: len(wanted)], np.clip(exact, -1, 1), atol=1e-6)


def test_equal_rows_come_in_the_order_of_rows() -> None:
    vectors = np.tile(np.array([[0, ONE]], np.int16), (1000, 1))
    found, _ = nearest_rows(vectors, np.ones(1000), np.array([[0, 1]], np.float32), 5, np.array([[2]]))
    assert found.tolist() == [[0, 1, 3, 4, 5]]


def test_a_row_without_mass_is_nobodys_neighbour_and_comes_back_when_it_has_some() -> None:
    vectors, mass = np.array([[ONE, 0], [ONE, 0], [0, ONE]], np.int16), np.array([0.0, 1, 1])
    query = np.array([[1, 0]], np.float32)
    assert nearest_rows(vectors, mass, query, 3)[0].tolist() == [[1, 2, -1]]
    assert nearest_rows(vectors, mass > 0, query, 3)[0].tolist() == [[1, 2, -1]], "a mask says the same"
    mass[:2] = [1, 0]
    vectors[0] = [0, -ONE]
    assert nearest_rows(vectors, mass, query, 3)[0].tolist() == [[0, 2, -1]], "a moved row is found where it is now"


def test_the_length_of_a_query_does_not_matter_and_one_without_direction_finds_nothing() -> None:
    vectors, mass = table(50, 8, 1)
    query = vectors[7].astype(np.float32)
    queries = np.stack([query, query * 1e30, query * 1e-30, query * 0, query * np.nan, query * np.inf])
    found, cosine = nearest_rows(vectors, mass, queries, 4)
    assert found[0].tolist() == found[1].tolist() == found[2].tolist()
    assert (found[:3] >= 0).all()
    assert (found[3:] == -1).all()
    assert (cosine[3:] == NOWHERE).all()


def test_opposite_and_equal_unit_vectors_do_not_overflow() -> None:
    corner = np.rint(np.full(64, ONE / 8)).astype(np.int16)
    vectors = np.stack([corner, -corner, np.eye(64, dtype=np.int16)[0] * ONE, -np.eye(64, dtype=np.int16)[0] * ONE])
    found, cosine = nearest_rows(vectors, np.ones(4), np.array([np.ones(64), np.eye(64)[0]], np.float32), 4)
    assert found.tolist() == [[0, 2, 3, 1], [2, 0, 1, 3]]
    np.testing.assert_allclose(cosine, [[1, 0.125, -0.125, -1], [1, 0.125, -0.125, -1]], atol=1e-4)


def test_an_empty_table_and_no_queries_are_no_error() -> None:
    nothing = np.zeros((0, 4), np.int16), np.zeros(0)
    assert nearest_rows(*nothing, np.ones((2, 4), np.float32), 3)[0].shape == (2, 0)
    assert nearest_rows(*table(9, 4, 1), np.ones((0, 4), np.float32), 3)[0].shape == (0, 3)


def test_a_query_of_other_dimensions_is_refused() -> None:
    with pytest.raises(ValueError, match="4 dimensions"):
        nearest_rows(*table(9, 4, 1), np.ones((1, 5), np.float32), 3)
