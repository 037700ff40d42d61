"""Waiting in tests: for a condition, with a limit, and never for a time."""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

Found = TypeVar("Found")

POLL_S = 0.02


async def eventually(
    condition: Callable[[], Found] | Callable[[], Awaitable[Found]], limit_s: float = 20.0, what: str = "the condition"
) -> Found:
    """What `condition` gives once that is true. Fails, naming `what`, where it is not within `limit_s`.

    `condition` may be a coroutine function. It may raise AssertionError while it is not met: the last one is told.
    """
    deadline = time.monotonic() + limit_s
    while True:
        why = ""
        try:
            found = condition()
            if inspect.isawaitable(found):
                found = await found
        except AssertionError as error:
            found, why = None, str(error)  # type: ignore[assignment]
        if found:
            return found
        assert time.monotonic() < deadline, _late(what, limit_s, why, found)
        await asyncio.sleep(POLL_S)


def eventually_sync(
    condition: Callable[[], Found], limit_s: float = 20.0, what: str = "the condition", poll_s: float = POLL_S
) -> Found:
    """The same for tests without an event loop."""
    deadline = time.monotonic() + limit_s
    while True:
        why = ""
        try:
            found = condition()
        except AssertionError as error:
            found, why = None, str(error)  # type: ignore[assignment]
        if found:
            return found
        assert time.monotonic() < deadline, _late(what, limit_s, why, found)
        time.sleep(poll_s)


def _late(what: str, limit_s: float, why: str, found: object) -> str:
    return f"{what}: not within {limit_s:g} s" + (f" ({why})" if why else f" (last: {found!r})")
