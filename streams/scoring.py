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

import numpy as np

from models.learner import Learner, Scored
from models.lesson import Examples, Lesson
from models.visits import TIMESTAMP, VisitBatch, action_of
from schemas.decoding import encode_scored
from schemas.records import ModelStamp, NextUrl, ScoredVisit, Source
from streams.decode import Decoded
from streams.emit import Record
from streams.errors import ModelFailed
from streams.isolation import is_memory, reason, score_apart
from streams.partition import PartitionState
from streams.session_steps import DUPLICATE
from streams.sessions import FLAGS, Sessionised, Sessioniser
from streams.settings import Settings


@dataclass(slots=True)
class Part:
    """The visits of one record batch on their way from their sessions to their answers."""

    state: PartitionState
    decoded: Decoded
    sessions: Sessionised
    begin: int  # place of the first among all of the micro-batch

    @property
    def places(self) -> range:
        """Of its visits among all of the micro-batch."""
        return range(self.begin, self.begin + len(self.decoded.visits))


@dataclass(slots=True)
class Answers:
    """What a micro-batch gives out at once, and what it will teach."""

    records: dict[int, list[Record]] = field(default_factory=dict)  # partition → answers, in offset order
    parts: list[Part] = field(default_factory=list)
    contexts: VisitBatch = field(default_factory=lambda: VisitBatch.of([]))
    scored: Scored | None = None  # of the contexts
    refused: list[str] = field(default_factory=list)  # why, of each visit that alone made the model fail


@dataclass(slots=True)
class Teaching:
    """What one partition teaches in one learning step, as long as it can still be taken apart."""

    state: PartitionState
    contexts: VisitBatch
    examples: Examples
    through_ms: int

    def lesson(self) -> Lesson:
        """What the model is given, and the store."""
        through_ms = max(self.contexts.facts[:, TIMESTAMP].tolist(), default=self.through_ms)
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
        while batches := [batch for batch in decoded if batch.visits]:
            parts: list[Part] = []
            try:
                for batch in batches:
                    parts.append(self._sessionise(batch, states[batch.partition], parts))
                contexts = VisitBatch.joined([part.sessions.contexts for part in parts])
                scored, failed = score_apart(self._learner, contexts)
            except BaseException:
                _undo(parts)
                raise
            if not failed:
                assert scored is not None, "nothing failed"
                answers.parts, answers.contexts, answers.scored = parts, contexts, scored
                self._write(answers, scored)
                break
            _undo(parts)
            for part in parts:
                offsets = [read.offset for read in part.decoded.visits]
                part.decoded.refuse({offsets[k - part.begin]: why for k, why in failed.items() if k in part.places})
            answers.refused += failed.values()
        return answers

    def _sessionise(self, batch: Decoded, state: PartitionState, before: Sequence[Part]) -> Part:
        visits = [read.visit for read in batch.visits]
        sessions = self._sessions.take_in(state.visitors, visits, state.watermark.value_ms)
        return Part(state, batch, sessions, before[-1].places.stop if before else 0)

    def _write(self, answers: Answers, scored: Scored) -> None:
        stamp = ModelStamp(step=self._learner.step, trained_through_ms=self._learner.trained_through_ms)
        scored_at_ms = int(time.time() * 1000)
        topic = self._settings.topics.visits
        probability, baseline = scored.probability.tolist(), scored.baseline.tolist()
        novelty, new_url, names = scored.novelty.tolist(), scored.new_url.tolist(), scored.names
        next_rows, next_share = scored.next_rows.tolist(), scored.next_share.tolist()
        for part in answers.parts:
            records = answers.records.setdefault(part.state.number, [])
            for i, read, session_id, became in zip(
                part.places, part.decoded.visits, part.sessions.session_ids, part.sessions.became, strict=True
            ):
                visit, flags = read.visit, FLAGS[became]
                answer = ScoredVisit(
                    event_id=visit.event_id,
                    visitor_id=visit.visitor_id,
                    session_id=session_id,
                    timestamp_ms=visit.timestamp_ms,
                    url=visit.url,
                    scored_at_ms=scored_at_ms,
                    scores=dict(zip(self._task_names, probability[i], strict=True)),
                    baseline=dict(zip(self._task_names, baseline[i], strict=True)),
                    next_urls=[
                        NextUrl(names[row], share)
                        for row, share in zip(next_rows[i], next_share[i], strict=True)
                        if row >= 0 and names[row]
                    ],
                    novelty=novelty[i],
                    model=stamp,
                    source=Source(topic=topic, partition=part.state.number, offset=read.offset),
                    flags=("new_url", *flags) if new_url[i] else flags,
                )
                # The key is the visitor's id even where the visit came without one, so that consumers can rely on it.
                records.append((visit.visitor_id.encode("utf-8", "surrogatepass"), encode_scored(answer), []))

    def learn(self, decoded: Sequence[Decoded], answers: Answers, states: Mapping[int, PartitionState]) -> None:
        """Join outcomes with the visits they judge, then learn, partition by partition. Raises ModelFailed: see `teach`."""
        taught: dict[int, list[int]] = {}  # partition → places of visits that are no duplicates
        for number in {batch.partition for batch in decoded}:
            # First: else what has expired would be settled in passing by the first record, and in another order.
            states[number].settled += states[number].join.advance(states[number].watermark.value_ms)
        for part in answers.parts:
            taught.setdefault(part.state.number, []).extend(self._ask(part, answers))
        for batch in decoded:
            state = states[batch.partition]
            state.counters.rejected += len(batch.rejected)
            state.counters.keyless += batch.keyless
            for _, outcome in batch.outcomes:
                state.settled += state.join.outcome(outcome.visitor_id, outcome, state.watermark.value_ms)
        for number, places in taught.items():
            if places:
                assert answers.scored is not None, "what is judged was scored"
                at = np.array(places, np.intp)
                states[number].ranking.add(answers.scored.ranks[at])
                self._to_teach.append(Teaching(states[number], answers.contexts.take(at), Examples.of([]), 0))
        self.teach()

    def _ask(self, part: Part, answers: Answers) -> list[int]:
        """Ask of each visit what will become of it; returns the places of those that are no duplicates."""
        scored, state = answers.scored, part.state
        assert scored is not None, "what is judged was scored"
        places = part.places
        said = np.stack([scored.probability, scored.baseline], axis=2)[places.start : places.stop].tolist()
        became, session_ids, settled = part.sessions.became, part.sessions.session_ids, state.settled
        judged, watermark_ms = [], state.watermark.value_ms
        for k, read in enumerate(part.decoded.visits):
            if became[k] & DUPLICATE:
                continue
            visit = read.visit
            judged.append(places[k])
            chances = {
                name: (p, b)
                for name, (p, b) in zip(self._task_names, said[k], strict=True)
                # A visit that is itself an outcome of a task has answered its question: it would teach the answer's name.
                if visit.event_name not in self._outcomes_of[name]
            }
            for name in chances:
                state.balance[name].asked += 1
            settled += state.join.visit(
                visit.visitor_id, session_ids[k], visit.event_id, visit.timestamp_ms, scored.features[places[k]], chances,
                watermark_ms, action=action_of(visit.event_name),
            )  # fmt: skip
        state.counters.visits_scored += len(became)
        state.counters.duplicates += len(became) - len(judged)
        return judged

    def settle(self, states: Sequence[PartitionState]) -> None:
        """Learn what has been answered since the last time, horizons that have passed included, in order of the visits.

        Positive answers come one by one and negative ones as the watermark moves. Learned in the order in which they
        come, a learner sees runs of one kind, and swings; in the order of their visits it sees them mixed.
        Raises ModelFailed: see `teach`.
        """
        for state in states:
            state.settled += state.join.advance(state.watermark.value_ms)
            if state.settled:
                self._answer(state)
        self.teach()

    def _answer(self, state: PartitionState) -> None:
        settled = sorted(state.settled, key=lambda pair: pair.visit_ms)
        state.settled.clear()
        # Others: their task was taken out of the settings while they were open.
        pairs = [pair for pair in settled if pair.task in state.progress]
        tasks = list(dict.fromkeys(pair.task for pair in pairs))
        task = np.array([tasks.index(pair.task) for pair in pairs], np.intp)
        label = np.array([pair.label for pair in pairs], np.bool_)
        expired = np.array([state.join.has_expired(pair) for pair in pairs], np.bool_)
        said = np.array([(pair.probability, pair.baseline) for pair in pairs]).reshape(-1, 2)
        weight = np.empty(len(pairs))
        for t, name in enumerate(tasks):
            mine, balance = task == t, state.balance[name]
            state.progress[name].add_many(said[mine, 0], said[mine, 1], label[mine])
            balance.settle(label[mine], expired[mine])
            weight[mine] = np.where(label[mine], balance.weight(True), balance.weight(False))
        rows: dict[bytes, int] = {}
        row = [rows.setdefault(pair.features, len(rows)) for pair in pairs]
        later = [(pair.steps, pair.wait_ms, pair.action) for pair in pairs]
        examples = Examples.from_columns(tasks, list(rows), task, row, label, weight, later)
        through_ms = settled[-1].visit_ms
        self._to_teach.append(Teaching(state, VisitBatch.of([]), examples, through_ms))
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
        teaching = self._to_teach.popleft()
        halves = teaching.halves()
        self._to_teach.extendleft(reversed(halves))
        if halves:
            return ""
        if error.__cause__ is not None and is_memory(error.__cause__):
            raise error
        what = f"a visit of {teaching.contexts.url[0][:200]!r}" if len(teaching.contexts) else "an example"
        return (
            f"partition {teaching.state.number}: {what} makes the model fail; it was answered and is not learned from"
        )

    def forget(self, numbers: Iterable[int]) -> None:
        """What partitions were to teach is somebody else's to learn."""
        gone = set(numbers)
        self._to_teach = deque(teaching for teaching in self._to_teach if teaching.state.number not in gone)


def _undo(parts: Sequence[Part]) -> None:
    for part in reversed(parts):
        part.sessions.undo()
