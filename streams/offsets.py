"""Which chunks of a partition were delivered, which are acknowledged, and how far it is safe to commit.

A chunk is a slice of consecutive records of one partition, from a first to a last offset. The rules:

1. *Chunks are delivered in order*: each begins after the end of the one before it. Offsets missing between two chunks,
   or inside one, are normal (compaction removes records, transactions end in markers) and are never waited for.
2. *Chunks are acknowledged in any order*, each once; a second acknowledgement counts for nothing.
3. *What may be committed is the offset after the longest run of acknowledged chunks*, counted from the first delivered.
   It never passes a chunk that is not acknowledged: a consumer that starts there reads it again.
4. *After `forget` nothing of before counts.* A partition that was revoked, or sought elsewhere, delivers the same
   offsets again, and an acknowledgement of the first delivery, still under way, must not count for the second. So a
   delivery has a token, which is never given twice; what is acknowledged is the token, not the offset.

Faust's own accounting (`Consumer._new_offset`) breaks rule 3 when acknowledgements come out of order; this replaces it.

Pure; one `DeliveredChunks` a partition, used from one thread. Memory: the chunks delivered and not yet passed by
`committable`; how many those may be is the caller's back-pressure, not decided here.
"""

from __future__ import annotations

from collections import deque


class DeliveredChunks:
    """The chunks of one partition that are under way."""

    def __init__(self) -> None:
        self._under_way: deque[tuple[int, int]] = deque()  # (token, last offset), from the first not acknowledged
        self._acked: set[int] = set()  # tokens of those in `_under_way` that are acknowledged
        self._next_token = 0
        self._committable: int | None = None
        self._last_delivered: int | None = None

    @property
    def in_flight(self) -> int:
        """Chunks delivered and not yet acknowledged."""
        return len(self._under_way) - len(self._acked)

    @property
    def last_delivered(self) -> int | None:
        """The last offset delivered; None before the first delivery and after `forget`."""
        return self._last_delivered

    def deliver(self, first_offset: int, last_offset: int) -> int:
        """Notes a chunk that was handed on, and gives the token by which it is to be acknowledged.

        Raises ValueError where it is empty or does not come after the chunk before it: then the log was read from
        elsewhere without `forget`, and committing could lose records."""
        if last_offset < first_offset:
            raise ValueError(f"a chunk from offset {first_offset} to {last_offset} is empty")
        if self._last_delivered is not None and first_offset <= self._last_delivered:
            raise ValueError(
                f"a chunk from offset {first_offset} was delivered after one up to {self._last_delivered}:"
                " after a seek, forget comes first"
            )
        token = self._next_token
        self._next_token += 1
        self._last_delivered = last_offset
        self._under_way.append((token, last_offset))
        return token

    def ack(self, token: int) -> bool:
        """Acknowledges one delivery. False, and nothing happens, where it was forgotten or acknowledged before."""
        # Tokens rise along `_under_way`, and `forget` empties it, so what is under way is a range of tokens.
        if not self._under_way or not self._under_way[0][0] <= token < self._next_token or token in self._acked:
            return False
        self._acked.add(token)
        while self._under_way and self._under_way[0][0] in self._acked:
            done, last_offset = self._under_way.popleft()
            self._acked.remove(done)
            self._committable = last_offset + 1
        return True

    def committable(self) -> int | None:
        """The next offset to commit; None while the first chunk delivered since `forget` is not acknowledged."""
        return self._committable

    def forget(self) -> None:
        """Drops all that is under way: the partition was revoked, or is to be read from elsewhere."""
        self._under_way.clear()
        self._acked.clear()
        self._committable = None
        self._last_delivered = None
