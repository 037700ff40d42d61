"""Whatever comes, in whatever order, for however long: URL2vec keeps its promises about room, time and whose row it is.

A state machine drives the model, and next to it an obvious one of dictionaries that forgets by deleting. They must agree
on which URLs are known, how often each was visited and when; and no slot may hold more than its two URLs were visited
together since both have had their rows, which is what would happen if a row changed hands and something still pointed to it.
"""

import dataclasses

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from models.lesson import Steps
from models.settings import ModelSettings
from models.url2vec import State, URL2Vec
from models.visits import RECENT, url_identity

MINUTE = 60_000
TINY = ModelSettings(
    dims=4, window=3, slots=40, successor_slots=40, capacity=32, admit_after=2, half_life_ms=60 * MINUTE,
    time_to_live_ms=32 * MINUTE, part_bits=8, device="cpu",
)  # fmt: skip
STEP = TINY.half_life_ms // 60
AT_ONCE = max(1, TINY.capacity // 16)
START = 1_700_000_000_000

Visits = list[tuple[str, tuple[str, ...]]]  # each with the earlier ones of its session, newest first
sessions = st.lists(
    st.lists(st.sampled_from("abcdefgh") | st.integers(0, 60).map("/{}".format), min_size=1, max_size=8), max_size=5
)


def visits_of(walks: list[list[str]]) -> Visits:
    kept = [[url for k, url in enumerate(walk) if not k or url != walk[k - 1]] for walk in walks]
    return [(url, tuple(walk[:k][::-1][:RECENT])) for walk in kept for k, url in enumerate(walk)]


def taught(model: URL2Vec, visits: Visits, clock_ms: int) -> None:
    ids = [url_identity(url) for url, _ in visits]
    recent = [[url_identity(url) for url in earlier] for _, earlier in visits]
    names = {url_identity(url): url for url, _ in visits}
    model.learn(Steps.from_lists(ids, recent), names, clock_ms)


def copy_of(state: State) -> State:
    return {key: array.copy() for key, array in state.items()}


def assert_same_bits(one: URL2Vec, two: URL2Vec) -> None:
    mine, other = one.state(), two.state()
    assert mine.keys() == other.keys()
    for key, array in mine.items():
        assert array.dtype == other[key].dtype, key
        assert array.tobytes() == other[key].tobytes(), key


@dataclasses.dataclass
class Known:
    """What the obvious model knows of a URL that has a row."""

    row: int
    visits: float = 0.0
    last_min: int = 0
    near: dict[str, float] = dataclasses.field(default_factory=dict)  # the most that the pair can weigh
    after: dict[str, float] = dataclasses.field(default_factory=dict)


class Endless(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.model = URL2Vec(TINY)
        self.twin: URL2Vec | None = None
        self.known: dict[str, Known] = {}
        self.ever: set[str] = set()
        self.now = self.clock = self.origin = self.swept = 0  # ms; `now` is what the visits say
        self.unit, self.removed, self.newcomers = 1.0, 0, 0

    @initialize(clock=st.sampled_from([START, START + 1, 1]))
    def begin(self, clock: int) -> None:
        self.now = clock

    # -- what happens ------------------------------------------------------------------------------------------------

    @rule(walks=sessions)
    def some_sessions(self, walks: list[list[str]]) -> None:
        self.learn(visits_of(walks))

    @rule(walk=st.lists(st.sampled_from("abcdefgh"), min_size=2, max_size=30))
    def one_long_session(self, walk: list[str]) -> None:
        self.learn(visits_of([walk]))

    @rule(n=st.integers(1, 60), times=st.integers(1, 3))
    def a_flood_of_urls_never_seen_before(self, n: int, times: int) -> None:
        walk = [f"/new/{self.newcomers + k}" for k in range(n)]
        self.newcomers += n
        for _ in range(times):
            self.learn(visits_of([walk]))

    @rule(ms=st.sampled_from([1, 30_000, MINUTE, 5 * MINUTE, -MINUTE, -10 * TINY.half_life_ms, 10**13]))
    def a_clock_says(self, ms: int) -> None:
        """The next lesson's alone, right or wrong."""
        self.learn(visits_of([["a", "b"]]), max(0, self.now + ms))

    @rule(lessons=st.sampled_from([3, 20, 40, 1000]))
    def time_passes(self, lessons: int) -> None:
        """A thousand steps of a sixtieth of a half-life: the weights are divided by 2^16 on the way."""
        for _ in range(lessons):
            self.now += STEP
            self.learn([])

    @rule(go_on_with_the_copy=st.booleans())
    def stop_and_start(self, go_on_with_the_copy: bool) -> None:
        self.twin = URL2Vec(TINY)
        self.twin.load(copy_of(self.model.state()))
        if go_on_with_the_copy:
            self.model, self.twin = self.twin, self.model

    # -- the obvious model -------------------------------------------------------------------------------------------

    def learn(self, visits: Visits, clock_ms: int | None = None) -> None:
        clock_ms = self.now if clock_ms is None else clock_ms
        self.ever.update(url for url, _ in visits)
        self.advance(clock_ms)
        hottest = max(self.known, key=lambda url: (self.known[url].visits, self.known[url].last_min), default="a")
        before = self.known.get(hottest)
        self.make_room({url for url, _ in visits})
        taught(self.model, visits, clock_ms)
        if self.twin:
            taught(self.twin, visits, clock_ms)
        tied = before and sum(it.visits == before.visits for it in self.known.values()) > 1
        assert not before or tied or self.model.row(hottest) == before.row, f"{hottest} was hottest, and had to go"
        # Whoever comes while at most half of the rows are in use gets one; the others only if the sketch says so.
        empty = max(0, TINY.capacity - TINY.capacity // 2 - len(self.known))
        fresh = list(dict.fromkeys(url for url, _ in visits if url not in self.known))
        for k, url in enumerate(fresh):
            row = self.model.row(url)
            assert row >= 0 or k >= empty, f"{url} got no row"
            if row >= 0:
                times = self.model.counts.visits[row] / self.unit
                assert times == pytest.approx(round(times))
                assert 1 <= round(times) <= sum(url == one for one, _ in visits)
                self.known[url] = Known(row, float(self.model.counts.visits[row]))
        for url, earlier in visits:
            if url in self.known:
                self.known[url].last_min = self.clock // MINUTE
                if url not in fresh:
                    self.known[url].visits += self.unit
                for k, other in enumerate(earlier):
                    if other in self.known and other != url:
                        for one, two in ((url, other), (other, url)):
                            self.known[one].near[two] = self.known[one].near.get(two, 0) + self.unit
                        if k == 0:
                            self.known[other].after[url] = self.known[other].after.get(url, 0) + self.unit

    def advance(self, clock_ms: int) -> None:
        if clock_ms <= self.clock:
            return
        if not self.clock:
            self.clock = self.origin = self.swept = clock_ms
            for url in self.known.values():  # what was learned without a clock counts as seen now
                url.last_min = clock_ms // MINUTE
        self.clock = min(clock_ms, self.clock + STEP)
        self.unit = 2.0 ** ((self.clock - self.origin) / TINY.half_life_ms)
        if self.unit >= 65536:
            self.origin += 16 * TINY.half_life_ms
            self.unit /= 65536
            for url in self.known.values():
                url.visits /= 65536
                url.near = {other: weight / 65536 for other, weight in url.near.items()}
                url.after = {other: weight / 65536 for other, weight in url.after.items()}
        if self.clock - self.swept >= TINY.time_to_live_ms / 16:
            self.swept = self.clock
            oldest = (self.clock - TINY.time_to_live_ms) // MINUTE
            self.forget([url for url, it in self.known.items() if it.last_min < oldest])

    def make_room(self, urls: set[str]) -> None:
        if len(self.known) + min(len(urls - self.known.keys()), AT_ONCE) > TINY.capacity:
            coldest = sorted(
                self.known, key=lambda u: (self.known[u].visits, self.known[u].last_min, self.known[u].row)
            )
            self.forget(coldest[:AT_ONCE])

    def forget(self, urls: list[str]) -> None:
        for url in urls:
            del self.known[url]
        for it in self.known.values():
            it.near = {other: weight for other, weight in it.near.items() if other not in urls}
            it.after = {other: weight for other, weight in it.after.items() if other not in urls}
        self.removed += len(urls)

    # -- what always holds -------------------------------------------------------------------------------------------

    @invariant()
    def who_has_which_row_is_beyond_doubt(self) -> None:
        model, names = self.model, self.model.vocabulary.names
        assert {url: model.row(url) for url in self.ever if url in model} == {u: it.row for u, it in self.known.items()}
        assert len({it.row for it in self.known.values()}) == len(self.known) == model.vocabulary.live <= TINY.capacity
        assert all(names[it.row] == url for url, it in self.known.items())
        assert sorted(np.flatnonzero(model.vocabulary.ids)) == sorted(it.row for it in self.known.values())
        assert model.removed == self.removed

    @invariant()
    def visits_and_times_are_those_of_the_obvious_model(self) -> None:
        state = self.model.state()
        assert self.model.counts.unit == self.unit
        for url, it in self.known.items():
            assert state["visits"][it.row] == it.visits, url
            assert state["last"][it.row] == it.last_min, url
            due = it.last_min * MINUTE + TINY.time_to_live_ms * 17 / 16 + MINUTE + STEP
            assert self.clock <= due, f"{url} should have expired"

    @invariant()
    def a_slot_holds_no_more_than_its_two_urls_were_visited_together(self) -> None:
        name = {it.row: url for url, it in self.known.items()}
        for url, it in self.known.items():
            for slots, most in ((self.model.counts.near, it.near), (self.model.counts.after, it.after)):
                used = slots.used[it.row]
                others = slots.url[it.row, :used].tolist()
                assert len(set(others)) == used
                for other, weight in zip(others, slots.count[it.row, :used].tolist(), strict=True):
                    assert other in name, f"{url} points to a row that is free"
                    assert 0 < weight <= most.get(name[other], 0) * (1 + 1e-5), (url, name[other])
            kept = self.model.counts.near.count[it.row, : self.model.counts.near.used[it.row]].sum()
            assert kept <= self.model.counts.mass[it.row] * (1 + 1e-5)

    @invariant()
    def a_free_row_holds_nothing(self) -> None:
        state = self.model.state()
        free = np.setdiff1d(np.arange(len(state["mass"])), [it.row for it in self.known.values()])
        for key in ("mass", "visits", "near.used", "after.used", "sphere.vectors", "vocabulary.ids"):
            assert not state[key][free].any(), key
        assert not any(self.model.vocabulary.names[row] for row in free)
        assert (state["sphere.log_mass"][free] == -np.inf).all()

    @invariant()
    def sums_are_those_of_their_parts(self) -> None:
        state = self.model.state()
        assert state["total"][0] == pytest.approx(state["mass"].sum(), rel=1e-6, abs=1e-6)
        assert state["sphere.z"][0] == pytest.approx(
            np.exp(0.75 * state["sphere.log_mass"].astype(np.float64)).sum(), rel=1e-5, abs=1e-5
        )
        unit = self.model.sphere.unit(np.array([it.row for it in self.known.values()], np.int32)).astype(np.float64)
        assert np.linalg.norm(unit, axis=1) == pytest.approx(np.ones(len(unit)), abs=1e-4)
        assert state["sphere.gram"] == pytest.approx(unit.T @ unit, abs=1e-4)
        assert all(np.isfinite(state[key]).all() for key in ("mass", "visits", "near.count", "sphere.whitener"))

    @precondition(lambda self: self.twin is not None)
    @invariant()
    def one_that_was_restored_never_differs(self) -> None:
        assert self.twin is not None
        assert_same_bits(self.model, self.twin)


Endless.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None, print_blob=True)
TestEndless = Endless.TestCase


def test_crowded_hours_evict_the_fewest_visits_first() -> None:
    """What the machine seldom comes to by chance: a full vocabulary, over and over, with old and frequent URLs in it."""
    machine, random = Endless(), np.random.default_rng(0)
    machine.begin(START)
    for _ in range(12):
        machine.a_flood_of_urls_never_seen_before(20, 2)
        machine.one_long_session([str(url) for url in random.choice(list("abcdefgh"), 20)])
        machine.time_passes(3)
        machine.learn(visits_of([["/new/0", "/new/1"]]))
        machine.who_has_which_row_is_beyond_doubt()
        machine.visits_and_times_are_those_of_the_obvious_model()
        machine.a_slot_holds_no_more_than_its_two_urls_were_visited_together()
        machine.sums_are_those_of_their_parts()
    assert machine.removed > 12
