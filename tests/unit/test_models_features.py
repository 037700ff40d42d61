"""Feature rows: the same place for the same name, bounded whatever comes, and only what the settings let in."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.feature_levels import shape, subsection
from models.feature_numbers import NUMBER_NAMES
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
from models.properties import Properties
from models.settings import ModelSettings
from models.url2vec import URL2Vec
from models.visits import ACTIONS, HABITS, VisitContext, url_identity
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


def value(made: np.void, name: str) -> float:
    return float(made["numbers"][NUMBER_NAMES.index(name)])


def changed(one: np.void, other: np.void) -> set[str]:
    return {FIXED[k] for k in np.flatnonzero(one["levels"] != other["levels"]) if k < len(FIXED)}


@pytest.mark.parametrize(
    ("url", "second", "of_path"),
    [
        ("https://shop.example/shoes/red/7?x=1&y=2#z", "shop.example/shoes/red", (3, 2, 42)),
        ("https://shop.example/shoes/", "", (1, 0, 27)),
        ("/shoes/red", "/shoes/red", (2, 0, 10)),
        ("", "", (0, 0, 0)),
    ],
)
def test_a_url_has_a_second_section_and_a_shape(url: str, second: str, of_path: tuple[int, int, int]) -> None:
    assert subsection(url) == second
    assert shape(url) == of_path


def test_each_fact_moves_its_own_levels_and_no_other() -> None:
    a, b = "https://shop.example/shoes/red", "https://shop.example/shoes/blue"
    base = row(visit(a, b))
    assert changed(base, row(visit(a, "https://shop.example/"))) == {"entry", "previous", "step"}
    assert changed(base, row(visit(b, b))) == {"url", "subsection", "step"}
    assert changed(base, row(visit(a, b, event_name="cart"))) == {"event_name"}
    assert changed(base, row(visit(a, b, referrer="https://search.example/?q=1"))) == {"referrer_host"}
    assert changed(base, row(visit(a, b, position=9))) == {"position"}
    assert changed(base, row(visit(a, b, since_previous_ms=60_000))) == {"pause"}
    assert changed(base, row(visit(a, b, timestamp_ms=1_700_000_000_000 + 3_600_000))) == {"hour"}
    firefox = row(visit(a, b, user_agent="Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"))
    assert changed(base, firefox) == {"user_agent", "user_agent_family", "device"}


def test_the_browser_s_version_leaves_its_family() -> None:
    old, new = (
        row(visit("a", user_agent=f"Mozilla/5.0 (X11; Linux x86_64; rv:{v}.0) Gecko/20100101 Firefox/{v}.0"))
        for v in (127, 128)
    )
    assert changed(old, new) == {"user_agent"}


def test_to_leave_out_a_category_is_to_leave_out_what_is_made_from_it() -> None:
    told = visit("https://a/x", "https://a/y", user_agent="Googlebot/2.1")
    for name, gone in (
        ("user_agent", {"user_agent", "user_agent_family", "device"}),
        ("previous", {"previous", "step"}),
        ("device", {"device"}),
        ("hour", {"hour"}),
    ):
        assert changed(row(told), row(told, ModelSettings(dims=4, exclude=frozenset({name})))) == gone


def test_levels_of_properties_and_of_the_rest_never_meet() -> None:
    told = visit("https://a/x", "https://a/y", properties={f"p{k}": str(k) for k in range(9)}, user_agent="Firefox/1.0")
    levels = row(told)["levels"]
    step = FIXED.index("step")
    assert all(x % 2 == 0 for k, x in enumerate(levels[: len(FIXED)]) if k != step)
    assert all(x % 2 for x in levels[len(FIXED) :] if x)
    assert row(visit("https://a/x", properties={"url": "https://a/x"}))["levels"][0] not in levels[len(FIXED) :]


def test_habits_and_actions_become_logarithms_in_their_places() -> None:
    usual = tuple(float(k) for k in range(HABITS))
    made = row(visit("a", habits=usual, actions=tuple(range(ACTIONS))))
    assert value(made, "visits in 7 days (log)") == 0
    assert value(made, "sessions in 365 days (log)") == pytest.approx(math.log1p(5))
    assert value(made, "seconds since first visit (log)") == pytest.approx(math.log1p(6))
    assert value(made, "seconds between last session and this (log)") == pytest.approx(math.log1p(7))
    assert value(made, "events of kind 1 in 91 days (log)") == pytest.approx(math.log1p(8))
    assert value(made, "events of kind 15 in 91 days (log)") == pytest.approx(math.log1p(22))
    assert value(made, "events of kind 15 in this session (log)") == pytest.approx(math.log1p(14))
    assert len(NUMBER_NAMES) == NUMBERS_FIXED


def test_habits_of_another_length_or_without_sense_are_no_habits() -> None:
    plain = row(visit("a"))
    assert row(visit("a", habits=(1.0, 2.0), actions=(3,))) == plain
    wild = row(visit("a", habits=(math.nan, math.inf, -math.inf, -5.0) * 5 + (math.nan,) * 3))
    assert np.isfinite(wild["numbers"]).all()


@given(
    st.lists(
        st.builds(
            visit,
            st.text(max_size=20),
            event_name=st.text(max_size=5),
            referrer=st.none() | st.text(max_size=20),
            user_agent=st.none() | st.text(max_size=20) | st.just("\ud800" * 600),
            position=st.integers(1, 2**40),
            timestamp_ms=st.integers(-(2**60), 2**60),
            since_previous_ms=st.integers(-1, 2**60),
            since_start_ms=st.integers(0, 2**60),
            properties=st.dictionaries(
                st.text(max_size=3), st.text(max_size=9) | st.integers() | st.floats() | st.booleans(), max_size=40
            ),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_a_row_is_the_same_bytes_alone_in_a_batch_and_from_another_memory(visits: list[VisitContext]) -> None:
    features = Features(ModelSettings(dims=4), 1)
    together = features.rows(visits, Steps.of(visits), MODEL)
    again = features.rows(visits[::-1], Steps.of(visits[::-1]), MODEL)[::-1]
    assert together.tobytes() == again.tobytes()
    assert together.tobytes() == b"".join(row(v).tobytes() for v in visits)
    assert np.isfinite(together["numbers"]).all()
    assert (together["levels"] >= 0).all()


def test_names_say_what_stands_where() -> None:
    told = visit(
        "https://shop.example/shoes/red",
        "https://shop.example/",
        user_agent="Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
        properties={"target": "https://shop.example/x", "price": 19.5, "sold": True},
    )
    features = Features(ModelSettings(dims=4, exclude=frozenset({"hour"})), 1)
    made = features.rows([told], Steps.of([told]), MODEL)[0]
    levels, numbers = features.names(told)
    assert (len(levels), len(numbers)) == (CATEGORIES, len(made["numbers"]))
    assert [bool(name) for name in levels] == [bool(x) for x in made["levels"]]
    assert levels[0] == "url = https://shop.example/shoes/red"
    assert "user agent family = Firefox" in levels
    assert "properties.target = https://shop.example/x" in levels
    assert "properties.sold = True" in levels
    assert "pause = 0.414 to 1 s" in levels or "pause = 1 to 1.83 s" in levels
    assert numbers[0] == "position (log)"
    at = numbers.index("properties.price (log)")
    assert made["numbers"][at] == pytest.approx(math.log1p(19.5))
    urls = {url_identity("https://shop.example/"): "https://shop.example/"}
    known, _ = features.names(told, lambda url_id: urls.get(url_id, ""))
    assert "previous = https://shop.example/" in known
    assert "step = https://shop.example/ → https://shop.example/shoes/red" in known


@given(st.lists(st.one_of(st.integers(), st.floats(), st.just(10**400), st.just(-(10**400))), min_size=1, max_size=8))
def test_sizes_in_a_batch_are_those_of_one(values: list[float]) -> None:
    made = Properties(ModelSettings(dims=4, numeric=("properties.n",)), 2, 2)
    numbers, targets = np.zeros((len(values), 2), np.float32), np.zeros((len(values), 2), np.uint64)
    made.fill([{"n": value} for value in values], np.zeros((len(values), 2), np.int32), numbers, targets)
    expected = np.array([signed_log(value) or 1e-6 for value in values], np.float32)
    assert numbers.sum(axis=1).tolist() == expected.tolist()
