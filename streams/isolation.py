"""A model that fails: is it this visit, or is it the model? The visit is set aside; the model goes back to the store's.

The rules:

1. *A batch that fails is halved*, and each half asked again, down to single visits. What was too much at once (memory)
   is answered in parts; what fails alone is found in a handful of steps, and all others get their answer.
2. *A visit is to blame only where the model answers another*, a plain one that everybody can score. Else the model is
   broken, or the machine is: no visit is rejected for that, and `ModelFailed` says so.
3. *Nothing of this is felt by the state.* Scoring changes no model, and sessions are kept only once the answers are there
   (`streams.scoring`); so a batch may be asked again as often as it takes.

What to do about a broken model is the pipeline's: it has the store to go back to. Pure but for the model that is asked.
"""

from collections.abc import Sequence
from dataclasses import fields
from itertools import chain
from typing import Any

import numpy as np

from models.learner import Learner, Scored
from models.visits import VisitContext, url_identity
from streams.errors import ModelFailed

_URL = "https://plain.example/"
PLAIN = VisitContext(
    url=_URL, url_id=url_identity(_URL), session=1, recent=(), entry=url_identity(_URL), position=1, timestamp_ms=0,
    since_previous_ms=-1, since_start_ms=0, visits_before=0, sessions_before=0, event_name="page_view", referrer=None,
    user_agent=None, title=None, properties={}, repeat=False,
)  # fmt: skip
_REASON_CHARS = 200


def score_apart(learner: Learner, visits: Sequence[VisitContext]) -> tuple[Scored | None, dict[int, str]]:
    """Answers to all visits but those that alone make the model fail, and why for each of those, by its place.

    Raises ModelFailed where the model fails on a plain visit too, or where there is no memory for a single one.
    """
    failed: dict[int, str] = {}
    parts = _score(learner, visits, 0, failed)
    return (_joined(parts) if parts else None), failed


def _score(learner: Learner, visits: Sequence[VisitContext], begin: int, failed: dict[int, str]) -> list[Scored]:
    try:
        return [learner.score(visits)]
    except Exception as error:  # whatever a library raises: what it means is decided by what else fails
        if len(visits) > 1:
            half = len(visits) // 2
            first = _score(learner, visits[:half], begin, failed)
            return first + _score(learner, visits[half:], begin + half, failed)
        if is_memory(error):
            raise ModelFailed(f"there is no memory to score a single visit ({reason(error)})") from error
        _expect_a_plain_answer(learner)
        failed[begin] = f"the model fails on this visit: {reason(error)}"
        return []


def _expect_a_plain_answer(learner: Learner) -> None:
    try:
        learner.score([PLAIN])
    except Exception as error:
        raise ModelFailed(f"the model fails on every visit ({reason(error)})") from error


def _joined(parts: Sequence[Scored]) -> Scored:
    if len(parts) == 1:
        return parts[0]
    columns: dict[str, Any] = {}
    for field in fields(Scored):
        column = [getattr(part, field.name) for part in parts]
        if field.name == "names":  # of all parts the same
            columns["names"] = column[0]
            continue
        is_list = isinstance(column[0], list)
        columns[field.name] = list(chain.from_iterable(column)) if is_list else np.concatenate(column)
    return Scored(**columns)


def is_memory(error: BaseException) -> bool:
    """Whether it says that there is too little memory, on the processor or on a GPU (torch's own type, not imported)."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


def reason(error: BaseException) -> str:
    """An error of somebody else's as a part of a sentence."""
    return f"{type(error).__name__}: {error}"[:_REASON_CHARS].rstrip(": ")
