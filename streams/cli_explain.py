"""`url2vec explain`: why a visit got its score.

The answer that went out is read from the topics. Everything else is of the live model: the visit is asked about again,
as its session stood at that moment, and what the model says now is taken apart.
"""

import asyncio
import math
import time
from typing import TYPE_CHECKING, Any

import click
from aiokafka.errors import KafkaError
from rich.table import Table
from rich.text import Text

from streams.cli_vectors import live_model
from streams.console import Failed, options, out, plain, print_json, prose
from streams.errors import BrokerError
from streams.history import History, find
from streams.settings import Settings, resolve

if TYPE_CHECKING:
    from models.explanation import Explanation, TaskExplanation


@click.command()
@click.argument("event_id")
@options()
@click.option("--task", help="explain this task alone")
@click.option(
    "-k", "count", type=click.IntRange(0, 100), default=5, show_default=True, help="how many remembered sessions"
)
def explain(
    event_id: str, kafka: str | None, redis: str | None, config: str | None, as_json: bool, debug: bool,
    task: str | None, count: int,
) -> None:  # fmt: skip
    """Why the visit EVENT_ID got its score: what went out then, and what the live model says of it now.

    Shown are what each expert says, the baseline's largest contributions, and the remembered sessions that are most like
    this one, with how they ended. Logits: 0 is even odds, +1 makes odds 2.7 times as high.

    \b
    Example:
      url2vec explain 4be1c0e2 --task finished
    """
    settings = resolve(kafka, redis, config)
    names = [each.name for each in settings.tasks]
    if task is not None and task not in names:
        raise click.UsageError(f"there is no task {plain(task)}; there are {', '.join(names)}")
    try:
        with prose.status(_cell(f"looking for {event_id} on {settings.topics.scored}")):  # seen on a terminal alone
            history = asyncio.run(find(settings, event_id))
    except KafkaError as error:
        raise BrokerError(f"Kafka at {settings.kafka} does not answer as it should: {error}") from error
    if history is None:
        raise Failed(
            f"no visit {plain(event_id)} on {settings.topics.scored}: it was not scored yet, or is older than what the "
            "broker keeps; `url2vec tail` shows visits as they are scored"
        )
    now = _ask(settings, history, None if task is None else [task], count)
    if as_json:
        print_json(_object(history, now))
    else:
        _show(history, now)


def _ask(settings: Settings, history: History, tasks: list[str] | None, count: int) -> "Explanation":
    from models.explanation import explain as ask

    return ask(asyncio.run(live_model(settings)), history.context, tasks, count)


def _object(history: History, now: "Explanation") -> dict[str, Any]:
    answer = history.answer
    return {
        "event_id": answer.event_id,
        "visitor_id": answer.visitor_id,
        "session_id": answer.session_id,
        "timestamp": answer.timestamp_ms,
        "url": answer.url,
        "then": {
            "scored_at": answer.scored_at_ms,
            "scores": answer.scores,
            "baseline": answer.baseline,
            "novelty": answer.novelty,
            "model": answer.model,
            "flags": answer.flags,
        },
        "visits": [{"event_id": v.event_id, "timestamp": v.timestamp_ms, "url": v.url} for v in history.visits],
        "missing": history.missing,
        "now": {
            "model": {"step": now.step, "trained_through": now.trained_through_ms},
            "novelty": now.novelty,
            "tasks": {name: _task_object(told) for name, told in now.tasks.items()},
        },
    }


def _task_object(told: "TaskExplanation") -> dict[str, Any]:
    return {
        "score": told.probability,
        "baseline": told.baseline,
        "experts": dict(told.experts),
        "contributions": [{"name": one.name, "logits": one.logits} for one in told.contributions],
        "nearest": [
            {
                "similarity": one.similarity,
                "overlap": one.overlap,
                "label": one.label,
                "score": one.probability,
                "pages": one.pages,
                "shared": one.shared,
                "instead": one.instead,
                "age": one.age,
            }
            for one in told.nearest
        ],
    }


def _show(history: History, now: "Explanation") -> None:
    answer = history.answer
    _say(f"{answer.event_id}: {answer.url}")
    _say(f"visitor {answer.visitor_id}, session {answer.session_id}, {_when(answer.timestamp_ms)}")
    for visit in history.visits[:-1]:
        _say(f"  before it  {_when(visit.timestamp_ms)}  {visit.url}")
    for sentence in history.missing:
        _say(f"note: {sentence}")
    flags = f" [{', '.join(answer.flags)}]" if answer.flags else ""
    out.print()
    _say(f"What went out at {_when(answer.scored_at_ms)}, by the model of step {answer.model.step:,}{flags}:")
    for task, chance in answer.scores.items():
        _say(f"  {task} {_percent(chance)} (baseline {_percent(answer.baseline.get(task))})")
    out.print()
    _say(f"What the model says now, at step {now.step:,}; everything below is of the model as it is now:")
    for task, told in now.tasks.items():
        _say(f"  {task} {_percent(told.probability)} (baseline {_percent(told.baseline)})")
        _show_task(told)


def _show_task(told: "TaskExplanation") -> None:
    experts = _table("expert", "logit", "says")
    for name, logit in told.experts.items():
        says = ("", "nothing") if logit is None else (f"{logit:+.2f}", _percent(1 / (1 + math.exp(-logit))))
        experts.add_row(_cell(name), *map(_cell, says))
    out.print(experts)
    if told.contributions:
        contributions = _table("what moves the baseline most", "logit")
        for one in told.contributions:
            contributions.add_row(_cell(one.name), _cell(f"{one.logits:+.2f}"))
        out.print(contributions)
    if not told.nearest:
        _say("  no session is remembered yet that could be compared with this one")
        return
    nearest = _table("remembered sessions most like this one", "ended", "scored", "likeness", "in common")
    for near in told.nearest:
        text = [" → ".join(near.pages), *(f"  both: {name}" for name in near.shared)]
        text += [f"  there: {name}" for name in near.instead]
        nearest.add_row(
            Text("\n".join(map(plain, text)), overflow="fold"),
            _cell("yes" if near.label else "no"),
            _cell(_percent(near.probability)),
            _cell(f"{near.similarity:.2f}"),
            _cell(f"{near.overlap:.0%}"),
        )
    out.print(nearest)


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 2), header_style="bold")
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _cell(text: str) -> Text:
    return Text(plain(text))


def _say(text: str) -> None:
    out.print(
        "\n".join(plain(line) for line in text.split("\n")) if text.startswith("\n") else plain(text), markup=False
    )


def _percent(chance: float | None) -> str:
    return "–" if chance is None else f"{chance:.1%}"


def _when(epoch_ms: int) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(epoch_ms / 1000))
    except (OverflowError, ValueError, OSError):
        return f"{epoch_ms} ms"
