"""Workers that follow, as processes: `url2vec worker --no-learn`, which learns all from the store, and a spare worker."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from streams.settings import resolve
from streams.status import WorkerReport
from streams.store import Store
from tests.system import BOUGHT, System, settled, traffic
from tests.waiting import eventually_sync

if TYPE_CHECKING:
    from streams.settings import Topics

VISITS = 3_000


def test_a_scorer_alone_loses_nothing_and_its_model_is_taught_from_the_store(
    tmp_path: Path, embedded_kafka: str, store_url: str, make_topics: "Callable[..., Topics]", seed: int
) -> None:
    names = make_topics(embedded_kafka, 4)
    with System(tmp_path, embedded_kafka, store_url, names, 'snapshot_interval = "1s"\n' + BOUGHT) as system:
        worker = system.start("--no-learn")
        system.publish(traffic(names, seed, VISITS))
        settled(system)
        status = system.status()
        assert status.learning_share == 1.0
        eventually_sync(lambda: system.status().urls > 0, 20, "the scorer knows URLs")
        eventually_sync(
            lambda: [each.lessons_behind for each in system.status().workers] == [0], 20, "it has learned all there is"
        )
        assert worker.stop() == 0


def test_a_spare_worker_without_partitions_follows_and_is_up_to_date(
    tmp_path: Path, embedded_kafka: str, store_url: str, make_topics: "Callable[..., Topics]", seed: int
) -> None:
    names = make_topics(embedded_kafka, 1)
    with System(tmp_path, embedded_kafka, store_url, names, BOUGHT, partitions=1) as system:
        system.start()
        system.launch()
        eventually_sync(lambda: len(system.status().workers) == 2, 60, "both workers report", poll_s=0.2)
        system.publish(traffic(names, seed, VISITS))
        settled(system)
        alike = "both have taken the same steps and know the same URLs"
        eventually_sync(lambda: len({(each.urls, each.model_step) for each in reports(system)}) == 1, 20, alike)
        owner, spare = sorted(reports(system), key=lambda each: -len(each.partitions))
        assert (owner.partitions, spare.partitions) == ([0], [])
        assert spare.urls > 0
        assert spare.model_step == owner.model_step


def reports(system: System) -> list[WorkerReport]:
    """What the workers say of themselves."""
    settings = resolve(system.kafka, system.redis, str(system.config))

    async def read() -> list[WorkerReport]:
        store = Store(settings)
        try:
            return [msgspec.msgpack.decode(blob, type=WorkerReport) for blob in await store.reports()]
        finally:
            await store.close()

    return asyncio.run(read())
