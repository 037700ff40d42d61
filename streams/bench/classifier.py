"""`url2vec bench classifier`: who foresees best what will come of a session, learning while it happens.

One log goes through the pipeline's steps (`classifier_stream`); our answers are those that went out. Everybody else, and each
of our experts, is asked about the same visits at the same moments and learns the same examples when they became known
(`classifier_opponents`). All is judged in the same way (`classifier_judge`), progressively.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from models.features import EXPERTS
from models.settings import ModelSettings
from schemas.logs import LogFile, UnknownFormat
from streams.bench import classifier_opponents as rivals
from streams.bench.classifier_ablations import ABLATIONS, Rates, play_alone, rates, settings_of
from streams.bench.classifier_judge import by_position, first_half, halves
from streams.bench.classifier_report import Ablated, Report, Row, show
from streams.bench.classifier_stream import F32, NoVisits, Recording, Rows, Stream
from streams.bench.classifier_trees import LightGBM
from streams.bench.load import VISITS
from streams.console import Failed
from streams.outcomes import Task
from streams.settings import CONTINUES

OURS = "url2vec"
BLEND = "blend"  # of the experts: the answer itself


@dataclass(frozen=True)
class Asked:
    """What a run is to measure."""

    path: Path | None
    tasks: tuple[str, ...]
    horizon_ms: int
    scope: Literal["session", "visitor"]
    limit: int | None
    seed: int
    batch: int
    groups: Sequence[str]
    every: Sequence[int]
    ablations: bool = False
    pipeline: bool = False
    rate: float | None = None

    def log(self) -> LogFile:
        """The visits, from their beginning."""
        return LogFile(self.path or VISITS, now_ms=int(time.time() * 1000), limit=self.limit)

    def questions(self) -> tuple[Task, ...]:
        """`continues` is asked of the visits themselves; any other name is that of an outcome."""
        names = self.tasks or (("finished",) if self.path is None else ("continues",))
        return tuple(
            CONTINUES if name == CONTINUES.name else Task(name, frozenset({name}), self.horizon_ms, self.scope)
            for name in dict.fromkeys(names)
        )


def run(asked: Asked, command: str, say: Callable[[str], None]) -> Report:
    """All that was asked for. Raises Failed where the log holds no visit."""
    tasks = asked.questions()
    report = Report(
        command=command, log=str(asked.path or VISITS.name), visits=0, examples=0, seed=asked.seed, batch=asked.batch,
        rows=[], ablations=[],
    )  # fmt: skip
    if asked.groups or asked.ablations:
        stream = Stream(asked.log(), tasks, ModelSettings(seed=asked.seed, device="cpu"), asked.batch)
        stream.learner.warm_up()
        try:
            recording = Recording.of(stream)
        except (NoVisits, UnknownFormat) as error:
            raise Failed(str(error)) from None
        report.visits, report.examples = recording.visits, recording.examples
        say(f"{recording.visits:,} visits went through the steps, {recording.examples:,} examples were learned")
        report.rows, report.rates = measure(recording, stream, asked.groups, asked.every, asked.seed, say)
        if "lightgbm" in asked.groups and not rivals.installed():
            say(rivals.INSTALL)
            report.notes.append(rivals.INSTALL)
        if asked.ablations:
            report.ablations = ablate(recording, stream, say)
    if asked.pipeline:
        from streams.bench import classifier_pipeline  # brings Kafka's clients

        found = classifier_pipeline.run(asked.log(), tasks, asked.seed, asked.rate, say)
        report.visits = report.visits or found.scored
        report.rows += classifier_pipeline.rows(found, tasks)
        report.notes.append(
            f"Through the pipeline: {found.scored:,} visits replayed, scored, learned and checkpointed in {found.seconds:.1f} s"
        )
    return report


def measure(
    recording: Recording, stream: Stream, groups: Sequence[str], every: Sequence[int], seed: int,
    say: Callable[[str], None],
) -> tuple[list[Row], Rates | None]:  # fmt: skip
    """Everybody in the named groups over a stream that was recorded."""
    found: list[Row] = []
    measured: Rates | None = None
    if "ours" in groups:
        measured = rates(recording, stream)
        found += judged_rows(
            recording, OURS, "", recording.probability, (measured.learn_examples, measured.score_visits)
        )
        for name, answers in experts(recording).items():
            found += judged_rows(recording, f"  its {name}", "", answers)
    for opponent in rivals.opponents(recording, groups, seed, every):
        played = rivals.play(recording, opponent)
        if isinstance(opponent, LightGBM) and not opponent.trainings:
            say(f"{opponent.name}, {opponent.setting}, is left out: so many never became known")
            continue
        learn, score = played.rates()
        say(f"{opponent.name}, {opponent.setting}: {learn or 0:,.0f} examples/s, {score or 0:,.0f} visits/s")
        found += judged_rows(recording, opponent.name, opponent.setting, played.probability, (learn, score))
    return found, measured


def experts(recording: Recording) -> dict[str, F32]:
    """(n, T) probabilities of each of our experts that said something, NaN where it did not."""
    found = {name: _chances(recording.rows, k) for k, name in enumerate(EXPERTS) if name != BLEND}
    return {name: p for name, p in found.items() if np.isfinite(p).any() and (p[np.isfinite(p)] != 0.5).any()}


def _chances(rows: Rows, expert: int) -> F32:
    """(n, T) what an expert wrote into the rows."""
    logits = rows["experts"][:, :, expert].astype(np.float32)
    return np.where(np.isfinite(logits), 1 / (1 + np.exp(-np.clip(logits, -30, 30))), np.nan).astype(np.float32)


def judged_rows(
    recording: Recording, name: str, setting: str, p: F32, cost: tuple[float | None, float | None] = (None, None)
) -> list[Row]:
    """A row a task."""
    out = []
    for t, task in enumerate(recording.tasks):
        y = recording.label[:, t]
        first, known = first_half(y), ~np.isnan(y)
        out.append(
            Row(
                task=task,
                name=name,
                setting=setting,
                said=round(float((~np.isnan(p[known, t])).mean()), 4) if known.any() else 0.0,
                all=halves(p[:, t], y, first),
                by_position=by_position(p[:, t], y, recording.position, first),
                learn_per_cpu_second=cost[0],
                score_per_cpu_second=cost[1],
            )
        )
    return out


def ablate(recording: Recording, stream: Stream, say: Callable[[str], None]) -> list[Ablated]:
    """The classifier alone, once for each ablation."""
    found: list[Ablated] = []
    for name, changes in ABLATIONS:
        settings = settings_of(stream.model, changes)
        if isinstance(settings, str):
            say(f"skipped: {name}: {settings}")
            found += [Ablated(task=task, name=name, skipped=settings) for task in recording.tasks]
            continue
        played, _, rows = play_alone(recording, settings)
        network = _chances(rows, EXPERTS.index("network"))
        for t, task in enumerate(recording.tasks):
            p, y = played.probability[:, t], recording.label[:, t]
            first = first_half(y)
            row = Ablated(
                task=task,
                name=name,
                all=halves(p, y, first),
                at_3=by_position(p, y, recording.position, first)["3"],
                network_at_3=by_position(network[:, t], y, recording.position, first)["3"],
                seconds=round(played.score_s + played.learn_s, 1),
            )
            assert row.at_3 is not None, "it was just made"
            say(f"{task}: {name}: AUC at the third page, last half {show(row.at_3.last_half.auc, 4)}")
            found.append(row)
    return found
