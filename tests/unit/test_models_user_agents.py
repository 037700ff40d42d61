"""User agents: the family by the library, the device by what people would call it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.user_agents import family_and_device

WEBKIT = "AppleWebKit/605.1.15 (KHTML, like Gecko)"


@pytest.mark.parametrize(
    ("user_agent", "family", "device"),
    [
        ("Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:128.0) Gecko/20100101 Firefox/128.0", "Firefox", "desktop"),
        (f"Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) {WEBKIT} Version/17.0 Safari/605.1.15", "Safari", "desktop"),
        (f"Mozilla/5.0 (iPhone; CPU iPhone OS 17_0 like Mac OS X) {WEBKIT} Version/17.0 Mobile/15E148 Safari/604.1",
         "Mobile Safari", "phone"),
        (f"Mozilla/5.0 (iPad; CPU OS 13_3 like Mac OS X) {WEBKIT} Version/13.0 Mobile/15E148 Safari/604.1",
         "Mobile Safari", "tablet"),
        ("Mozilla/5.0 (Linux; Android 10; SM-T510) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/120.0.0.0 Safari/537.36",
         "Chrome", "tablet"),
        ("Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/120.0.0.0 Mobile Safari/537.36",
         "Chrome Mobile", "phone"),
        ("Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)", "Googlebot", "bot"),
        ("", "", "other"),
        ("nobody knows me", "", "other"),
    ],
)  # fmt: skip
def test_what_people_would_call_it(user_agent: str, family: str, device: str) -> None:
    assert family_and_device(user_agent) == (family, device)


@given(st.text(st.characters()) | st.just("\ud800") | st.just("Mozilla/5.0 " * 100_000))
def test_any_text_has_an_answer(text: str) -> None:
    family, device = family_and_device(text)
    assert isinstance(family, str)
    assert device
