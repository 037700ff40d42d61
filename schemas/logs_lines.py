"""What passes between a log file and the readers of its format: lines in, records or complaints out."""

from __future__ import annotations

from typing import Literal, NamedTuple

import msgspec

from schemas.decoding import Decoder
from schemas.records import VisitOutcome, WebVisit

_ENCODER = msgspec.json.Encoder()


class Line(NamedTuple):
    """A line that is not blank, without its end."""

    number: int
    text: bytes


class LogRecord(NamedTuple):
    """A record ready for its topic: `value` is its JSON, `visitor_id` its key."""

    kind: Literal["visit", "outcome"]
    visitor_id: str
    timestamp_ms: int
    value: bytes


class Unreadable(NamedTuple):
    """A line that did not become a record, and why; `file` is set by whoever opened it."""

    line_number: int
    reason: str
    file: str = ""


LogItem = LogRecord | Unreadable


def admitted(record: WebVisit | VisitOutcome, decoder: Decoder, now_ms: int) -> LogRecord:
    """The record that a reader built, ready to go, if it is one that will be read back. Raises BadEvent."""
    value = _ENCODER.encode(record)
    decoder.admit(record, value, now_ms)
    kind: Literal["visit", "outcome"] = "visit" if isinstance(record, WebVisit) else "outcome"
    return LogRecord(kind, record.visitor_id, record.timestamp_ms, value)
