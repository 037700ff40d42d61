"""`url2vec bench classifier`: nobody in it knows anything too early, and all are given the same."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from models.features import EXPERTS
from models.settings import ModelSettings
from schemas.logs_lines import LogItem, LogRecord, Unreadable
from streams.bench import classifier_opponents as rivals
from streams.bench import classifier_trees as trees
from streams.bench.classifier import Asked, experts, judged_rows
from streams.bench.classifier_ablations import ABLATIONS, chunks, play_alone, rates, settings_of
from streams.bench.classifier_judge import POSITIONS
from streams.bench.classifier_stream import NoVisits, Recording, Stream, ToLearn, ToScore
from streams.bench.latent import Factors
from streams.cli_bench import bench
from streams.console import Failed
from streams.outcomes import Task
from streams.settings import CONTINUES, Settings

SMALL = ModelSettings(dims=8, capacity=64, table_bits=10, embedding_bits=8, device="cpu")
BOUGHT = Task("bought", frozenset({"order"}), 600_000, "visitor")
START_MS = 1_700_000_000_000
LATENESS_MS = Settings("", "").allowed_lateness_ms


# -- the stream ----------------------------------------------------------------------------------------------------------


def visit(at_s: float, visitor: str, **more: Any) -> LogRecord:
    at_ms = START_MS + int(at_s * 1000)
    value = {"event_id": f"{visitor}-{at_s}", "timestamp": at_ms, "visitor_id": visitor, "url": "https://s.example/a"}
    return LogRecord("visit", visitor, at_ms, json.dumps(value | more).encode())


def order(at_s: float, visitor: str, **more: Any) -> LogRecord:
    at_ms = START_MS + int(at_s * 1000)
    value = {"visitor_id": visitor, "outcome": "order", "timestamp": at_ms} | more
    return LogRecord("outcome", visitor, at_ms, json.dumps(value).encode())


def shop(visitors: int = 120) -> list[LogItem]:
    """Visitors come one a minute and look at up to five pages; those who saw the cart mostly order four minutes later."""
    random = np.random.default_rng(7)
    items: list[LogItem] = []
    for v in range(visitors):
        pages = int(random.integers(1, 6))
        for k in range(pages):
            url = f"https://s.example/{'cart' if v % 3 == 0 and k else random.integers(0, 8)}"
            items.append(
                visit(v * 60 + k * 17.5, f"v{v}", url=url, event_id=f"v{v}-{k}", properties={"kind": f"{v % 4}"})
            )
        if v % 3 == 0 and v % 5:
            items.append(order(v * 60 + 240, f"v{v}"))
        elif v % 7 == 0:
            items.append(order(v * 60 + 100, f"v{v}", value=False))
    return sorted((item for item in items if isinstance(item, LogRecord)), key=lambda item: item.timestamp_ms)


def stream_of(items: Sequence[LogItem], *tasks: Task, batch: int = 16) -> Stream:
    return Stream(items, tasks or (BOUGHT,), SMALL, batch)


@pytest.fixture(scope="module")
def recording() -> Recording:
    return Recording.of(stream_of(shop(400), BOUGHT, CONTINUES))


def test_every_visit_is_scored_once_in_order_and_before_it_is_learned() -> None:
    items = shop()
    scored, learned = 0, list[tuple[int, int]]()
    for event in stream_of(items, BOUGHT, CONTINUES):
        if isinstance(event, ToScore):
            assert event.start == scored
            scored = event.stop
        else:
            assert event.visit.max() < scored
            learned += zip(event.visit.tolist(), event.task.tolist(), strict=True)
    assert scored == sum(isinstance(item, LogRecord) and item.kind == "visit" for item in items)
    assert len(learned) == len(set(learned)) > scored, "both tasks are learned from, each visit once"


def test_an_example_is_learned_no_sooner_than_its_label_is_known() -> None:
    """Labels and the moment they become known, worked out from the log as a whole."""
    items = [item for item in shop() if isinstance(item, LogRecord)]
    visits = [item for item in items if item.kind == "visit"]
    orders = {item.visitor_id: item for item in items if item.kind == "outcome"}
    late = 0
    for event in stream_of(items):
        if isinstance(event, ToScore):
            continue
        for at, label in zip(event.visit.tolist(), event.label.tolist(), strict=True):
            asked, said = visits[at], orders.get(visits[at].visitor_id)
            answered = said is not None and asked.timestamp_ms <= said.timestamp_ms <= asked.timestamp_ms + 600_000
            assert label == (said is not None and answered and b"false" not in said.value)
            if said is not None and answered:
                assert event.clock_ms >= said.timestamp_ms
            else:
                assert event.clock_ms - LATENESS_MS > asked.timestamp_ms + 600_000
                late += 1
    assert late > 50


def test_the_rows_are_those_of_the_visit_and_what_came_after_is_told_where_it_is_known() -> None:
    for event in stream_of(shop()):
        if isinstance(event, ToScore):
            assert (event.rows["numbers"][event.position == 1, 1] == 1).all(), "the first of a session says so"
        else:
            for column in (event.steps, event.wait_ms, event.action):
                assert column.shape == event.visit.shape
                assert (column >= -1).all()


def test_a_visit_whose_horizon_the_log_does_not_hold_is_not_judged(recording: Recording) -> None:
    label = recording.label[:, 0]
    end_ms = max(item.timestamp_ms for item in shop(400) if isinstance(item, LogRecord)) - LATENESS_MS
    assert np.isnan(label[recording.timestamp_ms + 600_000 >= end_ms]).all()
    assert not np.isnan(label[recording.timestamp_ms + 600_000 < end_ms]).any()


def test_where_every_answer_is_known_the_end_is_judged_too() -> None:
    items = [visit(0, "a"), visit(1, "b"), order(2, "a"), order(3, "b", value=False)]
    assert Recording.of(stream_of(items)).label[:, 0].tolist() == [1, 0]
    assert np.isnan(Recording.of(stream_of([*items, visit(4, "c")])).label[:, 0]).all(), (
        "else only the quick ones would be"
    )


def test_duplicates_and_outcomes_ask_nothing_and_unreadable_lines_are_counted() -> None:
    items: list[LogItem] = [visit(0, "a"), visit(0, "a"), Unreadable(3, "torn"), visit(5, "a", event_name="order")]
    stream = stream_of([*items, visit(5_000, "b")])
    events = list(stream)
    assert sum(len(event.visit) for event in events if isinstance(event, ToLearn)) == 1
    assert stream.skipped == 1
    assert events[0].visit.tolist() == [0] if isinstance(events[0], ToLearn) else True
    assert [event.visit.tolist() for event in events if isinstance(event, ToLearn)] == [[0]]


def test_two_visits_with_the_same_bytes_are_learned_one_after_the_other() -> None:
    stream = stream_of([])
    stream._asked[0] = {5: [3, 8]}
    assert [stream._place(0, 5), stream._place(0, 5)] == [3, 8]
    assert not stream.is_open(0)


def test_a_log_without_a_visit_is_refused() -> None:
    with pytest.raises(NoVisits, match="no visit"):
        Recording.of(stream_of([Unreadable(1, "torn")]))


# -- who competes --------------------------------------------------------------------------------------------------------


def test_hashed_ftrl_gives_what_a_slow_one_gives(recording: Recording) -> None:
    fast = rivals.Ftrl(2, with_counts=True)
    z: dict[tuple[int, int], float] = {}
    n: dict[tuple[int, int], float] = {}

    def weight(key: tuple[int, int]) -> float:
        return -z.get(key, 0.0) / ((1.0 + math.sqrt(n.get(key, 0.0))) / 0.1 + 0.1)

    lessons = [event for event in recording.events if isinstance(event, ToLearn)][:6]
    for event in lessons:
        rows = recording.rows[event.visit]
        at, value = fast._inputs(rows, event.task, event.visit)
        for places, values, t, y, w in zip(at, value, event.task, event.label, event.weight, strict=True):
            inputs = [((int(t), int(i)), float(v)) for i, v in zip(places, values, strict=True) if v]
            error = w * (1 / (1 + math.exp(-sum(weight(key) * v for key, v in inputs))) - y)
            for key, v in inputs:
                g, old = error * v, n.get(key, 0.0)
                z[key] = z.get(key, 0.0) + g - (math.sqrt(old + g * g) - math.sqrt(old)) / 0.1 * weight(key)
                n[key] = old + g * g
        fast.learn(event, rows)
    rows = recording.rows[:40]
    at, value = fast._inputs(rows, np.zeros(40, np.int32), np.arange(40))
    slow = [
        sum(weight((0, int(i))) * v for i, v in zip(places, values, strict=True))
        for places, values in zip(at, value, strict=True)
    ]
    assert fast.score(0, rows)[:, 0] == pytest.approx([1 / (1 + math.exp(-s)) for s in slow], abs=1e-4)


def test_river_gets_levels_as_ones_and_the_counts_of_its_task(recording: Recording) -> None:
    row = recording.rows[-1:].copy()
    row["counts"] = 0
    row["counts"][0, 2, 1] = [1.5, 2.0]
    plain = rivals.attributes(row, np.array([1], np.int32), with_counts=False)[0]
    assert {key for key, value in plain.items() if key > 0 and value == 1.0} == set(row["levels"][0].tolist()) - {0}
    assert sum(key < 0 for key in plain) == np.count_nonzero(row["numbers"])
    counted = rivals.attributes(row, np.array([1], np.int32), with_counts=True)[0]
    assert sorted(counted[key] for key in counted.keys() - plain.keys()) == [0.5, 1.5]
    other = rivals.attributes(row, np.array([0], np.int32), with_counts=True)[0]
    assert other == plain


def test_lightgbm_answers_with_the_rate_so_far_until_it_was_trained_and_trains_on_nothing_but_what_is_known(
    recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lightgbm", reason="LightGBM comes with the extra `bench`")
    trained: list[int] = []
    monkeypatch.setattr(trees.LightGBM, "_train", lambda self, task: trained.append(self._known[task]))
    opponent = trees.LightGBM(recording, 100, 0)
    known, before = np.zeros(2), np.zeros(2)
    for event in recording.events:
        if isinstance(event, ToLearn):
            opponent.learn(event, recording.rows[event.visit])
            for t in range(2):
                before[t] += (event.weight * event.label)[event.task == t].sum()
                known[t] += event.weight[event.task == t].sum()
        else:
            p = opponent.score(event[0], recording.rows[event[0] : event[1]])
            assert p[0] == pytest.approx((before + 1) / (known + 2), abs=1e-4)
    assert len(trained) > 5
    assert min(trained) >= 100


def test_lightgbm_learns_and_gives_the_same_twice(recording: Recording) -> None:
    pytest.importorskip("lightgbm", reason="LightGBM comes with the extra `bench`")
    played = [rivals.play(recording, trees.LightGBM(recording, 300, 0)) for _ in range(2)]
    assert np.array_equal(played[0].probability, played[1].probability)
    assert played[0].examples == recording.examples


def test_everybody_is_asked_about_every_visit_and_learns_every_example(recording: Recording) -> None:
    groups = [name for name in rivals.GROUPS if name not in ("lightgbm", "latent")]
    for opponent in rivals.opponents(recording, groups, 0, (300,)):
        played = rivals.play(recording, opponent)
        answered = ~np.isnan(played.probability)
        assert answered.mean() > (0.08 if isinstance(opponent, trees.Forest) else 0.999)
        assert ((played.probability[answered] >= 0) & (played.probability[answered] <= 1)).all()
        assert played.examples == recording.examples


def test_latent_factors_change_nothing_when_read_and_tell_sets_of_pages_apart_when_learned(
    recording: Recording,
) -> None:
    rows = np.zeros(64, recording.rows.dtype)
    rows["pages"][::2, :6] = [11, 12, 13, 14, 15, 16]
    rows["pages"][1::2, :6] = [21, 22, 23, 24, 25, 26]
    machine = Factors(hidden=4, bits=8, seed=1)
    before = machine.read(rows)
    assert np.array_equal(before, machine.read(rows))
    for _ in range(300):
        machine.learn(rows)
    after = machine.read(rows)
    assert np.abs(after[0] - after[1]).max() > 0.5 > np.abs(before[0] - before[1]).max()


def test_an_expert_that_said_nothing_has_no_row(recording: Recording) -> None:
    rows = recording.rows.copy()
    rows["experts"] = 0
    rows["experts"][:, :, 1] = np.nan
    rows["experts"][::2, :, 1] = 2.0
    found = experts(replace(recording, rows=rows))
    name = EXPERTS[1]
    assert list(found) == [name]
    assert np.isnan(found[name][1::2]).all()
    assert found[name][0] == pytest.approx(1 / (1 + math.exp(-2)), abs=1e-6)
    assert judged_rows(recording, name, "", found[name])[0].said == pytest.approx(0.5, abs=0.05)


# -- the classifier alone ------------------------------------------------------------------------------------------------


def test_the_classifier_alone_answers_over_a_recording_as_it_did_in_the_stream(recording: Recording) -> None:
    played, classifier, rows = play_alone(recording, SMALL)
    assert np.array_equal(played.probability, recording.probability)
    assert rows.tobytes() == recording.rows.tobytes()
    whole, _, _ = play_alone(recording, SMALL, with_river=True)
    assert np.array_equal(whole.probability, recording.probability)
    assert classifier.examples == recording.examples
    other, _, _ = play_alone(recording, replace(SMALL, chunk=32))
    assert not np.array_equal(other.probability, recording.probability)


def test_a_setting_that_is_missing_or_refused_is_a_reason_and_not_an_error() -> None:
    assert settings_of(SMALL, {"no_such_part": True}) == "no setting no_such_part"
    assert "chunk" in str(settings_of(SMALL, {"chunk": 0}))
    assert "attention" in str(settings_of(SMALL, {"sequence": "transformer"}))
    assert settings_of(SMALL, {"chunk": 7}) == replace(SMALL, chunk=7)


def test_no_ablation_is_skipped() -> None:
    skipped = {name: found for name, changes in ABLATIONS if isinstance(found := settings_of(SMALL, changes), str)}
    assert not skipped


def test_rates_are_measured_on_whole_chunks(recording: Recording) -> None:
    parts = chunks(recording, 64)
    assert {len(part.visit) for part in parts} == {64}
    assert len(parts) == recording.examples // 64
    stream = stream_of(shop(60))
    found = rates(Recording.of(stream), stream)
    assert found.score_visits is not None
    assert found.score_visits_with_features is not None
    assert 0 < found.score_visits_with_features < found.score_visits


# -- the command ---------------------------------------------------------------------------------------------------------


def test_tasks_are_taken_from_their_names() -> None:
    asked = Asked(None, ("continues", "order", "order"), 60_000, "visitor", None, 0, 256, (), ())
    assert asked.questions() == (CONTINUES, Task("order", frozenset({"order"}), 60_000, "visitor"))
    assert replace(asked, tasks=()).questions()[0].name == "finished"


def test_a_small_run_of_the_command_says_all_it_should() -> None:
    arguments = ["classifier", "--limit", "2000", "--only", "ours,ftrl", "--json"]
    done = CliRunner().invoke(bench, arguments)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["visits"], found["seed"]) == (2000, 0)
    assert "--limit 2000" in found["command"]
    assert found["rates"]["score_visits"] > 0
    names = [row["name"] for row in found["rows"]]
    assert names[0] == "url2vec"
    assert {"FTRL", "FTRL, with counts"} < set(names)
    for row in found["rows"]:
        assert row["task"] == "finished"
        assert list(row["by_position"]) == list(POSITIONS)
        if row["said"] == 1:
            assert row["all"]["whole"]["visits"] == found["rows"][0]["all"]["whole"]["visits"] > 1000
            assert 0.3 < row["all"]["whole"]["auc"] < 0.9
            assert row["all"]["last_half"]["ece"] < 0.5


def test_a_lightgbm_that_was_never_trained_has_no_row() -> None:
    pytest.importorskip("lightgbm", reason="LightGBM comes with the extra `bench`")
    arguments = ["classifier", "--limit", "900", "--only", "lightgbm", "--every", "300", "--every", "5000", "--json"]
    done = CliRunner().invoke(bench, arguments)
    assert [row["setting"] for row in json.loads(done.stdout)["rows"]] == ["anew every 300"]


def test_the_tables_name_everybody_and_what_was_skipped() -> None:
    done = CliRunner().invoke(bench, ["classifier", "--limit", "300", "--only", "ours", "--ablations"])
    assert done.exit_code == 0, done.output
    for name, _ in ABLATIONS:
        assert name in done.stdout
    assert "url2vec bench classifier --limit 300 --seed 0 --batch 256 --only ours --ablations" in done.stdout


def test_a_log_in_which_nothing_can_be_read_is_answered_with_a_sentence(tmp_path: Any) -> None:
    for text, sentence in (("", "no visit"), ("what\nis\nthis\n", "looks like none of")):
        log = tmp_path / "log"
        log.write_text(text)
        done = CliRunner().invoke(bench, ["classifier", "--log", str(log)])
        assert isinstance(done.exception, Failed)
        assert sentence in str(done.exception)


def test_an_unknown_group_is_answered_with_those_there_are() -> None:
    done = CliRunner().invoke(bench, ["classifier", "--only", "xgboost"])
    assert done.exit_code == 2
    assert "'xgboost' is none of ours, river" in done.output
