"""Vectors that follow from the counts: one subspace iteration at a time, every row kept on a sphere.

What skip-gram with negative sampling fits by gradient steps is, implicitly, a factorisation of the shifted PMI matrix (Levy,
Goldberg 2014, "Neural word embedding as implicit matrix factorization"). Here its positive part M is factorised explicitly:

    z_i = Σ_j M_ij w_j,   M_ij = √max(0, log(c_ij · Z / (r_i · r_j^α))) · c_ij / (c_ij + u)            (power iteration)
    w_i = z_i R / |z_i R|                                                                        (spherical)
    R   ≈ (Σ_i w_i w_iᵀ / n)^(-1/2)                                                              (whitening)

c: co-visit weight of the slot, r: mass of a row, Z = Σ_j r_j^α, u: what one visit adds. A row is derived anew when its mass
has grown by a share (`refresh`) since it last was, from the other rows as they are then. α = 0.75 damps the pull of rare
neighbours (Levy, Goldberg, Dagan 2015, section 3.2: it is what word2vec's noise distribution does), the root that of strong
ones; c / (c + u) distrusts what was seen once (Pantel, Lin 2002). Without the whitening all rows would turn to the first
eigenvector; without the sphere heavy topics take the whole subspace (.74 instead of .99 on 500 synthetic topics).

Vectors are kept as int16, a unit vector times 32,767: half of float32, and a gather as fast. They live on the CPU, where
everybody reads them; with another device, a copy there follows, and the sums are made on it.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from models.compiled import kernel, mix
from models.counts import F32, F64, I16, I32, U8, U64, Slots, longer

ONE = 32767.0  # of a stored coordinate
ALPHA = 0.75
_DRIFTED = 0.8  # Newton-Schulz converges below 1; beyond this an eigendecomposition is surer
_WHITEN_AFTER = 0.2  # share of the rows that must have moved: a tenth of the time, and the same quality


@kernel
def _weight(c: float, log_mass: float, other: float, log_z: float, unit: float) -> float:
    """M_ij as above, from the slot's count and the logarithms of both masses."""
    pmi = np.log(c) + log_z - log_mass - ALPHA * other
    return float(np.sqrt(pmi) * c / (c + unit)) if pmi > 0 else 0.0


@kernel
def gather(
    rows: I32, url: I32, count: F32, used: U8, log_mass: F32, log_z: float, unit: float, vectors: I16, out: F32
) -> None:
    """out[t] (dims,) = z of rows[t] as above, in units of ONE."""
    for t in range(len(rows)):
        i = rows[t]
        out[t, :] = 0
        for q in range(np.int64(used[i])):
            j = url[i, q]
            x = np.float32(_weight(np.float64(count[i, q]), log_mass[i], log_mass[j], log_z, unit))
            if x > 0:
                for k in range(out.shape[1]):
                    out[t, k] += x * np.float32(vectors[j, k])


@kernel
def weigh(
    rows: I32, url: I32, count: F32, used: U8, log_mass: F32, log_z: float, unit: float, weight: F32, at: I32
) -> None:
    """The same M_ij as `gather`, as (n, slots) weights and columns, for a device that does the sums itself."""
    for t in range(len(rows)):
        i = rows[t]
        weight[t, :] = 0
        at[t, :] = i
        for q in range(np.int64(used[i])):
            j = url[i, q]
            weight[t, q] = np.float32(_weight(np.float64(count[i, q]), log_mass[i], log_mass[j], log_z, unit))
            at[t, q] = j


@kernel
def land(rows: I32, z: F32, pull: F32, vectors: I16, step: F32, middle: F32) -> None:
    """Put z (n, dims) back on the sphere, after adding `pull` to its direction. step, middle (n, dims): by what each vector
    moved, and half-way there, as `Sphere._moved_by` wants them.

    A z of no length, or not finite, leaves its row as it was.
    """
    dims = z.shape[1]
    for t in range(len(rows)):
        i, square = rows[t], np.float64(0)
        for k in range(dims):
            middle[t, k] = np.float32(vectors[i, k])
            square += np.float64(z[t, k]) * np.float64(z[t, k])
        if 1e-6 * ONE * ONE < square < np.inf:
            length, square = np.float32(np.sqrt(square)), np.float64(0)
            for k in range(dims):
                z[t, k] = z[t, k] / length + pull[t, k]
                square += np.float64(z[t, k]) * np.float64(z[t, k])
            if square > 1e-6:
                scale = np.float32(ONE / np.sqrt(square))
                for k in range(dims):
                    vectors[i, k] = np.int16(np.rint(z[t, k] * scale))
        for k in range(dims):
            new, old = np.float32(vectors[i, k]), middle[t, k]
            step[t, k] = (new - old) * np.float32(1 / ONE)
            middle[t, k] = (new + old) * np.float32(0.5 / ONE)


@kernel
def first_vectors(ids: U64, out: I16) -> None:
    """A URL's first vector follows from its id alone, so that replicas agree: near-normal numbers, on the sphere."""
    draw = np.zeros(out.shape[1])
    for t in range(len(ids)):
        seed, norm = mix(ids[t]), 0.0
        for k in range(out.shape[1]):
            bits = mix(seed + np.uint64(k))
            x = 0.0
            for part in range(4):  # the sum of four uniforms is close enough to normal, and exact on every machine
                x += np.float64((bits >> np.uint64(16 * part)) & np.uint64(0xFFFF))
            draw[k] = x - 2 * 65535.0
            norm += draw[k] * draw[k]
        scale = ONE / np.sqrt(max(norm, 1e-9))
        for k in range(out.shape[1]):
            out[t, k] = np.int16(np.rint(draw[k] * scale))


class Sphere:
    """The vectors (rows, dims), and the whitener that keeps them spread."""

    def __init__(self, dims: int, refresh: float, device: torch.device) -> None:
        self.dims, self._refresh = dims, float(-np.log1p(-refresh))
        self._device = device
        self.vectors: I16 = np.zeros((0, dims), np.int16)
        self.log_mass: F32 = np.zeros(0, np.float32)  # of each row when it was last refreshed; -inf before
        self._z: F64 = np.zeros(1)  # Σ r^α over refreshed rows
        self._gram = torch.zeros(dims, dims, dtype=torch.float64)  # Σ w wᵀ over rows in use, of unit vectors
        self._whitener = torch.eye(dims, dtype=torch.float64)  # tracks (dims · gram / rows) ** -1/2
        self._turn = self._whitener.to(torch.float32)
        self._moved = 0  # rows since the whitener last followed
        self._copy: torch.Tensor | None = None

    def reserve(self, rows: int) -> None:
        """Have room for that many rows."""
        self.vectors = longer(self.vectors, rows)
        old = len(self.log_mass)
        self.log_mass = longer(self.log_mass, rows)
        self.log_mass[old:] = -np.inf
        self._copy = None

    def unit(self, rows: NDArray[np.integer]) -> F32:
        """(n, dims) unit vectors of these rows."""
        vectors: F32 = self.vectors[rows].astype(np.float32) / np.float32(ONE)
        return vectors

    def enter(self, rows: I32, ids: U64) -> None:
        """Rows that are new, each with the vector that follows from its id."""
        fresh = np.empty((len(rows), self.dims), np.int16)
        first_vectors(ids, fresh)
        self._move(rows, fresh)

    def leave(self, rows: I32) -> None:
        """Rows that are no longer in use."""
        self._z -= float(np.exp(ALPHA * self.log_mass[rows].astype(np.float64)).sum())
        self.log_mass[rows] = -np.inf
        self._move(rows, np.zeros((len(rows), self.dims), np.int16))

    def place(self, rows: I32, unit: F32) -> None:
        """Put rows where somebody else says they belong: (n, dims) unit vectors."""
        self._move(rows, np.rint(unit * np.float32(ONE)).astype(np.int16))

    def rescale(self, factor: float) -> None:
        """All masses were multiplied by this; nothing else changes."""
        self.log_mass += np.float32(np.log(factor))
        self._z[:] = np.exp(ALPHA * self.log_mass.astype(np.float64)).sum()

    def due(self, rows: I32, mass: F64) -> I32:
        """Those of the rows whose mass has grown enough since they were last derived."""
        now = np.log(mass[rows])
        due: I32 = rows[now - self.log_mass[rows] >= self._refresh]
        return due

    def refresh(self, rows: I32, slots: Slots, mass: F64, unit: float, live: int, pull: F32) -> None:
        """Derive these rows anew, all from the vectors as they are; `live` rows are in use.

        `pull` (n, dims) is added to each direction of length one before it is put back on the sphere: what is known of a
        row besides its counts.
        """
        if not len(rows):
            return
        self.weighed(rows, mass)
        z = self._sums(rows, slots, float(np.log(self._z[0])), unit) @ self._turn  # (n, dims)
        step, middle = torch.empty(len(rows), self.dims), torch.empty(len(rows), self.dims)
        land(rows, z.numpy(), pull, self.vectors, step.numpy(), middle.numpy())
        self._moved_by(rows, step, middle)
        if self._moved >= _WHITEN_AFTER * live:
            self._whiten(live)

    def weighed(self, rows: I32, mass: F64) -> None:
        """Note that these rows are derived from the masses as they are now."""
        self._z -= float(np.exp(ALPHA * self.log_mass[rows].astype(np.float64)).sum())
        self.log_mass[rows] = np.log(mass[rows])
        self._z += float(np.exp(ALPHA * self.log_mass[rows].astype(np.float64)).sum())

    def _sums(self, rows: I32, slots: Slots, log_z: float, unit: float) -> torch.Tensor:
        if self._device.type == "cpu":
            out = torch.empty(len(rows), self.dims)  # torch's memory is aligned, so that equal sums give equal bits
            gather(rows, slots.url, slots.count, slots.used, self.log_mass, log_z, unit, self.vectors, out.numpy())
            return out
        return self._sums_there(rows, slots, log_z, unit)

    def _sums_there(self, rows: I32, slots: Slots, log_z: float, unit: float) -> torch.Tensor:
        """As `gather`, with the sums on the device: bandwidth is what they need."""
        weight, at = np.empty((len(rows), slots.width), np.float32), np.empty((len(rows), slots.width), np.int32)
        weigh(rows, slots.url, slots.count, slots.used, self.log_mass, log_z, unit, weight, at)
        if self._copy is None:
            self._copy = torch.tensor(self.vectors).to(self._device)
        near = self._copy[torch.tensor(at).to(self._device)].to(torch.float32)  # (n, slots, dims)
        return torch.einsum("nk,nkd->nd", torch.tensor(weight).to(self._device), near).cpu()

    def _moved_by(self, rows: I32, step: torch.Tensor, middle: torch.Tensor) -> None:
        """Vectors of rows have moved: newᵀ new - oldᵀ old is one product of step (n, dims) and middle, and its transpose."""
        if self._copy is not None:
            self._copy[torch.tensor(rows).to(self._device)] = torch.tensor(self.vectors[rows]).to(self._device)
        half = step.T @ middle
        self._gram += half + half.T
        self._moved += len(rows)

    def _move(self, rows: I32, new: I16) -> None:
        """Put rows elsewhere; zeros are nowhere."""
        old = self.unit(rows)
        self.vectors[rows] = new
        here = self.unit(rows)
        self._moved_by(rows, torch.tensor(here - old), torch.tensor((here + old) / 2))

    def _whiten(self, live: int) -> None:
        self._moved = 0
        gram, eye = self._gram * (self.dims / live), torch.eye(self.dims, dtype=torch.float64)
        error = self._whitener @ gram @ self._whitener - eye
        if error.norm() < _DRIFTED:  # one Newton-Schulz step towards gram ** -1/2
            w = self._whitener @ (eye - 0.5 * error)
        else:
            values, basis = torch.linalg.eigh(gram)
            w = basis / values.clamp_min(1e-4 * float(values[-1])).sqrt() @ basis.T
        self._whitener = (w + w.T) / 2
        self._turn = self._whitener.to(torch.float32)

    def state(self, rows: int) -> dict[str, NDArray[np.generic]]:
        """Arrays from which `load` makes an equal sphere."""
        return {
            "vectors": self.vectors[:rows],
            "log_mass": self.log_mass[:rows],
            "z": self._z,
            "gram": self._gram.numpy(),
            "whitener": self._whitener.numpy(),
            "moved": np.array([self._moved], np.int64),
        }

    def load(self, state: Mapping[str, NDArray[np.generic]], rows: int) -> None:
        """Take over a saved state. Raises ValueError or KeyError where it does not fit."""
        self.reserve(rows)
        self.vectors[:rows], self.log_mass[:rows] = state["vectors"], state["log_mass"]
        self._z[:] = state["z"]
        self._gram.copy_(torch.tensor(state["gram"]))
        self._whitener.copy_(torch.tensor(state["whitener"]))
        self._turn = self._whitener.to(torch.float32)
        self._moved = int(state["moved"][0])
