"""Ports: free, taken, chosen."""

import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy import ports
from streams.errors import ConfigError


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server((ports.HOST, 0)) as listener:
        yield listener.getsockname()[1]


def test_a_port_somebody_listens_on_is_not_free(taken: int) -> None:
    assert not ports.is_free(taken)


def test_zero_means_any_port_that_is_free() -> None:
    assert ports.is_free(ports.choose(0, "--kafka-port"))


def test_a_free_port_is_taken_as_asked() -> None:
    port = ports.any_free()
    assert ports.choose(port, "--kafka-port") == port


def test_a_port_in_use_is_one_sentence_with_the_flag_to_change(taken: int) -> None:
    with pytest.raises(ConfigError) as caught:
        ports.choose(taken, "--kafka-port")
    assert str(caught.value) == (
        f"port {taken} on 127.0.0.1 is in use by another program; choose another with --kafka-port, or 0 for a free one"
    )


@given(st.integers().filter(lambda n: not 0 <= n < 65536))
def test_what_is_no_port_is_the_users_mistake(number: int) -> None:
    with pytest.raises(ConfigError, match="--redis-port"):
        ports.choose(number, "--redis-port")


def test_a_port_whose_former_connections_linger_is_free() -> None:
    with socket.create_server((ports.HOST, 0)) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection((ports.HOST, port)) as client, listener.accept()[0] as served:
            served.close()  # the server closes first, so TIME_WAIT is on its side
            assert client.recv(1) == b""
    assert ports.is_free(port)
