"""Clients of every kind, over real sockets."""

import gc
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http import HTTPStatus
from http.client import HTTPConnection
from time import monotonic

import pytest

from coordinator import server as server_module
from coordinator.server import Request, Response, Server

SECONDS = 120.0
Serve = Callable[[Callable[[Request], Response]], int]


def hello(request: Request) -> Response:
    return Response.plain(HTTPStatus.OK, f"hello {request.method} {request.path} {request.headers.get('x-name', '')}")


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts a server that answers so, and returns its port."""
    with ExitStack() as stack:

        def start(answer: Callable[[Request], Response]) -> int:
            listener = socket.create_server(("127.0.0.1", 0))
            port: int = listener.getsockname()[1]
            stack.callback(Server(listener, None, answer).stop)
            return port

        yield start


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=SECONDS)


def everything(client: socket.socket) -> bytes:
    """What the server sends until it ends the connection, in whichever way."""
    parts = []
    try:
        while part := client.recv(65536):
            parts.append(part)
    except ConnectionError:
        pass
    return b"".join(parts)


def say(port: int, content: bytes) -> bytes:
    with connect(port) as client:
        try:
            client.sendall(content)
        except ConnectionError:
            return b""
        return everything(client)


def ask(port: int, path: str = "/", method: str = "GET", **headers: str) -> tuple[int, bytes]:
    connection = HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_a_request_is_answered(serve: Serve) -> None:
    port = serve(hello)

    assert ask(port, "/some/where?query=1") == (200, b"hello GET /some/where \n")
    assert ask(port, "/", **{"X-Name": "you"}) == (200, b"hello GET / you\n")
    assert ask(port, "/", "HEAD") == (200, b"")
    assert b"Content-Length: 14\r\n" in say(port, b"HEAD / HTTP/1.1\r\n\r\n")


def test_an_answer_that_came_through_is_told(serve: Serve) -> None:
    sent: list[str] = []
    asked, gone = threading.Event(), threading.Event()

    def answer(request: Request) -> Response:
        if request.path == "/impatient":
            asked.set()
            assert gone.wait(SECONDS)
        return Response(HTTPStatus.OK, "text/plain", b"x", (), lambda: sent.append(request.path))

    port = serve(answer)
    with connect(port) as client:
        client.sendall(b"GET /gone HTTP/1.1\r\n")
    with connect(port) as client:
        client.sendall(b"GET /impatient HTTP/1.1\r\n\r\n")
        assert asked.wait(SECONDS)
    gone.set()
    ask(port, "/read")
    ask(port, "/after")  # those before are told by now

    assert sent[0] == "/read"
    assert not {"/gone", "/impatient"} & set(sent)


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b" 400 "),  # the beginning of a TLS handshake
        (b"\xff\xfe\x00\r\n\r\n", b" 400 "),
        (b"GET /\r\n\r\n", b" 400 "),
        (b"GET / HTTP/2.0\r\n\r\n", b" 400 "),
        (b"get / HTTP/1.1\r\n\r\n", b" 400 "),
        (b"\r\n\r\n", b" 400 "),
        (b"GET / HTTP/1.1\r\n" + b"".join(b"a%d: b\r\n" % number for number in range(200)) + b"\r\n", b" 200 "),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 20_000 + b"\r\n\r\n", b" 431 "),
        (b"GET / HTTP/1.1\r\nno colon\r\n: no name\r\n\x00\r\n\r\n", b" 200 "),
    ],
)
def test_nonsense_is_answered_and_forgotten(serve: Serve, content: bytes, status: bytes) -> None:
    port = serve(hello)

    assert status in say(port, content).partition(b"\r\n")[0]
    assert ask(port)[0] == 200


def test_headers_without_an_end_are_not_read_to_their_end(serve: Serve) -> None:
    port = serve(hello)

    # What was not read makes the operating system break the connection off, before the answer was read or after.
    answer = say(port, b"GET / HTTP/1.1\r\nX: " + b"x" * 50_000_000)

    assert b" 431 " in answer or answer == b""
    assert ask(port)[0] == 200


@pytest.mark.parametrize("content", [b"", b"GET", b"GET / HTTP/1.1\r\nHost: x\r\n"])
def test_a_client_that_breaks_off_is_no_news(serve: Serve, content: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    port = serve(hello)
    with connect(port) as client:
        client.sendall(content)

    assert ask(port)[0] == 200
    gc.collect()
    assert capfd.readouterr() == ("", "")


def test_a_client_that_is_silent_is_given_up(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "CLIENT_SECONDS", 0.05)
    port = serve(hello)

    with connect(port) as client:
        assert everything(client) == b""  # it would wait for half a minute


def test_silent_clients_keep_nobody_out_and_the_oldest_goes_first(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "MOST_CLIENTS", 3)
    monkeypatch.setattr(server_module, "CLIENT_SECONDS", SECONDS)
    port = serve(hello)
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(port)) for _ in range(5)]

        assert ask(port)[0] == 200

        assert everything(clients[0]) == b""
        clients[4].sendall(b"GET /last HTTP/1.1\r\n\r\n")
        assert b"hello GET /last" in everything(clients[4])


def test_a_client_that_does_not_read_keeps_nobody_waiting(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "CLIENT_SECONDS", SECONDS)
    large = Response(HTTPStatus.OK, "text/plain", bytes(50_000_000))
    port = serve(lambda request: large if request.path == "/large" else hello(request))
    with connect(port) as client:
        client.sendall(b"GET /large HTTP/1.1\r\n\r\n")

        assert ask(port) == (200, b"hello GET / \n")

        assert len(everything(client)) > 50_000_000


def test_a_fault_in_one_answer_is_seen_and_costs_no_other(serve: Serve, capfd: pytest.CaptureFixture[str]) -> None:
    def answer(request: Request) -> Response:
        return hello(request) if request.path == "/good" else Response.plain(HTTPStatus(1 // (request.path == "/never")))

    port = serve(answer)

    assert ask(port, "/bad") == (500, b"Internal Server Error\n")
    assert ask(port, "/good")[0] == 200
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_connections_are_accepted_at_a_pace(serve: Serve) -> None:
    port = serve(hello)

    began = monotonic()
    for _ in range(server_module.ACCEPTED_AT_ONCE + 20):
        ask(port)

    assert monotonic() - began >= 19 / server_module.ACCEPTED_A_SECOND


def test_stopping_ends_all_connections_and_lets_the_port_go() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    server = Server(listener, None, hello)
    with connect(port) as silent:
        ask(port)

        server.stop()
        server.stop()

        assert everything(silent) == b""
    with pytest.raises(ConnectionRefusedError):
        connect(port)
    assert listener.fileno() == -1


def test_a_server_can_be_stopped_before_it_has_begun_to_serve() -> None:
    for _ in range(20):
        Server(socket.create_server(("127.0.0.1", 0)), None, hello).stop()


def test_a_server_can_be_stopped_from_its_own_thread() -> None:
    # The garbage collector may do so, where a run is dropped while the server's thread works.
    def answer(request: Request) -> Response:
        server.stop()
        return hello(request)

    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    server = Server(listener, None, answer)

    say(port, b"GET / HTTP/1.1\r\n\r\n")

    server.stop()
    with pytest.raises(ConnectionRefusedError):
        connect(port)
