"""What the rounds say: medians, spreads and ratios, as rows for machines and as a table for people.

A ratio is the median over rounds of the two rates in the same round, so that what slows a whole round (another program
on this machine) does not pass for a difference. A spread is (largest - smallest) / median of the rates.
"""

from collections.abc import Mapping, Sequence
from statistics import median

import msgspec
from rich.table import Table

from streams.bench.contestants import Contestant, Result


class Row(msgspec.Struct, kw_only=True):
    """One contestant over all rounds. A ratio is null where the other did not run."""

    name: str
    visits_per_second: float
    spread: float
    rounds: int
    learning_share: float
    ratio_to_plain_loop: float | None
    ratio_to_stock_faust: float | None
    visits: int  # of one round
    each_round: list[float]  # visits per second


def rows(contestants: Sequence[Contestant], results: Mapping[str, Sequence[Result]]) -> list[Row]:
    """A row for each contestant; `results` by name, in the order of the rounds."""
    rates = {name: [result.rate for result in runs] for name, runs in results.items()}
    by_role = {contestant.role: rates[contestant.name] for contestant in contestants}

    def ratio(mine: list[float], role: str) -> float | None:
        others = by_role.get(role)
        return None if others is None else round(median(m / o for m, o in zip(mine, others, strict=True)), 4)

    return [
        Row(
            name=contestant.name,
            visits_per_second=round(median(mine), 1),
            spread=round((max(mine) - min(mine)) / median(mine), 3),
            rounds=len(mine),
            learning_share=round(median(result.learning_share for result in results[contestant.name]), 4),
            ratio_to_plain_loop=ratio(mine, "plain"),
            ratio_to_stock_faust=ratio(mine, "stock"),
            visits=results[contestant.name][0].visits,
            each_round=[round(rate, 1) for rate in mine],
        )
        for contestant in contestants
        for mine in [rates[contestant.name]]
    ]


def table(title: str, found: Sequence[Row]) -> Table:
    """The rows for a terminal."""
    grid = Table(title=title, title_justify="left", box=None, pad_edge=False)
    grid.add_column("", no_wrap=True)
    for heading in ("visits/s", "spread", "learned", "× plain loop", "× stock Faust"):
        grid.add_column(heading, justify="right")
    for row in found:
        grid.add_row(
            row.name,
            f"{row.visits_per_second:,.0f}",
            f"{row.spread:.0%}",
            f"{row.learning_share:.0%}" if row.learning_share else "–",
            _number(row.ratio_to_plain_loop, 3),
            _number(row.ratio_to_stock_faust, 1),
        )
    return grid


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"
