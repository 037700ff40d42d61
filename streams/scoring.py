"""The steps between reading and writing, as one visit meets them: sessionise, score, answer, join, learn.

All of it runs in the compute thread, off the event loop, over one micro-batch. The order is the promise: every score of a
micro-batch is computed before anything of that micro-batch is learned (test, then train), so each metric is progressive.
Scoring takes the visits of all partitions together; what is learned is kept apart by partition, so that it moves with that
partition's offset.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from models.learner import Learner, Scored
from models.lesson import Example, Lesson
from models.visits import VisitContext, action_of
from schemas.decoding import encode_scored
from schemas.records import ModelStamp, NextUrl, ScoredVisit, Source
from streams.decode import Decoded, ReadVisit
from streams.emit import Record
from streams.outcomes import Settled
from streams.partition import PartitionState
from streams.sessions import Sessioniser, SessionStep
from streams.settings import Settings


@dataclass(slots=True)
class PreparedVisit:
    """A visit on its way from its session to its answer."""

    state: PartitionState
    read: ReadVisit
    context: VisitContext
    step: SessionStep


@dataclass(slots=True)
class Answers:
    """What a micro-batch gives out at once, and what it will teach."""

    records: dict[int, list[Record]] = field(default_factory=dict)  # partition → answers, in offset order
    prepared: list[PreparedVisit] = field(default_factory=list)
    scored: Scored | None = None


class Steps:
    """The compute steps over one micro-batch. One thread at a time."""

    def __init__(self, settings: Settings, learner: Learner, learns: bool = True) -> None:
        self._settings = settings
        self._learner = learner
        self._learns = learns  # False: lessons are written down for the store, and learned from there
        self._sessions = Sessioniser(settings.session_gap_ms, settings.urls)
        self._task_names = [task.name for task in settings.tasks]
        self._outcomes_of = {task.name: task.outcomes for task in settings.tasks}

    def score(self, decoded: Iterable[Decoded], states: Mapping[int, PartitionState]) -> Answers:
        """Sessionise and score every visit, and write its answer. Nothing is learned here."""
        prepared = [self._sessionise(states[batch.partition], read) for batch in decoded for read in batch.visits]
        answers = Answers(prepared=prepared)
        if prepared:
            answers.scored = self._learner.score([visit.context for visit in prepared])
            self._write(answers, prepared, answers.scored)
        return answers

    def _sessionise(self, state: PartitionState, read: ReadVisit) -> PreparedVisit:
        visit = read.visit
        known = state.visitor(visit.visitor_id)
        visitor, context, step = self._sessions.visit(known, visit, state.watermark.value_ms)
        if visitor is not known:
            state.keep(visit.visitor_id, visitor)
        return PreparedVisit(state, read, context, step)

    def _write(self, answers: Answers, prepared: Sequence[PreparedVisit], scored: Scored) -> None:
        stamp = ModelStamp(step=self._learner.step, trained_through_ms=self._learner.trained_through_ms)
        scored_at_ms = int(time.time() * 1000)
        topic = self._settings.topics.visits
        probability, baseline = scored.probability.tolist(), scored.baseline.tolist()
        novelty, new_url = scored.novelty.tolist(), scored.new_url.tolist()
        for i, item in enumerate(prepared):
            visit, number = item.read.visit, item.state.number
            answer = ScoredVisit(
                event_id=visit.event_id,
                visitor_id=visit.visitor_id,
                session_id=item.step.session_id,
                timestamp_ms=visit.timestamp_ms,
                url=visit.url,
                scored_at_ms=scored_at_ms,
                scores=dict(zip(self._task_names, probability[i], strict=True)),
                baseline=dict(zip(self._task_names, baseline[i], strict=True)),
                next_urls=[NextUrl(url, score) for url, score in scored.next_urls[i]],
                novelty=novelty[i],
                model=stamp,
                source=Source(topic=topic, partition=number, offset=item.read.offset),
                flags=("new_url", *item.step.flags) if new_url[i] else item.step.flags,
            )
            # The key is the visitor's id even where the visit came without one, so that consumers can rely on it.
            record: Record = visit.visitor_id.encode("utf-8", "surrogatepass"), encode_scored(answer), []
            answers.records.setdefault(number, []).append(record)

    def learn(self, decoded: Sequence[Decoded], answers: Answers, states: Mapping[int, PartitionState]) -> None:
        """Join outcomes with the visits they judge, then learn, partition by partition."""
        settled: dict[int, list[Settled]] = {}
        contexts: dict[int, list[VisitContext]] = {}
        judged: dict[int, list[int]] = {}  # partition → places of visits that are no duplicates
        scored = answers.scored
        for i, item in enumerate(answers.prepared):
            assert scored is not None, "what is prepared was scored"
            state, visit = item.state, item.read.visit
            counters = state.counters
            counters.visits_scored += 1
            if item.step.duplicate:
                counters.duplicates += 1
                continue
            judged.setdefault(state.number, []).append(i)
            contexts.setdefault(state.number, []).append(item.context)
            chances = {
                name: (float(scored.probability[i, t]), float(scored.baseline[i, t]))
                for t, name in enumerate(self._task_names)
                # A visit that is itself an outcome of a task has answered its question: it would teach the answer's name.
                if visit.event_name not in self._outcomes_of[name]
            }
            for name in chances:
                state.balance[name].asked += 1
            settled.setdefault(state.number, []).extend(
                state.join.visit(
                    visit.visitor_id, item.step.session_id, visit.event_id, visit.timestamp_ms,
                    scored.features[i], chances, state.watermark.value_ms, action=action_of(visit.event_name),
                )
            )  # fmt: skip
        for number, places in judged.items():
            assert scored is not None, "what is judged was scored"
            states[number].ranking.add(scored.ranks[places])
        for batch in decoded:
            state = states[batch.partition]
            state.counters.rejected += len(batch.rejected)
            state.counters.keyless += batch.keyless
            for _, outcome in batch.outcomes:
                settled.setdefault(state.number, []).extend(
                    state.join.outcome(outcome.visitor_id, outcome, state.watermark.value_ms)
                )
        for number, taught in contexts.items():
            self._teach(states[number], taught, [])
        for number, answers_known in settled.items():
            states[number].settled.extend((example, False) for example in answers_known)

    def settle(self, states: Sequence[PartitionState]) -> None:
        """Learn what has been answered since the last time, horizons that have passed included, in order of the visits.

        Positive answers come one by one and negative ones as the watermark moves. Learned in the order in which they
        come, a learner sees runs of one kind, and swings; in the order of their visits it sees them mixed.
        """
        for state in states:
            passed = state.join.advance(state.watermark.value_ms)
            state.settled.extend((example, not example.label) for example in passed)
            if state.settled:
                self._answer(state)

    def _answer(self, state: PartitionState) -> None:
        settled = sorted(state.settled, key=lambda pair: pair[0].visit_ms)
        state.settled.clear()
        known = [(example, expired) for example, expired in settled if example.task in state.progress]
        for example, expired in known:
            state.progress[example.task].add(example.probability, example.baseline, example.label)
            state.balance[example.task].settle(example.label, expired)
        self._teach(
            state,
            [],
            # Others: their task was taken out of the settings while they were open.
            [_example(pair, state.balance[pair.task].weight(pair.label)) for pair, _ in known],
            max(example.visit_ms for example, _ in settled),
        )
        state.counters.examples_learned += len(settled)

    def _teach(
        self, state: PartitionState, contexts: list[VisitContext], examples: list[Example], through_ms: int = 0
    ) -> None:
        """One learning step of one partition; where this worker takes none of its own, only what it would learn."""
        through_ms = max([context.timestamp_ms for context in contexts], default=through_ms)
        lesson = Lesson.of(contexts, examples, through_ms, now_ms=int(time.time() * 1000))
        if self._learns:
            self._learner.learn(lesson)
        state.taught(lesson)
        state.counters.visits_learned += len(contexts)


def _example(pair: Settled, weight: float) -> Example:
    return Example(pair.task, pair.features, pair.label, weight, pair.steps, pair.wait_ms, pair.action)
