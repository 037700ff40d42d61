"""URL2vec: a vector for each URL, learned in one pass while the stream flows.

Skip-gram with negative sampling factorises a PMI matrix implicitly (Levy, Goldberg 2014); here it is factorised
explicitly and online, by subspace iteration whose rows are kept on a sphere. Counts are the state, vectors follow from
them: a row is derived anew from its slots once its mass has grown enough, and rows that nothing touched keep
their bits.

Promises: `learn` depends on state and lesson alone; the readers change nothing. Not here: eviction, forgetting,
composition of unseen URLs.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from models.counts import (
    F32,
    F64,
    I32,
    U64,
    add_pairs,
    add_successors,
    first_vectors,
    gather,
    step_share,
    top_successors,
)
from models.lesson import Steps
from models.settings import ModelSettings
from models.vocabulary import Vocabulary

State = dict[str, NDArray[np.generic]]
_DRIFTED = 0.8  # Newton-Schulz converges below 1; beyond this an eigendecomposition is surer


class URL2Vec:
    """Vectors, neighbours and successors of URLs. Rows, everywhere, are the vocabulary's; -1 is an unknown URL."""

    def __init__(self, settings: ModelSettings) -> None:
        self._settings = settings
        self.radius = float(np.sqrt(settings.dims))  # unit variance a dimension
        self.vocabulary = Vocabulary(settings.capacity)
        self._weight: F32 = (1 / np.arange(1, settings.window + 1) ** settings.distance_power).astype(np.float32)
        self._total: F64 = np.zeros(1)
        self._draws: U64 = np.array([settings.seed], np.uint64)
        self._gram = torch.zeros(settings.dims, settings.dims, dtype=torch.float64)  # Σ w wᵀ over known rows
        self._whitener = torch.eye(settings.dims, dtype=torch.float64)  # tracks (gram / rows) ** -1/2
        self._allocate(min(1024, settings.capacity))

    def _allocate(self, rows: int) -> None:
        s = self._settings
        self.slot_url: I32 = np.zeros((rows, s.slots), np.int32)
        self.slot_count: F32 = np.zeros((rows, s.slots), np.float32)
        self.used: I32 = np.zeros(rows, np.int32)
        self.next_url: I32 = np.zeros((rows, s.successor_slots), np.int32)
        self.next_count: F32 = np.zeros((rows, s.successor_slots), np.float32)
        self.next_used: I32 = np.zeros(rows, np.int32)
        self.mass: F64 = np.zeros(rows)  # Σ of the weights of a row's pairs; float64, for small weights meet large sums
        self._mass_then: F64 = np.zeros(rows)  # at the row's last refresh
        self._log_mass: F64 = np.zeros(rows)
        self.vectors: F32 = np.zeros((rows, s.dims), np.float32)
        self._mark = np.zeros(rows, np.bool_)

    _GROWING = (
        "slot_url", "slot_count", "used", "next_url", "next_count", "next_used",
        "mass", "_mass_then", "_log_mass", "vectors", "_mark",
    )  # fmt: skip

    def _grow(self, rows: int) -> None:
        old = len(self.mass)
        if rows <= old:
            return
        kept = {name: getattr(self, name) for name in self._GROWING}
        while old < rows:
            old *= 2
        self._allocate(min(old, self._settings.capacity))
        for name, array in kept.items():
            getattr(self, name)[: len(array)] = array

    def learn(self, steps: Steps, names: Mapping[int, str]) -> dict[int, str]:
        """Learn the pairs and steps of some visits. Returns the names that were news to this replica."""
        if not len(steps.url):
            return self.vocabulary.name(names)
        before = self.vocabulary.count
        every = self.vocabulary.admit(np.concatenate([steps.url[:, None], steps.recent], axis=1))
        row, recent = np.ascontiguousarray(every[:, 0]), np.ascontiguousarray(every[:, 1:])
        self.vocabulary.refused += int((row < 0).sum())
        self._grow(self.vocabulary.count)
        if self.vocabulary.count > before:
            fresh = self.vectors[before : self.vocabulary.count]
            first_vectors(self.vocabulary.ids[before:], self.radius, fresh)
            self._add_gram(fresh, 1.0)
        touched = np.empty(min(len(self.mass), every.size), np.int32)
        n = add_pairs(
            row, recent, steps.repeat, self._weight, self.slot_url, self.slot_count, self.used, self.mass,
            self._total, self._draws, self._mark, touched,
        )  # fmt: skip
        add_successors(row, recent, steps.repeat, self.next_url, self.next_count, self.next_used, self._draws)
        self._refresh(touched[:n])
        return self.vocabulary.name(names)

    def _add_gram(self, vectors: F32, sign: float) -> None:
        v = torch.tensor(
            vectors, dtype=torch.float64
        )  # a copy: aligned memory, so that the same sums give the same bits
        self._gram += sign * (v.T @ v)

    def _refresh(self, rows: I32) -> None:
        """Derive anew the vectors of rows whose mass has grown enough, all from the old ones; move the whitener."""
        rows = rows[self.mass[rows] - self._mass_then[rows] >= self._settings.refresh * self.mass[rows]]
        if not len(rows):
            return
        self._mass_then[rows] = self.mass[rows]
        self._log_mass[rows] = np.log(self.mass[rows])
        sums = np.empty((len(rows), self._settings.dims), np.float32)
        log_total = float(np.log(self._total[0]))
        gather(rows, self.slot_url, self.slot_count, self.used, self._log_mass, log_total, self.vectors, sums)
        z = torch.tensor(sums) @ self._whitener.to(torch.float32)  # (n, dims)
        norm = z.norm(dim=1, keepdim=True)
        old = torch.tensor(self.vectors[rows])
        # Without this normalisation heavy topics take the whole subspace (.74 instead of .99 on 500 topics).
        z = torch.where(torch.isfinite(norm) & (norm > 1e-3), self.radius * z / norm.clamp_min(1e-9), old)
        wide, narrow = z.double(), old.double()
        self._gram += wide.T @ wide - narrow.T @ narrow
        self.vectors[rows] = z.numpy()
        self._whiten()

    def _whiten(self) -> None:
        gram, eye = self._gram / self.vocabulary.count, torch.eye(self._settings.dims, dtype=torch.float64)
        error = self._whitener @ gram @ self._whitener - eye
        if error.norm() < _DRIFTED:  # one Newton-Schulz step towards gram ** -1/2
            w = self._whitener @ (eye - 0.5 * error)
        else:
            values, basis = torch.linalg.eigh(gram)
            w = basis / values.clamp_min(1e-4 * float(values[-1])).sqrt() @ basis.T
        self._whitener = (w + w.T) / 2

    def successors(self, rows: I32, k: int) -> tuple[I32, F32]:
        """(n, k) rows most often seen next, best first, -1 where there are fewer; and the share of each."""
        out, score = np.empty((len(rows), k), np.int32), np.empty((len(rows), k), np.float32)
        top_successors(rows, self.next_url, self.next_count, self.next_used, out, score)
        return out, score

    def steps_seen(self, before: I32, after: I32) -> tuple[F32, F32]:
        """How often each step before → after was seen, and how often any step from `before`."""
        seen, total = np.empty(len(before), np.float32), np.empty(len(before), np.float32)
        step_share(before, after, self.next_url, self.next_count, self.next_used, seen, total)
        return seen, total

    def popularity(self, rows: I32) -> F64:
        """Share of the mass that a URL has, as if a thousand more URLs were known that nobody visited yet."""
        mass = np.where(rows >= 0, self.mass[np.maximum(rows, 0)], 0.0)
        share: F64 = (mass + 1) / (self._total[0] + self.vocabulary.count + 1000)
        return share

    def nearest(self, row: int, k: int) -> list[tuple[int, float]]:
        """The k rows with the highest cosine, of those that co-occurred with anything and have a name."""
        return self._nearest(self.vectors[row] / np.float32(self.radius), k, row)

    def nearest_to_mean(self, rows: list[int], k: int) -> list[tuple[int, float]]:
        """The k rows nearest to where a URL like these may stand: their mean, each weighed by the logarithm of its mass."""
        weight = np.log1p(self.mass[rows])[:, None]
        mean = (self.vectors[rows] * weight).sum(axis=0)
        length = float(np.linalg.norm(mean))
        return self._nearest(mean / np.float32(length), k) if length > 0 else []

    def _nearest(self, unit: F32, k: int, but: int | None = None) -> list[tuple[int, float]]:
        n = self.vocabulary.count
        cosine = self.vectors[:n] @ unit / self.radius
        cosine[self.mass[:n] <= 0] = -2
        if but is not None:
            cosine[but] = -2
        best = np.argsort(-cosine, kind="stable")
        named = [int(r) for r in best[: k + 64] if cosine[r] > -2 and self.vocabulary.names[int(r)]]
        return [(r, float(cosine[r])) for r in named[:k]]

    def state(self) -> State:
        """Arrays from which `load` makes an equal model; unused slots are left out."""
        n = self.vocabulary.count
        filled = np.arange(self._settings.slots) < self.used[:n, None]
        followed = np.arange(self._settings.successor_slots) < self.next_used[:n, None]
        own: State = {
            "slot_url": self.slot_url[:n][filled],
            "slot_count": self.slot_count[:n][filled],
            "used": self.used[:n],
            "next_url": self.next_url[:n][followed],
            "next_count": self.next_count[:n][followed],
            "next_used": self.next_used[:n],
            "mass": self.mass[:n],
            "mass_then": self._mass_then[:n],
            "log_mass": self._log_mass[:n],
            "vectors": self.vectors[:n],
            "total": self._total,
            "draws": self._draws,
            "gram": self._gram.numpy(),
            "whitener": self._whitener.numpy(),
        }
        return own | {f"vocabulary.{key}": value for key, value in self.vocabulary.state().items()}

    def load(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Take over a saved state. Raises ValueError or KeyError where it does not fit; then this model is unusable."""
        prefix = "vocabulary."
        self.vocabulary.load({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
        n = self.vocabulary.count
        self._allocate(min(1024, self._settings.capacity))
        self._grow(n)
        for name in ("used", "next_used", "mass", "vectors"):
            getattr(self, name)[:n] = state[name]
        self._mass_then[:n], self._log_mass[:n] = state["mass_then"], state["log_mass"]
        filled = np.arange(self._settings.slots) < self.used[:n, None]
        followed = np.arange(self._settings.successor_slots) < self.next_used[:n, None]
        for name in ("slot_url", "slot_count"):
            getattr(self, name)[:n][filled] = state[name]
        for name in ("next_url", "next_count"):
            getattr(self, name)[:n][followed] = state[name]
        for pointers in (state["slot_url"], state["next_url"]):
            if len(pointers) and not 0 <= int(pointers.min()) <= int(pointers.max()) < n:
                raise ValueError("a slot points to a URL that is not in the vocabulary")
        self._total[:], self._draws[:] = state["total"], state["draws"]
        self._gram.copy_(torch.tensor(state["gram"]))
        self._whitener.copy_(torch.tensor(state["whitener"]))
