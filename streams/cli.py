"""The command line: which commands there are, where addresses come from, and how a command ends.

Every command takes `--json`: then standard output carries JSON alone and everything else goes to standard error. Exit
codes: 0 done; 1 failed, with one sentence on standard error; 2 wrong usage; 130 interrupted. Heavy modules (torch, Faust)
are imported inside the commands that need them, so that `--help` and `status` are quick.
"""

import asyncio
import importlib
import keyword
import logging
import sys

import click

from schemas.decoding import BadEvent
from streams.console import Failed
from streams.errors import BrokerError, ConfigError, ModelFailed, Stalled, StoreError

# Where each command lives: imported only when it is called or listed.
COMMANDS = {
    "demo": "streams.cli_demo",
    "up": "streams.cli_up",
    "worker": "streams.cli_worker",
    "replay": "streams.logs_cli",
    "check": "streams.logs_cli",
    "status": "streams.cli_status",
    "wait": "streams.cli_status",
    "tail": "streams.cli_tail",
    "nearest": "streams.cli_nearest",
    "analogy": "streams.cli_nearest",
    "explain": "streams.cli_explain",
    "export": "streams.cli_vectors",
    "import": "streams.cli_vectors",
    "topics": "streams.cli_topics",
    "bench": "streams.cli_bench",
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order in which a newcomer meets them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, None when there is none."""
        if cmd_name not in COMMANDS:
            return None
        name = f"{cmd_name}_" if keyword.iskeyword(cmd_name) else cmd_name
        command = getattr(importlib.import_module(COMMANDS[cmd_name]), name)
        assert isinstance(command, click.Command)
        return command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="url2vec")
def cli() -> None:
    """Learn from web visits while they happen: vectors of URLs and scores of visits, on Kafka and Redis.

    Addresses come from flags, then URL2VEC_KAFKA, URL2VEC_REDIS and URL2VEC_CONFIG, then url2vec.toml, then a running
    `url2vec up`. Start with `url2vec demo`.
    """


def main(arguments: list[str] | None = None) -> None:
    """The entry point: runs a command and turns what it raises into a sentence and an exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    if not debug:
        # The clients' own lines repeat, once per attempt, what a command says in one sentence.
        for noisy in ("aiokafka", "kafka", "faust", "mode"):
            logging.getLogger(noisy).setLevel(logging.CRITICAL)
    try:
        code = cli.main(arguments, prog_name="url2vec", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.UsageError as error:
        error.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt, asyncio.CancelledError):
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()  # whoever read our output has gone, as in `url2vec tail | head`
        sys.exit(0)
    except (
        ConfigError, BrokerError, StoreError, BadEvent, ModelFailed, Stalled, Failed, click.ClickException, OSError,
    ) as error:  # fmt: skip
        if debug:
            raise
        click.echo(f"url2vec: {error}", err=True)
        sys.exit(1)
    except Exception as error:
        if debug:
            raise
        click.echo(
            f"url2vec: unexpected {type(error).__name__}: {error} (run again with --debug for the traceback)", err=True
        )
        sys.exit(1)


if __name__ == "__main__":
    main()
