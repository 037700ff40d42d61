"""A network that misbehaves on command: a TCP proxy before any server, in threads of the test.

    with Proxy(lambda: server.port) as between:
        between.url / between.port      # what a client is given in place of the server
        between.delay_ms = 200          # every byte arrives that much later, in both directions
        between.cut()                   # all connections are reset; new ones are taken
        between.silence()               # half-open: connections stand, new ones too, and no byte moves; `pass_on` ends it
        between.refuse()                # all are reset, and nobody answers on the port any more; `pass_on` ends it

Where the server is, is asked for each connection: it may move to another port.
"""

import select
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

from deploy import ports

TICK_S = 0.02
CHUNK_BYTES = 65_536
HELD_BYTES = 1 << 20  # as a socket's buffers would: a sender that goes on is made to wait


class _Way:
    """One direction of one connection, carried by a thread of its own: bytes wait in it for their time, or for ever."""

    def __init__(self, proxy: "Proxy", source: socket.socket, sink: socket.socket) -> None:
        self._proxy, self._source, self._sink = proxy, source, sink
        self._held: deque[tuple[float, bytes]] = deque()
        self._is_read = False
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        try:
            while self._turn():
                pass
        except OSError:
            pass  # cut, here or by either side
        finally:
            for end in (self._source, self._sink):
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def _turn(self) -> bool:
        self._read()
        if self._proxy.is_silent:
            return True
        while self._held and self._held[0][0] <= time.monotonic():
            self._sink.sendall(self._held.popleft()[1])
        return bool(self._held) or not self._is_read

    def _read(self) -> None:
        if self._is_read or self._proxy.is_silent or sum(len(data) for _, data in self._held) > HELD_BYTES:
            time.sleep(TICK_S)
            return
        due_s = self._held[0][0] - time.monotonic() if self._held else TICK_S
        # Not a timeout of the socket's: that would be one of the other direction's writes too.
        if not select.select([self._source], [], [], min(max(due_s, 0.0), TICK_S))[0]:
            return
        if data := self._source.recv(CHUNK_BYTES):
            self._held.append((time.monotonic() + self._proxy.delay_ms / 1000, data))
        else:
            self._is_read = True


class Proxy:
    """Listens on a port of its own; `to_port` says where the server is."""

    def __init__(self, to_port: Callable[[], int]) -> None:
        self._to_port = to_port
        self.delay_ms = 0
        self.is_silent = False
        self.connections = 0  # ever taken
        self._sockets: list[socket.socket] = []
        self._lock = threading.Lock()
        self._listener: socket.socket | None = None
        self.port = 0

    @property
    def address(self) -> str:
        """`host:port`."""
        return f"{ports.HOST}:{self.port}"

    def cut(self) -> None:
        """Reset every connection, as a router that lost its table would."""
        with self._lock:
            for end in self._sockets:
                with suppress(OSError):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    end.shutdown(socket.SHUT_RDWR)
            self._sockets.clear()

    def silence(self) -> None:
        """Forward nothing any more, close nothing, and take new connections: the other side seems to be there."""
        self.is_silent = True

    def refuse(self) -> None:
        """Cut, and let nobody in."""
        if self._listener is not None:
            with suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
            self._listener.close()
            self._listener = None
        self.cut()

    def pass_on(self) -> None:
        """Forward again what comes, and what was held back."""
        self.is_silent, self.delay_ms = False, 0
        if self._listener is None:
            self._listen()

    def _listen(self) -> None:
        self._listener = socket.create_server((ports.HOST, self.port))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while self._listener is listener:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection((ports.HOST, self._to_port()), 5)
            except OSError:
                client.close()
                continue
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self.connections += 1
                self._sockets += [client, server]
            _Way(self, client, server)
            _Way(self, server, client)

    def __enter__(self) -> Self:
        self._listen()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.refuse()
