"""After `warm_up` no visit has to wait for a compiler in its session either: streams/warm.py."""

import sys

from models.learner import Learner
from models.settings import ModelSettings
from schemas.records import WebVisit
from streams.sessions import Sessioniser
from streams.visitors import VisitorTable
from streams.warm import warm_up


def compiled() -> dict[str, int]:
    return {
        f"{name}.{loop}": len(found.signatures)
        for name, module in list(sys.modules.items())
        if name.startswith("streams.")
        for loop, found in vars(module).items()
        if hasattr(found, "signatures")
    }


def test_nothing_of_sessions_is_compiled_after_the_warm_up() -> None:
    warm_up(Learner(ModelSettings(dims=16, capacity=64, table_bits=8, embedding_bits=8), ["bought"]))
    before, table = compiled(), VisitorTable()
    assert len(before) > 5
    names = [f"v{n}" for n in range(300)]
    table.load(names, {})
    for session in (None, "named"):
        visits = [
            WebVisit(event_id=f"{name} {n} {session}", timestamp_ms=n, visitor_id=name, url=f"/{n}", session_id=session)
            for n in range(3)
            for name in names
        ]
        Sessioniser(1_000).take_in(table, visits, 0)
        again = VisitorTable()
        again.load(names, table.dirty())
        again.load(names[:1], {})
    late = {name: count for name, count in compiled().items() if count != before.get(name)}
    assert not late, "compiled only when a visit came"
