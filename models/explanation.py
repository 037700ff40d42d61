"""Why a visit gets its score, for people: what each expert says, what moves the baseline most, which sessions resemble it.

All of it is of the model as it is now, not as it was when the visit was first answered. Contributions are those of the
baseline, which is linear, so that they add up to its logit; experts are told by their own logits. Changes nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from models.features import EXPERTS, FIXED
from models.memory import Neighbour
from models.properties import level
from models.visits import VisitContext, url_identity

SHARED = 4  # things in common that are told of a remembered session
EVERYWHERE = 0.3  # share of all examples from which having something in common tells nothing
# Told by the pages themselves; and when it was, or how far into the session, makes no two sessions alike to a person.
_UNTOLD = {
    "url", "host", "section", "subsection", "entry", "previous", "step", "position", "pause", "pace", "absence", "hour",
}  # fmt: skip
_UNTOLD_AT = {k for k, name in enumerate(FIXED) if name in _UNTOLD}
CONTRIBUTIONS = 8  # the largest ones: a screenful, and the rest seldom turns an answer


class Explainable(Protocol):
    """What is asked of a learner."""

    tasks: tuple[str, ...]
    step: int
    trained_through_ms: int

    @property
    def row_layout(self) -> np.dtype[np.void]:
        """How the bytes of a feature row are to be read."""

    @property
    def features(self) -> Any:
        """`names(visit, url_of)`: what stands in a row's levels and numbers."""

    @property
    def classifier(self) -> Any:
        """Its `memory`, a `models.memory.Memory`, and its `baseline`, whose `contributions(rows)` of one row are for each
        task (levels (A,), numbers (N,), counts (A, 2)), in logits."""

    def score(self, visits: Sequence[VisitContext]) -> Any:
        """`models.learner.Scored`."""

    def vectors(self) -> tuple[list[str], Any]:
        """The names of known URLs come first."""


@dataclass(frozen=True, slots=True)
class Contribution:
    """What one attribute adds to the baseline's logit: its own weight, and what is known of sessions that shared it."""

    name: str
    logits: float


@dataclass(frozen=True, slots=True)
class RememberedSession:
    """A session of which it is known how it ended."""

    similarity: float  # cosine, as the memory's vote counts it
    overlap: float  # share of this visit's pages and attributes that it has too
    label: bool
    pages: tuple[str, ...]  # oldest first, up to the visit that is remembered
    shared: tuple[str, ...]  # names of what both visits have in common, the pages aside; the rarest first
    instead: tuple[str, ...]  # where this visit has a property that names a page: the page that it named there
    age: int  # examples learned since
    probability: float | None  # the answer it got


@dataclass(frozen=True, slots=True)
class TaskExplanation:
    """One task's answer and what it rests on."""

    probability: float
    baseline: float
    experts: Mapping[str, float | None]  # logit of each; None where it says nothing
    contributions: tuple[Contribution, ...]  # largest first
    nearest: tuple[RememberedSession, ...]  # most similar first


@dataclass(frozen=True, slots=True)
class Explanation:
    """What the model says of a visit now."""

    step: int
    trained_through_ms: int
    novelty: float
    tasks: Mapping[str, TaskExplanation]


def explain(learner: Explainable, visit: VisitContext, tasks: Sequence[str] | None = None, k: int = 5) -> Explanation:
    """Ask the model about a visit anew. `tasks`: which, all without; `k`: how many remembered sessions of each."""
    scored = learner.score([visit])
    rows = np.frombuffer(scored.features[0], learner.row_layout)
    row, memory = rows[0], learner.classifier.memory
    urls = learner.vectors()[0]
    page_names = {max(url_identity(url) & 0x7FFFFFFF, 1): url for url in urls}
    page_names[max(visit.url_id & 0x7FFFFFFF, 1)] = visit.url
    by_id = {url_identity(url): url for url in urls}
    level_names, number_names = learner.features.names(visit, lambda url_id: by_id.get(url_id, ""))
    contributions = learner.classifier.baseline.contributions(rows)
    pages_named = _pages_named(visit, urls)
    told = {}
    for t, task in enumerate(learner.tasks):
        if tasks is not None and task not in tasks:
            continue
        told_apart = _told_apart(row["levels"], level_names, memory.frequency(row["levels"], t))
        told[task] = TaskExplanation(
            float(scored.probability[0, t]),
            float(scored.baseline[0, t]),
            {name: _number(x) for name, x in zip(EXPERTS, row["experts"][t].tolist(), strict=True)},
            _largest(contributions[t], level_names, number_names, row["numbers"]),
            tuple(_remembered(found, page_names, told_apart, pages_named) for found in memory.nearest(rows, t, k)),
        )
    return Explanation(learner.step, learner.trained_through_ms, float(scored.novelty[0]), told)


def _largest(
    parts: tuple[NDArray[Any], NDArray[Any], NDArray[Any]],
    level_names: Sequence[str],
    number_names: Sequence[str],
    numbers: NDArray[np.float32],
) -> tuple[Contribution, ...]:
    """A level's own weight and that of its live counts say one thing to a person: they are told as one."""
    levels, of_numbers, counts = (np.asarray(part, np.float64) for part in parts)
    both = levels + counts.sum(axis=-1)
    found = [
        Contribution(name or f"attribute {k}", x)
        for k, (name, x) in enumerate(zip(level_names, both.tolist(), strict=True))
    ]
    found += [
        Contribution(f"{name or f'number {k}'} = {value:.3g}", x)
        for k, (name, value, x) in enumerate(zip(number_names, numbers.tolist(), of_numbers.tolist(), strict=True))
    ]
    largest = sorted((one for one in found if one.logits and np.isfinite(one.logits)), key=lambda one: -abs(one.logits))
    return tuple(largest[:CONTRIBUTIONS])


def _told_apart(levels: NDArray[np.int32], names: Sequence[str], share: NDArray[np.float32]) -> dict[int, str]:
    """Names of those levels by which sessions can be told apart, the rarest first."""
    of_use = [k for k, name in enumerate(names) if name and levels[k] and share[k] < EVERYWHERE and k not in _UNTOLD_AT]
    return {int(levels[k]): names[k] for k in sorted(of_use, key=lambda k: float(share[k]))}


def _pages_named(visit: VisitContext, urls: Sequence[str]) -> dict[int, str]:
    """Levels are hashes; those of a property that names a page can be read, since pages are known."""
    known = set(urls)
    properties = [name for name, value in visit.properties.items() if isinstance(value, str) and value in known]
    return {
        level(name, url): f"properties.{name} = {url}"
        for name in properties
        for url in urls
        if url != visit.properties[name]
    }


def _remembered(
    found: Neighbour, page_names: Mapping[int, str], named: Mapping[int, str], pages_named: Mapping[int, str]
) -> RememberedSession:
    pages = tuple(page_names.get(page, "(a URL forgotten since)") for page in reversed(found.pages))
    shared = tuple(name for x, name in named.items() if x in found.levels)[:SHARED]
    instead = tuple(pages_named[x] for x in found.levels if x in pages_named)
    return RememberedSession(
        round(found.similarity, 4),
        round(found.overlap, 4),
        found.label,
        pages,
        shared,
        instead,
        found.age,
        _number(found.probability),
    )


def _number(x: float) -> float | None:
    return float(x) if np.isfinite(x) else None
