"""The commands that read logs: `replay`, which publishes one, and `check`, which says what is wrong in one.

Both read in the same way (`schemas.logs`), so that what `check` passes is what `replay` publishes. A file that is
missing, or in which nothing can be read, is a failure; single lines that cannot be read are counted, named, and none.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import chain, islice
from pathlib import Path

import click
import msgspec
import xxhash
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from schemas.logs import DEFAULT_SITE, FORMATS, Format, LogFile, LogItem, UnknownFormat, Unreadable, merged
from schemas.logs_lines import LogRecord
from streams.console import Failed, options, out, plain, print_json, prose
from streams.errors import ConfigError

# Enough to see what is wrong; a wrong --format would otherwise name every line of a log.
NAMED_PROBLEMS = 20


class Problem(msgspec.Struct, frozen=True):
    """A line that cannot be read."""

    line: int
    reason: str


class Checked(msgspec.Struct, kw_only=True):
    """What `check` found in a file. `first` and `last` are event times, RFC 3339; `problems` the first of `skipped`."""

    file: str
    visits: int = 0
    outcomes: int = 0
    visitors: int = 0
    urls: int = 0
    skipped: int = 0
    first: str | None = None
    last: str | None = None
    problems: list[Problem] = []


class _Url(msgspec.Struct):
    url: str = ""


def _speed(context: click.Context, parameter: click.Parameter, text: str) -> float | None:
    from streams.replay import parse_speed  # brings Kafka's client, which `check` has no use for

    try:
        return parse_speed(text)
    except ValueError as error:
        raise click.BadParameter(str(error), context, parameter) from None


def _site(context: click.Context, parameter: click.Parameter, text: str) -> str:
    scheme, separator, rest = text.partition("://")
    if not (scheme and separator and rest):
        raise click.BadParameter(f"{text!r} is no address of a site, as https://shop.example is", context, parameter)
    return text


files_argument = click.argument(
    "files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path, readable=False)
)
format_option = click.option(
    "--format", "log_format", type=click.Choice(FORMATS), default="auto", show_default=True, help="what the files are"
)
limit_option = click.option("--limit", type=click.IntRange(min=1), metavar="N", help="stop after N visits")
site_option = click.option(
    "--site",
    default=DEFAULT_SITE,
    show_default=True,
    callback=_site,
    metavar="URL",
    help="what the paths in an access log belong to",
)


@click.command()
@files_argument
@format_option
@click.option(
    "--speed",
    default="max",
    show_default=True,
    callback=_speed,
    metavar="max|real|10x",
    help="as fast as Kafka takes it, in real event time, or at a multiple of it",
)
@limit_option
@site_option
@options("kafka", "config", "json", "debug")
def replay(
    files: tuple[Path, ...],
    log_format: Format,
    speed: float | None,
    limit: int | None,
    site: str,
    kafka: str | None,
    config: str | None,
    as_json: bool,
    debug: bool,
) -> None:
    """Publish logs to the topics of visits and outcomes, in event-time order.

    \b
      combined   access log of Apache or nginx, plain or .gz
      jsonl      one WebVisit or VisitOutcome, JSON, a line
      sessions   table of page sequences, as the bundled games over Wikipedia. It has
                 neither visitors nor times: both are SYNTHETIC, made by one rule for all
                 sessions, and every visit says so in its properties ("synthetic": true)

    A line that cannot be read is skipped, counted and named. While Kafka is away, replay waits, and goes on from there.

    \b
    Examples:
      url2vec replay access.log.1.gz access.log --site https://shop.example
      url2vec replay deploy/data/wikispeedia/sessions.tsv.gz --speed 10x --limit 5000
    """
    from streams.replay import Replayed
    from streams.replay import replay as publish
    from streams.settings import resolve

    settings = resolve(kafka=kafka, config=config, need=("kafka",))
    if not debug:  # it reports every attempt to reconnect; we say it once
        logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    logs = _opened(files, log_format, site, limit)
    items = _told(merged(logs, limit))
    # Looks into every file: what is wrong with one should not have to wait for Kafka.
    first = list(islice(items, 1))
    problems: list[Unreadable] = []

    with _bar(sum(log.size_bytes for log in logs)) as bar:
        task = bar.task_ids[0]

        def unreadable(problem: Unreadable) -> None:
            if len(problems) < NAMED_PROBLEMS:
                _say(f"{problem.file}, line {problem.line_number}: {problem.reason}")
                problems.append(problem)

        def progress(so_far: Replayed) -> None:
            rate = so_far.published / so_far.seconds if so_far.seconds > 0 else 0.0
            bar.update(
                task,
                completed=sum(log.read_bytes for log in logs),
                description=f"{so_far.published:,} visits, {rate:,.0f}/s",
            )

        done = asyncio.run(
            publish(
                chain(first, items),
                kafka=settings.kafka,
                visits_topic=settings.topics.visits,
                outcomes_topic=settings.topics.outcomes,
                speed=speed,
                report=_say,
                unreadable=unreadable,
                progress=progress,
            )
        )
    if done.skipped > len(problems):
        _say(f"and {done.skipped - len(problems):,} more lines that cannot be read")
    if not done.published + done.outcomes:
        raise Failed(_nothing(files, problems))
    if as_json:
        print_json(done)
    else:
        out.print(
            f"{done.published:,} visits and {done.outcomes:,} outcomes published in {done.seconds:.1f} s, "
            f"{done.skipped:,} lines skipped"
        )


@click.command()
@files_argument
@format_option
@limit_option
@site_option
@options("json", "debug")
def check(
    files: tuple[Path, ...], log_format: Format, limit: int | None, site: str, as_json: bool, debug: bool
) -> None:
    """Read logs as `replay` would, publish nothing, and say what is wrong where.

    \b
    Example:
      url2vec check access.log --json
    """
    logs = _opened(files, log_format, site, limit)
    with _bar(sum(log.size_bytes for log in logs)) as bar:
        found = [_checked(log, bar) for log in logs]
    if as_json:
        print_json({"files": found})
    else:
        for each in found:
            _print(each)
    empty = [each for each in found if not each.visits + each.outcomes]
    if empty:
        first = empty[0].problems[:1]
        raise Failed(_nothing([Path(each.file) for each in empty], [Unreadable(p.line, p.reason) for p in first]))


def _opened(files: Sequence[Path], log_format: Format, site: str, limit: int | None) -> list[LogFile]:
    """The logs, after a look at each: a name that is wrong is said before anything is published. Raises ConfigError."""
    now_ms = time.time_ns() // 1_000_000
    logs = []
    for path in files:
        if path.exists() and not path.is_file():
            raise ConfigError(f"{path} is not a file: give the logs themselves")
        try:
            with path.open("rb"):
                logs.append(LogFile(path, log_format, site=site, now_ms=now_ms, limit=limit))
        except OSError as error:
            raise ConfigError(f"{path} cannot be read ({error.strerror}): check the name, and whose it is") from None
    return logs


def _told(items: Iterator[LogItem]) -> Iterator[LogItem]:
    """The items, with a format that cannot be told as an error of whoever chose the file."""
    try:
        yield from items
    except UnknownFormat as error:
        raise ConfigError(str(error)) from None


def _checked(log: LogFile, bar: Progress) -> Checked:
    """Read one log to its end. Distinct visitors and URLs are counted by 64-bit hashes, which are smaller than they."""
    found = Checked(file=str(log.path))
    visitors: set[int] = set()
    urls: set[int] = set()
    first_ms = last_ms = None
    read_before = 0
    for place, item in enumerate(_told(iter(log))):
        if isinstance(item, Unreadable):
            found.skipped += 1
            if len(found.problems) < NAMED_PROBLEMS:
                found.problems.append(Problem(item.line_number, item.reason))
            continue
        visitors.add(xxhash.xxh3_64_intdigest(item.visitor_id.encode()))
        if item.kind == "visit":
            found.visits += 1
            urls.add(xxhash.xxh3_64_intdigest(_url_of(item).encode()))
        else:
            found.outcomes += 1
        first_ms = item.timestamp_ms if first_ms is None else min(first_ms, item.timestamp_ms)
        last_ms = item.timestamp_ms if last_ms is None else max(last_ms, item.timestamp_ms)
        if place % 1000 == 0:
            bar.update(bar.task_ids[0], advance=log.read_bytes - read_before)
            read_before = log.read_bytes
    found.visitors, found.urls = len(visitors), len(urls)
    found.first, found.last = _moment(first_ms), _moment(last_ms)
    return found


def _url_of(record: LogRecord) -> str:
    read = msgspec.json.decode(record.value, type=_Url).url
    if read:
        return read
    event = msgspec.json.decode(record.value)  # a CloudEvent keeps the visit under `data`
    return str(event["data"]["url"])


def _moment(epoch_ms: int | None) -> str | None:
    if epoch_ms is None:
        return None
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=epoch_ms)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _print(found: Checked) -> None:
    out.print(
        f"{plain(found.file)}: {found.visits:,} visits of {found.visitors:,} visitors to {found.urls:,} URLs, "
        f"{found.outcomes:,} outcomes, {found.skipped:,} lines that cannot be read",
        markup=False,
    )
    if found.first:
        out.print(f"  from {found.first} to {found.last}", markup=False)
    for problem in found.problems:
        out.print(f"  line {problem.line}: {plain(problem.reason)}", markup=False)
    if found.skipped > len(found.problems):
        out.print(f"  and {found.skipped - len(found.problems):,} more", markup=False)


def _nothing(files: Sequence[Path], problems: Sequence[Unreadable]) -> str:
    names = ", ".join(plain(str(path)) for path in files)
    why = f" (line {problems[0].line_number}: {plain(problems[0].reason)})" if problems else ": it is empty"
    return f"nothing in {names} could be read{why}; say what it is with --format, or see `url2vec replay --help`"


def _say(text: str) -> None:
    prose.print(plain(text), markup=False, soft_wrap=True)


def _bar(size_bytes: int) -> Progress:
    """A progress bar over the bytes of all files, on standard error where that is a terminal."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=prose,
        disable=not prose.is_terminal,
    )
    bar.add_task("reading", total=size_bytes or None)
    return bar
