"""`url2vec status` and `url2vec wait`: where the group stands, and when it is done."""

import asyncio
import time
from collections.abc import Mapping

import click
from rich.table import Table

from models.insight import Drifts
from models.ranking import WHO
from streams.console import Failed, options, out, print_json
from streams.errors import BrokerError, ConfigError, Stalled, StoreError
from streams.settings import Settings, duration_ms, resolve
from streams.status import Status, read_status
from streams.store import Store

POLL_S = 0.2


@click.command()
@options()
def status(kafka: str | None, redis: str | None, config: str | None, as_json: bool, debug: bool) -> None:
    """Say where the group stands: lag, counters, latency, and how good the scores were. Exits 1 when it is stalled.

    Counters are the group's, survive restarts, and count each source record once.

    \b
    Example:
      url2vec status --json | jq .progressive
    """
    found = asyncio.run(_read(resolve(kafka, redis, config)))
    if as_json:
        print_json(found)
    else:
        out.print(table(found))
    if found.stalled:
        who = "no worker runs" if not found.workers else "no worker has moved for a while"
        raise Stalled(
            f"stalled: {found.lag:,} records wait and {who}; start one with `url2vec worker`, or look at its log"
        )


async def _read(settings: Settings) -> Status:
    store = Store(settings)
    try:
        return await read_status(settings, store)
    finally:
        await store.close()


def show(value: float | int | None, digits: int = 0) -> str:
    """A number for people; a dash where there is none."""
    return "–" if value is None else f"{value:,.{digits}f}"


def table(found: Status, of_latency: str = "") -> Table:
    """The status as a table for a terminal; `of_latency` says what to think of the latency."""
    grid = Table(box=None, show_header=False, pad_edge=False)
    grid.add_column(style="bold")
    grid.add_column()
    workers = ", ".join(f"{w.id} {w.partitions}" for w in found.workers) or "none"
    rows = [
        ("workers", workers),
        ("visits per second", show(found.visits_per_second)),
        ("lag, records", f"{show(found.lag)}  ({show(found.seconds_to_drain, 1)} s to drain)"),
        ("visits scored", show(found.visits_scored)),
        ("visits learned", f"{show(found.visits_learned)}  (share {found.learning_share:.3f})"),
        ("rejected, duplicates", f"{show(found.rejected)}, {show(found.duplicates)}"),
        ("outcomes joined, late", f"{show(found.outcomes_joined)}, {show(found.outcomes_late)}"),
        ("examples learned", show(found.examples_learned)),
        ("URLs with a vector", show(found.urls)),
        ("models behind", behind(found)),
        ("latency p50 / p99", f"{show(found.latency_ms.p50, 1)} / {show(found.latency_ms.p99, 1)} ms{of_latency}"),
        ("next URL among ten", next_url(found)),
    ]
    for name, p in found.progressive.items():
        rows.append(
            (f"AUC of {name}", f"{show(p.auc, 3)} ours, {show(p.baseline_auc, 3)} River  ({p.examples:,} examples)")
        )
        rows.append((f"log-loss of {name}", f"{show(p.logloss, 3)} ours, {show(p.baseline_logloss, 3)} River"))
        rows.append((f"calibration error of {name}", f"{show(p.ece, 4)} ours, {show(p.baseline_ece, 4)} River"))
        if name in found.drift:
            rows.append((f"drifts of {name}", drifts(found.drift[name])))
        if found.experts.get(name):
            rows.append((f"experts of {name}", experts(found.experts[name])))
    for name, race in found.racing.items():
        rows.append(
            (
                f"chosen for {name or 'all tasks'}",
                f"learning rate {race.learning_rate:g}, each example again {race.replay}×",
            )
        )
    if found.memory:
        rows.append(("sessions remembered", show(found.memory)))
    for name, value in rows:
        grid.add_row(name, value)
    return grid


def drifts(of: Drifts) -> str:
    """How often the losses rose beyond chance, and what is done about it."""
    ago = "" if of.examples_since is None else f"  (the last {of.examples_since:,} examples ago)"
    faster = f", learning {of.boost:.1f}× faster" if of.boost >= 1.05 else ""
    return f"{of.model} ours, {of.baseline} River{ago}{faster}"


def experts(weights: Mapping[str, float]) -> str:
    """Weights in the answer, the heaviest first; those that say next to nothing are left out."""
    kept = sorted(((name, weight) for name, weight in weights.items() if abs(weight) >= 0.005), key=lambda one: -one[1])
    return ", ".join(f"{name} {weight:.2f}" for name, weight in kept) or "none"


def behind(found: Status) -> str:
    """How far the worker that was furthest behind the others' lessons was, when it last looked."""
    furthest = max(found.workers, key=lambda w: (w.staleness_ms, w.lessons_behind), default=None)
    if furthest is None:
        return "–"
    return f"{show(furthest.staleness_ms)} ms of event time, {show(furthest.lessons_behind)} lessons at most"


def next_url(found: Status) -> str:
    """How often the next URL was among those proposed, and how often opponents would have had it."""
    model, popularity, markov = (show(found.next_url[who].hit_rate_at_10, 3) for who in WHO)
    return f"{model}  ({popularity} by popularity, {markov} by a Markov chain)"


@click.command()
@options()
@click.option("--timeout", "timeout_text", default="60s", show_default=True, help="how long to wait")
def wait(
    kafka: str | None, redis: str | None, config: str | None, as_json: bool, debug: bool, timeout_text: str
) -> None:
    """Wait until all that is in the topics has been scored, learned and checkpointed; exit 1 on time-out.

    \b
    Example:
      url2vec replay access.log && url2vec wait --timeout 5m && url2vec nearest /pricing
    """
    settings = resolve(kafka, redis, config)
    began = time.monotonic()
    found = asyncio.run(until_drained(settings, duration_ms(timeout_text) / 1000))
    if as_json:
        print_json(
            {"lag": found.lag, "visits_scored": found.visits_scored, "seconds": round(time.monotonic() - began, 3)}
        )


async def until_drained(settings: Settings, limit_s: float) -> Status:
    """The status once nothing waits any more. Raises Failed on time-out, ConfigError at once."""
    store = Store(settings)
    deadline, last = time.monotonic() + limit_s, "nothing answered"
    try:
        while True:
            try:
                found = await read_status(settings, store)
                if found.lag == 0:
                    return found
                last = f"{found.lag:,} records wait" + ("" if found.workers else " and no worker runs")
            except (BrokerError, StoreError) as error:
                last = str(error)
            except ConfigError:
                raise
            if time.monotonic() > deadline:
                raise Failed(f"not drained after {limit_s:g} s: {last}")
            await asyncio.sleep(POLL_S)
    finally:
        await store.close()
