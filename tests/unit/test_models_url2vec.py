"""URL2vec counts what a direct computation counts, forgets by event time, and survives whatever visitors do."""

import dataclasses
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.counts import Slots, bump
from models.lesson import Steps
from models.settings import DAY_MS, ModelSettings
from models.url2vec import URL2Vec
from models.visits import RECENT, url_identity
from tests.unit.test_models_endless import assert_same_bits, copy_of, taught, visits_of

ROOMY = ModelSettings(dims=8, window=3, slots=32, successor_slots=32, device="cpu")
SMALL = ModelSettings(dims=16, slots=16, successor_slots=16, device="cpu")
NOW = 1_700_000_000_000
walks = st.lists(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=12), max_size=6)


def weighing(*weights: float) -> URL2Vec:
    """A model for which a pair at distance d weighs weights[d - 1] whatever the stream says."""
    return URL2Vec(dataclasses.replace(ROOMY, distance_weights=weights))


def page(topic: int, k: int) -> str:
    return f"https://shop.example/{topic}/{k}"


def planted(seed: int, n: int, topics: int = 10, pages: int = 20, length: int = 6) -> list[list[str]]:
    """Sessions that each keep to one topic; the first pages of a topic are visited more often than the last."""
    random = np.random.default_rng(seed)
    return [
        [page(topic, int(pages * random.random() ** 1.5)) for _ in range(length)]
        for topic in random.integers(topics, size=n)
    ]


def near_ten(model: URL2Vec, urls: list[str]) -> dict[str, set[str]]:
    return {url: {other for other, _ in model.most_similar(url, k=10)} for url in urls}


def same_topic(model: URL2Vec, urls: list[str]) -> float:
    """Share of the ten nearest of each URL that are of its topic."""
    found = near_ten(model, urls)
    return float(np.mean([other.split("/")[3] == url.split("/")[3] for url in urls for other in found[url]]))


def pairs_of(model: URL2Vec, slots: Slots) -> dict[tuple[str, str], float]:
    names = model.vocabulary.names
    return {
        (names[row], names[slots.url[row, q]]): float(slots.count[row, q])
        for row in range(model.vocabulary.count)
        for q in range(slots.used[row])
    }


def pass_time(model: URL2Vec, ms: int, step_ms: int) -> int:
    """Lessons without visits, until the model's time is that much later; what that is."""
    now = int(model.state()["times"][0])
    for later in range(now, now + ms + 1, step_ms):
        model.learn(Steps.from_lists([], []), {}, later)
    return int(model.state()["times"][0])


# -- counting --------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(walks)
def test_visits_one_by_one_count_the_pairs_of_whole_sessions(sessions: list[list[str]]) -> None:
    model = weighing(1.0, 1 / 2, 1 / 3)
    sessions = [[url for k, url in enumerate(walk) if k == 0 or url != walk[k - 1]] for walk in sessions]
    pairs: dict[tuple[str, str], float] = defaultdict(float)
    steps: dict[tuple[str, str], float] = defaultdict(float)
    for walk in sessions:
        taught(model, visits_of([walk]), 0)
        for a, one in enumerate(walk):
            for b in range(a + 1, min(a + 4, len(walk))):
                if walk[b] != one:
                    pairs[one, walk[b]] += 1 / (b - a)
                    pairs[walk[b], one] += 1 / (b - a)
                if b == a + 1:
                    steps[one, walk[b]] += 1
    assert pairs_of(model, model.counts.near) == pytest.approx(pairs, rel=1e-5)
    assert pairs_of(model, model.counts.after) == steps
    for row, url in enumerate(model.vocabulary.names[: model.vocabulary.count]):
        assert model.counts.mass[row] == pytest.approx(sum(x for (one, _), x in pairs.items() if one == url), rel=1e-5)
        assert model.counts.visits[row] == sum(walk.count(url) for walk in sessions)


def test_a_full_table_keeps_the_heavy_neighbour_and_expected_counts() -> None:
    kept = np.zeros(50)
    rounds = 400
    for seed in range(rounds):
        url, count, used = np.zeros((1, 8), np.int32), np.zeros((1, 8), np.float32), np.zeros(1, np.int32)
        draws = np.array([seed * 1000], np.uint64)
        for k in range(400):  # neighbour 0 comes every other time, 40 others share the rest: 20 early, 20 late
            bump(0, 0 if k % 2 else 1 + (k // 2) % 20 + 20 * (k >= 200), 1.0, url, count, used, draws)
        assert count.sum() == 400
        np.add.at(kept, url[0], count[0] / rounds)
    assert kept[0] == pytest.approx(200, rel=0.02)
    assert kept[1:21].sum() == pytest.approx(100, rel=0.05)
    assert kept[21:41].sum() == pytest.approx(100, rel=0.05)
    assert kept[1:41].max() < 2 * 5


def test_a_repeat_teaches_nothing_and_gives_no_row() -> None:
    model = URL2Vec(ROOMY)
    ids = [url_identity(url) for url in "ab"]
    model.learn(Steps.from_lists(ids, [[], ids[:1]], [True, True]), {})
    assert (model.vocabulary.count, model.counts.mass.sum(), model.counts.visits.sum()) == (0, 0, 0)


def test_rows_that_nothing_touched_keep_their_bits() -> None:
    model = URL2Vec(ROOMY).learn_many([list("abcabc"), list("defdef"), list("abdeab")] * 5)
    before = model.sphere.vectors.copy()
    model.learn_many([list("abab")] * 20)
    untouched = [model.row(url) for url in "cdef"]
    assert np.array_equal(before[untouched], model.sphere.vectors[untouched])
    assert not np.array_equal(before, model.sphere.vectors)


def test_growing_beyond_the_first_rows_loses_nothing() -> None:
    small, large = URL2Vec(ROOMY), URL2Vec(ROOMY)
    large._reserve(9000)
    for model in (small, large):
        model.learn_many([[f"u{k + n}" for n in range(3)] for k in range(0, 5000, 2)])
    assert small.vocabulary.count == 5001
    assert_same_bits(small, large)


def test_unknown_urls_have_no_successors_and_some_popularity() -> None:
    model = URL2Vec(ROOMY).learn_one(list("ab"))
    unknown = np.array([-1], np.int32)
    assert [seen.tolist() for seen in model.counts.steps_seen(unknown, unknown)] == [[0], [0]]
    assert 0 < model.popularity(unknown)[0] < model.popularity(np.array([0], np.int32))[0]


# -- the same bits, the same quality ---------------------------------------------------------------------------------


def test_the_same_lessons_give_the_same_bits_and_so_does_one_that_was_stopped_between() -> None:
    settings = ModelSettings(dims=8, slots=4, successor_slots=4, capacity=150, half_life_ms=DAY_MS, device="cpu")
    one, two, stopped = URL2Vec(settings), URL2Vec(settings), URL2Vec(settings)
    for k in range(12):
        for model in (one, two, stopped):
            model.learn_many(planted(k, 60), NOW + k * 1_000_000, batch=100)
        fresh = URL2Vec(settings)
        fresh.load(copy_of(stopped.state()))
        stopped = fresh
    assert one.removed > 0  # so that rows were reused on the way
    assert_same_bits(one, two)
    assert_same_bits(one, stopped)


@pytest.mark.parametrize("batch", [16, 256, 4096])
def test_any_batch_size_finds_the_topics(batch: int) -> None:
    model = URL2Vec(SMALL).learn_many(planted(1, 1500), batch=batch)
    quality = same_topic(model, [page(topic, k) for topic in range(10) for k in range(10)])
    assert quality > 0.97


# -- forgetting ------------------------------------------------------------------------------------------------------


def test_after_a_half_life_a_visit_counts_half() -> None:
    model = weighing(1.0)
    taught(model, visits_of([["a", "b"]] * 40), NOW)
    later = pass_time(model, ROOMY.half_life_ms, ROOMY.half_life_ms // 100)
    taught(model, visits_of([["a", "c"]] * 40), later)
    ages = (later - NOW) / ROOMY.half_life_ms
    assert ages == pytest.approx(1)
    for slots in (model.counts.near, model.counts.after):
        pairs = pairs_of(model, slots)
        assert pairs["a", "b"] / pairs["a", "c"] == pytest.approx(0.5**ages)
    rows = np.array([model.row(url) for url in "abc"])
    assert model.counts.visits[rows] / model.counts.unit == pytest.approx([60, 20, 40])
    assert model.counts.mass[rows] / model.counts.unit == pytest.approx([60, 20, 40])
    seen, total = model.counts.steps_seen(rows[[0, 0]].astype(np.int32), rows[[1, 2]].astype(np.int32))
    assert seen == pytest.approx([20, 40])
    assert total == pytest.approx([60, 60])


def test_dividing_everything_by_a_power_of_two_changes_no_ratio_and_no_vector() -> None:
    model = URL2Vec(ModelSettings(dims=8, time_to_live_ms=9999 * DAY_MS, device="cpu"))
    model.learn_many(planted(3, 100), NOW)
    before, largest = copy_of(model.state()), 0.0
    while model.counts.unit >= largest:
        largest = model.counts.unit
        model.learn(Steps.from_lists([], []), {}, int(model.state()["times"][0]) + DAY_MS // 2)
    after = model.state()
    assert largest > 2**15.9 > 2**0.1 > model.counts.unit
    for key in ("near.count", "after.count", "mass", "visits", "total"):
        assert np.array_equal(after[key] * 2**16, before[key]), key
    assert after["sphere.log_mass"] + 16 * np.log(2) == pytest.approx(before["sphere.log_mass"], abs=1e-5)
    for key in ("sphere.vectors", "near.url", "sphere.gram"):
        assert np.array_equal(after[key], before[key]), key


def test_ten_years_on_neighbours_are_those_of_today_and_a_long_memory_has_those_of_then() -> None:
    """The pages are sorted into topics anew after nine years. A lesson every other day, so a half-life of 120 days."""
    random = np.random.default_rng(4)
    found = {}
    for half_life in (120 * DAY_MS, 36_500 * DAY_MS):
        settings = ModelSettings(dims=16, slots=64, half_life_ms=half_life, time_to_live_ms=300 * DAY_MS, device="cpu")
        model, lessons = URL2Vec(settings), 10 * 365 // 2
        for k in range(lessons):
            topics = np.arange(40).reshape(4, 10) if k < lessons * 0.9 else np.arange(40).reshape(10, 4).T
            walks = [[f"/{p}" for p in random.permutation(topics[t])[:5]] for t in random.integers(4, size=2)]
            taught(model, visits_of(walks), NOW + 2 * k * DAY_MS)
        near = near_ten(model, [f"/{k}" for k in range(40)])
        found[half_life] = float(np.mean([int(o[1:]) % 4 == int(u[1:]) % 4 for u, os in near.items() for o in os]))
        state = model.state()
        assert all(np.isfinite(a).all() for key, a in state.items() if a.dtype.kind == "f"), half_life
    short, long = found.values()
    assert short > 0.8  # nine of ten at best: the tenth must be of another topic
    assert long < 0.5


def test_the_clock_does_not_go_back_nor_leap() -> None:
    model = URL2Vec(ROOMY).learn_many([list("ab")] * 3, NOW)
    before = copy_of(model.state())
    model.learn(Steps.from_lists([], []), {}, NOW - 900 * DAY_MS)
    assert np.array_equal(model.state()["times"], before["times"])
    in_2100 = 4_102_444_800_000
    model.learn_one(list("ac"), in_2100)
    assert 0 < model.state()["times"][0] - NOW <= ROOMY.half_life_ms / 60
    assert model.counts.unit <= 2 ** (1 / 60)
    assert all(url in model for url in "abc")


# -- what visitors do ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "session", [[], [""], ["https://one.example/"], ["a", "a", "a"], ["x" * 1_000_000, "/"],
    ["\0", "not a url", "http://[", "💥", "javascript:alert(1)", " "], ["/\ud800", "/", "\udfff\ud800"]],
    ids=["none", "empty", "one", "repeated", "a megabyte", "no urls", "lone surrogates"],
)  # fmt: skip
def test_any_string_is_a_url(session: list[str]) -> None:
    model = URL2Vec(ROOMY).learn_many([["/", "/a", "/b"]] * 3)
    model.learn_many([session] * 3)
    assert all(url in model for url in session)
    again = URL2Vec(ROOMY)
    again.load(copy_of(model.state()))
    assert_same_bits(model, again)
    kept = {url for url in {*session, "/", "/a", "/b"} if url}
    assert {url for url in again.vocabulary.names if url} == kept
    assert all(np.linalg.norm(again.vector(url)) == pytest.approx(1, abs=1e-3) for url in kept)


def test_a_visitor_with_a_hundred_thousand_urls_harms_nobody() -> None:
    model = URL2Vec(ModelSettings(dims=16, slots=16, successor_slots=16, capacity=5000, device="cpu"))
    model.learn_many(planted(7, 2000), NOW)
    regular = [page(topic, k) for topic in range(10) for k in range(20)]
    before, rows = near_ten(model, regular), [model.row(url) for url in regular]
    for start in range(0, 100_000, 1000):
        model.learn_many([[f"/bot/{k}" for k in range(start, start + 1000)]], NOW + start)
    assert [model.row(url) for url in regular] == rows
    assert model.vocabulary.live <= 5000
    assert len(model.counts.mass) <= 5000  # nor is there room for more
    after = near_ten(model, regular)
    assert np.mean([len(before[url] & after[url]) / 10 for url in regular]) > 0.99
    assert sum(len(name) for name in model.vocabulary.names) < 5000 * 40
    assert RECENT == 10  # the flood above pairs each URL with as many
