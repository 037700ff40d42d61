"""The race: the stream chooses how the network learns; breakage goes back to the last good weights."""

import numpy as np
import pytest

from models.dense import dense
from models.features import EXPERTS, layout
from models.race import AUXILIARIES, RATES, REPLAYS, RING, Race
from models.settings import ModelSettings

SETTINGS = ModelSettings(table_bits=8, embedding_bits=6, embedding=2, page_embedding=2, hidden=16, sub_net=2, chunk=64)
NETWORK, RIVAL, NEWTON = (EXPERTS.index(name) for name in ("network", "rival", "newton"))


def rows(seed: int, n: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    made = np.zeros(n, layout(1))
    made["levels"][:, :2] = random.integers(1, 20, (n, 2)) + np.array([0, 100])
    made["pages"][:, :2] = random.integers(1, 9, (n, 2))
    made["numbers"][:, :2] = random.standard_normal((n, 2))
    return made


def fates(made: np.ndarray, seed: int) -> np.ndarray:
    """An exclusive or of two numbers: what a linear learner cannot know."""
    random = np.random.default_rng(seed)
    logit = 3.0 * np.sign(made["numbers"][:, 0] * made["numbers"][:, 1])
    out = np.full((len(made), 6), -1.0)
    out[:, 0], out[:, 2] = 0, 1
    out[:, 1] = random.random(len(made)) < 1 / (1 + np.exp(-logit))
    return out


def said(race: Race, made: np.ndarray, worse: int | None = None) -> np.ndarray:
    """Rows as they stand when the label comes; `worse` is who is made to look it."""
    made["generation"] = race.generation
    made["experts"][:, :, [NETWORK, RIVAL]] = race.score(made, dense(made))
    if worse is not None:
        made["experts"][:, :, NETWORK + RIVAL - worse] = np.sign(made["numbers"][:, :1] * made["numbers"][:, 1:2])
        made["experts"][:, :, worse] = 0
    return made


def run(race: Race, steps: int, seed: int = 0, worse: int | None = None, n: int = 256) -> None:
    for k in range(steps):
        made = said(race, rows(seed + k, n), worse)
        race.learn(made, dense(made), fates(made, seed + k))


def test_the_network_learns_what_the_linear_learners_cannot() -> None:
    race = Race(SETTINGS, 1)
    run(race, 150)
    made = rows(9_999, 2_000)
    right = (race.score(made, dense(made))[:, 0, 0] > 0) == (made["numbers"][:, 0] * made["numbers"][:, 1] > 0)
    assert right.mean() > 0.9


def test_a_rival_that_is_better_throughout_takes_over_with_its_course() -> None:
    race = Race(SETTINGS, 1)
    began, tried = dict(race.course), race.generation
    theirs = race.state()["course"][1].tolist()
    run(race, 70, worse=NETWORK)
    assert race.won == 1
    assert race.generation != tried
    assert race.course != began
    found = race.course
    assert [found["learning_rate"], found["replay"], found["auxiliary"]] == [
        RATES[theirs[0]], REPLAYS[theirs[1]], AUXILIARIES[theirs[2]]
    ]  # fmt: skip


def test_a_rival_that_loses_is_given_up_early_and_changes_nothing() -> None:
    race = Race(SETTINGS, 1)
    began = race.course
    run(race, 20, worse=RIVAL)
    assert race.won == 0
    assert race.course == began
    assert race.state()["counters"][0] > 1, "a new rival, of a new generation, is in the race"


def test_what_an_earlier_generation_said_is_not_held_against_this_one() -> None:
    race = Race(SETTINGS, 1)
    for k in range(70):
        made = said(race, rows(k, 256), worse=NETWORK)
        made["generation"] = (race.generation + 7) % 256
        race.learn(made, dense(made), fates(made, k))
    assert race.won == 0


def test_broken_weights_go_back_to_the_last_good_ones() -> None:
    race = Race(SETTINGS, 1)
    run(race, 150)
    state = race.state()
    state["incumbent.theta"] = np.full_like(state["incumbent.theta"], np.nan)
    race.load(state)
    run(race, 1, seed=500)
    assert race.restarts == 1
    assert race.skipped_steps >= 1
    made = rows(9_999, 2_000)
    right = (race.score(made, dense(made))[:, 0, 0] > 0) == (made["numbers"][:, 0] * made["numbers"][:, 1] > 0)
    assert right.mean() > 0.85, "what was good is still known"


def test_a_network_that_falls_behind_newtons_answer_begins_again_from_it_and_more_slowly() -> None:
    race = Race(SETTINGS, 1)
    rate = race.course["learning_rate"]
    for k in range(30):
        made = said(race, rows(k, 256))
        truth = np.sign(made["numbers"][:, 0] * made["numbers"][:, 1])
        made["experts"][:, 0, NEWTON] = 3 * truth
        made["experts"][:, 0, NETWORK] = -3 * truth
        race.learn(made, dense(made), fates(made, k))
        if race.restarts:
            break
    assert race.restarts == 1
    assert race.course["learning_rate"] == rate / 2
    made = rows(7, 50)
    made["experts"][:, 0, NEWTON] = np.linspace(-2, 2, 50)
    assert race.score(made, dense(made))[:, 0, 0] == pytest.approx(np.linspace(-2, 2, 50), abs=0.01)


def test_replay_draws_from_what_was_kept_and_the_ring_is_bounded() -> None:
    race = Race(SETTINGS, 1)
    run(race, 12)
    drawn = race._draw(4_000, 0)
    assert drawn.min() >= 0
    assert drawn.max() < RING
    assert len(np.unique(drawn)) > 1_500, "all over the ring"
    assert (race._draw(50, 0) != race._draw(50, 1)).any()
    assert len(race.state()["fates"]) == RING


@pytest.mark.parametrize("setting", [{"replay": 0}, {"replay": 2, "auxiliary": 0.3}])
def test_what_the_settings_fix_is_not_varied(setting: dict[str, float]) -> None:
    race = Race(ModelSettings(**{**SETTINGS.__dict__, **setting}), 1)
    courses = []
    for _ in range(12):
        race._vary()
        courses.append(race.state()["course"][1].tolist())
    assert {REPLAYS[replay] for _, replay, _ in courses} == {setting["replay"]}
    assert len({rate for rate, _, _ in courses}) > 1


def test_restored_it_goes_on_to_the_bit() -> None:
    one, other = Race(SETTINGS, 1), Race(SETTINGS, 1)
    run(one, 12)
    other.load({name: array.copy() for name, array in one.state().items()})
    for race in (one, other):
        run(race, 12, seed=300)
    mine, theirs = one.state(), other.state()
    assert all(mine[name].tobytes() == theirs[name].tobytes() for name in mine)
