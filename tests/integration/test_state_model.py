"""State is exact whatever happens: the invariants of docs/state.md, driven by hypothesis against a real store.

Two workers of one partition, each with the real pipeline, ownership and store client (`tests.one_partition`). Hypothesis
draws what happens: records are written, fetched and worked on in any portions; checkpoints, crashes, zombies, rebalances;
answers of the store that are lost, while others move on or not; a store that goes back to what it held some commits before,
as one with `appendfsync everysec` does that loses its last second, or one that fails over. The verdict is read from the store
and the lists alone:

* after each step the sessions and the counters in the store are those of the records before its offsets, counted here;
* the model of a worker that owns the partition, or has just looked at the store, is the one that the store would give;
* in the end every record is answered, first answers are in order, and all that is stored, and what any new worker would
  learn from it, is what one worker whom nobody disturbs leaves behind.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import hypothesis
import pytest
import redis
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from streams import patience
from streams.outcomes import OutcomeJoin
from streams.partition import Summary
from streams.replica import Replica
from streams.store import Position, Store
from streams.visitors import stored_visitor
from streams.watermark import Watermark
from tests.one_partition import (
    BEGIN_MS,
    GAP_MS,
    LATENESS_MS,
    OUTCOMES,
    TASKS,
    VISITS,
    Register,
    Topics,
    Worker,
    outcome,
    settings_for,
    visit,
)

Result = TypeVar("Result")
Draw = tuple[str, str, int, int]
VISITORS = [f"v{n}" for n in range(6)]
COMMITS_KEPT = 3  # how many commits a store may lose
STEPS = 30

# What is written next: who, what, how much later than the record before it (thousandths of a second), how much is off.
records = st.lists(
    st.tuples(
        st.sampled_from(VISITORS),
        st.sampled_from(["visit", "visit", "visit", "order", "no order", "again", "bookmark", "torn"]),
        st.integers(0, 15_000),
        st.integers(0, LATENESS_MS // 2),
    ),
    min_size=4,
    max_size=12,
)
workers = st.sampled_from([0, 0, 0, 1])  # 0 is who was given the partition last; the other may believe to have it still
inputs = st.sampled_from([VISITS, OUTCOMES])


async def what_is_stored(store: Store) -> dict[str, Any]:
    """All that a partition's state says, apart from how often it was written."""
    position = await store.position(0)
    summary = Summary.of(position)
    register = Register()
    said: list[str] = []
    await Replica(store, register, None, said.append).rebuild([0])  # type: ignore[arg-type]
    assert not said, said
    return {
        "offsets": (position.visits, position.outcomes),
        "visitors": {name: stored_visitor(blob) for name, blob in (await visitors_in(store, position)).items()},
        "ledgers": await ledgers_in_time(store),
        "counters": summary.counters,
        "outcomes": summary.outcomes,
        "balance": {name: (b.asked, b.positive, b.negative) for name, b in summary.balance.items()},
        "watermark": Watermark.decode(summary.watermark, LATENESS_MS).value_ms if summary.watermark else None,
        "taught": (register.visits, sorted(register.taught)),
    }


async def ledgers_in_time(store: Store) -> dict[bytes, bytes]:
    """The ledgers, each of them in the index, at a moment that is not too late. Which one depends on what was read first."""
    ledgers: dict[bytes, bytes] = await store.client.hgetall(store.key(0, "joins", 0))
    due = dict(await store.client.zrange(store.key(0, "due", 0), 0, -1, withscores=True))
    pending = OutcomeJoin(TASKS, GAP_MS).pending
    assert due.keys() == ledgers.keys()
    assert all(due[name] <= pending.due_of(blob) for name, blob in ledgers.items())
    return ledgers


async def visitors_in(store: Store, position: Position) -> dict[str, bytes]:
    return await store.visitors(0, position.epoch, [*VISITORS, "closing"])


class Interleavings(RuleBasedStateMachine):
    """Two workers, one partition, one store."""

    url = ""

    @initialize(first=records, second=records, scorer=st.booleans())
    def begin(self, first: list[Draw], second: list[Draw], scorer: bool) -> None:
        """`scorer`: one of the two learns nothing as it reads, as `url2vec worker --no-learn`."""
        self.loop = asyncio.Runner()
        self.topics, self.now_ms, self.events, self.generation = Topics(), BEGIN_MS, 0, 0
        self.settings = settings_for(self.url, "disturbed")
        with redis.Redis.from_url(self.url) as admin:
            admin.flushall()
        self.witness = self.run(self.make(lambda: Store(self.settings)))
        self.workers = [self.run(self.make(self.new, learns)) for learns in (True, not scorer)]
        self.kept: list[dict[bytes, bytes]] = [{}]  # what the store held after the newest commits
        self.mark = ""
        self.move_over()
        self.write(first + second)

    def run(self, work: Awaitable[Result]) -> Result:
        async def limited() -> Result:
            return await asyncio.wait_for(work, 20)

        return self.loop.run(limited())

    async def make(self, what: Callable[..., Result], *arguments: object) -> Result:
        return what(*arguments)  # in the loop

    def new(self, learns: bool) -> Worker:
        return Worker(self.settings, self.topics, learns=learns)

    # -- records -----------------------------------------------------------------------------------------------------

    @rule(batch=records)
    def more_is_written(self, batch: list[Draw]) -> None:
        self.write(batch)

    def write(self, batch: list[Draw]) -> None:
        for who, what, later_ms, off_ms in batch:
            self.now_ms += later_ms
            at_ms = self.now_ms - off_ms
            if what == "again":
                self.topics.write_again()
            elif what == "torn":
                self.topics.write(VISITS if off_ms % 2 else OUTCOMES, None)
            elif "order" in what:
                self.topics.write(OUTCOMES, outcome(who, at_ms, what == "order"))
            else:
                self.events += 1
                self.topics.write(
                    VISITS, visit(who, at_ms, f"e{self.events}", "page_view" if what == "visit" else what)
                )

    @rule(who=workers, tp=inputs, most=st.integers(1, 9))
    def fetch(self, who: int, tp: Any, most: int) -> None:
        self.workers[who].fetch(tp, most)

    @rule(who=workers, visits=st.integers(1, 6), outcomes=st.integers(0, 3))
    def work(self, who: int, visits: int, outcomes: int) -> None:
        """With what was fetched before, and this."""
        self.workers[who].fetch(VISITS, visits)
        self.workers[who].fetch(OUTCOMES, outcomes)
        self.run(self.workers[who].work())

    @rule(who=workers, visits=st.integers(1, 6), outcomes=st.integers(0, 3))
    def work_and_checkpoint(self, who: int, visits: int, outcomes: int) -> None:
        self.work(who, visits, outcomes)
        self.checkpoint(who)

    # -- checkpoints -------------------------------------------------------------------------------------------------

    @rule(who=workers)
    def checkpoint(self, who: int) -> None:
        self.run(self.workers[who].checkpoint())

    @rule(who=workers, arrived=st.booleans(), meanwhile=st.sampled_from(["nothing", "overtaken", "goes back"]))
    def answer_is_lost(self, who: int, arrived: bool, meanwhile: str) -> None:
        worker, other = self.workers[who], self.workers[1 - who]
        self.work(who, 3, 1)

        async def overtake() -> None:
            await self.moves_to(other)
            other.fetch(VISITS, 2)
            await other.work()
            await other.checkpoint()

        async def lose() -> None:
            await self.restore(0)  # this commit alone

        worker.store.meanwhile = {"nothing": None, "overtaken": overtake, "goes back": lose}[meanwhile]
        worker.store.lose = "after" if arrived else "before"
        self.run(worker.checkpoint())
        worker.store.lose, worker.store.meanwhile = "", None

    @rule(who=workers, snapshot=st.booleans())
    def share(self, who: int, snapshot: bool) -> None:
        """A checkpoint, after which the time has come to look at the store, to follow the other, and to keep a snapshot.

        Then this worker is where the store is, whatever that has lost, and its model is the store's.
        """
        worker = self.workers[who]
        pipeline = worker.pipeline
        pipeline._follow_due, pipeline._snapshot_due = 0.0, 0.0 if snapshot else float("inf")
        self.run(worker.checkpoint())
        pipeline._follow_due = float("inf")
        self.run(self.is_where_the_store_is(worker))

    async def is_where_the_store_is(self, worker: Worker) -> None:
        assert not worker.owns or worker.is_at((await self.witness.position(0)).mark)
        if worker.pipeline.partitions:
            found = await what_is_stored(self.witness)
            assert (worker.register.visits, sorted(worker.register.taught)) == found["taught"]

    # -- who owns it -------------------------------------------------------------------------------------------------

    @rule()
    def rebalance(self) -> None:
        for worker in self.workers:
            if worker.owns:
                self.run(worker.let_go())
        self.move_over()

    @rule(busy=st.booleans())
    def leave_a_zombie(self, busy: bool) -> None:
        """The other does not hear of it, keeps what it holds, and goes on."""
        if busy:
            self.work(0, 3, 1)
        self.move_over()

    @rule(who=workers, busy=st.booleans())
    def crash(self, who: int, busy: bool) -> None:
        if busy:
            self.work(who, 3, 1)
        self.run(self.workers[who].die())
        self.workers[who] = self.run(self.make(self.new, self.workers[who].pipeline.learns))
        self.move_over()

    def move_over(self) -> None:
        self.run(self.moves_to(self.workers[1]))

    async def moves_to(self, worker: Worker) -> None:
        if worker.owns:
            await worker.let_go()  # as the group's protocol has it: whoever joins gives back first
        self.generation += 1
        await worker.take_up(self.generation)
        self.workers.sort(key=lambda one: one is not worker)

    # -- the store ---------------------------------------------------------------------------------------------------

    @rule(commits=st.integers(1, COMMITS_KEPT), busy=st.booleans())
    def go_back(self, commits: int, busy: bool) -> None:
        if busy:
            self.work(0, 3, 1)
        self.run(self.restore(commits))

    async def restore(self, commits: int) -> None:
        """What the store held so many commits ago, of those that were kept."""
        del self.kept[max(1, len(self.kept) - commits) :]
        client = self.witness.client
        await client.flushall()
        for key, dumped in self.kept[-1].items():
            await client.restore(key, 0, dumped)

    # -- the verdict -------------------------------------------------------------------------------------------------

    @invariant()
    def state_is_that_of_the_records_before_the_offsets(self) -> None:
        self.run(self.agree())

    async def agree(self) -> None:
        position = await self.witness.position(0)
        if position.mark == self.mark:
            return
        self.mark = position.mark
        if position.mark:
            visitors, duplicates = self.topics.right[position.visits]
            stored = await visitors_in(self.witness, position)
            assert {name: stored_visitor(blob) for name, blob in stored.items()} == visitors
            counters = Summary.of(position).counters
            torn = [sum(offset < position.visits for offset in self.topics.unreadable[VISITS])]
            torn.append(sum(offset < position.outcomes for offset in self.topics.unreadable[OUTCOMES]))
            scored = position.visits - torn[0]
            assert (counters.visits_scored, counters.duplicates, counters.rejected) == (scored, duplicates, sum(torn))
            found = await what_is_stored(self.witness)
            visits, taught = found["taught"]
            assert visits == counters.visits_learned == scored - duplicates
            assert len({pair[:2] for pair in taught}) == len(taught) == counters.examples_learned
            for worker in self.workers:
                if worker.is_at(position.mark) and worker.pipeline.learns:
                    assert (worker.register.visits, sorted(worker.register.taught)) == found["taught"]
            assert set(self.topics.answered) >= set(range(position.visits)) - set(self.topics.unreadable[VISITS])
        keys = await self.witness.client.keys("*")
        self.kept.append({key: await self.witness.client.dump(key) for key in keys})
        del self.kept[: -COMMITS_KEPT - 1]

    def teardown(self) -> None:
        try:
            self.finish()
        finally:
            for worker in self.workers:
                self.run(worker.die())
            self.run(self.witness.close())
            self.loop.close()

    def finish(self) -> None:
        self.move_over()
        survivor, quiet = self.workers[0], Topics()
        quiet.read = self.topics.read
        undisturbed = self.run(self.make(lambda: Worker(settings_for(self.url, "undisturbed"), quiet)))
        try:
            self.run(undisturbed.take_up(1))
            for write in (self.write_the_end, self.write_what_is_late):
                write()
                self.run(survivor.drain())
                self.run(undisturbed.drain())
            self.run(self.agree())
            unreadable = self.topics.unreadable
            readable = [n for n in range(len(self.topics.read[VISITS])) if n not in unreadable[VISITS]]
            assert list(dict.fromkeys(self.topics.answered)) == readable, "none missing, first answers in order"
            assert set(self.topics.rejected) == {(tp.topic, n) for tp, offsets in unreadable.items() for n in offsets}
            assert not self.topics.needless, "repeated though a checkpoint had them"
            assert quiet.answered == readable
            left = self.run(what_is_stored(self.witness))
            right = self.run(what_is_stored(undisturbed.store))
            assert not {name: (left[name], right[name]) for name in right if left[name] != right[name]}
            assert left["outcomes"].late == 1
        finally:
            self.run(undisturbed.die())

    def write_the_end(self) -> None:
        """So much later that nothing of before is open any more."""
        at_ms = self.now_ms + 36_000_000
        self.topics.write(VISITS, visit("closing", at_ms, "closing"))
        self.topics.write(OUTCOMES, outcome("closing", at_ms, True))

    def write_what_is_late(self) -> None:
        self.topics.write(VISITS, visit("v0", BEGIN_MS, "late"))
        self.topics.write(OUTCOMES, outcome("v1", BEGIN_MS - 36_000_000, True))


# Hypothesis draws numbers of the modules that are loaded, so examples are others where other test files ran before. Nothing is
# made smaller where a test fails: with 30 steps that takes minutes, and looks like a hang.
PHASES = [hypothesis.Phase.explicit, hypothesis.Phase.reuse, hypothesis.Phase.generate]


@pytest.mark.timeout(1_200)
@pytest.mark.parametrize("examples", [40, pytest.param(800, marks=pytest.mark.long)])
def test_whatever_happens_state_is_that_of_a_run_that_nobody_disturbed(
    store_url: str, monkeypatch: pytest.MonkeyPatch, examples: int
) -> None:
    monkeypatch.setattr(patience, "FIRST_PAUSE_S", 0.0)

    class Machine(Interleavings):
        url = store_url

    run_state_machine_as_test(
        Machine,
        settings=hypothesis.settings(
            max_examples=examples, stateful_step_count=STEPS, deadline=None, print_blob=True, phases=PHASES,
            report_multiple_bugs=False, suppress_health_check=list(hypothesis.HealthCheck),
        ),
    )  # fmt: skip
