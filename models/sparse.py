"""State of large tables that are mostly zeros: a snapshot keeps what is not."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[np.generic]]


def sparse(tables: Mapping[str, NDArray[Any]]) -> Arrays:
    """Of each table the places and values that are not zero."""
    out: Arrays = {}
    for name, table in tables.items():
        at = np.flatnonzero(table)
        out[f"{name}.at"], out[f"{name}.values"] = at.astype(np.int32), table.reshape(-1)[at]
    return out


def unsparse(tables: Mapping[str, NDArray[Any]], state: Mapping[str, NDArray[np.generic]]) -> None:
    """Fill the tables, in place, from what `sparse` made of equal ones. Raises IndexError, ValueError or KeyError."""
    for name, table in tables.items():
        flat = table.reshape(-1)
        flat[:] = 0
        flat[state[f"{name}.at"].astype(np.int64)] = state[f"{name}.values"]


def under(prefix: str, arrays: Mapping[str, NDArray[np.generic]]) -> Arrays:
    """The arrays whose name begins with a prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
