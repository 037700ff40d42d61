"""An unseen URL stands with those that share most of its address."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.composition import prefixes, relatives
from models.learner import Learner
from models.lesson import Lesson
from models.settings import ModelSettings
from models.visits import VisitContext, url_identity

SHOP = "https://shop.example"


def test_prefixes_drop_the_query_then_segment_by_segment() -> None:
    assert list(prefixes(f"{SHOP}/shoes/red/42?size=9#top")) == [
        f"{SHOP}/shoes/red/42",
        f"{SHOP}/shoes/red/",
        f"{SHOP}/shoes/",
        f"{SHOP}/",
    ]


def test_the_longest_prefix_with_anything_under_it_wins() -> None:
    names = [f"{SHOP}/", f"{SHOP}/shoes/blue", f"{SHOP}/shoes/red/41", "", "https://other.example/shoes/red/42"]
    assert relatives(f"{SHOP}/shoes/red/42", names) == (f"{SHOP}/shoes/red/", [2])
    assert relatives(f"{SHOP}/hats/1", names) == (f"{SHOP}/", [0, 1, 2])
    assert relatives("https://nowhere.example/x", names) == ("", [])


@given(st.text())
def test_whatever_is_asked_nothing_is_raised(url: str) -> None:
    relatives(url, [SHOP])


def context(url: str, *recent: str) -> VisitContext:
    return VisitContext(
        url=url, url_id=url_identity(url), recent=tuple(map(url_identity, recent)), entry=0, position=1 + len(recent),
        timestamp_ms=0, since_previous_ms=0, since_start_ms=0, visits_before=0, sessions_before=0, event_name="page_view",
        referrer=None, user_agent=None, title=None, properties={}, repeat=False,
    )  # fmt: skip


def test_an_unseen_page_is_near_to_the_pages_beside_it() -> None:
    learner = Learner(ModelSettings(dims=8, capacity=64), [])
    random = np.random.default_rng(0)
    for _ in range(300):
        section = random.choice(["shoes", "books"])
        pages = [f"{SHOP}/{section}/{n}" for n in random.permutation(6)[:4]]
        learner.learn(Lesson.of([context(page, *pages[:k][::-1]) for k, page in enumerate(pages)], [], 0))
    prefix, near = learner.nearest_composed(f"{SHOP}/books/new", 4)
    assert prefix == f"{SHOP}/books/"
    assert [url.split("/")[3] for url, _ in near] == ["books"] * 4
    assert near[0][1] == pytest.approx(1, abs=0.5)
    assert learner.nearest_composed("no address", 4) == ("", [])
