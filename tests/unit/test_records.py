"""What is on the wire: names, times, defaults, and that a record survives the way there and back."""

from datetime import UTC, datetime, timedelta, timezone

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.records import ModelStamp, NextUrl, ScoredVisit, Source, VisitOutcome, WebVisit, epoch_ms

VISIT = b'{"event_id":"e1","timestamp":%s,"visitor_id":"v1","url":"https://a.example/"}'

moments = st.datetimes(
    min_value=datetime(1970, 1, 2),
    max_value=datetime(2200, 1, 1),
    timezones=st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes))),
)
texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)
scalars = texts | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)


def visit_at(timestamp: bytes) -> WebVisit:
    return msgspec.json.decode(VISIT % timestamp, type=WebVisit)


@pytest.mark.parametrize(
    ("written", "expected_ms"),
    [
        (b"1420070400123", 1_420_070_400_123),
        (b'"2015-01-01T00:00:00.123Z"', 1_420_070_400_123),
        (b'"2015-01-01T02:00:00.123+02:00"', 1_420_070_400_123),
        (b'"2015-01-01T00:00:00.123999Z"', 1_420_070_400_123),
        (b'"1970-01-01T00:00:00Z"', 0),
        (b"0", 0),
    ],
)
def test_event_time_is_epoch_milliseconds_however_it_was_written(written: bytes, expected_ms: int) -> None:
    assert visit_at(written).timestamp_ms == expected_ms


@pytest.mark.parametrize("written", [b'"2015-01-01T00:00:00"', b'"yesterday"', b"1.5", b"true", b"null"])
def test_a_time_that_is_not_exactly_one_moment_is_refused_with_its_place(written: bytes) -> None:
    with pytest.raises(msgspec.ValidationError, match=r"\$\.timestamp"):
        visit_at(written)


@given(moment=moments)
def test_milliseconds_are_rounded_down_exactly(moment: datetime) -> None:
    start = datetime(1970, 1, 1, tzinfo=UTC)
    assert epoch_ms(moment) == (moment - start) // timedelta(milliseconds=1)


def test_what_is_left_out_has_its_default() -> None:
    visit = visit_at(b"1")
    assert (visit.event_name, visit.session_id, visit.properties, visit.schema_version) == ("page_view", None, {}, 1)
    outcome = msgspec.json.decode(b'{"visitor_id":"v","outcome":"bought","timestamp":1}', type=VisitOutcome)
    assert outcome.value is True


def test_an_empty_session_id_is_none_at_all() -> None:
    visit = msgspec.json.decode(VISIT[:-1] % b"1" + b',"session_id":""}', type=WebVisit)
    assert visit.session_id is None


def test_unknown_fields_are_tolerated() -> None:
    assert msgspec.json.decode(VISIT[:-1] % b"1" + b',"colour":[{"a":1}]}', type=WebVisit).url == "https://a.example/"


@given(
    ids=st.tuples(texts, texts, texts),
    time_ms=st.integers(0, 4_000_000_000_000),
    session_id=st.none() | texts,
    properties=st.dictionaries(
        texts,
        texts | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, width=32),
        max_size=4,
    ).filter(lambda chosen: not any(value in (float("inf"), float("-inf")) for value in chosen.values())),
)
def test_a_visit_survives_the_wire(
    ids: tuple[str, str, str],
    time_ms: int,
    session_id: str | None,
    properties: dict[str, str | int | float | bool],
) -> None:
    event_id, visitor_id, url = ids
    visit = WebVisit(
        event_id=event_id,
        visitor_id=visitor_id,
        url=url,
        timestamp_ms=time_ms,
        session_id=session_id,
        properties=properties,
    )
    assert msgspec.json.decode(msgspec.json.encode(visit), type=WebVisit) == visit


def test_a_scored_visit_carries_every_field_under_its_published_name() -> None:
    scored = ScoredVisit(
        event_id="e1",
        visitor_id="v1",
        session_id="v1@5",
        timestamp_ms=5,
        url="https://a.example/",
        scored_at_ms=9,
        scores={"continues": 0.5},
        baseline={"continues": 0.25},
        next_urls=[NextUrl("https://a.example/b", 0.125)],
        novelty=1.0,
        model=ModelStamp(step=3, trained_through_ms=4),
        source=Source(topic="web-visits", partition=2, offset=7),
        flags=("new_url",),
    )
    encoded = msgspec.json.encode(scored)
    assert msgspec.json.decode(encoded) == {
        "event_id": "e1",
        "visitor_id": "v1",
        "session_id": "v1@5",
        "timestamp": 5,
        "url": "https://a.example/",
        "scored_at": 9,
        "scores": {"continues": 0.5},
        "baseline": {"continues": 0.25},
        "next_urls": [{"url": "https://a.example/b", "score": 0.125}],
        "novelty": 1.0,
        "model": {"step": 3, "trained_through": 4},
        "source": {"topic": "web-visits", "partition": 2, "offset": 7},
        "flags": ["new_url"],
        "schema_version": 1,
    }
    assert msgspec.json.decode(encoded, type=ScoredVisit) == scored
