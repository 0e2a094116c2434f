"""What a run is asked for, and whether its directory is fit for that."""

import socket
from dataclasses import dataclass, replace

from coordinator.dispatch import PoolError
from coordinator.folders import Address, Folder, open_folder
from coordinator.job import JobSpec
from coordinator.run_directory import check, holds_run
from worker.errors import UserError


@dataclass(frozen=True)
class Order:
    """What a run needs beside its pool.

    Attributes:
        job: the job.
        directory: the run directory, as `parse_address` returns it; its name is the run's.
        began: when the user asked for the run, in seconds since the epoch.
        resume: go on with the run that the directory holds, from its newest checkpoint.
        resume_if_begun: do so if the directory holds a run, else begin one.
        restarted: the coordinator before this one was lost, and maybe some of the workers' places with it.
        checkpointed: it had told of a checkpoint, so that the run is not to begin anew.
    """

    job: JobSpec
    directory: Address
    began: float
    resume: bool = False
    resume_if_begun: bool = False
    restarted: bool = False
    checkpointed: bool = False

    @property
    def folder(self) -> Folder:
        """The run directory, opened."""
        return open_folder(self.directory, self.job.storage)


def decided(order: Order) -> Order:
    """Return the order with `resume` set where that was left to what the directory holds."""
    return replace(order, resume=True) if order.resume_if_begun and holds_run(order.folder) else order


def check_directory(order: Order) -> None:
    """Raise a UserError if the run directory is not fit for the order, a PoolError if a lost coordinator's is not seen here."""
    if order.checkpointed and not holds_run(order.folder):
        raise PoolError(
            f"the coordinator was started anew on {socket.gethostname()}, where {order.directory} does not hold the run; "
            "give a --run-dir that all nodes see, or go on with --resume where it is seen"
        )
    if not order.resume:
        check(order.folder)
    elif not holds_run(order.folder):
        raise UserError(f"--resume: {order.directory} holds no run; leave --resume out to begin one")
