"""Surprise orders visits as people would, and its calibration follows the stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from models.lesson import Steps
from models.next_url import NextUrls
from models.novelty import EVERY, FILE, MEMORY, STEP, UNKNOWN, YOUNG, Novelty, Surprise
from models.settings import ModelSettings
from models.url2vec import URL2Vec
from models.visits import url_identity

SHOP = [
    ["/", "/shoes", "/shoes/red", "/cart"],
    ["/", "/shoes", "/shoes/blue", "/cart"],
    ["/", "/hats", "/hats/red"],
    ["/", "/hats", "/hats/blue"],
]


class Site:
    """URLs, what follows them, and novelty, taught together as the learner does."""

    def __init__(self, settings: ModelSettings | None = None) -> None:
        settings = settings or ModelSettings(dims=16)
        self.urls, self.following, self.novelty = URL2Vec(settings), NextUrls(settings.dims), Novelty()

    def surprise(self, steps: Steps, names: Mapping[int, str]) -> Surprise:
        found, recent = self.urls.vocabulary.find(steps.url), self.urls.vocabulary.find(steps.recent)
        _, foreseen = self.following.rank(found, recent, (steps.recent[:, 0] != 0) & ~steps.repeat, self.urls)
        return self.novelty.surprise(steps, found, recent, foreseen, self.urls, names)

    def learn(self, steps: Steps, names: Mapping[int, str]) -> dict[int, str]:
        surprise = self.surprise(steps, names)
        found, recent = self.urls.vocabulary.find(steps.url), self.urls.vocabulary.find(steps.recent)
        self.following.learn(found, recent, steps.repeat, self.urls)
        news = self.urls.learn(steps, names)
        self.following.notice(self.urls.vocabulary.find(steps.url), self.urls)
        self.novelty.learn(steps, surprise, self.novelty.sample(steps), news)
        return news


def visits(*sessions: Sequence[str], repeat: Sequence[bool] = ()) -> tuple[Steps, dict[int, str]]:
    """All visits of sessions, as one batch."""
    ids = [[url_identity(url) for url in session] for session in sessions]
    pairs = [(session[k], tuple(session[:k][::-1])) for session in ids for k in range(len(session))]
    names = {url_identity(url): url for session in sessions for url in session}
    return Steps.from_lists([url for url, _ in pairs], [recent for _, recent in pairs], repeat), names


def last(site: Site, *urls: str) -> float:
    """Bits of the last visit of a session."""
    return float(site.surprise(*visits(urls)).bits[-1])


@pytest.fixture(scope="module")
def shop() -> Site:
    site = Site()
    for _ in range(60):
        site.learn(*visits(*SHOP))
    return site


def taught(novelty: Novelty, bits: np.ndarray) -> None:
    """As if steps of these bits had been visited."""
    nobody = Steps.from_lists([1] * len(bits), [()] * len(bits))
    kind, cell = np.full(len(bits), STEP, np.int8), np.full(len(bits), -1, np.int16)
    surprise = Surprise(bits.astype(np.float32), kind, cell)
    novelty.learn(nobody, surprise, novelty.sample(nobody), {})


def blob(novelty: Novelty) -> bytes:
    return b"".join(array.tobytes() for _, array in sorted(novelty.state().items()))


def away_from_uniform(novelty: Novelty, bits: np.ndarray) -> float:
    """The largest gap between the shares that visits got and the shares that they should have (Kolmogorov-Smirnov)."""
    share = np.sort(novelty.calibrated(bits.astype(np.float32)))
    return float(np.abs(share - np.arange(1, 1 + len(share)) / len(share)).max())


def test_the_usual_step_is_less_strange_than_one_nobody_takes_and_that_less_than_a_url_nobody_knows(shop: Site) -> None:
    usual, unusual = last(shop, "/", "/shoes"), last(shop, "/hats", "/hats/red", "/cart")
    assert 0 < usual < unusual - 4
    assert unusual < last(shop, "/", "/.git/config")


def test_a_repeat_is_not_strange(shop: Site) -> None:
    steps, names = visits(["/shoes"], repeat=[True])
    surprise = shop.surprise(steps, names)
    assert surprise.bits[0] == 0
    assert shop.novelty.calibrated(surprise.bits)[0] == 0


def test_a_first_visit_of_a_seldom_url_is_stranger_than_of_a_usual_one(shop: Site) -> None:
    assert last(shop, "/") < last(shop, "/hats/blue") - 1


def test_an_unknown_url_is_less_strange_where_such_urls_come_often() -> None:
    site = Site()
    for k in range(60):
        site.learn(*visits(*SHOP, ["/", f"/news/{'abcdefghij'[k % 10]}{k}x"]))
    usual, odd = last(site, "/", "/news/never"), last(site, "/", "/wp/admin/login")
    assert usual < odd - 3


def test_a_new_file_is_stranger_than_a_seldom_one_and_that_stranger_than_a_style_sheet() -> None:
    site = Site()
    for k in range(40):
        files = ["/style.css", "/logo.png", *(["/seldom.png"] if k % 10 == 0 else [])]
        site.learn(*visits(*[[file] for file in files], repeat=[True] * len(files)))
    steps, names = visits(["/style.css"], ["/seldom.png"], ["/never.png"], repeat=[True] * 3)
    surprise = site.surprise(steps, names)
    assert (surprise.kind == FILE).all()
    assert surprise.bits[0] < surprise.bits[1] < surprise.bits[2]


def test_a_step_between_pages_that_have_nothing_to_do_with_each_other_is_stranger() -> None:
    """Of two steps that were foreseen alike: nobody takes either, but the pages of one are visited together."""
    site = Site()
    for _ in range(60):
        site.learn(
            *visits(["/a", "/a/1", "/a/2"], ["/a", "/a/2", "/a/1"], ["/b", "/b/1", "/b/2"], ["/b", "/b/2", "/b/1"])
        )
    steps, names = visits(["/a/1", "/a"], ["/a/1", "/b"])
    found, recent = site.urls.vocabulary.find(steps.url), site.urls.vocabulary.find(steps.recent)
    alike = np.full(len(found), 0.01, np.float32)
    bits = site.novelty.surprise(steps, found, recent, alike, site.urls, names).bits
    assert bits[1] < bits[3] - 2


def test_a_new_file_is_less_strange_where_most_files_are_new() -> None:
    same, changing = Site(), Site()
    for k in range(300):
        same.learn(*visits(["/style.css"], repeat=[True]))
        changing.learn(*visits(["/style.css" if k % 2 else f"/{k}.png"], repeat=[True]))
    never, names = visits(["/never.png"], repeat=[True])
    assert changing.surprise(never, names).bits[0] < same.surprise(never, names).bits[0] - 3


def test_shares_are_uniform_on_a_stationary_stream() -> None:
    draw, novelty = np.random.default_rng(5), Novelty()
    for _ in range(60):
        taught(novelty, draw.gamma(4, 3, 1000))
    assert away_from_uniform(novelty, draw.gamma(4, 3, 20_000)) < 0.02


def test_shares_follow_a_stream_that_changes() -> None:
    draw, novelty = np.random.default_rng(6), Novelty()
    for _ in range(60):
        taught(novelty, draw.gamma(4, 3, 1000))
    later = draw.gamma(4, 4.5, 20_000)
    assert away_from_uniform(novelty, later) > 0.2
    for _ in range(int(4 * MEMORY / 1000)):
        taught(novelty, draw.gamma(4, 4.5, 1000))
    assert away_from_uniform(novelty, later) < 0.03


def test_shares_grow_with_surprise_and_stay_between_0_and_1(shop: Site) -> None:
    share = shop.novelty.calibrated(np.linspace(0, 300, 4000, dtype=np.float32))
    assert share[0] == 0
    assert share[-1] == 1
    assert (np.diff(share) >= 0).all()


def test_judging_changes_nothing(shop: Site) -> None:
    before = blob(shop.novelty)
    surprise = shop.surprise(*visits(["/", "/shoes", "/.env"], ["/hats"]))
    shop.novelty.calibrated(surprise.bits)
    shop.novelty.sample(visits(["/"])[0])
    assert blob(shop.novelty) == before


def test_a_visit_is_as_strange_alone_as_among_others(shop: Site) -> None:
    steps, names = visits(["/", "/shoes", "/.env"], ["/hats", "/x/y?z=1"])
    together = shop.surprise(steps, names).bits
    for k in range(len(steps.url)):
        alone = Steps(steps.url[k : k + 1], steps.recent[k : k + 1], steps.repeat[k : k + 1])
        assert shop.surprise(alone, names).bits[0] == together[k]


def test_a_restored_one_goes_on_as_if_never_stopped() -> None:
    one = Site()
    other = Novelty()
    for k in range(30):
        batch, names = visits(*SHOP, ["/", f"/news/{k}"], ["/style.css"], repeat=[False] * 16 + [True])
        if k == 17:
            other.load(one.novelty.state())
        surprise = one.surprise(batch, names)
        if k >= 17:
            other.learn(batch, surprise, other.sample(batch), names)
            assert blob(other) != blob(one.novelty)
        one.novelty.learn(batch, surprise, one.novelty.sample(batch), names)
        one.urls.learn(batch, names)
    assert blob(other) == blob(one.novelty)


def test_a_replica_that_is_told_only_the_news_learns_the_same() -> None:
    """Once the vocabulary is half full, a URL's first visit gets no row, and its name does not travel."""
    settings = ModelSettings(dims=16, capacity=16, admit_after=2)
    one, replica = Site(settings), Site(settings)
    unnamed = 0
    for k in range(40):
        batch, names = visits(*SHOP, ["/", f"/once/{k}"], ["/", f"/twice/{k // 2}"])
        news = one.learn(batch, names)
        unnamed += len({*batch.url.tolist()} - {*news})
        replica.learn(batch, news)
        assert blob(one.novelty) == blob(replica.novelty)
    assert unnamed > 40


def test_all_pages_are_learned_from_while_there_are_few_and_later_one_in_four_wherever_batches_end() -> None:
    pages = Steps.from_lists([1] * 2000, [()] * 2000)
    wholes, halves = Novelty(), Novelty()
    draw, taken = np.random.default_rng(7), []
    for _ in range(12):
        bits = draw.gamma(4, 3, 2000)
        taken.append(wholes.sample(pages))
        taught(wholes, bits)
        taught(halves, bits[:777])
        taught(halves, bits[777:])
    every = np.concatenate(taken)
    assert every[:YOUNG].all()
    assert every[YOUNG:].mean() == 1 / EVERY
    assert blob(wholes) == blob(halves)


def test_weights_that_grow_without_end_do_not_overflow() -> None:
    novelty, draw = Novelty(), np.random.default_rng(8)
    for _ in range(1000):
        taught(novelty, draw.gamma(4, 3, 1000))
    state = novelty.state()
    assert float(state["weight"][0]) < 2.0**21
    assert all(np.isfinite(array).all() for array in state.values())
    # No more than the visits that it remembers, whatever came before.
    assert float(state["histogram"].sum() / state["weight"][0]) == pytest.approx(MEMORY, rel=0.01)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("histogram", np.zeros(3)),
        ("histogram", np.full(256, np.nan)),
        ("moments", np.zeros(6)),
        ("held", np.array([1 << 20], np.int32)),
        ("pages", np.array([-1], np.int64)),
        ("weight", np.array([0.0])),
    ],
)
def test_a_state_that_does_not_fit_is_refused(name: str, value: np.ndarray) -> None:
    novelty = Novelty()
    with pytest.raises((ValueError, IndexError)):
        novelty.load(novelty.state() | {name: value})


def test_an_unknown_url_without_a_name_is_judged_by_being_unknown_alone(shop: Site) -> None:
    steps, _ = visits(["/", "/never"])
    surprise = shop.surprise(steps, {})
    assert surprise.kind.tolist()[1] == UNKNOWN
    assert surprise.cell.tolist() == [-1, -1]
    assert surprise.bits[1] > last(shop, "/", "/shoes")
