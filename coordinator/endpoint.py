"""The HTTP endpoint of a run: what it serves, to whom, and how little a client can cost it."""

import base64
import json
import socket
import ssl
import threading
from binascii import Error as Base64Error
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from hmac import compare_digest
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from ipaddress import ip_address
from pathlib import Path
from socketserver import ThreadingTCPServer
from time import monotonic
from typing import Any, Final
from urllib.parse import urlsplit

from coordinator.metrics import MetricsSpec, read_secret
from coordinator.model_files import write_atomically
from worker.errors import JobError

CLIENT_SECONDS: Final = 5.0
"""How long a client may keep silent."""

MOST_CLIENTS: Final = 32
"""Connections at a time; one more closes the oldest."""

SAME_FOR_SECONDS: Final = 0.1
"""How long an answer is given again, so that a client in a hurry does not slow training."""

METRICS: Final = "/metrics"


@dataclass(frozen=True)
class Content:
    """What a path gives: `make` is called for it from several threads, never at once for the same path."""

    kind: str
    make: Callable[[], bytes]
    headers: Mapping[str, str]


class _Recent:
    """A content, made anew when the last one is too old."""

    def __init__(self, content: Content) -> None:
        self.content = content
        self._lock = threading.Lock()
        self._until = 0.0
        self._body = b""

    def body(self) -> bytes:
        with self._lock:
            if monotonic() >= self._until:
                self._body = self.content.make()
                self._until = monotonic() + SAME_FOR_SECONDS
            return self._body

    def forget(self) -> None:
        with self._lock:
            self._until = 0.0


class Endpoint:
    """Serves contents by path until it is stopped, and is announced to Prometheus as long."""

    def __init__(self, spec: MetricsSpec, run: str, contents: Mapping[str, Content]) -> None:
        """Start serving.

        Raises:
            JobError: the port is taken, a certificate, key or token can't be used, or the announcement can't be written.
        """
        token = read_secret("metrics.token_file", spec.token_file) if spec.token_file is not None else None
        tls = _tls(spec) if spec.certificate is not None else None
        self._scraped = threading.Condition()
        self._scrapes_left: int | None = None
        self._recent = {path: _Recent(content) for path, content in contents.items()}
        try:
            self._server = _Server(spec, tls, _Access(token, spec.is_loopback), self._recent, self._answered)
        except OSError as error:
            raise JobError(
                "metrics.port",
                f"{spec.port} can't be served on {spec.address}: {error.strerror}; use another port, 0 for any, or another "
                "metrics.address",
            ) from error
        self._thread = threading.Thread(target=self._server.serve_forever, name="endpoint", daemon=True)
        self._thread.start()
        place = f"{_reachable(spec.address)}:{self._server.server_address[1]}"
        self.url = f"{'https' if tls else 'http'}://{place}"
        self._announcement = Path(spec.sd_dir) / f"isograd-{run}.json" if spec.sd_dir is not None else None
        if self._announcement is not None:
            group = {"targets": [place], "labels": {"__scheme__": "https"} if tls else {}}
            try:
                write_atomically(self._announcement, json.dumps([group]).encode() + b"\n")
            except OSError as error:
                self.stop()
                raise JobError("metrics.sd_dir", f"{spec.sd_dir} can't be written: {error.strerror}") from error

    def linger(self, seconds: float, scrapes: int, interrupted: Callable[[], bool]) -> None:
        """Go on serving the final values for so long, or until they were scraped so often, or until `interrupted` says so."""
        with self._scraped:
            for recent in self._recent.values():
                recent.forget()
            self._scrapes_left = scrapes or None
            until = monotonic() + seconds
            while self._scrapes_left != 0 and (left := until - monotonic()) > 0 and not interrupted():
                self._scraped.wait(min(left, 0.1))

    def _answered(self, path: str) -> None:
        with self._scraped:
            if path == METRICS and self._scrapes_left:
                self._scrapes_left -= 1
                self._scraped.notify_all()

    def stop(self) -> None:
        """Take the announcement back and stop serving."""
        if self._announcement is not None:
            with suppress(OSError):
                self._announcement.unlink(missing_ok=True)
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _tls(spec: MetricsSpec) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    key = "metrics.certificate"
    try:
        assert spec.certificate is not None
        context.load_cert_chain(spec.certificate, spec.key, password=lambda: b"")  # never ask at the terminal
        if spec.client_ca is not None:
            key = "metrics.client_ca"
            context.load_verify_locations(spec.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except OSError as error:  # of which ssl.SSLError is one
        files = spec.client_ca if key == "metrics.client_ca" else f"{spec.certificate} with {spec.key}"
        raise JobError(key, f"{files} can't be used: {error.strerror or error}; PEM files are needed, the key unencrypted") from error
    return context


def _reachable(address: str) -> str:
    """Return under which name a client finds the endpoint."""
    if address == "localhost":
        return address
    parsed = ip_address(address)
    if parsed.is_unspecified:
        return socket.gethostname()
    return f"[{parsed}]" if parsed.version == 6 else str(parsed)


@dataclass(frozen=True)
class _Access:
    """Who is let in."""

    token: str | None
    loopback: bool

    def refusal(self, host: str, authorization: str) -> HTTPStatus | None:
        if self.loopback and not _names_loopback(host):
            # A page from elsewhere whose name was made to lead here, so that a browser would read this for it.
            return HTTPStatus.FORBIDDEN
        if self.token is not None and not compare_digest(_presented(authorization).encode(), self.token.encode()):
            return HTTPStatus.UNAUTHORIZED
        return None


def _names_loopback(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname
        return name is None or name == "localhost" or ip_address(name).is_loopback
    except ValueError:
        return False


def _presented(authorization: str) -> str:
    """Return the token of a header: a bearer token, or the password that a browser asks a person for."""
    scheme, _, credentials = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return credentials.strip()
    if scheme.lower() == "basic":
        with suppress(Base64Error, UnicodeDecodeError):
            return base64.b64decode(credentials).decode().partition(":")[2]
    return ""


class _Server(ThreadingTCPServer):
    """A thread a connection. TLS is negotiated in it, so that nobody waits for a client that does not."""

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 64

    def __init__(
        self,
        spec: MetricsSpec,
        tls: ssl.SSLContext | None,
        access: _Access,
        contents: Mapping[str, _Recent],
        answered: Callable[[str], None],
    ) -> None:
        """Bind and listen. Raises OSError where that can't be."""
        self.access, self.contents, self.answered = access, contents, answered
        self._tls = tls
        self._clients: OrderedDict[int, socket.socket] = OrderedDict()
        self._lock = threading.Lock()
        self.address_family = socket.AF_INET6 if ":" in spec.address else socket.AF_INET
        super().__init__((spec.address, spec.port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._clients[id(request)] = request
            oldest = self._clients.popitem(last=False)[1] if len(self._clients) > MOST_CLIENTS else None
        if oldest is not None:
            with suppress(OSError):
                oldest.shutdown(socket.SHUT_RDWR)
        super().process_request(request, client_address)

    def finish_request(self, request: Any, client_address: Any) -> None:
        request.settimeout(CLIENT_SECONDS)
        if self._tls is None:
            super().finish_request(request, client_address)
            return
        # A duplicate is negotiated with: the original stays what `process_request` can end.
        with self._tls.wrap_socket(request.dup(), server_side=True, do_handshake_on_connect=False) as secured:
            secured.settimeout(CLIENT_SECONDS)
            secured.do_handshake()
            super().finish_request(secured, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._clients.pop(id(request), None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that breaks off or talks nonsense is no news."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = CLIENT_SECONDS

    def do_GET(self) -> None:
        refusal = self.server.access.refusal(self.headers.get("Host", ""), self.headers.get("Authorization", ""))
        path = self.path.partition("?")[0]
        recent = self.server.contents.get(path)
        if refusal is not None:
            self._answer(refusal, "text/plain", refusal.phrase.encode() + b"\n", {})
        elif recent is None:
            known = ", ".join(self.server.contents)
            self._answer(HTTPStatus.NOT_FOUND, "text/plain", f"Nothing is here; served are {known}\n".encode(), {})
        else:
            self._answer(HTTPStatus.OK, recent.content.kind, recent.body(), recent.content.headers)
            if self.command == "GET":
                self.server.answered(path)

    do_HEAD = do_GET

    def _answer(self, status: HTTPStatus, kind: str, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        if status is HTTPStatus.UNAUTHORIZED:
            self.send_header("WWW-Authenticate", 'Bearer realm="isograd"')
            self.send_header("WWW-Authenticate", 'Basic realm="isograd: any name, the token as password"')
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def version_string(self) -> str:
        return "isograd"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Requests are no news either."""
