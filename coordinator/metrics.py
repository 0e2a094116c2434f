"""The `[metrics]` section, and the metrics of a run as Prometheus takes them."""

import stat
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from http.client import HTTPException
from ipaddress import ip_address
from pathlib import Path
from typing import ClassVar, Final
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry, generate_latest, push_to_gateway
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector

from coordinator.records import Checkpointed, CrewStatus, EpochDone, EpochRecord, Errors, Event, Finished, Noticed, RoundDone, Started
from worker.errors import JobError, require

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
PUSH_SECONDS: Final = 5.0
STATUSES: Final = ("running", "completed", "diverged", "failed", "interrupted")
BOUNDS: Final = tuple(base * 10.0**power for power in range(-4, 3) for base in (1.0, 2.5, 5.0))[:-1]
"""Upper bounds of the buckets of durations, in seconds: 100 µs to 250 s."""


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
        require(0 <= self.port <= 65535, "metrics.port", f"must be from 0 to 65535, got {self.port}")
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
        require(_is_address(self.address), "metrics.address", f"'{self.address}' is no IP address, nor 'localhost'")
        require((self.certificate is None) == (self.key is None), "metrics.certificate", "needs metrics.key, and the other way round")
        require(self.client_ca is None or self.certificate is not None, "metrics.client_ca", "needs metrics.certificate and key")
        require(
            self.is_loopback or self.certificate is not None or self.allow_insecure,
            "metrics.address",
            f"{self.address} can be reached from other machines: give metrics.certificate and metrics.key, or set "
            "metrics.allow_insecure = true",
        )
        if self.pushgateway is not None:
            url = urlsplit(self.pushgateway)
            require(
                url.scheme in ("http", "https") and bool(url.hostname) and url.password is None,
                "metrics.pushgateway",
                f"must be a URL such as http://127.0.0.1:9091, without a password, got '{url.scheme}://{url.hostname or ''}'",
            )

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches the endpoint."""
        return self.address == "localhost" or ip_address(self.address).is_loopback

    def with_paths(self, resolve: Callable[[str], str]) -> "MetricsSpec":
        """Return the section with `resolve` applied to the files and folders in it."""

        def resolved(path: str | None) -> str | None:
            return None if path is None else resolve(path)

        return replace(
            self,
            certificate=resolved(self.certificate),
            key=resolved(self.key),
            client_ca=resolved(self.client_ca),
            token_file=resolved(self.token_file),
            sd_dir=resolved(self.sd_dir),
        )


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return text == "localhost"
    return True


def read_secret(key: str, path: str) -> str:
    """Return the secret in a file, without the white space around it.

    Raises:
        JobError: it can't be read, is empty or no ASCII text, or others may read it.
    """
    try:
        if stat.S_IMODE(Path(path).stat().st_mode) & stat.S_IRWXO:
            raise JobError(key, f"{path} is open to every user of this machine; chmod o-rwx it")
        secret = Path(path).read_text(encoding="ascii").strip()
    except OSError as error:
        raise JobError(key, f"{path} can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise JobError(key, f"{path} is no ASCII text") from error
    require(bool(secret), key, f"{path} is empty")
    return secret


class _Durations:
    """A histogram of durations in seconds."""

    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS) + 1)
        self._sum = 0.0

    def add(self, seconds: float) -> None:
        self._counts[bisect_left(BOUNDS, seconds)] += 1
        self._sum += seconds

    @property
    def buckets(self) -> list[tuple[str, float]]:
        """The cumulative counts by upper bound, as Prometheus has them."""
        total, buckets = 0, []
        for bound, count in zip((*BOUNDS, float("inf")), self._counts, strict=True):
            total += count
            buckets.append(("+Inf" if bound == float("inf") else f"{bound:g}", float(total)))
        return buckets

    @property
    def sum(self) -> float:
        """Of all durations."""
        return self._sum


class Metrics:
    """The metrics of one run, made of its events. Counters count from the process's start, as Prometheus wants them."""

    def __init__(self, run: str) -> None:
        """Begin without a value: what is not known yet is not exported."""
        self._run = run
        self._started: Started | None = None
        self._status = "running"
        self._rows = 0
        self._rounds = 0
        self._round: RoundDone | None = None
        self._record: EpochRecord | None = None
        self._crew, self._crew_before = CrewStatus(), CrewStatus()
        self._checkpointed: float | None = None
        self._durations = {phase: _Durations() for phase in ("compute", "reduce", "update", "evaluate", "checkpoint")}
        self._computed: dict[int, tuple[int, float]] = {}

    def observe(self, event: Event) -> None:
        """Bring the metrics up to date with an event."""
        match event:
            case RoundDone():
                self._observe_round(event)
            case Started():
                self._started = event
                self._crew = self._crew_before = event.crew
                self._record = event.history[-1] if event.history else None
            case EpochDone(record=record):
                self._record = record
                if record.validation is not None:
                    self._durations["evaluate"].add(event.evaluate_seconds)
            case Checkpointed():
                self._durations["checkpoint"].add(event.seconds)
                self._checkpointed = event.timestamp
            case Finished(summary=summary):
                self._status = summary.status
            case Noticed():
                pass

    def _observe_round(self, event: RoundDone) -> None:
        self._rows += event.rows
        self._rounds += 1
        self._round = event
        for phase, seconds in event.phases.items():
            self._durations[phase].add(seconds)
        for worker, seconds in event.worker_seconds.items():
            count, total = self._computed.get(worker, (0, 0.0))
            self._computed[worker] = count + 1, total + seconds
        if event.crew is not self._crew:
            self._crew = event.crew

    @property
    def compute_means(self) -> dict[int, float]:
        """How long each worker computed in a round, in seconds, in the mean since it came."""
        return {worker: seconds / count for worker, (count, seconds) in self._computed.items()}

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics as they are now."""
        yield from self.final()
        yield from self._speed()
        yield from self._workers()

    def final(self) -> Iterator[Metric]:
        """Yield those that still mean something when the run is over."""
        yield from self._errors()
        yield self._counter("rows", "Rows trained since the coordinator started.", self._rows)
        yield self._counter("rounds", "Rounds committed since the coordinator started.", self._rounds)
        yield self._gauge("epoch", "Epochs recorded, those before the run was taken up included.", self._epochs)
        states = {status: float(status == self._status) for status in STATUSES}
        yield self._gauges("run_status", "1 for what the run is: running, or how it ended.", "status", states)
        started = self._started
        if started is None:
            return
        info = GaugeMetricFamily("isograd_run_info", "The run: 1, with its sizes as labels.", labels=("run", "shards", "parameters"))
        info.add_metric((self._run, str(started.shards), str(started.parameters)), 1.0)
        yield info
        yield self._gauge(
            "run_start_timestamp_seconds",
            "When the coordinator began its first round, in seconds since the Unix epoch.",
            started.timestamp,
        )
        if started.most_rounds is not None:
            done = self._round.round if self._round else started.rounds_done
            yield self._gauge(
                "progress_ratio", "Share of the run's rounds that are done, 0 to 1; absent without a limit.", done / started.most_rounds
            )

    @property
    def _epochs(self) -> int:
        return self._record.epoch if self._record else 0

    def _errors(self) -> Iterator[Metric]:
        record = self._record
        if record is None:
            return
        splits = {"train": record.train} | ({"validation": record.validation} if record.validation else {})

        def family(name: str, help_text: str, value: Callable[[Errors], float]) -> Metric:
            return self._gauges(name, help_text, "split", {split: value(errors) for split, errors in splits.items()})

        yield family("loss", "Mean loss over the rows of the last epoch.", lambda errors: errors.loss)
        yield family(
            "mean_absolute_error",
            "Mean absolute error over rows and outputs of the last epoch.",
            lambda errors: errors.mean_absolute_error,
        )
        yield family(
            "mean_squared_error",
            "Mean squared error over rows and outputs of the last epoch.",
            lambda errors: errors.mean_squared_error,
        )
        if record.train.error_rate is not None:
            yield family(
                "error_ratio", "Share of the last epoch's rows that were classified wrongly, 0 to 1.", lambda e: e.error_rate or 0.0
            )

    def _speed(self) -> Iterator[Metric]:
        last = self._round
        if last is not None:
            yield self._gauge("round_loss", "Mean loss over the rows of the last round.", last.loss)
            yield self._gauge("gradient_norm", "Euclidean norm of the last round's gradient, before clipping.", last.gradient_norm)
            yield self._gauge("learning_rate", "Learning rate of the last round.", last.learning_rate)
            yield self._gauge(
                "last_round_timestamp_seconds",
                "When the last round was committed, in seconds since the Unix epoch.",
                last.timestamp,
            )
        if self._checkpointed is not None:
            yield self._gauge(
                "checkpoint_last_success_timestamp_seconds",
                "When the last checkpoint was written, in seconds since the Unix epoch.",
                self._checkpointed,
            )
        rounds = HistogramMetricFamily("isograd_round_seconds", "Duration of a round's phases in seconds.", labels=("run", "phase"))
        for phase, durations in self._durations.items():
            rounds.add_metric((self._run, phase), durations.buckets, durations.sum)
        yield rounds

    def _workers(self) -> Iterator[Metric]:
        crew, before = self._crew, self._crew_before
        most = self._started.most_workers if self._started else crew.workers
        states = {"ready": crew.workers - crew.loading, "loading": crew.loading, "missing": max(0, most - crew.workers)}
        yield self._gauges(
            "workers",
            "Workers by state: ready, loading their rows, missing of those asked for.",
            "state",
            states,
        )
        yield self._counter("worker_failures", "Workers lost since the coordinator started.", crew.lost - before.lost)
        yield self._counter(
            "shards_moved", "Shards that went from one worker to another since the coordinator started.", crew.moved - before.moved
        )
        yield self._counter(
            "slices_recomputed", "Slices that were under way on a worker when it was lost.", crew.recomputed - before.recomputed
        )
        shares = {str(worker): share for worker, share in crew.shares.items()}
        yield self._gauges("worker_shards", "Shards that each worker has to compute.", "worker", shares)
        computed = SummaryMetricFamily(
            "isograd_worker_compute_seconds", "Time that each worker computed in a round, in seconds.", labels=("run", "worker")
        )
        self._computed = {worker: total for worker, total in self._computed.items() if worker in crew.shares}
        for worker, (count, seconds) in self._computed.items():
            computed.add_metric((self._run, str(worker)), count, seconds)
        yield computed

    def _gauge(self, name: str, help_text: str, value: float) -> Metric:
        family = GaugeMetricFamily(f"isograd_{name}", help_text, labels=("run",))
        family.add_metric((self._run,), value)
        return family

    def _gauges(self, name: str, help_text: str, label: str, values: Mapping[str, float]) -> Metric:
        """Return a family with a second label, and its values by what that label says."""
        family = GaugeMetricFamily(f"isograd_{name}", help_text, labels=("run", label))
        for member, value in values.items():
            family.add_metric((self._run, member), value)
        return family

    def _counter(self, name: str, help_text: str, value: float) -> Metric:
        family = CounterMetricFamily(f"isograd_{name}", help_text, labels=("run",))
        family.add_metric((self._run,), value)
        return family


class _Families(Collector):
    def __init__(self, collect: Callable[[], Iterator[Metric]]) -> None:
        self._collect = collect

    def collect(self) -> Iterator[Metric]:
        return self._collect()


def _registry(collect: Callable[[], Iterator[Metric]]) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(_Families(collect))
    return registry


def expose(metrics: Metrics) -> bytes:
    """Return all metrics in the text format of Prometheus."""
    return generate_latest(_registry(metrics.collect))


def push(metrics: Metrics, gateway: str, run: str) -> str | None:
    """Send the final values to a Pushgateway; return a sentence where that fails."""
    try:
        push_to_gateway(gateway, "isograd", _registry(metrics.final), {"run": run}, timeout=PUSH_SECONDS)
    except (OSError, ValueError, HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        return f"the final errors could not be sent to the Pushgateway at {gateway}: {reason}"
    return None
