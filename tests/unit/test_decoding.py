"""Whatever bytes come: a record that is within bounds, or `BadEvent` with the place and the reason."""

import gzip
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.decoding import BadEvent, Decoder, Limits, encode_scored
from schemas.records import ModelStamp, ScoredVisit, Source, VisitOutcome, WebVisit

NOW_MS = 1_767_225_600_000  # 2026-01-01
DECODER = Decoder()
PLAIN: dict[str, Any] = {"event_id": "e1", "timestamp": NOW_MS, "visitor_id": "v1", "url": "https://a.example/x"}
OUTCOME: dict[str, Any] = {"visitor_id": "v1", "outcome": "bought", "timestamp": NOW_MS}


def visit(value: bytes | None, headers: list[tuple[str, bytes]] | None = None) -> WebVisit:
    return DECODER.visit(b"v1", value, headers or [], NOW_MS)


def outcome(value: bytes | None, headers: list[tuple[str, bytes]] | None = None) -> VisitOutcome:
    return DECODER.outcome(b"v1", value, headers or [], NOW_MS)


def plain(**changes: Any) -> bytes:
    return json.dumps(PLAIN | changes).encode()


def refused(value: bytes | None, headers: list[tuple[str, bytes]] | None = None) -> str:
    with pytest.raises(BadEvent) as caught:
        visit(value, headers)
    return str(caught.value)


def test_a_plain_visit_is_read() -> None:
    read = visit(plain(referrer="https://b.example/", properties={"price": 3.5, "n": 2, "new": True}))
    assert (read.event_id, read.timestamp_ms, read.referrer) == ("e1", NOW_MS, "https://b.example/")
    assert read.properties == {"price": 3.5, "n": 2, "new": True}


def test_the_value_decides_who_the_visitor_is_not_the_key() -> None:
    for key in (None, b"somebody else", b"\xff"):
        assert DECODER.visit(key, plain(), [], NOW_MS).visitor_id == "v1"


def test_a_null_is_read_as_an_absent_field() -> None:
    read = visit(plain(event_name=None, properties={"a": None, "b": 1}, schema_version=None, title=None))
    assert (read.event_name, read.properties, read.schema_version) == ("page_view", {"b": 1}, 1)
    assert visit(plain(properties=None)).properties == {}
    assert outcome(json.dumps(OUTCOME | {"value": None, "session_id": None}).encode()).value is True


def test_of_a_key_that_stands_twice_the_last_wins() -> None:
    assert visit(plain()[:-1] + b', "url": "https://a.example/last"}').url == "https://a.example/last"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "tombstone"),
        (b"", "got nothing"),
        (b"{", "truncated"),
        (b"hello", "malformed"),
        (b"[]", "Expected `object`, got `array`"),
        (b"7", "Expected `object`, got `int`"),
        (b"null", "Expected `object`, got `null`"),
        (b"\xff\xfe", "malformed"),
        (gzip.compress(plain(), mtime=0), "got gzip"),
        (b"\x00" * 50, "malformed"),
        (plain() + b"}", "trailing characters"),
        (plain(url=""), "`$.url`"),
        (plain(url=None), "missing required field `url`"),
        (plain(url=5), "Expected `str`, got `int` - at `$.url`"),
        (plain(url="https://a.example/" + "x" * 8192), "at most 8192 characters, got 8210 - at `$.url`"),
        (plain(url="https://a.example/" + "x" * 1_000_000), "at most 1000000 bytes"),
        (plain(url="https://a.example/\0"), "no NUL character - at `$.url`"),
        (plain(visitor_id="v\0"), "no NUL character - at `$.visitor_id`"),
        (plain(visitor_id="v" * 513), "`$.visitor_id`"),
        (plain(session_id="s" * 513), "`$.session_id`"),
        (plain(event_id=""), "`$.event_id`"),
        (plain(timestamp="2026-01-01T00:00:00"), "timezone component - at `$.timestamp`"),
        (plain(timestamp=NOW_MS + 86_400_001), "at most 24 h ahead of the clock, got 2026-01-02"),
        (plain(timestamp="2100-01-01T00:00:00Z"), "got 2100-01-01T00:00:00+00:00 - at `$.timestamp`"),
        (plain(timestamp=10**30), "ahead of the clock"),
        (plain(timestamp=-1), "from 1970 on"),
        (plain(timestamp="0001-01-01T00:00:00+14:00"), "from 1970 on"),
        (plain(timestamp=float("nan")), "malformed"),
        (plain(properties={"a": float("inf")}), "malformed"),
        (plain(properties={"a": 10**30}), "`$.properties[...]`"),
        (plain(properties={"a": {"b": 1}}), "`$.properties[...]`"),
        (plain(properties=[1]), "`$.properties`"),
        (plain(properties={str(n): n for n in range(257)}), "at most 256 properties, got 257"),
        (plain(schema_version=2), "Expected schema_version 1"),
        (plain(schema_version=10**200), "a number beyond 128 bits - at `$.schema_version`"),
        (plain()[:-1] + b', "x": ' + b"[" * 100 + b"]" * 100 + b', "url": 1}', "`$.url`"),
        (plain()[:-1] + b', "x": ' + b"[" * 300 + b"]" * 300 + b"}", "at most 256 levels"),
        (plain()[:-1] + b', "x": ' + b'{"a":' * 90_000, "at most 256 levels"),
        (plain()[:-1] + b', "x": "\\udc00"}', "surrogate"),
        (plain(url="").replace(b'""', b'"\xff"'), "utf-8"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_reason(value: bytes | None, reason: str) -> None:
    assert reason in refused(value)


def test_what_is_odd_but_harmless_is_tolerated() -> None:
    assert visit(plain(timestamp=0)).timestamp_ms == 0
    assert visit(plain(timestamp=NOW_MS + 86_400_000)).timestamp_ms == NOW_MS + 86_400_000
    assert visit(plain(title="a\0b")).title == "a\0b"
    assert visit(plain(url="https://a.example/\\u0000")).url == "https://a.example/\\u0000"
    assert visit(plain(url="https://a.example/" + "[" * 600)).url.endswith("[[[")
    assert visit(plain(title="x" * 50_000)).title == "x" * 50_000
    assert visit(plain()[:-1] + b', "x": ' + b"[" * 255 + b"]" * 255 + b"}").visitor_id == "v1"


def test_limits_are_settings() -> None:
    strict = Decoder(Limits(max_url_chars=10, max_future_ms=0))
    with pytest.raises(BadEvent, match="at most 10 characters"):
        strict.visit(None, plain(), [], NOW_MS)
    with pytest.raises(BadEvent, match="at most 0 h ahead"):
        strict.visit(None, plain(), [], NOW_MS - 1)


def test_an_outcome_is_read_and_held_to_the_same_bounds() -> None:
    read = outcome(json.dumps(OUTCOME | {"value": False, "event_id": "e1"}).encode())
    assert (read.outcome, read.value, read.event_id, read.timestamp_ms) == ("bought", False, "e1", NOW_MS)
    for changes in ({"outcome": ""}, {"outcome": "x" * 513}, {"value": 1}, {"visitor_id": "\0"}, {"schema_version": 0}):
        with pytest.raises(BadEvent, match=r"\$\."):
            outcome(json.dumps(OUTCOME | changes).encode())


class TestCloudEvents:
    def test_the_structured_form_is_unwrapped(self) -> None:
        event = {"specversion": "1.0", "id": "c1", "source": "/shop", "type": "visit", "data": PLAIN}
        assert visit(json.dumps(event).encode()) == visit(plain())
        assert outcome(json.dumps(event | {"data": OUTCOME}).encode()).outcome == "bought"

    def test_its_id_and_time_stand_in_for_what_the_data_leaves_out(self) -> None:
        data = {"visitor_id": "v1", "url": "https://a.example/x"}
        event = {"specversion": "1.0", "id": "c1", "time": "2025-12-31T00:00:00Z", "data": data}
        read = visit(json.dumps(event).encode())
        assert (read.event_id, read.timestamp_ms) == ("c1", NOW_MS - 86_400_000)
        headers = [("ce_specversion", b"1.0"), ("ce_id", b"c2"), ("ce_time", b"2025-12-31T00:00:00Z"), ("other", b"")]
        assert visit(json.dumps(data).encode(), headers).event_id == "c2"

    def test_the_binary_form_is_its_value(self) -> None:
        assert visit(plain(), [("ce_specversion", b"1.0"), ("ce_id", b"c1")]).event_id == "e1"

    def test_a_reason_says_that_it_is_about_the_data(self) -> None:
        event = {"specversion": "1.0", "id": "c1", "data": PLAIN | {"url": 5}}
        assert "at `$.data.url`" in refused(json.dumps(event).encode())

    @pytest.mark.parametrize(
        ("event", "reason"),
        [
            ({"specversion": "1.0", "id": "c1"}, "Expected `data`"),
            ({"specversion": "1.0", "data": "text"}, "`$.data`"),
            ({"specversion": "0.3", "data": PLAIN}, "specversion 1.0"),
            ({"specversion": 1, "data": PLAIN}, "specversion 1.0"),
        ],
    )
    def test_what_is_no_such_event_is_refused(self, event: dict[str, Any], reason: str) -> None:
        assert reason in refused(json.dumps(event).encode())

    def test_an_id_from_a_header_is_held_to_the_bounds_of_ids(self) -> None:
        data = json.dumps({"visitor_id": "v1", "url": "https://a.example/x", "timestamp": 1}).encode()
        assert "`$.event_id`" in refused(data, [("ce_specversion", b"1.0"), ("ce_id", b"x" * 600)])
        assert "NUL" in refused(data, [("ce_specversion", b"1.0"), ("ce_id", b"\0")])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
nearly_visits = st.builds(
    lambda changes, dropped: {name: value for name, value in (PLAIN | changes).items() if name not in dropped},
    st.dictionaries(
        st.sampled_from(
            [*PLAIN, *OUTCOME, "properties", "session_id", "specversion", "data", "schema_version", "value"]
        ),
        json_values,
        max_size=4,
    ),
    st.sets(st.sampled_from(list(PLAIN)), max_size=1),
)
fuzz = (
    st.none()
    | st.binary(max_size=200)
    | nearly_visits.map(lambda value: json.dumps(value).encode())
    | st.builds(
        lambda at, byte: plain()[:at] + bytes([byte]) + plain()[at + 1 :],
        st.integers(0, len(plain()) - 1),
        st.integers(0, 255),
    )
)
fuzzed_headers = st.lists(
    st.tuples(st.sampled_from(["ce_specversion", "ce_id", "ce_time", "ce_", "x"]), st.binary(max_size=9)), max_size=3
)


@settings(max_examples=400)
@given(value=fuzz, headers=fuzzed_headers, read=st.sampled_from([visit, outcome]))
def test_nothing_but_bad_event_ever_leaves(
    value: bytes | None,
    headers: list[tuple[str, bytes]],
    read: Callable[[bytes | None, list[tuple[str, bytes]]], WebVisit | VisitOutcome],
) -> None:
    try:
        record = read(value, headers)
    except BadEvent as refusal:
        reason = str(refusal)
        if not 0 < len(reason.encode()) < 2000:
            pytest.fail(f"does not fit a header: {reason!r}")
        return
    assert 0 <= record.timestamp_ms <= NOW_MS + 86_400_000
    assert record.visitor_id.encode()
    if isinstance(record, WebVisit):
        assert record.url.encode()
        assert record.session_id != ""
        for value_ in record.properties.values():
            float(value_) if not isinstance(value_, str) else value_.encode()


def test_nesting_beyond_the_stack_is_refused_even_where_the_limit_allows_it() -> None:
    lenient = Decoder(Limits(max_depth=10**6))
    with pytest.raises(BadEvent, match="nesting"):
        lenient.visit(None, plain()[:-1] + b', "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", [], NOW_MS)


def test_a_scored_visit_is_encoded_as_json() -> None:
    scored = ScoredVisit(
        event_id="e",
        visitor_id="v",
        session_id="s",
        timestamp_ms=1,
        url="u",
        scored_at_ms=2,
        scores={},
        baseline={},
        novelty=0.0,
        model=ModelStamp(step=0, trained_through_ms=0),
        source=Source(topic="web-visits", partition=0, offset=0),
    )
    assert json.loads(encode_scored(scored))["source"] == {"topic": "web-visits", "partition": 0, "offset": 0}
