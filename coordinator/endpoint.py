"""The HTTP endpoint of a run: what it serves, and to whom."""

import base64
import os
import socket
import ssl
import stat
import threading
from binascii import Error as Base64Error
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from hmac import compare_digest
from http import HTTPStatus
from ipaddress import ip_address
from math import inf
from pathlib import Path
from time import monotonic
from typing import Final
from urllib.parse import urlsplit

from coordinator.export import Announcement, MetricsSpec
from coordinator.folders import Address
from coordinator.server import Request, Response, Server, ignore
from worker.errors import JobError, require

SAME_FOR_SECONDS: Final = 0.5
"""How long an answer is given again, so that a client in a hurry does not slow training."""

ASK_SECONDS: Final = 0.1
"""How often is asked, after the run, whether somebody wants it to end."""

BACKLOG: Final = 64
METRICS: Final = "/metrics"
UNAUTHORIZED: Final = Response.plain(
    HTTPStatus.UNAUTHORIZED,
    headers=(
        ("WWW-Authenticate", 'Bearer realm="isograd"'),
        ("WWW-Authenticate", 'Basic realm="isograd: any name, the token as password"'),
    ),
)


@dataclass(frozen=True)
class Content:
    """What a path gives: `make` is called for it from the endpoint's thread."""

    kind: str
    make: Callable[[], bytes]
    headers: tuple[tuple[str, str], ...] = ()


class _Recent:
    """A content, made anew when the last one is too old."""

    def __init__(self, content: Content) -> None:
        self.content = content
        self._until = 0.0
        self._body = b""

    def body(self) -> bytes:
        if monotonic() >= self._until:
            self._until = monotonic() + SAME_FOR_SECONDS  # before it is made: `forget` may come meanwhile
            self._body = self.content.make()
        return self._body

    def forget(self) -> None:
        self._until = 0.0


class Endpoint:
    """Serves contents by path until it is stopped, and is announced to Prometheus as long."""

    def __init__(self, spec: MetricsSpec, directory: Address, contents: Mapping[str, Content]) -> None:
        """Start serving for the run in `directory`.

        Raises:
            JobError: the port is taken, a certificate, key or token can't be used, or the announcement can't be written.
        """
        tls, access = _tls(spec), _Access(_token(spec), spec.is_loopback)
        listener = _listener(spec)  # last, so that no other file at fault leaves it open
        self._access = access
        self._recent = {path: _Recent(content) for path, content in contents.items()}
        self._final, self._final_scrapes = False, threading.Semaphore(0)
        scheme, target = "https" if tls else "http", f"{_reachable(spec.address)}:{listener.getsockname()[1]}"
        self.url = f"{scheme}://{target}"
        self._server = Server(listener, tls, self._answer)
        self._announcement = Announcement(spec.sd_dir, directory) if spec.sd_dir is not None else None
        if self._announcement is not None:
            try:
                self._announcement.publish(target, scheme)
            except JobError:
                self.stop()
                raise

    def linger(self, seconds: float, scrapes: int, interrupted: Callable[[], bool]) -> None:
        """Go on serving the final values for so long, or until they were scraped so often, or until `interrupted` says so.

        Where `scrapes` is 0, any number of them is served for the whole time.
        """
        for recent in self._recent.values():
            recent.forget()
        self._final = True
        until, wanted = monotonic() + seconds, scrapes or inf
        while wanted > 0 and (left := until - monotonic()) > 0 and not interrupted():
            wanted -= self._final_scrapes.acquire(timeout=min(left, ASK_SECONDS))

    def stop(self) -> None:
        """Take the announcement back and stop serving."""
        if self._announcement is not None:
            self._announcement.withdraw()
        self._server.stop()

    def _answer(self, request: Request) -> Response:
        refusal = self._access.refusal(request.headers.get("host", ""), request.headers.get("authorization", ""))
        if refusal is not None:
            return refusal
        recent = self._recent.get(request.path)
        if recent is None:
            return Response.plain(HTTPStatus.NOT_FOUND, f"Nothing is here; served are {', '.join(self._recent)}")
        if request.method not in ("GET", "HEAD"):
            return Response.plain(HTTPStatus.METHOD_NOT_ALLOWED, headers=(("Allow", "GET, HEAD"),))
        counts = self._final and (request.method, request.path) == ("GET", METRICS)
        content, sent = recent.content, self._final_scrapes.release if counts else ignore
        return Response(HTTPStatus.OK, content.kind, recent.body(), content.headers, sent)


def check(spec: MetricsSpec) -> None:
    """Raise the JobError that an Endpoint would, but for its announcement."""
    _tls(spec)
    _token(spec)
    _listener(spec).close()


def _listener(spec: MetricsSpec) -> socket.socket:
    address = "127.0.0.1" if spec.address == "localhost" else spec.address
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        return socket.create_server((address, spec.port), family=family, backlog=BACKLOG)
    except OSError as error:
        reason = os.strerror(error.errno or 0)  # create_server adds to `strerror` what is said here already
        raise JobError(
            "metrics.port",
            f"{spec.port} can't be served on {spec.address}: {reason}; use another port, 0 for any, or another metrics.address",
        ) from error


def _tls(spec: MetricsSpec) -> ssl.SSLContext | None:
    if spec.certificate is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    key, files = "metrics.certificate", f"{spec.certificate} with {spec.key}"
    try:
        context.load_cert_chain(spec.certificate, spec.key, password=lambda: b"")  # never ask at the terminal
        if spec.client_ca is not None:
            key, files = "metrics.client_ca", spec.client_ca
            context.load_verify_locations(spec.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except OSError as error:  # of which ssl.SSLError is one
        raise JobError(
            key, f"{files} can't be used: {error.strerror or error}; PEM files are needed, the key unencrypted"
        ) from error
    return context


def _token(spec: MetricsSpec) -> str | None:
    key, path = "metrics.token_file", spec.token_file
    if path is None:
        return None
    try:
        with Path(path).open(encoding="ascii") as file:
            if stat.S_IMODE(Path(path).stat().st_mode) & stat.S_IRWXO:
                raise JobError(key, f"{path} is open to every user of this machine; chmod o-rwx it")
            secret = file.read().strip()
    except OSError as error:
        raise JobError(key, f"{path} can't be read: {error.strerror}; give a file with a secret in it") from error
    except UnicodeDecodeError as error:
        raise JobError(key, f"{path} is no ASCII text; give a file with a secret of ASCII characters") from error
    require(bool(secret), key, f"{path} is empty; give a file with a secret in it")
    return secret


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

    token: str | None = field(repr=False)
    loopback: bool

    def refusal(self, host: str, authorization: str) -> Response | None:
        if self.loopback and not _names_loopback(host):
            # A page from elsewhere whose name was made to lead here, so that a browser would read this for it.
            return Response.plain(HTTPStatus.FORBIDDEN, "Ask for this by the address of this machine itself")
        if self.token is not None and not compare_digest(_presented(authorization).encode(), self.token.encode()):
            return UNAUTHORIZED
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
