"""Turning one space of vectors onto another: imported vectors mean nothing in a basis that is not theirs.

Two embeddings of the same URLs differ by a rotation at least. Where enough URLs are known on both sides, the orthogonal
matrix that brings one nearest to the other is found in closed form (Schönemann 1966, "A generalized solution of the
orthogonal Procrustes problem"); where too few are, nothing is turned.
"""

import torch

from models.counts import F32, F64


def turned(vectors: F32, mine: F32, theirs: F32, weight: F64) -> F32:
    """`vectors` (n, dims), turned so that `theirs` (m, dims) come nearest to `mine` (m, dims), each pair with its weight.

    Unchanged where there are fewer pairs than dimensions: the rotation would be arbitrary in the rest of them.
    """
    if len(mine) < vectors.shape[1]:
        return vectors
    across = torch.tensor(theirs * weight[:, None]).double().T @ torch.tensor(mine).double()
    left, _, right = torch.linalg.svd(across)
    out: F32 = (torch.tensor(vectors).double() @ left @ right).float().numpy()
    return out
