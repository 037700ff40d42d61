"""Many spellings of one page are one word; two pages are two; and nothing that anybody sends can raise or grow."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from streams.urls import TRACKING, Canonicaliser, UrlRules, canonical

SHOP = "https://shop.example"


def by(**said: object) -> Canonicaliser:
    return Canonicaliser(UrlRules(**said))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "spelling",
    [
        f"{SHOP}/a/b?x=1",
        "http://shop.example/a/b?x=1",
        "HTTPS://Shop.Example:443/a/b?x=1",
        "http://shop.example:80/a/b?x=1",
        f"{SHOP}:/a/b?x=1",
        "https://shop.example./a/b?x=1",
        "https://anna:secret@shop.example/a/b?x=1",
        f"{SHOP}/a/b/?x=1",
        f"{SHOP}/a/./c/../b?x=1",
        f"{SHOP}/../a/b?x=1",
        f"{SHOP}/%61/%62?x=1",
        f"{SHOP}/a/b?x=1#total",
        f"{SHOP}/a/b?x=1#",
        f"{SHOP}/a/b?&x=1&",
        f"{SHOP}/a/b?utm_source=mail&x=1&GCLID=7&_ga=2.1",
        f"{SHOP}/a/b;jsessionid=4F?x=1&PHPSESSID=9",
        f" \t{SHOP}/a/b?x=1 \n",
    ],
)
def test_spellings_of_one_page_are_one(spelling: str) -> None:
    assert canonical(spelling) == f"{SHOP}/a/b?x=1"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("/a", "/A"),
        ("/a?x=1", "/a?x=2"),
        ("/a?x=1&y=2", "/a?y=2&x=1"),
        ("/a?ref=1", "/a"),
        ("/a%2Fb", "/a/b"),
        ("/a?b%26c", "/a?b&c"),
        ("/%zz", "/zz"),
        ("//a", "/a"),
        (":8080/", "/"),
        ("/#/basket", "/#/orders"),
        ("/#!basket", "/"),
    ],
)
def test_two_pages_are_two(one: str, other: str) -> None:
    assert canonical(SHOP + one) != canonical(SHOP + other)


@pytest.mark.parametrize(
    ("url", "form"),
    [
        (SHOP, f"{SHOP}/"),
        (f"{SHOP}/?utm_medium=mail", f"{SHOP}/"),
        ("https://bücher.example/ä b", "https://xn--bcher-kva.example/%C3%A4%20b"),
        ("https://XN--BCHER-KVA.example/%c3%a4", "https://xn--bcher-kva.example/%C3%A4"),
        ("https://[0:0::1]:443/x", "https://[::1]/x"),
        ("http://shop.example:08080/", "http://shop.example:8080/"),
        ("https://shop.example/100%", "https://shop.example/100%"),
        (f"{SHOP}/a#/b/c#here", f"{SHOP}/a#/b/c"),
        (f"{SHOP}/a#!", f"{SHOP}/a"),
        ("app://x", "app://x"),
        ("App://X/Y/", "app://x/Y"),
        ("/cart/?x=%7e#top", "/cart?x=~"),
        ("/", "/"),
        ("shop.example/cart/", "shop.example/cart"),
        ("Bee", "Bee"),
        (" C# ", "C#"),
        ("mailto:a@b.example", "mailto:a@b.example"),
        ("?utm_source=x", "/"),
        ("", ""),
    ],
)
def test_the_form_of(url: str, form: str) -> None:
    assert canonical(url) == form


@pytest.mark.parametrize(
    ("said", "url", "form"),
    [
        ({"scheme": "keep"}, "http://a.example/", "http://a.example/"),
        ({"www": "strip"}, "https://www.a.example/x", "https://a.example/x"),
        ({"www": "strip"}, "https://www.example/x", "https://www.example/x"),
        ({"fragment": "keep"}, f"{SHOP}/a#b c", f"{SHOP}/a#b%20c"),
        ({"fragment": "drop"}, f"{SHOP}/#/a", f"{SHOP}/"),
        ({"query": "drop"}, f"{SHOP}/a?b=1", f"{SHOP}/a"),
        ({"tracking": "keep"}, f"{SHOP}/a?utm_id=1", f"{SHOP}/a?utm_id=1"),
        ({"keep": ("id", "p*")}, f"{SHOP}/a?ID=1&q=2&page=3&utm_id=4", f"{SHOP}/a?ID=1&page=3"),
        ({"drop": ("ref",)}, f"{SHOP}/a?ref=1&reference=2&utm_id=3", f"{SHOP}/a?reference=2"),
        ({"order": "sort"}, f"{SHOP}/a?b=2&a=9&b=1", f"{SHOP}/a?a=9&b=2&b=1"),
        ({"slash": "keep"}, f"{SHOP}/a/", f"{SHOP}/a/"),
        ({"case": "lower"}, f"{SHOP}/About/%C3%84", f"{SHOP}/about/%C3%84"),
    ],
)
def test_a_rule_decides(said: dict[str, object], url: str, form: str) -> None:
    assert by(**said).canonical(url) == form


def test_every_tracking_parameter_goes() -> None:
    for name in TRACKING:
        assert canonical(f"{SHOP}/a?{name.replace('*', 'x')}=1&id=2") == f"{SHOP}/a?id=2", name


@pytest.mark.parametrize(
    "huge",
    [
        f"{SHOP}/" + "ä/" * 500_000,
        f"{SHOP}/?" + "a=1&" * 250_000,
        "https://" + "u:p@" * 250_000 + "h/",
        "https://" + "h." * 500_000,
        "https://" + "ü" * 1_000_000,
        "/" + "../" * 333_000,
        "/" + "%%4" * 333_000,
        "/a#" + "#" * 1_000_000,
        "x" * 1_000_000,
    ],
)
def test_a_megabyte_becomes_a_short_name_that_tells_it_from_others(huge: str) -> None:
    form = canonical(huge)
    assert len(form) <= 2_048
    assert canonical(form) == form
    assert "u:p" not in form
    if len(form) > 1_000:
        assert canonical(huge + "x") != form


def test_a_long_url_keeps_the_front_of_its_path() -> None:
    form = canonical(f"{SHOP}/sale/" + "x" * 3_000)
    assert form.startswith(f"{SHOP}/sale/xxx")
    one, other = (canonical(f"{SHOP}/sale?q=" + "x" * 3_000 + end) for end in "ab")
    assert one.startswith(f"{SHOP}/sale~")
    assert one != other


ODD = st.lists(
    st.sampled_from(
        [*"ab/.?#&=%:@[];~! \\AÜ。\ud800\x00*ßİ", "http", "https://", "..", "utm_", "%2e", "%41", "%e4", "www.", "/./",
         "/../", ";jsessionid=", "xn--", "[::", "#!", "#/", ":80", ":443", "\u3000", "\u00ad", "%%", "x" * 300, "é/" * 90]
    ),
    max_size=25,
).map("".join)  # fmt: skip
RULES = st.builds(
    UrlRules,
    scheme=st.sampled_from(["one", "keep"]),
    www=st.sampled_from(["keep", "strip"]),
    fragment=st.sampled_from(["routes", "drop", "keep"]),
    query=st.sampled_from(["keep", "drop"]),
    tracking=st.sampled_from(["drop", "keep"]),
    keep=st.sampled_from([(), ("a", "b*")]),
    drop=st.sampled_from([(), ("b*",)]),
    order=st.sampled_from(["keep", "sort"]),
    slash=st.sampled_from(["strip", "keep"]),
    case=st.sampled_from(["keep", "lower"]),
    longest=st.sampled_from([512, 2_048]),
)


@settings(derandomize=True, max_examples=1_000, deadline=None)
@given(ODD | st.text(), RULES)
@example("/%%41a", UrlRules())
@example("https://..:80:", UrlRules())
@example("%41://", UrlRules())
@example("https://user@h@/", UrlRules())
def test_whatever_comes_the_form_is_its_own_form(url: str, rules: UrlRules) -> None:
    form = Canonicaliser(rules).canonical(url)
    assert Canonicaliser(rules).canonical(form) == form
    assert len(form) <= rules.longest


@settings(derandomize=True, max_examples=300, deadline=None)
@given(st.text(), st.text())
def test_a_url_s_form_is_ascii_without_blanks_and_hides_the_password(path: str, password: str) -> None:
    form = canonical(
        f"https://anna:{password.replace('/', '').replace('?', '').replace('#', '')}SECRET@h.example/{path}"
    )
    assert form.startswith("https://h.example/")
    assert form.isascii()
    assert form.isprintable()
    assert " " not in form
    assert "SECRET" not in form or "SECRET" in path


def test_what_is_remembered_is_what_would_be_said() -> None:
    urls = [f"http://Shop.example/{n % 7}/?utm_source={n}" for n in range(100)]
    one = Canonicaliser()
    assert [one.canonical(url) for url in urls * 2] == [Canonicaliser().canonical(url) for url in urls * 2]
