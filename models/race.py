"""Two networks in a race, so that the stream chooses learning rate and replay, and not the user.

The incumbent answers; the rival is a copy of it that learns with one thing different. Both say what they think of every
visit, and are judged by what came of it, on what they said when the visit was scored. A rival that wins both halves of the
race is the incumbent from then on, weights and settings; one that is surely worse is given up. Then the incumbent works
alone for a while, and its next copy, with the next variation, has its turn (population-based training, Jaderberg et al.
2017, with a population of two, on progressive loss).

Replay draws from a ring of the last examples, by a counter, not by chance. A network that falls behind Newton's learner, or
whose numbers break, goes back to its last good weights, or to none, and learns more slowly.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from models.compiled import mix_many
from models.dense import Standardiser, dense, dense_width
from models.features import EXPERTS, layout
from models.hashed import descend_rows, read_rows
from models.network import Inputs, Lessons, Network, later_of
from models.progressive import log_loss
from models.settings import ModelSettings
from models.sparse import sparse, under, unsparse

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
Rows = NDArray[np.void]

RATES = (1e-3, 2e-3, 4e-3, 8e-3)
REPLAYS = (0, 1, 2)  # remembered examples a new one
AUXILIARIES = (0.0, 0.05, 0.3)  # weight of each auxiliary loss
RING = 2_048
_HALF = 8_192  # examples of each half of a race; a rival must win both, for what gains at first may overfit later
_WORTH = 1e-3  # of log-loss by which it must win: lesser gains were seen to turn into losses
_SURE = 3.0  # standard errors at which a losing rival is given up early; visits of one session err together
_REST = 6 * _HALF  # examples between two races, in which the incumbent works alone: two cost twice as much
_FALLEN = 0.05  # of log-loss behind Newton's learner: the network has lost its way
_GOOD_EVERY = 32  # steps after which the weights are remembered as good
_NETWORK, _RIVAL, _NEWTON = (EXPERTS.index(name) for name in ("network", "rival", "newton"))
_LINEAR = [EXPERTS.index("linear"), _NEWTON]
_CHOICES = (RATES, REPLAYS, AUXILIARIES)
_VARIATIONS = np.concatenate([np.eye(3, dtype=np.int64), -np.eye(3, dtype=np.int64)])  # one thing up or down


class Race:
    """Incumbent and rival, T tasks, with the embedding tables that both read. Rows are feature rows, raw their `dense` part; B
    visits."""

    def __init__(self, settings: ModelSettings, tasks: int) -> None:
        self._settings, self._tasks = settings, tasks
        rows = 1 << settings.embedding_bits
        self._levels: F32 = np.zeros((rows, settings.embedding), np.float32)  # zero: an unseen level says nothing
        self._level_squares: F32 = np.zeros(rows, np.float32)
        self._pages: F32 = np.zeros((rows, settings.page_embedding), np.float32)
        self._page_squares: F32 = np.zeros(rows, np.float32)
        self._numbers = Standardiser(dense_width(tasks))
        self._networks = [Network(settings, tasks, dense_width(tasks), settings.seed) for _ in range(2)]
        self._fixed = [False, settings.replay >= 0, settings.auxiliary >= 0]
        said = (settings.learning_rate, max(0, settings.replay), max(0.0, settings.auxiliary))
        begin = [min(range(len(c)), key=lambda k: abs(c[k] - x)) for c, x in zip(_CHOICES, said, strict=True)]
        self._course = np.array([begin, begin], np.int64)  # of each network: its place among the choices
        self._tried = 0  # variations so far
        self.generation = 0  # of the pair, modulo 256: what one pair said is not held against the next
        self._score = np.zeros((2, 3))  # of each half of the race: n, Σ d, Σ d² of incumbent's loss minus rival's
        self._behind = np.zeros(2)  # n, Σ of the incumbent's loss minus Newton's, of late
        self.won = 0  # races that the rival won
        self.skipped_steps = 0  # refused because their loss was not finite
        self.restarts = 0  # returns to the last good weights, or to none
        self._steps = 0
        self._rest = 0  # examples until the next race
        self._good = self._networks[0].state()
        self._slow = 0  # halvings of the rate after restarts
        self._ring = np.zeros(RING, layout(tasks))
        self._fates = np.zeros((RING, 6))  # task, label, weight, steps, wait_ms, action
        self._kept = 0  # examples that the ring has ever taken in
        self._vary()

    def score(self, rows: Rows, raw: F32) -> F32:
        """(B, T, 2) logits of incumbent and rival (NaN where no race is on); the rows must hold what the linear learners
        said."""
        inputs = self._inputs(rows, raw)[2]
        out = np.full((len(rows), self._tasks, 2), np.nan, np.float32)
        for k, network in enumerate(self._racing):
            out[:, :, k] = network.score(inputs)
        return out

    @property
    def _racing(self) -> list[Network]:
        return self._networks[:1] if self._rest else self._networks

    def _inputs(self, rows: Rows, raw: F32) -> tuple[I32, I32, Inputs]:
        levels, pages = np.ascontiguousarray(rows["levels"]), np.ascontiguousarray(rows["pages"])
        a = np.empty((*levels.shape, self._settings.embedding), np.float32)
        p = np.empty((*pages.shape, self._settings.page_embedding), np.float32)
        read_rows(levels, self._levels, a)
        read_rows(pages, self._pages, p)
        linear = np.ascontiguousarray(np.nan_to_num(rows["experts"][:, :, _LINEAR].astype(np.float32)))
        return levels, pages, Inputs(a, p, pages == 0, self._numbers.standardised(raw), linear)

    def learn(self, rows: Rows, raw: F32, fates: F64, boost: float = 1.0) -> None:
        """One step from m examples. fates (m, 6): task, label, weight, steps, wait_ms, action; -1 where not known.
        `boost` lengthens the steps, after a drift."""
        self._judge(rows, fates)
        self._numbers.learn(raw)
        self._step(rows, raw, fates, boost, (True, True))
        replays = [REPLAYS[k] for k in self._course[: len(self._racing), 1]]
        for k in range(max(replays)):
            if self._kept >= RING // 4:
                drawn = self._draw(len(rows), k)
                again = self._ring[drawn]
                these = dense(again, self._settings.vectors)
                self._step(again, these, self._fates[drawn], boost, tuple(wanted > k for wanted in replays))
        at = (self._kept + np.arange(len(rows))) % RING
        self._ring[at], self._fates[at] = rows, fates
        self._kept += len(rows)
        self._steps += 1
        self._guard()
        if not self._rest:
            self._decide()
        elif (left := self._rest - len(rows)) > 0:
            self._rest = left
        else:
            self._rest = 0
            self._vary()

    def _draw(self, n: int, k: int) -> NDArray[np.int64]:
        """Places of n remembered examples, by a counter."""
        seed = np.uint64(self._kept * 8 + k) << np.uint64(20)
        return (mix_many(seed + np.arange(n, dtype=np.uint64)) % np.uint64(min(self._kept, RING))).astype(np.int64)

    def _step(self, rows: Rows, raw: F32, fates: F64, boost: float, who: tuple[bool, ...]) -> None:
        levels, pages, inputs = self._inputs(rows, raw)
        lessons = Lessons(
            fates[:, 0].astype(np.int64), fates[:, 1].astype(np.float32), fates[:, 2].astype(np.float32),
            later_of(fates[:, 3], fates[:, 4]), fates[:, 5].astype(np.int64),
        )  # fmt: skip
        for k, network in enumerate(self._racing):
            if not who[k]:
                continue
            rate = RATES[self._course[k, 0]] * boost * 0.5**self._slow
            gradients = network.learn(inputs, lessons, rate, AUXILIARIES[self._course[k, 2]])
            if gradients is None:
                self.skipped_steps += 1
            elif k == 0:  # the tables are the incumbent's; the rival reads them as they are
                descend_rows(levels, gradients[0], self._levels, self._level_squares, self._settings.table_rate)
                descend_rows(pages, gradients[1], self._pages, self._page_squares, self._settings.table_rate)

    def _judge(self, rows: Rows, fates: F64) -> None:
        """Compare what both said when the visits were scored."""
        own = rows["generation"] == self.generation
        if not own.any():
            return
        said = rows["experts"][own, fates[own, 0].astype(np.int64)].astype(np.float64)  # (m, E)
        ours, theirs, newtons = (log_loss(said[:, who], fates[own, 1]) for who in (_NETWORK, _RIVAL, _NEWTON))
        with np.errstate(invalid="ignore"):
            d, behind = ours - theirs, ours - newtons
        known, whole = np.isfinite(behind), np.isfinite(d)
        if self._behind[0] >= _HALF:
            self._behind /= 2
        self._behind += [known.sum(), behind[known].sum()]
        half = int(self._score[0, 0] >= _HALF)
        self._score[half] += [whole.sum(), d[whole].sum(), (d[whole] ** 2).sum()]

    def _decide(self) -> None:
        n, gain, squares = self._score.sum(axis=0)
        if n >= 2 * _HALF:
            if (self._score[:, 1] > _WORTH * self._score[:, 0]).all():
                self.won += 1
                self._behind[:] = 0
                self._networks.reverse()
                self._course = self._course[::-1].copy()
                self._good = self._networks[0].state()
            self._pause()
        elif n >= _HALF / 2 and gain / n < -_SURE * np.sqrt(squares) / n:
            self._pause()

    def _pause(self) -> None:
        """The race is over."""
        self._rest = _REST
        self.generation = (self.generation + 1) % 256
        self._score[:] = 0

    def _vary(self) -> None:
        """A new pair: the rival is the incumbent with the next variation of its course."""
        self.generation = (self.generation + 1) % 256
        self._score[:] = 0
        self._networks[1].load(self._networks[0].state())
        self._course[1] = self._course[0]
        for _ in range(len(_VARIATIONS)):
            variation = _VARIATIONS[self._tried % len(_VARIATIONS)]
            self._tried += 1
            moved = self._course[0] + variation
            possible = all(0 <= m < len(choice) for m, choice in zip(moved, _CHOICES, strict=True))
            if possible and not any(v and fixed for v, fixed in zip(variation, self._fixed, strict=True)):
                self._course[1] = moved
                return

    def _guard(self) -> None:
        n, behind = self._behind
        fallen = n >= _HALF // 4 and behind / n > _FALLEN
        if fallen or not self._networks[0].is_finite():
            self.restarts += 1
            self._slow = min(self._slow + 1, 6)
            self._networks[0].load(self._good)
            if fallen:  # the good ones were not: begin again from Newton's answer
                self._networks[0].forget()
            self._good = self._networks[0].state()
            self._behind[:] = 0
            self._pause()
        elif self._steps % _GOOD_EVERY == 0:
            self._good = self._networks[0].state()

    @property
    def course(self) -> dict[str, float]:
        """How the incumbent learns, for people."""
        rate, replay, auxiliary = (choice[k] for choice, k in zip(_CHOICES, self._course[0], strict=True))
        return {"learning_rate": rate * 0.5**self._slow, "replay": float(replay), "auxiliary": auxiliary}

    def state(self) -> dict[str, NDArray[np.generic]]:
        """Arrays from which `load` makes an equal pair; of the tables what is not zero, of the ring what is filled."""
        counters = [self.generation, self._tried, self.won, self.skipped_steps, self.restarts, self._steps, self._slow,
                    self._kept, self._rest]  # fmt: skip
        filled = min(self._kept, RING)
        out: dict[str, NDArray[np.generic]] = {
            "counters": np.array(counters, np.int64), "course": self._course, "score": self._score,
            "behind": self._behind,
            "ring": np.frombuffer(self._ring[:filled].tobytes(), np.uint8), "fates": self._fates[:filled],
            "moments": self._numbers.moments,
        }  # fmt: skip
        out |= sparse(self._tables())
        for name, network in (("incumbent", self._networks[0].state()), ("rival", self._networks[1].state()),
                              ("good", self._good)):  # fmt: skip
            out |= {f"{name}.{key}": value for key, value in network.items()}
        return out

    def _tables(self) -> dict[str, F32]:
        return {
            "levels": self._levels, "level_squares": self._level_squares,
            "pages": self._pages, "page_squares": self._page_squares,
        }  # fmt: skip

    def load(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Take over a saved state. Raises ValueError, IndexError, RuntimeError or KeyError where it does not fit."""
        (self.generation, self._tried, self.won, self.skipped_steps, self.restarts, self._steps, self._slow,
         self._kept, self._rest) = (int(x) for x in state["counters"])  # fmt: skip
        self._course, self._score = state["course"].astype(np.int64), state["score"].astype(np.float64)
        self._behind = state["behind"].astype(np.float64)
        if self._course.min() < 0 or (self._course.max(axis=0) >= [len(choice) for choice in _CHOICES]).any():
            raise ValueError("a network's course is none that this version knows")
        filled = min(self._kept, RING)
        self._ring[:filled] = np.frombuffer(state["ring"].tobytes(), self._ring.dtype)
        self._fates[:filled] = state["fates"]
        self._numbers.load(state["moments"])
        unsparse(self._tables(), state)
        self._networks[0].load(under("incumbent.", state))
        self._networks[1].load(under("rival.", state))
        self._good = {name: array.copy() for name, array in under("good.", state).items()}
