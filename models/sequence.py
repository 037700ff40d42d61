"""The sequence opponent: two first-order Markov chains a task, one of sessions with the outcome and one of those without.

The logit of a visit is Σ log P₁(step) / P₀(step) over the last steps of its session: what a naive reader of paths would
say. Steps from page to page live in hashed tables of counts; a step seldom seen falls back on how often its page comes at
all. Each visit that is learned adds its own last step, for it is one example among those of its session.
"""

import numpy as np
from numpy.typing import NDArray

from models.compiled import kernel, mix

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]

_TRUST = 8.0  # visits of a page that what is known of pages at large weighs among what followed it
_LIMIT = 6.0


@kernel
def _step(a: int, b: int) -> np.uint64:
    return mix(np.uint64(a) << np.uint64(32) | np.uint64(b))


@kernel
def _logits(pages: I32, steps: F32, seen: F32, out: F32) -> None:
    """out (B, T). pages (B, P), newest first; steps and seen (T, 2, rows) by label."""
    step_mask, page_mask = np.uint64(steps.shape[2] - 1), seen.shape[2] - 1
    chance = np.zeros(2)
    for b in range(pages.shape[0]):
        for t in range(steps.shape[0]):
            total0, total1 = seen[t, 0, 0] + 1.0, seen[t, 1, 0] + 1.0  # row 0: of all pages
            s = 0.0
            for k in range(pages.shape[1] - 1):
                here, before = pages[b, k], pages[b, k + 1]
                if here == 0 or before == 0:
                    break
                at = _step(before, here) & step_mask
                for y in range(2):
                    total = total1 if y else total0
                    anyhow = (seen[t, y, here & page_mask] + 0.5) / (total + 1000.0)
                    chance[y] = (steps[t, y, at] + _TRUST * anyhow) / (seen[t, y, before & page_mask] + _TRUST)
                s += np.log(chance[1] / chance[0])
            out[b, t] = min(max(s, -_LIMIT), _LIMIT)


@kernel
def _count(pages: I32, task: I32, label: F32, weight: F32, steps: F32, seen: F32) -> None:
    step_mask, page_mask = np.uint64(steps.shape[2] - 1), seen.shape[2] - 1
    for b in range(pages.shape[0]):
        t, y, here, before = task[b], int(label[b] > 0.5), pages[b, 0], pages[b, 1]
        if here == 0:
            continue
        seen[t, y, here & page_mask] += weight[b]
        seen[t, y, 0] += weight[b]
        if before != 0:
            steps[t, y, _step(before, here) & step_mask] += weight[b]


class Sequence:
    """T pairs of chains. Rows are feature rows; B visits."""

    def __init__(self, tasks: int, bits: int) -> None:
        self._steps: F32 = np.zeros((tasks, 2, 1 << bits), np.float32)
        self._seen: F32 = np.zeros((tasks, 2, 1 << bits), np.float32)

    def score(self, pages: I32) -> F32:
        """(B, T) logits, without the prior, of pages (B, P)."""
        out = np.empty((len(pages), len(self._steps)), np.float32)
        _logits(pages, self._steps, self._seen, out)
        return out

    def learn(self, pages: I32, task: I32, label: F32, weight: F32) -> None:
        """Count the last step of m examples."""
        _count(pages, task, label, weight, self._steps, self._seen)

    def tables(self) -> dict[str, F32]:
        """The tables, mostly zeros: a snapshot keeps what is not."""
        return {"steps": self._steps, "seen": self._seen}
