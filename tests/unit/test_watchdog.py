"""When a worker that does not move is stuck, and when it is not: by looks that are told their time."""

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from streams.watchdog import Watchdog

LIMIT_S = 50.0


class Watched:
    """Looks every `every_s`, from a time that is not 0."""

    def __init__(self) -> None:
        self.watchdog = Watchdog(LIMIT_S)
        self.at_s = 1_000.0
        self.moves = 0
        self.asked = 0

    def look(self, waiting: int | None, moved: bool = False, pause_s: float | None = None) -> float | None:
        self.at_s += self.watchdog.every_s if pause_s is None else pause_s
        self.moves += moved
        return self.watchdog.look(self.at_s, self.moves, self._asking(waiting))

    def _asking(self, waiting: int | None) -> Callable[[], int | None]:
        def ask() -> int | None:
            self.asked += 1
            return waiting

        return ask

    def looks_until_stuck(self, waiting: int | None = 7, most: int = 100) -> int | None:
        """How many looks it takes to call the worker stuck, None where `most` do not."""
        return next((n for n in range(1, most + 1) if self.look(waiting) is not None), None)


def test_lag_and_no_progress_for_the_limit_is_a_stall_and_is_told_within_a_fifth_more() -> None:
    watched = Watched()
    watched.look(0, moved=True)
    began_s = watched.at_s
    assert watched.looks_until_stuck() is not None
    assert LIMIT_S <= watched.at_s - began_s <= 1.2 * LIMIT_S


def test_while_something_moves_nobody_is_asked_and_nothing_is_a_stall() -> None:
    watched = Watched()
    assert [watched.look(7, moved=True) for _ in range(100)] == [None] * 100
    assert watched.asked == 0


def test_no_lag_is_no_stall_however_long_nothing_moves() -> None:
    assert Watched().looks_until_stuck(waiting=0) is None


def test_an_absence_is_no_stall_and_the_count_begins_anew_after_it() -> None:
    watched = Watched()
    assert watched.looks_until_stuck(waiting=None) is None
    fresh = Watched().looks_until_stuck()
    assert watched.looks_until_stuck(most=8) is None
    watched.look(None)
    assert watched.looks_until_stuck() in {fresh, (fresh or 0) - 1}


def test_progress_at_the_last_moment_begins_the_count_anew() -> None:
    watched = Watched()
    enough = watched.looks_until_stuck() or 0
    watched = Watched()
    for _ in range(enough - 1):
        assert watched.look(7) is None
    assert watched.look(7, moved=True) is None
    assert watched.looks_until_stuck(most=enough - 2) is None


def test_a_process_that_stood_still_itself_is_not_judged_by_the_time_it_missed() -> None:
    watched = Watched()
    for _ in range(3):
        watched.look(7)
    assert watched.look(7, pause_s=3_600.0) is None
    assert watched.looks_until_stuck(most=8) is None
    assert watched.looks_until_stuck() is not None, "but it goes on to be watched"


@given(st.lists(st.tuples(st.sampled_from([None, 0, 5]), st.booleans()), max_size=200))
def test_a_stall_is_never_told_unless_every_look_of_the_last_limit_saw_lag_and_no_progress(
    looks: list[tuple[int | None, bool]],
) -> None:
    watched = Watched()
    quiet = 0  # looks in a row that saw lag and no progress
    for waiting, moved in looks:
        stuck_s = watched.look(waiting, moved)
        quiet = quiet + 1 if waiting and not moved else 0
        assert stuck_s is None or (quiet - 1) * watched.watchdog.every_s >= LIMIT_S - 1e-6
