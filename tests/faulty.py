"""A worker whose model fails on command: `python -m tests.faulty worker …` is the real one, but for its learner.

What goes wrong stands in a visit's URL, so that a test publishes the fault where it wants it, and a worker that reads the
record again meets it again.
"""

from collections.abc import Callable, Sequence

import numpy as np

import streams.app
from models.learner import Learner, Scored
from models.lesson import Lesson
from models.visits import VisitContext, url_identity
from streams.cli import main

SITE = "https://faulty.example/"
NO_SCORE = SITE + "no-score"  # scoring it raises
NO_LESSON = SITE + "no-lesson"  # learning from it raises, after all of the lesson has been learned
NO_ROOM = SITE + "no-room"  # scored together with more than ROOM others, there is no memory
BREAKS = SITE + "breaks"  # once a process: from now on every score raises, until the model is another
TO_NAN = SITE + "to-nan"  # once a process: learning from it leaves weights that are no numbers
HOPELESS = SITE + "hopeless"  # as BREAKS, and every model breaks
ROOM = 4

_ID = {url: url_identity(url) for url in (NO_SCORE, NO_LESSON, NO_ROOM, BREAKS, TO_NAN, HOPELESS)}


class Faulty(Learner):
    """Learns and scores like the real one."""

    _done: set[str] = set()  # noqa: RUF012 - what happens once a process
    _broken = False

    def score(self, visits: Sequence[VisitContext]) -> Scored:
        ids = {visit.url_id for visit in visits}
        self._broken |= self._once(BREAKS, ids) or _ID[HOPELESS] in ids
        if self._broken:
            raise RuntimeError("CUDA error: device-side assert triggered")
        if _ID[NO_ROOM] in ids and len(visits) > ROOM:
            raise MemoryError(f"no room for {len(visits)} visits")
        if _ID[NO_SCORE] in ids:
            raise ValueError("a number that nobody foresaw")
        return super().score(visits)

    def learn(self, lesson: Lesson) -> None:
        ids = set(lesson.steps.url.tolist())
        super().learn(lesson)
        if _ID[NO_LESSON] in ids:
            raise ValueError("a lesson that nobody foresaw")
        if self._once(TO_NAN, ids):
            self._classifier._z[:] = np.nan

    def restore(self, blob: bytes) -> None:
        super().restore(blob)
        self._broken = False

    def _once(self, fault: str, ids: set[int]) -> bool:
        if _ID[fault] not in ids or fault in self._done:
            return False
        self._done.add(fault)
        return True


def run(start: Callable[[], None] = main) -> None:
    streams.app.Learner = Faulty  # type: ignore[misc]
    start()


if __name__ == "__main__":
    run()
