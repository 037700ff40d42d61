"""What a URL costs: the bytes reserved for all that is known of it, when the vocabulary is full."""

import numpy as np

from models.lesson import Steps
from models.settings import ModelSettings
from models.url2vec import URL2Vec
from streams.bench.embedding_opponents import allocated

CAPACITY = 25_000


def full(slots: int, successor_slots: int, part_bits: int) -> URL2Vec:
    """As many URLs as there are rows for, each with more neighbours than there are slots; none of them is refused."""
    model = URL2Vec(
        ModelSettings(
            capacity=CAPACITY, slots=slots, successor_slots=successor_slots, part_bits=part_bits, admit_after=1,
            device="cpu",
        )
    )  # fmt: skip
    order = np.random.default_rng(0)
    for _ in range(20):
        ids = order.permutation(CAPACITY).astype(np.uint64) + np.uint64(1)
        recent = np.stack([np.roll(ids, d) for d in range(1, 11)], axis=1)
        model.learn(Steps(ids, recent, np.zeros(CAPACITY, np.bool_)), {}, 0)
    assert model.vocabulary.live == CAPACITY
    assert model.counts.near.used.min() == slots
    return model


def test_with_32_slots_a_url_costs_less_than_600_bytes_besides_its_name() -> None:
    # The table of parts, too, in the proportion of 2^14 parts to 200,000 URLs.
    model = full(slots=32, successor_slots=8, part_bits=11)
    assert allocated(model) / CAPACITY < 600


def test_with_the_defaults_a_url_costs_less_than_1400_bytes() -> None:
    assert allocated(full(slots=64, successor_slots=64, part_bits=13)) / CAPACITY < 1400
