"""Where the properties of a visit stand in its row: text and flags as levels, numbers as numbers, small integers as both.

A property goes where its name's hash points, or to the next free place: mostly one for one name. Of more properties than
there is room for, those that the settings name come first, then by name, so that always the same ones are left out.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import xxhash

from models.compiled import kernel
from models.counts import F32, F64, I32, U64, longer
from models.remembered import ENTRIES, LONGEST
from models.settings import ModelSettings
from models.visits import url_identity

HASHED = 4_096  # characters of a value; more would let a producer buy hashing time with long strings
_PLANS, _PLANNED = 4_096, 32  # sets of names remembered, of at most so many names
_SMALL = 1_000  # below it an integer may be a code or a size: it is a category too
Value = str | int | float | bool
# Types of a name's values that have one kind, whatever the values are; of integers some are small.
_PLAIN = ({str}, {bool}, {str, bool}, {float})
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


@dataclass(slots=True)
class Column:
    """Values of properties, and where in the rows each is to stand."""

    rows: list[int] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)

    def add(self, rows: Sequence[int], place: int, values: Sequence[Value]) -> None:
        """More of them, which all go to one place of their rows."""
        self.rows += rows
        self.places += [place] * len(rows)
        self.values += values


class Properties:
    """Fills the columns of a row that are there for properties."""

    def __init__(self, settings: ModelSettings, levels: int, numbers: int) -> None:
        """`levels`, `numbers`: how many there is room for."""
        self._levels, self._numbers = levels, numbers
        self._first = {name: k for k, name in enumerate((*settings.categorical, *settings.numeric))}
        self._as_number = {name.removeprefix("properties.") for name in settings.numeric}
        self._as_category = {name.removeprefix("properties.") for name in settings.categorical}
        self._left_out = settings.exclude
        self._plans: dict[tuple[tuple[str, ...], tuple[str, ...]], Plan] = {}
        self._places: dict[str, dict[str, int]] = {}  # of a name and a value in the two below
        self._held = 0
        self._known_levels: I32 = np.zeros(0, np.int32)
        self._known_pages: U64 = np.zeros(0, np.uint64)

    def fill(self, visits: Sequence[Mapping[str, Value]], levels: I32, numbers: F32, targets: U64) -> None:
        """levels (n, room), numbers (n, room), targets (n, room): url_ids of texts, should they be URLs of pages."""
        alike: dict[tuple[str, ...], list[int]] = {}  # visits by names
        for row, properties in enumerate(visits):
            if properties:
                names = tuple(properties)
                if names in alike:
                    alike[names].append(row)
                else:
                    alike[names] = [row]
        texts: dict[str, Column] = {}
        sizes = Column()
        for names, these in alike.items():
            columns = list(zip(*[visits[row].values() for row in these], strict=True))
            for kinds, places in _by_kinds(columns):
                whole = len(places) == len(these)
                rows = these if whole else [these[k] for k in places]
                for k, name, number, category in self._plan_of(names, kinds):
                    values = columns[k] if whole else [columns[k][at] for at in places]
                    if number >= 0:
                        sizes.add(rows, number, values)
                    if category >= 0:
                        texts.setdefault(name, Column()).add(rows, category, values)
        if sizes.values:
            numbers[sizes.rows, sizes.places] = _logs(sizes.values)
        for name, column in texts.items():
            values = [value if type(value) is str else str(value) for value in column.values]
            at = np.array(column.rows, np.intp), np.array(column.places, np.intp)
            levels[at], targets[at] = self._known(name, values)

    def _known(self, name: str, texts: Sequence[str]) -> tuple[I32, U64]:
        """(n,) levels and url_ids of a property's values, remembered."""
        places = list(map(self._places.get(name, {}).get, texts))
        if None in places:
            if self._held + len(texts) > ENTRIES:
                self._places.clear()
                self._held = 0
                places = [None] * len(texts)
            mine = self._places.setdefault(name, {}) if len(name) <= LONGEST else {}
            missing = list(dict.fromkeys(text for text, place in zip(texts, places, strict=True) if place is None))
            end = self._held + len(missing)
            if end > len(self._known_levels):
                self._known_levels = longer(self._known_levels, 2 * end)
                self._known_pages = longer(self._known_pages, 2 * end)
            self._known_levels[self._held : end] = [level(name, text) for text in missing]
            self._known_pages[self._held : end] = [url_identity(text[:HASHED]) for text in missing]
            derived = dict(zip(missing, range(self._held, end), strict=True))
            places = [derived[text] if place is None else place for text, place in zip(texts, places, strict=True)]
            mine |= {text: place for text, place in derived.items() if len(name) + len(text) <= LONGEST}
            self._held = end
        at = np.array(places, np.intp)
        return self._known_levels[at], self._known_pages[at]

    def _plan_of(self, names: tuple[str, ...], kinds: tuple[str, ...]) -> Plan:
        plan = self._plans.get((names, kinds))
        if plan is None:
            plan = self._planned(names, kinds)
            if len(names) <= _PLANNED and sum(map(len, names)) <= LONGEST:
                if len(self._plans) >= _PLANS:
                    self._plans.clear()
                self._plans[names, kinds] = plan
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
        for k, name, number, category in self._plan_of(tuple(properties), tuple(map(_kind, values))):
            if number >= 0:
                numbers[number] = f"properties.{name} (log)"
            if category >= 0:
                levels[category] = f"properties.{name} = {values[k]}"
        return levels, numbers


def _kind(value: Value) -> str:
    if type(value) is str or type(value) is bool:
        return "text"
    return "small" if type(value) is int and -_SMALL < value < _SMALL else "number"


def _by_kinds(columns: Sequence[Sequence[Value]]) -> Iterable[tuple[tuple[str, ...], Sequence[int]]]:
    """Which visits, of some whose properties have the same names, have which kinds of values; columns: a sequence a name."""
    if len(columns[0]) == 1:
        return [(tuple([_kind(column[0]) for column in columns]), range(1))]
    alike = [_kind(column[0]) if set(map(type, column)) in _PLAIN else "" for column in columns]
    if all(alike):
        return [(tuple(alike), range(len(columns[0])))]
    found: dict[tuple[str, ...], list[int]] = {}
    for k, kinds in enumerate(zip(*[list(map(_kind, column)) for column in columns], strict=True)):
        found.setdefault(kinds, []).append(k)
    return found.items()


@kernel
def _signed_logs(values: F64, out: F64) -> None:
    """`signed_log` of each, but for integers that are no float64; an exact zero is told from an absent number by being a
    hair above it."""
    for k in range(len(values)):
        x = values[k]
        out[k] = 0.0 if math.isnan(x) else math.copysign(math.log1p(min(abs(x), 1e308)), x)
        if out[k] == 0:
            out[k] = 1e-6


def _logs(values: Sequence[Value]) -> F64:
    try:
        numbers = np.array(values, np.float64)
    except OverflowError:
        return np.array([signed_log(value) or 1e-6 for value in values])  # type: ignore[arg-type]
    out = np.empty(len(numbers))
    _signed_logs(numbers, out)
    return out


def _next_free(at: int, taken: list[bool]) -> int:
    """A free place from `at` on, now taken; -1 where none is left."""
    for k in range(len(taken)):
        if not taken[(at + k) % len(taken)]:
            taken[(at + k) % len(taken)] = True
            return (at + k) % len(taken)
    return -1
