"""Clients of a run's endpoint, friendly and hostile: `python clients.py KIND URL` is one until it is killed.

In a module of its own, which imports little, so that what is measured is the endpoint and not the client.
"""

import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Thread
from time import perf_counter, sleep
from typing import Final

SILENT: Final = 64
HURRIED: Final = 4


@contextmanager
def _connection(url: str) -> Iterator[socket.socket]:
    host, port = url.split("/")[2].split(":")
    with socket.create_connection((host, int(port)), timeout=60) as client:
        yield client


def _ask(url: str) -> None:
    with _connection(url) as client:
        client.sendall(b"GET /" + url.split("/", 3)[3].encode() + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        while client.recv(65536):
            pass


def _often(url: str, hertz: float) -> None:
    due = perf_counter()
    while True:
        _ask(url)
        due += 1 / hertz
        sleep(max(0.0, due - perf_counter()))


def _again_and_again(action: Callable[[], None], threads: int) -> None:
    def work() -> None:
        while True:
            try:
                action()
            except OSError:
                continue  # closed by the server, which is its right

    for _ in range(threads):
        Thread(target=work, daemon=True).start()
    Thread(target=work).run()


def _silent(url: str) -> None:
    with _connection(url) as client:
        client.recv(1)


def _unread(url: str) -> None:
    with _connection(url) as client:
        client.sendall(b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        client.recv(1, socket.MSG_WAITALL)
        sleep(60)


def _garbage(url: str) -> None:
    with _connection(url) as client:
        client.sendall(os.urandom(100_000))
        client.recv(1)


CLIENTS: Final[dict[str, Callable[[str], None]]] = {
    "nobody": lambda _: sleep(3600),
    "a scrape a second": lambda url: _often(url, 1),
    "50 scrapes a second": lambda url: _often(url, 50),
    "a live page": lambda url: _often(url.replace("/metrics", "/state.json"), 1),
    f"{SILENT} silent clients": lambda url: _again_and_again(lambda: _silent(url), SILENT),
    f"{SILENT} that do not read": lambda url: _again_and_again(lambda: _unread(url), SILENT),
    f"{HURRIED} that send garbage": lambda url: _again_and_again(lambda: _garbage(url), HURRIED),
    f"{HURRIED} that scrape without pause": lambda url: _again_and_again(lambda: _ask(url), HURRIED),
}


if __name__ == "__main__":
    os.nice(19)  # a client elsewhere takes no processor time here
    CLIENTS[sys.argv[1]](sys.argv[2])
