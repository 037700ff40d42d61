"""How a visit lies among the URL vectors: cosines with the session's last pages, and with the page that a property names.

URL vectors are worth most to the classifier as cosines; fed as they are they hurt.
"""

import numpy as np

from models.compiled import kernel
from models.counts import F32, F64, I16, I32, U64
from models.sphere import ONE
from models.url2vec import URL2Vec

COSINES = 10
COSINE_NAMES = (
    "URL · previous", "URL · mean of the last pages", "named page · URL", "named page · previous",
    "named page · mean of the last pages", "visits of the URL (log)", "visits of the named page (log)",
    "a property names a known page", "steps seen from URL to the named page (log)", "steps seen from previous to URL (log)",
)  # fmt: skip


@kernel
def _cosines(
    row: I32, recent: I32, target: I32, vectors: I16, norm2: float, visits: F64, unit: float, out: F32
) -> None:
    """Columns: url·previous, url·mean of recent, target·(url, previous, mean), log visits of both, has target."""
    dims = vectors.shape[1]
    mean = np.zeros(dims, np.float32)
    for t in range(len(row)):
        out[t, :] = 0
        i, p, g = row[t], recent[t, 0], target[t]
        mean[:] = 0
        square = np.float32(0)
        for d in range(recent.shape[1]):
            if recent[t, d] >= 0:
                for k in range(dims):
                    mean[k] += np.float32(vectors[recent[t, d], k])
        for k in range(dims):
            square += mean[k] * mean[k]
        length = np.sqrt(max(float(square), 1e-12) * norm2)
        a, b, c, e, f = np.float32(0), np.float32(0), np.float32(0), np.float32(0), np.float32(0)
        for k in range(dims):
            if i >= 0:
                if p >= 0:
                    a += np.float32(vectors[i, k]) * np.float32(vectors[p, k])
                b += np.float32(vectors[i, k]) * mean[k]
            if g >= 0:
                if i >= 0:
                    c += np.float32(vectors[g, k]) * np.float32(vectors[i, k])
                if p >= 0:
                    e += np.float32(vectors[g, k]) * np.float32(vectors[p, k])
                f += np.float32(vectors[g, k]) * mean[k]
        out[t, 0], out[t, 1] = a / norm2, b / length
        out[t, 2], out[t, 3], out[t, 4] = c / norm2, e / norm2, f / length
        if i >= 0:
            out[t, 5] = np.log1p(visits[i] / unit)
        if g >= 0:
            out[t, 6] = np.log1p(visits[g] / unit)
            out[t, 7] = 1


def cosines(row: I32, recent: I32, targets: U64, model: URL2Vec) -> F32:
    """(n, COSINES). row (n,), recent (n, RECENT): the vocabulary's, -1 unknown. targets (n, k): url_ids of what may be URLs in
    properties, else 0; the first known counts."""
    named = model.vocabulary.find(targets)  # (n, k)
    first = np.argmax(named >= 0, axis=1)
    target = np.ascontiguousarray(named[np.arange(len(named)), first])
    out = np.empty((len(row), COSINES), np.float32)
    _cosines(row, recent, target, model.sphere.vectors, ONE * ONE, model.counts.visits, model.counts.unit, out)
    seen, _ = model.counts.steps_seen(row, target)
    out[:, 8] = np.log1p(seen)  # a link from here to the page that a property names
    seen, _ = model.counts.steps_seen(np.ascontiguousarray(recent[:, 0]), row)
    out[:, 9] = np.log1p(seen)
    return out
