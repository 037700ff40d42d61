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


def exact_ece(probability: np.ndarray, label: np.ndarray) -> float:
    """Guo et al. 2017, equation 3, with 15 bins."""
    place = np.minimum((probability * 15).astype(int), 14)
    each = [(place == k).sum() * abs(probability[place == k].mean() - label[place == k].mean()) for k in set(place)]
    return float(sum(each) / len(label))


@pytest.mark.parametrize("spread", [0.05, 0.5, 3.0])
def test_the_calibration_error_equals_a_direct_computation(spread: float) -> None:
    random = np.random.default_rng(4)
    p = 1 / (1 + np.exp(-(spread * random.standard_normal(4000) - 1)))
    label = random.random(4000) < p
    boastful = p**2 / (p**2 + (1 - p) ** 2)
    progress = record(list(zip(p.tolist(), boastful.tolist(), label.tolist(), strict=True)))
    assert progress.ece() == pytest.approx(exact_ece(p, label), abs=1e-3)
    assert progress.baseline_ece() == pytest.approx(exact_ece(boastful, label), abs=1e-3)


def test_calibrated_answers_have_a_small_error_and_certain_ones_that_are_wrong_half_the_time_one_of_a_half() -> None:
    random = np.random.default_rng(5)
    p = random.random(40_000)
    label = random.random(40_000) < p
    progress = record(list(zip(p.tolist(), (label[::-1] * 1.0).tolist(), label.tolist(), strict=True)))
    calibrated, certain = progress.ece(), progress.baseline_ece()
    assert calibrated is not None
    assert calibrated < 0.01
    assert certain == pytest.approx(0.5, abs=0.02)


def test_what_the_version_before_stored_is_still_read() -> None:
    """Progress.encode() of 2026-11-20, of record([(0.3, 0.4, True), (0.9, 0.6, False)])."""
    stored = bytes.fromhex(
        "94cd0800c4081905930b3314cc1bc4200100000000000000010000000000000001"
        "00000000000000010000000000000092cb400c0d6e3a1428a6cb3ffd5240f0e0e077"
    )
    again = Progress.decode(stored)
    assert (again.n, again.auc(), again.baseline_auc()) == (2, 0.0, 0.0)
    assert again.logloss() == pytest.approx(-np.log(0.3) / 2 - np.log(0.1) / 2)
    assert again.ece() == pytest.approx(0.8, abs=1e-3)
    assert again.baseline_ece() == pytest.approx(0.6, abs=1e-3)


def test_a_metric_that_is_not_defined_yet_is_none() -> None:
    assert Progress().ece() is None
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


@given(st.lists(st.tuples(st.floats(), st.floats(), st.booleans()), max_size=30), pairs)
def test_many_at_once_are_judged_as_one_by_one_to_the_last_bit(
    judged: list[tuple[float, float, bool]], before: list[tuple[float, float, bool]]
) -> None:
    progress = record(before)
    model, baseline, label = (np.array(column) for column in zip(*judged, strict=True)) if judged else ([], [], [])
    progress.add_many(model, baseline, label)
    assert progress.encode() == record([*before, *judged]).encode()
