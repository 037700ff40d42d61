"""`url2vec topics`: list the four topics, or create what is missing."""

import click

from streams import topics as broker
from streams.console import Failed, options, out, print_json
from streams.errors import ConfigError
from streams.settings import resolve

DEFAULT_PARTITIONS = 4


@click.command()
@options("kafka", "config", "json", "debug")
@click.option("--create", "create_missing", is_flag=True, help="create those that are missing")
@click.option("--partitions", type=click.IntRange(1, 10_000), help="partitions of each, when creating  [default: 4]")
@click.option(
    "--replication", type=click.IntRange(1, 100), default=1, show_default=True, help="replicas, when creating"
)
def topics(
    kafka: str | None,
    config: str | None,
    as_json: bool,
    debug: bool,
    create_missing: bool,
    partitions: int | None,
    replication: int,
) -> None:
    """List the four topics, or create what is missing.

    All four share one partition count, so that a visitor's partition is the same in each; where they differ, this refuses.

    \b
    Example:
      url2vec topics --create --partitions 12 --replication 3
    """
    settings = resolve(kafka, None, config, need=("kafka",))
    names = settings.topics.all
    created: list[str] = []
    facts = broker.describe(settings.kafka, names)
    if create_missing:
        widths = {fact.partitions for fact in facts.values()}
        if len(widths) > 1:
            raise ConfigError(_uneven({name: fact.partitions for name, fact in facts.items()}))
        width = partitions or next(iter(widths), DEFAULT_PARTITIONS)
        created = broker.create(settings.kafka, names, width, replication)
        facts = broker.describe(settings.kafka, names)
    rows = [
        {"topic": name, "partitions": facts[name].partitions if name in facts else None, "created": name in created}
        for name in names
    ]
    if as_json:
        print_json(rows)
    else:
        for row in rows:
            state = "created" if row["created"] else "missing" if row["partitions"] is None else "there"
            out.print(f"{row['topic']:<24} {row['partitions'] or '–':>4} partitions  {state}")
    missing = [name for name in names if name not in facts]
    if missing:
        raise Failed(f"{', '.join(missing)} missing on {settings.kafka}: create with `url2vec topics --create`")
    widths_now = {name: facts[name].partitions for name in names}
    if len(set(widths_now.values())) > 1:
        raise Failed(_uneven(widths_now))


def _uneven(widths: dict[str, int]) -> str:
    listed = ", ".join(f"{name} has {width}" for name, width in widths.items())
    return f"the topics must have one partition count, but {listed}: make them anew, or name others in url2vec.toml"
