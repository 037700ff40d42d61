"""An explanation tells what the model holds, in names, largest first, and asks about the visit as it is."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from models.explanation import CONTRIBUTIONS, explain
from models.features import CATEGORIES, EXPERTS, FIXED, NUMBERS, layout
from models.memory import Neighbour
from models.properties import level
from models.visits import VisitContext, url_identity

HERE, BEFORE = "https://shop.example/hats/1", "https://shop.example/"
TASKS = ("bought", "returned")
URL, PREVIOUS, EVENT, HOST, AGENT, DEVICE = (
    FIXED.index(name) for name in ("url", "previous", "event_name", "host", "user_agent", "device")
)


def page(url: str) -> int:
    return max(url_identity(url) & 0x7FFFFFFF, 1)


def visit(url: str = HERE) -> VisitContext:
    return VisitContext(
        url=url, url_id=url_identity(url), recent=(url_identity(BEFORE),), entry=url_identity(BEFORE), position=2,
        timestamp_ms=0, since_previous_ms=5, since_start_ms=5, visits_before=1, sessions_before=0, event_name="page_view",
        referrer=None, user_agent=None, title=None, properties={"to": BEFORE}, repeat=False, session=9,
    )  # fmt: skip


class Told:
    """A learner that answers with what it was made from."""

    tasks: tuple[str, ...] = TASKS
    step, trained_through_ms = 12, 34

    def __init__(self, neighbours: Sequence[Neighbour] = (), names: Sequence[str] = (BEFORE,)) -> None:
        self.row_layout = layout(2)
        self.row = np.zeros(1, self.row_layout)
        self.row["levels"][0, [URL, PREVIOUS, EVENT, HOST, AGENT, DEVICE]] = 11, 12, 13, 14, 15, 16
        self.row["numbers"][0, 4] = 2.5
        self.row["experts"][0] = np.nan
        self.row["experts"][0, 1, EXPERTS.index("memory")] = -0.5
        self.parts = [(np.zeros(CATEGORIES), np.zeros(NUMBERS), np.zeros((CATEGORIES, 2))) for _ in TASKS]
        self._names = list(names)
        self.features = SimpleNamespace(names=self.names_of)
        baseline = SimpleNamespace(contributions=lambda rows: self.parts if rows.shape == (1,) else None)
        memory = SimpleNamespace(
            nearest=lambda _, task, k: list(neighbours)[: k * task],
            frequency=lambda levels, _: np.where(levels == 16, 0.9, 1 / np.maximum(levels, 1)),
        )
        self.classifier = SimpleNamespace(baseline=baseline, memory=memory)

    def names_of(self, _: VisitContext, url_of: Any) -> tuple[list[str], list[str]]:
        names = [""] * CATEGORIES
        names[URL], names[PREVIOUS] = "url = here", f"previous = {url_of(url_identity(BEFORE))}"
        names[EVENT], names[HOST], names[AGENT], names[DEVICE] = (
            "event = view",
            "host = shop",
            "agent = x",
            "device = z",
        )
        return names, [f"number {k}" for k in range(NUMBERS)]

    def score(self, visits: Sequence[VisitContext]) -> Any:
        assert [each.url for each in visits] == [HERE]
        answers = np.array([[0.25, 0.75]], np.float32)
        return SimpleNamespace(
            features=[self.row[0].tobytes()], probability=answers, baseline=answers[:, ::-1], novelty=np.array([0.5])
        )

    def vectors(self) -> tuple[list[str], Any]:
        return self._names, None


def neighbour(pages: tuple[int, ...], levels: tuple[int, ...], probability: float = np.nan) -> Neighbour:
    return Neighbour(0.91234567, 0.5, True, 5, pages, levels + (0,) * (CATEGORIES - len(levels)), 7, probability)


def test_each_task_has_its_own_answer_and_unsaid_is_none() -> None:
    told = explain(Told(), visit())
    assert (told.step, told.trained_through_ms, told.novelty) == (12, 34, 0.5)
    assert [(t.probability, t.baseline) for t in told.tasks.values()] == [(0.25, 0.75), (0.75, 0.25)]
    assert told.tasks["returned"].experts["memory"] == -0.5
    assert {name for name, logit in told.tasks["returned"].experts.items() if logit is None} == set(EXPERTS) - {
        "memory"
    }
    assert list(explain(Told(), visit(), ["returned"]).tasks) == ["returned"]


def test_contributions_are_named_merged_by_attribute_and_the_largest_by_size() -> None:
    learner = Told()
    levels, numbers, counts = learner.parts[0]
    levels[URL], counts[URL] = 0.5, (0.25, -0.05)
    levels[PREVIOUS], counts[PREVIOUS] = -0.1, (-2.0, 0.0)
    numbers[4] = 1.0
    counts[EVENT] = np.nan, 0
    told = explain(learner, visit()).tasks["bought"].contributions
    assert [one.name for one in told] == [f"previous = {BEFORE}", "number 4 = 2.5", "url = here"]
    assert [one.logits for one in told] == pytest.approx([-2.1, 1.0, 0.7])
    numbers[:] = 1
    assert len(explain(learner, visit()).tasks["bought"].contributions) == CONTRIBUTIONS


def test_remembered_sessions_come_with_names_of_their_pages_oldest_first_and_with_what_they_share() -> None:
    held = [
        neighbour((page(HERE), page(BEFORE), 77), (11, 99, 13, 16, 15, level("to", HERE), level("to", BEFORE)), 0.125),
        neighbour((page(BEFORE),), (1, 2)),
    ]
    first, second = explain(Told(held, (BEFORE, HERE)), visit(), k=2).tasks["returned"].nearest
    assert first.pages == ("(a URL forgotten since)", BEFORE, HERE)
    assert first.shared == ("agent = x", "event = view")  # the rarer one first; what all have or pages tell is left out
    assert first.instead == (f"properties.to = {HERE}",)
    assert (first.similarity, first.label, first.age, first.probability) == (0.9123, True, 7, 0.125)
    assert (second.pages, second.shared, second.probability) == ((BEFORE,), (), None)
