"""From visits to feature rows: numbers known at the moment of scoring, kept as they were until the label is known.

A row is a fixed-layout record (`layout`): hashed levels of attributes, the last pages, numbers, cosines between URL
vectors, and live target counts of each level. It promises the same bytes for the same visit and model state, whatever
the batch; only the number of tasks changes its size. Property names beyond the room for them are left out, always the
same ones.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import xxhash
from numpy.typing import NDArray

from models.compiled import kernel
from models.counts import F32, F64, I16, I32, U64
from models.lesson import Steps
from models.settings import ModelSettings
from models.sphere import ONE
from models.url2vec import URL2Vec
from models.visits import VisitContext, url_identity

FIXED = ("url", "host", "section", "entry", "previous", "event_name", "referrer_host", "user_agent")
CATEGORIES = 24  # levels a row: the fixed ones, then properties
PROPERTIES = CATEGORIES - len(FIXED)
NUMBERS_FIXED = 11
NUMBERS = 20  # the fixed ones, then numeric properties
PAGES = 9  # this URL, then the session's last ones
COSINES = 10
_HASH_CHARS = 4096  # of a value; more would let a producer buy hashing time with long strings


def layout(tasks: int) -> np.dtype[np.void]:
    """The record of one visit. Half precision halves what is kept until the label is known."""
    return np.dtype(
        [
            ("mark", "<u4"),  # of this layout: rows of another one are recognised and not learned from
            ("levels", "<i4", (CATEGORIES,)),
            ("pages", "<i4", (PAGES,)),
            ("numbers", "<f4", (NUMBERS,)),
            ("cosines", "<f2", (COSINES,)),
            ("counts", "<f2", (CATEGORIES, tasks, 2)),
        ]
    )


def layout_mark(tasks: int) -> int:
    return int(xxhash.xxh3_64_intdigest(repr(layout(tasks).descr).encode()) & 0xFFFFFFFF)


def level(attribute: str, value: str) -> int:
    """An attribute with its value as a positive int32; never 0, which stands for an absent one."""
    text = f"{attribute}={value[:_HASH_CHARS]}".encode("utf-8", "surrogatepass")
    return int(xxhash.xxh3_64_intdigest(text) & 0x7FFFFFFF) or 1


def url_parts(url: str) -> tuple[str, str]:
    """Host, and host with the first part of the path, of anything that is called a URL; both may be empty."""
    _, found, rest = url.partition("://")
    if not found:
        rest = url
    rest = rest.partition("?")[0].partition("#")[0]
    host, slash, path = rest.partition("/")
    return host.lower(), f"{host.lower()}/{path.partition('/')[0]}" if slash else ""


def signed_log(value: float) -> float:
    """sign(x) · log(1 + |x|) of any number, huge integers and NaN included (NaN is 0); at most about 710."""
    try:
        x = float(value)
    except OverflowError:
        return 710.0 if value > 0 else -710.0
    if math.isnan(x):
        return 0.0
    return math.copysign(math.log1p(min(abs(x), 1e308)), x)


@kernel
def _cosines(
    row: I32, recent: I32, target: I32, vectors: I16, norm2: float, visits: F64, unit: float, out: F32
) -> None:
    """Columns: url·previous, url·mean of recent, target·(url, previous, mean), log visits of both, has target."""
    dims = vectors.shape[1]
    mean = np.zeros(dims, np.float32)
    for t in range(len(row)):
        out[t, :] = 0
        i, p, g = row[t], recent[t, 0], target[t]
        mean[:] = 0
        square = np.float32(0)
        for d in range(recent.shape[1]):
            if recent[t, d] >= 0:
                for k in range(dims):
                    mean[k] += np.float32(vectors[recent[t, d], k])
        for k in range(dims):
            square += mean[k] * mean[k]
        length = np.sqrt(max(float(square), 1e-12) * norm2)
        a, b, c, e, f = np.float32(0), np.float32(0), np.float32(0), np.float32(0), np.float32(0)
        for k in range(dims):
            if i >= 0:
                if p >= 0:
                    a += np.float32(vectors[i, k]) * np.float32(vectors[p, k])
                b += np.float32(vectors[i, k]) * mean[k]
            if g >= 0:
                if i >= 0:
                    c += np.float32(vectors[g, k]) * np.float32(vectors[i, k])
                if p >= 0:
                    e += np.float32(vectors[g, k]) * np.float32(vectors[p, k])
                f += np.float32(vectors[g, k]) * mean[k]
        out[t, 0], out[t, 1] = a / norm2, b / length
        out[t, 2], out[t, 3], out[t, 4] = c / norm2, e / norm2, f / length
        if i >= 0:
            out[t, 5] = np.log1p(visits[i] / unit)
        if g >= 0:
            out[t, 6] = np.log1p(visits[g] / unit)
            out[t, 7] = 1


class Features:
    """Makes feature rows for a fixed number of tasks. Reads URL vectors and counts, changes nothing."""

    def __init__(self, settings: ModelSettings, tasks: int) -> None:
        self._settings = settings
        self.layout = layout(tasks)
        self._mark = layout_mark(tasks)
        self._first = {name: k for k, name in enumerate((*settings.categorical, *settings.numeric))}
        self._as_number = {name.removeprefix("properties.") for name in settings.numeric}
        self._as_category = {name.removeprefix("properties.") for name in settings.categorical}
        self._left_out = settings.exclude
        self._kept = [name not in settings.exclude for name in FIXED]

    def rows(self, visits: Sequence[VisitContext], steps: Steps, model: URL2Vec) -> NDArray[np.void]:
        """(n,) records, all but `counts` filled: those come from the classifier, which owns the counts."""
        n = len(visits)
        rows = np.zeros(n, self.layout)
        levels, numbers, targets = rows["levels"], rows["numbers"], np.zeros((n, PROPERTIES), np.uint64)
        for k, visit in enumerate(visits):
            levels[k, : len(FIXED)], numbers[k, :NUMBERS_FIXED] = self._fixed(visit)
            if visit.properties:
                self._properties(visit.properties, levels[k], numbers[k], targets[k])
        rows["mark"] = self._mark
        pages = np.concatenate([steps.url[:, None], steps.recent[:, : PAGES - 1]], axis=1)
        rows["pages"] = np.where(pages != 0, np.maximum(pages & np.uint64(0x7FFFFFFF), 1), 0)
        rows["cosines"] = self._similar(steps, targets, model)
        return rows

    def _fixed(self, visit: VisitContext) -> tuple[list[int], list[float]]:
        host, section = url_parts(visit.url)
        levels = [
            level("url", visit.url),
            level("host", host) if host else 0,
            level("section", section) if section else 0,
            level("entry", f"{visit.entry:x}"),
            level("previous", f"{visit.recent[0]:x}") if visit.recent else 0,
            level("event_name", visit.event_name),
            level("referrer_host", url_parts(visit.referrer)[0]) if visit.referrer else 0,
            level("user_agent", visit.user_agent) if visit.user_agent else 0,
        ]
        hour = visit.timestamp_ms / 3_600_000 % 24 / 24 * 2 * math.pi
        weekday = visit.timestamp_ms // 86_400_000 % 7
        numbers = [
            signed_log(visit.position),
            float(visit.position == 1),
            float(visit.repeat),
            signed_log(visit.since_previous_ms / 1000) if visit.since_previous_ms >= 0 else 0.0,
            float(visit.since_previous_ms < 0),
            signed_log(visit.since_start_ms / 1000),
            signed_log(visit.visits_before),
            signed_log(visit.sessions_before),
            math.sin(hour),
            math.cos(hour),
            float(weekday in (2, 3)),  # the epoch began on a Thursday: a weekend in UTC
        ]
        return [x if kept else 0 for x, kept in zip(levels, self._kept, strict=True)], numbers

    def _properties(
        self, properties: Mapping[str, str | int | float | bool], levels: I32, numbers: F32, targets: U64
    ) -> None:
        """A property goes where its name's hash points, or to the next free place: mostly one for one name."""
        names = sorted(properties, key=lambda name: (self._first.get(f"properties.{name}", len(self._first)), name))
        free, room = CATEGORIES - len(FIXED), NUMBERS - NUMBERS_FIXED
        for name in names:
            if f"properties.{name}" in self._left_out or name in self._left_out:
                continue
            value = properties[name]
            number = not isinstance(value, str | bool)
            if number and room and name not in self._as_category:
                at = level("", name) % (NUMBERS - NUMBERS_FIXED)
                while numbers[NUMBERS_FIXED + at] != 0:
                    at = (at + 1) % (NUMBERS - NUMBERS_FIXED)
                # An exact zero is told from an absent number, and holds its place, by being a hair above it.
                numbers[NUMBERS_FIXED + at] = signed_log(float_or_zero(value)) or 1e-6
                room -= 1
            small = not number or (isinstance(value, int) and -1000 < value < 1000) or name in self._as_category
            if free and small and name not in self._as_number:
                at = level("", name) % PROPERTIES
                while levels[len(FIXED) + at] != 0:
                    at = (at + 1) % PROPERTIES
                levels[len(FIXED) + at] = level(name, str(value))
                if isinstance(value, str):
                    targets[at] = url_identity(value[:_HASH_CHARS])
                free -= 1

    @staticmethod
    def _similar(steps: Steps, targets: U64, model: URL2Vec) -> F32:
        row, recent = model.vocabulary.find(steps.url), model.vocabulary.find(steps.recent)
        named = model.vocabulary.find(targets)  # (n, PROPERTIES): properties that hold the URL of a known page
        first = np.argmax(named >= 0, axis=1)
        target = np.ascontiguousarray(named[np.arange(len(named)), first])
        out = np.empty((len(row), COSINES), np.float32)
        _cosines(row, recent, target, model.sphere.vectors, ONE * ONE, model.counts.visits, model.counts.unit, out)
        seen, _ = model.counts.steps_seen(row, target)
        out[:, 8] = np.log1p(seen)  # a link from here to the page that a property names
        seen, _ = model.counts.steps_seen(np.ascontiguousarray(recent[:, 0]), row)
        out[:, 9] = np.log1p(seen)
        return out


def float_or_zero(value: str | int | float | bool) -> int | float:
    """The number in a property that is one."""
    return 0 if isinstance(value, str) else value


def parse(blobs: Sequence[bytes], tasks: int) -> tuple[NDArray[np.void], NDArray[np.bool_]]:
    """Records of stored rows, and which of the blobs had this layout; others are left out."""
    dtype, mark = layout(tasks), layout_mark(tasks).to_bytes(4, "little")
    fits = np.array([len(blob) == dtype.itemsize and blob[:4] == mark for blob in blobs], np.bool_)
    whole = b"".join(blob for blob, fit in zip(blobs, fits.tolist(), strict=True) if fit)
    return np.frombuffer(whole, dtype), fits
