"""The dense part of the classifier: a small torch network whose parameters live in one flat vector.

logit = FTRL's logit + linear(numbers) + MLP(64 ReLU, 64 ReLU) over embeddings of levels, an attention over the last
pages, and the numbers; a head per task. One flat vector makes Adam five lines and a snapshot one array. Initial weights
come from a generator of its own, so equal seeds give equal networks. A step whose loss is not finite is refused.
"""

import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from models.features import CATEGORIES, PAGES
from models.settings import ModelSettings

F32 = NDArray[np.float32]
_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8
_CLIP = 5.0  # norm of the gradient of an example's share


class Network:
    """T heads over inputs of `width` numbers. B is a batch of examples."""

    def __init__(self, settings: ModelSettings, tasks: int, width: int) -> None:
        self._settings = settings
        wanted = settings.device
        self.device = torch.device(
            "cuda" if wanted == "auto" and torch.cuda.is_available() else wanted.replace("auto", "cpu")
        )
        hidden, page = settings.hidden, settings.page_embedding
        inputs = CATEGORIES * settings.embedding + 2 * page + width
        self._shapes: dict[str, tuple[int, ...]] = {
            "w1": (inputs, hidden), "b1": (hidden,), "w2": (hidden, hidden), "b2": (hidden,),
            "head": (hidden, tasks), "wide": (width, tasks), "bias": (tasks,), "trust": (tasks,),
            "ask": (page,), "place": (PAGES,),
        }  # fmt: skip
        generator = torch.Generator().manual_seed(settings.seed)
        parts = []
        for name, shape in self._shapes.items():
            if name in ("w1", "w2", "ask"):
                parts.append(torch.randn(shape, generator=generator) * math.sqrt(1 / shape[0]))
            else:  # heads start at zero: the first answers are the linear learner's
                parts.append(torch.full(shape, 1.0 if name == "trust" else 0.0))
        self._theta = torch.cat([p.reshape(-1) for p in parts]).to(self.device).requires_grad_()
        self._first = torch.zeros_like(self._theta, requires_grad=False)
        self._second = torch.zeros_like(self._theta, requires_grad=False)
        self._updates = 0

    def _layers(self) -> dict[str, torch.Tensor]:
        sizes = [math.prod(shape) for shape in self._shapes.values()]
        pieces = torch.split(self._theta, sizes)
        return {name: piece.view(shape) for (name, shape), piece in zip(self._shapes.items(), pieces, strict=True)}

    def _tensor(self, array: NDArray[np.generic]) -> torch.Tensor:
        return torch.tensor(array).to(self.device)  # a copy: aligned memory, so that equal inputs give equal bits

    def _logits(
        self, levels: torch.Tensor, pages: torch.Tensor, absent: torch.Tensor, x: torch.Tensor, linear: torch.Tensor
    ) -> torch.Tensor:
        """levels (B, A, e), pages (B, P, p), absent (B, P) bool, x (B, width), linear (B, T) → (B, T)."""
        w = self._layers()
        attention = (pages @ w["ask"] + w["place"]).masked_fill(absent, -1e9).softmax(dim=1)  # (B, P)
        gaze = (attention[:, None, :] @ pages)[:, 0]  # (B, p)
        h = torch.cat([levels.flatten(1), gaze, pages[:, 0], x], dim=1)
        h = torch.relu(torch.addmm(w["b1"], h, w["w1"]))
        h = torch.relu(torch.addmm(w["b2"], h, w["w2"]))
        return h @ w["head"] + x @ w["wide"] + w["bias"] + w["trust"] * linear

    @torch.no_grad()
    def score(self, levels: F32, pages: F32, absent: NDArray[np.bool_], x: F32, linear: F32) -> F32:
        """(B, T) logits."""
        t = self._tensor
        out: F32 = self._logits(t(levels), t(pages), t(absent), t(x), t(linear)).cpu().numpy()
        return out

    def learn(
        self,
        levels: F32,
        pages: F32,
        absent: NDArray[np.bool_],
        x: F32,
        linear: F32,
        task: NDArray[np.int64],
        label: F32,
        weight: F32,
    ) -> tuple[F32, F32] | None:
        """One step. Returns the gradients of each example's embeddings (levels, pages); None if not finite."""
        t = self._tensor
        level_in, page_in = t(levels).requires_grad_(), t(pages).requires_grad_()
        logits = self._logits(level_in, page_in, t(absent), t(x), t(linear))
        asked = torch.nn.functional.one_hot(t(task), logits.shape[1])
        chosen = (logits * asked).sum(dim=1)  # not gather, whose gradient has no fixed order of addition on a GPU
        loss = torch.nn.functional.binary_cross_entropy_with_logits(chosen, t(label), weight=t(weight), reduction="sum")
        gradient, level_gradient, page_gradient = torch.autograd.grad(loss, [self._theta, level_in, page_in])
        norm = gradient.norm() / len(label)
        if not bool(torch.isfinite(norm)) or not bool(torch.isfinite(loss)):
            return None
        scale = min(1.0, _CLIP / max(float(norm), 1e-9)) / len(label)
        # A step from few examples is a noisy one: it goes less far.
        self._adam(
            gradient * scale, self._settings.learning_rate * math.sqrt(min(1.0, len(label) / self._settings.chunk))
        )
        return level_gradient.cpu().numpy(), page_gradient.cpu().numpy()

    def _adam(self, gradient: torch.Tensor, rate: float) -> None:
        """Kingma, Ba 2015, with the corrected moments."""
        self._updates += 1
        self._first.mul_(_BETA1).add_(gradient, alpha=1 - _BETA1)
        self._second.mul_(_BETA2).addcmul_(gradient, gradient, value=1 - _BETA2)
        size = rate / (1 - _BETA1**self._updates)
        spread = (self._second / (1 - _BETA2**self._updates)).sqrt_().add_(_EPSILON)
        with torch.no_grad():
            self._theta.addcdiv_(self._first, spread, value=-size)

    def state(self) -> dict[str, NDArray[np.generic]]:
        return {
            "theta": self._theta.detach().cpu().numpy(),
            "first": self._first.cpu().numpy(),
            "second": self._second.cpu().numpy(),
            "updates": np.array([self._updates], np.int64),
        }

    def load(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Take over a saved state. Raises RuntimeError or KeyError where it does not fit."""
        with torch.no_grad():
            for name, tensor in (("theta", self._theta), ("first", self._first), ("second", self._second)):
                tensor.copy_(torch.tensor(state[name]))
        self._updates = int(state["updates"][0])
