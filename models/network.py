"""The dense part of the network: what it adds to the answers of the linear learners, in torch, in one flat vector.

    logit = trust · (hashed FTRL, Newton) + head(MLP(64 ReLU, 64 ReLU))

over a small sub-network of each category (embedding → linear → ReLU, instead of one-hot columns), a reading of the last
pages (`models.reading`), and the standardised numbers. The heads begin at zero and Newton's trust at one, so that the
first answers are Newton's. Auxiliary heads are asked how many visits the session still had, how long until the next, and
what kind of event that was: richer errors shape better features. One flat vector makes an optimiser a few lines and a
snapshot one array. Initial weights come from a generator of its own, so equal seeds give equal networks.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from models.features import CATEGORIES, PAGES
from models.network_kernels import Layers, backward, forward
from models.optimiser import Optimiser
from models.reading import Reading
from models.settings import ModelSettings

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
LINEAR = 2  # logits of a task that the network starts from: hashed FTRL's and Newton's
ACTIONS = 16  # kinds of next event, 0 for none
_CLIP = 5.0  # norm of the gradient of an example's share
_TYPICAL, _SPREAD = np.array([1.0, 3.5]), np.array([1.0, 2.0])  # of logarithms of visits and of seconds
_MEAN = 0.02  # weight of the newest weights in the mean that answers (Polyak, Juditsky 1992, with forgetting)
_YOUNG = 10  # over the steps taken: the weight while that is more; first steps are soon out of date


@dataclass(slots=True)
class Inputs:
    """What the network sees of B visits, T tasks."""

    levels: F32  # (B, A, e) embeddings of the categories' levels
    pages: F32  # (B, P, p) embeddings of the last pages, newest first
    absent: NDArray[np.bool_]  # (B, P) no such page
    numbers: F32  # (B, width) standardised
    linear: F32  # (B, T, LINEAR) logits


@dataclass(slots=True)
class Lessons:
    """What became of m of them."""

    task: I64  # (m,)
    label: F32  # (m,)
    weight: F32  # (m,)
    later: F32  # (m, 2) log of visits that followed, of seconds to the next, scaled; NaN: not known
    action: I64  # (m,) kind of the next event, -1 not known


class Network:
    """T heads over inputs of `width` numbers."""

    def __init__(self, settings: ModelSettings, tasks: int, width: int, seed: int) -> None:
        self._settings, self._tasks = settings, tasks
        wanted = settings.device
        self.device = torch.device(
            "cuda" if wanted == "auto" and torch.cuda.is_available() else wanted.replace("auto", "cpu")
        )
        hidden, page, sub = settings.hidden, settings.page_embedding, settings.sub_net
        self._reading = Reading(settings.sequence, page, PAGES)
        categories = CATEGORIES * (sub if settings.sub_nets else settings.embedding)
        self._shapes: dict[str, tuple[int, ...]] = {
            "sub_w": (CATEGORIES, settings.embedding, sub), "sub_b": (CATEGORIES, 1, sub),
            "w1": (categories + 2 * page + width, hidden), "b1": (hidden,), "w2": (hidden, hidden), "b2": (hidden,),
            "head": (hidden, tasks), "bias": (tasks,), "trust": (tasks, LINEAR),
            "later": (hidden, 2), "later_b": (2,), "action": (hidden, ACTIONS), "action_b": (ACTIONS,),
        } | self._reading.shapes  # fmt: skip
        generator = torch.Generator().manual_seed(seed)
        parts = []
        for name, shape in self._shapes.items():
            if name in ("w1", "w2", "sub_w") or name in self._reading.shapes:
                fan_in = shape[-2] if len(shape) > 1 else shape[0]
                parts.append(torch.randn(shape, generator=generator) * math.sqrt(1 / fan_in))
            elif name == "trust":
                parts.append(torch.tensor([0.0, 1.0]).repeat(tasks, 1))
            else:  # heads start at zero: the first answers are Newton's
                parts.append(torch.zeros(shape))
        self._theta = torch.cat([p.reshape(-1) for p in parts]).to(self.device).requires_grad_()
        self._sizes = [math.prod(shape) for shape in self._shapes.values()]
        self._mean = self._theta.detach().clone()  # of the last steps' weights: what answers
        self.optimiser = Optimiser(settings.optimiser, self._theta, dict(self._shapes))
        self._gradient = torch.zeros_like(self._theta, requires_grad=False)  # by hand: room to add it up in
        if self.device.type == "cpu" and settings.sequence == "attention":  # all three are only ever changed in place
            self._weights, self._answering, self._slopes = map(self._views, (self._theta, self._mean, self._gradient))

    def _by_hand(self, auxiliary: float = 0.0) -> bool:
        """Whether `models.network_kernels` can do it."""
        s = self._settings
        usual = s.sub_nets and s.sequence == "attention" and not s.slope_penalty and not auxiliary
        return usual and self.device.type == "cpu"

    def _views(self, flat: torch.Tensor) -> Layers:
        """The layers in a flat vector, as arrays that share its memory."""
        pieces = torch.split(flat.detach(), self._sizes)
        arrays = {
            name: piece.view(shape).numpy()
            for (name, shape), piece in zip(self._shapes.items(), pieces, strict=True)
            if name in Layers._fields
        }
        return Layers(**arrays)

    def _layers(self, theta: torch.Tensor) -> dict[str, torch.Tensor]:
        pieces = torch.split(theta, self._sizes)
        return {name: piece.view(shape) for (name, shape), piece in zip(self._shapes.items(), pieces, strict=True)}

    def _tensor(self, array: NDArray[np.generic]) -> torch.Tensor:
        return torch.tensor(array).to(self.device)  # a copy: aligned memory, so that equal inputs give equal bits

    def _hidden(
        self,
        w: dict[str, torch.Tensor],
        levels: torch.Tensor,
        pages: torch.Tensor,
        absent: torch.Tensor,
        x: torch.Tensor,
    ) -> torch.Tensor:
        """levels (B, A, e), pages (B, P, p), absent (B, P), x (B, width) → (B, hidden)."""
        if self._settings.sub_nets:
            categories = torch.relu(torch.baddbmm(w["sub_b"], levels.transpose(0, 1), w["sub_w"]))  # (A, B, s)
            categories = categories.transpose(0, 1).flatten(1)
        else:
            categories = levels.flatten(1)
        h = torch.cat([categories, self._reading.read(w, pages, absent), pages[:, 0], x], dim=1)
        h = torch.relu(torch.addmm(w["b1"], h, w["w1"]))
        return torch.relu(torch.addmm(w["b2"], h, w["w2"]))

    def _logits(self, w: dict[str, torch.Tensor], h: torch.Tensor, linear: torch.Tensor) -> torch.Tensor:
        return h @ w["head"] + w["bias"] + (linear * w["trust"]).sum(dim=2)

    @torch.no_grad()
    def score(self, inputs: Inputs) -> F32:
        """(B, T) logits."""
        if self._by_hand():
            by_hand = np.empty((len(inputs.numbers), self._tasks), np.float32)
            forward(
                inputs.levels,
                inputs.pages,
                inputs.absent,
                inputs.numbers,
                inputs.linear,
                self._answering,
                by_hand,
            )
            return by_hand
        t, w = self._tensor, self._layers(self._mean)
        h = self._hidden(w, t(inputs.levels), t(inputs.pages), t(inputs.absent), t(inputs.numbers))
        out: F32 = self._logits(w, h, t(inputs.linear)).cpu().numpy()
        return out

    def learn(self, inputs: Inputs, lessons: Lessons, rate: float, auxiliary: float) -> tuple[F32, F32] | None:
        """One step at a learning rate, with that weight of each auxiliary loss.

        Returns the gradients of each example's embeddings (levels, pages); None, and nothing is changed, where the loss or a
        gradient is not finite.
        """
        work = self._gradients_by_hand if self._by_hand(auxiliary) else self._gradients
        loss, gradient, of_levels, of_pages = work(inputs, lessons, auxiliary)
        n = len(lessons.label)
        norm = float(gradient.norm()) / n
        if not math.isfinite(norm) or not math.isfinite(loss):
            return None
        # A step from few examples is a noisy one: it goes less far.
        self.optimiser.step(
            gradient * (min(1.0, _CLIP / max(norm, 1e-9)) / n), rate * math.sqrt(min(1.0, n / self._settings.chunk))
        )
        self._mean.lerp_(self._theta.detach(), min(1.0, max(_YOUNG / self.optimiser.updates, _MEAN)))
        return of_levels, of_pages

    def _gradients_by_hand(
        self, inputs: Inputs, lessons: Lessons, _auxiliary: float
    ) -> tuple[float, torch.Tensor, F32, F32]:
        self._gradient.zero_()
        of_levels, of_pages = np.empty_like(inputs.levels), np.empty_like(inputs.pages)
        loss = backward(
            inputs.levels, inputs.pages, inputs.absent, inputs.numbers, inputs.linear, lessons.task, lessons.label,
            lessons.weight, self._weights, self._slopes, of_levels, of_pages,
        )  # fmt: skip
        return loss, self._gradient, of_levels, of_pages

    def _gradients(self, inputs: Inputs, lessons: Lessons, auxiliary: float) -> tuple[float, torch.Tensor, F32, F32]:
        """The summed loss, its gradients by the weights and by the embeddings."""
        t, w = self._tensor, self._layers(self._theta)
        levels, pages = t(inputs.levels).requires_grad_(), t(inputs.pages).requires_grad_()
        x = t(inputs.numbers).requires_grad_(self._settings.slope_penalty > 0)
        h = self._hidden(w, levels, pages, t(inputs.absent), x)
        asked = torch.nn.functional.one_hot(t(lessons.task), self._tasks)
        # Not gather, whose gradient has no fixed order of addition on a GPU.
        logits = (self._logits(w, h, t(inputs.linear)) * asked).sum(dim=1)
        weight = t(lessons.weight)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(
            logits, t(lessons.label), weight=weight, reduction="sum"
        )
        if auxiliary:
            loss = loss + auxiliary * self._asides(w, h, lessons, weight)
        if self._settings.slope_penalty:
            (slope,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
            loss = loss + self._settings.slope_penalty * slope.square().sum()
        gradient, of_levels, of_pages = torch.autograd.grad(loss, [self._theta, levels, pages])
        return float(loss.detach()), gradient, of_levels.cpu().numpy(), of_pages.cpu().numpy()

    def _asides(
        self, w: dict[str, torch.Tensor], h: torch.Tensor, lessons: Lessons, weight: torch.Tensor
    ) -> torch.Tensor:
        """Smooth L1 of how much was still to come, cross-entropy of what came next; of the examples that know."""
        later, action = self._tensor(lessons.later), self._tensor(lessons.action)
        known = ~torch.isnan(later)
        error = torch.nn.functional.smooth_l1_loss(
            h @ w["later"] + w["later_b"], torch.where(known, later, 0.0), reduction="none"
        )
        total = (error * known * weight[:, None]).sum() / 2
        chosen = torch.nn.functional.one_hot(action.clamp(min=0), ACTIONS)
        likely = (torch.log_softmax(h @ w["action"] + w["action_b"], dim=1) * chosen).sum(dim=1)
        return total - (likely * (action >= 0) * weight).sum()

    def is_finite(self) -> bool:
        """Whether every weight is a number."""
        return bool(torch.isfinite(self._theta).all())

    @torch.no_grad()
    def forget(self) -> None:
        """Answer as Newton's learner does, again; what the hidden layers read is kept."""
        for theta in (self._theta, self._mean):
            w = self._layers(theta)
            for name in ("head", "bias"):
                w[name].zero_()
            w["trust"].copy_(torch.tensor([0.0, 1.0]).expand_as(w["trust"]))

    def state(self) -> dict[str, NDArray[np.generic]]:
        """Arrays from which `load` makes an equal network."""
        weights = {"theta": self._theta.detach().cpu().numpy().copy(), "mean": self._mean.cpu().numpy().copy()}
        return weights | self.optimiser.state()

    def load(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Take over a saved state. Raises RuntimeError or KeyError where it does not fit."""
        with torch.no_grad():
            self._theta.copy_(torch.tensor(state["theta"]))
            self._mean.copy_(torch.tensor(state["mean"]))
        self.optimiser.load(state)


def later_of(steps: NDArray[np.float64], wait_ms: NDArray[np.float64]) -> F32:
    """(m, 2) targets of the first auxiliary head; -1, not known, becomes NaN."""
    both = np.stack([steps, wait_ms / 1000], axis=1)
    logs = (np.log1p(np.maximum(both, 0)) - _TYPICAL) / _SPREAD
    known = np.stack([steps >= 0, wait_ms >= 0], axis=1)
    return np.where(known, logs, np.nan).astype(np.float32)
