"""What a browser fetches by itself, and what programs call themselves."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.traffic import is_bot, is_static, teaches
from streams.urls import UrlRules

CHROME = (
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36"
)


@pytest.mark.parametrize(
    "url",
    ["https://a.example/logo.PNG", "/style.css?v=3", "/favicon.ico#x", "/f/font.woff2", "/main.js", "a.svg", "/x.jpeg"],
)
def test_what_pages_bring_along_is_static(url: str) -> None:
    assert is_static(url)


@pytest.mark.parametrize(
    "url",
    [
        "https://a.example/", "/guide.pdf", "/talk.mp4", "/release.tar.gz", "/page.html", "/png", "/?file=a.png",
        "/show.php?img=x.png", "/a.png/", "https://css", "https://a.js/", "", "Bee",
    ],
)  # fmt: skip
def test_what_somebody_chose_is_not(url: str) -> None:
    assert not is_static(url)


@pytest.mark.parametrize(
    "user_agent",
    [
        "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
        "Mozilla/5.0 (Linux; Android 6.0.1) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/W Mobile (compatible; bingbot/2.0)",
        "facebookexternalhit/1.1",
        "Slackbot-LinkExpanding 1.0",
        "curl/8.5.0",
        "python-requests/2.32",
        "UniversalFeedParser/4.2-pre-314-svn +http://feedparser.org/",
        "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) HeadlessChrome/120.0.0.0 Safari/537.36",
        "GPTBot/1.2",
        "Wget/1.21",
    ],
)
def test_programs_that_say_so_are_bots(user_agent: str) -> None:
    assert is_bot(user_agent)


@pytest.mark.parametrize(
    "user_agent",
    [
        None,
        "",
        CHROME,
        "Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.5 "
        "Mobile/15E148 Safari/604.1",
        "Mozilla/5.0 (X11; Ubuntu; Linux x86_64; rv:127.0) Gecko/20100101 Firefox/127.0",
        "Mozilla/5.0 (Linux; Android 9; CUBOT_X19) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/99.0 Mobile Safari/537.36",
        "Opera/9.80 (Windows NT 6.1; WOW64) Presto/2.12.388 Version/12.16",
        "okhttp/4.12.0",
        "Shop/3.1 CFNetwork/1494 Darwin/23.4.0",
    ],
)
def test_what_people_hold_is_none(user_agent: str | None) -> None:
    assert not is_bot(user_agent)


@given(st.text(), st.text())
def test_nothing_raises(url: str, user_agent: str) -> None:
    assert is_static(url) in {True, False}
    assert is_bot(user_agent) in {True, False}


def test_only_the_front_of_a_user_agent_is_read_and_remembered() -> None:
    assert is_bot("bot" + "x" * 1_000_000)
    assert not is_bot(CHROME + " " * 1_000_000 + "bot")


def test_by_default_files_do_not_teach_and_programs_do() -> None:
    assert teaches(UrlRules(), "/page", CHROME)
    assert teaches(UrlRules(), "/page", "curl/8")
    assert not teaches(UrlRules(), "/logo.png", CHROME)


def test_a_rule_says_what_teaches() -> None:
    assert teaches(UrlRules(static="learn"), "/logo.png", CHROME)
    assert not teaches(UrlRules(bots="skip"), "/page", "curl/8")
    assert teaches(UrlRules(bots="skip"), "/page", None)
