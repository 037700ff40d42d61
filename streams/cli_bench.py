"""`url2vec bench NAME`: the pipeline, or its transport alone, beside its opponents on this machine."""

import os
import signal
import tempfile
from pathlib import Path

import click

from streams.console import options, out, print_json, prose

NAMES = ("pipeline", "transport")


@click.command()
@click.argument("name", metavar="NAME", type=click.Choice(NAMES))
@click.option("--visits", type=click.IntRange(100), metavar="N", help="of ours in a round; 40,000, for transport all")
@click.option("--rounds", type=click.IntRange(1, 100), default=3, show_default=True, help="of each, in turns")
@options("json", "debug")
def bench(name: str, visits: int | None, rounds: int, as_json: bool, debug: bool) -> None:
    """Run a benchmark beside its opponents: stock Faust, and a plain confluent-kafka loop as the upper bound.

    NAME is pipeline, the whole job (score, answer, join outcomes, learn, checkpoint), or transport, reading and counting.
    All read the same bundled visits from an embedded broker, in alternating rounds; stock Faust reads fewer of them,
    because it is slow, and the plain loop more, because it is fast. What each is spared stands at the head of its file in
    streams/bench.

    \b
    Example:
      url2vec bench pipeline --rounds 5
    """
    from deploy.embedded import EmbeddedServers
    from streams.bench.contestants import Arena, require_plain_loop
    from streams.bench.report import rows, table
    from streams.bench.rounds import alternate, chosen

    require_plain_loop()
    contestants = chosen(name, visits)
    signal.signal(signal.SIGTERM, _interrupted)
    with tempfile.TemporaryDirectory(prefix="url2vec-bench-") as folder, EmbeddedServers() as servers:
        results = alternate(Arena(servers, Path(folder)), contestants, rounds, prose.print)
    found = rows(contestants, results)
    if as_json:
        print_json(found)
        return
    asked = f" --visits {visits}" if visits else ""
    read = ", ".join(f"{row.name} {row.visits:,}" for row in found)
    out.print(table(f"url2vec bench {name}{asked} --rounds {rounds}", found))
    out.print(
        f"Median of {rounds} alternating rounds on {os.cpu_count()} cores, with the broker and the store on the same; "
        f"spread is (most - least) / median.\nRecords of visits a round: {read}; the bundled games, in order; model seed 0."
    )


def _interrupted(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # asked twice: it is stopping already, and in order
    raise KeyboardInterrupt
