"""What `url2vec bench classifier` found: as JSON for machines, as tables for people, and a paragraph that explains them."""

from collections.abc import Sequence

import msgspec
from rich.table import Table

from streams.bench.classifier_ablations import SCORE_BATCH, Rates
from streams.bench.classifier_judge import BINS, POSITIONS, Halves, Judged


class Row(msgspec.Struct, kw_only=True):
    """One contestant on one task. What was not measured is null."""

    task: str
    name: str
    setting: str = ""
    said: float  # share of the judged visits that it had an answer for
    all: Halves
    by_position: dict[str, Halves]
    learn_per_cpu_second: float | None = None
    score_per_cpu_second: float | None = None


class Ablated(msgspec.Struct, kw_only=True):
    """One ablation on one task; `skipped` says why there are no numbers."""

    task: str
    name: str
    skipped: str | None = None
    all: Halves | None = None
    at_3: Halves | None = None
    network_at_3: Halves | None = None  # the network's own answer, before it is blended with others
    seconds: float | None = None  # of CPU, all of the stream


class Report(msgspec.Struct, kw_only=True):
    """All that a run found."""

    command: str
    log: str
    visits: int
    examples: int
    seed: int
    batch: int
    rows: list[Row]
    ablations: list[Ablated]
    rates: Rates | None = None  # null where ours did not run
    notes: list[str] = []


_PAIRS = (("AUC", "auc", 3), ("log-loss", "log_loss", 3), ("ECE", "ece", 3))


def tables(report: Report) -> list[Table]:
    """For each task: quality and rates; AUC of the last half by position; ablations where there are any."""
    out = []
    for task in dict.fromkeys([row.task for row in report.rows] + [row.task for row in report.ablations]):
        mine = [row for row in report.rows if row.task == task]
        if mine:
            out += [_quality(report, task, mine), _positions(task, mine)]
        ablations = [row for row in report.ablations if row.task == task]
        if ablations:
            out.append(_ablations(task, ablations))
    return out


def _quality(report: Report, task: str, rows: Sequence[Row]) -> Table:
    one = rows[0].all.whole
    grid = _grid(
        f"{task}: {one.visits:,} of {report.visits:,} visits judged, {show(one.positive, 3)} of them positive; "
        "whole stream / last half"
    )
    for heading in (
        *(name for name, _, _ in _PAIRS),
        "AUC,\n3rd page",
        "ECE,\n3rd page",
        "said",
        "learn\n/CPU s",
        "score\n/CPU s",
    ):
        grid.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        third = row.by_position["3"]
        grid.add_row(
            ", ".join(filter(None, (row.name, row.setting))),
            *(_pair(row.all, field, digits) for _, field, digits in _PAIRS),
            _pair(third, "auc", 3),
            _pair(third, "ece", 3),
            "" if row.said == 1 else f"{row.said:.0%}",
            show(row.learn_per_cpu_second, 0),
            show(row.score_per_cpu_second, 0),
        )
    return grid


def _positions(task: str, rows: Sequence[Row]) -> Table:
    counts = ", ".join(f"{name}: {judged.last_half.visits:,}" for name, judged in rows[0].by_position.items())
    grid = _grid(f"{task}: AUC of the last half by position in the session (visits {counts})")
    for name in POSITIONS:
        grid.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        grid.add_row(
            ", ".join(filter(None, (row.name, row.setting))),
            *(show(row.by_position[name].last_half.auc, 3) for name in POSITIONS),
        )
    return grid


def _ablations(task: str, rows: Sequence[Ablated]) -> Table:
    grid = _grid(f"{task}: the classifier alone with one thing changed; last half")
    for heading in ("AUC", "AUC,\n3rd page", "±", "network's,\n3rd page", "±", "log-loss", "ECE", "CPU s"):
        grid.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        if row.all is None:
            grid.add_row(row.name, *["–"] * 8, f"skipped: {row.skipped}")
            continue
        last, cells = row.all.last_half, list[str]()
        for mine, base in ((row.at_3, rows[0].at_3), (row.network_at_3, rows[0].network_at_3)):
            value, other = (None if one is None else one.last_half.auc for one in (mine, base))
            cells.append(show(value, 4))
            cells.append("" if value is None or other is None or row is rows[0] else f"{value - other:+.4f}")
        grid.add_row(
            row.name, show(last.auc, 4), *cells, show(last.log_loss, 4), show(last.ece, 4), show(row.seconds, 1)
        )
    return grid


def _grid(title: str) -> Table:
    grid = Table(title=title, title_justify="left", box=None, pad_edge=False)
    grid.add_column("", no_wrap=True)
    return grid


def _pair(judged: Halves, field: str, digits: int) -> str:
    parts: list[Judged] = [judged.whole, judged.last_half]
    return " / ".join(show(getattr(part, field), digits) for part in parts)


def show(value: float | None, digits: int) -> str:
    """A number for a table; shares without their zero."""
    if value is None:
        return "–"
    text = f"{value:,.{digits}f}"
    return text.removeprefix("0") if digits >= 3 else text


def legend(report: Report) -> str:
    """What the tables say, in a paragraph."""
    text = (
        f"Progressive: every answer was given before its label was known. The log went through the pipeline's steps in event "
        f"time, {report.batch:,} records a micro-batch; a label is known with its outcome, or when the watermark has passed "
        f"the deadline; visits whose horizon the log does not hold are not judged where it leaves questions open. Halves are "
        f"of the judged visits. ECE: {BINS} equal bins. "
    )
    if report.examples:
        text += (
            f"Everybody read the same rows and learned the same {report.examples:,} examples at the same moments. Rates are "
            f"by CPU time on one thread: of ours the classifier alone, without River, {SCORE_BATCH:,} visits a call; everybody "
            f"else is timed in the stream. "
        )
    if report.rates is not None:
        r = report.rates
        text += (
            f"River, which stands beside every answer of ours: {show(r.river_learn_examples, 0)} examples/s, "
            f"{show(r.river_score_visits, 0)} visits/s. Ours with the making of features: "
            f"{show(r.score_visits_with_features, 0)} visits/s; the whole learner (River, vectors and next URLs too): "
            f"{show(r.learner_visits, 0)} visits/s, {show(r.learner_examples, 0)} examples/s. "
        )
    return text + "".join(f"{note}. " for note in report.notes) + f"Seed {report.seed}: {report.command}"
