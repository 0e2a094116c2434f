"""A small HTTP server in a thread of its own, made so that no client costs training much, whatever it does.

One thread serves all connections, one request each. How many are accepted in a second, how many stand at a time, how much
each may send and how long it may take are limited; what is beyond waits with the operating system.
"""

import asyncio
import re
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from email.message import Message
from http import HTTPStatus
from http.client import HTTPException, parse_headers
from io import BytesIO
from typing import Final

CLIENT_SECONDS: Final = 10.0
"""How long a connection may take, from its TLS handshake to the last byte of its answer."""

MOST_CLIENTS: Final = 32
"""Connections at a time; one more closes the oldest, so that silent ones keep nobody out."""

PAUSE_SECONDS: Final = 0.01
"""From one connection to the next: a client in a hurry costs no more than a hundred of them a second."""

MOST_HEADER_BYTES: Final = 16_384

_REQUEST_LINE: Final = re.compile(r"([A-Z]+) ([^\s?]+)(?:\?\S*)? HTTP/1\.[01]")


@dataclass(frozen=True)
class Request:
    """What is asked for, without the query."""

    method: str
    path: str
    headers: Message


def ignore() -> None:
    """Nothing depends on whether an answer came through."""


@dataclass(frozen=True)
class Response:
    """What is answered. `sent` is called once the client has it."""

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


class Server:
    """Answers requests at a listening socket until it is stopped."""

    def __init__(self, listener: socket.socket, tls: ssl.SSLContext | None, answer: Callable[[Request], Response]) -> None:
        """Start; `answer` is called from the server's thread alone, and the socket is the server's from now on."""
        listener.settimeout(0.0)  # as the loop needs it
        self._listener, self._tls, self._answer = listener, tls, answer
        self._clients: dict[asyncio.Task[None], None] = {}  # the oldest first
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="endpoint", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Close the socket and all connections. May be called more than once, and from any thread."""
        with suppress(RuntimeError):  # of a loop that is closed
            self._loop.call_soon_threadsafe(self._cancel)
        # A run that nobody holds any more may be closed by the garbage collector, in whichever thread that happens to work.
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _cancel(self) -> None:
        for task in asyncio.all_tasks(self._loop):
            task.cancel()

    def _run(self) -> None:
        with self._listener, suppress(asyncio.CancelledError), asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._accept())

    async def _accept(self) -> None:
        while True:
            with suppress(OSError):  # a client that is gone already, or too many open files
                client, _ = await self._loop.sock_accept(self._listener)
                if len(self._clients) == MOST_CLIENTS:
                    oldest = next(iter(self._clients))
                    del self._clients[oldest]
                    oldest.cancel()
                task = self._loop.create_task(self._serve(client))
                self._clients[task] = None
                task.add_done_callback(lambda done: self._clients.pop(done, None))
            await asyncio.sleep(PAUSE_SECONDS)

    async def _serve(self, client: socket.socket) -> None:
        transport: asyncio.Transport | None = None
        # A client that breaks off, is silent or talks nonsense is no news.
        with suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
            try:
                async with asyncio.timeout(CLIENT_SECONDS):
                    reader = asyncio.StreamReader(limit=MOST_HEADER_BYTES)
                    protocol = asyncio.StreamReaderProtocol(reader)
                    transport, _ = await self._loop.connect_accepted_socket(lambda: protocol, client, ssl=self._tls)
                    writer = asyncio.StreamWriter(transport, protocol, reader, self._loop)
                    request = await _read(reader)
                    response = self._answer(request) if isinstance(request, Request) else request
                    writer.write(response.encoded(body=not (isinstance(request, Request) and request.method == "HEAD")))
                    writer.close()
                    await writer.wait_closed()
                    response.sent()
            finally:
                if transport is not None:
                    transport.abort()


async def _read(reader: asyncio.StreamReader) -> Request | Response:
    """Return the request, or what is answered to none."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        line, _, rest = head.partition(b"\r\n")
        match = _REQUEST_LINE.fullmatch(line.decode("latin-1"))
        if match is None:
            return Response.plain(HTTPStatus.BAD_REQUEST)
        return Request(match[1], match[2], parse_headers(BytesIO(rest)))
    except asyncio.LimitOverrunError:
        return Response.plain(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
    except HTTPException:
        return Response.plain(HTTPStatus.BAD_REQUEST)
