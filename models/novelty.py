"""How unlike anything seen lately is this visit? Surprise in bits, and which share of recent visits surprised less.

Surprise is −log2 of how likely the visit was, of one of five kinds:

- *again*: the same page as just before. No surprise.
- a *step* to a known URL: by what `models.next_url` foresaw, and the more the less the vectors of the two pages have to
  do with each other. Somebody who follows links stays near; a crawler that takes URLs from a list does not. A vector that
  rests on few visits says little: a scanner's paths stand together once they were asked for together.
- a *first* visit of a session: by how many visits the URL has.
- an *unknown* URL: by how many visits here go to unknown URLs at all, and by how usual it is, among those, to know so
  much and no more of its path, its words and its query. On a site where each article is visited once, another article
  below a known path is nothing special; /wp-login.php, of which not a word is known, is. Above the mean of known ones.
- a *file* (what teaches URL2vec nothing, and so has no row): by how often it was asked for, in a sketch; new ones as above.

All rates are learned from the stream and forget over `MEMORY` visits, so no site is tuned for. On the access log with
planted visits (tests/unit/test_novelty_planted.py) crawlers are found with an AUC of .87 (.74 by −log2 of what was foreseen
alone), scanners with .86 (.81), misspelt URLs with .89: these lose (.95), for a site where a fifth of the visits goes to
URLs never seen before is not surprised by another one. What crawlers gain there comes from what a step costs at all (.78
without) and hardly from the cosines (.006), for most of its pages have too few visits to have a place; on Wikispeedia
the cosines bring crawlers from .86 to .88. Tried and not worth it: surprise of the session's earlier steps (visits
after a strange one are not strange), cosines to the mean of the session, ratios of densities of cosines, a scale for
each kind of its own.

Bits say little to a reader, and differ between sites. `calibrated` gives the share of recent visits that surprised less,
from a histogram that forgets.

Promises: `surprise` and `calibrated` change nothing; `learn` depends on the state and its arguments alone; room is fixed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from models.compiled import kernel, mix
from models.composition import KEY, PATH, VALUE, WORD, remembered_parts, table
from models.counts import F32, F64, I16, I32, U64, Mask
from models.sphere import ONE

if TYPE_CHECKING:
    from models.lesson import Steps
    from models.url2vec import URL2Vec

I8 = NDArray[np.int8]
State = dict[str, NDArray[np.generic]]

AGAIN, FIRST, STEP, UNKNOWN, FILE = 0, 1, 2, 3, 4
MEMORY = 50_000.0  # visits after which one counts 1/e: a few days of a small site, minutes of a large one
YOUNG = 20_000  # page visits that are all learned from
EVERY = 4  # later one in so many is, four times: foreseeing it anew is what costs. A per cent is then known to .5
BINS = 256  # of the histogram
_REACH = np.log(129.0)  # it goes to 128 bits, in equal steps of log(1 + bits): a fifth of a bit at what is usual
_PRIOR = 100.0  # visits for which stands, at first, what is usual on most sites: half of them below _TYPICAL
_TYPICAL = 14.0
_APART = 8.0  # bits of a step between unrelated pages: 3 are too few for crawlers, and 15 drown all else
_NO_STEP = 0.5  # of these, where nothing is known of a step: about what a step costs in the mean
_TRUSTED = 15.0  # visits after which a vector is half believed
_LEAST = 1e-9  # nothing is less likely
_BEYOND = 1.0  # bits that an unknown URL is above a known one as rare as unknown ones are here
_CELLS = 4 * 4 * 3  # what may be known of an unknown URL: see `_cell`
_SKETCH = 1 << 15  # counters a row, of files
_FADED = 0.05  # visits of now below which a file counts as new
_HEAVY = 2.0**20  # a visit's weight, at which all are divided by it: weights grow instead of all else shrinking
_KNOWN, _NEW, _BITS, _OLD_FILES, _NEW_FILES, _FILE_BITS, _MOMENTS = 0, 1, 2, 3, 4, 5, 6


@dataclass(frozen=True, slots=True)
class Surprise:
    """What n visits were, before they were learned from."""

    bits: F32  # (n,), from 0
    kind: I8  # (n,) AGAIN … FILE
    cell: I16  # (n,) what is known of an unknown URL; -1 where it is none, or nobody says what it is called


@kernel
def _place(url: np.uint64, row: int) -> np.int64:
    """Where a row of the sketch counts a file."""
    return np.int64(mix(url + np.uint64(row)) & np.uint64(_SKETCH - 1))


@kernel
def _judge(
    steps: U64,
    before: U64,
    repeat: Mask,
    found: I32,
    previous: I32,
    foreseen: F32,
    popularity: F64,
    visits: F64,
    unit: float,
    vectors: I16,
    one: float,
    cell: I16,
    moments: F64,
    cells: F64,
    sketch: F64,
    weight: float,
    bits: F32,
    kind: I8,
) -> None:
    """bits, kind (n,) of visits of URLs `steps` after `before` (0: none), which have the rows `found` and `previous`."""
    new = moments[_BITS] / moments[_KNOWN] - np.log2(moments[_NEW] / (moments[_NEW] + moments[_KNOWN])) + _BEYOND
    files = moments[_OLD_FILES] + moments[_NEW_FILES]
    new_file = moments[_FILE_BITS] / moments[_OLD_FILES] - np.log2(moments[_NEW_FILES] / files) + _BEYOND
    every = cells.sum()
    for k in range(len(steps)):
        i, j = found[k], previous[k]
        if repeat[k] and i >= 0:
            kind[k] = AGAIN
            bits[k] = 0
        elif repeat[k]:
            kind[k] = FILE
            n = min(sketch[0, _place(steps[k], 0)], sketch[1, _place(steps[k], 1)])
            bits[k] = new_file if n < _FADED * weight else -np.log2(min(n / files, 1.0))
        elif i >= 0:
            apart = _NO_STEP
            if before[k] != 0:
                apart = 1.0
                if j >= 0:
                    total = np.float32(0)
                    for d in range(vectors.shape[1]):
                        total += np.float32(vectors[i, d]) * np.float32(vectors[j, d])
                    seen = visits[i] / unit
                    apart -= total / (one * one) * seen / (seen + _TRUSTED)
            p = np.float64(foreseen[k]) if before[k] != 0 else popularity[k]
            kind[k] = STEP if before[k] != 0 else FIRST
            bits[k] = max(-np.log2(min(max(p, _LEAST), 1.0)) + _APART * apart, 0.0)
        else:
            kind[k] = UNKNOWN
            bits[k] = new
            if cell[k] >= 0:
                bits[k] = new - np.log2(cells[cell[k]] / every)


@kernel
def _learn(
    taken: Mask, url: U64, bits: F32, kind: I8, cell: I16, every: I16, step: float,
    histogram: F64, moments: F64, cells: F64, sketch: F64, weight: F64,
) -> None:  # fmt: skip
    """Count the visits taken, `every` times each, and grow the weight of the next one."""
    for k in range(len(url)):
        if not taken[k]:
            continue
        times = np.float64(every[k])
        w = weight[0] * times
        at = int(np.log(1.0 + np.float64(bits[k])) / _REACH * BINS)
        histogram[min(at, BINS - 1)] += w
        if kind[k] == FILE:
            least = np.inf
            for row in range(2):
                least = min(least, sketch[row, _place(url[k], row)])
            if least < _FADED * weight[0]:
                moments[_NEW_FILES] += w
            else:
                moments[_OLD_FILES] += w
                moments[_FILE_BITS] += w * bits[k]
            for row in range(2):
                place = _place(url[k], row)
                if sketch[row, place] == least:  # the other one counts somebody else too
                    sketch[row, place] += w
        elif kind[k] == UNKNOWN:
            moments[_NEW] += w
            cells[cell[k]] += w
        elif kind[k] != AGAIN:
            moments[_KNOWN] += w
            moments[_BITS] += w * bits[k]
        weight[0] *= np.exp(times / step)
        if weight[0] > _HEAVY:
            histogram /= weight[0]
            moments /= weight[0]
            cells /= weight[0]
            sketch /= weight[0]
            weight[0] = 1.0


class Novelty:
    """Rates of surprise, and the surprise of recent visits. Rows are the vocabulary's, -1 an unknown URL.

    >>> novelty = Novelty()
    >>> low, high = novelty.calibrated(np.array([2, 40], np.float32))
    >>> bool(0 < low < 0.2 and 0.7 < high < 1)
    True
    """

    def __init__(self) -> None:
        edge = np.expm1(np.arange(1 + BINS) / BINS * _REACH)
        self._histogram: F64 = np.diff(_PRIOR * edge / (edge + _TYPICAL))
        self._moments: F64 = np.array([1, 1, _TYPICAL, 1, 1, _TYPICAL / 2], np.float64)
        self._cells: F64 = np.full(_CELLS, 0.5)
        self._sketch: F64 = np.zeros((2, _SKETCH))
        self._weight: F64 = np.ones(1)  # of a visit now
        self._pages = 0  # visits met by `learn` that were judged as pages, whether taken or not

    def surprise(
        self, steps: Steps, found: I32, recent: I32, foreseen: F32, urls: URL2Vec, names: Mapping[int, str]
    ) -> Surprise:
        """Surprise at visits before anything is learned from them. found (n,), recent (n, RECENT): rows of steps.

        foreseen (n,): the probability that `NextUrls.rank` gives to steps. names: id → URL of those that are unknown.
        """
        n = len(steps.url)
        bits, kind, cell = np.empty(n, np.float32), np.empty(n, np.int8), np.full(n, -1, np.int16)
        self._name_cells(cell, np.flatnonzero((found < 0) & ~steps.repeat), steps.url, urls, names)
        _judge(
            steps.url, np.ascontiguousarray(steps.recent[:, 0]), steps.repeat, found, np.ascontiguousarray(recent[:, 0]),
            foreseen, urls.popularity(found), urls.counts.visits, urls.counts.unit, urls.sphere.vectors, float(ONE), cell,
            self._moments, self._cells, self._sketch, float(self._weight[0]), bits, kind,
        )  # fmt: skip
        return Surprise(bits, kind, cell)

    @staticmethod
    def _name_cells(cell: I16, unknown: NDArray[np.intp], url: U64, urls: URL2Vec, names: Mapping[int, str]) -> None:
        """Fill in what is known of each unknown URL, once for each URL."""
        ids = [url_id for url_id in dict.fromkeys(url[unknown].tolist()) if url_id in names]
        if not ids:
            return
        every = table([remembered_parts(names[url_id]) for url_id in ids])
        each, at = np.unique(every, return_inverse=True)
        _, trust = urls.composer.compose(each[:, None])  # a part is known where something can be composed from it alone
        known = (trust > 0)[at].reshape(every.shape)
        of = dict(zip(ids, _cell(every, known).tolist(), strict=True))
        cell[unknown] = [of.get(url_id, -1) for url_id in url[unknown].tolist()]

    def calibrated(self, bits: F32) -> F32:
        """Share of recent visits, in [0, 1], that surprised less than bits (n,) do."""
        at = np.log1p(np.maximum(bits, 0).astype(np.float64)) / _REACH * BINS
        below = np.concatenate([[0.0], np.cumsum(self._histogram)])
        share: F32 = (np.interp(at, np.arange(1 + BINS), below) / below[-1]).astype(np.float32)
        return share

    def sample(self, steps: Steps) -> Mask:
        """(n,) The visits of a lesson from which `learn` is to learn: of pages some, once there were many. Changes nothing."""
        page = ~steps.repeat
        number = self._pages + np.cumsum(page) - 1
        taken: Mask = ~page | (number < YOUNG) | (number % EVERY == 0)
        return taken

    def learn(self, steps: Steps, surprise: Surprise, taken: Mask, names: Mapping[int, str]) -> None:
        """Learn from the visits `taken`, whose surprise was found before anybody learned from them.

        names: of URLs that were news, as the lesson leaves them for replicas. An unknown URL that is not among them got no
        row, and teaches nothing: a replica could not know what it is called.
        """
        page = ~steps.repeat
        number = self._pages + np.cumsum(page) - 1
        lost = surprise.kind == UNKNOWN
        if lost.any():
            lost[lost] = [url_id not in names for url_id in steps.url[lost].tolist()]
        every = np.where(page & (number >= YOUNG), EVERY, 1).astype(np.int16)
        _learn(
            taken & ~(lost | (surprise.kind == UNKNOWN) & (surprise.cell < 0)),
            steps.url, surprise.bits, surprise.kind, surprise.cell, every, MEMORY,
            self._histogram, self._moments, self._cells, self._sketch, self._weight,
        )  # fmt: skip
        self._pages += int(page.sum())

    def state(self) -> State:
        """Arrays from which `load` makes an equal one; counters of files that are zero are left out."""
        held = np.flatnonzero(self._sketch).astype(np.int32)
        return {
            "histogram": self._histogram.copy(), "moments": self._moments.copy(), "cells": self._cells.copy(),
            "held": held, "files": self._sketch.reshape(-1)[held], "weight": self._weight.copy(),
            "pages": np.array([self._pages], np.int64),
        }  # fmt: skip

    def load(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Take over a saved state. Raises ValueError, KeyError or IndexError where it does not fit; then do not use this."""
        mine = {"histogram": self._histogram, "moments": self._moments, "cells": self._cells, "weight": self._weight}
        for name, array in mine.items():
            given = state[name].astype(np.float64)
            if given.shape != array.shape or not (np.isfinite(given) & (given >= 0)).all():
                raise ValueError(f"{name} of novelty has the shape {state[name].shape}, or is no weight")
        held, pages = state["held"], int(state["pages"][0])
        if len(held) and not 0 <= int(held.min()) <= int(held.max()) < self._sketch.size:
            raise ValueError("a file is counted beyond the sketch")
        if pages < 0 or not float(state["weight"][0]) >= 1 or not state["moments"].all() or not state["cells"].all():
            raise ValueError(f"{pages} pages of the weight {state['weight'][0]} are no counts of novelty")
        for name, array in mine.items():
            array[:] = state[name]
        self._sketch[:] = 0
        self._sketch.reshape(-1)[held] = state["files"]
        self._pages = pages


def _cell(every: U64, known: Mask) -> NDArray[np.int64]:
    """(m,) Which of _CELLS: how deep the path goes beyond what is known, which of the words are known, which of the query.

    every, known (m, PARTS): ids of the parts, and whether some known URL has them.
    """
    of = (every & np.uint64(7)).astype(np.int64)
    beyond = np.minimum(((of == PATH) & ~known).sum(axis=1), 3)
    word, query = of == WORD, (of == KEY) | (of == VALUE)
    cell: NDArray[np.int64] = (beyond * 4 + _share(word, known, 3)) * 3 + _share(query, known, 2)
    return cell


def _share(part: Mask, known: Mask, grades: int) -> NDArray[np.int64]:
    """0 where there are no such parts; else from 1 (none is known, or with two grades: not all) to `grades` (all are)."""
    there, have = part.sum(axis=1), (part & known).sum(axis=1)
    graded = np.where(have == there, grades, np.where((have > 0) & (grades > 2), 2, 1))
    return np.where(there == 0, 0, graded).astype(np.int64)
