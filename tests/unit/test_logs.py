"""Logs become records: each format, what is wrong in one, and the order in which records come."""

import gzip
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import logs_combined, logs_jsonl, logs_sessions
from schemas.decoding import Decoder
from schemas.logs import Format, LogFile, LogItem, LogRecord, UnknownFormat, Unreadable, merged
from schemas.logs_lines import Line

NOW_MS = 1_790_000_000_000
HEADER = "session\tfinished\ttarget\tpages"
REQUEST = (
    '83.149.9.216 - - [17/May/2015:10:05:03 +0000] "GET /a/b.png?q=1 HTTP/1.1" 200 203023 '
    '"http://referrer.example/" "Mozilla/5.0 (X11)"'
)


def written(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def read(path: Path, log_format: Format = "auto", **options: Any) -> list[LogItem]:
    return list(LogFile(path, log_format, now_ms=NOW_MS, **options))


def records(items: list[LogItem]) -> list[LogRecord]:
    assert not [item for item in items if isinstance(item, Unreadable)]
    return [item for item in items if isinstance(item, LogRecord)]


def complaints(items: list[LogItem]) -> list[Unreadable]:
    return [item for item in items if isinstance(item, Unreadable)]


def combined(*lines: str | bytes) -> list[LogItem]:
    texts = [line if isinstance(line, bytes) else line.encode() for line in lines]
    return list(logs_combined.read([Line(n, text) for n, text in enumerate(texts, 1)], "https://s.example/", NOW_MS))


def visit_of(line: str | bytes) -> dict[str, Any]:
    (record,) = records(combined(line))
    return dict(json.loads(record.value))


class TestCombined:
    def test_a_line_becomes_a_visit(self) -> None:
        (record,) = records(combined(REQUEST))
        visit = json.loads(record.value)
        assert (record.kind, record.timestamp_ms) == ("visit", 1_431_857_103_000)
        assert record.visitor_id == visit["visitor_id"]
        assert visit["url"] == "https://s.example/a/b.png?q=1"
        assert (visit["referrer"], visit["user_agent"]) == ("http://referrer.example/", "Mozilla/5.0 (X11)")
        assert visit["properties"] == {"method": "GET", "status": 200, "bytes": 203023}

    def test_the_address_itself_does_not_leave_the_log(self) -> None:
        assert b"83.149" not in records(combined(REQUEST))[0].value

    def test_a_visitor_is_an_address_with_a_user_agent(self) -> None:
        other_agent, other_address = REQUEST.replace("X11", "Mac"), REQUEST.replace("83.", "84.")
        visitors = [record.visitor_id for record in records(combined(REQUEST, other_agent, other_address, REQUEST))]
        assert visitors[0] == visitors[3]
        assert len(set(visitors)) == 3

    def test_reading_again_gives_the_same_ids_and_each_line_has_its_own(self) -> None:
        ids = [json.loads(record.value)["event_id"] for record in records(combined(REQUEST, REQUEST))]
        assert ids == [json.loads(record.value)["event_id"] for record in records(combined(REQUEST, REQUEST))]
        assert len(set(ids)) == 2

    @pytest.mark.parametrize(
        ("old", "new", "field", "expected"),
        [
            ('"http://referrer.example/"', '"-"', "referrer", None),
            ("203023", "-", "properties", {"method": "GET", "status": 200, "bytes": 0}),
            ("- - [", "- some body [", "user_id", "some body"),
            ("/a/b.png?q=1", "https://other.example/x", "url", "https://other.example/x"),
            ("GET /a/b.png?q=1", "OPTIONS *", "url", "https://s.example/*"),
            ("/a/b.png?q=1 HTTP/1.1", "/old", "url", "https://s.example/old"),
            ("Mozilla/5.0 (X11)", r"a \"b\" \\ \xe2\x82\xac", "user_agent", 'a "b" \\ €'),
            ("Mozilla/5.0 (X11)", r"\xff", "user_agent", "\ufffd"),
            ('(X11)"', '(X11)" "10.0.0.1" 0.003', "user_agent", "Mozilla/5.0 (X11)"),
            ('(X11)"', "(X1", "user_agent", "Mozilla/5.0 (X1"),
            (' "http://referrer.example/" "Mozilla/5.0 (X11)"', "", "user_agent", None),
            ("10:05:03 +0000", "10:05:03 +0200", "timestamp", 1_431_857_103_000 - 7_200_000),
            ("10:05:03 +0000", "10:05:03 -0130", "timestamp", 1_431_857_103_000 + 5_400_000),
        ],
    )
    def test_what_servers_write_is_understood(self, old: str, new: str, field: str, expected: object) -> None:
        line = REQUEST.replace(old, new)
        assert line != REQUEST
        assert visit_of(line).get(field) == expected

    def test_invalid_utf_8_is_replaced(self) -> None:
        assert visit_of(REQUEST.encode().replace(b"X11", b"\xff"))["user_agent"] == "Mozilla/5.0 (\ufffd)"

    @pytest.mark.parametrize(
        ("old", "new", "reason"),
        [
            ("17/May", "17/Mai", "Expected a time like"),
            ("17/May", "31/Feb", "Expected a time like"),
            ("2015:10:05:03 +0000", "2015", "Expected a time like"),
            ("GET /a/b.png?q=1 HTTP/1.1", "-", "as the request"),
            ("GET /a/b.png?q=1 HTTP/1.1", r"\x16\x03\x01", "as the request"),
            ('" 200 ', '" OK ', "Expected ADDRESS"),
            ("2015", "2065", "ahead of the clock"),
            ("/a/b.png", "/" + "a" * 9000, "at most 8192 characters"),
            ("/a/b.png", r"/\x00", "NUL"),
        ],
    )
    def test_a_line_that_cannot_be_read_is_named(self, old: str, new: str, reason: str) -> None:
        readable, unreadable, last = combined(REQUEST, REQUEST.replace(old, new), REQUEST)
        assert isinstance(readable, LogRecord)
        assert isinstance(last, LogRecord)
        assert isinstance(unreadable, Unreadable)
        assert unreadable.line_number == 2
        assert reason in unreadable.reason


class TestJsonLines:
    VISIT = '{"event_id":"e","timestamp":1000,"visitor_id":"v","url":"u","unknown":{"kept":1}}'
    OUTCOME = '{"visitor_id":"v","outcome":"bought","timestamp":"1970-01-01T00:00:02Z"}'

    def items(self, *lines: str) -> list[LogItem]:
        return list(logs_jsonl.read([Line(n, line.encode()) for n, line in enumerate(lines, 1)], NOW_MS))

    def test_a_line_passes_byte_for_byte(self) -> None:
        assert self.items(self.VISIT, self.OUTCOME) == [
            LogRecord("visit", "v", 1000, self.VISIT.encode()),
            LogRecord("outcome", "v", 2000, self.OUTCOME.encode()),
        ]

    def test_a_line_with_a_url_is_a_visit_whatever_else_it_has(self) -> None:
        assert records(self.items(self.VISIT[:-1] + ',"outcome":"x"}'))[0].kind == "visit"

    def test_cloud_events_are_looked_into(self) -> None:
        line = '{"specversion":"1.0","id":"i","data":' + self.OUTCOME + "}"
        assert records(self.items(line)) == [LogRecord("outcome", "v", 2000, line.encode())]

    def test_the_reason_names_the_field(self) -> None:
        (complaint,) = complaints(self.items(self.VISIT, self.VISIT.replace("1000", '"soon"')))
        assert complaint.line_number == 2
        assert "$.timestamp" in complaint.reason

    @given(text=st.binary(max_size=60) | st.binary(max_size=20).map(lambda noise: b'{"outcome":' + noise + b"}"))
    def test_no_line_raises(self, text: bytes) -> None:
        assert len(list(logs_jsonl.read([Line(1, text)], NOW_MS))) == 1


tables = st.lists(
    st.tuples(st.booleans(), st.lists(st.sampled_from("ABCDE"), min_size=1, max_size=12)), min_size=1, max_size=60
)


def session_items(table: list[tuple[bool, list[str]]], limit: int | None = None) -> list[LogItem]:
    rows = [f"{n}\t{int(finished)}\tT\t{';'.join(pages)}" for n, (finished, pages) in enumerate(table)]
    lines = [Line(n, row.encode()) for n, row in enumerate([HEADER, *rows], 1)]
    return list(logs_sessions.read(lines, NOW_MS, limit))


class TestSessions:
    @given(table=tables)
    def test_every_page_and_one_outcome_a_session_in_event_time_order(
        self, table: list[tuple[bool, list[str]]]
    ) -> None:
        found = records(session_items(table))
        times = [record.timestamp_ms for record in found]
        assert times == sorted(times)
        for number, (finished, pages) in enumerate(table):
            own = [record for record in found if record.visitor_id == f"session-{number}"]
            assert [json.loads(record.value)["url"].rpartition("/")[2] for record in own[:-1]] == pages
            assert own[-1].kind == "outcome"
            assert json.loads(own[-1].value).get("value", True) is finished

    @given(table=tables)
    def test_times_do_not_know_how_a_session_ended(self, table: list[tuple[bool, list[str]]]) -> None:
        inverted = [(not finished, pages) for finished, pages in table]
        assert [(r.kind, r.visitor_id, r.timestamp_ms) for r in records(session_items(table))] == [
            (r.kind, r.visitor_id, r.timestamp_ms) for r in records(session_items(inverted))
        ]

    @given(table=tables, limit=st.integers(0, 40))
    def test_a_limit_counts_visits_and_lets_outcomes_of_what_began_follow(
        self, table: list[tuple[bool, list[str]]], limit: int
    ) -> None:
        whole, found = records(session_items(table)), records(session_items(table, limit))
        visits = [record for record in whole if record.kind == "visit"][:limit]
        begun = {record.visitor_id for record in visits}
        assert [record for record in found if record.kind == "visit"] == visits
        assert [r for r in found if r.kind == "outcome"] == [
            r for r in whole if r.kind == "outcome" and r.visitor_id in begun
        ]

    def test_wherever_the_limit_falls_only_sessions_with_a_visit_have_an_outcome(self) -> None:
        table = [(n % 2 == 0, list("ABCDE")) for n in range(30)]
        for limit in range(1, 150):
            found = records(session_items(table, limit))
            visitors = [{r.visitor_id for r in found if r.kind == kind} for kind in ("visit", "outcome")]
            assert visitors[0] == visitors[1]

    def test_a_table_is_read_no_further_than_the_sessions_that_are_open(self) -> None:
        asked_for: list[int] = []

        def table() -> Iterator[Line]:
            for n in range(10_000):
                asked_for.append(n)
                yield Line(n, f"{n}\t1\tT\tA;B;C".encode())

        for _ in zip(range(100), logs_sessions.read(table(), NOW_MS), strict=False):
            pass
        assert len(asked_for) <= 60

    def test_a_visit_says_that_it_is_synthetic_and_where_the_game_leads(self) -> None:
        visit = json.loads(records(session_items([(True, ["A"])]))[0].value)
        assert visit["properties"] == {"target": "https://en.wikipedia.org/wiki/T", "synthetic": True}
        assert "SYNTHETIC" in str(logs_sessions.__doc__)

    @pytest.mark.parametrize("row", ["1\t1\tT", "1\t2\tT\tA", "1\t1\tT\t;", "\t1\tT\tA", "1\t1\tT\t" + "x" * 9000])
    def test_a_row_that_is_none_is_named_and_the_others_are_read(self, row: str) -> None:
        rows = [HEADER, "0\t1\tT\tA", row, "2\t1\tT\tB"]
        items = list(logs_sessions.read([Line(n, text.encode()) for n, text in enumerate(rows, 1)], NOW_MS))
        assert [complaint.line_number for complaint in complaints(items)] == [3]
        assert len(items) == 1 + 4


class TestFiles:
    def test_the_format_is_told_from_the_content(self, tmp_path: Path) -> None:
        for number, (text, kind) in enumerate(
            [(REQUEST, "visit"), (f"{HEADER}\n0\t1\tT\tA", "visit"), (TestJsonLines.OUTCOME, "outcome")]
        ):
            assert records(read(written(tmp_path / str(number), text)))[0].kind == kind

    def test_some_damaged_lines_first_do_not_hide_it(self, tmp_path: Path) -> None:
        items = read(written(tmp_path / "log", f"%%%\n\n{REQUEST}\n"))
        assert [type(item) for item in items] == [Unreadable, LogRecord]

    def test_a_file_that_looks_like_nothing_is_answered_with_what_to_do(self, tmp_path: Path) -> None:
        with pytest.raises(UnknownFormat, match="--format"):
            read(written(tmp_path / "log", "once upon a time\n"))
        assert complaints(read(tmp_path / "log", "combined"))[0].file == str(tmp_path / "log")

    def test_an_empty_file_holds_nothing(self, tmp_path: Path) -> None:
        assert read(written(tmp_path / "log", "\n\n")) == []

    def test_gzip_is_unpacked_whatever_the_name(self, tmp_path: Path) -> None:
        path = written(tmp_path / "log.txt", gzip.compress(f"{REQUEST}\n{REQUEST}\n".encode()))
        log = LogFile(path, now_ms=NOW_MS)
        assert len(records(list(log))) == 2
        assert log.read_bytes == log.size_bytes == path.stat().st_size

    @pytest.mark.parametrize("damage", ["cut", "flipped"])
    def test_what_precedes_the_damage_in_an_archive_is_read(self, tmp_path: Path, damage: str) -> None:
        packed = bytearray(gzip.compress("".join(REQUEST.replace("a/b", str(n)) + "\n" for n in range(9999)).encode()))
        if damage == "cut":
            del packed[-1000:]
        else:
            packed[-5] ^= 255
        items = read(written(tmp_path / "log.gz", bytes(packed)))
        assert len(items) > 100
        assert [item for item in items if isinstance(item, Unreadable)] == items[-1:]
        assert "damaged" in complaints(items)[0].reason

    def test_an_endless_line_is_skipped_and_named(self, tmp_path: Path) -> None:
        path = written(tmp_path / "log", f"{REQUEST}\n{'x' * 3_500_000}\n{REQUEST}\n")
        items = read(path, "combined")
        assert [type(item) for item in items] == [LogRecord, Unreadable, LogRecord]
        assert complaints(items)[0].line_number == 2

    def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(self, tmp_path: Path) -> None:
        assert len(records(read(written(tmp_path / "log", "\ufeff" + TestJsonLines.VISIT + "\r\n")))) == 1

    def test_a_log_keeps_its_order_and_a_limit_counts_visits(self, tmp_path: Path) -> None:
        late = REQUEST.replace("10:05:03", "10:05:01")
        path = written(tmp_path / "log", "\n".join([REQUEST, late, REQUEST]))
        times = [record.timestamp_ms for record in records(read(path))]
        assert times == [times[2], times[2] - 2000, times[2]]
        assert len(records(read(path, limit=2))) == 2


files = st.lists(
    st.lists(st.tuples(st.sampled_from(["visit", "outcome"]), st.integers(0, 50)), max_size=12), max_size=4
)


def log_of(name: int, events: list[tuple[str, int]]) -> list[LogItem]:
    return [
        LogRecord("visit" if kind == "visit" else "outcome", f"{name}", time_ms, str(place).encode())
        for place, (kind, time_ms) in enumerate(events)
    ]


@given(events=files)
def test_merged_files_keep_their_own_order_and_agree_on_time(events: list[list[tuple[str, int]]]) -> None:
    logs = [log_of(name, own) for name, own in enumerate(events)]
    found = [item for item in merged(logs) if isinstance(item, LogRecord)]
    by_file: dict[str, list[LogItem]] = defaultdict(list)
    for record in found:
        by_file[record.visitor_id].append(record)
    assert [by_file[str(name)] for name in range(len(logs))] == logs
    if all(own == sorted(own, key=lambda event: event[1]) for own in events):
        assert [record.timestamp_ms for record in found] == sorted(record.timestamp_ms for record in found)


@given(events=files, limit=st.integers(0, 20))
def test_a_limit_over_several_files_ends_before_the_first_visit_too_many(
    events: list[list[tuple[str, int]]], limit: int
) -> None:
    logs = [log_of(name, own) for name, own in enumerate(events)]
    found, whole = list(merged(logs, limit)), list(merged(logs))
    assert found == whole[: len(found)]
    assert sum(isinstance(item, LogRecord) and item.kind == "visit" for item in found) <= limit
    if len(found) < len(whole):
        following = whole[len(found)]
        assert isinstance(following, LogRecord)
        assert following.kind == "visit"


@given(text=st.binary(max_size=80), log_format=st.sampled_from(["combined", "jsonl", "sessions"]))
def test_whatever_a_file_holds_it_is_read_to_its_end(
    text: bytes, log_format: Format, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = written(tmp_path_factory.getbasetemp() / "noise", text)
    for item in read(path, log_format):
        assert isinstance(item, Unreadable) or Decoder().visit(None, item.value, (), NOW_MS)
