"""Logs as a stream of records: one file, or several merged by event time.

Lives here: `LogFile` (one file, plain or .gz, in any of the formats) and `merged` (many files, a limit).
Promises: lazy, so that a log larger than memory can be read; a line that cannot be read becomes an `Unreadable` with
its number and reason and never raises; every record that comes out is one that `schemas.decoding` reads back.
Does not: sort. A web server's log is only nearly ordered, and keeps the order of its file.

Formats: `combined` (`schemas.logs_combined`), `jsonl` (`schemas.logs_jsonl`), `sessions` (`schemas.logs_sessions`).
"""

from __future__ import annotations

import gzip
import heapq
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Literal, cast

from schemas import logs_combined, logs_jsonl, logs_sessions
from schemas.decoding import Limits
from schemas.logs_lines import Line, LogItem, LogRecord, Unreadable

__all__ = ["FORMATS", "Format", "LogFile", "LogItem", "LogRecord", "UnknownFormat", "Unreadable", "merged"]

Format = Literal["auto", "combined", "jsonl", "sessions"]
FORMATS: tuple[Format, ...] = ("auto", "combined", "jsonl", "sessions")
DEFAULT_SITE = "http://localhost"

# Lines looked at to tell the format: the first may be damaged, but not all of them.
_LINES_TO_JUDGE_BY = 50
# A longer line cannot become a record; it is skipped in pieces of this size, so that it never stands in memory whole.
_MAX_LINE_BYTES = Limits().max_value_bytes


class UnknownFormat(ValueError):  # noqa: N818 - says what is the matter, like its neighbours
    """None of the first lines looks like any format; the sentence says what to do."""


class LogFile:
    """One log file. Iterating opens it anew and yields `LogRecord`s and `Unreadable`s.

    `site` completes the paths of a web server's log to URLs; `now_ms` is the wall clock, for what claims to come from
    the future; `limit` bounds the visits (their outcomes still follow). Iterating raises OSError where the file cannot
    be opened and UnknownFormat where `auto` cannot tell; `read_bytes` of `size_bytes` says how far it is.
    """

    def __init__(
        self,
        path: Path,
        log_format: Format = "auto",
        *,
        site: str = DEFAULT_SITE,
        now_ms: int,
        limit: int | None = None,
    ) -> None:
        self.path = path
        self.log_format: Format = log_format
        self.size_bytes = path.stat().st_size
        self.read_bytes = 0
        self._site = site
        self._now_ms = now_ms
        self._limit = limit

    def __iter__(self) -> Iterator[LogItem]:
        with self.path.open("rb") as raw:
            lines = self._lines(raw)
            head = list(islice(lines, _LINES_TO_JUDGE_BY))
            kind = self.log_format if self.log_format != "auto" else _format_of(head, self.path)
            for item in self._records(kind, _chained(head, lines)):
                yield item._replace(file=str(self.path)) if isinstance(item, Unreadable) else item

    def _records(self, kind: Format, lines: Iterable[Line | Unreadable]) -> Iterator[LogItem]:
        if kind == "combined":
            items = logs_combined.read(lines, self._site, self._now_ms)
        elif kind == "jsonl":
            items = logs_jsonl.read(lines, self._now_ms)
        else:
            # This one knows about the limit itself, because outcomes of sessions that it has begun still have to come.
            return logs_sessions.read(lines, self._now_ms, self._limit)
        return _limited(items, self._limit)

    def _lines(self, raw: IO[bytes]) -> Iterator[Line | Unreadable]:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        stream = cast("IO[bytes]", gzip.GzipFile(fileobj=raw)) if packed else raw
        number = 0
        try:
            while text := stream.readline(_MAX_LINE_BYTES):
                number += 1
                self.read_bytes = raw.tell()
                if len(text) == _MAX_LINE_BYTES and not text.endswith(b"\n"):
                    while (rest := stream.readline(_MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
                        pass
                    yield Unreadable(number, f"Expected at most {_MAX_LINE_BYTES} bytes in a line, got more")
                    continue
                if number == 1:
                    text = text.removeprefix(b"\xef\xbb\xbf")
                if text := text.strip():
                    yield Line(number, text)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            # What follows in a damaged archive is lost to us, but what came before it is not.
            yield Unreadable(number + 1, f"The gzip data is damaged from here on and not read any further: {error}")


def merged(files: Iterable[Iterable[LogItem]], limit: int | None = None) -> Iterator[LogItem]:
    """Several logs as one, by event time; ends at the first visit beyond `limit`.

    Each file keeps its own order: a record that is older than one before it in its file follows at once.
    """
    streams = [_by_time(file) for file in files]
    ordered = heapq.merge(*streams, key=_first) if len(streams) > 1 else iter(streams[0] if streams else ())
    return _limited((item for _, item in ordered), limit)


def _by_time(items: Iterable[LogItem]) -> Iterator[tuple[int, LogItem]]:
    newest_ms = -(2**63)
    for item in items:
        if isinstance(item, LogRecord) and item.timestamp_ms > newest_ms:
            newest_ms = item.timestamp_ms
        yield newest_ms, item


def _first(pair: tuple[int, LogItem]) -> int:
    return pair[0]


def _limited(items: Iterable[LogItem], limit: int | None) -> Iterator[LogItem]:
    visits = 0
    for item in items:
        if isinstance(item, LogRecord) and item.kind == "visit":
            if visits == limit:
                return
            visits += 1
        yield item


def _chained(head: list[Line | Unreadable], rest: Iterator[Line | Unreadable]) -> Iterator[Line | Unreadable]:
    yield from head
    yield from rest


_SIGNS: tuple[tuple[Format, Callable[[bytes], bool]], ...] = (
    ("sessions", logs_sessions.looks_like),
    ("jsonl", logs_jsonl.looks_like),
    ("combined", logs_combined.looks_like),
)


def _format_of(head: list[Line | Unreadable], path: Path) -> Format:
    for line in head:
        if isinstance(line, Line):
            for kind, looks_like in _SIGNS:
                if looks_like(line.text):
                    return kind
    if not any(isinstance(line, Line) for line in head):
        return "jsonl"  # nothing in it: any format reads it as nothing
    raise UnknownFormat(
        f"{os.fspath(path)} looks like none of {', '.join(FORMATS[1:])}: say which it is with --format, "
        "or convert it to one WebVisit in JSON a line"
    )
