"""`url2vec worker`: one worker in the foreground, what an operator runs many of."""

import asyncio
import os

import click

from streams.console import options
from streams.settings import duration_ms, resolve


@click.command()
@options()
@click.option("--web-host", default="127.0.0.1", show_default=True, help="address to bind the page to")
@click.option("--web-port", type=click.IntRange(1, 65535), help="port of the page; without it there is none")
@click.option(
    "--session-timeout", default="6s", show_default=True, help="silence after which the group goes on without it"
)
@click.option("--no-learn", is_flag=True, help="a scorer: no learning between scores (see below)")
def worker(
    kafka: str | None,
    redis: str | None,
    config: str | None,
    as_json: bool,
    debug: bool,
    web_host: str,
    web_port: int | None,
    session_timeout: str,
    no_learn: bool,
) -> None:
    """Run one worker on a given Kafka and Redis, in the foreground.

    Waits for Kafka and Redis when they are away, and says so. SIGTERM or Ctrl-C finish what is in hand, checkpoint and end
    with exit code 0. With --json one line, {"ready": true, "pid": …}, is printed when it is ready to score.

    With --no-learn it is a scorer: a member of the group that answers, keeps sessions, joins outcomes and checkpoints as
    every worker does, but takes no learning step between its answers. What its partitions teach goes into the store with
    their offsets, so that none of it is lost; all workers learn it from there, and so does the scorer, about once a second.

    \b
    Example:
      url2vec worker --kafka broker:9092 --redis redis://store:6379/0
    """
    settings = resolve(kafka, redis, config)  # first: a mistake is answered before seconds of imports
    from streams.app import Worker, WorkerOptions, set_up_logging
    from streams.console import print_json, prose

    set_up_logging(debug)
    given = WorkerOptions(web_host, web_port, duration_ms(session_timeout) / 1000, learns=not no_learn)

    def ready() -> None:
        if as_json:
            print_json({"ready": True, "pid": os.getpid()})
        else:
            prose.print(f"ready: worker {os.getpid()} on {settings.kafka}")

    asyncio.run(Worker(settings, given).run(ready))
