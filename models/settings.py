"""Every number that shapes the models, each with its reason. Imports nothing but the standard library.

Two learners can exchange lessons and snapshots only when they were made from equal settings.
"""

from dataclasses import dataclass, field
from typing import Literal

from models.visits import RECENT

DAY_MS = 86_400_000


@dataclass(frozen=True)
class ModelSettings:
    # URL2vec
    dims: int = 64  # of a URL's vector
    window: int = 10  # how many earlier visits a visit is paired with at most
    distance_weights: tuple[
        float, ...
    ] = ()  # of pairs at distance 1, 2, …; empty: the stream teaches them (models.reach)
    slots: int = 64  # neighbours remembered of a URL
    successor_slots: int = 64  # "what came next" remembered of a URL
    refresh: float = 0.1  # a vector is derived anew once its URL's mass has grown by this share
    capacity: int = 200_000  # URLs; about 1.4 kB each when it is full (tests/unit/test_models_room.py)
    part_bits: int = (
        16  # log2 of the parts (hosts, prefixes, words) that unseen URLs can be composed from; 270 bytes each
    )
    admit_after: int = 2  # visits before a URL gets a row, once the vocabulary is half full
    half_life_ms: int = 30 * DAY_MS  # event time after which a visit counts half
    time_to_live_ms: int = 90 * DAY_MS  # event time after which a URL that nobody visits is forgotten
    # classifier
    table_bits: int = 18  # log2 of the levels (attribute = value) that counts and the linear learner can tell apart
    embedding_bits: int = 16  # log2 of the rows of the embedding tables
    embedding: int = 8  # numbers a level
    page_embedding: int = 16  # numbers a page in the attention over the last pages
    sub_net: int = 4  # numbers that the sub-network of a category hands on
    hidden: int = 32  # 64 was .0003 of AUC better, and twice the time
    chunk: int = 512  # examples a step: as good as 128 in half the time
    learning_rate: float = 2e-3  # Adam, dense layers; where the race begins
    replay: int = -1  # remembered examples a new one; -1: the race decides
    # what the bench's ablations take away or exchange
    auxiliary: float = -1.0  # weight of each auxiliary loss; -1: the race decides
    vectors: bool = True  # cosines between URL vectors
    sub_nets: bool = True
    sequence: Literal["attention", "mean", "last", "conv", "gru", "reverse"] = "attention"
    optimiser: Literal["adam", "sgd", "muon"] = "adam"
    slope_penalty: float = 0.0  # of the squared slope of the answer by each number
    table_rate: float = 0.05  # row-wise AdaGrad, embedding tables
    baseline_rate: float = 0.05  # River's AdaGrad: the best of .03 to .3 on both bundled logs
    # features; names are `url`, `host`, `user_agent`, `properties.price`, …
    exclude: frozenset[str] = field(default_factory=frozenset)
    categorical: tuple[str, ...] = ()  # properties that come first when there are more than fit, as categories alone
    numeric: tuple[str, ...] = ()  # likewise, as numbers alone
    # machine
    seed: int = 0
    device: str = "auto"  # `auto` is cuda where there is one, else cpu
    threads: int = 1  # torch's; two were slower than one on small layers, and one keeps the bits reproducible

    def __post_init__(self) -> None:
        """Raise ValueError, with the name of the setting, when a number cannot work."""
        for name in (
            "dims",
            "slots",
            "successor_slots",
            "capacity",
            "admit_after",
            "half_life_ms",
            "time_to_live_ms",
            "chunk",
            "hidden",
            "embedding",
            "page_embedding",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 1 <= self.window <= RECENT:
            raise ValueError(f"window must be between 1 and {RECENT}, got {self.window}")
        for name in ("slots", "successor_slots"):
            if getattr(self, name) > 255:
                raise ValueError(f"{name} must be at most 255, got {getattr(self, name)}")
        if len(self.distance_weights) > self.window or not all(0 <= x < float("inf") for x in self.distance_weights):
            raise ValueError(
                f"distance_weights must be up to {self.window} numbers from 0, got {self.distance_weights}"
            )
        for name in ("table_bits", "embedding_bits", "part_bits"):
            if not 4 <= getattr(self, name) <= 28:
                raise ValueError(f"{name} must be between 4 and 28, got {getattr(self, name)}")
