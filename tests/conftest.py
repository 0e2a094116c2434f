"""What the tests share: small datasets and jobs, an authority for certificates, and an S3 store."""

import os
import socket
import threading
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from itertools import count
from pathlib import Path
from time import time
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tomli_w
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import HealthCheck, settings
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from pyarrow import fs
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

from coordinator.job import load_job
from coordinator.order import Order
from coordinator.pool import InProcessPool, Pool
from coordinator.records import EpochRecord, Errors, Event, Finished, Summary
from coordinator.run import run
from worker.blas import one_thread

# How fast an example is made and runs says nothing about the code on a busy machine.
settings.register_profile("isograd", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("isograd")

Document = dict[str, dict[str, Any]]
PROXIES = ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
CLUSTERS = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_NAMESPACE")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """In CI, give tests with other processes a second try, which the report counts: its machines stall at times."""
    for item in items if "CI" in os.environ else ():
        if {"cluster", "system"} & set(item.path.parts):
            item.add_marker(pytest.mark.flaky(reruns=1))


@pytest.fixture(scope="session", autouse=True)
def _surroundings() -> Iterator[None]:
    """Takes away what a terminal or a shell may have set, and what commands print or whom they ask goes by."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", *PROXIES, *CLUSTERS):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture
def shared() -> Callable[[], set[int]]:
    """Finds the inodes of isograd's memory and sockets that this process has open; libraries open and close others at will."""

    def find() -> set[int]:
        lines = Path("/proc/net/unix").read_text().splitlines()
        sockets = {int(line.split()[6]) for line in lines if "@isograd-" in line}
        found: set[int] = set()
        for entry in Path("/proc/self/fd").iterdir():
            with suppress(FileNotFoundError):
                inode = entry.stat().st_ino
                found |= {inode} if inode in sockets or os.readlink(entry).startswith("/memfd:isograd") else set()
        return found

    return find


@pytest.fixture
def epoch_record() -> EpochRecord:
    """A line of a history, of a regression without validation, with numbers that have many digits."""
    return EpochRecord(
        epoch=1,
        round=4,
        rows=61,
        rows_expected=61,
        train=Errors(loss=1 / 3, mean_absolute_error=1e-300, mean_squared_error=0.1, error_rate=None),
        validation=None,
        learning_rate=0.1,
        gradient_norm=2 / 3,
        seconds=0.5,
        rows_per_second=1e6,
    )


@pytest.fixture
def write_table(tmp_path: Path) -> Callable[[str, Mapping[str, Any]], Path]:
    """Writes columns as a Parquet file of several row groups into `tmp_path`."""

    def write(name: str, columns: Mapping[str, Any]) -> Path:
        pq.write_table(pa.table(dict(columns)), tmp_path / name, row_group_size=16)
        return tmp_path / name

    return write


@pytest.fixture
def blobs_job(write_table: Callable[[str, Mapping[str, Any]], Path]) -> Document:
    """A job on three separable clusters: 61 rows x0..x3 with the text label `kind`, in blobs.parquet beside the job file."""
    kind_N = np.arange(61) % 3
    x_NI = 3.0 * np.eye(3, 4)[kind_N] + 0.5 * np.random.default_rng(1).normal(size=(61, 4))
    columns = {f"x{place}": x_NI[:, place] for place in range(4)}
    write_table("blobs.parquet", columns | {"kind": np.array(["ant", "bee", "cat"])[kind_N]})
    return {
        "job": {"name": "blobs", "seed": 7},
        "data": {"train": "blobs.parquet", "label": "kind", "shards": 5},
        "model": {"task": "classification", "hidden": [6]},
        "optimizer": {"name": "momentum", "learning_rate": 0.1},
        "training": {"batch_size": 16, "epochs": 3},
    }


@pytest.fixture
def waves_job(write_table: Callable[[str, Mapping[str, Any]], Path]) -> Document:
    """A job on a smooth regression: 53 rows x0..x2 with the targets y0 and y1, in waves.parquet beside the job file."""
    x_NI = np.random.default_rng(2).uniform(-2, 2, (53, 3))
    columns = {f"x{place}": x_NI[:, place] for place in range(3)}
    write_table("waves.parquet", columns | {"y0": np.sin(x_NI.sum(axis=1)), "y1": x_NI[:, 0] * x_NI[:, 1]})
    return {
        "job": {"name": "waves", "seed": 11},
        "data": {"train": "waves.parquet", "label": ["y0", "y1"], "shards": 5},
        "model": {"task": "regression", "hidden": [6], "activation": "tanh"},
        "optimizer": {"name": "sgd", "learning_rate": 0.05},
        "training": {"batch_size": 16, "epochs": 3},
    }


@pytest.fixture
def begin_job(tmp_path: Path) -> Iterator[Callable[..., Iterator[Event]]]:
    """Runs a job in this process, event by event, each call into a run directory of its own.

    Takes the job's document, overrides by dotted key, and as keywords a pool (else as many workers in this process as the
    job asks for), `interrupted`, and what else an order has: with `directory`, the run is in that one. What is not run to its
    end is closed with the test, and not when the garbage collector comes to it, in the middle of another one.
    """
    runs = 0
    begun: list[Generator[Event, None, None]] = []

    def begin(
        document: Document,
        overrides: Mapping[str, object] | None = None,
        *,
        pool: Pool | None = None,
        interrupted: Callable[[], bool] = lambda: False,
        directory: Path | str | None = None,
        **more: Any,
    ) -> Generator[Event, None, None]:
        nonlocal runs
        runs += directory is None
        path = tmp_path / "job.toml"
        path.write_text(tomli_w.dumps(document))
        job = load_job(path, overrides or {})
        order = Order(job, directory or tmp_path / f"run-{runs}", time(), **more)
        with one_thread():
            yield from run(order, pool or InProcessPool(job.workers.most), interrupted)

    def begin_and_close(*arguments: Any, **options: Any) -> Iterator[Event]:
        begun.append(begin(*arguments, **options))
        return begun[-1]

    yield begin_and_close
    for events in reversed(begun):
        events.close()


@pytest.fixture
def run_job(begin_job: Callable[..., Iterator[Event]]) -> Callable[..., tuple[list[Event], Summary]]:
    """Runs a job to its end, taking what `begin_job` takes, and returns its events and summary."""

    def call(*arguments: Any, **options: Any) -> tuple[list[Event], Summary]:
        events = list(begin_job(*arguments, **options))
        last = events[-1]
        assert isinstance(last, Finished)
        return events, last.summary

    return call


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[socket.socket]:
    """The sockets that listen, or did, from now on."""
    listeners: list[socket.socket] = []
    create = socket.create_server

    def created(*arguments: Any, **options: Any) -> socket.socket:
        listeners.append(create(*arguments, **options))
        return listeners[-1]

    monkeypatch.setattr("socket.create_server", created)
    return listeners


class Authority:
    """Signs certificates for loopback, each with its key in a file beside it."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.path = folder / f"{name}.pem"
        self._write(self.path, self._certificate(self._name, self._key, ca=True))

    def _certificate(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, *, ca: bool) -> x509.Certificate:
        now = datetime.now(UTC)
        addresses = [x509.IPAddress(ip_address("127.0.0.1")), x509.DNSName("localhost")]
        usage = {"digital_signature": True, "content_commitment": False, "key_encipherment": False, "data_encipherment": False}
        usage |= {"key_agreement": False, "key_cert_sign": ca, "crl_sign": ca, "encipher_only": False, "decipher_only": False}
        builder = (
            x509.CertificateBuilder(self._name, subject, key.public_key(), x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(addresses), critical=False)
            .add_extension(x509.KeyUsage(**usage), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        return builder.sign(self._key, hashes.SHA256())

    def _write(self, path: Path, certificate: x509.Certificate) -> None:
        path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def issue(self, name: str, password: bytes | None = None) -> tuple[str, str]:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._write(self.folder / f"{name}.crt", self._certificate(subject, key, ca=False))
        sealed = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
        content = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, sealed)
        (self.folder / f"{name}.key").write_bytes(content)
        return str(self.folder / f"{name}.crt"), str(self.folder / f"{name}.key")


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """Signs certificates, which lie in `tmp_path` as NAME.crt and NAME.key; its own is at `path`."""
    return Authority(tmp_path, "authority")


class _Quiet(WSGIRequestHandler):
    def log_request(self, *_: object) -> None:
        pass


class _Faulty:
    """A web application in front of moto's that fails when it is told to, each bucket by itself."""

    def __init__(self) -> None:
        self._store = DomainDispatcherApplication(create_backend_app)
        self._lock = threading.Lock()
        self.requests: defaultdict[str, list[str]] = defaultdict(list)
        self._faults: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
        self.speak = threading.Event()

    def fail(self, bucket: str, faults: list[tuple[str, str]]) -> None:
        with self._lock:
            self._faults[bucket] += faults

    def recover(self, bucket: str) -> None:
        with self._lock:
            self._faults[bucket].clear()

    def _next_fault(self, bucket: str, request: str) -> str | None:
        with self._lock:
            self.requests[bucket].append(request)
            faults = self._faults[bucket]
            place = next((place for place, (requests, _) in enumerate(faults) if requests in request), None)
            return None if place is None else faults.pop(place)[1]

    def __call__(self, environment: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        path = environment["PATH_INFO"]
        fault = self._next_fault(path.split("/")[1], f"{environment['REQUEST_METHOD']} {path}")
        if fault is None:
            return self._store(environment, start)
        if fault == "silent":
            self.speak.wait()
        if fault in ("dropped", "silent"):
            environment["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            raise ConnectionResetError
        if fault == "cut":
            content = b"".join(self._store(environment, start))
            return [content[: len(content) // 2]]
        start(fault, [("Content-Length", "0")])
        return []


class Store:
    """An S3 store on loopback, with a bucket of its own for each test."""

    def __init__(self, server: BaseWSGIServer, faulty: _Faulty, bucket: str) -> None:
        self.endpoint = f"http://127.0.0.1:{server.port}"
        self.requests, self.bucket = faulty.requests[bucket], bucket
        self._faulty = faulty
        self.filesystem = fs.S3FileSystem(
            endpoint_override=self.endpoint, region="us-east-1", access_key="a", secret_key="b", allow_bucket_creation=True
        )
        self.filesystem.create_dir(bucket)
        self.requests.clear()

    @property
    def storage(self) -> dict[str, Any]:
        """A job's `[storage]` section that leads here."""
        return {"endpoint": self.endpoint, "anonymous": True, "attempts": 3}

    def put(self, key: str, content: bytes | Path) -> str:
        """Put a file into the bucket, and return its address."""
        with self.filesystem.open_output_stream(f"{self.bucket}/{key}", compression=None) as file:
            file.write(content if isinstance(content, bytes) else content.read_bytes())
        return f"s3://{self.bucket}/{key}"

    def fail(self, requests: str, how: str, times: int = 1) -> None:
        """Have the next requests with this in "METHOD /PATH" fail: "dropped", "silent", "cut" halfway, or an HTTP status."""
        self._faulty.fail(self.bucket, [(requests, how)] * times)

    def recover(self) -> None:
        """Have no more requests fail."""
        self._faulty.recover(self.bucket)


@pytest.fixture(scope="session")
def _store_server() -> Iterator[tuple[BaseWSGIServer, _Faulty]]:
    faulty = _Faulty()
    server = make_server("127.0.0.1", 0, faulty, threaded=True, request_handler=_Quiet)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server, faulty
    faulty.speak.set()
    server.shutdown()
    thread.join()
    server.server_close()


_buckets = count()


@pytest.fixture
def store(_store_server: tuple[BaseWSGIServer, _Faulty], monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """An S3 store on loopback; the environment has credentials for it."""
    server, faulty = _store_server
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    store = Store(server, faulty, f"bucket-{next(_buckets)}")
    yield store
    store.recover()
