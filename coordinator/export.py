"""The `[metrics]` section, and the two ways in which a run makes itself known: an announcement and a push."""

import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from http.client import HTTPException
from ipaddress import ip_address
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import ClassVar, Final
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry, generate_latest, push_to_gateway
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from coordinator.folders import Address, name_of
from coordinator.local_folder import write_atomically
from worker.errors import JobError, require

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
PUSH_SECONDS: Final = 5.0
MOST_OF_NAME: Final = 100
"""Bytes of a run's name that are in that of its announcement."""


@dataclass(frozen=True, kw_only=True)
class MetricsSpec:
    """Where the error is exported; without this section there is no endpoint.

    Attributes:
        address: to listen at. One that other machines reach needs a certificate, or `allow_insecure`.
        port: 0 takes any free one.
        certificate: file with the server's certificate chain in PEM; with it, the endpoint speaks TLS only.
        key: file with the certificate's private key in PEM.
        client_ca: file with certificates in PEM; only clients that present one signed by them are let in.
        token_file: file with a secret; only clients that present it, as a bearer token or a password, are let in.
        allow_insecure: let other machines reach the endpoint without TLS.
        dashboard: serve the live page beside the metrics.
        sd_dir: folder in which to announce the endpoint to Prometheus, as a file of file-based service discovery.
        linger_seconds: how long the endpoint stays after the run, so that a last scrape finds the final values.
        linger_scrapes: it goes earlier once it was scraped so often after the run; 0 stays the whole time.
        pushgateway: URL of a Pushgateway that gets the final errors.
    """

    __pydantic_config__: ClassVar[Mapping[str, object]] = {"extra": "forbid"}

    address: str = "127.0.0.1"
    port: int = 0
    certificate: str | None = None
    key: str | None = None
    client_ca: str | None = None
    token_file: str | None = None
    allow_insecure: bool = False
    dashboard: bool = False
    sd_dir: str | None = None
    linger_seconds: float = 0.0
    linger_scrapes: int = 0
    pushgateway: str | None = None

    def __post_init__(self) -> None:
        require(_is_address(self.address), "metrics.address", f"'{self.address}' is no IP address, nor 'localhost'")
        require(0 <= self.port <= 65535, "metrics.port", f"must be from 0 to 65535, got {self.port}")
        require(
            (self.certificate is None) == (self.key is None), "metrics.certificate", "needs metrics.key, and the other way round"
        )
        require(self.client_ca is None or self.certificate is not None, "metrics.client_ca", "needs metrics.certificate and key")
        require(
            self.is_loopback or self.certificate is not None or self.allow_insecure,
            "metrics.address",
            f"{self.address} can be reached from other machines: give metrics.certificate and metrics.key, or set "
            "metrics.allow_insecure = true",
        )
        require(
            0 <= self.linger_seconds < float("inf"),
            "metrics.linger_seconds",
            f"must be 0 or more, got {self.linger_seconds}",
        )
        require(self.linger_scrapes >= 0, "metrics.linger_scrapes", f"must be 0 or more, got {self.linger_scrapes}")
        require(
            not self.linger_scrapes or self.linger_seconds > 0,
            "metrics.linger_scrapes",
            "is waited for no longer than metrics.linger_seconds, which must be more than 0",
        )
        if self.pushgateway is not None:
            _require_gateway(self.pushgateway)

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches the endpoint."""
        return self.address == "localhost" or ip_address(self.address).is_loopback

    def with_paths(self, resolve: Callable[[str, str], str]) -> "MetricsSpec":
        """Return the section with `resolve`, called with the key and the path, applied to the files and folders in it."""

        def resolved(key: str, path: str | None) -> str | None:
            return None if path is None else resolve(f"metrics.{key}", path)

        return replace(
            self,
            certificate=resolved("certificate", self.certificate),
            key=resolved("key", self.key),
            client_ca=resolved("client_ca", self.client_ca),
            token_file=resolved("token_file", self.token_file),
            sd_dir=resolved("sd_dir", self.sd_dir),
        )


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return text == "localhost"
    return True


def _require_gateway(text: str) -> None:
    try:
        url = urlsplit(text)
        usable = url.scheme in ("http", "https") and bool(url.hostname) and url.username is None and url.password is None
        usable = usable and (url.port is None or url.port > 0)
    except ValueError:
        usable = False
    # What was given is not repeated: it may hold a password.
    require(usable, "metrics.pushgateway", "must be a URL such as http://127.0.0.1:9091, without user name and password")


class Announcement:
    """A file of Prometheus's file-based service discovery that leads to a run's endpoint.

    Its name follows from the run directory alone, by whatever path that is named, so that a run that is taken up again after a
    kill replaces the file that its first process left behind.
    """

    def __init__(self, folder: str, directory: Address) -> None:
        """Name the file in `folder` for the run in `directory`."""
        resolved = directory.resolve() if isinstance(directory, Path) else directory
        mark = sha256(os.fsencode(resolved)).hexdigest()[:8]
        # A file's name may be no text, and so long that nothing can be added to it; it is only for people here.
        name = os.fsencode(name_of(resolved))[:MOST_OF_NAME].decode(errors="ignore")
        self._folder, self._content = folder, b""
        self.path = Path(folder) / f"isograd-{name}-{mark}.json"

    def publish(self, target: str, scheme: str) -> None:
        """Write the file, whole at any moment. Raises JobError where that can't be."""
        group = {"targets": [target], "labels": {"__scheme__": scheme}}
        self._content = json.dumps([group]).encode() + b"\n"
        try:
            write_atomically(self.path, self._content)
        except OSError as error:
            raise JobError(
                "metrics.sd_dir", f"{self._folder} can't be written: {error.strerror}; give a folder that can"
            ) from error

    def withdraw(self) -> None:
        """Remove the file, if it is there and can be removed; where `publish` wrote it, unless another process has since."""
        try:
            if self._content and self.path.read_bytes() != self._content:
                return
            self.path.unlink(missing_ok=True)
        except OSError:
            return  # the folder went, or closed: whoever did that sees to the file


class _Families(Collector):
    def __init__(self, families: Iterator[Metric]) -> None:
        self._families = tuple(families)

    def collect(self) -> Iterator[Metric]:
        return iter(self._families)


def registry(families: Iterator[Metric]) -> CollectorRegistry:
    """Return a registry of these metrics as they are now."""
    registry = CollectorRegistry()
    registry.register(_Families(families))
    return registry


def expose(families: Iterator[Metric]) -> bytes:
    """Return metrics in the text format of Prometheus."""
    return generate_latest(registry(families))


def push(families: CollectorRegistry, gateway: str, run: str) -> str | None:
    """Send metrics to a Pushgateway, in the group of the run; return a sentence where that fails or takes too long."""
    problems: SimpleQueue[str | None] = SimpleQueue()

    def send() -> None:
        try:
            push_to_gateway(gateway, "isograd", families, {"run": run}, timeout=PUSH_SECONDS)
        except (OSError, ValueError, HTTPException) as error:
            problems.put(str(error))
        else:
            problems.put(None)

    # The timeout is of each call to the socket, of which a gateway that answers byte by byte can cause any number.
    threading.Thread(target=send, name="isograd-push", daemon=True).start()
    try:
        problem = problems.get(timeout=PUSH_SECONDS)
    except Empty:
        problem = f"it took more than {PUSH_SECONDS:g} s"
    return f"the final errors could not be sent to the Pushgateway at {gateway}: {problem}" if problem is not None else None
