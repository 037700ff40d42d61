"""`url2vec bench`: small runs of each benchmark, what they print, and that nothing of them stays behind."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from streams.bench.contestants import Contestant, Result
from streams.bench.report import rows
from streams.cli import main
from tests.waiting import eventually_sync

RUN_LIMIT_S = 120
BENCH = [sys.executable, "-m", "streams.cli", "bench"]


def environment(folder: Path) -> dict[str, str]:
    """All that a benchmark writes goes into `folder`, by which its processes can be told from others as well."""
    return {**os.environ, "TMPDIR": str(folder)}


def left_behind(folder: Path) -> list[str]:
    """Files in `folder`, and processes that are still working for the benchmark there."""
    found = [str(path) for path in folder.iterdir()]
    for process in psutil.process_iter():
        try:
            if process.environ().get("TMPDIR", "").startswith(str(folder)):
                found.append(" ".join(process.cmdline()))
        except psutil.Error:  # ended in between, or somebody else's
            continue
    return found


def measured(folder: Path, *arguments: str) -> dict[str, dict[str, Any]]:
    """The rows of a run, by name."""
    done = subprocess.run(
        [*BENCH, *arguments, "--json"], env=environment(folder), capture_output=True, text=True, timeout=RUN_LIMIT_S
    )
    assert done.returncode == 0, done.stderr
    return {row["name"]: row for row in json.loads(done.stdout)}


def test_the_pipeline_is_measured_beside_both_opponents_and_learns_from_every_visit(tmp_path: Path) -> None:
    found = measured(tmp_path, "pipeline", "--visits", "2000", "--rounds", "1")
    assert list(found) == ["url2vec", "stock Faust", "plain loop"]
    for row in found.values():
        assert row["visits_per_second"] > 0
        assert row["rounds"] == 1
        assert row["spread"] == 0
    ours = found["url2vec"]
    assert ours["visits"] == 2000
    assert ours["learning_share"] == 1.0
    plain_rate = found["plain loop"]["visits_per_second"]
    assert ours["ratio_to_plain_loop"] == pytest.approx(ours["visits_per_second"] / plain_rate, rel=0.01)
    assert found["stock Faust"]["learning_share"] == 1.0
    assert found["plain loop"]["learning_share"] == 0.0
    assert left_behind(tmp_path) == []


def test_the_transport_reads_all_that_it_is_given(tmp_path: Path) -> None:
    found = measured(tmp_path, "transport", "--visits", "2400", "--rounds", "1")
    assert {name: row["visits"] for name, row in found.items()} == {
        "url2vec's batches": 2400,
        "stock Faust": 200,
        "plain loop": 2400,
    }
    assert left_behind(tmp_path) == []


def test_the_vectors_are_measured_on_a_small_stream(tmp_path: Path) -> None:
    found = measured(tmp_path, "embedding", "--quick", "--streams", "short", "--rounds", "1", "--slots", "16")
    assert {"url2vec", "url2vec, 16 slots", "offline PPMI + SVD", "popularity", "random"} <= set(found)
    ours, chance = found["url2vec"], found["random"]
    assert (ours["stream"], ours["rounds"], ours["urls"]) == ("short", 1, 400)
    assert 29_000 < ours["visits"] < 31_000
    assert list(ours["class_at_10"]) == ["10", "25", "50", "100"]
    assert ours["class_at_10"]["100"] > 2 * chance["class_at_10"]["100"]
    assert 0.5 < ours["drift"]["10"] < ours["drift"]["100"] <= 1
    assert ours["visits_per_cpu_second"] > 0
    assert 0 < ours["bytes_per_url"] < ours["bytes_per_url_with_name"]
    assert found["url2vec, 16 slots"]["bytes_per_url"] < ours["bytes_per_url"]
    assert chance["visits_per_cpu_second"] is None
    if importlib.util.find_spec("gensim"):
        assert found["gensim, one pass"]["ratio_to_gensim"] == 1
        assert ours["ratio_to_gensim"] == pytest.approx(
            ours["visits_per_cpu_second"] / found["gensim, one pass"]["visits_per_cpu_second"], rel=0.01
        )
    assert left_behind(tmp_path) == []


def test_the_tables_of_vectors_end_with_what_they_say_and_the_command(tmp_path: Path) -> None:
    asked = ["embedding", "--quick", "--streams", "tabs", "--rounds", "1"]
    done = subprocess.run(
        [*BENCH, *asked], env=environment(tmp_path), capture_output=True, text=True, timeout=RUN_LIMIT_S
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("tabs:")
    assert "url2vec bench embedding --streams tabs --quick --rounds 1 --seed 0 --slots 32" in lines[-1]
    assert ("pip install -e '.[bench]'" in lines[-1]) == (importlib.util.find_spec("gensim") is None)


def test_the_classifier_is_judged_through_the_running_pipeline(tmp_path: Path) -> None:
    arguments = [*BENCH, "classifier", "--limit", "1500", "--pipeline", "--rate", "3000", "--json"]
    done = subprocess.run(arguments, env=environment(tmp_path), capture_output=True, text=True, timeout=RUN_LIMIT_S)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["visits"] == 1500
    assert [row["name"] for row in found["rows"]] == ["url2vec, as it went out", "River, as it went out"]
    for row in found["rows"]:
        # Every game of the bundled log has its outcome: nothing stays open.
        assert row["all"]["whole"]["visits"] == 1500
        assert 0.3 < row["all"]["last_half"]["auc"] < 0.9
    assert left_behind(tmp_path) == []


def test_an_unknown_stream_is_answered_with_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["bench", "embedding", "--streams", "short,longest"])
    assert ended.value.code == 2
    assert "'longest' is no stream: give some of wikispeedia, short" in capsys.readouterr().err


def test_a_benchmark_that_is_told_to_stop_leaves_nothing_behind(tmp_path: Path) -> None:
    process = subprocess.Popen([*BENCH, "pipeline"], env=environment(tmp_path), stderr=subprocess.PIPE, text=True)
    try:
        eventually_sync(lambda: list(tmp_path.glob("url2vec-bench-*/*.log")), RUN_LIMIT_S, "a contestant was started")
        assert any("streams.cli worker" in found for found in left_behind(tmp_path)), "or the last line says nothing"
        process.send_signal(signal.SIGTERM)
        assert process.wait(RUN_LIMIT_S) == 130
    finally:
        process.kill()
        process.communicate()
    assert left_behind(tmp_path) == []


def test_an_unknown_name_is_answered_with_the_names_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["bench", "latency"])
    assert ended.value.code == 2
    assert "'pipeline', 'transport', 'embedding'" in capsys.readouterr().err


def test_a_missing_client_is_answered_with_the_line_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    with pytest.raises(SystemExit) as ended:
        main(["bench", "pipeline"])
    assert ended.value.code == 1
    assert "pip install 'url2vec[test]'" in capsys.readouterr().err


def test_more_visits_than_are_bundled_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["bench", "pipeline", "--visits", "9000000"])
    assert ended.value.code == 1
    assert "357,379" in capsys.readouterr().err


def test_a_round_in_which_everything_was_slow_does_not_change_the_ratios() -> None:
    def run(arena: object, given: object) -> Result:
        raise AssertionError("not run")

    contestants = [Contestant("a", 1, run, "ours"), Contestant("b", 1, run, "plain")]
    rates = {"a": [100, 10, 120], "b": [200, 20, 200]}
    results = {name: [Result(visits=rate, seconds=1.0) for rate in each] for name, each in rates.items()}
    ours, plain = rows(contestants, results)
    assert (ours.visits_per_second, ours.spread, ours.ratio_to_plain_loop) == (100, 1.1, 0.5)
    assert (plain.visits_per_second, plain.ratio_to_plain_loop) == (200, 1.0)
    assert ours.ratio_to_stock_faust is None
