"""The status adds up what partitions and workers say, and shows the newest that a learner said of itself."""

from __future__ import annotations

import io

import msgspec
import pytest
from rich.console import Console

from models.insight import Drifts, Insight, Racing
from models.progressive import Progress
from streams.cli_status import drifts, experts, table
from streams.pages import exposition
from streams.partition import Summary
from streams.status import Status, WorkerReport, gather, newest
from streams.store import Position

SAID = Insight(
    drift={"finished": Drifts(model=2, baseline=1, examples_since=1_500, boost=2.4)},
    experts={"finished": {"network": 0.61234567, "linear": 0.38, "memory": 0.001}},
    racing={"": Racing(learning_rate=0.002, replay=4)},
    memory=12_345,
)


def position(step: int = 1, progress: Progress | None = None, insight: Insight | None = None) -> Position:
    said = insight.encode() if insight else b""
    kept = {"finished": progress.encode()} if progress else {}
    summary = Summary(model_step=step, progress=kept, insight=said)
    return Position(summary=msgspec.msgpack.encode(summary))


def report(step: int) -> WorkerReport:
    return WorkerReport(
        id=f"w{step}", pid=1, host="h", partitions=[0], in_flight=0, visits_per_second=1.0, urls=1, model_step=step,
        idle_s=0.0, ready=True, latency_counts=[0] * 10, freshness_counts=[0] * 10,
    )  # fmt: skip


def shown(found: Status) -> str:
    text = io.StringIO()
    Console(file=text, width=140).print(table(found))
    return text.getvalue()


def test_an_insight_survives_the_store() -> None:
    assert Insight.decode(SAID.encode()) == SAID
    assert Insight.decode(b"") == Insight()


def test_versions_read_each_other() -> None:
    newer = msgspec.msgpack.encode({"memory": 3, "something": [1, 2], "drift": {"t": {"model": 1, "more": 2}}})
    assert Insight.decode(newer) == Insight(memory=3, drift={"t": Drifts(model=1)})


@pytest.mark.parametrize("blob", [b"\x00", b"nonsense", SAID.encode()[:-3], msgspec.msgpack.encode({"memory": "many"})])
def test_bytes_that_are_no_insight_are_refused(blob: bytes) -> None:
    with pytest.raises(ValueError, match="insight"):
        Insight.decode(blob)


def test_the_insight_of_the_highest_step_counts_and_torn_ones_do_not() -> None:
    older = Insight(memory=1)
    assert newest([(3, older.encode()), (9, SAID.encode()), (5, older.encode())]) == SAID
    assert newest([(3, older.encode()), (9, b"torn"), (10, b"")]) == older
    assert newest([]) == Insight()


def test_the_status_says_how_calibrated_each_side_is() -> None:
    one, two = Progress(), Progress()
    one.add(0.9, 0.6, True)
    two.add(0.9, 0.6, False)
    found = gather([position(1, one), position(2, two)], [], lag=0)
    assert found.progressive["finished"].ece == pytest.approx(0.4, abs=1e-3)
    assert found.progressive["finished"].baseline_ece == pytest.approx(0.1, abs=1e-3)


def test_the_status_shows_what_the_learner_says_of_itself() -> None:
    progress = Progress()
    progress.add(0.9, 0.6, True)
    found = gather([position(3, insight=Insight(memory=1)), position(9, progress, SAID)], [report(3)], lag=0)
    as_json = msgspec.json.decode(msgspec.json.encode(found))
    assert as_json["drift"]["finished"] == {"model": 2, "baseline": 1, "examples_since": 1_500, "boost": 2.4}
    assert as_json["experts"]["finished"]["network"] == 0.6123
    assert as_json["racing"] == {"": {"learning_rate": 0.002, "replay": 4, "auxiliary": 0.0}}
    assert as_json["memory"] == 12_345
    text = shown(found)
    assert "2 ours, 1 River  (the last 1,500 examples ago), learning 2.4× faster" in text
    assert "network 0.61, linear 0.38" in text
    assert "learning rate 0.002, each example again 4×" in text
    assert "12,345" in text


def test_where_nothing_was_said_nothing_is_shown() -> None:
    found = gather([position()], [report(3)], lag=0)
    assert (found.drift, found.experts, found.racing, found.memory) == ({}, {}, {}, 0)
    assert not {"drifts", "experts", "chosen", "remembered"} & set(shown(found).split())


def test_a_summary_of_the_version_before_is_read() -> None:
    fields = msgspec.msgpack.decode(position(4).summary)
    del fields["insight"]
    assert gather([Position(summary=msgspec.msgpack.encode(fields))], [report(3)], lag=0).drift == {}


def test_words_for_drifts_and_experts_are_short() -> None:
    assert drifts(Drifts()) == "0 ours, 0 River"
    assert experts({"a": 0.1, "b": 0.9, "c": 0.0}) == "b 0.90, a 0.10"
    assert experts({"a": 0.0}) == "none"


def test_prometheus_is_told_of_drifts() -> None:
    lines = exposition(gather([position(9, insight=SAID)], [], lag=0)).splitlines()
    assert 'url2vec_drifts_total{task="finished",side="model"} 2' in lines
    assert 'url2vec_drifts_total{task="finished",side="baseline"} 1' in lines
    assert all(" " in line and (line.startswith("#") or line.split()[-1].replace(".", "").isdigit()) for line in lines)
