"""Progressive metrics agree with their definitions, add up, and survive the store."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.progressive import CorruptProgress, Progress

pairs = st.lists(st.tuples(st.floats(0, 1, width=32), st.floats(0, 1, width=32), st.booleans()), max_size=30)


def record(judged: list[tuple[float, float, bool]]) -> Progress:
    progress = Progress()
    for model, baseline, label in judged:
        progress.add(model, baseline, label)
    return progress


def exact_auc(probability: np.ndarray, label: np.ndarray) -> float:
    """The share of pairs of a positive and a negative that are in the right order."""
    above = probability[label][:, None] - probability[~label][None, :]
    return float((above > 0).mean() + (above == 0).mean() / 2)


@pytest.mark.parametrize("spread", [0.05, 0.5, 3.0])
def test_auc_and_logloss_equal_a_direct_computation(spread: float) -> None:
    random = np.random.default_rng(3)
    label = random.random(4000) < 0.3
    p = 1 / (1 + np.exp(-(spread * (random.standard_normal(4000) + label) - 1)))
    q = random.random(4000)
    progress = record(list(zip(p.tolist(), q.tolist(), label.tolist(), strict=True)))
    assert progress.auc() == pytest.approx(exact_auc(p, label), abs=1e-3)
    assert progress.baseline_auc() == pytest.approx(exact_auc(q, label), abs=1e-3)
    assert progress.logloss() == pytest.approx(-np.log(np.where(label, p, 1 - p)).mean(), abs=1e-9)
    assert progress.baseline_logloss() == pytest.approx(-np.log(np.where(label, q, 1 - q)).mean(), abs=1e-9)
    assert progress.n == 4000


def test_a_metric_that_is_not_defined_yet_is_none() -> None:
    assert Progress().auc() is None
    assert Progress().logloss() is None
    assert record([(0.3, 0.4, True)]).auc() is None


@given(pairs, pairs)
def test_records_of_two_partitions_add_up(
    one: list[tuple[float, float, bool]], two: list[tuple[float, float, bool]]
) -> None:
    merged, whole = record(one), record(one + two)
    merged.merge(record(two))
    assert (merged.n, merged.auc(), merged.baseline_auc()) == (whole.n, whole.auc(), whole.baseline_auc())
    assert merged.logloss() == pytest.approx(whole.logloss())


@given(pairs)
def test_a_record_survives_the_store(judged: list[tuple[float, float, bool]]) -> None:
    progress = record(judged)
    again = Progress.decode(progress.encode())
    assert (again.n, again.auc(), again.baseline_logloss()) == (progress.n, progress.auc(), progress.baseline_logloss())
    assert again.encode() == progress.encode()


def test_certainty_that_was_wrong_costs_much_but_not_infinitely() -> None:
    loss = record([(1.0, float("nan"), False)]).logloss()
    assert loss is not None
    assert 10 < loss < 100


@pytest.mark.parametrize("blob", [b"", b"\x94", b"nonsense", Progress().encode()[:-3]])
def test_bytes_that_are_no_record_are_refused(blob: bytes) -> None:
    with pytest.raises(CorruptProgress):
        Progress.decode(blob)
