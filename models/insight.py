"""What a learner can say of itself beyond its scores: drifts, the weights of its experts, what it chose for itself.

The pipeline asks the learner, keeps the answer with the partition's state and in the worker's report, and `status` shows
the newest. It travels as opaque bytes, so that whoever stores it need not change when it grows. Pure.
"""

from __future__ import annotations

import msgspec


class Drifts(msgspec.Struct, frozen=True):
    """Of one task: how often the losses rose beyond chance (`models.drift`)."""

    model: int = 0  # our loss
    baseline: int = 0  # the baseline's
    examples_since: int | None = None  # since our last one; null where there was none
    boost: float = 1.0  # what learning rates are multiplied by now, because of it


class Racing(msgspec.Struct, frozen=True):
    """What the copies that race have settled on for now."""

    learning_rate: float
    replay: int  # remembered examples that are learned again with each new one
    auxiliary: float = 0.0  # weight of the auxiliary losses


class Insight(msgspec.Struct, frozen=True):
    """All of it; every field may be missing, so that versions can read each other."""

    drift: dict[str, Drifts] = {}  # task →
    experts: dict[str, dict[str, float]] = {}  # task → expert → its weight in the answer
    racing: dict[str, Racing] = {}  # task →, or "" for all tasks
    memory: int = 0  # labelled sessions remembered

    def encode(self) -> bytes:
        """Bytes for the store and for reports."""
        return msgspec.msgpack.encode(self)

    @staticmethod
    def decode(blob: bytes) -> Insight:
        """What was encoded; nothing of empty bytes. Raises ValueError on bytes that are no insight."""
        if not blob:
            return Insight()
        try:
            return msgspec.msgpack.decode(blob, type=Insight)
        except msgspec.MsgspecError as error:
            raise ValueError(f"these {len(blob)} bytes are not a learner's insight: {error}") from error
