"""The `[metrics]` section, and the Prometheus endpoint that it asks for."""

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import ClassVar, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Info, disable_created_metrics, start_http_server

from coordinator.model_files import write_atomically
from coordinator.records import (
    Checkpointed,
    CrewStatus,
    EpochDone,
    EpochRecord,
    Errors,
    Event,
    Finished,
    Noticed,
    RoundDone,
    Started,
)
from worker.errors import JobError, require

ADDRESS: Final = "127.0.0.1"


@dataclass(frozen=True, kw_only=True)
class MetricsSpec:
    """Where the error is exported; without this section there is no endpoint.

    Attributes:
        port: of 127.0.0.1; 0 takes any free one.
        sd_dir: folder in which to announce the endpoint to Prometheus, as a file of file-based service discovery.
        linger_seconds: how long the endpoint stays after the run, so that a last scrape finds the final values.
    """

    __pydantic_config__: ClassVar[Mapping[str, object]] = {"extra": "forbid"}

    port: int = 0
    sd_dir: str | None = None
    linger_seconds: float = 0.0

    def __post_init__(self) -> None:
        require(0 <= self.port <= 65535, "metrics.port", f"must be from 0 to 65535, got {self.port}")
        require(
            0 <= self.linger_seconds < float("inf"),
            "metrics.linger_seconds",
            f"must be 0 or more, got {self.linger_seconds}",
        )


class Metrics:
    """The metrics of one run, in a registry of their own."""

    def __init__(self, run: str) -> None:
        """Create them all, labelled with the run's name."""
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self._run = run

        def gauge(name: str, help_text: str, *labels: str) -> Gauge:
            return Gauge(f"isograd_{name}", help_text, ("run", *labels), registry=self.registry)

        def counter(name: str, help_text: str) -> Counter:
            return Counter(f"isograd_{name}", help_text, ("run",), registry=self.registry)

        self._loss = gauge("loss", "Mean loss over the rows of the last epoch.", "split")
        self._absolute = gauge("mean_absolute_error", "Mean absolute error over rows and outputs of the last epoch.", "split")
        self._squared = gauge("mean_squared_error", "Mean squared error over rows and outputs of the last epoch.", "split")
        self._wrong = gauge("error_ratio", "Share of the last epoch's rows that were classified wrongly, 0 to 1.", "split")
        self._rows = counter("rows", "Rows trained.").labels(run)
        self._rounds = counter("rounds", "Rounds committed.").labels(run)
        self._epoch = gauge("epoch", "Epochs recorded.").labels(run)
        self._progress = gauge("progress_ratio", "Share of the run's rounds that are done, 0 to 1; absent without a limit.")
        self._norm = gauge("gradient_norm", "Euclidean norm of the last round's gradient, before clipping.").labels(run)
        self._rate = gauge("learning_rate", "Learning rate of the last round.").labels(run)
        self._workers = gauge("workers", "Workers by state.", "state")
        self._failures = counter("worker_failures", "Workers lost.").labels(run)
        self._moved = counter("shards_moved", "Shards that went from one worker to another.").labels(run)
        self._crew = CrewStatus()
        self._info = Info("isograd_run", "The run.", ("run",), registry=self.registry)
        self._most_rounds: int | None = None

    def observe(self, event: Event) -> None:
        """Bring the metrics up to date with an event."""
        match event:
            case Started():
                self._most_rounds = event.most_rounds
                self._workers.labels(self._run, "ready").set(event.workers)
                self._info.labels(self._run).info({"shards": str(event.shards), "parameters": str(event.parameters)})
            case RoundDone():
                self._rows.inc(event.rows)
                self._rounds.inc()
                self._norm.set(event.gradient_norm)
                self._rate.set(event.learning_rate)
                self._observe_crew(event.crew)
                if self._most_rounds is not None:
                    self._progress.labels(self._run).set(event.round / self._most_rounds)
            case EpochDone():
                self._observe_epoch(event.record)
            case Checkpointed() | Noticed() | Finished():
                pass

    def _observe_crew(self, crew: CrewStatus) -> None:
        if crew == self._crew:
            return
        self._workers.labels(self._run, "ready").set(crew.workers)
        self._failures.inc(crew.lost - self._crew.lost)
        self._moved.inc(crew.moved - self._crew.moved)
        self._crew = crew

    def _observe_epoch(self, record: EpochRecord) -> None:
        self._epoch.set(record.epoch)
        for split, errors in (("train", record.train), ("validation", record.validation)):
            if errors is not None:
                self._observe_errors(split, errors)

    def _observe_errors(self, split: str, errors: Errors) -> None:
        self._loss.labels(self._run, split).set(errors.loss)
        self._absolute.labels(self._run, split).set(errors.mean_absolute_error)
        self._squared.labels(self._run, split).set(errors.mean_squared_error)
        if errors.error_rate is not None:
            self._wrong.labels(self._run, split).set(errors.error_rate)


class MetricsServer:
    """The endpoint of one run, announced to Prometheus while it stands."""

    def __init__(self, spec: MetricsSpec, run: str, registry: CollectorRegistry) -> None:
        """Start serving. Raises JobError where the port is taken or the announcement can't be written."""
        try:
            self._server, self._thread = start_http_server(spec.port, ADDRESS, registry)
        except OSError as error:
            raise JobError(
                "metrics.port", f"{spec.port} can't be served on {ADDRESS}: {error.strerror}; use another port, or 0 for any"
            ) from error
        self._linger_seconds = spec.linger_seconds
        port = self._server.server_address[1]
        self.url = f"http://{ADDRESS}:{port}/metrics"
        self._announcement = Path(spec.sd_dir) / f"isograd-{run}.json" if spec.sd_dir is not None else None
        if self._announcement is not None:
            targets = [{"targets": [f"{ADDRESS}:{port}"], "labels": {"run": run}}]
            try:
                write_atomically(self._announcement, json.dumps(targets).encode() + b"\n")
            except OSError as error:
                self.stop()
                raise JobError("metrics.sd_dir", f"{spec.sd_dir} can't be written: {error.strerror}") from error

    def linger(self, interrupted: Callable[[], bool]) -> None:
        """Go on serving the final values for as long as the job asks, or until `interrupted` says so."""
        until = monotonic() + self._linger_seconds
        while monotonic() < until and not interrupted():
            sleep(min(0.1, max(0.0, until - monotonic())))

    def stop(self) -> None:
        """Take the announcement back and stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        if self._announcement is not None:
            with suppress(OSError):
                self._announcement.unlink(missing_ok=True)
