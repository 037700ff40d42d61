"""Which contestants a benchmark has, and their rounds: each in its turn, every second round in the other order."""

from collections.abc import Callable, Sequence

from streams.bench import load, worker
from streams.bench.contestants import Arena, Contestant, Result, compete, program
from streams.errors import ConfigError

VISITS = 40_000  # some eight seconds of ours, a tenth of a second of which are the two checkpoints at its ends


def chosen(name: str, visits: int | None) -> list[Contestant]:
    """The contestants of a benchmark, ours first, for it is what the others are compared with.

    Each reads as much as takes it a few seconds: a rate over a moment says nothing. Raises ConfigError where the bundled
    log has fewer visits than are asked for.
    """
    whole = load.ALL_VISITS
    if visits is not None and visits > whole:
        raise ConfigError(f"the bundled log has {whole:,} visits: give --visits no more")
    if name == "pipeline":
        mine = visits or VISITS
        return [
            Contestant("url2vec", mine, worker.run, "ours"),
            Contestant("stock Faust", max(100, mine // 4), program("streams.bench.stock_faust", True), "stock"),
            Contestant("plain loop", min(whole, mine * 5), program("streams.bench.plain_loop", True), "plain"),
        ]
    assert name == "transport", name
    mine = visits or whole
    return [
        Contestant("url2vec's batches", mine, program("streams.bench.batches", False), "ours"),
        Contestant("stock Faust", max(100, mine // 12), program("streams.bench.stock_faust", False), "stock"),
        Contestant("plain loop", mine, program("streams.bench.plain_loop", False), "plain"),
    ]


def alternate(
    arena: Arena, contestants: Sequence[Contestant], rounds: int, say: Callable[[str], None]
) -> dict[str, list[Result]]:
    """All rounds; results by name, in the order of the rounds. Raises what a run raises."""
    results: dict[str, list[Result]] = {contestant.name: [] for contestant in contestants}
    for number in range(rounds):
        for contestant in contestants if number % 2 == 0 else reversed(contestants):
            result = compete(arena, contestant)
            if contestant.role == "ours" and result.answer_bytes:
                arena.answer_bytes = result.answer_bytes  # ours is first: the others answer as much
            results[contestant.name].append(result)
            say(
                f"round {number + 1} of {rounds}: {contestant.name} {result.rate:,.0f} visits/s in {result.seconds:.1f} s"
            )
    return results
