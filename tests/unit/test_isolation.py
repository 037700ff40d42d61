"""Halving: whatever visits fail, they alone are named, and all others have the answers they would have had."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.learner import Learner, Scored
from models.visits import VisitContext
from streams.errors import ModelFailed
from streams.isolation import PLAIN, score_apart
from streams.scoring import Steps, Teaching
from tests.unit import test_scoring
from tests.unit.test_models_lesson import visit


class Choosy:
    """A model that fails on some URLs, and on more visits at once than it has room for."""

    def __init__(self, bad: Sequence[str] = (), room: int = 1_000) -> None:
        self.bad, self.room, self.asked = set(bad), room, 0

    def score(self, visits: Sequence[VisitContext]) -> Scored:
        self.asked += 1
        if len(visits) > self.room:
            raise MemoryError(f"{len(visits)} visits")
        if bad := self.bad & {each.url for each in visits}:
            raise ValueError(f"no idea of {min(bad)}")
        n = len(visits)
        numbers = np.array([[float(each.url.rpartition("/")[2] or -1)] for each in visits], np.float32)
        return Scored(
            [each.url.encode() for each in visits], numbers, numbers, np.zeros((n, 10), np.int32),
            np.ones((n, 10), np.float32), ["https://a.example/"], numbers[:, 0], np.zeros(n, np.bool_),
            np.zeros((n, 3), np.int8),
        )  # fmt: skip


def visits(count: int) -> list[VisitContext]:
    return [visit(f"https://a.example/{n}") for n in range(count)]


@given(st.integers(1, 64), st.sets(st.integers(0, 63)), st.integers(1, 64))
def test_those_that_fail_are_named_and_the_others_are_answered_in_order(count: int, bad: set[int], room: int) -> None:
    asked = visits(count)
    bad = {n for n in bad if n < count}
    scored, failed = score_apart(Choosy([asked[n].url for n in bad], room), asked)  # type: ignore[arg-type]
    assert failed.keys() == bad
    assert all("ValueError: no idea of" in why for why in failed.values())
    good = [each for n, each in enumerate(asked) if n not in bad]
    if not good:
        assert scored is None
        return
    assert scored is not None
    assert scored.features == [each.url.encode() for each in good]
    assert scored.probability[:, 0].tolist() == [n for n in range(count) if n not in bad]
    assert len(scored.ranks) == len(scored.new_url) == len(scored.next_urls) == len(good)


def test_one_bad_visit_of_five_hundred_is_found_in_a_handful_of_steps() -> None:
    asked, model = visits(512), Choosy(["https://a.example/77"])
    assert score_apart(model, asked)[1].keys() == {77}  # type: ignore[arg-type]
    assert model.asked <= 2 * 9 + 2


def test_a_model_that_fails_on_a_plain_visit_too_blames_nobody() -> None:
    with pytest.raises(ModelFailed, match="every visit"):
        score_apart(Choosy([PLAIN.url, "https://a.example/0"]), visits(3))  # type: ignore[arg-type]


def test_no_memory_for_a_single_visit_is_nobodys_fault() -> None:
    with pytest.raises(ModelFailed, match="memory"):
        score_apart(Choosy(room=0), visits(3))  # type: ignore[arg-type]


def test_a_model_made_anew_learns_again_what_no_checkpoint_has_yet() -> None:
    bench = test_scoring.Bench()
    blank = bench.learner.snapshot()
    bench.run(*(test_scoring.visit(n, f"v{n}") for n in range(20)))
    bench.run(test_scoring.order(5, "v3"), topic="visit-outcomes")
    bench.steps.settle(list(bench.states.values()))
    taught = bench.learner.snapshot()
    assert taught != blank
    bench.learner.restore(blank)
    bench.steps.learn_again(bench.states.values())
    assert bench.learner.snapshot() == taught


class Torn(Learner):
    """Fails in a learning step when the step is more than half done."""

    fails_on = ""

    def learn(self, lesson: object) -> None:
        names = set(lesson.names.values())  # type: ignore[attr-defined]
        super().learn(lesson)  # type: ignore[arg-type]
        if self.fails_on in names:
            raise ValueError("half-way")


def test_a_step_that_fails_waits_in_halves_and_only_what_fails_alone_is_left_out() -> None:
    bench = test_scoring.Bench()
    torn = Torn(bench.learner.settings, ["bought"])
    blank, torn.fails_on = torn.snapshot(), "https://shop.example/5"
    bench.learner = torn
    bench.steps = Steps(test_scoring.SETTINGS, torn)
    left_out = []
    visits = [test_scoring.visit(n, f"v{n}", f"https://shop.example/{n}") for n in range(8)]
    work: Callable[[], object] = lambda: bench.run(*visits)  # noqa: E731
    while True:
        try:
            work()
            break
        except ModelFailed as error:
            torn.restore(blank)
            bench.steps.learn_again(bench.states.values())
            left_out += [said] if (said := bench.steps.halve(error)) else []
            work = bench.steps.teach
    assert len(left_out) == 1
    assert "https://shop.example/5" in left_out[0]
    learned = [name for lesson in bench.states[0].taught_since() for name in lesson.names.values()]
    assert learned == [f"https://shop.example/{n}" for n in range(8) if n != 5]
    assert bench.states[0].counters.visits_learned == 7
    assert torn.knows("https://shop.example/4")


def test_no_memory_for_one_visits_lesson_is_raised_again() -> None:
    bench = test_scoring.Bench()
    bench.run(test_scoring.visit(0))
    error = ModelFailed("no memory")
    error.__cause__ = MemoryError()
    bench.steps._to_teach.append(Teaching(bench.states[0], [visit("https://a.example/")], [], 0))
    with pytest.raises(ModelFailed):
        bench.steps.halve(error)
