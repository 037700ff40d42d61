"""How much a positive example should weigh while the negatives of its time are still on their way.

A positive answer is known at once, a negative one often only when the horizon has passed. A learner fed as answers come
sees only positives for the first horizon of a stream, and learns "always positive" (log-loss 1.4 instead of 0.5 on an access
log). Holding positives back would cost freshness. So each is learned at once, at the share of negatives that are known by
now: among `negative` known ones and those still expected. In the steady state that share is close to 1.

    weight = (n + 1) / (n + expired share * open + 1)

with n negatives known, `open` pairs not settled, and the share of negatives that came by expiry rather than by an explicit
answer: where both answers come as fast (an outcome with value false), nothing needs correcting.

Pure; additive over partitions; kept in the partition's summary.
"""

import msgspec
import numpy as np
from numpy.typing import NDArray


class Balance(msgspec.Struct):
    """What became of the pairs of visit and one task, of one partition."""

    asked: int = 0
    positive: int = 0
    negative: int = 0  # expired ones included
    expired: int = 0  # negatives because the horizon passed

    def settle(self, label: NDArray[np.bool_], expired: NDArray[np.bool_]) -> None:
        """Count n answers, each (n,)."""
        positive = int(label.sum())
        self.positive += positive
        self.negative += len(label) - positive
        self.expired += int(expired.sum())

    @property
    def open(self) -> int:
        """Pairs whose answer is not known yet."""
        return max(0, self.asked - self.positive - self.negative)

    def weight(self, label: bool) -> float:
        """Of an example with this answer, in (0, 1]."""
        if not label:
            return 1.0
        # One imagined expiry: before any negative is known, they are expected to come by the horizon.
        by_expiry = (self.expired + 1) / (self.negative + 1)
        return (self.negative + 1) / (self.negative + by_expiry * self.open + 1)
