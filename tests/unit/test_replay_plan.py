"""What replay decides before anything is sent: speeds, when a record is due, which partition it goes to."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka.partitioner import murmur2 as murmur2_of_another_client

from streams.replay import Pace, parse_speed, partition_of


@pytest.mark.parametrize(("text", "speed"), [("max", None), ("real", 1.0), ("10x", 10.0), ("0.5x", 0.5)])
def test_speeds_are_named_as_people_say_them(text: str, speed: float | None) -> None:
    assert parse_speed(text) == speed


@pytest.mark.parametrize("text", ["", "fast", "10", "x", "0x", "-1x", "nanx", "infx", "1e999x"])
def test_what_is_no_speed_is_answered_with_what_is(text: str) -> None:
    with pytest.raises(ValueError, match="max, real, or a multiple"):
        parse_speed(text)


@given(
    speed=st.floats(0.1, 1000),
    first_ms=st.integers(0, 10**13),
    steps_ms=st.lists(st.integers(-10_000, 1_000_000), min_size=1, max_size=20),
)
def test_records_are_due_at_their_distance_from_the_first_divided_by_the_speed(
    speed: float, first_ms: int, steps_ms: list[int]
) -> None:
    pace, started_s = Pace(speed), 1000.0
    assert pace.wait_s(first_ms, started_s) == 0
    for step_ms in steps_ms:
        due_s = started_s + step_ms / 1000 / speed
        assert pace.wait_s(first_ms + step_ms, started_s) == pytest.approx(due_s - started_s, abs=1e-6)
        assert pace.wait_s(first_ms + step_ms, due_s + 1) == pytest.approx(-1, abs=1e-6)  # never waits for the past


@given(key=st.text(max_size=40).map(str.encode), partitions=st.integers(1, 100))
def test_a_key_goes_where_other_clients_send_it(key: bytes, partitions: int) -> None:
    assert partition_of(key, partitions) == (murmur2_of_another_client(key) & 0x7FFFFFFF) % partitions


@pytest.mark.parametrize(
    ("key", "murmur2"),
    # From the tests of the Java client, as signed 32-bit numbers.
    [(b"21", -973932308), (b"foobar", -790332482), (b"a-little-bit-long-string", -985981536)],
)
def test_a_key_goes_where_the_java_client_sends_it(key: bytes, murmur2: int) -> None:
    assert partition_of(key, 2**31 - 1) == (murmur2 & 0x7FFFFFFF) % (2**31 - 1)
