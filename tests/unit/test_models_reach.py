"""Weights of distances: what the stream shows is what they become, and nothing else decides them."""

import numpy as np
import pytest
from numpy.typing import NDArray

from models.reach import Reach
from streams.bench.synthetic import Stream, hubs, long, short, tabs

ONE = 32767
SMALL = {"urls": 500, "topics": 20, "visits": 40_000}


def vectors_of(stream: Stream, noise: float = 0.5) -> NDArray[np.int16]:
    """Vectors that know the topic, behind noise: as those of a model in the middle of a stream."""
    random = np.random.default_rng(0)
    centre = random.standard_normal((stream.topic.max() + 1, 32))
    centre += 0.5 * random.standard_normal(32)  # pages of one site are alike anyway
    vectors = centre[stream.topic] + noise * random.standard_normal((len(stream.topic), 32))
    unit: NDArray[np.int16] = np.round(ONE * vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.int16)
    return unit


def show(reach: Reach, stream: Stream, start: int = 0, stop: int | None = None, lesson: int = 512) -> None:
    """Visits of a stream, a lesson at a time, to a model that does not change."""
    recent, vectors = stream.recent(10)[start:stop], vectors_of(stream)
    row = stream.url[start:stop]
    for k in range(0, len(row), lesson):
        part = slice(k, k + lesson)
        n = len(row[part])
        reach.observe(row[part], recent[part], np.zeros(n, np.bool_), vectors, ONE, np.ones(len(vectors)))


def learned(stream: Stream, cut: float = 0.1) -> NDArray[np.float32]:
    reach = Reach(10, cut)
    show(reach, stream)
    return reach.weight


def test_before_anything_is_known_near_visits_weigh_more_and_all_weigh_little() -> None:
    weight = Reach(10).weight
    assert weight[0] == pytest.approx(0.25)
    assert np.all(np.diff(weight) < 0)
    assert weight[9] > 0.05


def test_pairs_weigh_little_until_something_is_known() -> None:
    stream, reach, most = long(**SMALL), Reach(10), []
    for k in range(0, 6000, 1000):
        show(reach, stream, k, k + 1000, lesson=1000)
        most.append(float(reach.weight.max()))
    assert most == pytest.approx([0.25, 0.433, 0.616, 0.799, 0.982, 1], abs=1e-3)


def test_a_walk_along_links_needs_the_last_visit_alone() -> None:
    reach = Reach(10)
    show(reach, short(**SMALL))
    assert reach.weight[0] == 1
    assert reach.weight[1] < 0.3
    assert reach.window <= 2
    # … although the second last visit has more than half of the relatedness of the last.
    assert reach.signal[1] > 0.5 * reach.signal[0]
    assert reach.signal[9] < 0.05  # what pages of one site have in common anyway does not count


def test_a_session_that_keeps_its_topic_needs_all_distances_alike() -> None:
    assert learned(long(**SMALL)).min() > 0.75


def test_of_two_tabs_only_every_other_visit_counts() -> None:
    weight = learned(tabs(**SMALL))
    assert np.all(weight[0::2] == 0)
    assert np.all(weight[1::2] > 0.75)


def test_a_session_that_drifts_is_in_between() -> None:
    weight = learned(hubs(**SMALL), cut=0.02)
    assert weight[0] == 1
    assert 0.5 < weight[1] < 0.9
    assert weight[4] > 1.5 * weight[9]


def test_what_weighs_less_than_the_cut_is_left_out() -> None:
    reach = Reach(10, cut=0.5)
    show(reach, hubs(**SMALL))
    assert 2 <= reach.window <= 4
    assert np.all(reach.weight[: reach.window] >= 0.5)
    assert np.all(reach.weight[reach.window :] == 0)


def test_a_stream_that_changes_is_followed() -> None:
    reach = Reach(10)
    show(reach, short(**SMALL))
    narrow = reach.window
    show(reach, long(**SMALL | {"visits": 200_000}))
    assert narrow <= 2
    assert reach.weight.min() > 0.5


def test_vectors_that_know_nothing_rule_no_distance_out() -> None:
    stream, reach = short(**SMALL), Reach(10)
    recent = stream.recent(10)
    noise = np.random.default_rng(1).standard_normal((500, 32))
    vectors = np.round(ONE * noise / np.linalg.norm(noise, axis=1, keepdims=True)).astype(np.int16)
    for k in range(0, 20_000, 512):
        part = slice(k, k + 512)
        reach.observe(stream.url[part], recent[part], np.zeros(512, np.bool_), vectors, ONE, np.ones(500))
    assert reach.weight.min() > 0.2


def test_repeats_unknown_rows_rows_without_mass_and_the_same_page_say_nothing() -> None:
    reach, untouched = Reach(3), Reach(3)
    vectors = np.full((4, 8), int(ONE / 8**0.5), np.int16)
    no, mass = np.zeros(1, np.bool_), np.array([1.0, 1.0, 0.0, 1.0])
    for row, recent, repeat in (
        (0, [1, 1, 1], ~no),  # a repeat
        (-1, [0, 1, 3], no),  # a URL that had no room
        (2, [0, 1, 3], no),  # new
        (0, [-1, 2, 0], no),  # none, new, the page itself
    ):
        at, before = np.array([row], np.int32), np.array([recent], np.int32)
        reach.observe(at, before, repeat, vectors, ONE, mass)
    assert reach.state()["sums"][1:].tolist() == untouched.state()["sums"][1:].tolist()
    assert reach.signal.tolist() == untouched.signal.tolist()


def test_cosines_do_not_depend_on_how_long_vectors_are_written() -> None:
    stream = long(**SMALL)
    vectors = vectors_of(stream)
    whole, real = Reach(10), Reach(10)
    at, before, repeat, mass = stream.url[:2000], stream.recent(10)[:2000], np.zeros(2000, np.bool_), np.ones(500)
    whole.observe(at, before, repeat, vectors, ONE, mass)
    real.observe(at, before, repeat, (vectors * np.float32(8 / ONE)).astype(np.float32), 8.0, mass)
    assert real.weight == pytest.approx(whole.weight, abs=1e-3)


def test_a_loaded_one_goes_on_bit_for_bit() -> None:
    stream, one = tabs(**SMALL), Reach(10)
    show(one, stream, 0, 9_000)
    other = Reach(10)
    other.load({name: array.copy() for name, array in one.state().items()})
    assert other.weight.tobytes() == one.weight.tobytes()
    for reach in (one, other):
        show(reach, stream, 9_000, 40_000)
    assert other.weight.tobytes() == one.weight.tobytes()
    assert other.window == one.window
    for name, array in one.state().items():
        assert array.tobytes() == other.state()[name].tobytes()


def test_a_state_of_another_window_is_refused() -> None:
    with pytest.raises(ValueError, match="sums of the reach"):
        Reach(10).load(Reach(5).state())


def test_a_window_without_distances_and_too_few_recent_visits_are_refused() -> None:
    with pytest.raises(ValueError, match="a window of 0"):
        Reach(0)
    with pytest.raises(ValueError, match="10 earlier visits are needed of each visit, got 8"):
        Reach(10).observe(
            np.zeros(1, np.int32), np.zeros((1, 8), np.int32), np.zeros(1, np.bool_),
            np.zeros((1, 4), np.int16), ONE, np.ones(1),
        )  # fmt: skip


def test_where_neighbours_in_a_session_are_strangers_the_weights_stay_numbers() -> None:
    reach = Reach(3)
    vectors = np.array([[1.0, 0.0], [-1.0, 0.0]], np.float32)
    row, recent = np.array([0, 1] * 50, np.int32), np.array([[1, -1, -1], [0, -1, -1]] * 50, np.int32)
    for _ in range(100):
        reach.observe(row, recent, np.zeros(100, np.bool_), vectors, 1.0, np.ones(2))
    assert np.isfinite(reach.weight).all()
    assert reach.weight.max() > 0
