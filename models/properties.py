"""Where the properties of a visit stand in its row: text and flags as levels, numbers as numbers, small integers as both.

A property goes where its name's hash points, or to the next free place: mostly one for one name. Of more properties than
there is room for, those that the settings name come first, then by name, so that always the same ones are left out.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import xxhash

from models.counts import F32, I32, U64
from models.remembered import ENTRIES, LONGEST
from models.settings import ModelSettings
from models.visits import url_identity

HASHED = 4_096  # characters of a value; more would let a producer buy hashing time with long strings
_PLANS, _PLANNED = 4_096, 32  # sets of names remembered, of at most so many names
_SMALL = 1_000  # below it an integer may be a code or a size: it is a category too
Value = str | int | float | bool
Plan = tuple[
    tuple[int, str, int, int], ...
]  # place among the values, name, column of the number, of the level; -1: none


def level(attribute: str, value: str) -> int:
    """A property with its value as a positive int32; never 0, which stands for an absent one.

    Odd, where levels of what every visit has are even: tables have a power of two of rows, so properties, whose values
    nobody bounds (a request's id), crowd each other in one half and leave the other in peace.
    """
    text = f"{attribute}={value[:HASHED]}".encode("utf-8", "surrogatepass")
    return int(xxhash.xxh3_64_intdigest(text) & 0x7FFFFFFF | 1)


def place(attribute: str) -> int:
    """Where a name points, before the remainder."""
    return int(xxhash.xxh3_64_intdigest(f"={attribute}".encode("utf-8", "surrogatepass")) & 0x7FFFFFFF)


def signed_log(value: float) -> float:
    """sign(x) · log(1 + |x|) of any number, huge integers and NaN included (NaN is 0); at most about 710."""
    try:
        x = float(value)
    except OverflowError:
        return 710.0 if value > 0 else -710.0
    if math.isnan(x):
        return 0.0
    return math.copysign(math.log1p(min(abs(x), 1e308)), x)


class Properties:
    """Fills the columns of a row that are there for properties."""

    def __init__(self, settings: ModelSettings, levels: int, numbers: int) -> None:
        """`levels`, `numbers`: how many there is room for."""
        self._levels, self._numbers = levels, numbers
        self._first = {name: k for k, name in enumerate((*settings.categorical, *settings.numeric))}
        self._as_number = {name.removeprefix("properties.") for name in settings.numeric}
        self._as_category = {name.removeprefix("properties.") for name in settings.categorical}
        self._left_out = settings.exclude
        self._plans: dict[tuple[tuple[str, ...], tuple[object, ...]], Plan] = {}
        self._values: dict[tuple[str, str], tuple[int, int]] = {}

    def fill(self, visits: Sequence[Mapping[str, Value]], levels: I32, numbers: F32, targets: U64) -> None:
        """levels (n, room), numbers (n, room), targets (n, room): url_ids of texts, should they be URLs of pages."""
        rows: list[int] = []
        columns: list[int] = []
        found: list[int] = []
        pages: list[int] = []
        number_rows: list[int] = []
        number_columns: list[int] = []
        logs: list[float] = []
        remembered = self._values
        for row, properties in enumerate(visits):
            if not properties:
                continue
            values = tuple(properties.values())
            for k, name, number, category in self._plan(properties, values):
                value = values[k]
                if number >= 0:
                    number_rows.append(row)
                    number_columns.append(number)
                    # An exact zero is told from an absent number by being a hair above it.
                    logs.append(signed_log(value) or 1e-6)  # type: ignore[arg-type]
                if category >= 0:
                    text = value if type(value) is str else str(value)
                    known = remembered.get((name, text)) or self._derive(name, text)
                    rows.append(row)
                    columns.append(category)
                    found.append(known[0])
                    pages.append(known[1])
        levels[rows, columns] = found
        targets[rows, columns] = np.array(pages, np.uint64)
        numbers[number_rows, number_columns] = logs

    def _derive(self, name: str, text: str) -> tuple[int, int]:
        """Level and url_id of a value, remembered."""
        known = level(name, text), url_identity(text[:HASHED])
        if len(name) + len(text) <= LONGEST:
            if len(self._values) >= ENTRIES:
                self._values.clear()
            self._values[name, text] = known
        return known

    def _plan(self, properties: Mapping[str, Value], values: Sequence[Value]) -> Plan:
        names = tuple(properties)
        kinds: tuple[object, ...] = tuple(map(type, values))
        if int in kinds:  # whether it is small decides too
            kinds = tuple(map(_kind, values))
        key = names, kinds
        plan = self._plans.get(key)
        if plan is None:
            plan = self._planned(names, tuple(map(_kind, values)))
            if len(names) <= _PLANNED and sum(map(len, names)) <= LONGEST:
                if len(self._plans) >= _PLANS:
                    self._plans.clear()
                self._plans[key] = plan
        return plan

    def _planned(self, names: Sequence[str], kinds: Sequence[str]) -> Plan:
        level_at, number_at = [False] * self._levels, [False] * self._numbers
        plan = []
        last = len(self._first)
        for name, kind, k in sorted(
            zip(names, kinds, range(len(names)), strict=True),
            key=lambda entry: (self._first.get(f"properties.{entry[0]}", last), entry[0]),
        ):
            if f"properties.{name}" in self._left_out or name in self._left_out:
                continue
            number = category = -1
            if kind != "text" and name not in self._as_category:
                number = _next_free(place(name), number_at)
            if (kind != "number" or name in self._as_category) and name not in self._as_number:
                category = _next_free(place(name), level_at)
            if number >= 0 or category >= 0:
                plan.append((k, name, number, category))
        return tuple(plan)

    def names(self, properties: Mapping[str, Value]) -> tuple[list[str], list[str]]:
        """What stands in each column for levels and for numbers, "" where there is nothing."""
        levels, numbers = [""] * self._levels, [""] * self._numbers
        values = tuple(properties.values())
        for k, name, number, category in self._plan(properties, values):
            if number >= 0:
                numbers[number] = f"properties.{name} (log)"
            if category >= 0:
                levels[category] = f"properties.{name} = {values[k]}"
        return levels, numbers


def _kind(value: Value) -> str:
    if type(value) is str or type(value) is bool:
        return "text"
    return "small" if type(value) is int and -_SMALL < value < _SMALL else "number"


def _next_free(at: int, taken: list[bool]) -> int:
    """A free place from `at` on, now taken; -1 where none is left."""
    for k in range(len(taken)):
        if not taken[(at + k) % len(taken)]:
            taken[(at + k) % len(taken)] = True
            return (at + k) % len(taken)
    return -1
