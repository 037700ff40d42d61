r"""Web servers' access logs: Apache's and nginx's `combined` format, and `common`, which lacks its last two fields.

    ADDRESS - USER [17/May/2015:10:05:03 +0000] "GET /path?query HTTP/1.1" 200 203023 "REFERRER" "USER AGENT"

A line becomes a visit. The visitor is a hash of address and user agent, the nearest to a cookie that a log has, and so
that no address leaves the log. Every request counts, images too: the model learns what follows what. Escapes (`\"`,
`\xe4`) are undone. The event's id comes from the line and its number, so that replaying a log twice gives duplicates.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from functools import lru_cache

import xxhash

from schemas.decoding import BadEvent, Decoder
from schemas.logs_lines import Line, LogItem, Unreadable, admitted
from schemas.records import WebVisit, epoch_ms

# The last quote may be missing: servers cut long lines, and what is left still says who visited what.
_LINE = re.compile(
    r'(\S+) \S+ (.*?) \[([^\]]+)\] "((?:[^"\\]|\\.)*)" (\d{3}) (\d+|-)'  # address, user, time, request, status, bytes
    r'(?: "((?:[^"\\]|\\.)*)" "((?:[^"\\]|\\.)*)(?:"(?: .*)?)?)?'  # referrer, agent, and what an operator added
)
_BEGINNING = re.compile(rb'\S+ \S+ .*?\[\d\d/[A-Z][a-z]{2}/\d{4}:[^\]]+\] "')
_TIME = re.compile(r"(\d\d)/([A-Z][a-z]{2})/(\d{4}):(\d\d):(\d\d):(\d\d) ([+-])(\d\d)(\d\d)")
_ESCAPE = re.compile(rb"\\(x[0-9A-Fa-f]{2}|.)", re.DOTALL)
_CONTROLS = {b"n": b"\n", b"t": b"\t", b"r": b"\r", b"v": b"\v", b"b": b"\b"}
# Not strptime's %b, which follows the locale of whoever reads.
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def looks_like(line: bytes) -> bool:
    """Whether the line begins as one of an access log does."""
    return _BEGINNING.match(line) is not None


def read(lines: Iterable[Line | Unreadable], site: str, now_ms: int) -> Iterator[LogItem]:
    """Visits in the order of the file. `site` completes paths to URLs, as in `https://shop.example`."""
    decoder = Decoder()
    site = site.rstrip("/")
    for line in lines:
        if isinstance(line, Unreadable):
            yield line
            continue
        try:
            yield admitted(_visit(line, site), decoder, now_ms)
        except BadEvent as error:
            yield Unreadable(line.number, str(error))


def _visit(line: Line, site: str) -> WebVisit:
    text = line.text.decode("utf-8", "replace")
    found = _LINE.fullmatch(text)
    if found is None:
        raise BadEvent('Expected ADDRESS - USER [TIME] "REQUEST" STATUS BYTES "REFERRER" "USER AGENT"')
    address, user, time, request, status, size, referrer, agent = found.groups()
    method, _, rest = request.partition(" ")
    target = rest.rpartition(" HTTP/")[0] if " HTTP/" in rest else rest
    if not (method.isalpha() and target):
        raise BadEvent(f'Expected "METHOD PATH PROTOCOL" as the request, got "{request[:80]}"')
    user_agent = _said(agent)
    return WebVisit(
        event_id=xxhash.xxh3_64_hexdigest(line.text, seed=line.number),
        timestamp_ms=_timestamp_ms(time),
        visitor_id=xxhash.xxh3_64_hexdigest(f"{address}\0{user_agent or ''}".encode()),
        url=_url(_unescaped(target), site),
        user_id=_said(user),
        referrer=_said(referrer),
        user_agent=user_agent,
        properties={"method": method, "status": int(status), "bytes": 0 if size == "-" else min(int(size), 2**63 - 1)},
    )


def _url(target: str, site: str) -> str:
    if target.startswith("/"):
        return site + target
    if target.lower().startswith(("http://", "https://")):  # a request to a proxy names the whole URL
        return target
    return f"{site}/{target}"  # OPTIONS *, CONNECT host:port


def _said(field: str | None) -> str | None:
    """The field's text; servers write `-` where the client said nothing."""
    return None if field in {None, "", "-"} else _unescaped(str(field))


def _unescaped(text: str) -> str:
    if "\\" not in text:
        return text
    return _ESCAPE.sub(_meant, text.encode()).decode("utf-8", "replace")


def _meant(escape: re.Match[bytes]) -> bytes:
    code = escape[1]
    if len(code) == 3:
        return bytes([int(code[1:], 16)])
    return _CONTROLS.get(code, code)


@lru_cache(maxsize=4096)  # neighbouring lines share their second
def _timestamp_ms(text: str) -> int:
    found = _TIME.fullmatch(text)
    try:
        if found is None or found[2] not in _MONTHS:
            raise ValueError
        day, month, year, hour, minute, second, sign, off_hours, off_minutes = found.groups()
        offset = timedelta(hours=int(off_hours), minutes=int(off_minutes)) * (-1 if sign == "-" else 1)
        zone = timezone(offset) if offset else UTC
        second_ms = min(int(second), 59) * 1000  # a leap second is read as the one before it
        moment = datetime(int(year), _MONTHS.index(month) + 1, int(day), int(hour), int(minute), tzinfo=zone)
    except ValueError:
        raise BadEvent(f"Expected a time like 17/May/2015:10:05:03 +0000, got {text[:40]}") from None
    return epoch_ms(moment) + second_ms
