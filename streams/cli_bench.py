"""`url2vec bench NAME`: the pipeline, its transport alone, the vectors, or the classifier, beside their opponents."""

import os
import signal
import tempfile
from pathlib import Path
from typing import Any, Literal

import click
from rich.console import Console

from streams.console import Failed, options, out, print_json, prose
from streams.settings import duration_ms

_WIDTH = 140  # of the tables of vectors, on whatever terminal: cells cut short say nothing
_STREAMS = (
    "wikispeedia",
    "short",
    "long",
    "tabs",
    "topics",
)  # of streams.bench.embedding_corpus, which is slow to import


class _Names(click.Group):
    """Benchmarks by name; an unknown one is answered with those there are."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """As a group does, with the names in the sentence."""
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            ctx.fail(f"{args[0]!r} is none of {', '.join(map(repr, self.commands))}.")
        return super().resolve_command(ctx, args)


@click.group(cls=_Names)
def bench() -> None:
    """Run a benchmark beside its opponents, on this machine.

    \b
    Examples:
      url2vec bench pipeline --rounds 5
      url2vec bench embedding --quick
      url2vec bench classifier --limit 60000 --ablations
    """


_visits = click.option(
    "--visits", type=click.IntRange(100), metavar="N", help="of ours in a round; 40,000, for transport all"
)
_rounds = click.option("--rounds", type=click.IntRange(1, 100), default=3, show_default=True, help="of each, in turns")


@bench.command()
@_visits
@_rounds
@options("json", "debug")
def pipeline(visits: int | None, rounds: int, as_json: bool, debug: bool) -> None:
    """The whole job (score, answer, join outcomes, learn, checkpoint), beside stock Faust and a plain loop.

    The plain confluent-kafka loop is the upper bound. All read the same bundled visits from an embedded broker, in
    alternating rounds; stock Faust reads fewer of them, because it is slow, and the plain loop more, because it is fast. What
    each is spared stands at the head of its file in streams/bench.
    """
    _compete("pipeline", visits, rounds, as_json)


@bench.command()
@_visits
@_rounds
@options("json", "debug")
def transport(visits: int | None, rounds: int, as_json: bool, debug: bool) -> None:
    """Reading and counting alone, beside stock Faust and a plain loop."""
    _compete("transport", visits, rounds, as_json)


def _compete(name: str, visits: int | None, rounds: int, as_json: bool) -> None:
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


@bench.command()
@click.option(
    "--streams", metavar="NAMES", default=",".join(_STREAMS), show_default=True, help="which to learn, by comma"
)
@click.option("--quick", is_flag=True, help="a tenth of each stream")
@_rounds
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="of models and synthetic streams")
@click.option(
    "--slots", type=click.IntRange(2), multiple=True, default=(32,), show_default=True, help="also URL2vec with so many"
)
@click.option("--batch", type=click.IntRange(1), default=1024, show_default=True, help="visits in a micro-batch")
@click.option(
    "--device", type=click.Choice(["cpu", "cuda", "auto"]), default="cpu", show_default=True, help="of URL2vec"
)
@options("json", "debug")
def embedding(
    streams: str, quick: bool, rounds: int, seed: int, slots: tuple[int, ...], batch: int, device: str, as_json: bool,
    debug: bool,
) -> None:  # fmt: skip
    """The vectors: how good, how fast, how large, how steady, beside gensim's word2vec and an offline SVD.

    On the bundled games and on synthetic sessions, each learned by everybody from the same arrays. gensim is not part of an
    installation: pip install -e '.[bench]' adds it, and without it its rows are missing.
    """
    names = [name.strip() for name in streams.split(",")]
    if unknown := [name for name in names if name not in _STREAMS]:
        raise click.UsageError(f"{unknown[0]!r} is no stream: give some of {', '.join(_STREAMS)}")
    signal.signal(signal.SIGTERM, _interrupted)
    for library in ("OPENBLAS", "MKL", "OMP"):  # one thread for everybody; read when numpy is first imported
        os.environ[f"{library}_NUM_THREADS"] = "1"
    import torch

    from streams.bench.embedding import Row, legend, measure, ours, table
    from streams.bench.embedding_corpus import corpus
    from streams.bench.embedding_opponents import opponents

    if device == "cuda" and not torch.cuda.is_available():
        raise Failed("torch finds no GPU here: leave --device out")
    others, missing = opponents(seed)
    found: list[Row] = []
    wide = Console(highlight=False, soft_wrap=True, width=max(out.width, _WIDTH))
    for sentence in missing:
        prose.print(sentence, markup=False)
    for name in names:
        rows = measure(corpus(name, quick, seed), ours(slots, seed, device, batch), others, rounds, seed, prose.print)
        found += rows
        if not as_json:
            wide.print(table(rows))
            wide.print()
    if as_json:
        print_json(found)
        return
    asked = f"url2vec bench embedding --streams {streams}{' --quick' if quick else ''} --rounds {rounds} --seed {seed}"
    asked += "".join(f" --slots {k}" for k in slots) + f" --batch {batch} --device {device}"
    said = [*(f"{sentence}." for sentence in missing), legend(asked, rounds, seed, batch, device)]
    out.print(" ".join(said), markup=False)


@bench.command()
@click.option(
    "--log",
    "path",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="whose visits, in any format of `replay`; the bundled games by default",
)
@click.option(
    "--task",
    "names",
    metavar="NAME",
    multiple=True,
    help="continues, or an outcome in the log; `finished` for the bundled games, else continues",
)
@click.option("--horizon", default="30m", show_default=True, help="until when an outcome answers a visit")
@click.option("--scope", type=click.Choice(["session", "visitor"]), default="session", show_default=True)
@click.option("--limit", type=click.IntRange(1), metavar="N", help="visits; all by default")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="of all that draws")
@click.option("--batch", type=click.IntRange(1), default=256, show_default=True, help="records in a micro-batch")
@click.option(
    "--only", metavar="NAMES", help="by comma: ours, river, ftrl, lightgbm (these by default), forest, latent"
)
@click.option(
    "--every", type=click.IntRange(100), multiple=True, default=(5_000, 20_000), show_default=True,
    help="examples after which LightGBM is trained anew",
)  # fmt: skip
@click.option("--ablations", is_flag=True, help="also the classifier with one thing changed at a time")
@click.option(
    "--pipeline", is_flag=True, help="through a running broker, store and worker; beside the others with --only"
)
@click.option(
    "--rate", type=click.FloatRange(min=1), metavar="N", help="visits a second of --pipeline; as fast as it goes"
)
@options("json", "debug")
def classifier(
    path: Path | None, names: tuple[str, ...], horizon: str, scope: Literal["session", "visitor"], limit: int | None,
    seed: int, batch: int, only: str | None, every: tuple[int, ...], ablations: bool, pipeline: bool, rate: float | None,
    as_json: bool, debug: bool,
) -> None:  # fmt: skip
    """The scores: how good, how calibrated, how fast, beside River, FTRL and LightGBM on the same stream.

    A log goes through the pipeline's own steps in event time, in one process: outcomes are known only when they would
    be, and everybody scores the same visits and learns the same examples at the same moments. LightGBM is not part
    of an installation: pip install -e '.[bench]' adds it.

    \b
    Examples:
      url2vec bench classifier --limit 60000
      url2vec bench classifier --log deploy/data/apache_logs/access.log.gz --task continues
      url2vec bench classifier --only ours --ablations
      url2vec bench classifier --pipeline --rate 2000
    """
    signal.signal(signal.SIGTERM, _interrupted)
    for library in ("OPENBLAS", "MKL", "OMP"):  # one thread for everybody; read when numpy is first imported
        os.environ[f"{library}_NUM_THREADS"] = "1"
    from streams.bench import classifier as bench_of
    from streams.bench.classifier_opponents import DEFAULT, GROUPS
    from streams.bench.classifier_report import legend, tables

    chosen = [name.strip() for name in only.split(",")] if only is not None else [] if pipeline else list(DEFAULT)
    if unknown := [name for name in chosen if name not in GROUPS]:
        raise click.UsageError(f"{unknown[0]!r} is none of {', '.join(GROUPS)}")
    command = _said(path, names, horizon, scope, limit, seed, batch, only, every, ablations, pipeline, rate)
    asked = bench_of.Asked(
        path, names, duration_ms(horizon), scope, limit, seed, batch, chosen, every, ablations, pipeline, rate
    )
    report = bench_of.run(asked, command, lambda sentence: prose.print(sentence, markup=False, soft_wrap=True))
    if as_json:
        print_json(report)
        return
    wide = Console(highlight=False, soft_wrap=True, width=max(out.width, _WIDTH))
    for table in tables(report):
        wide.print(table)
        wide.print()
    out.print(legend(report), markup=False)


def _said(
    path: Path | None, names: tuple[str, ...], horizon: str, scope: str, limit: int | None, seed: int, batch: int,
    only: str | None, every: tuple[int, ...], ablations: bool, pipeline: bool, rate: float | None,
) -> str:  # fmt: skip
    """The command again, so that what it printed can be measured again."""
    parts = ["url2vec bench classifier"]
    parts += [f"--log {path}"] if path else []
    parts += [f"--task {name}" for name in names]
    parts += [f"--horizon {horizon}"] if horizon != "30m" else []
    parts += [f"--scope {scope}"] if scope != "session" else []
    parts += [f"--limit {limit}"] if limit else []
    parts += [f"--seed {seed} --batch {batch}"]
    parts += [f"--only {only}"] if only is not None else []
    parts += [f"--every {n}" for n in every] if every != (5_000, 20_000) else []
    parts += ["--ablations"] if ablations else []
    parts += ["--pipeline"] if pipeline else []
    parts += [f"--rate {rate:g}"] if rate else []
    return " ".join(parts)


def _interrupted(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # asked twice: it is stopping already, and in order
    raise KeyboardInterrupt
