"""From visits to feature rows: what was known at the moment of scoring, kept as it was until the label is known.

A row is a fixed-layout record (`layout`): hashed levels of attributes, the last pages, numbers, cosines between URL
vectors, live target counts of each level, and what each expert answered. It promises the same bytes for the same visit and
model state, whatever the batch; only the number of tasks changes its size. Property names beyond the room for them are left
out, always the same ones. What follows from a URL, a referrer or a user agent is remembered, within bounds.

Nothing is needed but the visit: what is missing is level 0 and number 0.
"""

from collections.abc import Callable, Sequence
from itertools import chain
from operator import attrgetter

import numpy as np
import xxhash
from numpy.typing import NDArray

from models.cosines import COSINE_NAMES, COSINES, cosines
from models.counts import F32, F64, I32
from models.feature_levels import (
    ABSENCE,
    FIXED,
    MADE_FROM,
    of_event,
    of_referrer,
    of_url,
    of_user_agent,
    page_levels,
    subsection,
    time_levels,
    time_names,
    url_parts,
)
from models.feature_numbers import NUMBER_NAMES, NUMBERS_FIXED, SHAPE, fill_numbers
from models.lesson import Steps
from models.properties import Properties, level, signed_log
from models.remembered import Remembered, short
from models.settings import ModelSettings
from models.url2vec import URL2Vec
from models.user_agents import family_and_device
from models.visits import ACTIONS, HABITS, VisitContext

__all__ = [
    "CATEGORIES", "COSINES", "COSINE_NAMES", "EXPERTS", "FIXED", "NUMBERS", "NUMBERS_FIXED", "PAGES", "Features", "layout",
    "layout_mark", "level", "parse", "signed_log", "url_parts",
]  # fmt: skip

CATEGORIES = 28  # levels a row: the fixed ones, then properties
PROPERTIES = CATEGORIES - len(FIXED)
NUMBERS = 64  # the fixed ones, then numeric properties
PAGES = 9  # this URL, then the session's last ones
# Who answers each question, in logits: "blend" is the answer that was given.
EXPERTS = ("linear", "newton", "sequence", "network", "rival", "memory", "baseline", "blend")
_NOTHING_USUAL, _NO_ACTIONS = (0.0,) * (HABITS - 1 - ACTIONS) + (-1.0,) + (0.0,) * ACTIONS, (0,) * ACTIONS
_facts = attrgetter(
    "position", "since_previous_ms", "since_start_ms", "visits_before", "sessions_before", "timestamp_ms", "repeat"
)
_FACTS = 7


def layout(tasks: int) -> np.dtype[np.void]:
    """The record of one visit. Half precision halves what is kept until the label is known."""
    return np.dtype(
        [
            ("mark", "<u4"),  # of this layout: rows of another one are recognised and not learned from
            ("session", "<u4"),
            ("levels", "<i4", (CATEGORIES,)),
            ("pages", "<i4", (PAGES,)),
            ("numbers", "<f4", (NUMBERS,)),
            ("cosines", "<f2", (COSINES,)),
            ("counts", "<f2", (CATEGORIES, tasks, 2)),
            ("experts", "<f2", (tasks, len(EXPERTS))),  # what each said when the visit was scored; NaN: nothing
            ("generation", "u1"),  # of the racing networks then
        ]
    )


def layout_mark(tasks: int) -> int:
    """Of the layout and of what stands in it: rows of other features are not learned from either."""
    meaning = repr((layout(tasks).descr, FIXED, NUMBER_NAMES, COSINE_NAMES))
    return int(xxhash.xxh3_64_intdigest(meaning.encode()) & 0xFFFFFFFF)


class Features:
    """Makes feature rows for a fixed number of tasks. Reads URL vectors and counts, changes nothing."""

    def __init__(self, settings: ModelSettings, tasks: int) -> None:
        self.layout = layout(tasks)
        self._mark = layout_mark(tasks)
        self._properties = Properties(settings, PROPERTIES, NUMBERS - NUMBERS_FIXED)
        self._excluded = [k for k, name in enumerate(FIXED) if settings.exclude & {name, *MADE_FROM.get(name, ())}]
        self._urls: Remembered[int] = Remembered(of_url, 3 + SHAPE)
        self._referrers: Remembered[str] = Remembered(of_referrer, 1)
        self._agents: Remembered[str] = Remembered(of_user_agent, 3)
        self._events: Remembered[str] = Remembered(of_event, 1)

    def rows(self, visits: Sequence[VisitContext], steps: Steps, model: URL2Vec) -> NDArray[np.void]:
        """(n,) records, all but `counts` and `experts` filled: those come from the classifier."""
        n = len(visits)
        rows = np.zeros(n, self.layout)
        if not n:
            return rows
        levels, numbers = np.zeros((n, CATEGORIES), np.int32), np.zeros((n, NUMBERS), np.float32)
        targets = np.zeros((n, PROPERTIES), np.uint64)
        self._fixed(visits, steps, levels, numbers)
        self._properties.fill(
            [v.properties for v in visits], levels[:, len(FIXED) :], numbers[:, NUMBERS_FIXED:], targets
        )
        rows["mark"], rows["levels"], rows["numbers"] = self._mark, levels, numbers
        rows["session"] = np.array([v.session for v in visits], np.uint64) & np.uint64(0xFFFFFFFF)
        pages = np.concatenate([steps.url[:, None], steps.recent[:, : PAGES - 1]], axis=1)
        rows["pages"] = np.where(pages != 0, np.maximum(pages & np.uint64(0x7FFFFFFF), 1), 0)
        rows["cosines"] = cosines(steps, targets, model)
        return rows

    def _fixed(self, visits: Sequence[VisitContext], steps: Steps, levels: I32, numbers: F32) -> None:
        n = len(visits)
        page = np.empty((n, 4), np.int32)
        entry = np.array([v.entry for v in visits], np.uint64)
        page_levels(steps.url, np.ascontiguousarray(steps.recent[:, 0]), entry, page)
        url = self._urls.rows([v.url_id for v in visits], (v.url for v in visits))
        referrers = [short(v.referrer) if v.referrer else "" for v in visits]
        agents = [short(v.user_agent) if v.user_agent else "" for v in visits]
        events = [short(v.event_name) for v in visits]
        levels[:, 0], levels[:, 4:7] = page[:, 0], page[:, 1:]
        levels[:, 1:4] = url[:, :3]
        levels[:, 7:8] = self._events.rows(events, (v.event_name for v in visits))
        levels[:, 8:9] = self._referrers.rows(referrers, (v.referrer or "" for v in visits))
        levels[:, 9:12] = self._agents.rows(agents, (v.user_agent or "" for v in visits))
        facts = np.fromiter(chain.from_iterable(map(_facts, visits)), np.float64, n * _FACTS).reshape(n, _FACTS)
        usual = _matrix([v.habits if len(v.habits) == HABITS else _NOTHING_USUAL for v in visits], HABITS)
        actions = _matrix([v.actions if len(v.actions) == ACTIONS else _NO_ACTIONS for v in visits], ACTIONS)
        times = np.empty((n, 4), np.int32)
        time_levels(facts, usual, times)
        levels[:, 12:16] = times
        levels[:, self._excluded] = 0
        fill_numbers(facts, usual, actions, np.ascontiguousarray(url[:, 3:]), numbers)

    def names(self, visit: VisitContext, url_of: Callable[[int], str] | None = None) -> tuple[list[str], list[str]]:
        """What stands in a visit's row, for people: its levels ("" where absent) and its numbers, in the row's order.

        `url_of` gives the URL of a url_id, "" where it is not known: the visit carries ids alone of its earlier pages.
        """
        absence_s = visit.habits[ABSENCE] if len(visit.habits) == HABITS else -1.0
        known = url_of or (lambda _: "")
        host, section = url_parts(visit.url)
        previous = (known(visit.recent[0]) or f"page {visit.recent[0]:x}") if visit.recent else ""
        entry = visit.url if visit.entry == visit.url_id else known(visit.entry) or f"page {visit.entry:x}"
        family, device = family_and_device(visit.user_agent) if visit.user_agent else ("", "")
        values = (
            visit.url, host, section, subsection(visit.url), entry, previous, previous and f"{previous} → {visit.url}",
            visit.event_name, url_parts(visit.referrer or "")[0], visit.user_agent or "", family, device,
            *time_names(visit.position, visit.since_previous_ms, absence_s, visit.timestamp_ms),
        )  # fmt: skip
        levels = [
            f"{name.replace('_', ' ')} = {value}" if value and k not in self._excluded else ""
            for k, (name, value) in enumerate(zip(FIXED, values, strict=True))
        ]
        more_levels, more_numbers = self._properties.names(visit.properties)
        return levels + more_levels, [*NUMBER_NAMES, *more_numbers]


def _matrix(rows: Sequence[Sequence[float]], columns: int) -> F64:
    return np.fromiter(chain.from_iterable(rows), np.float64, len(rows) * columns).reshape(len(rows), columns)


def parse(blobs: Sequence[bytes], tasks: int) -> tuple[NDArray[np.void], NDArray[np.bool_]]:
    """Records of stored rows, and which of the blobs had this layout; others are left out."""
    dtype, mark = layout(tasks), layout_mark(tasks).to_bytes(4, "little")
    fits = np.array([len(blob) == dtype.itemsize and blob[:4] == mark for blob in blobs], np.bool_)
    whole = b"".join(blob for blob, fit in zip(blobs, fits.tolist(), strict=True) if fit)
    return np.frombuffer(whole, dtype), fits
