"""`url2vec bench embedding`: how good the vectors are, how fast they come, how large and how steady they are.

All contestants learn the same streams in one process, one after the other, on the same machine. Those that are timed over
several rounds (URL2vec, gensim's one pass) take turns, every second round in the other order, and a ratio is the median
over rounds of the two rates in the same round: this machine may have other work. Slow ones run once.
"""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import msgspec
from rich.table import Table

from models.settings import ModelSettings
from streams.bench.embedding_corpus import Corpus
from streams.bench.embedding_judge import ASKED, DRIFT_AT, JUDGED_AT, PUBLISH, PUBLISHED_AT, SEEN, Watch, judged
from streams.bench.embedding_opponents import Contestant, Cost, Ours

SELDOM = (25, 100)  # where the slow ones are judged
LONG = 500_000  # visits; beyond, slow ones are judged at the end alone, and ten passes take the window of one
RIVAL = "gensim, one pass"
FLOORS = ("popularity", "random")


class Row(msgspec.Struct, kw_only=True):
    """One contestant on one stream. What was not measured is null, or not in the mapping."""

    stream: str
    name: str
    setting: str
    class_at_10: dict[str, float]  # per cent of the stream -> share
    drift: dict[str, float]  # per cent of the stream -> mean cosine with the publish before
    visits_per_cpu_second: float | None
    visits_per_second: float | None  # by the clock on the wall
    ratio_to_gensim: float | None  # of the rates by CPU time, to its one pass
    bytes_per_url: float | None
    bytes_per_url_with_name: float | None
    rounds: int
    visits: int
    urls: int
    judged: int  # at the end


def ours(slots: Sequence[int], seed: int, device: str, batch: int) -> list[Contestant]:
    """URL2vec with its defaults, and with fewer slots: then with successors in the proportion of 8 to 32."""
    settings = [ModelSettings(seed=seed, device=device)]
    settings += [ModelSettings(seed=seed, device=device, slots=k, successor_slots=max(1, k // 4)) for k in slots]
    rows: list[Contestant] = [
        Ours("url2vec" if not k else f"url2vec, {chosen.slots} slots", chosen, batch)
        for k, chosen in enumerate(settings)
    ]
    return [*rows, Ours("url2vec, names too", settings[0], batch, named=True)]


@dataclass
class _Entry:
    """A contestant with the setting it has on this stream, and what was found in its rounds."""

    contestant: Contestant
    watch: Watch
    costs: list[Cost]


def measure(
    corpus: Corpus, mine: Sequence[Contestant], others: Sequence[Sequence[Contestant]], rounds: int, seed: int,
    say: Callable[[str], None],
) -> list[Row]:  # fmt: skip
    """All contestants on one stream, URL2vec's first; `others` each in the settings that it may choose from."""

    def first(contestant: Contestant) -> _Entry:
        if contestant.rounds:
            watch = Watch(corpus, JUDGED_AT, PUBLISHED_AT, seed)
        else:
            watch = Watch(corpus, JUDGED_AT if contestant.name in FLOORS else _seldom(corpus), (), seed)
        return _Entry(contestant, watch, [_run(corpus, contestant, watch, say)])

    entries = [first(contestant) for contestant in mine]
    window = 0  # that gensim's one pass is best with here
    for settings in others:
        same = [one for one in settings if one.window == window and not one.rounds and corpus.visits > LONG]
        entries.append(max((first(one) for one in same or settings), key=_quality))
        if entries[-1].contestant.name == RIVAL:
            window = entries[-1].contestant.window
    timed = [entry for entry in entries if entry.contestant.rounds]
    for number in range(1, rounds):
        for entry in timed if number % 2 == 0 else reversed(timed):
            entry.costs.append(_run(corpus, entry.contestant, Watch(corpus), say))
    rival = next((entry for entry in timed if entry.contestant.name == RIVAL), None)
    return [_row(corpus, entry, rival) for entry in entries]


def _seldom(corpus: Corpus) -> tuple[int, ...]:
    return SELDOM if corpus.visits <= LONG else SELDOM[-1:]


def _quality(entry: _Entry) -> float:
    found = entry.watch.class_at.get(100, 0.0)
    return -1.0 if math.isnan(found) else found


def _run(corpus: Corpus, contestant: Contestant, watch: Watch, say: Callable[[str], None]) -> Cost:
    cost = contestant.learn(corpus, watch)
    if cost.visits:
        label = ", ".join(filter(None, (contestant.name, contestant.setting)))
        say(f"{corpus.name}: {label}: {_rate(cost.visits, cost.cpu_s):,.0f} visits/s in {cost.wall_s:.1f} s")
    return cost


def _row(corpus: Corpus, entry: _Entry, rival: _Entry | None) -> Row:
    costs, last = entry.costs, entry.costs[0]
    rates = [_rate(cost.visits, cost.cpu_s) for cost in costs]
    ratio = None
    if rival is not None and last.visits:
        theirs = [_rate(cost.visits, cost.cpu_s) for cost in rival.costs]
        ratio = round(median(m / t for m, t in zip(rates, theirs, strict=False)), 3)
    return Row(
        stream=corpus.name,
        name=entry.contestant.name,
        setting=entry.contestant.setting,
        class_at_10={str(p): round(share, 4) for p, share in entry.watch.class_at.items()},
        drift={str(p): round(cosine, 4) for p, cosine in entry.watch.drift.items()},
        visits_per_cpu_second=round(median(rates), 1) if last.visits else None,
        visits_per_second=round(median(_rate(c.visits, c.wall_s) for c in costs), 1) if last.visits else None,
        ratio_to_gensim=ratio,
        bytes_per_url=round(last.held_bytes / last.urls, 1) if last.urls else None,
        bytes_per_url_with_name=round((last.held_bytes + last.name_bytes) / last.urls, 1) if last.urls else None,
        rounds=len(costs),
        visits=corpus.visits,
        urls=int((corpus.seen(100) > 0).sum()),
        judged=len(judged(corpus, 100)),
    )


def _rate(visits: int, seconds: float) -> float:
    return visits / max(seconds, 1e-9)


def table(found: Sequence[Row]) -> Table:
    """The rows of one stream for a terminal."""
    one = found[0]
    title = f"{one.stream}: {one.visits:,} visits, {one.urls:,} URLs, {one.judged:,} of them judged at the end"
    grid = Table(title=title, title_justify="left", box=None, pad_edge=False)
    grid.add_column("", no_wrap=True)
    for heading in (
        *(f"class@10\n{p} %" for p in JUDGED_AT), *(f"drift\n{p} %" for p in DRIFT_AT),
        "visits\na CPU s", "visits\na second", "×\ngensim", "bytes\na URL", "and\nname",
    ):  # fmt: skip
        grid.add_column(heading, justify="right", no_wrap=True)
    for row in found:
        grid.add_row(
            ", ".join(filter(None, (row.name, row.setting))),
            *(_number(row.class_at_10.get(str(p)), ".3f") for p in JUDGED_AT),
            *(_number(row.drift.get(str(p)), ".3f") for p in DRIFT_AT),
            _number(row.visits_per_cpu_second, ",.0f"),
            _number(row.visits_per_second, ",.0f"),
            _number(row.ratio_to_gensim, ".2f"),
            _number(row.bytes_per_url, ",.0f"),
            _number(row.bytes_per_url_with_name, ",.0f"),
        )
    return grid


def _number(value: float | None, how: str) -> str:
    return "–" if value is None else format(value, how).removeprefix("0") if how == ".3f" else format(value, how)


def legend(command: str, rounds: int, seed: int, batch: int, device: str) -> str:
    """What the tables say, in a paragraph."""
    return (
        f"class@10: of a URL's ten nearest by cosine, the share in its class, after so much of the stream. Judged are URLs "
        f"that have a class and were seen {SEEN} times or more by then; of more than {2 * ASKED:,} a sample of {ASKED:,} is "
        f"asked. gensim and SVD are trained anew on each prefix (the slow ones on fewer) and have, on each stream, the best of "
        f"their windows in hindsight. Drift: mean cosine of a judged row with itself {PUBLISH} % of the stream before, "
        f"unaligned; gensim's goes to 1 because its learning rate goes to 0. Visits a second: learning alone, on one thread, "
        f"by its CPU time and by the clock, from micro-batches of {batch:,} visits or lists of words made beforehand; gensim "
        f"is told the vocabulary beforehand; offline and ten passes learn all again for each publish. × gensim: of the rates "
        f"by CPU time, to its one pass. Medians of {rounds} rounds in turns (slow ones: 1) on {os.cpu_count()} cores, URL2vec "
        f"on {device}. Bytes: arrays as reserved, fixed tables among them; of gensim vectors, output weights and index. "
        f"Immediate repeats are collapsed for all. Seed {seed}: {command}"
    )
