"""Waiting for what is away: said once, ended by an answer or by whoever gives up, never for a mistake."""

import asyncio

import pytest
from aiokafka.errors import KafkaConnectionError

from streams import patience
from streams.errors import BrokerError, ConfigError, StoreError
from streams.patience import until_it_answers


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "FIRST_PAUSE_S", 0.0005)
    monkeypatch.setattr(patience, "LONGEST_PAUSE_S", 0.002)


class Absent:
    """Raises each of `errors` in turn, then answers."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.asked = 0

    async def ask(self) -> str:
        self.asked += 1
        if self.errors:
            raise self.errors.pop(0)
        return "here"


async def test_an_answer_is_given_without_a_word() -> None:
    said: list[str] = []
    assert await until_it_answers(Absent().ask, said.append) == "here"
    assert said == []


@pytest.mark.parametrize(
    "error", [StoreError("gone"), BrokerError("gone"), KafkaConnectionError(), TimeoutError(), ConnectionResetError()]
)
async def test_an_absence_is_waited_out_and_said_once_and_so_is_the_return(error: Exception) -> None:
    said: list[str] = []
    absent = Absent(*[error] * 6)
    assert await asyncio.wait_for(until_it_answers(absent.ask, said.append), 5) == "here"
    assert absent.asked == 7
    away, back = said
    assert away.startswith(str(error) or type(error).__name__)
    assert away.endswith("; waiting, nothing is lost, trying again until it answers")
    assert back.startswith("it answers again after ")


async def test_a_long_absence_is_said_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "SAY_AGAIN_S", 0.0)
    said: list[str] = []
    await asyncio.wait_for(until_it_answers(Absent(*[StoreError("gone")] * 3).ask, said.append), 5)
    assert len(said) == 4


async def test_who_gives_up_gets_the_last_error() -> None:
    absent = Absent(StoreError("first"), StoreError("second"), StoreError("third"))
    with pytest.raises(StoreError, match="second"):
        await until_it_answers(absent.ask, print, lambda: absent.asked == 2)


@pytest.mark.parametrize("error", [ConfigError("wrong"), ValueError("wrong"), asyncio.CancelledError()])
async def test_what_is_no_absence_is_raised_at_once(error: Exception) -> None:
    said: list[str] = []
    with pytest.raises(type(error)):
        await until_it_answers(Absent(error).ask, said.append)
    assert said == []
