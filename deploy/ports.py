"""Ports on 127.0.0.1: whether one is free, and a free one where none was asked for.

A port found free can be taken by another program before its server binds it. Nothing here prevents that; whoever starts
a server on a port it did not ask for tries again with another one.
"""

import socket

from streams.errors import ConfigError

HOST = "127.0.0.1"


def is_free(port: int) -> bool:
    """Whether a server could listen on `port` now. Connections of a former server that still linger do not count."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: TIME_WAIT is no owner
        try:
            probe.bind((HOST, port))
            probe.listen(1)  # with SO_REUSEADDR it is `listen` that meets another listener on some systems
        except OSError:
            return False
    return True


def any_free() -> int:
    """A port that was free a moment ago, chosen by the kernel."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def choose(port: int, flag: str) -> int:
    """`port` where it is free, any free one for 0. `flag` is what the sentence tells the reader to change.

    Raises ConfigError where the port is in use, or no port at all.
    """
    if port == 0:
        return any_free()
    if not 0 < port < 65536:
        raise ConfigError(f"{port} is no port: give {flag} a number from 1 to 65535, or 0 for any free one")
    if not is_free(port):
        raise ConfigError(
            f"port {port} on {HOST} is in use by another program; choose another with {flag}, or 0 for a free one"
        )
    return port
