"""From the bytes of a Kafka record to a struct, or to the reason why not.

Lives here: `Decoder`, which reads visits and outcomes, unwraps CloudEvents and keeps the bounds that protect what comes
after; `encode_scored`, the way out.
Promises: whatever the bytes, either a record that every later step can hold or `BadEvent`, whose text says what was
expected, what came and where (`Expected `int`, got `str` - at `$.schema_version``). Nothing else is ever raised.
Does not: look at the key (the value's `visitor_id` decides), keep state, read the clock.

A plain record costs one msgspec call and a few comparisons; everything unusual (CloudEvents, nulls where a default
stands, reasons) is worked out after that call has failed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import msgspec

from schemas.records import SCHEMA_VERSION, ScoredVisit, VisitOutcome, WebVisit

Headers = Sequence[tuple[str, bytes]]
Record = TypeVar("Record", WebVisit, VisitOutcome)

_VISITS = msgspec.json.Decoder(WebVisit)
_OUTCOMES = msgspec.json.Decoder(VisitOutcome)
_ANYTHING = msgspec.json.Decoder()

_ENCODER = msgspec.json.Encoder()

# What msgspec can raise on hostile bytes: its own errors and invalid UTF-8 (ValueErrors), numbers beyond the
# platform's, and nesting deeper than the interpreter's stack.
_UNREADABLE = (msgspec.MsgspecError, ValueError, TypeError, OverflowError, RecursionError)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_JSON_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"', re.DOTALL)
_BRACKET = re.compile(rb"[\[\]{}]")
# The reason travels in a Kafka header and into logs: a screenful is enough.
_MAX_REASON_CHARS = 400
_IDS = ("event_id", "visitor_id", "session_id", "user_id", "event_name", "outcome")
# CloudEvents attributes that stand in for a field which the data leaves out.
_FROM_CLOUD_EVENT = {"id": "event_id", "time": "timestamp"}


class BadEvent(ValueError):  # noqa: N818 - the event is bad, not we
    """The producer's record cannot be read; `str()` is the reason that goes with it to `rejected-visits`."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on one record: each is far above honest use and far below what would hurt a worker."""

    max_value_bytes: int = 1_000_000  # Kafka's own default limit is 1 MiB a record
    max_url_chars: int = 8_192  # what web servers accept in a request line
    max_id_chars: int = 512  # ids are keys in the store
    max_properties: int = 256
    max_future_ms: int = 86_400_000  # a clock or time zone may be wrong by a day; more would drag the watermark
    max_depth: int = 256  # nothing we read is nested; unknown fields may be, within the interpreter's stack


class Decoder:
    """Reads the records of `web-visits` and `visit-outcomes`. Holds no state, so one may serve every partition."""

    def __init__(self, limits: Limits = Limits()) -> None:
        self._limits = limits
        # A record shorter than this can break no bound on lengths or counts: most are not looked at again.
        self._harmless_bytes = min(limits.max_id_chars, limits.max_url_chars, 4 * limits.max_properties)

    def visit(self, key: bytes | None, value: bytes | None, headers: Headers, now_ms: int) -> WebVisit:
        """The visit in `value`. Raises `BadEvent`."""
        present = self._present(value)
        try:
            visit = _VISITS.decode(present)
        except _UNREADABLE as error:
            visit = self._unusual(present, headers, WebVisit, error)
        self.admit(visit, present, now_ms)
        return visit

    def outcome(self, key: bytes | None, value: bytes | None, headers: Headers, now_ms: int) -> VisitOutcome:
        """The outcome in `value`. Raises `BadEvent`."""
        present = self._present(value)
        try:
            outcome = _OUTCOMES.decode(present)
        except _UNREADABLE as error:
            outcome = self._unusual(present, headers, VisitOutcome, error)
        self.admit(outcome, present, now_ms)
        return outcome

    def admit(self, record: WebVisit | VisitOutcome, value: bytes, now_ms: int) -> None:
        """Hold a struct to the bounds; `value` is its JSON, which tells what to look at. Raises `BadEvent`."""
        if not 0 <= record.timestamp_ms <= now_ms + self._limits.max_future_ms:
            raise BadEvent(_out_of_time(record.timestamp_ms, self._limits.max_future_ms))
        if record.schema_version != SCHEMA_VERSION:
            raise BadEvent(
                f"Expected schema_version {SCHEMA_VERSION}, the only one this release reads, "
                f"got {_short(record.schema_version)} - at `$.schema_version`"
            )
        if len(value) > self._harmless_bytes:
            self._admit_sizes(record)
        # A NUL can be written in no other way in JSON. One byte is found in a fifth of the time that six take.
        if b"\\" in value and b"\\u0000" in value:
            _refuse_nul(record)

    def _unusual(self, value: bytes, headers: Headers, kind: type[Record], error: Exception) -> Record:
        record = _unwrapped(value, headers, kind, error)
        # Ids and times may come from headers, of which the value says nothing.
        self._admit_sizes(record)
        _refuse_nul(record)
        return record

    def _present(self, value: bytes | None) -> bytes:
        if not value:
            raise BadEvent("Expected a JSON object, got a tombstone" if value is None else "Expected JSON, got nothing")
        limits = self._limits
        if len(value) > limits.max_value_bytes:
            raise BadEvent(f"Expected at most {limits.max_value_bytes} bytes, got {len(value)}")
        # Depth d takes 2 d brackets, so that short records, which are nearly all, are not even searched.
        if (
            len(value) > 2 * limits.max_depth
            and value.count(b"[") + value.count(b"{") > limits.max_depth
            and _deeper_than(limits.max_depth, value)
        ):
            raise BadEvent(f"Expected at most {limits.max_depth} levels of nesting, got more")
        return value

    def _admit_sizes(self, record: WebVisit | VisitOutcome) -> None:
        limits = self._limits
        for name in _IDS:
            text = getattr(record, name, None)
            if text is not None and len(text) > limits.max_id_chars:
                raise BadEvent(_too_long(name, len(text), limits.max_id_chars))
        if isinstance(record, WebVisit):
            if len(record.url) > limits.max_url_chars:
                raise BadEvent(_too_long("url", len(record.url), limits.max_url_chars))
            if (count := len(record.properties)) > limits.max_properties:
                raise BadEvent(f"Expected at most {limits.max_properties} properties, got {count} - at `$.properties`")


def _too_long(field: str, got_chars: int, most_chars: int) -> str:
    return f"Expected at most {most_chars} characters, got {got_chars} - at `$.{field}`"


def _out_of_time(timestamp_ms: int, max_future_ms: int) -> str:
    try:
        got = (_EPOCH + timedelta(milliseconds=timestamp_ms)).isoformat()
    except OverflowError:  # a year beyond 9999 or before 1
        got = _short(timestamp_ms)
    if timestamp_ms < 0:
        return f"Expected a time from 1970 on, got {got} - at `$.timestamp`"
    return f"Expected a time at most {max_future_ms / 3_600_000:g} h ahead of the clock, got {got} - at `$.timestamp`"


def _short(number: int) -> str:
    """A number that may be absurd: Python refuses to print very long ones."""
    return str(number) if number.bit_length() <= 128 else "a number beyond 128 bits"


def _refuse_nul(record: WebVisit | VisitOutcome) -> None:
    """NUL ends strings in other languages: two ids that differ here would be one id there."""
    for name in (*_IDS, "url", "referrer"):
        text = getattr(record, name, None)
        if isinstance(text, str) and "\0" in text:
            raise BadEvent(f"Expected no NUL character - at `$.{name}`")


def _deeper_than(max_depth: int, value: bytes) -> bool:
    depth = 0
    for bracket in _BRACKET.finditer(_JSON_STRING.sub(b"", value)):
        depth += 1 if bracket.group() in b"[{" else -1
        if depth > max_depth:
            return True
    return False


def _unwrapped(value: bytes, headers: Headers, kind: type[Record], error: Exception) -> Record:
    """What is not a plain record: a CloudEvent, nulls for defaults, or nothing of ours (`error` says why)."""
    if not isinstance(error, msgspec.ValidationError):
        raise BadEvent(_not_json(value, error)) from None
    try:
        whole = _ANYTHING.decode(value)
    except _UNREADABLE as broken:
        raise BadEvent(_not_json(value, broken)) from None
    if not isinstance(whole, dict):
        raise BadEvent(_reason(error)) from None

    record, path = whole, "$"
    if "specversion" in whole:
        attributes: Mapping[str, Any] = whole
        if "data" not in whole:
            raise BadEvent("Expected `data` in the CloudEvent, got none (`data_base64` is not read)")
        record, path = whole["data"], "$.data"
        if not isinstance(record, dict):
            raise BadEvent("Expected `object` in the CloudEvent - at `$.data`")
    else:
        attributes = _cloud_event_attributes(headers)
    version = attributes.get("specversion")
    if version is not None and not (isinstance(version, str) and version.startswith("1.")):
        raise BadEvent("Expected a CloudEvent of specversion 1.0 - at `$.specversion`")

    record = _without_nulls(record)
    for attribute, name in _FROM_CLOUD_EVENT.items():
        if name not in record and version is not None and attributes.get(attribute) is not None:
            record[name] = attributes[attribute]
    try:
        return msgspec.convert(record, kind)
    except _UNREADABLE as refused:
        raise BadEvent(_reason(refused).replace("`$", f"`{path}")) from None


def _cloud_event_attributes(headers: Headers) -> dict[str, str]:
    """Attributes of a CloudEvent in Kafka's binary mode; empty when it is none."""
    return {
        name[3:]: text.decode("utf-8", "replace")
        for name, text in headers or ()
        if name.startswith("ce_") and text is not None
    }


def _without_nulls(record: dict[str, Any]) -> dict[str, Any]:
    """A null says no more than an absent field, so that it is read as one."""
    plain = {name: value for name, value in record.items() if value is not None}
    properties = plain.get("properties")
    if isinstance(properties, dict):
        plain["properties"] = {name: value for name, value in properties.items() if value is not None}
    return plain


def _not_json(value: bytes, error: Exception) -> str:
    if value[:2] == b"\x1f\x8b":
        return "Expected JSON, got gzip: compress in the producer's settings, not in the value"
    return _reason(error)


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "Expected less nesting: deeper than this interpreter can read"
    text = str(error)[:_MAX_REASON_CHARS] or type(error).__name__
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def encode_scored(scored: ScoredVisit) -> bytes:
    """JSON for `scored-visits`. A NaN would become null, which is why the models keep it out."""
    return _ENCODER.encode(scored)
