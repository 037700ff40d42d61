"""Who competes, and one run of a program: started on topics that are full, waited for, ended.

Every run gets topics of its own and a process of its own, so that nothing is warm that would not be in the other runs.
"""

import importlib.util
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from deploy.embedded import EmbeddedServers
from deploy.processes import Child
from streams import topics as broker
from streams.bench import load
from streams.bench.load import Load
from streams.errors import BrokerError, ConfigError

RUN_LIMIT_S = 300.0
ANSWER_BYTES = 1_100  # of one of our answers, until one was measured
INSTALL = "the plain loop needs confluent-kafka: run pip install 'url2vec[test]'"


class Order(msgspec.Struct, kw_only=True):
    """What a program is told: read these topics from their beginning, `visits` and `outcomes` records of them, answer
    each visit with `answer_bytes` to `answers` (0: read and count only), and write the Result to `result`."""

    kafka: str
    visits_topic: str
    outcomes_topic: str
    answers: str
    visits: int
    outcomes: int
    answer_bytes: int
    result: str


class Result(msgspec.Struct, kw_only=True):
    """What one run did. `learning_share` is the share of visits that were learned from; `answer_bytes` the mean size
    of an answer where it was measured."""

    visits: int
    seconds: float
    learning_share: float = 0.0
    answer_bytes: int = 0

    @property
    def rate(self) -> float:
        """Visits per second."""
        return self.visits / self.seconds if self.seconds > 0 else math.inf


@dataclass
class Arena:
    """What all runs share: the servers, a folder for files, and how large an answer of ours is."""

    servers: EmbeddedServers
    folder: Path
    answer_bytes: int = ANSWER_BYTES

    @property
    def environment(self) -> dict[str, str]:
        """For children: their temporary files end with the benchmark, and nobody else's settings reach them."""
        return {"TMPDIR": str(self.folder), "XDG_STATE_HOME": str(self.folder), "URL2VEC_CONFIG": ""}

    def log(self, name: str) -> Path:
        """Where a child writes what it has to say."""
        return self.folder / f"{name.replace(' ', '-')}.log"


@dataclass(frozen=True)
class Contestant:
    """A name, how much of the load it reads, and how it runs. `role` is what ratios are taken to."""

    name: str
    visits: int
    run: Callable[[Arena, Load], Result] = field(compare=False)
    role: str = ""  # "ours", "stock", "plain"


def program(module: str, answering: bool) -> Callable[[Arena, Load], Result]:
    """A run of `python -m module`: it times itself, from the first record it is given to the last thing it has done."""

    def run(arena: Arena, given: Load) -> Result:
        name = module.rpartition(".")[2]
        result = arena.folder / f"{given.topics.visits}.json"
        order = Order(
            kafka=arena.servers.kafka,
            visits_topic=given.topics.visits,
            outcomes_topic=given.topics.outcomes,
            answers=given.topics.scored,
            visits=given.visits,
            outcomes=given.outcomes,
            answer_bytes=arena.answer_bytes if answering else 0,
            result=str(result),
        )
        command = [sys.executable, "-m", module, msgspec.json.encode(order).decode()]
        child = Child(name, command, log=arena.log(name), environment=arena.environment)
        try:
            wait(child, result.exists, arena, RUN_LIMIT_S)
            child.wait(10)
        finally:
            child.kill()
        return msgspec.json.decode(result.read_bytes(), type=Result)

    return run


def wait(child: Child, done: Callable[[], bool], arena: Arena, limit_s: float) -> None:
    """Until `done`. Raises BrokerError where the child or a server ended first, or the limit passed."""
    deadline = time.monotonic() + limit_s
    while not done():
        arena.servers.check()
        if child.wait(0.02) is not None and not done():
            raise BrokerError(f"{child.name} {child.obituary()}")
        if time.monotonic() > deadline:
            raise BrokerError(f"{child.name} was not done after {limit_s:g} s: {child.last_words()}")


def compete(arena: Arena, contestant: Contestant) -> Result:
    """One run on topics of its own; they are gone afterwards."""
    given = load.publish(arena.servers.kafka, load.read(contestant.visits))
    try:
        return contestant.run(arena, given)
    finally:
        broker.delete(arena.servers.kafka, given.topics.all)


def leave(order: Order, result: Result) -> None:
    """Called by a program at its end: whole or not at all, for somebody is waiting for the file."""
    partial = Path(order.result + ".part")
    partial.write_bytes(msgspec.json.encode(result))
    partial.replace(order.result)


def given_order() -> Order:
    """The order in this program's argument."""
    return msgspec.json.decode(sys.argv[1], type=Order)


def require_plain_loop() -> None:
    """Raises ConfigError, with the line to install, where the plain loop cannot run."""
    if importlib.util.find_spec("confluent_kafka") is None:
        raise ConfigError(INSTALL)
