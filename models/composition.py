"""Where an unseen URL may stand: composed from parts that it shares with known URLs.

A URL falls into parts: its host, the prefixes of its path, the keys of its query and key=value, the words of its last
segments and of its title. Of each part the live sum S of the unit vectors of its n URLs is kept. It says where the part
points (S / |S|) and how far it can be trusted: the mean cosine between two of its URLs,

    ρ = (|S|² - n) / (n (n - 1)),        shrunk towards what is usual for parts of its kind by one observation,
    c = ρ √(n / (1 + (n - 1) ρ)),        the cosine to expect between the part's direction and one more URL.

Each part is then an expert with a von Mises-Fisher distribution around its direction, of concentration
κ = c (d - c²) / (1 - c²) (Banerjee et al. 2005, "Clustering on the Unit Hypersphere", 4.4), and the product of experts
points to Σ κ S / |S|. Parts of one URL overlap (a category is in its path and in its words), so that counting all would
count the same evidence again: only the two most trusted speak. With a fifth of the URLs held back, the ten URLs nearest to
where one is composed are of its class for .31 on Wikispeedia (the mean under the longest known prefix .10, any ten .13; its
own learned vector .55), .72 in a synthetic shop of 60 topics (.74, .02; .98); c is right to .05 where it was compared.

Sums are integers: a row that leaves takes away exactly what it brought, in any order and on every replica.

Promises: `parts` is pure and never raises; `compose` changes nothing; memory is bounded. A part for which the table has
no room is refused and counted; room comes back when rows leave.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from urllib.parse import unquote

import numpy as np
import xxhash
from numpy.typing import NDArray

from models.compiled import kernel, mix

F32 = NDArray[np.float32]
I16 = NDArray[np.int16]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
U64 = NDArray[np.uint64]

PARTS = 12  # of a URL, at most: 1 host, 5 prefixes, 4 of the query, 6 words, the first ones of these
HOST, PATH, KEY, VALUE, WORD, KINDS = 1, 2, 3, 4, 5, 6
_LABELS = ("", "host", "path", "query key", "query", "word")
_URL_READ, _TITLE_READ = 4_096, 512  # characters that are looked at
_WORD = re.compile(r"[^\W_]{2,24}")  # longer ones are identifiers

MOST_TRUSTED = 2  # of a URL's parts speak: better than one or three, and than all, however weighed
_BUCKET = 8  # slots in which a part may live: their keys are one cache line
_SHIFT = 16.0  # a vector's 15 bits are rounded to 11, so that the sum of a million rows fits 32
_ONE = 32767.0 / _SHIFT
_PRIOR_PARTS, _PRIOR_COSINE = 3.0, 0.3  # of a kind of which nothing is known yet
_FEW = 4  # parts of 2 to 4 URLs say what is usual for a kind: where it matters, parts have one
_CACHED = 4_096  # URLs, between being scored and being learned; a megabyte or two
_CLOSEST = 0.97  # nothing is trusted more


def parts(url: str, title: str | None = None) -> tuple[int, ...]:
    """At most `PARTS` ids, unsigned 64 bit and never 0, of the parts of a canonical URL, general ones first."""
    return tuple([_identity(kind, text) for kind, text in _found(url, title)])


@lru_cache(_CACHED)
def remembered_parts(url: str) -> tuple[int, ...]:
    """As `parts`, which takes 25 µs for a long URL: most of what an unknown URL costs."""
    return parts(url)


def named_parts(url: str, title: str | None = None) -> list[str]:
    """The same parts in words, as `path shop.example/shoes`."""
    return [f"{_LABELS[kind]} {text}" for kind, text in _found(url, title)]


def _found(url: str, title: str | None) -> list[tuple[int, str]]:
    """(kind, text) of the parts, each once."""
    address = url[:_URL_READ]
    _, separator, rest = address.partition("://")
    rest, _, fragment = (rest if separator else address).partition("#")
    path, _, query = rest.partition("?")
    found: list[tuple[int, str]] = []
    host = ""
    if separator:
        host, _, path = path.partition("/")
        found.append((HOST, host))
    if fragment.startswith(("/", "!")):  # the route of a single-page application goes on where the path ends
        path += "/#" + fragment
    segments = [segment for segment in path.split("/", 64)[:64] if segment]
    depths = range(1, len(segments) + 1)
    kept = depths if len(segments) <= 5 else (*depths[:2], *depths[-3:])
    found += [(PATH, "/".join((host, *segments[:depth]))) for depth in kept]
    pairs = [pair.partition("=") for pair in query.split("&", 3)[:2] if pair] if query else []
    found += [(KEY, key) for key in dict.fromkeys(key for key, _, _ in pairs)]
    found += [(VALUE, pair) for pair in dict.fromkeys(f"{key}={value}" for key, _, value in pairs if value)]
    text = " ".join([*segments[-1:], (title or "")[:_TITLE_READ], *segments[-2:-1], *[value for _, _, value in pairs]])
    words = dict.fromkeys(_WORD.findall((unquote(text) if "%" in text else text).lower()))
    found += [(WORD, word) for word in words if not word.isdecimal()][:6]
    return found[:PARTS]


def table(every: Sequence[tuple[int, ...]]) -> U64:
    """Parts of n URLs as an array (n, PARTS); 0 where there is none."""
    out = np.zeros((len(every), PARTS), np.uint64)
    for row, ids in zip(out, every, strict=True):
        row[: len(ids)] = ids
    return out


def _identity(kind: int, text: str) -> int:
    """Hash of the part, its kind in the lowest three bits."""
    hashed: int = xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass"), seed=kind)
    return hashed & ~7 | kind


@kernel
def _among(wanted: np.uint64, part: np.uint64, key: U64) -> int:
    """Where, among the slots in which `part` may live, `wanted` is (0: a free slot); -1 for nowhere."""
    first = np.int64(mix(part) & np.uint64(len(key) // _BUCKET - 1)) * _BUCKET
    for at in range(first, first + _BUCKET):
        if key[at] == wanted:
            return at
    return -1


@kernel
def _enter(parts: U64, key: U64, holders: I32, slots: I32) -> int:
    """Give each part a slot, a new one where it has none; -1 for no part, or no room. Returns how many had no room."""
    refused = 0
    for t in range(parts.shape[0]):
        for p in range(parts.shape[1]):
            part = parts[t, p]
            slots[t, p] = -1
            if part == 0:
                continue
            at = _among(part, part, key)
            if at < 0:
                at = _among(np.uint64(0), part, key)
                if at >= 0:
                    key[at] = part
            if at < 0:
                refused += 1
            else:
                slots[t, p] = at
                holders[at] += 1
    return refused


@kernel
def _leave(slots: I32, key: U64, holders: I32) -> None:
    for t in range(slots.shape[0]):
        for p in range(slots.shape[1]):
            at = slots[t, p]
            if at >= 0:
                holders[at] -= 1
                if holders[at] == 0:
                    key[at] = 0


@kernel
def _length2(sums: I32, at: int, but: I32) -> float:
    """|S|² of a slot, without the vector `but`, in units of a URL's squared length."""
    total = 0.0
    for k in range(sums.shape[1]):
        x = np.float64(sums[at, k] - but[k])
        total += x * x
    return total / (_ONE * _ONE)


@kernel
def _cosine(n: int, length2: float) -> float:
    """Mean cosine between two of the n ≥ 2 URLs of a part."""
    return (length2 - n) / (n * (n - 1.0))


@kernel
def _usual(at: int, sign: int, nothing: I32, key: U64, urls: I32, sums: I32, usual: I64) -> None:
    """Add the slot to, or take it out of, what is usual for its kind. usual (KINDS, 2): Σ cosine in 2**-20, and parts."""
    n = urls[at]
    if 2 <= n <= _FEW:
        kind = np.int64(key[at] & np.uint64(7))
        usual[kind, 0] += sign * np.int64(np.rint(_cosine(n, _length2(sums, at, nothing)) * 2.0**20))
        usual[kind, 1] += sign


@kernel
def _replace(slots: I32, old: I16, new: I16, key: U64, urls: I32, sums: I32, usual: I64) -> None:
    moved, nothing = np.empty(sums.shape[1], np.int32), np.zeros(sums.shape[1], np.int32)
    for t in range(slots.shape[0]):
        if slots[t].max() < 0:  # it has no name, or its parts found no room
            continue
        was = False
        will = False
        for k in range(sums.shape[1]):
            was = was or old[t, k] != 0
            will = will or new[t, k] != 0
            moved[k] = np.int32(np.rint(new[t, k] / _SHIFT)) - np.int32(np.rint(old[t, k] / _SHIFT))
        for p in range(slots.shape[1]):
            at = slots[t, p]
            if at < 0:
                continue
            _usual(at, -1, nothing, key, urls, sums, usual)
            urls[at] += np.int32(will) - np.int32(was)
            for k in range(sums.shape[1]):
                sums[at, k] += moved[k]
            _usual(at, 1, nothing, key, urls, sums, usual)


@kernel
def _compose(parts: U64, own: I16, key: U64, urls: I32, sums: I32, usual: I64, used: I32, trust: F32, out: F32) -> None:
    """used, trust (m, MOST_TRUSTED): which parts spoke, -1 for none, and c of each; out (m, dims), of length one or zero.

    own (m, dims): a vector of which the parts' sums are to be read as if it were not in them; zeros for none.
    """
    dims = sums.shape[1]
    length, but = np.empty(MOST_TRUSTED), np.empty(dims, np.int32)
    for t in range(parts.shape[0]):
        used[t, :] = -1
        trust[t, :] = 0
        out[t, :] = 0
        known = False
        for k in range(dims):
            but[k] = np.int32(np.rint(own[t, k] / _SHIFT))
            known = known or own[t, k] != 0
        for p in range(parts.shape[1]):
            at = _among(parts[t, p], parts[t, p], key) if parts[t, p] != 0 else -1
            n = urls[at] - np.int32(known) if at >= 0 else 0
            if n <= 0:
                continue
            length2, kind = _length2(sums, at, but), np.int64(parts[t, p] & np.uint64(7))
            if kind >= usual.shape[0] or length2 <= 0:
                continue
            rho = (usual[kind, 0] * 2.0**-20 + _PRIOR_PARTS * _PRIOR_COSINE) / (usual[kind, 1] + _PRIOR_PARTS)
            rho = max(rho, 0.01)
            if n > 1:
                rho = min(((n - 1) * _cosine(n, length2) + rho) / n, 1.0)
            if rho <= 0:
                continue
            c = np.float32(min(rho * np.sqrt(n / (1 + (n - 1) * rho)), _CLOSEST))
            rank = MOST_TRUSTED
            while rank > 0 and c > trust[t, rank - 1]:
                rank -= 1
            if rank == MOST_TRUSTED:
                continue
            for r in range(MOST_TRUSTED - 1, rank, -1):
                trust[t, r], used[t, r], length[r] = trust[t, r - 1], used[t, r - 1], length[r - 1]
            trust[t, rank], used[t, rank], length[rank] = c, p, np.sqrt(length2)
        norm = 0.0
        for r in range(MOST_TRUSTED):
            if used[t, r] >= 0:
                c2 = np.float64(trust[t, r]) ** 2
                weight = trust[t, r] * (dims - c2) / (1 - c2) / length[r]
                at = _among(parts[t, used[t, r]], parts[t, used[t, r]], key)
                for k in range(dims):
                    out[t, k] += np.float32(weight * (sums[at, k] - but[k]))
        for k in range(dims):
            norm += np.float64(out[t, k]) * np.float64(out[t, k])
        if norm > 0:
            for k in range(dims):
                out[t, k] = np.float32(out[t, k] / np.sqrt(norm))


class Composer:
    """Sums of vectors by part, in a table of fixed size: 4 dims + 16 bytes a part.

    Who keeps the vectors keeps each row's slots too, I32 (PARTS,): `enter` when a URL gets a row, `replace` whenever its
    vector moves, `replace` by zeros and `leave` when it loses the row.
    """

    def __init__(self, dims: int, table_bits: int) -> None:
        """Room for 2 ** table_bits parts of vectors of `dims` numbers. Raises ValueError for fewer than 2 ** 3."""
        if table_bits < 3:
            raise ValueError(f"a table of parts needs 3 bits, got {table_bits}")
        size = 1 << table_bits
        self.refused = 0  # parts for which there was no room
        self._key: U64 = np.zeros(size, np.uint64)
        self._holders: I32 = np.zeros(size, np.int32)  # rows that have the part
        self._urls: I32 = np.zeros(size, np.int32)  # those of them that have a vector
        self._sums: I32 = np.zeros((size, dims), np.int32)
        self._usual: I64 = np.zeros((KINDS, 2), np.int64)

    def enter(self, parts: U64) -> I32:
        """Slots (n, P) of the parts (n, P) of URLs that got a row; they count once they are given a vector."""
        slots = np.empty(parts.shape, np.int32)
        self.refused += int(_enter(parts, self._key, self._holders, slots))
        return slots

    def parts_at(self, slots: I32) -> U64:
        """The parts (n, P) that have these slots; 0 where there is none."""
        return np.where(slots >= 0, self._key[slots], np.uint64(0))

    def replace(self, slots: I32, old: I16, new: I16) -> None:
        """Rows, each once, moved from `old` to `new` (n, dims): unit vectors times 32767, zeros for none."""
        _replace(slots, old, new, self._key, self._urls, self._sums, self._usual)

    def leave(self, slots: I32) -> None:
        """The rows that have these slots are gone; their vectors were replaced by zeros before."""
        _leave(slots, self._key, self._holders)

    def compose(self, parts: U64, own: I16 | None = None) -> tuple[F32, F32]:
        """Vectors (m, dims), of length one or zero, and how far to trust each: the cosine to expect with the learned one.

        `own`: the vectors that these very URLs have in the sums; then each is composed from the others alone.
        """
        vectors, trust, _ = self._composed(parts, own)
        return vectors, np.ascontiguousarray(trust[:, 0])

    def used(self, parts: U64) -> list[list[int]]:
        """Which of each URL's parts it is composed from, by position, the most trusted first."""
        return [[p for p in row if p >= 0] for row in self._composed(parts, None)[2].tolist()]

    def _composed(self, parts: U64, own: I16 | None) -> tuple[F32, F32, I32]:
        m, dims = len(parts), self._sums.shape[1]
        vectors, trust = np.empty((m, dims), np.float32), np.empty((m, MOST_TRUSTED), np.float32)
        used = np.empty((m, MOST_TRUSTED), np.int32)
        if own is None:
            own = np.zeros((m, dims), np.int16)
        _compose(parts, own, self._key, self._urls, self._sums, self._usual, used, trust, vectors)
        return vectors, trust, used

    def state(self) -> dict[str, NDArray[np.generic]]:
        """Arrays from which `load` makes an equal table; free slots are left out."""
        held = np.flatnonzero(self._key).astype(np.int32)
        return {
            "slot": held,
            "key": self._key[held],
            "holders": self._holders[held],
            "urls": self._urls[held],
            "sums": self._sums[held],
            "usual": self._usual.copy(),
            "refused": np.array([self.refused], np.int64),
        }

    def load(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Take over a saved state. Raises ValueError, KeyError or IndexError where it does not fit; then do not use this."""
        held = state["slot"]
        if len(held) and not 0 <= int(held.min()) <= int(held.max()) < len(self._key):
            raise ValueError("a part lies beyond the table")
        for name, mine in (("key", self._key), ("holders", self._holders), ("urls", self._urls), ("sums", self._sums)):
            mine[...] = 0
            mine[held] = state[name]
        self._usual[...] = state["usual"]
        self.refused = int(state["refused"][0])
