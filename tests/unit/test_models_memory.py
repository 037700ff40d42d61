"""What the memory of labelled sessions promises: bounded, deterministic, never a session's own neighbour, and taught."""

import numpy as np
import pytest

from models import memory_kernels
from models.features import CATEGORIES, EXPERTS, PAGES, layout
from models.memory import OVERLAP_COUNTS, ROOM, Memory
from models.settings import ModelSettings

SETTINGS = ModelSettings(embedding_bits=12)
BLEND = EXPERTS.index("blend")


def rows(n: int, seed: int = 0, sessions: int = 1 << 31, tasks: int = 1) -> np.ndarray:
    """Random visits of random sessions."""
    draw = np.random.default_rng(seed)
    made = np.zeros(n, layout(tasks))
    made["session"] = draw.integers(1, sessions, n)
    made["levels"][:, :4] = draw.integers(1, 1 << 31, (n, 4))
    made["pages"][:, :3] = draw.integers(1, 1 << 31, (n, 3))
    made["experts"] = np.nan
    return made


def taught(made: np.ndarray, label: np.ndarray, chunk: int = 64, tasks: int = 1) -> Memory:
    memory = Memory(SETTINGS, tasks)
    for k in range(0, len(made), chunk):
        part = slice(k, k + chunk)
        memory.learn(made[part], np.zeros(len(made[part]), np.int32), label[part])
    return memory


def labels(n: int, seed: int = 1, rate: float = 0.5) -> np.ndarray:
    return (np.random.default_rng(seed).random(n) < rate).astype(np.float32)


def two_kinds(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Sessions of three pages out of 600 rare ones; which half they come from is how they end, nine times in ten."""
    draw = np.random.default_rng(seed)
    identity = np.random.default_rng(99).integers(1, 1 << 31, 600)  # the same URLs whatever the seed
    side = draw.random(n) < 0.3
    made = rows(n, seed)
    made["levels"] = 0
    made["levels"][:, 1] = 7  # of all of them
    made["pages"][:, :3] = identity[draw.integers(0, 300, (n, 3)) + 300 * side[:, None]]
    made["levels"][:, 0] = made["pages"][:, 0] ^ 0x5555
    return made, (side ^ (draw.random(n) < 0.1)).astype(np.float32)


def auc(score: np.ndarray, label: np.ndarray) -> float:
    positive, negative = score[label > 0.5], score[label < 0.5]
    return float((positive[:, None] > negative[None]).mean() + (positive[:, None] == negative[None]).mean() / 2)


def same(one: Memory, other: Memory) -> bool:
    a, b = one.state(), other.state()
    return a.keys() == b.keys() and all(a[k].tobytes() == b[k].tobytes() and a[k].shape == b[k].shape for k in a)


def test_triplets_tell_two_kinds_of_rare_urls_apart_and_untrained_rows_do_not() -> None:
    made, label = two_kinds(4_000, 1)
    fresh, ends = two_kinds(1_000, 2)
    trained = auc(taught(made, label).score(fresh)[:, 0], ends)
    untrained = Memory(SETTINGS, 1)
    known = taught(made, label).state()
    known["moved.rows"] = Memory(SETTINGS, 1)._table.reshape(-1, memory_kernels.WIDTH)[known["moved.at"]]
    untrained.load(known)
    rings = untrained._vectors.reshape(-1, memory_kernels.WIDTH)
    memory_kernels.embed(
        untrained._pages.reshape(-1, PAGES), untrained._levels.reshape(-1, CATEGORIES), untrained._table[0],
        untrained._seen[0], float(untrained._totals[0, 2]), rings,
    )  # fmt: skip
    without = auc(untrained.score(fresh)[:, 0], ends)
    assert trained > 0.86  # .9 is all there is
    assert trained > without + 0.1


def test_what_is_remembered_is_bounded_and_a_rare_label_keeps_its_place() -> None:
    made, label = rows(6_000), labels(6_000, rate=0.02)
    memory = taught(made, label)
    rare = int(label.sum())
    assert memory.remembered.tolist() == [[ROOM, rare]]
    assert memory.prior[0] == pytest.approx(np.log(0.02 / 0.98), abs=0.4)
    early, late = (sum(a.nbytes for a in m.state().values()) for m in (memory, taught(rows(12_000), labels(12_000))))
    assert early < late < 2 * 2 * ROOM * 300 + (1 << 12) * 80


def test_a_session_is_remembered_once_a_label_and_never_its_own_neighbour() -> None:
    made = rows(600, sessions=60)
    memory = taught(made, labels(600))
    held = memory._sessions[0, 1, : memory.remembered[0, 1]]
    assert len(np.unique(held)) == len(held)
    for row in made[:50]:
        assert int(row["session"]) not in {n.session for n in memory.nearest(row, 0, 10_000)}
    # A vote of its own session, remembered positive, would be the only perfect likeness.
    stranger = made[:50].copy()
    stranger["session"] = 2**32 - 1
    itself = memory.score(made[:50])[:, 0]
    assert np.abs(itself - memory.score(stranger)[:, 0]).max() > 0.1, "else this shows nothing"
    for k, row in enumerate(made[:50]):
        blind = Memory(SETTINGS, 1)
        blind.load(memory.state())
        blind._vectors[0][blind._sessions[0] == row["session"]] = 0  # as if it had never been remembered
        assert blind.score(made[k : k + 1])[0, 0] == itself[k]


def test_triplets_are_not_made_within_a_session() -> None:
    vectors = np.eye(2, memory_kernels.WIDTH, dtype=np.float32)
    look = memory_kernels._nearest_of_some
    for session, found in ((7, 1), (8, 0), (9, 0)):
        held = np.array([7, 8], np.uint32)
        assert look(np.uint64(1), vectors[0], np.uint32(session), vectors, held, 2)[0] == found
    assert look(np.uint64(1), vectors[0], np.uint32(7), vectors, np.array([7, 7], np.uint32), 2)[0] == -1


def test_nothing_is_said_while_nearly_empty_or_of_one_label_alone() -> None:
    made = rows(100)
    assert np.isnan(Memory(SETTINGS, 1).score(made)).all()
    assert np.isnan(taught(made, np.ones(100, np.float32)).score(made)).all()
    assert np.isfinite(taught(made, labels(100)).score(made)).all()
    assert Memory(SETTINGS, 1).nearest(made[0], 0, 5) == []
    assert Memory(SETTINGS, 0).score(made).shape == (100, 0)
    assert taught(made, labels(100)).score(made[:0]).shape == (0, 1)


def test_a_restored_memory_goes_on_bit_for_bit_as_the_one_that_was_saved() -> None:
    made, label = rows(3_000, sessions=1_500), labels(3_000)
    one = taught(made[:2_000], label[:2_000])
    other = Memory(SETTINGS, 1)
    other.learn(made[2_000:2_100], np.zeros(100, np.int32), label[2_000:2_100])  # what it was is gone
    other.load({name: array.copy() for name, array in one.state().items()})
    assert same(one, other)
    for memory in (one, other):
        memory.learn(made[2_000:], np.zeros(1_000, np.int32), label[2_000:])
    assert same(one, other)
    assert one.score(made).tobytes() == other.score(made).tobytes()


def test_learning_is_one_example_after_the_other_whatever_the_batch_and_asking_changes_nothing() -> None:
    made, label = rows(1_000, sessions=500), labels(1_000)
    one, other = taught(made, label, chunk=1_000), Memory(SETTINGS, 1)
    for k in range(0, 1_000, 7):
        other.score(made[k : k + 7])
        other.nearest(made[k], 0, 3)
        other.learn(made[k : k + 7], np.zeros(len(made[k : k + 7]), np.int32), label[k : k + 7])
    assert same(one, other)
    assert one.score(made).tobytes() == np.concatenate([one.score(made[k : k + 1]) for k in range(1_000)]).tobytes()


def test_tasks_do_not_know_of_each_other() -> None:
    made, label = rows(400, tasks=2), labels(400)
    task = (np.arange(400) % 2).astype(np.int32)
    both, one = Memory(SETTINGS, 2), Memory(SETTINGS, 2)
    both.learn(made, task, label)
    one.learn(made[task == 1], task[task == 1], label[task == 1])
    assert both.score(made)[:, 1].tobytes() == one.score(made)[:, 1].tobytes()
    assert np.isnan(one.score(made)[:, 0]).all()


def test_a_neighbour_tells_which_session_it_was_and_how_it_ended() -> None:
    made, label = rows(200), labels(200)
    made["experts"][:100, 0, BLEND] = 0
    memory = taught(made, label)
    asked = made[50].copy()
    asked["session"] = 1
    first = memory.nearest(asked, 0, 1)[0]
    assert 0.5 < first.similarity <= 1  # the rows have moved since
    assert (first.session, first.label, first.age) == (int(made[50]["session"]), bool(label[50]), 150)
    assert first.pages == tuple(made[50]["pages"][:3].tolist())
    assert first.levels == tuple(made[50]["levels"].tolist())
    assert first.probability == 0.5
    known = memory.nearest(asked, 0, 300)
    assert len(known) == 200
    near = [n.similarity + OVERLAP_COUNTS * n.overlap for n in known]
    assert near == pytest.approx(sorted(near, reverse=True), abs=1e-6)
    assert (first.overlap, known[-1].overlap) == (pytest.approx(1), 0)
    assert sum(np.isnan(n.probability) for n in known) == 100


def test_how_frequent_a_level_is_is_known() -> None:
    made = rows(100)
    made["levels"][:, 0], made["levels"][::4, 5] = 77, 78
    share = taught(made, labels(100)).frequency(np.array([77, 78, 79]), 0)
    assert share == pytest.approx([1.0, 0.25, 0.0], abs=0.021)  # others may fall on the same row


def test_hostile_rows_break_nothing() -> None:
    draw = np.random.default_rng(5)
    made = np.frombuffer(draw.bytes(500 * layout(1).itemsize), layout(1)).copy()
    made["levels"][:100], made["pages"][:100] = 0, 0  # nothing is known of these
    made["session"][::3] = 0
    weight = np.where(draw.random(500) < 0.1, np.nan, draw.choice([1, 0, -1, np.inf, 1e-30, 1e30], 500)).astype(
        np.float32
    )
    memory = Memory(SETTINGS, 1)
    with np.errstate(all="ignore"):
        for _ in range(4):
            memory.learn(made, np.zeros(500, np.int32), labels(500), weight)
            memory.learn(made, np.zeros(500, np.int32), labels(500))
        assert np.isfinite(memory.score(made)).all()
        assert np.isfinite(memory.prior).all()
        assert len(memory.nearest(made[0], 0, 5)) == 5
    other = Memory(SETTINGS, 1)
    other.load(memory.state())
    assert same(memory, other)


STATE = {
    "totals", "clock", "count", "moved.at", "moved.squares", "moved.rows", "seen.at", "seen.values", "ring.vectors",
    "ring.sessions", "ring.visits", "ring.born", "ring.chances", "ring.pages", "ring.levels",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(STATE))
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(name: str) -> None:
    memory, before = taught(rows(50), labels(50)), taught(rows(50), labels(50))
    state = taught(rows(90, 3), labels(90, 4)).state()
    assert state.keys() == STATE
    wrong = [state[name][..., None], state[name].astype(np.bool_), None]
    if name in {"moved.at", "seen.at"}:
        wrong += [state[name][::-1], state[name] + (1 << 12), state[name] - (1 << 12)]
    elif name in {"moved.rows", "totals"}:
        wrong.append(np.full_like(state[name], np.nan))
    for value in wrong:
        broken = {k: v for k, v in state.items() if k != name} | ({} if value is None else {name: value})
        with pytest.raises(ValueError, match="memory: "):
            memory.load(broken)
        assert same(memory, before)


def test_a_row_has_no_more_items_than_there_is_room_for() -> None:
    assert CATEGORIES + PAGES <= memory_kernels.ITEMS
    assert ROOM % memory_kernels.LANES == 0
