"""What a visitor costs in the store, and a checkpoint of many on the client: `python -m streams.bench.state REDIS_URL`.

On a store of its own, empty and local: it is written to, and `used_memory` before and after is compared. Visitors have ids of
36 characters and sessions as people play Wikispeedia: some six pages, now and then a second session. Records are made by the
sessioniser, 20,000 different ones, given to as many visitors as are asked for. CPU is this process's, without the store's.
"""

import asyncio
import random
import resource
import statistics
import sys
import time
import uuid

from schemas.records import WebVisit
from streams.partition import PartitionState
from streams.sessions import Sessioniser
from streams.settings import Settings
from streams.store import LogIdentity, Position, Store
from streams.visitors import VisitorTable

PAGES, PAGES_A_SESSION, SESSIONS = 4_600, 6.0, 1.3
BEGIN_MS, GAP_MS = 1_700_000_000_000, 1_800_000
KINDS = 20_000
TOUCHED = 25_000  # visitors a checkpoint: half a second at 50,000 visits a second
ROUNDS = 5


def players(seed: int, count: int) -> list[bytes]:
    """What is kept of people who played, as it is stored."""
    draw, sessions, table = random.Random(seed), Sessioniser(GAP_MS), VisitorTable()
    names = [str(uuid.UUID(int=draw.getrandbits(128))) for _ in range(count)]
    table.load(names, {})
    for name in names:
        at_ms, visits = BEGIN_MS + draw.randrange(10**9), list[WebVisit]()
        for _ in range(max(1, round(draw.expovariate(1 / SESSIONS)))):
            for _ in range(max(1, round(draw.expovariate(1 / PAGES_A_SESSION)))):
                at_ms += draw.randrange(3_000, 60_000)
                url = f"https://en.wikipedia.org/wiki/page-{draw.randrange(PAGES)}"
                visits.append(WebVisit(event_id=f"{name}-{at_ms}", timestamp_ms=at_ms, visitor_id=name, url=url))
            at_ms += GAP_MS + draw.randrange(GAP_MS)
        sessions.take_in(table, visits, 0)
    return table.encoded(table.slots(names))


def cpu_s() -> float:
    """CPU seconds of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def measure(url: str, visitors: int) -> dict[str, float]:
    """Write so many visitors, `TOUCHED` a checkpoint; then touch `TOUCHED` of them again, `ROUNDS` times."""
    settings = Settings(kafka="", redis=url, group="bench-state", visitor_cache=TOUCHED)
    store, kinds = Store(settings), players(1, KINDS)
    state = PartitionState(0, settings, Position(), LogIdentity("bench", "visits", "outcomes"))
    draw = random.Random(2)
    try:
        before = int((await store.client.info("memory"))["used_memory"])
        for start in range(0, visitors, TOUCHED):
            names = [str(uuid.UUID(int=draw.getrandbits(128))) for _ in range(start, min(start + TOUCHED, visitors))]
            state.visitors.load(names, {name: kinds[n % KINDS] for n, name in enumerate(names, start)})
            state.visitors.changed(state.visitors.slots(names))
            await write(store, state)
        held = int((await store.client.info("memory"))["used_memory"]) - before
        encoded, spent, took = [], [], []
        for _ in range(ROUNDS):
            state.visitors.changed(state.visitors.slots(names))
            began, began_cpu = time.monotonic(), cpu_s()
            made_checkpoint = state.checkpoint(0, 0)
            encoded.append((cpu_s() - began_cpu) * 1000)
            await store.commit(made_checkpoint)
            state.committed(made_checkpoint)
            spent.append((cpu_s() - began_cpu) * 1000)
            took.append((time.monotonic() - began) * 1000)
    finally:
        await store.close()
    return {
        "visitors": visitors,
        "record_bytes": statistics.mean(map(len, kinds)),
        "bytes_a_visitor": held / visitors,
        "touched": len(names),
        "encoding_cpu_ms": statistics.median(encoded),
        "client_cpu_ms": statistics.median(spent),  # the encoding included
        "wall_ms": statistics.median(took),
    }


async def write(store: Store, state: PartitionState) -> None:
    """One checkpoint."""
    made = state.checkpoint(0, 0)
    await store.commit(made)
    state.committed(made)


def main() -> None:
    """Measure and print."""
    visitors = int(sys.argv[2]) if len(sys.argv) > 2 else 1_000_000
    for name, value in asyncio.run(measure(sys.argv[1], visitors)).items():
        sys.stdout.write(f"{name:16} {value:,.1f}\n")


if __name__ == "__main__":
    main()
