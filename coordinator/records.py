"""What a run tells of itself: errors, the line of an epoch, the summary, and the events that carry them."""

from dataclasses import dataclass, field
from typing import Literal, Self

from worker.errors import DataError
from worker.network import ErrorSums

Status = Literal["completed", "diverged", "failed", "interrupted"]
Phase = Literal["compute", "reduce", "update", "evaluate", "checkpoint"]


@dataclass(frozen=True, kw_only=True)
class Errors:
    """Errors of a split. All means are by the rows' weights, if they have any.

    Attributes:
        loss: mean over rows of the loss, which is summed over outputs; penalties left out.
        mean_absolute_error: over rows and outputs.
        mean_squared_error: over rows and outputs.
        error_rate: share of the rows classified wrongly; None for regressions.
    """

    loss: float
    mean_absolute_error: float
    mean_squared_error: float
    error_rate: float | None

    @classmethod
    def of(cls, sums: ErrorSums, rows: str = "rows") -> Self:
        """Divide, once, the sums over all of some `rows`. Raises DataError where these have no weight."""
        if not sums.weight:
            raise DataError(f"none of the {rows} has any weight; data.weight and data.unlabelled say which have")
        entries = sums.weight * sums.outputs
        return cls(
            loss=sums.loss / sums.weight,
            mean_absolute_error=sums.absolute / entries,
            mean_squared_error=sums.squared / entries,
            error_rate=None if sums.wrong is None else sums.wrong / sums.weight,
        )


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """One line of history.jsonl.

    Attributes:
        epoch: from 1; the last one may have been cut short.
        round: rounds of the run so far.
        rows: rows trained in this epoch, counted as their gradients were added up.
        rows_expected: rows that the plan has for these rounds.
        train: over the epoch's rounds, each row by the weights that its round began with.
        validation: by the weights at the end of the epoch; None without validation.
        learning_rate: of the epoch's last round.
        gradient_norm: of the epoch's last round, before clipping.
        seconds: of training since the run's first round.
        rows_per_second: in the epoch's rounds.
    """

    epoch: int
    round: int
    rows: int
    rows_expected: int
    train: Errors
    validation: Errors | None
    learning_rate: float
    gradient_norm: float
    seconds: float
    rows_per_second: float


@dataclass(frozen=True, kw_only=True)
class Seconds:
    """Durations of a run: from the command to its first round, of training, and altogether."""

    startup: float
    training: float
    total: float


@dataclass(frozen=True, kw_only=True)
class Percentiles:
    """Median and 99th percentile."""

    p50: float
    p99: float


@dataclass(frozen=True, kw_only=True)
class Summary:
    """summary.json.

    Attributes:
        run: name of the run directory.
        status: how the run ended.
        stop_reason: the criterion that ended it, or what went wrong.
        epochs: complete epochs.
        rounds: rounds.
        rows_trained: rows counted in committed rounds.
        rows_expected: rows that the plan has for those rounds.
        parameters: weights and biases.
        workers: workers at the end.
        worker_failures: workers lost.
        slices_recomputed: slices that were under way on a worker when it was lost.
        kept_epoch: the epoch whose weights were kept; None where no epoch was completed.
        weights_digest: SHA-256 of the final weights.
        seconds: durations.
        rows_per_second: in rounds, the first epoch left out where there are several.
        round_seconds: duration of a round.
        train: errors of the kept epoch; None where no epoch was completed.
        validation: likewise.
        fingerprint: what the bits depend on beside the job.
    """

    run: str
    status: Status
    stop_reason: str
    epochs: int
    rounds: int
    rows_trained: int
    rows_expected: int
    parameters: int
    workers: int
    worker_failures: int
    slices_recomputed: int
    kept_epoch: int | None
    weights_digest: str
    seconds: Seconds
    rows_per_second: float
    round_seconds: Percentiles
    train: Errors | None
    validation: Errors | None
    fingerprint: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class CrewStatus:
    """How the workers fare.

    Attributes:
        workers: that there are.
        loading: those of them that have yet to take over their shards.
        lost: since the start of the run.
        recomputed: slices that were under way on a worker when it was lost.
        moved: shards that went from one worker to another.
        shares: shards that each worker has to compute, by its number.
    """

    workers: int = 0
    loading: int = 0
    lost: int = 0
    recomputed: int = 0
    moved: int = 0
    shares: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Started:
    """The plan is made and the first round about to begin.

    Attributes:
        run: name of the run directory.
        directory: its path.
        job: the resolved job, in TOML.
        timestamp: when this was, in seconds since the epoch.
        rows: to train.
        validation_rows: held out.
        inputs: features.
        outputs: of the network.
        parameters: weights and biases.
        shards: S.
        crew: the workers that the run begins with.
        crew_before: how those of a run that is taken up had fared until then.
        most_workers: that it may get.
        rounds_per_epoch: T.
        rounds_done: of a run that is taken up.
        most_rounds: None where nothing limits them.
        history: the epochs of a run that is taken up.
        host: the machine that the coordinator is on.
        metrics_url: where Prometheus finds the metrics, if anywhere.
        dashboard_url: where a person can watch, if anywhere.
    """

    run: str
    directory: str
    job: str
    timestamp: float
    rows: int
    validation_rows: int
    inputs: int
    outputs: int
    parameters: int
    shards: int
    crew: CrewStatus
    crew_before: CrewStatus = field(default_factory=CrewStatus)
    most_workers: int
    rounds_per_epoch: int
    rounds_done: int
    most_rounds: int | None
    history: tuple[EpochRecord, ...]
    host: str
    metrics_url: str | None
    dashboard_url: str | None


@dataclass(frozen=True, kw_only=True)
class RoundDone:
    """A round was committed.

    Attributes:
        round: from 1.
        timestamp: when it was committed, in seconds since the epoch.
        rows: of the round.
        loss: mean over its rows.
        gradient_norm: before clipping.
        learning_rate: of its update.
        seconds: its duration.
        phases: how long its phases took, in seconds.
        worker_seconds: how long each worker computed, by its number.
        crew: how the workers fare.
    """

    round: int
    timestamp: float
    rows: int
    loss: float
    gradient_norm: float
    learning_rate: float
    seconds: float
    phases: dict[Phase, float] = field(default_factory=dict)
    worker_seconds: dict[int, float] = field(default_factory=dict)
    crew: CrewStatus


@dataclass(frozen=True, kw_only=True)
class EpochDone:
    """An epoch is over. `evaluate_seconds` is what its evaluation took; 0 without validation."""

    record: EpochRecord
    evaluate_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Checkpointed:
    """A checkpoint of the state after `round` rounds is on disk since `timestamp`, in seconds since the epoch."""

    round: int
    seconds: float
    timestamp: float


@dataclass(frozen=True, kw_only=True)
class Noticed:
    """Something that the user should know, though the run goes on."""

    message: str


@dataclass(frozen=True, kw_only=True)
class Finished:
    """The run is over and its directory complete. `crew` is how the workers fared, after the last round too."""

    summary: Summary
    crew: CrewStatus


Event = Started | RoundDone | EpochDone | Checkpointed | Noticed | Finished
