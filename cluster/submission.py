"""What Ray is told of a job that is submitted."""

import importlib.metadata
import re
import secrets
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from math import ceil
from pathlib import Path
from typing import Any, Final

from cluster.job_reports import NAME, RUN_DIRECTORY, VERSION
from coordinator.folders import parse_address
from coordinator.job import JobSpec
from worker.errors import UserError

STOP_SECONDS: Final = 600
"""For how long a job that is stopped may take to end its round and write a checkpoint; Ray allows three seconds."""

RUNS: Final = "~/isograd-runs"
"""Where runs go unless told otherwise: their working directory is part of a cache of Ray's."""


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A job that is about to be submitted.

    Attributes:
        id: what Ray is to know it by.
        job: the job.
        directory: the run directory, on the cluster: a full path, one that begins with ~, or a URI.
        options: further options of `isograd train`.
        packages: what each node is to install first, as pip takes it.
    """

    id: str
    job: JobSpec
    directory: str
    options: Sequence[str] = ()
    packages: Sequence[str] = ()

    def request(self, parcel: Path) -> dict[str, Any]:
        """Return the arguments of `JobSubmissionClient.submit_job`; `parcel` is the folder to be uploaded."""
        metrics = self.job.metrics
        seconds = STOP_SECONDS + ceil(metrics.linger_seconds if metrics is not None else 0)
        # Ray's actor that runs the command has this environment, and reads there how long to wait after SIGTERM.
        environment: dict[str, Any] = {"working_dir": str(parcel), "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(seconds)}}
        if self.packages:
            environment["pip"] = list(self.packages)
        # With exec, signals and the exit code are those of the command rather than of a shell around it.
        command = ["python3", "-m", "cluster.submitted", self.id, "--run-dir", self.directory, *self.options]
        return {
            "submission_id": self.id,
            "entrypoint": f"exec {shlex.join(command)}",
            "runtime_env": environment,
            "metadata": {VERSION: importlib.metadata.version("isograd"), NAME: self.job.job.name, RUN_DIRECTORY: self.directory},
        }


def new_id(name: str) -> str:
    """Return an id by which people recognise a job, and which no other has."""
    return f"isograd-{name}-{datetime.now().astimezone():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def check_id(text: str) -> str:
    """Return the id. Raises UserError if it can't name a file."""
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,149}", text) is None:
        raise UserError(
            f"--submission-id: {text!r} can't name a file; accepted are up to 150 letters, digits, '.', '_', '-', no sign first"
        )
    return text


def run_directory(given: str | None, submission: str, *, same_machine: bool) -> str:
    """Return the run directory as the cluster has it.

    Raises:
        JobError: it is a URI where no run can go, or has credentials in it, which Ray would show to all who see the job.
        UserError: it is a path that means something here alone.
    """
    if given is None:
        return f"{RUNS}/{submission}"
    parse_address(given, "--run-dir", to_write=True)
    if "://" in given or given.startswith(("/", "~/")):
        return given
    if same_machine:
        return str(Path(given).absolute())
    raise UserError(f"--run-dir: {given} is relative to a folder here, which the cluster does not see; give a full path or a URI")
