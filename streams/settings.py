"""Settings: what an operator can say, where it is read from, and which sentence answers a mistake.

An address comes from, in this order: the flag, the environment (`URL2VEC_KAFKA`, `URL2VEC_REDIS`, `URL2VEC_CONFIG`), the
file (`url2vec.toml`, or `--config FILE`), a running `url2vec up`. Everything else comes from the file and has a default.
A mistake raises `ConfigError` with one sentence that names the place. Nothing here connects to anything.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec

from streams.errors import ConfigError
from streams.outcomes import Task
from streams.urls import UrlRules

UNITS_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
DEFAULT_FILE = "url2vec.toml"
PARAMETER = re.compile(r"[^\s*&=?#]+\*?")
NAME = re.compile(r"[A-Za-z0-9._-]{1,200}")  # what Kafka allows in the name of a topic, with room for a suffix


def duration_ms(text: str) -> int:
    """Milliseconds in `500ms`, `0.5s`, `30m`, `2h` or `7d`. Raises ConfigError."""
    match = re.fullmatch(r"\s*([0-9]{1,12}(?:\.[0-9]{1,12})?)\s*(ms|s|m|h|d)\s*", text)
    if match is None:
        raise ConfigError(f"{text!r} is no duration: write a number and a unit (ms, s, m, h, d), as in '30m'")
    return round(float(match[1]) * UNITS_MS[match[2]])


class _Task(msgspec.Struct, forbid_unknown_fields=True):
    outcomes: list[str]
    horizon: str = "30m"
    scope: Literal["visitor", "session"] = "visitor"


class _Topics(msgspec.Struct, forbid_unknown_fields=True):
    visits: str = "web-visits"
    outcomes: str = "visit-outcomes"
    scored: str = "scored-visits"
    rejected: str = "rejected-visits"


class _Features(msgspec.Struct, forbid_unknown_fields=True):
    categorical: list[str] = []
    numeric: list[str] = []
    exclude: list[str] = []


class _Model(msgspec.Struct, forbid_unknown_fields=True):
    seed: int = 0
    device: str = "auto"
    dims: int = 64
    capacity: int = 200_000
    slots: int = 64
    successor_slots: int = 64
    part_bits: int = 16
    admit_after: int = 2
    half_life: str = "30d"
    time_to_live: str = "90d"


class _Urls(msgspec.Struct, forbid_unknown_fields=True):
    scheme: Literal["one", "keep"] = "one"
    www: Literal["keep", "strip"] = "keep"
    fragment: Literal["routes", "drop", "keep"] = "routes"
    query: Literal["keep", "drop"] = "keep"
    tracking: Literal["drop", "keep"] = "drop"
    keep: list[str] = []
    drop: list[str] = []
    order: Literal["keep", "sort"] = "keep"
    slash: Literal["strip", "keep"] = "strip"
    case: Literal["keep", "lower"] = "keep"
    longest: int = 2_048
    static: Literal["learn", "skip"] = "skip"
    bots: Literal["learn", "skip"] = "learn"


class _File(msgspec.Struct, forbid_unknown_fields=True):
    kafka: str | None = None
    redis: str | None = None
    group: str = "url2vec"
    session_gap: str = "30m"
    allowed_lateness: str = "1m"
    latency_objective: str = "50ms"
    checkpoint_interval: str = "500ms"
    snapshot_interval: str = "30s"
    stall_limit: str = "50s"
    visitor_ttl: str = "30d"
    visitor_cache: int = 200_000
    pending_cache: int = 50_000
    max_in_flight: int = 20_000
    topics: _Topics = msgspec.field(default_factory=_Topics)
    tasks: dict[str, _Task] = {}
    features: _Features = msgspec.field(default_factory=_Features)
    urls: _Urls = msgspec.field(default_factory=_Urls)
    model: _Model = msgspec.field(default_factory=_Model)


@dataclass(frozen=True)
class Topics:
    """Names of the four topics. All have one partition count, so that a visitor's partition is the same in each."""

    visits: str = "web-visits"
    outcomes: str = "visit-outcomes"
    scored: str = "scored-visits"
    rejected: str = "rejected-visits"

    @property
    def all(self) -> tuple[str, str, str, str]:
        """The four names, inputs first."""
        return (self.visits, self.outcomes, self.scored, self.rejected)


CONTINUES = Task(name="continues", outcomes=frozenset(), horizon_ms=30 * 60_000, scope="session")


@dataclass(frozen=True)
class Settings:
    """Everything one worker needs to know. Durations are milliseconds, addresses are `host:port` and a `redis://` URL."""

    kafka: str
    redis: str
    group: str = "url2vec"
    topics: Topics = field(default_factory=Topics)
    tasks: tuple[Task, ...] = (CONTINUES,)
    session_gap_ms: int = 30 * 60_000
    allowed_lateness_ms: int = 60_000  # how far apart producers' clocks may be before an outcome counts as late
    latency_objective_ms: int = 50
    checkpoint_interval_ms: int = 500  # bounds the duplicates after a crash; each one costs a transaction a partition
    snapshot_interval_ms: int = 30_000  # bounds what a new worker must learn again
    stall_limit_ms: int = 50_000  # lag and no progress; a request whose answer was lost is given up after 40 s
    visitor_ttl_ms: int = 30 * 86_400_000
    visitor_cache: int = 200_000  # visitors a partition keeps in memory; the others come back from the store
    pending_cache: int = 50_000  # visitors of whom pending visits are in memory; as above, or when they are due
    max_in_flight: int = (
        20_000  # records read and not yet checkpointed; beyond it fetching waits and Kafka is the buffer
    )
    categorical: tuple[str, ...] = ()
    numeric: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    urls: UrlRules = field(default_factory=UrlRules)  # which URLs are one page, and which visits URL2vec learns
    seed: int = 0
    device: str = "auto"
    dims: int = 64
    capacity: int = 200_000  # URLs that have a vector at a time
    slots: int = 64  # neighbours remembered of a URL
    successor_slots: int = 64  # and URLs that came next
    part_bits: int = 16  # log2 of the parts of URLs from which unseen ones are composed
    admit_after: int = 2  # visits before a URL gets a vector, once half of the capacity is in use
    half_life_ms: int = 30 * UNITS_MS["d"]  # event time after which a visit counts half for URL2vec
    time_to_live_ms: int = 90 * UNITS_MS["d"]  # event time after which a URL that nobody visits is forgotten


def _read(path: Path) -> _File:
    try:
        return msgspec.toml.decode(path.read_bytes(), type=_File)
    except FileNotFoundError:
        raise ConfigError(f"the settings file {path} does not exist") from None
    except OSError as error:
        raise ConfigError(f"the settings file {path} cannot be read: {error.strerror}") from None
    except (msgspec.MsgspecError, ValueError) as error:
        raise ConfigError(f"the settings file {path} is wrong: {error}") from None


def _positive(name: str, value: int, least: int = 1) -> int:
    if value < least:
        raise ConfigError(f"{name} is {value}: it must be at least {least}")
    return value


def _between(name: str, value: int, least: int, most: int) -> int:
    if not least <= value <= most:
        raise ConfigError(f"{name} is {value}: it must be between {least} and {most}")
    return value


def _tasks(declared: Mapping[str, _Task], gap_ms: int) -> tuple[Task, ...]:
    if not declared:
        return (Task(name="continues", outcomes=frozenset(), horizon_ms=gap_ms, scope="session"),)
    for name, task in declared.items():
        if not NAME.fullmatch(name):
            raise ConfigError(f"the task name {name!r} may hold letters, digits, '.', '_' and '-' only")
        if not task.outcomes:
            raise ConfigError(f'the task {name!r} listens for no outcome: give it outcomes = ["…"]')
    return tuple(
        Task(
            name=name,
            outcomes=frozenset(task.outcomes),
            horizon_ms=_positive(f"the horizon of the task {name!r}", duration_ms(task.horizon)),
            scope=task.scope,
        )
        for name, task in declared.items()
    )


def _urls(said: _Urls) -> UrlRules:
    if said.keep and said.drop:
        raise ConfigError("urls.keep and urls.drop exclude each other: keep names all parameters that stay")
    if said.query == "drop" and (said.keep or said.drop):
        raise ConfigError('urls.query = "drop" leaves no parameter for urls.keep or urls.drop to name')
    for name in (*said.keep, *said.drop):
        if not PARAMETER.fullmatch(name):
            raise ConfigError(
                f"{name!r} is no parameter of a query: write its name, and * for any ending, as in 'utm_*'"
            )
    if not 512 <= said.longest <= 65_536:
        raise ConfigError(f"urls.longest is {said.longest}: it must be between 512 and 65536 characters")
    return UrlRules(**{**msgspec.structs.asdict(said), "keep": tuple(said.keep), "drop": tuple(said.drop)})


def kafka_address(text: str) -> str:
    """`host:port[,host:port…]` with the port checked. Raises ConfigError."""
    for part in text.split(","):
        host, _, port = part.strip().rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ConfigError(f"the Kafka address {text!r} is not host:port[,host:port…]")
    return ",".join(part.strip() for part in text.split(","))


def redis_address(text: str) -> str:
    """An address as `streams.redis_client` reads it; `host:port` is completed. Raises ConfigError without the password."""
    from streams.redis_client import read_address  # a client's library is not for who has no address of a server

    url = text if "://" in text else f"redis://{text}/0"
    read_address(url)
    return url


def runtime_folder() -> Path:
    """Where a running `url2vec up` leaves its addresses: this user's own folder, so that nobody else can plant one."""
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(base) / "url2vec"


class Running(msgspec.Struct):
    """Addresses of a running `url2vec up`, as it wrote them for the other commands."""

    pid: int
    kafka: str
    redis: str
    web: str
    config: str | None = None


def running() -> Running | None:
    """The `url2vec up` of this user that still runs, or None."""
    try:
        found = msgspec.json.decode((runtime_folder() / "up.json").read_bytes(), type=Running)
        os.kill(found.pid, 0)
    except (OSError, msgspec.MsgspecError):
        return None
    return found


def resolve(
    kafka: str | None = None,
    redis: str | None = None,
    config: str | None = None,
    need: tuple[str, ...] = ("kafka", "redis"),
) -> Settings:
    """Settings from flags, environment, file and a running `url2vec up`; `need` names the addresses that must be known.

    Raises ConfigError with one sentence. An address that is neither known nor needed is the empty string.
    """
    up = running()
    path = config or os.environ.get("URL2VEC_CONFIG")
    if path is None and Path(DEFAULT_FILE).is_file():
        path = DEFAULT_FILE
    kafka = kafka or os.environ.get("URL2VEC_KAFKA")
    redis = redis or os.environ.get("URL2VEC_REDIS")
    if path is None and up is not None and up.config and kafka in {None, up.kafka}:
        path = up.config
    file = _read(Path(path)) if path is not None else _File()
    kafka = kafka or file.kafka or (up.kafka if up else None)
    redis = redis or file.redis or (up.redis if up else None)
    for name, value in (("kafka", kafka), ("redis", redis)):
        if value is None and name in need:
            raise ConfigError(
                f"no address of {name.capitalize()}: give --{name}, set URL2VEC_{name.upper()}, or start `url2vec up`"
            )
    return settle(file, kafka or "", redis or "")


def settle(file: _File, kafka: str, redis: str) -> Settings:
    """The file's texts as numbers, each checked. Raises ConfigError."""
    topics = Topics(file.topics.visits, file.topics.outcomes, file.topics.scored, file.topics.rejected)
    for name in (*topics.all, file.group):
        if not NAME.fullmatch(name):
            raise ConfigError(f"{name!r} is no name for a topic or a group: letters, digits, '.', '_' and '-' only")
    if len(set(topics.all)) != len(topics.all):
        raise ConfigError("two of the four topics have the same name")
    gap_ms = _positive("session_gap", duration_ms(file.session_gap))
    return Settings(
        kafka=kafka_address(kafka) if kafka else "",
        redis=redis_address(redis) if redis else "",
        group=file.group,
        topics=topics,
        tasks=_tasks(file.tasks, gap_ms),
        session_gap_ms=gap_ms,
        allowed_lateness_ms=duration_ms(file.allowed_lateness),
        latency_objective_ms=_positive("latency_objective", duration_ms(file.latency_objective)),
        checkpoint_interval_ms=_positive("checkpoint_interval", duration_ms(file.checkpoint_interval), 10),
        snapshot_interval_ms=_positive("snapshot_interval", duration_ms(file.snapshot_interval), 100),
        stall_limit_ms=_positive("stall_limit", duration_ms(file.stall_limit), 1_000),
        visitor_ttl_ms=_positive("visitor_ttl", duration_ms(file.visitor_ttl), 60_000),
        visitor_cache=_positive("visitor_cache", file.visitor_cache, 100),
        pending_cache=_positive("pending_cache", file.pending_cache, 100),
        max_in_flight=_positive("max_in_flight", file.max_in_flight, 100),
        categorical=tuple(file.features.categorical),
        numeric=tuple(file.features.numeric),
        exclude=tuple(file.features.exclude),
        urls=_urls(file.urls),
        seed=file.model.seed,
        device=file.model.device,
        dims=_positive("model.dims", file.model.dims, 2),
        capacity=_positive("model.capacity", file.model.capacity, 16),
        slots=_between("model.slots", file.model.slots, 4, 255),
        successor_slots=_between("model.successor_slots", file.model.successor_slots, 4, 255),
        part_bits=_between("model.part_bits", file.model.part_bits, 4, 24),
        admit_after=_positive("model.admit_after", file.model.admit_after),
        half_life_ms=_positive("model.half_life", duration_ms(file.model.half_life), UNITS_MS["m"]),
        time_to_live_ms=_positive("model.time_to_live", duration_ms(file.model.time_to_live), UNITS_MS["m"]),
    )
