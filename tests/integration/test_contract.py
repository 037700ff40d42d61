"""What the outside may rely on, seen by a client that is not ours, on both brokers.

One stream holds every kind of record that a producer may send, well-formed or not; another, small enough to count by hand,
every fate that an outcome may have.
"""

import gzip
import json
import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from jsonschema import Draft202012Validator

from tests.system import BEGIN_MS, GAP_MS, MINUTE_MS, Sent, System, Taken, Verdict, outcome, verify, visit
from tests.waiting import eventually_sync

if TYPE_CHECKING:
    from streams.settings import Topics

SCHEMAS = Path(__file__).parents[2] / "schemas" / "json"
VISITS, VISITORS = 20_000, 400
TOLERATED_YEAR_MS = 3_600_000  # an hour into 1970
YEAR_2100_MS = 4_102_444_800_000


@dataclass(frozen=True)
class Case:
    """A record that was sent, and what has to come back."""

    sent: Sent
    reason: str | None = None  # a part of the `error` header; None: it is to be scored
    event_id: str = ""
    url: str = ""
    at_ms: int = 0
    retry: bool = False


def poison(topic: str, kind: str, number: int, at_ms: int) -> Case:
    """A record that is rejected, or is tolerated though it looks odd; each of a visitor of its own."""
    who = f"poison-{kind}-{number}"
    plain = {"event_id": who, "timestamp": at_ms, "visitor_id": who, "url": "https://a.example/"}

    def bad(value: bytes | None, reason: str) -> Case:
        return Case(Sent(topic, who, value, who.encode()), reason)

    def field(reason: str, **changed: Any) -> Case:
        return bad(json.dumps(plain | changed).encode(), reason)

    match kind:
        case "bad JSON":
            return bad(b'{"event_id": "x", ', "truncated")
        case "not UTF-8":
            return bad(b'{"event_id": "\xff\xfe"}', "utf-8")
        case "wrong type":
            return field("Expected `str`, got `int` - at `$.url`", url=5)
        case "missing field":
            return bad(b'{"event_id": "x", "timestamp": 1, "visitor_id": "v"}', "missing required field `url`")
        case "huge URL":
            return field("Expected at most", url="https://a.example/" + "x" * 1_000_000)
        case "NUL":
            return field("NUL", url="https://a.example/\0")
        case "year 2100":
            return field("ahead of the clock", timestamp=YEAR_2100_MS)
        case "NaN":
            return bad(json.dumps(plain | {"properties": {"price": float("nan")}}).encode(), "invalid character")
        case "deep nesting":
            return bad(json.dumps(plain)[:-1].encode() + b', "x": ' + b"[" * 9_000 + b"]" * 9_000 + b"}", "nesting")
        case "unknown version":
            return field("schema_version", schema_version=99)
        case "tombstone":
            return bad(None, "tombstone")
        case "empty":
            return bad(b"", "got nothing")
        case "gzip":
            return bad(gzip.compress(json.dumps(plain).encode()), "gzip")
        case "year 1970":
            sent = visit(topic, who, who, TOLERATED_YEAR_MS, "https://a.example/")
            return Case(sent, None, who, "https://a.example/", TOLERATED_YEAR_MS)
        case "duplicate keys":
            value = json.dumps(plain)[:-1].encode() + b', "url": "https://a.example/last"}'
            return Case(Sent(topic, who, value, who.encode()), None, who, "https://a.example/last", at_ms)
    raise AssertionError(kind)


KINDS = (
    "bad JSON", "not UTF-8", "wrong type", "missing field", "NUL", "year 2100", "NaN", "deep nesting", "unknown version",
    "tombstone", "empty", "gzip", "year 1970", "duplicate keys", "huge URL",
)  # fmt: skip


def stream(topic: str, seed: int) -> list[Case]:
    """Visits two seconds apart in every form that is accepted, and one in a hundred that is poison."""
    draw = random.Random(seed)
    cases: list[Case] = []
    for number in range(VISITS):
        at_ms = BEGIN_MS + 2_000 * number
        if number % 100 == 50:
            kind = KINDS[number // 100 % len(KINDS)]
            # A few megabytes say as much as twenty.
            cases.append(poison(topic, kind if kind != "huge URL" or number < 4_500 else "bad JSON", number, at_ms))
            continue
        who, event_id = f"v{draw.randrange(VISITORS)}", f"e{number}"
        url = f"https://shop.example/p/{int(draw.paretovariate(0.8)) % 500}?colour=röt"
        sent = visit(topic, who, event_id, at_ms, url, properties={"price": draw.random(), "new": True}, unknown=[1])
        case = Case(sent, None, event_id, url, at_ms)
        match number % 50:
            case 7:
                case = replace(case, sent=replace(sent, key=None))
            case 17:
                data = {"visitor_id": who, "url": url, "timestamp": at_ms}
                headers = [("ce_id", event_id.encode()), ("ce_specversion", b"1.0"), ("ce_type", b"visit")]
                case = replace(case, sent=replace(sent, value=json.dumps(data).encode(), headers=headers))
            case 27:
                event = {"specversion": "1.0", "id": event_id, "type": "visit", "source": "/s"}
                value = event | {"data": {"visitor_id": who, "url": url, "timestamp": at_ms}}
                case = replace(case, sent=replace(sent, value=json.dumps(value).encode()))
            case 37:
                seconds = at_ms // 1000
                hour, minute, second = (seconds // 3600) % 24, seconds // 60 % 60, seconds % 60
                day = "2023-11-14" if seconds < 1_700_006_400 else "2023-11-15"
                written = f"{day}T{hour:02}:{minute:02}:{second:02}Z"
                value = json.loads(sent.value or b"") | {"timestamp": written}
                case = replace(case, sent=replace(sent, value=json.dumps(value).encode()))
        cases.append(case)
        if number % 61 == 0:
            cases.append(replace(case, retry=True))
    return cases


@pytest.fixture
def no_settings(tmp_path: Path, kafka: str, store_url: str, topic_names: "Topics") -> Iterator[System]:
    with System(tmp_path, kafka, store_url, topic_names) as system:
        yield system


def test_every_record_comes_back_once_as_the_contract_says(no_settings: System, seed: int) -> None:
    system = no_settings
    cases = stream(system.names.visits, seed)
    system.publish(case.sent for case in cases)
    by_partition: dict[int, list[Case]] = defaultdict(list)
    for case in cases:
        by_partition[case.sent.partition(4)].append(case)
    worker = system.start()
    eventually_sync(lambda: system.status().lag == 0, 60, "all is read", poll_s=0.2)

    verdict = verify(system).holds()
    assert verdict.repeated == []
    assert len(verdict.scored) + len(verdict.rejected) == len(cases)
    asked = {
        (system.names.visits, number, offset): case
        for number, sent in by_partition.items()
        for offset, case in enumerate(sent)
    }
    assert {record.source for record in verdict.visits} == asked.keys()
    look_at_rejections(verdict, asked)
    look_at_answers(verdict, asked)

    wanted = {
        "visits_scored": sum(case.reason is None for case in cases),
        "rejected": sum(case.reason is not None for case in cases),
        "duplicates": sum(case.retry for case in cases),
        "keyless": sum(case.reason is None and case.sent.key is None for case in cases),
        "examples_learned": examples_of_continues(by_partition),
        "outcomes_joined": 0,
        "lag": 0,
    }

    def counted() -> bool:
        found = system.status()
        assert {name: getattr(found, name) for name in wanted} == wanted
        return True

    eventually_sync(counted, 20, "the counters are those of the input", poll_s=0.2)
    assert worker.stop() == 0
    asked_of_command = system.command("status")
    assert asked_of_command.code == 0
    status = asked_of_command.json
    assert {name: status[name] for name in wanted} == wanted
    assert status["progressive"]["continues"]["examples"] == wanted["examples_learned"]
    assert status["workers"] == []


def look_at_rejections(verdict: Verdict, asked: dict[tuple[str, int, int], Case]) -> None:
    assert {source for source, case in asked.items() if case.reason is not None} == verdict.rejected.keys()
    for source, record in verdict.rejected.items():
        case = asked[source]
        assert record.key == case.sent.key
        assert record.value == case.sent.value, "the bytes are untouched"
        headers = dict(record.headers)
        assert headers.keys() == {"error", "source_topic", "source_partition", "source_offset"}
        assert (case.reason or "").lower() in headers["error"].decode().lower()


def look_at_answers(verdict: Verdict, asked: dict[tuple[str, int, int], Case]) -> None:
    validator = Draft202012Validator(json.loads((SCHEMAS / "scored-visit.schema.json").read_text()))
    met: set[tuple[int, str]] = set()
    records = {json_source(record): record for record in verdict.answers}
    for number, source in enumerate(sorted(verdict.scored)):
        answer, case = verdict.scored[source], asked[source]
        if number % 10 == 0 or case.sent.visitor.startswith("poison"):
            validator.validate(answer)
        assert records[source].key == case.sent.visitor.encode()
        assert (answer["event_id"], answer["visitor_id"]) == (case.event_id, case.sent.visitor)
        assert (answer["url"], answer["timestamp"]) == (case.url, case.at_ms)
        assert answer["scores"].keys() == answer["baseline"].keys() == {"continues"}
        assert all(0 <= chance <= 1 for chance in (*answer["scores"].values(), *answer["baseline"].values()))
        assert len(answer["next_urls"]) <= 10
        assert ("duplicate" in answer["flags"]) == case.retry
        visitor = source[1], case.sent.visitor
        assert ("new_visitor" in answer["flags"]) == (visitor not in met)
        met.add(visitor)


def json_source(record: Taken) -> tuple[str, int, int]:
    source = json.loads(record.value or b"")["source"]
    return source["topic"], source["partition"], source["offset"]


def examples_of_continues(by_partition: dict[int, list[Case]]) -> int:
    """Visits that another of the same session follows, and those whose half hour has passed without one."""
    settled = 0
    for cases in by_partition.values():
        times: dict[str, list[int]] = defaultdict(list)
        for case in cases:
            if case.reason is None and not case.retry:
                times[case.sent.visitor].append(case.at_ms)
        watermark_ms = max(max(at) for at in times.values()) - MINUTE_MS
        for at in times.values():
            followed = [later - earlier <= GAP_MS for earlier, later in pairwise(at)] + [False]
            settled += sum(yes or at_ms + GAP_MS < watermark_ms for yes, at_ms in zip(followed, at, strict=True))
    return settled


TASKS = """\
[tasks.bought]
outcomes = ["bought"]
horizon = "30m"
[tasks.finished]
outcomes = ["finished"]
horizon = "30m"
scope = "session"
"""


@pytest.mark.partitions(1)
def test_each_outcome_is_counted_as_what_it_is(
    tmp_path: Path, kafka: str, store_url: str, topic_names: "Topics"
) -> None:
    visits, outcomes = topic_names.visits, topic_names.outcomes

    def saw(who: str, event_id: str, minute: float, **more: Any) -> Sent:
        return visit(visits, who, event_id, BEGIN_MS + round(minute * MINUTE_MS), "https://a.example/", **more)

    def told(who: str, name: str, minute: float, **more: Any) -> Sent:
        return outcome(outcomes, who, name, BEGIN_MS + round(minute * MINUTE_MS), **more)

    with System(tmp_path, kafka, store_url, topic_names, TASKS, partitions=1) as system:
        worker = system.start()
        counted = counters_of(system)

        system.publish([told("early", "bought", 2)])  # is read before its visit
        counted(lag=0, visits_scored=0, outcomes_joined=0)
        system.publish([saw("early", "c1", 1.5)])
        counted(lag=0, visits_scored=1, outcomes_joined=1, examples_learned=1)

        system.publish(
            [
                saw("usual", "a1", 3), saw("not", "b1", 4),
                saw("sessions", "d1", 5, session_id="S1"), saw("sessions", "d2", 6, session_id="S2"),
                saw("events", "e1", 7), saw("events", "e2", 8),
                told("usual", "bought", 8), told("usual", "bought", 8),
                told("not", "bought", 9, value=False),
                told("sessions", "finished", 10, session_id="S1"),
                told("events", "bought", 11, event_id="e1"),
                told("nobody", "bought", 12),
                told("usual", "unheard-of", 12.5),
                saw("itself", "f1", 13), saw("itself", "f2", 14, event_name="bought"),
                Sent(outcomes, "usual", b'{"outcome": 3}', b"usual"),
            ]
        )  # fmt: skip
        # At once: early, usual, not, events' e1 and itself's f1 for bought, sessions' d1 for finished.
        counted(lag=0, visits_scored=9, outcomes_joined=6, outcomes_duplicate=1, examples_learned=6, rejected=1)

        system.publish([saw("clock", "k1", 120)])  # all horizons pass
        # Nine visits, two tasks, and f2 is not asked for bought, which it is.
        counted(lag=0, visits_scored=10, examples_learned=17, outcomes_unmatched=2, outcomes_late=0)

        system.publish([told("usual", "bought", 20)])  # of an hour that is settled
        counted(lag=0)
        system.publish([saw("clock", "k2", 121)])
        final = {
            "lag": 0, "visits_scored": 11, "rejected": 1, "duplicates": 0, "examples_learned": 17,
            "outcomes_joined": 6, "outcomes_duplicate": 1, "outcomes_unmatched": 2, "outcomes_late": 1,
        }  # fmt: skip
        counted(**final)
        assert worker.stop() == 0
        status = system.command("status").json
        assert {name: status[name] for name in final} == final
        assert {task: found["examples"] for task, found in status["progressive"].items()} == {
            "bought": 8,
            "finished": 9,
        }
        verdict = verify(system).holds()
        assert verdict.repeated == []
        assert [source[0] for source in verdict.rejected] == [outcomes]


def counters_of(system: System) -> Callable[..., None]:
    """Waits until the status counts what is given."""

    def counted(**wanted: int) -> None:
        def reached() -> bool:
            found = system.status()
            assert {name: getattr(found, name) for name in wanted} == wanted
            return True

        eventually_sync(reached, 20, f"the status counts {wanted}", poll_s=0.1)

    return counted
