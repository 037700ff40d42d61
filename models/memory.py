"""A bounded memory of labelled sessions: vectors trained by triplets, the vote of the nearest ones, and which they were.

FaceNet's triplets (Schroff, Kalenichenko, Philbin 2015) on sessions: an example is drawn to a remembered session with its
label and pushed from the hardest one, among those sampled, with the other label. The anchor may come without its URL of
the moment, and sessions are never compared with themselves.

Rules: a task has a ring a label, so that a rare label keeps its place: what is remembered is the last `ROOM` sessions of
each. A session stands in a ring at most once (sessions without identity, 0, are all different). Answers compare the mean
vote of either ring, so they are relative to the prior whatever the rings hold; `prior` is what to add. `score` and
`nearest` change nothing; `learn` depends on state and examples alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.features import CATEGORIES, EXPERTS, PAGES
from models.memory_kernels import COMMON, ENOUGH, F32, I32, WIDTH, embed, first_rows, learn, vote
from models.settings import ModelSettings

ROOM = 256  # sessions of each label; more rank a little better, and each costs every visit 3 ns
BITS = 15  # log2 of the rows of a task's table: 2 MB
OVERLAP_COUNTS = 2.0  # against the cosine, in what is shown: a page in common of five is about a tenth
_BLEND = EXPERTS.index("blend")

Rows = NDArray[np.void]


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A remembered session that resembles the one asked for."""

    similarity: float  # cosine of the vectors, as the vote counts it
    overlap: float  # share of the asked visit's pages and levels that it has too, rare ones weighing more
    label: bool  # how its question was answered
    session: int  # the lower 32 bits of its identity
    pages: tuple[int, ...]  # of the visit remembered, newest first, as feature rows hold them
    levels: tuple[int, ...]  # (CATEGORIES,) likewise
    age: int  # examples learned since
    probability: float  # the answer it got; NaN where that is not known


class Memory:
    """T tasks, each with a table of rows and two rings (one a label) of `ROOM` sessions."""

    def __init__(self, settings: ModelSettings, tasks: int) -> None:
        self._tasks, rows = tasks, 1 << min(BITS, settings.embedding_bits)
        self._table: F32 = np.empty((tasks, rows, WIDTH), np.float32)
        for t in range(tasks):
            first_rows(self._table[t])
        self._squares: F32 = np.zeros((tasks, rows), np.float32)  # 0: as it was at first
        self._seen: F32 = np.zeros((tasks, rows), np.float32)
        self._totals = np.zeros((tasks, 3))  # see models.memory_kernels.learn
        self._clock = np.zeros((tasks, 1), np.int64)
        self._count = np.zeros((tasks, 2), np.int64)
        ring = (tasks, 2, ROOM)
        self._vectors: F32 = np.zeros((*ring, WIDTH), np.float32)
        self._sessions = np.zeros(ring, np.uint32)
        self._visits: I32 = np.zeros(ring, np.int32)  # of the session, met so far; 0 is a free place
        self._born = np.zeros(ring, np.int64)
        self._chances: F32 = np.zeros(ring, np.float32)
        self._pages: I32 = np.zeros((*ring, PAGES), np.int32)
        self._levels: I32 = np.zeros((*ring, CATEGORIES), np.int32)
        self._columns: F32 | None = None  # (T, 2, WIDTH, ROOM): the vectors again, as the vote reads them

    @property
    def remembered(self) -> NDArray[np.int64]:
        """(T, 2) sessions in the rings: negative, positive."""
        return np.minimum(self._count, ROOM)

    @property
    def prior(self) -> F32:
        """(T,) logit of the recent rate of positive answers: what to add to `score` for a logit of the answer."""
        rate = (self._totals[:, 0] + 0.5) / (self._totals[:, 1] + 1.0)
        return np.log(rate / (1 - rate)).astype(np.float32)

    def score(self, rows: Rows) -> F32:
        """(B, T) logits relative to the prior, from other sessions; NaN while too few are remembered."""
        out = np.full((self._tasks, len(rows)), np.nan, np.float32)
        if len(rows) and self._columns is None:
            self._columns = np.ascontiguousarray(self._vectors.transpose(0, 1, 3, 2))
        session = np.ascontiguousarray(rows["session"])
        for t in range(self._tasks):
            if len(rows) and self.remembered[t].min() >= ENOUGH:
                assert self._columns is not None
                asked = self._embedded(rows, t)
                vote(asked, session, self._columns[t], self._sessions[t], self.remembered[t], out[t])
        return np.ascontiguousarray(out.T)

    def _embedded(self, rows: Rows, t: int) -> F32:
        out = np.empty((len(rows), WIDTH), np.float32)
        pages, levels = np.ascontiguousarray(rows["pages"]), np.ascontiguousarray(rows["levels"])
        embed(pages, levels, self._table[t], self._seen[t], float(self._totals[t, 2]), out)
        return out

    def learn(self, rows: Rows, task: I32, label: F32, weight: F32 | None = None) -> None:
        """Learn m examples, one after the other: their rows, index of the task, label 0 or 1, weight (1 without one)."""
        weight = np.ones(len(rows), np.float32) if weight is None else weight
        self._columns = None
        for t in np.unique(task).tolist():
            mine = np.flatnonzero(task == t)
            these = rows[mine]
            answer = np.clip(these["experts"][:, t, _BLEND].astype(np.float32), -30, 30)  # NaN stays NaN
            chance = (1 / (1 + np.exp(-answer))).astype(np.float32)
            learn(
                np.ascontiguousarray(these["pages"]), np.ascontiguousarray(these["levels"]),
                np.ascontiguousarray(these["session"]), label[mine].astype(np.float32), weight[mine].astype(np.float32),
                chance, self._table[t], self._squares[t], self._seen[t], self._totals[t],
                self._clock[t], self._count[t], self._vectors[t], self._sessions[t], self._visits[t], self._born[t],
                self._chances[t], self._pages[t], self._levels[t],
            )  # fmt: skip

    def nearest(self, row: Rows, task: int, k: int) -> list[Neighbour]:
        """The k remembered sessions nearest to that of a row (a record, or an array of one), best first; never itself.

        Nearest by cosine and overlap together: vectors say what matters for the answer, and by them alone sessions that
        end alike are alike, which shows a person nothing. The vote counts the cosine alone.
        """
        row = np.atleast_1d(row)
        session = int(row["session"][0])
        similarity = self._vectors[task] @ self._embedded(row, task)[0]  # (2, ROOM)
        overlap = self._overlap(row, task)
        near = similarity + OVERLAP_COUNTS * overlap
        itself = (self._sessions[task] == session) & (session != 0)
        near[itself | (self._visits[task] == 0)] = -np.inf
        places = np.argsort(-near, axis=None, kind="stable")[:k]
        return [
            self._neighbour(task, divmod(place, ROOM), float(similarity.flat[place]), float(overlap.flat[place]))
            for place in places.tolist()
            if near.flat[place] > -np.inf
        ]

    def _overlap(self, row: Rows, task: int) -> F32:
        """(2, ROOM) in [0, 1]; an item weighs as in a session's vector, and is found wherever it stands."""
        total, shared = 1e-6, np.zeros((2, ROOM), np.float32)
        for name, kept in (("pages", self._pages[task]), ("levels", self._levels[task])):
            for item in np.unique(row[name][0]).tolist():
                if item:
                    weight = COMMON / (COMMON + float(self.frequency(np.array([item]), task)[0]))
                    total += weight
                    shared += np.float32(weight) * (kept == item).any(axis=-1)
        share: F32 = shared / np.float32(total)
        return share

    def frequency(self, levels: I32, task: int) -> F32:
        """In which share of the task's examples each level was met; more of it forgotten the longer ago."""
        at = np.asarray(levels, np.int64) & (self._seen.shape[1] - 1)
        share: F32 = (self._seen[task, at] / max(float(self._totals[task, 2]), 1.0)).astype(np.float32)
        return share

    def _neighbour(self, t: int, at: tuple[int, int], similarity: float, overlap: float) -> Neighbour:
        return Neighbour(
            min(max(similarity, -1.0), 1.0),
            min(overlap, 1.0),
            at[0] == 1,
            int(self._sessions[t][at]),
            tuple(page for page in self._pages[t][at].tolist() if page),
            tuple(self._levels[t][at].tolist()),
            int(self._clock[t, 0] - self._born[t][at]),
            float(self._chances[t][at]),
        )

    def _rings(self) -> dict[str, NDArray[np.generic]]:
        return {
            "vectors": self._vectors, "sessions": self._sessions, "visits": self._visits, "born": self._born,
            "chances": self._chances, "pages": self._pages, "levels": self._levels,
        }  # fmt: skip

    def state(self) -> dict[str, NDArray[np.generic]]:
        """Arrays from which `load` makes an equal memory: of the tables what was learned, of the rings what is in use."""
        out: dict[str, NDArray[np.generic]] = {
            "totals": self._totals, "clock": self._clock, "count": self._count,
        }  # fmt: skip
        moved, met = np.flatnonzero(self._squares), np.flatnonzero(self._seen)
        out["moved.at"], out["moved.squares"] = moved.astype(np.int32), self._squares.reshape(-1)[moved]
        out["moved.rows"] = self._table.reshape(-1, WIDTH)[moved]
        out["seen.at"], out["seen.values"] = met.astype(np.int32), self._seen.reshape(-1)[met]
        used = int(self.remembered.max(initial=0))
        return out | {f"ring.{name}": array[:, :, :used] for name, array in self._rings().items()}

    def load(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Take over a saved state. Raises ValueError, and stays as it was, where it does not fit."""
        own = {"totals": self._totals, "clock": self._clock, "count": self._count}
        for name, mine in own.items():
            _same(name, _of(state, name), mine.dtype, mine.shape)
            counted = state[name].astype(np.float64)
            if not (np.isfinite(counted) & (counted >= 0)).all():
                raise ValueError(f"memory: {name} holds what is no count")
        used = int(np.minimum(state["count"], ROOM).max(initial=0))
        for name, ring in self._rings().items():
            found = _of(state, f"ring.{name}")
            _same(f"ring.{name}", found, ring.dtype, (*ring.shape[:2], used, *ring.shape[3:]))
        flat = self._squares.size
        for part, names in (("moved", ("squares", "rows")), ("seen", ("values",))):
            at = _of(state, f"{part}.at")
            _same(f"{part}.at", at, np.dtype(np.int32), (at.size,))
            if at.size and not (
                int(at.min()) >= 0 and int(at.max()) < flat and (np.diff(at.astype(np.int64)) > 0).all()
            ):
                raise ValueError(f"memory: {part}.at holds places that are not in the table, or not in order")
            for name in names:
                values = _of(state, f"{part}.{name}")
                _same(
                    f"{part}.{name}", values, np.dtype(np.float32), (at.size, WIDTH) if name == "rows" else (at.size,)
                )
                if not np.isfinite(values).all():
                    raise ValueError(f"memory: {part}.{name} holds what is no number")
        for name, mine in own.items():
            mine[...] = state[name]
        for name, ring in self._rings().items():
            ring[...] = 0
            ring[:, :, :used] = state[f"ring.{name}"]
        for t in range(self._tasks):
            first_rows(self._table[t])
        self._squares[...], self._seen[...] = 0, 0
        self._squares.reshape(-1)[state["moved.at"].astype(np.int64)] = state["moved.squares"]
        self._table.reshape(-1, WIDTH)[state["moved.at"].astype(np.int64)] = state["moved.rows"]
        self._seen.reshape(-1)[state["seen.at"].astype(np.int64)] = state["seen.values"]
        self._columns = None


def _of(state: Mapping[str, NDArray[np.generic]], name: str) -> NDArray[np.generic]:
    if name not in state:
        raise ValueError(f"memory: {name} is missing")
    return state[name]


def _same(name: str, found: NDArray[np.generic], dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> None:
    if found.dtype != dtype or found.shape != shape:
        raise ValueError(f"memory: {name} is {found.dtype}{found.shape}, expected {dtype}{shape}")
