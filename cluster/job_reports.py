"""How a submitted job fares: what Ray says of it and what its run says, put together."""

import signal
from dataclasses import asdict, dataclass, replace
from typing import Final

from ray.job_submission import JobDetails, JobStatus

from cluster.options import Exit
from cluster.status_file import RunStatus

VERSION: Final = "isograd"
"""The key of a job's metadata by which isograd's jobs are told from others."""

RUN_DIRECTORY: Final = "run_directory"
NAME: Final = "job_name"


@dataclass(frozen=True, kw_only=True)
class JobReport:
    """How a job fares.

    Attributes:
        id: what Ray knows it by.
        name: the job file's.
        state: "pending" until Ray has made its environment, then that of its run, or "stopped" where it was killed before its run
            could end in good order.
        ray_status: Ray's word: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED.
        exit_code: that of the run; None until it ends.
        error: a sentence on what went wrong, if anything did.
        submitted: when, in seconds since the epoch.
        ended: likewise; None until it ends.
        run: what the run tells of itself.
    """

    id: str
    name: str
    state: str
    ray_status: str
    exit_code: int | None
    error: str | None
    submitted: float | None
    ended: float | None
    run: RunStatus

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self.exit_code is not None

    def flat(self) -> dict[str, object]:
        """Return all that is known, by stable keys, for scripts."""
        ours = {name: value for name, value in asdict(self).items() if name != "run"}
        return ours | {name: value for name, value in asdict(self.run).items() if name not in ours}


def describe(details: JobDetails, run: RunStatus | None) -> JobReport:
    """Put together what Ray and the run say of a job."""
    metadata = details.metadata or {}
    run, submission = run or RunStatus(), details.submission_id or ""
    state, exit_code, error = _outcome(details, run)
    return JobReport(
        id=submission,
        name=metadata.get(NAME, submission),
        state=state,
        ray_status=str(details.status),
        exit_code=exit_code,
        error=error or run.error,
        submitted=details.start_time / 1000 if details.start_time else None,
        ended=details.end_time / 1000 if details.end_time and exit_code is not None else None,
        run=replace(run, run_directory=run.run_directory or metadata.get(RUN_DIRECTORY)),
    )


_STATES: Final[dict[int, str]] = {Exit.COMPLETED: "completed", Exit.DIVERGED: "diverged", Exit.INTERRUPTED: "interrupted"}


def _outcome(details: JobDetails, run: RunStatus) -> tuple[str, int | None, str | None]:
    """Return state, exit code and, where the run has not said it, what went wrong."""
    told = run.exit_code is not None
    match details.status:
        case JobStatus.PENDING:
            return "pending", None, None
        case JobStatus.RUNNING:
            return run.state, None, None
        case JobStatus.STOPPED:  # Ray has no exit code then, but the run may
            if told:
                return run.state, run.exit_code, None
            when = "its run had begun" if run.run is None else "it could end in good order"
            return "stopped", Exit.INTERRUPTED, f"it was ended before {when}"
    code = details.driver_exit_code
    if code is None and details.status == JobStatus.SUCCEEDED:
        code = Exit.COMPLETED
    if code is not None and code >= 0:
        return (run.state if told else _STATES.get(code, "failed")), code, None
    if code is not None:
        return "failed", Exit.WORKERS, f"its process was ended by {signal.Signals(-code).name}"
    return "failed", Exit.WORKERS, _ray_error(details.message or "Ray does not say why")


def _ray_error(message: str) -> str:
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return " ".join(lines)[:500]
