"""The levels that every visit has: where it is, whence it came, with what, and when in coarse steps.

A level is an attribute with its value, hashed to a positive int32; 0 is an absent one. Those here are even, those of
properties odd (`models.properties.level` says why), but for the step from page to page: there are as many as links.
"""

import numpy as np
import xxhash

from models.compiled import kernel, mix
from models.counts import F64, I32, U64
from models.properties import HASHED
from models.user_agents import family_and_device
from models.visits import ACTIONS, HABITS

FIXED = (
    "url", "host", "section", "subsection", "entry", "previous", "step", "event_name", "referrer_host", "user_agent",
    "user_agent_family", "device", "position", "pause", "absence", "hour",
)  # fmt: skip
# To leave one of these out is to leave out what is made from it.
MADE_FROM = {"step": ("url", "previous"), "user_agent_family": ("user_agent",), "device": ("user_agent",)}
ABSENCE = HABITS - ACTIONS - 1  # in `VisitContext.habits`


def url_parts(url: str) -> tuple[str, str]:
    """Host, and host with the first part of the path, of anything that is called a URL; both may be empty."""
    _, found, rest = url.partition("://")
    if not found:
        rest = url
    rest = rest.partition("?")[0].partition("#")[0]
    host, slash, path = rest.partition("/")
    return host.lower(), f"{host.lower()}/{path.partition('/')[0]}" if slash else ""


def subsection(url: str) -> str:
    """Host with the first two parts of the path; empty where there are not two."""
    rest = url.partition("://")[2] or url
    second = rest.partition("?")[0].partition("#")[0].split("/", 3)[2:3]
    return f"{url_parts(url)[1]}/{second[0]}" if second and second[0] else ""


def shape(url: str) -> tuple[int, int, int]:
    """Parts of the path, parameters of the query, characters."""
    front, _, query = url.partition("#")[0].partition("?")
    path = (front.partition("://")[2] or front).partition("/")[2]
    return len([part for part in path.split("/") if part]), query.count("&") + 1 if query else 0, len(url)


def _level(attribute: str, value: str) -> int:
    if not value:
        return 0
    text = f"{attribute}={value[:HASHED]}".encode("utf-8", "surrogatepass")
    return int(xxhash.xxh3_64_intdigest(text) & 0x7FFFFFFE) or 2


def of_url(url: str) -> tuple[int, ...]:
    """Levels of host, section and subsection, then the shape."""
    host, section = url_parts(url)
    return _level("host", host), _level("section", section), _level("subsection", subsection(url)), *shape(url)


def of_event(event_name: str) -> tuple[int]:
    """The level of a kind of event."""
    return (_level("event_name", event_name),)


def of_referrer(referrer: str) -> tuple[int]:
    """The level of the referrer's host."""
    return (_level("referrer_host", url_parts(referrer)[0]),)


def of_user_agent(user_agent: str) -> tuple[int, ...]:
    """Levels of the user agent as it is, its family, and the class of device."""
    family, device = family_and_device(user_agent) if user_agent else ("", "")
    return _level("user_agent", user_agent), _level("user_agent_family", family), _level("device", device)


@kernel
def _even(x: np.uint64) -> np.int64:
    return max(np.int64(x & np.uint64(0x7FFFFFFE)), np.int64(2))


@kernel
def page_levels(url: U64, previous: U64, entry: U64, out: I32) -> None:
    """out (n, 4): levels of url, entry, previous and the step from previous to url; 0 stands for no page."""
    for i in range(len(url)):
        out[i, 0] = _even(mix(url[i]))
        out[i, 1] = _even(mix(entry[i] ^ np.uint64(1)))
        out[i, 2], out[i, 3] = 0, 0
        if previous[i] != 0:
            out[i, 2] = _even(mix(previous[i] ^ np.uint64(2)))
            out[i, 3] = _even(mix(mix(previous[i]) ^ url[i])) | 1


@kernel
def octave(x: float) -> int:
    """Two steps an octave of 1 + x: 0, 2, 3, 4 for 0, 1, 2, 3; from 0 to 200, whatever comes."""
    return int(min(2 * np.log2(1 + x), 200.0)) if x > 0 else 0


@kernel
def time_levels(facts: F64, habits: F64, out: I32) -> None:
    """out (n, 4): levels of position, pause (s since the previous visit), absence (s between sessions), hour of day in UTC.

    The same stands in the numbers, but the live counts of coarse steps have learned within hundreds of visits what a network
    reads out of the numbers after thousands: on the access log they are worth .05 of AUC, .02 in the last half.
    facts, habits: as in `models.feature_numbers`.
    """
    for i in range(len(facts)):
        pause, absence, now = facts[i, 1], habits[i, ABSENCE], facts[i, 5]
        out[i, 0] = _even(mix(np.uint64(0x100 + octave(facts[i, 0]))))
        out[i, 1] = _even(mix(np.uint64(0x200 + (octave(pause / 1000) + 1 if pause >= 0 else 0))))
        out[i, 2] = _even(mix(np.uint64(0x300 + (octave(absence) + 1 if absence >= 0 else 0))))
        out[i, 3] = _even(mix(np.uint64(0x400 + (int(now / 3_600_000.0 % 24.0) if now >= 0 and now < 1e18 else 0))))


def time_names(position: int, pause_ms: int, absence_s: float, now_ms: int) -> tuple[str, str, str, str]:
    """The same for people."""
    pause = _range(pause_ms / 1000, " s") if pause_ms >= 0 else "first of the session"
    absence = _range(absence_s, " s") if absence_s >= 0 else "first session"
    return _range(position, ""), pause, absence, f"{int(now_ms / 3_600_000 % 24)} h UTC"


def _range(x: float, unit: str) -> str:
    step = octave(float(x))
    low, high = 2 ** (step / 2) - 1, 2 ** ((step + 1) / 2) - 1
    return f"{low:.3g} to {high:.3g}{unit}"
