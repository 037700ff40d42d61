"""JSON lines: one `WebVisit` or `VisitOutcome` a line, as it would stand on its topic.

A line that has `outcome` and no `url` is an outcome. A line that can be read is passed on byte for byte, unknown fields
and all; CloudEvents in the structured form may be mixed in.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from schemas.decoding import BadEvent, Decoder
from schemas.logs_lines import Line, LogItem, LogRecord, Unreadable

_ANYTHING = msgspec.json.Decoder()


def looks_like(line: bytes) -> bool:
    """Whether the line begins as a JSON object does."""
    return line.startswith(b"{")


def read(lines: Iterable[Line | Unreadable], now_ms: int) -> Iterator[LogItem]:
    """Visits and outcomes in the order of the file."""
    decoder = Decoder()
    for line in lines:
        if isinstance(line, Unreadable):
            yield line
            continue
        try:
            yield _record(decoder, line.text, now_ms)
        except BadEvent as error:
            yield Unreadable(line.number, str(error))


def _record(decoder: Decoder, text: bytes, now_ms: int) -> LogRecord:
    # Searching the bytes first spares nearly every visit a second reading.
    if b'"outcome"' in text and _is_outcome(text):
        outcome = decoder.outcome(None, text, (), now_ms)
        return LogRecord("outcome", outcome.visitor_id, outcome.timestamp_ms, text)
    visit = decoder.visit(None, text, (), now_ms)
    return LogRecord("visit", visit.visitor_id, visit.timestamp_ms, text)


def _is_outcome(text: bytes) -> bool:
    try:
        record: Any = _ANYTHING.decode(text)
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError):
        return False  # reading it as a visit says what is wrong
    if isinstance(record, dict) and "specversion" in record:
        record = record.get("data")
    return isinstance(record, dict) and "outcome" in record and "url" not in record
