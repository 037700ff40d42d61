"""From visits to feature rows: what was known at the moment of scoring, kept as it was until the label is known.

A row is a fixed-layout record (`layout`): hashed levels of attributes, the last pages, numbers, cosines between URL
vectors, live target counts of each level, and what each expert answered. It promises the same bytes for the same visit and
model state, whatever the batch; only the number of tasks changes its size. Property names beyond the room for them are left
out, always the same ones. What follows from a URL, a referrer or a user agent is remembered, within bounds.

Nothing is needed but the visit: what is missing is level 0 and number 0.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import xxhash
from numpy.typing import NDArray

from models.cosines import COSINE_NAMES, COSINES, cosines
from models.counts import F32, I32
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
from models.remembered import Remembered
from models.settings import ModelSettings
from models.url2vec import URL2Vec
from models.user_agents import family_and_device
from models.visits import HABITS, VisitBatch, VisitContext

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


@lru_cache
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


@lru_cache
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

    def rows(
        self, visits: Sequence[VisitContext], steps: Steps, model: URL2Vec, known: tuple[I32, I32] | None = None
    ) -> NDArray[np.void]:
        """(n,) records, all but `counts` and `experts` filled: those come from the classifier.

        known: the vocabulary's rows of the steps' `url` and `recent`, where somebody has looked them up already.
        """
        visits, n = VisitBatch.of(visits), len(visits)
        rows = np.zeros(n, self.layout)
        if not n:
            return rows
        levels, numbers = np.zeros((n, CATEGORIES), np.int32), np.zeros((n, NUMBERS), np.float32)
        targets = np.zeros((n, PROPERTIES), np.uint64)
        self._fixed(visits, steps, levels, numbers)
        self._properties.fill(visits.properties, levels[:, len(FIXED) :], numbers[:, NUMBERS_FIXED:], targets)
        rows["mark"], rows["levels"], rows["numbers"] = self._mark, levels, numbers
        rows["session"] = visits.session & np.uint64(0xFFFFFFFF)
        pages = np.concatenate([steps.url[:, None], steps.recent[:, : PAGES - 1]], axis=1)
        rows["pages"] = np.where(pages != 0, np.maximum(pages & np.uint64(0x7FFFFFFF), 1), 0)
        row, recent = known or (model.vocabulary.find(steps.url), model.vocabulary.find(steps.recent))
        rows["cosines"] = cosines(row, recent, targets, model)
        return rows

    def _fixed(self, visits: VisitBatch, steps: Steps, levels: I32, numbers: F32) -> None:
        n = len(visits)
        page = np.empty((n, 4), np.int32)
        page_levels(
            steps.url, np.ascontiguousarray(steps.recent[:, 0]), np.require(visits.entry, None, ["C", "W"]), page
        )
        url = self._urls.rows(visits.url_id.tolist(), visits.url)
        levels[:, 0], levels[:, 4:7] = page[:, 0], page[:, 1:]
        levels[:, 1:4] = url[:, :3]
        levels[:, 7:8] = self._events.of_texts(visits.event_name)
        levels[:, 8:9] = self._referrers.of_texts(visits.referrer)
        levels[:, 9:12] = self._agents.of_texts(visits.user_agent)
        facts = visits.facts.astype(np.float64, order="C")
        # A compiled loop takes what is in one piece and writable: for anything else it would be compiled again.
        usual, actions = np.require(visits.habits, None, ["C", "W"]), np.require(visits.actions, None, ["C", "W"])
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


def parse(blobs: Sequence[bytes], tasks: int) -> tuple[NDArray[np.void], NDArray[np.bool_]]:
    """Records of stored rows, and which of the blobs had this layout; others are left out."""
    dtype, mark = layout(tasks), layout_mark(tasks).to_bytes(4, "little")
    if set(map(len, blobs)) == {dtype.itemsize}:
        rows = np.frombuffer(b"".join(blobs), dtype)
        fits = rows["mark"] == layout_mark(tasks)
        return (rows if fits.all() else rows[fits]), fits
    fits = np.array([len(blob) == dtype.itemsize and blob[:4] == mark for blob in blobs], np.bool_)
    whole = b"".join(blob for blob, fit in zip(blobs, fits.tolist(), strict=True) if fit)
    return np.frombuffer(whole, dtype), fits
