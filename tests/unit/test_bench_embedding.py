"""How `url2vec bench embedding` judges vectors: on cases small enough to count by hand."""

import gzip
import importlib.util
from pathlib import Path

import numpy as np
import pytest

from models.settings import ModelSettings
from streams.bench.embedding import RIVAL, SELDOM, measure, table
from streams.bench.embedding_corpus import Corpus, corpus, wikispeedia
from streams.bench.embedding_judge import F32, I32, Watch, class_at, drift, judged, popularity_at
from streams.bench.embedding_opponents import Cost, Factors, Ours, Random, allocated, opponents
from streams.bench.synthetic import Stream


def circle(*degrees: float) -> F32:
    """A unit vector for each angle."""
    angle = np.radians(degrees)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)


def classes(*of: int) -> I32:
    return np.array(of, np.int32)


def a_corpus(sessions: list[list[int]], topic: list[int]) -> Corpus:
    url = np.array([u for session in sessions for u in session], np.int32)
    ends = np.cumsum([len(session) for session in sessions]).astype(np.int64)
    return Corpus("hand-made", Stream(url, ends, np.array(topic, np.int32)), [f"/{k}" for k in range(len(topic))])


class Told:
    """A contestant whose vectors and times are given."""

    window = 0

    def __init__(self, name: str, vectors: F32, seconds: list[float], setting: str = "") -> None:
        self.name, self.setting, self.vectors = name, setting, vectors
        self.rounds = len(seconds) > 1
        self._seconds = iter(seconds)
        self.watched: list[tuple[int, ...]] = []

    def learn(self, corpus: Corpus, watch: Watch) -> Cost:
        self.watched.append(watch.at)
        for percent in watch.at:
            watch.judge(percent, lambda urls: self.vectors[urls])
        seconds = next(self._seconds)
        return Cost(corpus.visits, seconds, 2 * seconds, urls=2, held_bytes=20, name_bytes=4)


def test_class_at_counts_the_nearest_that_are_of_the_same_class() -> None:
    # The nearest of 0° is 10°, of 10° 0°, of 50° 70°, of 70° 50°: three of four are of another class than its nearest.
    vectors = circle(0, 10, 50, 70)
    assert class_at(vectors, classes(0, 0, 1, 1), k=1) == 1.0
    assert class_at(vectors, classes(0, 1, 1, 0), k=1) == 0.0
    assert class_at(vectors, classes(0, 0, 1, 0), k=1) == 0.5
    # Two nearest: {10, 50}, {0, 50}, {70, 10}, {50, 10}.
    assert class_at(vectors, classes(0, 0, 1, 0), k=2) == pytest.approx((1 + 1 + 0 + 1) / 8)


def test_length_is_no_matter_and_a_url_is_not_its_own_neighbour() -> None:
    vectors = circle(0, 10, 50, 70) * np.array([[9], [0.1], [3], [1]], np.float32)
    assert class_at(vectors, classes(0, 0, 1, 1), k=1) == 1.0
    assert class_at(vectors, classes(0, 1, 2, 3), k=3) == 0.0


def test_fewer_urls_than_neighbours_are_all_asked_for() -> None:
    assert class_at(circle(0, 10, 50), classes(0, 0, 0)) == 1.0
    assert np.isnan(class_at(circle(0), classes(0)))


def test_a_url_that_the_model_does_not_know_scores_nothing_and_is_no_neighbour() -> None:
    vectors = circle(0, 10, 50, 70)
    vectors[1] = 0
    assert class_at(vectors, classes(0, 0, 1, 1), k=1) == 0.5  # of 50° and 70°; the nearest of 0° is now 50°
    vectors[:] = 0
    assert class_at(vectors, classes(0, 0, 0, 0), k=1) == 0.0
    opposite = circle(0, 180, 0)
    opposite[2] = 0
    assert class_at(opposite, classes(0, 1, 0), k=1) == 0.0, "180° is nearer to 0° than what has no place"
    assert class_at(opposite, classes(0, 0, 0), k=2) == pytest.approx(1 / 3), "two of six, for there are no more"


def test_a_sample_is_asked_for_neighbours_among_all() -> None:
    vectors = circle(0, 10, 50, 70)
    assert class_at(vectors, classes(0, 0, 1, 2), k=1, asked=np.array([0])) == 1.0
    assert class_at(vectors, classes(0, 0, 1, 2), k=1, asked=np.array([2, 3])) == 0.0


def test_many_rows_are_judged_in_blocks_as_if_at_once() -> None:
    random = np.random.default_rng(3)
    vectors, of = random.normal(size=(700, 8)).astype(np.float32), random.integers(0, 5, 700).astype(np.int32)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosine = unit @ unit.T - 9 * np.eye(700)
    near = np.argsort(-cosine, axis=1)[:, :10]
    assert class_at(vectors, of) == pytest.approx(float((of[near] == of[:, None]).mean()), abs=1e-3)


def test_popularity_gives_everybody_the_most_visited() -> None:
    # The two most visited are 2 and 0; 0 gets 2 and 3, 2 gets 0 and 3, the others 2 and 0.
    seen = np.array([8, 1, 9, 5, 2])
    assert popularity_at(seen, classes(0, 0, 1, 0, 1), k=2) == pytest.approx((1 + 1 + 0 + 1 + 1) / 10)


def test_drift_is_the_mean_cosine_of_a_row_with_itself() -> None:
    assert drift(circle(0, 90), circle(0, 90) * 5) == pytest.approx(1.0)
    assert drift(circle(0, 90), circle(60, 90)) == pytest.approx(0.75)
    gone = circle(60, 90)
    gone[0] = 0
    assert drift(circle(0, 90), gone) == pytest.approx(1.0), "what is unknown at one of the two times is left out"


def test_a_prefix_ends_with_a_session_and_holds_the_same_for_all() -> None:
    corpus = a_corpus([[0, 1, 2], [0, 1], [3, 0, 1, 2, 0]], [0, 0, 1, 1])
    assert [corpus.sessions_in(p) for p in (10, 30, 31, 50, 51, 100)] == [1, 1, 2, 2, 3, 3]
    assert [corpus.visits_in(p) for p in (10, 30, 31, 50, 51, 100)] == [3, 3, 5, 5, 10, 10]
    assert corpus.seen(50).tolist() == [2, 2, 1, 0]
    assert corpus.sentences[:2] == [["/0", "/1", "/2"], ["/0", "/1"]]


def test_judged_are_urls_with_a_class_seen_five_times_by_then() -> None:
    corpus = a_corpus([[0, 1, 0, 1, 0, 1, 0, 1, 0, 2], [1, 2, 3, 2, 3, 2, 3, 2, 3, 2]], [0, 0, -1, 1])
    assert judged(corpus, 50).tolist() == [0], "1 was seen four times"
    assert judged(corpus, 100).tolist() == [0, 1], "2 has no class, 3 was seen four times"


def test_drift_is_that_of_the_urls_judged_at_the_publish_before() -> None:
    corpus = a_corpus([[0, 1] * 5, *[[2, 3] * 5] * 19], [0, 0, 1, 1])
    watch = Watch(corpus, published=(5, 10, 25))
    watch.publish(5, lambda urls: circle(0, 0, 0, 0)[urls])
    watch.publish(7, lambda urls: circle(9, 9, 9, 9)[urls])
    watch.publish(10, lambda urls: circle(60, 60, 180, 180)[urls])
    watch.publish(25, lambda urls: circle(60, 60, 0, 0)[urls])
    assert watch.drift == {10: pytest.approx(0.5)}, "of 0 and 1, and none at 25 for nobody looked at 20"


def test_recent_visits_of_a_step_are_those_of_its_session_newest_first() -> None:
    corpus = a_corpus([[0, 1, 2], [3, 0]], [0, 0, 0, 0])
    ids = corpus.ids
    assert corpus.steps.url.tolist() == ids[[0, 1, 2, 3, 0]].tolist()
    assert [row[:2].tolist() for row in corpus.steps.recent] == [
        [0, 0], [ids[0], 0], [ids[1], ids[0]], [0, 0], [ids[3], 0],
    ]  # fmt: skip


def test_games_are_read_with_their_classes_and_without_repeats(tmp_path: Path) -> None:
    games = "session\tfinished\ttarget\tpages\n1\t1\tC\tA;A;B;A\n2\t0\tC\tA;C;C\n"
    categories = "article\tcategory\nA\tsubject.Science.Biology\nA\tsubject.Art.Film\nB\tsubject.Art\n"
    (tmp_path / "games.tsv.gz").write_bytes(gzip.compress(games.encode()))
    (tmp_path / "categories.tsv.gz").write_bytes(gzip.compress(categories.encode()))
    read = wikispeedia(tmp_path / "games.tsv.gz")
    assert read.sentences == [["A", "B", "A"], ["A", "C"]], "an A that opens a session follows no A of the one before"
    assert read.stream.topic.tolist() == [1, 0, -1], "Science, by its first category; Art; none"


def test_the_bundled_games_have_the_visits_that_their_description_says_and_no_repeats() -> None:
    games = corpus("wikispeedia", quick=False, seed=0)
    assert (games.visits, len(games.names), len(games.stream.ends)) == (357_379, 4_181, 76_176)
    starts = np.zeros(games.visits, np.bool_)
    starts[games.stream.ends[:-1]] = True
    assert not ((games.stream.url[1:] == games.stream.url[:-1]) & ~starts[1:]).any()


def test_url2vec_and_svd_find_the_topics_and_chance_does_not() -> None:
    known = corpus("short", quick=True, seed=1)
    found = {}
    for contestant in (Ours("ours", _small(), 512), Factors(2, 2, 0), Random(0)):
        watch = Watch(known, (50, 100), (95, 100))
        cost = contestant.learn(known, watch)
        found[contestant.name] = watch.class_at
        if cost.visits:
            assert cost.visits == known.visits
            assert cost.cpu_s > 0
            assert cost.urls == int((known.seen(100) > 0).sum())
    assert found["ours"][100] > 0.5
    assert found["offline PPMI + SVD"][100] > 0.5
    assert found["random"][100] < 0.2


def test_how_the_stream_is_looked_at_does_not_change_what_is_learned() -> None:
    known = corpus("tabs", quick=True, seed=1)
    last = []
    for at in ((50, 100), (50, 100)):
        seen: list[F32] = []
        watch = Watch(known, at)
        watch.judge = lambda percent, vectors, seen=seen: seen.append(vectors(np.arange(50)))  # type: ignore[misc, method-assign]
        Ours("ours", _small(), 512).learn(known, watch)
        last.append(seen[-1])
    assert np.array_equal(*last)


def test_arrays_are_counted_once_and_as_reserved() -> None:
    model = Ours("ours", _small(), 512).warm()
    held = allocated(model)
    model.again = model.counts.mass[:1]  # type: ignore[attr-defined]
    assert held > model.counts.mass.nbytes
    assert allocated(model) == held


def test_a_contestant_takes_the_setting_that_is_best_at_the_end_and_only_quick_ones_run_again() -> None:
    known = a_corpus([[k, k + 1] * 5 for k in range(0, 24, 2)], [0] * 12 + [1] * 12)
    good, bad = circle(*range(12), *range(100, 112)), circle(*range(0, 24, 2), *range(1, 25, 2))
    ours = Told("ours", good, [6.0, 24.0, 12.0])
    rival = [Told(RIVAL, bad, [9.0, 9.0, 9.0], "bad"), Told(RIVAL, good, [12.0, 24.0, 12.0], "good")]
    slow = [Told("slow", good, [30.0], "good"), Told("slow", bad, [6.0], "bad")]
    rows = measure(known, [ours], [rival, slow], rounds=3, seed=0, say=lambda line: None)
    assert [(row.name, row.setting, row.rounds) for row in rows] == [
        ("ours", "", 3), (RIVAL, "good", 3), ("slow", "good", 1),
    ]  # fmt: skip
    assert len(rival[0].watched) == 1
    assert rival[1].watched[1:] == [(), ()], "only the first round is looked at"
    assert slow[0].watched == [SELDOM]
    # 120 visits in 6, 24 and 12 seconds; gensim's in 12, 24 and 12: twice as fast, as fast, as fast.
    assert (rows[0].visits_per_cpu_second, rows[0].visits_per_second, rows[0].ratio_to_gensim) == (10, 5, 1.0)
    assert rows[2].ratio_to_gensim == 0.4, "of the first round, the only one that both have"
    assert (rows[0].bytes_per_url, rows[0].bytes_per_url_with_name) == (10, 12)


def test_without_gensim_there_is_no_ratio() -> None:
    known = a_corpus([[0, 1] * 5, [2, 3] * 5], [0, 0, 1, 1])
    (row,) = measure(known, [Told("ours", circle(0, 10, 50, 70), [1.0, 1.0])], [], 2, 0, lambda line: None)
    assert row.ratio_to_gensim is None
    assert table([row]).row_count == 1


def test_what_is_not_installed_is_left_out_and_the_line_that_installs_it_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gensim" else there(name))
    found, missing = opponents(0)
    assert not [one for settings in found for one in settings if one.name.startswith("gensim")]
    assert [sentence.endswith("pip install -e '.[bench]'") for sentence in missing] == [True]


def _small() -> ModelSettings:
    return ModelSettings(capacity=5000, device="cpu")
