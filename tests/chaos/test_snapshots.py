"""A snapshot that is torn, altered, of another model, or full of NaN: the one before it serves, is named, and loses nothing.

The model that a new worker builds then is bit for bit the one that it would have built from the good snapshot: what the
older one lacks is in the lessons. Single steps of this are `test_replica`'s, and states of previous versions
`test_upgrade`'s; here real workers take turns on a store that somebody damages between them.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest
import redis

from models.learner import Learner
from models.snapshot import pack, unpack
from streams.app import model_settings
from streams.settings import resolve
from tests.system import BEGIN_MS, BOUGHT, System, settled, traffic
from tests.verdict import model_of
from tests.waiting import eventually_sync

if TYPE_CHECKING:
    from streams.settings import Settings, Topics

SETTINGS = 'max_in_flight = 400\ncheckpoint_interval = "100ms"\nsnapshot_interval = "500ms"\n' + BOUGHT
PARTITIONS = 1  # of several, the order in which they were learned is part of a model's bits
Damage = Callable[[bytes, "Settings"], bytes]


@pytest.fixture
def system(
    tmp_path: Path, embedded_kafka: str, store_url: str, make_topics: "Callable[..., Topics]"
) -> Iterator[System]:
    names = make_topics(embedded_kafka, PARTITIONS)
    with System(tmp_path, embedded_kafka, store_url, names, SETTINGS, partitions=PARTITIONS) as running:
        yield running


def of_the_blob(change: Callable[[bytes, "Settings"], bytes]) -> Damage:
    """Damage within the row that the store keeps: its date and stamp stay."""

    def damage(row: bytes, settings: "Settings") -> bytes:
        created, stamp, blob = msgspec.msgpack.decode(row, strict=False)
        return msgspec.msgpack.encode((created, stamp, change(blob, settings)))

    return damage


def altered(blob: bytes, _: "Settings") -> bytes:
    half = len(blob) // 2
    return blob[:half] + bytes([blob[half] ^ 1]) + blob[half + 1 :]


def of_other_dimensions(_: bytes, settings: "Settings") -> bytes:
    return Learner(replace(model_settings(settings), dims=settings.dims // 2), ["bought"]).snapshot()


def full_of_nan(blob: bytes, _: "Settings") -> bytes:
    arrays, about = unpack(blob)
    arrays["classifier.bias"] = np.full_like(arrays["classifier.bias"], np.nan)
    return pack(arrays, about)


DAMAGES: dict[str, tuple[Damage, str]] = {
    "torn": (of_the_blob(lambda blob, _: blob[: len(blob) // 2]), "checksum"),
    "altered": (of_the_blob(altered), "checksum"),
    "of other dimensions": (of_the_blob(of_other_dimensions), "dims"),
    "full of NaN": (of_the_blob(full_of_nan), "not finite"),
    "a torn row": (lambda row, _: row[: len(row) // 3], "torn"),
}


def damage(system: System, how: Damage, numbers: tuple[int, ...] = (0,)) -> None:
    settings = resolve(system.kafka, system.redis, str(system.config))
    with redis.Redis.from_url(system.redis) as store:
        [key] = store.keys("*:snapshot")
        for number in numbers:
            store.lset(key, number, how(store.lindex(key, number), settings))


def two_snapshots(system: System, seed: int) -> None:
    """Run a worker until two are kept, and stop it. Between the two it learned, so that the older one lacks something."""
    worker = system.start()
    with redis.Redis.from_url(system.redis) as store:
        for number in (1, 2):
            system.publish(traffic(system.names, seed + number, 500, begin_ms=BEGIN_MS + number * 10_000_000))
            settled(system)
            eventually_sync(
                lambda count=number: [store.llen(key) for key in store.keys("*:snapshot")] == [count], 20, "it is kept"
            )
    assert worker.stop() == 0


@pytest.mark.parametrize("kinds", [["a torn row", "full of NaN"], pytest.param(list(DAMAGES), marks=pytest.mark.long)])
def test_each_kind_of_damage_is_named_and_the_one_before_gives_the_same_model(
    system: System, kinds: list[str], seed: int
) -> None:
    two_snapshots(system, seed)
    with redis.Redis.from_url(system.redis) as store:
        [key] = store.keys("*:snapshot")
        good = store.lrange(key, 0, -1)
        step, digest = model_of(system)
        for how, word in (DAMAGES[kind] for kind in kinds):
            damage(system, how)
            worker = system.start()
            found = system.status()
            [line] = [line for line in worker.said.splitlines() if "snapshot 0" in line]
            assert word in line
            assert "before it" in line
            eventually_sync(lambda: system.status().workers, 20, "the worker reports")
            assert found.lag == 0
            worker.kill()
            store.delete(key)
            store.rpush(key, good[1])  # as if the damaged one were not there
            assert model_of(system) == (step, digest), "the same bits by the longer way"
            store.delete(key)
            store.rpush(key, *good)


@pytest.mark.long
def test_without_any_good_snapshot_the_worker_says_what_is_gone_and_learns_on(system: System, seed: int) -> None:
    two_snapshots(system, seed)
    damage(system, DAMAGES["torn"][0], (0, 1))
    worker = system.start()
    said = worker.said
    assert "snapshot 0" in said
    assert "snapshot 1" in said
    assert "in no snapshot and no stream any more" in said
    system.publish(traffic(system.names, seed + 2, 500, begin_ms=BEGIN_MS + 100_000_000))
    settled(system)
    with redis.Redis.from_url(system.redis) as store:
        [key] = store.keys("*:snapshot")

        def good_again() -> bool:
            step, _ = model_of(system)
            return step > 0

        eventually_sync(lambda: store.lindex(key, 0) is not None and good_again(), 30, "a good snapshot again")
    assert worker.stop() == 0
