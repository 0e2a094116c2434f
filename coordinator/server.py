"""A small HTTP server in a thread of its own, made so that no client costs training much, whatever it does.

One thread serves all connections, one request each. How many are accepted in a second, how many stand at a time, how much
each may send and how long it may take are limited; what is beyond waits with the operating system. A connection is a generator
that yields what it waits for: most have sent their request when they are accepted, and are over in a handful of system calls
(asyncio makes some thirty, which showed in the speed of small networks).
"""

import re
import select
import socket
import ssl
import threading
import traceback
from collections.abc import Callable, Generator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from time import monotonic
from typing import Final, TypeVar

CLIENT_SECONDS: Final = 10.0
"""How long a connection may take, from its TLS handshake to the last byte of its answer."""

MOST_CLIENTS: Final = 32
"""Connections at a time; one more closes the oldest, so that silent ones keep nobody out."""

ACCEPTED_A_SECOND: Final = 100.0
ACCEPTED_AT_ONCE: Final = 20
"""A client in a hurry gets no more; so it can't take the interpreter from training for long."""

MOST_HEADER_BYTES: Final = 16_384

T = TypeVar("T")
Steps = Generator[int, None, T]
"""Yields the event of a socket to go on after."""

_REQUEST_LINE: Final = re.compile(r"([A-Z]+) ([^\s?]+)(?:\?\S*)? HTTP/1\.[01]")


@dataclass(frozen=True)
class Request:
    """What is asked for, without the query; the names of the headers are in small letters."""

    method: str
    path: str
    headers: Mapping[str, str]

    @classmethod
    def read(cls, head: str) -> "Request | None":
        """Return the request that is asked with the lines up to the first empty one; None where they ask for nothing."""
        first, *lines = head.split("\r\n")
        match = _REQUEST_LINE.fullmatch(first)
        if match is None:
            return None
        headers: dict[str, str] = {}
        for line in lines:
            name, _, value = line.partition(":")
            headers.setdefault(name.strip().lower(), value.strip())
        return cls(match[1], match[2], headers)


def ignore() -> None:
    """Nothing depends on whether an answer came through."""


@dataclass(frozen=True)
class Response:
    """What is answered. `sent` is called once it is sent to a client that still waited for it."""

    status: HTTPStatus
    kind: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()
    sent: Callable[[], None] = ignore

    @classmethod
    def plain(cls, status: HTTPStatus, text: str = "", headers: tuple[tuple[str, str], ...] = ()) -> "Response":
        """Return a line of text, by default the status itself."""
        return cls(status, "text/plain; charset=utf-8", f"{text or status.phrase}\n".encode(), headers)

    def encoded(self, *, body: bool) -> bytes:
        """Return the bytes of the answer, or of all but its body."""
        fixed = (
            ("Content-Type", self.kind),
            ("Content-Length", str(len(self.body))),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
            ("Connection", "close"),
        )
        lines = [
            f"HTTP/1.1 {self.status.value} {self.status.phrase}",
            *(f"{name}: {value}" for name, value in fixed + self.headers),
        ]
        return "\r\n".join([*lines, "", ""]).encode() + (self.body if body else b"")


@dataclass
class _Connection:
    """One client, and what is waited for until when."""

    client: socket.socket
    steps: Steps[None]
    deadline: float
    event: int = select.POLLIN


class Server:
    """Answers requests at a listening socket until it is stopped."""

    def __init__(self, listener: socket.socket, tls: ssl.SSLContext | None, answer: Callable[[Request], Response]) -> None:
        """Start; `answer` is called from the server's thread alone, and the socket is the server's from now on."""
        listener.settimeout(0.0)
        self._listener, self._tls, self._answer = listener, tls, answer
        self._connections: dict[int, _Connection] = {}  # by descriptor, the oldest first
        self._credit, self._credited_at = float(ACCEPTED_AT_ONCE), monotonic()
        self._stopping = False
        self._woken, self._waker = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="endpoint", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Close the socket and all connections. May be called more than once, and from any thread."""
        self._stopping = True
        with suppress(OSError):  # of a server that has stopped
            self._waker.send(b"x")
        # A run that nobody holds any more may be closed by the garbage collector, in whichever thread that happens to work.
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        with self._listener, self._woken, self._waker:
            try:
                while not self._stopping:
                    self._turn()
            finally:
                for descriptor in tuple(self._connections):
                    self._end(descriptor)

    def _turn(self) -> None:
        """Wait until something can be done, and do it."""
        now = monotonic()
        self._credit = min(ACCEPTED_AT_ONCE, self._credit + (now - self._credited_at) * ACCEPTED_A_SECOND)
        self._credited_at = now
        poll, until = select.poll(), [connection.deadline for connection in self._connections.values()]
        poll.register(self._woken, select.POLLIN)
        if self._credit >= 1:
            poll.register(self._listener, select.POLLIN)
        else:
            until.append(now + (1 - self._credit) / ACCEPTED_A_SECOND)
        for descriptor, connection in self._connections.items():
            poll.register(descriptor, connection.event)
        for descriptor, _ in poll.poll(1000 * max(0.0, min(until) - now) if until else None):
            if descriptor == self._listener.fileno():
                self._accept()
            elif descriptor in self._connections:
                self._advance(descriptor)
        for descriptor in [number for number, connection in self._connections.items() if connection.deadline <= now]:
            self._end(descriptor)

    def _accept(self) -> None:
        self._credit -= 1
        try:
            client, _ = self._listener.accept()
        except OSError:  # a client that is gone already, or too many open files
            return
        client.settimeout(0.0)
        if len(self._connections) >= MOST_CLIENTS:
            self._end(next(iter(self._connections)))
        self._connections[client.fileno()] = _Connection(client, self._serve(client), monotonic() + CLIENT_SECONDS)
        self._advance(client.fileno())

    def _advance(self, descriptor: int) -> None:
        connection = self._connections[descriptor]
        try:
            connection.event = next(connection.steps)
        except (OSError, StopIteration):  # a client that breaks off or talks no TLS is no news
            self._end(descriptor)

    def _end(self, descriptor: int) -> None:
        connection = self._connections.pop(descriptor)
        connection.steps.close()
        connection.client.close()

    def _serve(self, client: socket.socket) -> Steps[None]:
        if self._tls is None:
            yield from self._converse(client)
            return
        # The duplicate is closed with the TLS connection, the original by whoever ends this one.
        with self._tls.wrap_socket(client.dup(), server_side=True, do_handshake_on_connect=False) as secured:
            secured.settimeout(0.0)
            yield from _patiently(secured.do_handshake, select.POLLIN)
            yield from self._converse(secured)
            with suppress(OSError):  # tells the client that this is the end, and does not wait for its answer
                secured.unwrap()

    def _converse(self, client: socket.socket) -> Steps[None]:
        received = bytearray()
        while b"\r\n\r\n" not in received and len(received) <= MOST_HEADER_BYTES:
            data = yield from _patiently(partial(client.recv, MOST_HEADER_BYTES), select.POLLIN)
            if not data:
                return
            received += data
        head = received.partition(b"\r\n\r\n")[0].decode("latin-1")
        request = Request.read(head) if len(head) <= MOST_HEADER_BYTES else None
        if len(head) > MOST_HEADER_BYTES:
            response = Response.plain(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        else:
            response = Response.plain(HTTPStatus.BAD_REQUEST) if request is None else self._answered(request)
        gave_up = _has_hung_up(client)  # by now the answer may have taken too long
        left = memoryview(response.encoded(body=request is None or request.method != "HEAD"))
        while left:
            sent = yield from _patiently(partial(client.send, left), select.POLLOUT)
            left = left[sent:]
        if not gave_up:
            response.sent()

    def _answered(self, request: Request) -> Response:
        try:
            return self._answer(request)
        except Exception:
            # A fault of ours in one page must not take the others along, nor go unseen.
            traceback.print_exc()
            return Response.plain(HTTPStatus.INTERNAL_SERVER_ERROR)


def _has_hung_up(client: socket.socket) -> bool:
    poll = select.poll()
    poll.register(client, select.POLLRDHUP)
    return bool(poll.poll(0))


def _patiently(action: Callable[[], T], event: int) -> Steps[T]:
    """Return what an action on a socket returns, once it can be done; by itself it waits for `event`, with TLS for either."""
    while True:
        try:
            return action()
        except BlockingIOError:
            yield event
        except ssl.SSLWantReadError:
            yield select.POLLIN
        except ssl.SSLWantWriteError:
            yield select.POLLOUT
