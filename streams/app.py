"""One worker: the Faust app around the pipeline, from its settings to its end. Knows everything; computes nothing.

Faust brings the consumer group, rebalances, the lifecycle and the web server; the transport brings record batches; the
pipeline does the work. A worker ends in one of three ways: in order (SIGTERM, Ctrl-C: checkpoint, commit, exit 0), by a
mistake of the operator's that only shows once the broker answers (`ConfigError`), or by a fault, which is raised. One that
is stuck ends itself (`streams.watchdog`).
"""

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import faust
import msgspec
from yarl import URL

from models.learner import Learner
from models.settings import ModelSettings
from streams.errors import Stalled
from streams.ownership import Ownership
from streams.pages import add_pages
from streams.patience import AWAY, until_it_answers
from streams.pipeline import Pipeline
from streams.producer import Producer
from streams.settings import Settings
from streams.status import WorkerReport, me
from streams.store import Store
from streams.transport import BatchConsumer, BatchSchema
from streams.warm import warm_up
from streams.watchdog import Guard

log = logging.getLogger("url2vec")

HEARTBEAT_S = 1.0
# A topic that was deleted and made again is seen by nothing else: five minutes, the default, are a silent standstill.
METADATA_MAX_AGE_MS = 10_000


@dataclass(frozen=True)
class WorkerOptions:
    """What differs between workers of one group."""

    web_host: str = "127.0.0.1"
    web_port: int | None = None  # None: no web server
    # Until the group gives a silent worker's partitions to others: the least that Kafka allows as it comes. Heartbeats come
    # from a thread of their own, so that a busy worker is not a silent one; of the 10 s in which another worker is to
    # answer after a crash, this is the largest part.
    session_timeout_s: float = 6.0
    learns: bool = True  # False: a scorer, which learns what its partitions taught from the store, as other workers do


def model_settings(settings: Settings) -> ModelSettings:
    """The part of the settings that the models know."""
    return ModelSettings(
        dims=settings.dims,
        capacity=settings.capacity,
        slots=settings.slots,
        successor_slots=settings.successor_slots,
        part_bits=settings.part_bits,
        admit_after=settings.admit_after,
        half_life_ms=settings.half_life_ms,
        time_to_live_ms=settings.time_to_live_ms,
        exclude=frozenset(settings.exclude),
        categorical=settings.categorical,
        numeric=settings.numeric,
        seed=settings.seed,
        device=settings.device,
    )


def new_learner(settings: Settings) -> Learner:
    """An untaught model for these settings."""
    return Learner(model_settings(settings), [task.name for task in settings.tasks])


class App(faust.App):  # type: ignore[misc]
    """Faust's app without its data folder: nothing is kept on this machine, and a killed worker could not tidy up."""

    def _create_directories(self) -> None:
        return


def create_app(settings: Settings, options: WorkerOptions) -> faust.App:
    """The Faust app: one agent over both input topics, fed with record batches."""
    return App(
        settings.group,
        broker=[URL(f"batches://{address}") for address in settings.kafka.split(",")],
        store="memory://",
        version=1,
        autodiscover=False,
        broker_session_timeout=options.session_timeout_s,
        broker_heartbeat_interval=options.session_timeout_s / 6,
        broker_rebalance_timeout=30.0,
        broker_request_timeout=40.0,
        broker_commit_interval=1.0,
        consumer_max_fetch_size=1024 * 1024,
        consumer_metadata_max_age_ms=METADATA_MAX_AGE_MS,
        producer_max_batch_size=Producer.MAX_BATCH_BYTES,
        producer_max_request_size=2 * 1024 * 1024,  # ours are split before; what the broker allows, it may take
        producer_acks=-1,
        # Below max_in_flight records there are never as many batches: the transport stops fetching first.
        stream_buffer_maxsize=2 * settings.max_in_flight,
        stream_wait_empty=False,
        topic_allow_declare=False,
        topic_disable_leader=True,
        web_enabled=options.web_port is not None,
        web_bind=options.web_host,
        web_host=options.web_host,
        web_port=options.web_port or 6066,  # unused without a web server, but Faust refuses 0
        web_cors_options=None,
    )


def calm_collector() -> None:
    """Let the cycle collector look less often, and never at what was imported.

    The state of a hundred thousand visitors is objects without cycles, and the collector walked through all of them: a
    quarter of the compute thread's time (py-spy over `url2vec demo`). Cycles do occur, in asyncio and in tracebacks, so it
    is slowed down, not switched off.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


class Worker:
    """Runs one worker until it is told to stop."""

    def __init__(self, settings: Settings, options: WorkerOptions) -> None:
        self.settings = settings
        self.options = options

    async def run(self, on_ready: Callable[[], None] = lambda: None) -> None:
        """Returns after an orderly stop. Raises ConfigError, Stalled, or whatever broke."""
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        self.store = Store(self.settings)
        learner = new_learner(self.settings)
        self.pipeline = pipeline = Pipeline(self.settings, self.store, learner, self.say, self.options.learns)
        ownership = Ownership(pipeline)
        stopped = asyncio.create_task(stop.wait())
        starting = asyncio.create_task(self._start(ownership))
        try:
            await asyncio.wait([stopped, starting], return_when=asyncio.FIRST_COMPLETED)
            if stop.is_set():
                starting.cancel()
                with suppress(asyncio.CancelledError):
                    await starting
                return
            app = await starting
            try:
                await self._work(app, ownership, stopped, on_ready)
            finally:
                await self._end(app)
        finally:
            stopped.cancel()
            pipeline.compute.shutdown(wait=False, cancel_futures=True)
            await self.store.close()

    async def _start(self, ownership: Ownership) -> faust.App:
        warm = asyncio.create_task(self.pipeline.in_compute_thread(warm_up, self.pipeline.replica.learner))
        await until_it_answers(self.store.ping, self.say)
        await until_it_answers(ownership.identify, self.say)
        await warm
        calm_collector()
        app = create_app(self.settings, self.options)
        self._wire(app, ownership)
        await app.start()
        return app

    def _wire(self, app: faust.App, ownership: Ownership) -> None:
        pipeline, names = self.pipeline, self.settings.topics
        inputs = app.topic(names.visits, names.outcomes, schema=BatchSchema(), key_type=None, value_type=None)

        @app.agent(inputs, name="visits")  # type: ignore[untyped-decorator]
        async def visits(stream: Any) -> None:
            async for event in stream.noack().events():
                pipeline.put(event)

        async def revoked(_app: Any, revoked: Any, **_: Any) -> None:
            await ownership.revoke(revoked)

        app.on_partitions_revoked.connect(revoked, weak=False)
        consumer: BatchConsumer = app.consumer
        consumer.max_in_flight = self.settings.max_in_flight
        consumer.held_topic = self.settings.topics.outcomes
        consumer.resume = ownership.resume
        pipeline.attach(consumer, app.producer)
        if self.options.web_port is not None:
            add_pages(app, self.settings, self.store, pipeline, ownership)

    async def _work(
        self, app: faust.App, ownership: Ownership, stopped: "asyncio.Task[Any]", on_ready: Callable[[], None]
    ) -> None:
        ready = asyncio.create_task(ownership.ready.wait())
        ready.add_done_callback(lambda task: None if task.cancelled() else on_ready())
        watched = [
            stopped,
            asyncio.create_task(self.pipeline.run(), name="pipeline"),
            asyncio.create_task(self._beat(ownership), name="heartbeat"),
            ownership.failed,
            asyncio.create_task(app.wait_until_stopped(), name="faust"),
        ]
        guard = Guard(self.settings, self.pipeline)
        guard.start()
        try:
            done, _ = await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                if task is not stopped:
                    task.result()
            if stopped not in done:
                raise RuntimeError(f"the stream ended by itself: {app.crash_reason or 'the transport stopped'}")
            await self.pipeline.stop()
        finally:
            guard.stop()
            for task in [*watched[1:3], watched[4], ready]:
                task.cancel()

    async def _end(self, app: faust.App) -> None:
        with suppress(*AWAY):
            await self.store.leave(me())
        try:
            await asyncio.wait_for(app.stop(), 5)
        except TimeoutError:
            self.say("Faust did not stop in five seconds; everything of ours is checkpointed, so the process ends")

    async def _beat(self, ownership: Ownership) -> None:
        pipeline, rate, last_done, last_at = self.pipeline, 0.0, 0, time.monotonic()
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            now = time.monotonic()
            rate = 0.5 * rate + 0.5 * (pipeline.visits_done - last_done) / (now - last_at)
            last_done, last_at = pipeline.visits_done, now
            if pipeline.caught_up():
                pipeline.progressed_at = now  # nothing to do is not a stall
            report = WorkerReport(
                id=me(),
                pid=os.getpid(),
                host=socket.gethostname(),
                idle_s=now - pipeline.progressed_at,
                partitions=sorted(pipeline.states),
                in_flight=pipeline.consumer.in_flight,
                visits_per_second=rate,
                urls=pipeline.replica.learner.urls,
                model_step=pipeline.replica.learner.step,
                ready=ownership.ready.is_set(),
                latency_counts=pipeline.latency.counts(now),
                freshness_counts=pipeline.freshness.counts(now),
                staleness_ms=pipeline.replica.staleness.event_ms,
                lessons_behind=pipeline.replica.staleness.lessons,
                looked_s=now - pipeline.replica.staleness.at,
            )
            with suppress(*AWAY):  # whoever needs the store says that it is away; a missed heartbeat is no news
                await self.store.beat(me(), msgspec.msgpack.encode(report))

    def say(self, sentence: str) -> None:
        """One line to the operator: what happened and what follows."""
        log.warning("%s", sentence)


def set_up_logging(debug: bool) -> None:
    """Few lines, on standard error; the libraries' only when they are warnings, or with --debug."""
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.DEBUG if debug else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    log.setLevel(logging.DEBUG if debug else logging.INFO)
    if not debug:
        # These repeat what the worker says itself, with a traceback each second while a broker is away.
        for noisy in ("aiokafka", "faust", "mode", "kafka", "aiohttp"):
            logging.getLogger(noisy).setLevel(logging.CRITICAL)


__all__ = ["Stalled", "Worker", "WorkerOptions", "create_app", "new_learner", "set_up_logging"]
