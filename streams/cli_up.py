"""`url2vec up`: broker, store and workers on this machine, until it is told to stop."""

import os
import signal
import threading
from pathlib import Path

import click

from streams.console import options, print_json, prose


@click.command()
@options("config", "json", "debug")
@click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="how many workers")
@click.option("--partitions", type=click.IntRange(1, 1024), default=4, show_default=True, help="of each topic")
@click.option("--kafka-port", type=click.IntRange(0, 65535), default=9092, show_default=True, help="0 picks a free one")
@click.option("--redis-port", type=click.IntRange(0, 65535), default=6379, show_default=True, help="0 picks a free one")
@click.option("--web-port", type=click.IntRange(0, 65535), default=6066, show_default=True, help="0 picks a free one")
@click.option("--data-dir", type=click.Path(file_okay=False, path_type=Path), help="keep the store's state here")
def up(
    config: str | None,
    as_json: bool,
    debug: bool,
    workers: int,
    partitions: int,
    kafka_port: int,
    redis_port: int,
    web_port: int,
    data_dir: Path | None,
) -> None:
    """Start an embedded broker, store and workers; the other commands find them by themselves.

    The broker keeps its records in memory: they are gone when it stops. What was learned stays with --data-dir, and ends
    with this command without it. Ctrl-C and SIGTERM stop everything in order. With --json one line is printed once it is
    ready: {"kafka", "redis", "web", "pids": [worker, …]}.

    \b
    Example:
      url2vec up --workers 2 --kafka-port 0 --redis-port 0 --web-port 0 --json
    """
    from deploy.local import Local

    stop = threading.Event()

    def asked(*_: object) -> None:
        if stop.is_set():
            return  # asked twice: it is stopping already, and in order
        stop.set()
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, asked)

    local = Local(workers, kafka_port, redis_port, web_port, data_dir, config, partitions, prose.print)
    try:
        local.start()
    except KeyboardInterrupt:
        return
    try:
        if as_json:
            print_json(
                {"kafka": local.servers.kafka, "redis": local.servers.redis, "web": local.web, "pids": local.pids}
            )
        else:
            prose.print(
                f"up: Kafka {local.servers.kafka}, Redis {local.servers.redis}, page {local.web}\n"
                f"workers: {', '.join(map(str, local.pids))} (logs in {local.servers.data_dir}). Ctrl-C stops in order."
            )
        local.supervise(stop)
    except KeyboardInterrupt:
        pass
    finally:
        local.stop()
    if not as_json:
        prose.print(f"stopped in order (process {os.getpid()})")
