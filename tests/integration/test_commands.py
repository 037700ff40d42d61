"""The commands around a running `url2vec up`: their JSON, their exit codes, and what is left when it ends.

Every command is a process of its own that finds the addresses by itself, as a newcomer's would.
"""

import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import psutil
import pytest
from confluent_kafka import Producer

from deploy.processes import Child
from tests.system import Answered, System, command, visit
from tests.waiting import eventually_sync

DATA = Path(__file__).parents[2] / "deploy" / "data"
SESSIONS = DATA / "wikispeedia" / "sessions.tsv.gz"
READY_LIMIT_S = 90.0


class Up:
    """`url2vec up --json` as a process, with a folder of its own where the other commands find it."""

    def __init__(self, folder: Path) -> None:
        self.environment = {"XDG_STATE_HOME": str(folder / "state")}
        self.folder = folder
        arguments = ["--workers", "1", "--kafka-port", "0", "--redis-port", "0", "--web-port", "0"]
        self._out, self._err = folder / "up.out", folder / "up.err"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            program = [sys.executable, "-m", "streams.cli", "up", "--json", *arguments]
            self.child = Child("up", program, stdout=out, stderr=err, environment=self.environment)

    def until_ready(self) -> Self:
        eventually_sync(self._ready, READY_LIMIT_S, "up is ready")
        return self

    def _ready(self) -> bool:
        if self.child.poll() is not None:
            pytest.fail(f"up ended with {self.child.poll()}: {self._err.read_text()[-2000:]}")
        return self._out.read_bytes().endswith(b"\n")

    @property
    def announced(self) -> dict[str, Any]:
        """What it printed: one JSON object, and nothing else."""
        found: dict[str, Any] = json.loads(self._out.read_text())
        return found

    def command(self, *arguments: str) -> Answered:
        return command(*arguments, cwd=self.folder, environment=self.environment)

    def processes(self) -> list[psutil.Process]:
        """Everything it started, at any depth."""
        return psutil.Process(self.child.pid).children(recursive=True)


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """One that runs for the whole file, with 2,000 visits replayed and one record that cannot be read."""
    running = Up(tmp_path_factory.mktemp("up"))
    try:
        running.until_ready()
        producer = Producer({"bootstrap.servers": running.announced["kafka"]})
        producer.produce("web-visits", b"{", b"nobody")
        producer.flush(10)
        replayed = running.command("replay", "--json", "--limit", "2000", str(SESSIONS))
        assert replayed.code == 0, replayed.err
        assert replayed.json.keys() == {"published", "outcomes", "skipped", "seconds"}
        assert replayed.json["published"] == 2_000, "the limit counts visits"
        waited = running.command("wait", "--json", "--timeout", "60s")
        assert waited.code == 0, waited.err
        assert waited.json["lag"] == 0
        yield running
    finally:
        running.child.stop(20)


def known_url(up: Up) -> str:
    """The URL of a visit that was replayed."""
    lines = up.command("tail", "web-visits", "--json", "--from-beginning", "--limit", "3").out.splitlines()
    return next(visited["url"] for line in lines if isinstance(visited := json.loads(line), dict))


def test_up_announces_where_everything_is(up: Up) -> None:
    announced = up.announced
    assert announced.keys() == {"kafka", "redis", "web", "pids"}
    assert [psutil.pid_exists(pid) for pid in announced["pids"]] == [True]
    assert announced["web"].startswith("http://127.0.0.1:")


def test_status_has_every_field_of_the_contract(up: Up) -> None:
    answer = up.command("status", "--json")
    assert answer.code == 0
    status = answer.json
    assert status.keys() >= {
        "workers", "lag", "seconds_to_drain", "visits_scored", "visits_learned", "outcomes_joined", "outcomes_late",
        "examples_learned", "rejected", "duplicates", "learning_share", "urls", "model_step", "latency_ms", "freshness_ms",
        "progressive", "next_url_hit_rate_at_10",
    }  # fmt: skip
    assert status["workers"][0].keys() >= {"id", "pid", "partitions"}
    assert status["workers"][0]["pid"] in up.announced["pids"]
    assert status["latency_ms"].keys() == status["freshness_ms"].keys() == {"p50", "p99"}
    assert status["progressive"]["continues"].keys() >= {"auc", "logloss", "baseline_auc", "examples"}
    assert (status["lag"], status["rejected"]) == (0, 1)
    assert status["visits_scored"] == 2_000
    assert status["urls"] > 100
    assert "visits scored" in up.command("status").out, "and a table for people"


def test_tail_prints_records_as_they_stand(up: Up) -> None:
    answer = up.command("tail", "--json", "--from-beginning", "--limit", "5")
    assert answer.code == 0
    scored = [json.loads(line) for line in answer.out.splitlines()]
    assert len(scored) == 5
    assert all(record["source"]["topic"] == "web-visits" for record in scored)
    rejected = up.command("tail", "rejected-visits", "--json", "--from-beginning", "--limit", "1")
    assert rejected.code == 0
    assert rejected.json["value"] == "{"
    assert rejected.json["error"]
    assert up.command("tail", "no-such-topic", "--json").code == 1


def test_tail_ends_with_130_when_it_is_interrupted(up: Up) -> None:
    out = up.folder / "tail.out"
    with out.open("wb") as file:
        follower = Child(
            "tail",
            [sys.executable, "-m", "streams.cli", "tail", "--json", "--from-beginning"],
            stdout=file,
            environment=up.environment,
        )
    eventually_sync(lambda: out.stat().st_size > 0, 30, "tail prints")
    follower.signal(signal.SIGINT)
    assert follower.wait(10) == 130
    follower.kill()


def test_nearest_lists_urls_by_similarity(up: Up) -> None:
    answer = up.command("nearest", known_url(up), "-k", "5", "--json")
    assert answer.code == 0, answer.err
    near = answer.json
    assert len(near) == 5
    assert all(row.keys() == {"url", "similarity"} for row in near)
    similarities = [row["similarity"] for row in near]
    assert similarities == sorted(similarities, reverse=True)


def test_exported_vectors_read_back(up: Up) -> None:
    text, archive = up.folder / "vectors.txt", up.folder / "vectors.npz"
    described = {}
    for path in (text, archive):
        answer = up.command("export", str(path), "--json")
        assert answer.code == 0, answer.err
        described[path] = answer.json
    first, *rest = text.read_text(encoding="utf-8").splitlines()
    count, dims = map(int, first.split())
    assert count == len(rest) == described[text]["urls"]
    words = dict(line.split(" ", 1) for line in rest)
    vectors = np.array([[float(number) for number in line.split(" ")] for line in words.values()])
    assert vectors.shape == (count, dims)
    assert np.isfinite(vectors).all()
    assert known_url(up) in words
    with np.load(archive, allow_pickle=False) as loaded:
        assert loaded["vectors"].shape == vectors.shape
        by_url = dict(zip(loaded["urls"].tolist(), loaded["vectors"], strict=True))
    assert by_url.keys() == words.keys()
    np.testing.assert_allclose(np.stack([by_url[url] for url in words]), vectors, atol=1e-4)


def test_check_publishes_nothing_and_topics_lists_four(up: Up) -> None:
    before = up.command("status", "--json").json
    checked = up.command("check", "--json", str(SESSIONS))
    assert checked.code == 0, checked.err
    assert json.loads(checked.out)
    listed = up.command("topics", "--json")
    assert listed.code == 0
    assert [(row["topic"], row["partitions"]) for row in listed.json] == [
        ("web-visits", 4), ("visit-outcomes", 4), ("scored-visits", 4), ("rejected-visits", 4),
    ]  # fmt: skip
    assert up.command("topics", "--create", "--json").json == listed.json
    assert up.command("status", "--json").json["visits_scored"] == before["visits_scored"]


def test_replay_of_nothing_readable_fails(up: Up) -> None:
    (up.folder / "nothing.log").write_text("\n")
    assert up.command("replay", "--json", str(up.folder / "nothing.log")).code == 1
    assert up.command("replay", "--json", str(up.folder / "not-there.log")).code in {1, 2}


def test_without_a_worker_wait_runs_out_of_time_and_status_says_stalled(
    tmp_path: Path, embedded_kafka: str, store_url: str, make_topics: Any
) -> None:
    names = make_topics(embedded_kafka)
    with System(tmp_path, embedded_kafka, store_url, names) as system:
        system.publish([visit(names.visits, "v", "e", 1_700_000_000_000, "https://a.example/")])
        waited = system.command("wait", "--timeout", "1s")
        assert (waited.code, waited.out, len(waited.sentences)) == (1, "", 1)
        status = system.command("status")
        assert (status.code, status.json["lag"], len(status.sentences)) == (1, 1, 1)


def test_a_killed_worker_is_started_again_and_nothing_survives_a_sigkill_of_up(tmp_path: Path) -> None:
    running = Up(tmp_path).until_ready()
    (first,) = running.announced["pids"]
    psutil.Process(first).kill()

    def replaced() -> bool:
        workers = running.command("status", "--json").json["workers"]
        return any(worker["pid"] != first and worker["partitions"] == [0, 1, 2, 3] for worker in workers)

    eventually_sync(replaced, 60, "another worker owns the partitions")
    assert len(running.announced["pids"]) == 1, "standard output still holds one JSON object"
    children = running.processes()
    assert len(children) == 3, "broker, store, worker"
    running.child.kill()
    eventually_sync(lambda: not any(map(alive, children)), 10, "all that it started is gone")
    answer = running.command("status", "--json")
    assert (answer.code, answer.out) == (1, "")
    assert "url2vec up" in answer.err


def test_sigterm_of_up_leaves_nothing_behind(up: Up) -> None:
    """The last of this file: it ends what the others look at."""
    children = up.processes()
    assert len(children) == 3, "broker, store, worker"
    up.child.signal(signal.SIGTERM)
    assert up.child.wait(20) == 0
    assert [child for child in children if alive(child)] == []
    assert not list(up.folder.glob("state/url2vec/up.json"))


def alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
