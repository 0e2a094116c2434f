"""Where a submitted job begins, on the cluster: it sees to it that isograd can run there, then trains.

Called as `python3 -m cluster.submitted ID --run-dir DIR [OPTION…]`, in the folder of the parcel. What is imported up here has to
be there in any Python that runs Ray, of any version.
"""

import importlib.metadata
import json
import os
import platform
import sys
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

CLUSTER_AT_FAULT = 4


def main() -> None:
    """Train the job of the parcel; ends with the exit code of `isograd train`."""
    _, submission, *options = sys.argv
    path, problem = _status_file(submission), lacking()
    if problem is not None:
        sys.stderr.write(f"Error: {problem}\n")
        path.write_text(json.dumps({"state": "failed", "exit_code": CLUSTER_AT_FAULT, "error": problem}))
        sys.exit(CLUSTER_AT_FAULT)
    from cluster.cli import main as isograd

    options = [os.path.expanduser(option) for option in options]
    isograd(["train", "job.toml", "--address", "auto", "--progress", "plain", "--status-file", str(path), *options])


def lacking() -> "str | None":
    """Return a sentence if this Python is not one that isograd runs in, as its metadata says."""
    ours = importlib.metadata.distribution("isograd")
    wanted, here = ours.metadata["Requires-Python"], platform.python_version()
    if not SpecifierSet(wanted).contains(here, prereleases=True):
        return f"the cluster has Python {here}, and isograd {ours.version} needs {wanted}"
    missing = [f"{need.name} {need.specifier}" for need in needs() if not _met(need)]
    if not missing:
        return None
    return (
        f"the cluster's {sys.executable} lacks {', '.join(missing)}; use an image with isograd in it, or submit the job with "
        "--pip, which has each node install them"
    )


def needs() -> "list[Requirement]":
    """Return the distributions that isograd needs."""
    every = map(Requirement, importlib.metadata.requires("isograd") or [])
    return [need for need in every if need.marker is None or need.marker.evaluate({"extra": ""})]


def _met(need: Requirement) -> bool:
    try:
        return need.specifier.contains(importlib.metadata.version(need.name), prereleases=True)
    except importlib.metadata.PackageNotFoundError:
        return False


def _status_file(submission: str) -> Path:
    # Ray writes what a job prints into its folder of logs, whose files the dashboard serves.
    return Path(os.readlink("/proc/self/fd/1")).with_name(status_name(submission))


def status_name(submission: str) -> str:
    """Return the name of the file, beside a job's log, in which its run tells how it fares."""
    return f"isograd-{submission}.json"


if __name__ == "__main__":
    main()
