"""Feature rows: the same place for the same name, bounded whatever comes, and only what the settings let in."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.features import (
    CATEGORIES,
    FIXED,
    NUMBERS_FIXED,
    Features,
    layout,
    level,
    parse,
    signed_log,
    url_parts,
)
from models.lesson import Steps
from models.settings import ModelSettings
from models.url2vec import URL2Vec
from models.visits import VisitContext
from tests.unit.test_models_lesson import visit

MODEL = URL2Vec(ModelSettings(dims=4))


def row(asked: VisitContext, settings: ModelSettings | None = None) -> np.void:
    features = Features(settings or ModelSettings(dims=4), 1)
    made: np.void = features.rows([asked], Steps.of([asked]), MODEL)[0]
    return made


def properties(**values: str | int | float | bool) -> np.void:
    return row(visit("https://shop.example/a", properties=values))


@pytest.mark.parametrize(
    ("url", "host", "section"),
    [
        ("https://Shop.example/shoes/red?x=1#y", "shop.example", "shop.example/shoes"),
        ("https://shop.example", "shop.example", ""),
        ("/shoes/red", "", "/shoes"),
        ("https://shop.example?next=https://a/b", "shop.example", ""),
        ("", "", ""),
        ("Some article", "some article", ""),
    ],
)
def test_a_url_has_a_host_and_a_section(url: str, host: str, section: str) -> None:
    assert url_parts(url) == (host, section)


@given(st.one_of(st.integers(), st.floats()))
def test_a_number_of_any_size_becomes_a_finite_one_of_the_same_sign(value: float) -> None:
    small = signed_log(value)
    assert math.isfinite(small)
    assert abs(small) <= 710
    assert small * (value if value == value else 1) >= 0


def test_the_value_of_a_property_changes_one_level_only() -> None:
    red, blue = properties(colour="red", size="L"), properties(colour="blue", size="L")
    assert (red["levels"] != blue["levels"]).sum() == 1
    assert np.array_equal(red["numbers"], blue["numbers"])


def test_a_property_keeps_its_place_whatever_order_it_comes_in() -> None:
    assert properties(a="1", b="2", c=3.5) == properties(c=3.5, b="2", a="1")


def test_strings_and_flags_are_categories_numbers_are_numbers_and_small_integers_both() -> None:
    def used(made: np.void) -> tuple[int, int]:
        return int((made["levels"][len(FIXED) :] != 0).sum()), int((made["numbers"][NUMBERS_FIXED:] != 0).sum())

    assert used(properties(x="text")) == (1, 0)
    assert used(properties(x=False)) == (1, 0)
    assert used(properties(x=2.5)) == (0, 1)
    assert used(properties(x=0)) == (1, 1)
    assert used(properties(x=10**9)) == (0, 1)


def test_the_same_value_of_another_property_is_another_level() -> None:
    assert level("colour", "red") != level("mood", "red")


def test_too_many_properties_leave_the_same_ones_out() -> None:
    many = {f"p{k}": "v" for k in range(100)}
    shuffled = dict(sorted(many.items(), reverse=True))
    assert properties(**many) == properties(**shuffled)
    assert (properties(**many)["levels"][len(FIXED) :] != 0).all()
    chosen = ModelSettings(dims=4, categorical=("properties.p99",))
    with_chosen = row(visit("a", properties=many), chosen)
    assert level("p99", "v") in with_chosen["levels"]
    assert level("p99", "v") not in row(visit("a", properties=many))["levels"]


def test_what_is_excluded_leaves_no_trace() -> None:
    without = ModelSettings(dims=4, exclude=frozenset({"properties.secret", "user_agent"}))
    told = visit("a", properties={"secret": "x", "n": 1.5}, user_agent="browser")
    assert row(told, without) == row(visit("a", properties={"n": 1.5}), without)
    assert row(told) != row(visit("a", properties={"n": 1.5}))


def test_settings_decide_whether_an_integer_is_a_category_or_a_number() -> None:
    told = visit("a", properties={"id": 77})
    as_number = row(told, ModelSettings(dims=4, numeric=("properties.id",)))
    as_category = row(told, ModelSettings(dims=4, categorical=("properties.id",)))
    assert not as_number["levels"][len(FIXED) :].any()
    assert not as_category["numbers"][NUMBERS_FIXED:].any()
    assert level("id", "77") in as_category["levels"]


def test_rows_are_read_back_and_those_of_another_layout_are_told_apart() -> None:
    made = properties(a="1")
    rows, fits = parse([made.tobytes(), b"", made.tobytes()[:-1], b"\0" * layout(1).itemsize, made.tobytes()], 1)
    assert fits.tolist() == [True, False, False, False, True]
    assert rows[1] == made
    assert rows["levels"].shape == (2, CATEGORIES)
