"""Ways to read the last pages of a session into one vector; options of one interface, compared by
`url2vec bench classifier --ablations`."""

from typing import Literal

import torch

Way = Literal["attention", "mean", "last", "conv", "gru", "reverse"]
_GATES = 3
_TAPS = 3


class Reading:
    """B sessions of P pages of p numbers, newest first → (B, p).

    `attention`: a learned question, weights by likeness and place. `mean`. `last`: the page before. `conv`: three taps,
    ReLU, maximum. `gru`: gated recurrent units from the oldest to the newest; `reverse`: from the newest to the oldest
    (Cho et al. 2014).
    """

    def __init__(self, way: Way, page: int, pages: int) -> None:
        self._way, self._page = way, page
        shapes: dict[Way, dict[str, tuple[int, ...]]] = {
            "attention": {"ask": (page,), "place": (pages,)},
            "mean": {},
            "last": {},
            "conv": {"taps": (page * _TAPS, page)},
            "gru": {"gates_x": (page, _GATES * page), "gates_h": (page, _GATES * page)},
            "reverse": {"gates_x": (page, _GATES * page), "gates_h": (page, _GATES * page)},
        }
        self.shapes = shapes[way]

    def read(self, w: dict[str, torch.Tensor], pages: torch.Tensor, absent: torch.Tensor) -> torch.Tensor:
        """pages (B, P, p), absent (B, P) → (B, p)."""
        present = ~absent[:, :, None]
        if self._way == "attention":
            weight = (pages @ w["ask"] + w["place"]).masked_fill(absent, -1e9).softmax(dim=1)
            return (weight[:, None, :] @ pages)[:, 0]
        if self._way == "mean":
            return (pages * present).sum(dim=1) / present.sum(dim=1).clamp(min=1)
        if self._way == "last":
            return pages[:, 1]
        if self._way == "conv":
            windows = (pages * present).unfold(1, _TAPS, 1).flatten(2)  # (B, P - 2, p * 3)
            return torch.relu(windows @ w["taps"]).amax(dim=1)
        return self._recur(w, pages, absent)

    def _recur(self, w: dict[str, torch.Tensor], pages: torch.Tensor, absent: torch.Tensor) -> torch.Tensor:
        h = torch.zeros_like(pages[:, 0])
        order = range(pages.shape[1])
        for k in order if self._way == "reverse" else reversed(order):
            a, b = pages[:, k] @ w["gates_x"], h @ w["gates_h"]
            x_keep, x_reset, x_new = a.chunk(_GATES, dim=1)
            h_keep, h_reset, h_new = b.chunk(_GATES, dim=1)
            keep = torch.sigmoid(x_keep + h_keep)
            new = torch.tanh(x_new + torch.sigmoid(x_reset + h_reset) * h_new)
            h = torch.where(absent[:, k, None], h, keep * h + (1 - keep) * new)
        return h
