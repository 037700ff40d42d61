"""Imported vectors on their way to the replicas: directions alone, the same after the wire, refused when torn."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.imported import CorruptImport, Imported


def some(count: int = 20, dims: int = 8) -> Imported:
    urls = [f"https://a.example/{n}" for n in range(count - 2)] + ["", "\ud800 x\x00"]
    return Imported.of(urls, np.random.default_rng(1).normal(size=(count, dims)).astype(np.float32) * 7)


def test_what_was_encoded_comes_back_as_unit_vectors() -> None:
    found = Imported.decode(some().encode())
    assert found.urls == some().urls
    assert found.vectors.dtype == np.float32
    np.testing.assert_allclose(found.vectors, some().vectors, atol=2e-5)
    np.testing.assert_allclose(np.linalg.norm(found.vectors, axis=1), 1, atol=1e-4)
    again = Imported.decode(found.encode())
    assert np.array_equal(again.vectors, found.vectors), "a second time nothing is rounded"


def test_what_has_no_direction_is_left_out_and_the_last_of_equal_urls_counts() -> None:
    vectors = np.array([[3, 4], [0, 0], [0, 2], [1e30, 0], [1e-30, 0]], np.float32)
    found = Imported.of(["a", "b", "a", "huge", "tiny"], vectors)
    assert dict(zip(found.urls, found.vectors.tolist(), strict=True)) == {"a": [0, 1], "huge": [1, 0], "tiny": [1, 0]}
    nothing = Imported.of(["a"], np.zeros((1, 2), np.float32))
    assert Imported.decode(nothing.encode()).vectors.shape == (0, 2)


@given(st.integers(0, 2**16), st.integers(1, 255))
def test_a_torn_or_changed_entry_is_refused(at: int, change: int) -> None:
    blob = bytearray(some().encode())
    with pytest.raises(CorruptImport):
        Imported.decode(bytes(blob[: at % len(blob)]))
    blob[at % len(blob)] ^= change
    with pytest.raises(CorruptImport):
        Imported.decode(bytes(blob))
