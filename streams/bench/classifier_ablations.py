"""The classifier alone, over a stream that was recorded: what each of its parts is worth, and how fast it is.

Vectors, sessions and outcomes do not depend on the classifier, so one recording serves all: the same rows are scored and the
same examples learned, at the same moments, by a classifier with other settings. What a classifier writes into the rows
when it scores (live counts, its experts) is its own in each run; what others wrote stays. A part is switched off by a field
of `models.settings.ModelSettings`; where the field is missing, or refuses the value, the ablation is skipped, with the
reason.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints

import numpy as np

from models.baseline import Baseline
from models.classifier import Classifier
from models.features import EXPERTS
from models.lesson import Steps
from models.settings import ModelSettings
from streams.bench.classifier_opponents import Played
from streams.bench.classifier_stream import F32, Recording, Rows, Stream, ToLearn

Value = bool | int | float | str

# Name, and the settings that differ. The first is what the others are compared with, the second what chance does.
ABLATIONS: tuple[tuple[str, Mapping[str, Value]], ...] = (
    ("as it is", {}),
    ("another seed", {"seed": 1}),
    ("auxiliary losses: none", {"auxiliary": 0.0}),
    ("auxiliary losses: .05 each", {"auxiliary": 0.05}),
    ("auxiliary losses: .3 each", {"auxiliary": 0.3}),
    ("no cosines of vectors", {"vectors": False}),
    ("one wide layer, no sub-networks", {"sub_nets": False}),
    ("pages: attention", {"sequence": "attention"}),
    ("pages: mean", {"sequence": "mean"}),
    ("pages: GRU", {"sequence": "gru"}),
    ("pages: convolution", {"sequence": "conv"}),
    ("pages: GRU in reverse", {"sequence": "reverse"}),
    ("pages: the last alone", {"sequence": "last"}),
    ("replay: none", {"replay": 0}),
    ("replay: 2 of each", {"replay": 2}),
    ("replay: chosen by the stream", {"replay": -1}),
    ("Adam", {"optimiser": "adam"}),
    ("plain SGD", {"optimiser": "sgd"}),
    ("Muon, orthogonal steps", {"optimiser": "muon"}),
    ("slope penalised, .01", {"slope_penalty": 0.01}),
    ("slope penalised, .1", {"slope_penalty": 0.1}),
)
SCORE_BATCH = 1_024  # visits in a call when rates are measured
RATE_VISITS = 65_536  # of a recording that rates are measured on; the last ones


@dataclass(frozen=True)
class Rates:
    """What one thread does in a second of its CPU time."""

    learn_examples: float | None  # the classifier without River, in chunks of its settings
    score_visits: float | None  # the same, from rows that were made
    river_learn_examples: float | None  # River's part in the classifier
    river_score_visits: float | None
    score_visits_with_features: float | None  # rows made from visits as they were read, then scored, without River
    learner_examples: float | None  # the whole learner in the pipeline's batches: River, vectors and next URLs too
    learner_visits: float | None


class _Clocked:
    """River inside the classifier, with a clock of its own."""

    def __init__(self, river: Baseline) -> None:
        self._river = river
        self.seconds = 0.0

    def score(self, rows: Rows) -> Any:
        """As it does."""
        began = time.thread_time()
        out = self._river.score(rows)
        self.seconds += time.thread_time() - began
        return out

    def learn(self, *arguments: Any) -> None:
        """As it does."""
        began = time.thread_time()
        self._river.learn(*arguments)
        self.seconds += time.thread_time() - began


class _Recalled:
    """What River said when the stream was recorded: no setting of ours changes that, and it takes most of the time."""

    def score(self, rows: Rows) -> Any:
        """From the rows, where it still stands."""
        return rows["experts"][:, :, EXPERTS.index("baseline")].astype(np.float64)

    def learn(self, *_: Any) -> None:
        """Nothing."""


def settings_of(base: ModelSettings, changes: Mapping[str, Value]) -> ModelSettings | str:
    """The settings of an ablation, or why there are none."""
    known = get_type_hints(ModelSettings)
    for name, value in changes.items():
        if name not in known:
            return f"no setting {name}"
        if get_origin(known[name]) is Literal and value not in get_args(known[name]):
            return f"{name} can only be {', '.join(map(str, get_args(known[name])))}"
    try:
        changed: ModelSettings = replace(base, **changes)  # type: ignore[arg-type]
        Classifier(changed, 1)
    except ValueError as error:
        return str(error)
    return changed


def play_alone(
    recording: Recording, settings: ModelSettings, with_river: bool = False
) -> tuple[Played, Classifier, Rows]:
    """A classifier that knows nothing, over the whole stream; with it, and the rows as it saw them."""
    classifier = Classifier(settings, len(recording.tasks))
    if not with_river:
        classifier.baseline = cast(Baseline, _Recalled())
    rows = recording.rows.copy()
    played = Played(np.full((recording.visits, len(recording.tasks)), np.nan, np.float32))
    for event in recording.events:
        began = time.thread_time()
        if isinstance(event, ToLearn):
            taught(classifier, event, rows[event.visit])
            played.learn_s += time.thread_time() - began
            played.examples += len(event.visit)
        else:
            start, stop = event
            mine = rows[start:stop]
            played.probability[start:stop] = answered(classifier, mine)
            played.score_s += time.thread_time() - began
    return played, classifier, rows


def answered(classifier: Classifier, rows: Rows) -> F32:
    """(B, T) probabilities; writes what the classifier has to say into the rows."""
    probability, _ = classifier.score(rows)
    return probability


def taught(classifier: Classifier, event: ToLearn, rows: Rows) -> None:
    """One lesson's examples, with what is known of what came after."""
    columns = (event.task, event.label, event.weight, event.steps, event.wait_ms, event.action)
    classifier.learn(rows, np.stack([column.astype(np.float64) for column in columns], axis=1))


def rates(recording: Recording, stream: Stream) -> Rates:
    """Measured on a classifier that has learned the stream, so that its tables are full and its kernels compiled."""
    _, classifier, rows = play_alone(recording, stream.model, with_river=True)
    river = _Clocked(classifier.baseline)
    classifier.baseline = cast(Baseline, river)
    last = rows[-RATE_VISITS:]

    began, before = time.thread_time(), river.seconds
    for k in range(0, len(last), SCORE_BATCH):
        answered(classifier, last[k : k + SCORE_BATCH])
    score_s, river_score_s = time.thread_time() - began, river.seconds - before

    contexts, learner = list(recording.contexts), stream.learner
    began, before = time.thread_time(), river.seconds
    for k in range(0, len(contexts), SCORE_BATCH):
        part = contexts[k : k + SCORE_BATCH]
        answered(classifier, learner._features.rows(part, Steps.of(part), learner._urls))
    featured_s = time.thread_time() - began - (river.seconds - before)

    examples = chunks(recording, stream.model.chunk)
    began, before = time.thread_time(), river.seconds
    for event in examples:
        taught(classifier, event, rows[event.visit])
    learn_s, river_learn_s = time.thread_time() - began, river.seconds - before
    learned = sum(len(event.visit) for event in examples)
    return Rates(
        _rate(learned, learn_s - river_learn_s),
        _rate(len(last), score_s - river_score_s),
        _rate(learned, river_learn_s),
        _rate(len(last), river_score_s),
        _rate(len(contexts), featured_s),
        _rate(recording.examples, recording.learn_s),
        _rate(recording.visits, recording.score_s),
    )


def chunks(recording: Recording, size: int) -> list[ToLearn]:
    """The last examples of a recording in whole chunks of `size`, whatever lessons they came in."""
    lessons = [event for event in recording.events if isinstance(event, ToLearn)]
    if not lessons:
        return []
    names = ("visit", "task", "label", "weight", "steps", "wait_ms", "action")
    joined: dict[str, Any] = {
        name: np.concatenate([getattr(event, name) for event in lessons])[-RATE_VISITS:] for name in names
    }
    return [
        replace(lessons[-1], **{name: column[k : k + size] for name, column in joined.items()})
        for k in range(0, len(joined["visit"]) - size + 1, size)
    ]


def _rate(count: int, seconds: float) -> float | None:
    return round(count / seconds, 1) if count and seconds > 0 else None
