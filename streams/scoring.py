"""The steps between reading and writing, as one visit meets them: sessionise, score, answer, join, learn.

All of it runs in the compute thread, off the event loop, over one micro-batch. The order is the promise: every score of a
micro-batch is computed before anything of that micro-batch is learned (test, then train), so each metric is progressive.
Scoring takes the visits of all partitions together; what is learned is kept apart by partition, so that it moves with that
partition's offset.
"""

import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from models.learner import Learner, Scored
from models.lesson import Example, Lesson
from models.visits import VisitContext, action_of
from schemas.decoding import encode_scored
from schemas.records import ModelStamp, NextUrl, ScoredVisit, Source
from streams.decode import Decoded, ReadVisit
from streams.emit import Record
from streams.errors import ModelFailed
from streams.isolation import is_memory, reason, score_apart
from streams.outcomes import Settled
from streams.partition import PartitionState
from streams.sessions import Sessioniser, SessionStep, Visitor
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
    refused: list[str] = field(default_factory=list)  # why, of each visit that alone made the model fail


@dataclass(slots=True)
class Teaching:
    """What one partition teaches in one learning step, as long as it can still be taken apart."""

    state: PartitionState
    contexts: list[VisitContext]
    examples: list[Example]
    through_ms: int

    def lesson(self) -> Lesson:
        """What the model is given, and the store."""
        through_ms = max([context.timestamp_ms for context in self.contexts], default=self.through_ms)
        return Lesson.of(self.contexts, self.examples, through_ms, now_ms=int(time.time() * 1000))

    def halves(self) -> "list[Teaching]":
        """Two of half the size; none where it is one visit or one example."""
        visits, examples = len(self.contexts) // 2, len(self.examples) // 2
        if not visits and not examples:
            return []
        return [
            Teaching(self.state, self.contexts[:visits], self.examples[:examples], self.through_ms),
            Teaching(self.state, self.contexts[visits:], self.examples[examples:], self.through_ms),
        ]


class Steps:
    """The compute steps over one micro-batch. One thread at a time."""

    def __init__(self, settings: Settings, learner: Learner, learns: bool = True) -> None:
        self._settings = settings
        self._learner = learner
        self._learns = learns  # False: lessons are written down for the store, and learned from there
        self._sessions = Sessioniser(settings.session_gap_ms, settings.urls)
        self._task_names = [task.name for task in settings.tasks]
        self._outcomes_of = {task.name: task.outcomes for task in settings.tasks}
        self._to_teach: deque[Teaching] = deque()  # empty but for a moment, and while the model is mended

    def score(self, decoded: Iterable[Decoded], states: Mapping[int, PartitionState]) -> Answers:
        """Sessionise and score every visit, and write its answer. Nothing is learned here.

        A visit that alone makes the model fail becomes a rejection (`streams.isolation`), and those after it are
        sessionised again as if it had never been. Raises ModelFailed, with the state as it was.
        """
        answers = Answers()
        while True:
            after: dict[tuple[int, str], Visitor] = {}
            prepared = [
                self._sessionise(states[batch.partition], read, after) for batch in decoded for read in batch.visits
            ]
            if not prepared:
                return answers
            scored, failed = score_apart(self._learner, [visit.context for visit in prepared])
            if not failed:
                break
            reasons = {(prepared[i].state.number, prepared[i].read.offset): why for i, why in failed.items()}
            for batch in decoded:
                batch.refuse({offset: why for (number, offset), why in reasons.items() if number == batch.partition})
            answers.refused += reasons.values()
        assert scored is not None, "nothing failed"
        for (number, visitor_id), visitor in after.items():
            states[number].keep(visitor_id, visitor)
        answers.prepared, answers.scored = prepared, scored
        self._write(answers, prepared, scored)
        return answers

    def _sessionise(
        self, state: PartitionState, read: ReadVisit, after: dict[tuple[int, str], Visitor]
    ) -> PreparedVisit:
        visit = read.visit
        whose = state.number, visit.visitor_id
        known = after[whose] if whose in after else state.visitor(visit.visitor_id)
        visitor, context, step = self._sessions.visit(known, visit, state.watermark.value_ms)
        if visitor is not known:
            after[whose] = visitor
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
        """Join outcomes with the visits they judge, then learn, partition by partition. Raises ModelFailed: see `teach`."""
        settled: dict[int, list[Settled]] = {}
        contexts: dict[int, list[VisitContext]] = {}
        judged: dict[int, list[int]] = {}  # partition → places of visits that are no duplicates
        scored = answers.scored
        for number in {batch.partition for batch in decoded}:
            # First, and as what they are: else the first record would settle in passing what has expired, and how much
            # of it is known to expire would hang on where batches end.
            passed = states[number].join.advance(states[number].watermark.value_ms)
            states[number].settled.extend((example, not example.label) for example in passed)
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
        for number, answers_known in settled.items():
            states[number].settled.extend((example, False) for example in answers_known)
        self._to_teach.extend(Teaching(states[number], taught, [], 0) for number, taught in contexts.items())
        self.teach()

    def settle(self, states: Sequence[PartitionState]) -> None:
        """Learn what has been answered since the last time, horizons that have passed included, in order of the visits.

        Positive answers come one by one and negative ones as the watermark moves. Learned in the order in which they
        come, a learner sees runs of one kind, and swings; in the order of their visits it sees them mixed.
        Raises ModelFailed: see `teach`.
        """
        for state in states:
            passed = state.join.advance(state.watermark.value_ms)
            state.settled.extend((example, not example.label) for example in passed)
            if state.settled:
                self._answer(state)
        self.teach()

    def _answer(self, state: PartitionState) -> None:
        settled = sorted(state.settled, key=lambda pair: pair[0].visit_ms)
        state.settled.clear()
        known = [(example, expired) for example, expired in settled if example.task in state.progress]
        for example, expired in known:
            state.progress[example.task].add(example.probability, example.baseline, example.label)
            state.balance[example.task].settle(example.label, expired)
        # Others: their task was taken out of the settings while they were open.
        examples = [_example(pair, state.balance[pair.task].weight(pair.label)) for pair, _ in known]
        self._to_teach.append(Teaching(state, [], examples, max(example.visit_ms for example, _ in settled)))
        state.counters.examples_learned += len(settled)

    # -- learning steps, and what becomes of one in which the model fails --------------------------------------------

    def teach(self) -> None:
        """Learn what waits to be learned; where this worker takes no steps of its own, only what it would learn.

        Raises ModelFailed where the model fails in a step. Then that step and those after it still wait, and of the model
        nobody knows how far it came: it has to be made anew (`learn_again`) before the rest is taught, in `halve`s.
        """
        while self._to_teach:
            teaching = self._to_teach[0]
            lesson = teaching.lesson()
            if self._learns:
                try:
                    self._learner.learn(lesson)
                except Exception as error:  # whatever a library raises
                    raise ModelFailed(f"the model failed in a learning step ({reason(error)})") from error
            self._to_teach.popleft()
            teaching.state.taught(lesson)
            teaching.state.counters.visits_learned += len(teaching.contexts)

    def learn_again(self, states: Iterable[PartitionState]) -> None:
        """Give a model that was made anew from the store what the partitions taught since their last checkpoint."""
        if self._learns:
            for state in states:
                for lesson in state.taught_since():
                    self._learner.learn(lesson)

    def halve(self, error: ModelFailed) -> str:
        """Take the step in which the model failed apart; leave it out where that cannot be, and say of what.

        Raises the error where it was for want of memory, of which one visit cannot take less.
        """
        if not self._to_teach:
            return ""  # its partition went to another worker meanwhile
        teaching = self._to_teach.popleft()
        halves = teaching.halves()
        self._to_teach.extendleft(reversed(halves))
        if halves:
            return ""
        if error.__cause__ is not None and is_memory(error.__cause__):
            raise error
        what = f"a visit of {teaching.contexts[0].url[:200]!r}" if teaching.contexts else "an example"
        return (
            f"partition {teaching.state.number}: {what} makes the model fail; it was answered and is not learned from"
        )

    def forget(self, numbers: Iterable[int]) -> None:
        """What partitions were to teach is somebody else's to learn."""
        gone = set(numbers)
        self._to_teach = deque(teaching for teaching in self._to_teach if teaching.state.number not in gone)


def _example(pair: Settled, weight: float) -> Example:
    return Example(pair.task, pair.features, pair.label, weight, pair.steps, pair.wait_ms, pair.action)
