"""What passes between a log file and the readers of its format: lines in, records or complaints out."""

from __future__ import annotations

from typing import Literal, NamedTuple

import msgspec

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


def of_visit(visit: WebVisit) -> LogRecord:
    """The record of a visit that a reader built."""
    return LogRecord("visit", visit.visitor_id, visit.timestamp_ms, _ENCODER.encode(visit))


def of_outcome(outcome: VisitOutcome) -> LogRecord:
    """The record of an outcome that a reader built."""
    return LogRecord("outcome", outcome.visitor_id, outcome.timestamp_ms, _ENCODER.encode(outcome))
