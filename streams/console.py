"""What the commands share: their common flags, and where JSON and prose go."""

import signal
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click
import msgspec
from rich.console import Console

Command = TypeVar("Command", bound=Callable[..., Any])

prose = Console(stderr=True, highlight=False)  # everything for people that is not the answer itself
out = Console(highlight=False, soft_wrap=True)


class Failed(Exception):  # noqa: N818 - the verdict of a command
    """A command that did its work and has to say no: one sentence, exit code 1."""


def options(*names: str) -> Callable[[Command], Command]:
    """The flags that many commands have, by name: `kafka`, `redis`, `config`, `json`, `debug`."""
    flags = {
        "kafka": click.option("--kafka", metavar="HOST:PORT", help="Kafka's address [env: URL2VEC_KAFKA]"),
        "redis": click.option("--redis", metavar="URL", help="Redis' address, redis://… [env: URL2VEC_REDIS]"),
        "config": click.option(
            "--config", metavar="FILE", help="settings, url2vec.toml by default [env: URL2VEC_CONFIG]"
        ),
        "json": click.option("--json", "as_json", is_flag=True, help="JSON alone on standard output"),
        "debug": click.option("--debug", is_flag=True, help="a traceback instead of a sentence when something fails"),
    }

    def add(command: Command) -> Command:
        for name in reversed(names or tuple(flags)):
            command = flags[name](command)
        return command

    return add


def interrupt_on_end() -> None:
    """Let SIGTERM and a closed terminal end a command as Ctrl-C does, so that it tidies up. Call from the main thread."""

    def ended(*_: object) -> None:
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # asked once is enough: it is tidying up
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, ended)


def print_json(value: Any) -> None:
    """One JSON value on a line of standard output, at once."""
    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")
    sys.stdout.flush()


def plain(text: str) -> str:
    """Text from outside, made harmless for a terminal: control characters become visible escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
