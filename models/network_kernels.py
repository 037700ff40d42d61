"""The network by hand, for the CPU: forward and backward, one example after the other, nothing allocated in between.

Layers so small cost torch several times what their arithmetic does: on one core a step of 256 examples took 3 ms there and
takes .8 here.
A test holds both to the same answers and gradients. Here is the usual form alone: sub-networks, attention, no auxiliary
loss; `models.network` goes by torch for the others, and on a GPU.

Shapes: m examples, A categories of e numbers, s out of each sub-network, P pages of p numbers, W numbers, H hidden, T tasks.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.compiled import kernel

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
Mask = NDArray[np.bool_]
_ZERO, _ONE = np.float32(0), np.float32(1)


class Layers(NamedTuple):
    """Weights, or their gradients."""

    sub_w: F32  # (A, e, s)
    sub_b: F32  # (A, 1, s)
    w1: F32  # (A s + 2 p + W, H)
    b1: F32  # (H,)
    w2: F32  # (H, H)
    b2: F32  # (H,)
    head: F32  # (H, T)
    bias: F32  # (T,)
    trust: F32  # (T, LINEAR)
    ask: F32  # (p,)
    place: F32  # (P,)


@kernel
def _look(levels: F32, pages: F32, absent: Mask, x: F32, w: Layers, attention: F32, u: F32) -> None:
    """u: what the first layer sees of one example; attention (P,)."""
    categories, width, out = w.sub_w.shape
    for a in range(categories):
        for j in range(out):
            u[a * out + j] = w.sub_b[a, 0, j]
        for k in range(width):
            if levels[a, k] != 0:
                for j in range(out):
                    u[a * out + j] += levels[a, k] * w.sub_w[a, k, j]
        for j in range(out):
            u[a * out + j] = max(u[a * out + j], _ZERO)
    at, size = categories * out, pages.shape[1]
    highest, total = np.float32(-1e30), _ZERO
    for k in range(pages.shape[0]):
        attention[k] = w.place[k]
        for i in range(size):
            attention[k] += pages[k, i] * w.ask[i]
        if not absent[k]:
            highest = max(highest, attention[k])
    for k in range(pages.shape[0]):
        attention[k] = _ZERO if absent[k] else np.exp(attention[k] - highest)
        total += attention[k]
    for i in range(size):
        u[at + i] = _ZERO
        u[at + size + i] = pages[0, i]
    for k in range(pages.shape[0]):
        attention[k] = attention[k] / total if total > 0 else _ZERO
        for i in range(size):
            u[at + i] += attention[k] * pages[k, i]
    for i in range(len(x)):
        u[at + 2 * size + i] = x[i]


@kernel
def _through(u: F32, w: F32, b: F32, out: F32) -> None:
    """out = relu(u w + b)."""
    for j in range(len(out)):
        out[j] = b[j]
    whole = len(u) // 4 * 4
    for i in range(0, whole, 4):  # by fours: a quarter of the traffic
        x0, x1, x2, x3 = u[i], u[i + 1], u[i + 2], u[i + 3]
        if x0 != 0 or x1 != 0 or x2 != 0 or x3 != 0:
            for j in range(len(out)):
                out[j] += (x0 * w[i, j] + x1 * w[i + 1, j]) + (x2 * w[i + 2, j] + x3 * w[i + 3, j])
    for i in range(whole, len(u)):
        for j in range(len(out)):
            out[j] += u[i] * w[i, j]
    for j in range(len(out)):
        out[j] = max(out[j], _ZERO)


@kernel
def _answer(h: F32, linear: F32, t: int, w: Layers) -> Any:
    s = w.bias[t]
    for j in range(len(h)):
        s += h[j] * w.head[j, t]
    for k in range(linear.shape[1]):
        s += linear[t, k] * w.trust[t, k]
    return s


@kernel
def forward(levels: F32, pages: F32, absent: Mask, x: F32, linear: F32, w: Layers, out: F32) -> None:
    """out (m, T): logits."""
    attention, u = np.empty(pages.shape[1], np.float32), np.empty(len(w.w1), np.float32)
    h1, h2 = np.empty(len(w.b1), np.float32), np.empty(len(w.b2), np.float32)
    for b in range(len(x)):
        _look(levels[b], pages[b], absent[b], x[b], w, attention, u)
        _through(u, w.w1, w.b1, h1)
        _through(h1, w.w2, w.b2, h2)
        for t in range(out.shape[1]):
            out[b, t] = _answer(h2, linear[b], t, w)


@kernel
def _back(u: F32, d_out: F32, turned: F32, g_w: F32, g_b: F32, d_u: F32) -> None:
    """Through out = u w + b: adds to the gradients of w and b; d_u, of as many inputs as w, transposed in `turned`, has."""
    for j in range(len(d_out)):
        g_b[j] += d_out[j]
    for i in range(len(u)):
        if u[i] != 0:
            for j in range(len(d_out)):
                g_w[i, j] += u[i] * d_out[j]
    d_u[: turned.shape[1]] = _ZERO
    whole = len(d_out) // 4 * 4
    for j in range(0, whole, 4):  # one after the other, but by fours: a quarter of the traffic with d_u
        x0, x1, x2, x3 = d_out[j], d_out[j + 1], d_out[j + 2], d_out[j + 3]
        if x0 != 0 or x1 != 0 or x2 != 0 or x3 != 0:
            for i in range(turned.shape[1]):
                s = (d_u[i] + x0 * turned[j, i]) + x1 * turned[j + 1, i]
                d_u[i] = (s + x2 * turned[j + 2, i]) + x3 * turned[j + 3, i]
    for j in range(whole, len(d_out)):
        for i in range(turned.shape[1]):
            d_u[i] += d_out[j] * turned[j, i]


@kernel
def _back_to_pages(pages: F32, absent: Mask, attention: F32, d_gaze: F32, w: Layers, g: Layers, d_pages: F32) -> None:
    """Through the attention: adds to the gradients of the question and the places, and to d_pages (P, p)."""
    count, size = pages.shape
    mean = _ZERO
    for k in range(count):
        for i in range(size):
            mean += attention[k] * pages[k, i] * d_gaze[i]
    for k in range(count):
        if absent[k]:
            continue
        d = _ZERO
        for i in range(size):
            d += pages[k, i] * d_gaze[i]
        d = attention[k] * (d - mean)
        g.place[k] += d
        for i in range(size):
            g.ask[i] += d * pages[k, i]
            d_pages[k, i] += attention[k] * d_gaze[i] + d * w.ask[i]


@kernel
def backward(
    levels: F32, pages: F32, absent: Mask, x: F32, linear: F32, task: I64, label: F32, weight: F32, w: Layers, g: Layers,
    d_levels: F32, d_pages: F32,
) -> float:  # fmt: skip
    """The summed cross-entropy of m examples; its gradients by the weights are added to g, those by the embeddings are written
    to d_levels (m, A, e) and d_pages (m, P, p)."""
    categories, width, out = w.sub_w.shape
    size, seen = pages.shape[2], categories * out
    attention, u = np.empty(pages.shape[1], np.float32), np.empty(len(w.w1), np.float32)
    h1, h2 = np.empty(len(w.b1), np.float32), np.empty(len(w.b2), np.float32)
    d1, d2, d_u = np.empty_like(h1), np.empty_like(h2), np.empty_like(u)
    w1_turned, w2_turned = w.w1[: seen + 2 * size].T.copy(), w.w2.T.copy()
    loss = 0.0
    for b in range(len(x)):
        _look(levels[b], pages[b], absent[b], x[b], w, attention, u)
        _through(u, w.w1, w.b1, h1)
        _through(h1, w.w2, w.b2, h2)
        t = task[b]
        logit = _answer(h2, linear[b], t, w)
        away = -logit if label[b] > 0.5 else logit
        loss += (max(away, _ZERO) + np.log1p(np.exp(-abs(away)))) * weight[b]
        d = np.float32((_ONE / (_ONE + np.exp(-logit)) - label[b]) * weight[b])
        g.bias[t] += d
        for k in range(linear.shape[2]):
            g.trust[t, k] += d * linear[b, t, k]
        for j in range(len(h2)):
            g.head[j, t] += d * h2[j]
            d2[j] = d * w.head[j, t] if h2[j] > 0 else _ZERO
        _back(h1, d2, w2_turned, g.w2, g.b2, d1)
        for j in range(len(h1)):
            if h1[j] <= 0:
                d1[j] = _ZERO
        _back(u, d1, w1_turned, g.w1, g.b1, d_u)
        d_pages[b] = _ZERO
        for i in range(size):
            d_pages[b, 0, i] = d_u[seen + size + i]
        _back_to_pages(pages[b], absent[b], attention, d_u[seen : seen + size], w, g, d_pages[b])
        for a in range(categories):
            for k in range(width):
                d_levels[b, a, k] = _ZERO
            for j in range(out):
                if u[a * out + j] > 0:
                    slope = d_u[a * out + j]
                    g.sub_b[a, 0, j] += slope
                    for k in range(width):
                        g.sub_w[a, k, j] += slope * levels[b, a, k]
                        d_levels[b, a, k] += slope * w.sub_w[a, k, j]
    return loss
