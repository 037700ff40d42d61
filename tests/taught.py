"""Whether what was learned is in the store once: each visit in one lesson and in its visitor's session, each example in one.

For runs without snapshots (`snapshot_interval` longer than the test), in which the streams keep every lesson.
"""

from collections import Counter

import redis

from models.lesson import Lesson
from streams.partition import lessons_of
from streams.settings import Settings
from streams.store import Store
from streams.visitors import stored_visitor
from tests.system import Counters, System, Verdict
from tests.verdict import from_store


def visits_of_sessions(system: System) -> Counter[str]:
    """How many visits each visitor's state has taken in."""
    with redis.Redis.from_url(system.redis) as store:
        blobs = [row for key in store.scan_iter("url2vec:*:visitors:*") for row in store.hgetall(key).items()]
    return Counter({name.decode(): stored_visitor(blob).visits for name, blob in blobs})


def visits_of(verdict: Verdict) -> Counter[str]:
    """How many it should have taken in: those that were scored and are no duplicates."""
    return Counter(one["visitor_id"] for one in verdict.scored.values() if "duplicate" not in one["flags"])


def _lessons(system: System) -> list[Lesson]:
    async def read(_: Settings, store: Store) -> list[Lesson]:
        entries = [entry for number in range(system.partitions) for entry in await store.lessons(number, 0, 1_000_000)]
        return [lesson for entry in entries for lesson in lessons_of(entry.blob)]

    return from_store(system, read)


def in_lessons(system: System) -> tuple[int, int]:
    """How many visits and how many examples the streams of lessons hold."""
    lessons = _lessons(system)
    return sum(len(lesson.steps.url) for lesson in lessons), sum(len(lesson.examples) for lesson in lessons)


def labels_in_lessons(system: System) -> list[int]:
    """What the examples in the streams of lessons said, in the order of each partition: 0 or 1."""
    return [int(label) for lesson in _lessons(system) for label in lesson.examples[:, 2]]


def taught_once(system: System, verdict: Verdict, unlearned: int = 0) -> None:
    """Sessions have each visit once, and so have the lessons, but for so many visits that nothing was learned from."""
    assert visits_of_sessions(system) == visits_of(verdict)
    counted = Counters.of(system.status())
    expected = counted.visits_scored - counted.duplicates - unlearned, counted.examples_learned
    assert in_lessons(system) == expected, "visits and examples in the lessons"
