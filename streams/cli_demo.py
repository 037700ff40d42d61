"""`url2vec demo`: everything on this machine, the bundled sessions, and what was learned from them.

The sessions are real navigation paths over Wikipedia (deploy/data/README.md); their times and visitors are synthetic, made
the same way for finished and unfinished sessions. The question asked of every visit: will this session reach its target?
"""

import asyncio
import contextlib
import sys
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from schemas.logs import LogFile
from streams.cli_status import show, table, until_drained
from streams.cli_vectors import live_model
from streams.console import interrupt_on_end, options, out, print_json, prose
from streams.errors import BrokerError, ConfigError, StoreError
from streams.replay import Replayed, replay
from streams.settings import Settings
from streams.status import Status, read_status
from streams.store import Store

if TYPE_CHECKING:
    from deploy.local import Local

SESSIONS = Path(__file__).parent.parent / "deploy" / "data" / "wikispeedia" / "sessions.tsv.gz"
SETTINGS = """# The demo's task: does this session reach its target?
session_gap = "30m"

[tasks.finished]
outcomes = ["finished"]
horizon = "30m"
scope = "session"
"""
PAGES = ("Bee", "Jupiter", "Chocolate")
WIKI = "https://en.wikipedia.org/wiki/"
DRAIN_LIMIT_S = 600.0


@dataclass
class Progress:
    """What the live screen shows."""

    replayed: Replayed | None = None
    total: int = 0
    first_score_s: float | None = None
    status: Status | None = None


@click.command()
@options("json", "debug")
@click.option("--exit", "leave", is_flag=True, help="end when the sessions are learned (so does a missing terminal)")
@click.option(
    "--limit", type=click.IntRange(0), default=200_000, show_default=True, help="visits to replay; 0 is all 357,379"
)
def demo(as_json: bool, debug: bool, leave: bool, limit: int) -> None:
    """Show it: broker, store and worker on this machine, real sessions, live numbers, and what was learned.

    Nothing needs to be installed beforehand and nothing is left behind. On a terminal it keeps running until Ctrl-C, so
    that the page and the other commands can be tried; with --exit it ends when everything is learned. With --json one
    object, the status, is printed.

    \b
    Example:
      url2vec demo --exit
    """
    from deploy.local import Local

    began = time.monotonic()
    stay = sys.stdout.isatty() and not leave and not as_json
    interrupt_on_end()
    with tempfile.TemporaryDirectory(prefix="url2vec-demo-") as folder:
        config = Path(folder) / "url2vec.toml"
        config.write_text(SETTINGS, encoding="utf-8")
        prose.print("Starting an embedded broker, a store and a worker …")
        with Local(config=str(config), data_dir=Path(folder) / "data", say=prose.print) as local:
            prose.print(f"Ready after {time.monotonic() - began:.1f} s. The page: {local.web}")
            stop = threading.Event()
            threading.Thread(target=_supervise, args=(local, stop), daemon=True).start()
            try:
                found, rate = _run(local.settings, limit or None, began)
                if as_json:
                    print_json(found)
                else:
                    _last_screen(local.settings, found, rate)
                if stay:
                    out.print(
                        f"\nStill running. The page: {local.web}   Other commands work in another terminal, as in"
                    )
                    out.print(f"  url2vec nearest {WIKI}Bee        Ctrl-C ends it.")
                    with contextlib.suppress(KeyboardInterrupt):
                        threading.Event().wait()
            finally:
                stop.set()


def _supervise(local: "Local", stop: threading.Event) -> None:
    try:
        local.supervise(stop)
    except (ConfigError, BrokerError, StoreError) as error:
        prose.print(f"{error}")


def _run(settings: Settings, limit: int | None, began: float) -> tuple[Status, float]:
    progress = Progress(total=limit or 0)
    with Live(_screen(progress), console=prose, refresh_per_second=4, transient=True) as live:
        return asyncio.run(_replay_and_learn(settings, limit, began, progress, lambda: live.update(_screen(progress))))


async def _replay_and_learn(
    settings: Settings, limit: int | None, began: float, progress: Progress, refresh: Callable[[], None]
) -> tuple[Status, float]:
    log = LogFile(SESSIONS, "sessions", now_ms=int(time.time() * 1000), limit=limit)

    def published(so_far: Replayed) -> None:
        progress.replayed = so_far

    started = time.monotonic()
    watching = asyncio.create_task(_watch(settings, began, progress, refresh))
    try:
        progress.replayed = await replay(
            log,
            kafka=settings.kafka,
            visits_topic=settings.topics.visits,
            outcomes_topic=settings.topics.outcomes,
            report=prose.print,
            progress=published,
        )
        found = await until_drained(settings, DRAIN_LIMIT_S)
    finally:
        watching.cancel()
    if progress.first_score_s is not None:
        prose.print(f"First scores {progress.first_score_s:.1f} s after the start.")
    return found, found.visits_scored / (time.monotonic() - started)


async def _watch(settings: Settings, began: float, progress: Progress, refresh: Callable[[], None]) -> None:
    store = Store(settings)
    try:
        while True:
            progress.status = await read_status(settings, store)
            if progress.first_score_s is None and progress.status.visits_scored:
                progress.first_score_s = time.monotonic() - began
            refresh()
            await asyncio.sleep(0.5)
    finally:
        await store.close()


def _screen(progress: Progress) -> Group:
    """The live numbers while the sessions flow."""
    sent = progress.replayed.published if progress.replayed else 0
    lines = Text(f"Published {sent:,} visits of the bundled sessions.")
    if progress.status is None:
        return Group(lines, Text("Nothing is scored yet."))
    return Group(lines, table(progress.status))


def _last_screen(settings: Settings, found: Status, rate: float) -> None:
    """What was learned: numbers, and neighbours of three pages."""
    out.print("\nScored and learned, visit by visit, each scored before anything was learned from it:\n")
    out.print(table(found, "  (backlog of the replay)"))
    out.print(
        f"\n{show(rate)} visits a second from the first one published to the last one learned, all of it on this machine.\n"
    )
    learner = asyncio.run(live_model(settings))
    near = Table(
        box=None, pad_edge=False, title="Nearest pages by the vectors learned from the sessions", title_justify="left"
    )
    for page in PAGES:
        near.add_column(page)
    known = [learner.nearest(WIKI + page, 6) if learner.knows(WIKI + page) else [] for page in PAGES]
    for row in range(6):
        cells = [
            f"{urllib.parse.unquote(names[row][0].removeprefix(WIKI)).replace('_', ' ')} {names[row][1]:.2f}"
            if row < len(names)
            else ""
            for names in known
        ]
        near.add_row(*cells)
    out.print(near)
