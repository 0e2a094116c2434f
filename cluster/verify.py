"""The proof that workers make no difference: the same job for several numbers of them, with and without a death."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from time import time

from cluster.follow import follow
from cluster.launch import LOCAL, connected
from cluster.wording import count
from coordinator.check import check_job
from coordinator.job import JobSpec
from coordinator.order import Order
from coordinator.pool import WorkersSpec
from coordinator.records import Finished, Summary
from worker.errors import JobError


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One of the runs that are compared."""

    workers: int
    killed: bool
    digest: str
    failures: int
    rows_trained: int
    rows_expected: int
    seconds: float

    def __str__(self) -> str:
        killed = f", {count(self.failures, 'worker')} killed" if self.killed else ""
        rows = f"{self.rows_trained:,} of {self.rows_expected:,} rows"
        return f"{self.digest}  {count(self.workers, 'worker')}{killed}  {rows}  {self.seconds:.1f} s"


def parse_counts(text: str) -> list[int]:
    """Return the numbers in '1,2,4'. Raises JobError for anything else."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and int(word) for word in words):
        raise JobError("--workers", f"'{text}' is no list of numbers such as 1,2,4")
    return [int(word) for word in words]


def verify_job(job: JobSpec, counts: list[int], *, kill: bool, debug: bool) -> Iterator[Trial]:
    """Train the job on a local Ray once for each number of workers, yielding each run as it ends.

    Args:
        job: the job; its own `[workers]` numbers and `[metrics]` are set aside.
        counts: numbers of workers.
        kill: for each number, train once more, and kill a worker while it computes a round in the middle of the run.
        debug: whether to let Ray's messages through.

    Raises:
        UserError: the job or its data are at fault.
        PoolError: the workers can't go on.
    """
    jobs = [replace(job, workers=replace(job.workers, count=count, min=None, max=None), metrics=None) for count in counts]
    plan = check_job(job)
    middle = (plan.most_rounds or plan.rounds_per_epoch) // 2
    with connected(LOCAL, WorkersSpec(count=max(counts), cpus=job.workers.cpus), debug=debug):
        for trial_job in jobs:
            yield _try(trial_job, None)
            if kill:
                yield _try(trial_job, middle)


def _try(job: JobSpec, kill_in_round: int | None) -> Trial:
    began = time()
    with TemporaryDirectory(prefix="isograd-verify-") as folder:
        summary: Summary | None = None
        for event in follow(Order(job, Path(folder) / "run", began), lambda: False, kill_in_round):
            if isinstance(event, Finished):
                summary = event.summary
    assert summary is not None, "the last event is Finished"
    return Trial(
        workers=job.workers.most,
        killed=kill_in_round is not None,
        digest=summary.weights_digest,
        failures=summary.worker_failures,
        rows_trained=summary.rows_trained,
        rows_expected=summary.rows_expected,
        seconds=time() - began,
    )
