"""An unseen URL stands with those that share its parts, and says how far to trust that."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.composition import F32, I16, PARTS, Composer, named_parts, parts, table

SHOP = "https://shop.example"
DIMS = 16


def stored(vectors: F32) -> I16:
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.rint(unit * 32767).astype(np.int16)


def around(direction: F32, n: int, spread: float, seed: int = 0) -> I16:
    """n unit vectors around a direction."""
    random = np.random.default_rng(seed)
    return stored(direction + spread * random.standard_normal((n, DIMS)).astype(np.float32))


def axis(k: int) -> F32:
    return np.eye(DIMS, dtype=np.float32)[k]


def known(urls: list[str], vectors: I16, bits: int = 8) -> Composer:
    composer = Composer(DIMS, bits)
    composer.replace(composer.enter(table([parts(url) for url in urls])), np.zeros_like(vectors), vectors)
    return composer


def one(composer: Composer, url: str, title: str | None = None) -> tuple[F32, float]:
    vectors, trust = composer.compose(table([parts(url, title)]))
    return vectors[0], float(trust[0])


def test_parts_go_from_the_general_to_the_special() -> None:
    assert named_parts(f"{SHOP}/shoes/red-boots_42?size=9&sale", "Warm Boots") == [
        "host shop.example",
        "path shop.example/shoes",
        "path shop.example/shoes/red-boots_42",
        "query key size",
        "query key sale",
        "query size=9",
        "word red",
        "word boots",
        "word warm",
        "word shoes",
    ]


@pytest.mark.parametrize(
    ("url", "found"),
    [
        (f"{SHOP}/", ["host shop.example"]),
        ("/a/b", ["path /a", "path /a/b"]),
        ("Bee", ["path /Bee", "word bee"]),
        (f"{SHOP}/#/basket", ["host shop.example", "path shop.example/#", "path shop.example/#/basket", "word basket"]),
        ("/1/2/3/4/5/6/7", ["path /1", "path /1/2", "path /1/2/3/4/5", "path /1/2/3/4/5/6", "path /1/2/3/4/5/6/7"]),
        ("https://h/?q=red+hats", ["host h", "query key q", "query q=red+hats", "word red", "word hats"]),
        ("", []),
    ],
)  # fmt: skip
def test_the_parts_of(url: str, found: list[str]) -> None:
    assert named_parts(url) == found


def test_a_word_is_one_wherever_it_stands() -> None:
    assert set(parts("/x/caf%C3%A9")) & set(parts("/y/z", title="CAFÉ, nice"))


@given(st.text(), st.none() | st.text())
def test_whatever_is_asked_parts_are_few_whole_and_never_zero(url: str, title: str | None) -> None:
    found = parts(url, title)
    assert len(found) == len(named_parts(url, title))
    assert len(found) == len(set(found)) <= PARTS
    assert all(0 < part < 2**64 for part in found)


@pytest.mark.parametrize("huge", ["/a" * 500_000, "https://" + "h" * 1_000_000, "?" + "a=b&" * 250_000, "ä " * 500_000])
def test_a_megabyte_is_looked_at_from_its_front(huge: str) -> None:
    assert len(parts(huge, huge)) <= PARTS


def test_an_unseen_page_points_where_the_pages_beside_it_point() -> None:
    urls = [f"{SHOP}/{section}/{n}" for section in ("shoes", "books") for n in range(20)]
    composer = known(urls, np.concatenate([around(axis(0), 20, 0.1), around(axis(1), 20, 0.1, seed=1)]))
    vector, trust = one(composer, f"{SHOP}/books/new")
    assert vector @ axis(1) > 0.95
    assert trust > 0.85
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
    used = composer.used(table([parts(f"{SHOP}/books/new")]))[0]
    assert named_parts(f"{SHOP}/books/new")[used[0]] in {"path shop.example/books", "word books"}


def test_parts_whose_urls_agree_outweigh_parts_whose_urls_do_not() -> None:
    urls = [f"{SHOP}/all/brand-{n}" for n in range(30)]
    scattered = stored(np.random.default_rng(0).standard_normal((30, DIMS)).astype(np.float32))
    urls += [f"{SHOP}/old/acme-{n}" for n in range(6)]
    composer = known(urls, np.concatenate([scattered, around(axis(3), 6, 0.05)]))
    vector, trust = one(composer, f"{SHOP}/all/acme")
    assert vector @ axis(3) > 0.95
    assert one(composer, f"{SHOP}/all/other")[1] < 0.4 < trust


def test_of_a_url_that_shares_nothing_nothing_is_said() -> None:
    composer = known([f"{SHOP}/a"], around(axis(0), 1, 0))
    vector, trust = one(composer, "https://other.example/b")
    assert not vector.any()
    assert trust == 0.0
    assert composer.used(table([parts("https://other.example/b")])) == [[]]


def test_the_trust_is_the_cosine_to_expect() -> None:
    random = np.random.default_rng(0)
    urls, vectors = [], []
    for section in range(60):
        spread = random.uniform(0.05, 0.6)
        urls += [f"{SHOP}/s{section}/p{section * 8 + n}" for n in range(8)]
        centre = random.standard_normal(DIMS).astype(np.float32)
        vectors.append(around(centre / np.linalg.norm(centre), 8, spread, seed=section))
    stood = np.concatenate(vectors)
    composer = known(urls, stood, bits=12)
    composed, trust = composer.compose(table([parts(url) for url in urls]), own=stood)
    cosine = (composed * stood).sum(axis=1) / 32767
    for low, high in ((0.2, 0.5), (0.5, 0.75), (0.75, 1.0)):
        among = (trust >= low) & (trust < high)
        assert among.sum() > 30
        assert cosine[among].mean() == pytest.approx(trust[among].mean(), abs=0.1)


def test_leaving_a_url_out_is_as_if_it_were_not_there() -> None:
    urls = [f"{SHOP}/a/{name}" for name in ("red", "blue", "green")]
    vectors = around(axis(2), 3, 0.4)
    both, only = known(urls, vectors), known(urls[1:], vectors[1:])
    asked = table([parts(urls[0])])
    left_out, _ = both.compose(asked, own=vectors[:1])
    assert left_out[0] @ only.compose(asked)[0][0] == pytest.approx(1, abs=1e-5)
    assert not np.array_equal(left_out, both.compose(asked)[0])


@settings(derandomize=True, max_examples=60, deadline=None)
@given(st.data())
def test_rows_that_moved_and_left_take_away_what_they_brought(data: st.DataObject) -> None:
    urls = [f"{SHOP}/{a}/{b}" for a in "xyz" for b in ("red", "blue")]
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    composer = Composer(DIMS, 8)
    empty = {name: array.copy() for name, array in composer.state().items()}
    every = table([parts(url) for url in urls])
    slots, stood = composer.enter(every), np.zeros((len(urls), DIMS), np.int16)
    for row in data.draw(st.lists(st.integers(0, len(urls) - 1), max_size=20)):
        moved = around(axis(row), 1, 0.5, seed=int(random.integers(1000)))
        composer.replace(slots[row : row + 1], stood[row : row + 1], moved)
        stood[row] = moved[0]
    for row in data.draw(st.permutations(range(len(urls)))):
        composer.replace(slots[row : row + 1], stood[row : row + 1], np.zeros((1, DIMS), np.int16))
        composer.leave(slots[row : row + 1])
    for name, array in composer.state().items():
        np.testing.assert_array_equal(array, empty[name])
    assert not composer._sums.any()


def test_where_there_is_no_room_a_part_is_refused_and_room_comes_back() -> None:
    composer = Composer(DIMS, 3)
    first = composer.enter(table([parts(f"https://h{n}.example/") for n in range(8)]))
    assert composer.refused == 0
    late = table([parts("https://late.example/")])
    assert (composer.enter(late) == -1).all()
    assert composer.refused == 1
    composer.leave(first[:1])
    assert (composer.enter(late) >= 0).sum() == 1


def test_a_restored_table_goes_on_bit_by_bit() -> None:
    urls = [f"{SHOP}/{n % 3}/{n}-shirt" for n in range(12)]
    vectors = around(axis(0), 12, 0.5)
    composer, other = known(urls, vectors), Composer(DIMS, 8)
    other.load(composer.state())
    for each in (composer, other):
        slots = each.enter(table([parts(f"{SHOP}/9/new-shirt")]))
        each.replace(slots, np.zeros((1, DIMS), np.int16), vectors[:1])
    asked = table([parts(f"{SHOP}/9/shirt"), parts(f"{SHOP}/2/x")])
    for mine, theirs in zip(composer.compose(asked), other.compose(asked), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_a_foreign_state_is_refused() -> None:
    state = known([f"{SHOP}/a/b"], around(axis(0), 1, 0), bits=8).state()
    with pytest.raises(ValueError, match="beyond the table"):
        Composer(DIMS, 3).load(state | {"slot": state["slot"] + 8})
    with pytest.raises(ValueError, match="3 bits"):
        Composer(DIMS, 2)


def test_composing_changes_nothing() -> None:
    composer = known([f"{SHOP}/a/b"], around(axis(0), 1, 0))
    before = composer.state()
    composer.compose(table([parts(f"{SHOP}/a/c")]))
    for name, array in composer.state().items():
        np.testing.assert_array_equal(array, before[name])
