"""Answers to visits, and what was found out about them on the way, so that the lesson that follows need not find it out again.

A lesson mostly teaches what was scored a moment ago, from a model that has not changed since: then what URLs are known, what
was foreseen and how much surprised are the same numbers. `Met` finds a lesson's visits among those scored, and says nothing
of any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from models.compiled import kernel
from models.counts import F32, I32, U64, Mask
from models.lesson import Steps
from models.novelty import Surprise


@dataclass
class Scored:
    """Answers to n visits, T tasks, in the order they were asked."""

    features: list[bytes]  # one fixed-layout row a visit: what a later Lesson needs
    probability: F32  # (n, T)
    baseline: F32  # (n, T), River's
    next_rows: I32  # (n, 10) of `names`, the most likely first; -1 where there are fewer
    next_share: F32  # (n, 10) their probability
    names: Sequence[str]  # URLs, "" where it is not known; the vocabulary's own, so good until something is learned
    novelty: F32  # (n,) share of recent visits that surprised less
    new_url: NDArray[np.bool_]  # (n,)
    ranks: NDArray[np.int8]  # (n, 3) of this URL in what was proposed before it, for `models.ranking`

    @cached_property
    def next_urls(self) -> list[list[tuple[str, float]]]:
        """At most 10 for each visit, best first, with their probability; may be empty."""
        names = self.names
        return [
            [(names[r], p) for r, p in zip(these, shares, strict=True) if r >= 0 and names[r]]
            for these, shares in zip(self.next_rows.tolist(), self.next_share.tolist(), strict=True)
        ]


@dataclass(frozen=True, slots=True)
class Met:
    """n visits as they were scored: their rows in the vocabulary, -1 unknown, and how much they surprised."""

    steps: Steps
    found: I32  # (n,)
    recent: I32  # (n, RECENT)
    surprise: Surprise

    def of(self, steps: Steps) -> Met | None:
        """The same of m of these visits, in the same order; None where some of them are not among these."""
        at = np.empty(len(steps.url), np.intp)
        mine = self.steps
        if not _align(mine.url, mine.recent, mine.repeat, steps.url, steps.recent, steps.repeat, at):
            return None
        bits, kind, cell = self.surprise.bits[at], self.surprise.kind[at], self.surprise.cell[at]
        return Met(steps, self.found[at], self.recent[at], Surprise(bits, kind, cell))


@kernel
def _align(
    url: U64, recent: U64, repeat: Mask, wanted: U64, wanted_recent: U64, wanted_repeat: Mask, at: NDArray[np.intp]
) -> bool:
    """at (m,): where each wanted visit stands, one after the other; whether all were found."""
    k = 0
    for t in range(len(wanted)):
        found = False
        while k < len(url) and not found:
            found = url[k] == wanted[t] and repeat[k] == wanted_repeat[t]
            for z in range(recent.shape[1]):
                found = found and recent[k, z] == wanted_recent[t, z]
            at[t] = k
            k += 1
        if not found:
            return False
    return True
