"""The command line: options in, tables and exit codes out."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from time import time

import click

from cluster.addresses import settle_cluster
from cluster.display import Display, ProgressKind, make_console, make_display, make_table_console
from cluster.jobs_cli import COMMANDS as ON_CLUSTERS
from cluster.options import (
    AUTO_RESUME,
    DEBUG,
    JOB,
    RESUME,
    SET,
    STATUS_EXIT,
    WORKERS,
    Exit,
    MismatchError,
    chosen_resumes,
    exit_codes,
    load,
    parse_workers,
)
from cluster.plan import print_plan
from cluster.scoring_cli import COMMANDS as SCORING
from cluster.status_file import Displays, StatusFile
from cluster.tables import print_end
from coordinator.check import check_job
from coordinator.endpoint import check as check_endpoint
from coordinator.folders import Address, parse_address
from coordinator.job import JobSpec
from coordinator.order import Order, check_directory, decided
from coordinator.records import Finished, Summary


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="isograd")
def main() -> None:
    """Train neural networks data-parallel on Ray: the same weights to the bit for any number of workers.

    A job is a TOML file; start with: isograd train JOB.toml

    Exit codes: 0 completed, 1 unexpected, 2 job, data or arguments, 3 diverged, 4 too few workers or the cluster
    failed, 130 interrupted.
    """


@main.command()
@JOB
@WORKERS
@SET
@click.option("--run-dir", metavar="DIR", help="A folder or the URI of one. Default: runs/NAME-TIME.")
@RESUME
@AUTO_RESUME
@click.option(
    "--address",
    metavar="ADDRESS",
    default="local",
    show_default=True,
    help="local: a Ray of its own on this machine; none: this process, no Ray; auto, HOST:PORT or ray://HOST:PORT: a cluster.",
)
@click.option(
    "--progress",
    type=click.Choice(["auto", "bar", "plain", "none"]),
    default="auto",
    show_default=True,
    help="auto: a bar on a terminal, a line an epoch elsewhere; none: nothing but the closing table.",
)
@click.option("--dashboard", is_flag=True, help="Serve a live page of the run, at an address that is printed.")
@click.option(
    "--metrics-sd-dir",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Announce the metrics to Prometheus by a file in DIR, for file-based service discovery.",
)
@click.option(
    "--status-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Keep how the run fares in FILE, as JSON, written anew about once a second.",
)
@DEBUG
def train(
    *,
    job_file: Path,
    workers: str | None,
    overrides: tuple[str, ...],
    run_dir: str | None,
    resume: bool,
    auto_resume: bool,
    address: str,
    progress: ProgressKind,
    dashboard: bool,
    metrics_sd_dir: Path | None,
    status_file: Path | None,
    debug: bool,
) -> None:
    """Train a job.

    Writes weights, history, checkpoints and a summary into a run directory.

    Ctrl-C ends the run after the round under way, with a checkpoint and the best weights; a second one ends it at once.
    """
    began = time()
    with exit_codes(debug=debug), StatusFile(status_file) as status:
        metrics: dict[str, object] = {"metrics.dashboard": True} if dashboard else {}
        if metrics_sd_dir is not None:
            metrics["metrics.sd_dir"] = str(metrics_sd_dir.absolute())
        job = load(job_file, overrides, metrics | (parse_workers(workers) if workers is not None else {}))
        chosen_resumes(run_dir, resume=resume, auto_resume=auto_resume)
        directory = parse_address(run_dir or _new_run_directory(job), "--run-dir", to_write=True)
        order = Order(job, directory, began, resume, auto_resume)
        summary = _train(order, address, Displays(make_display(progress, make_console()), status), debug=debug)
        code = STATUS_EXIT[summary.status]
        if code is not Exit.COMPLETED:
            sys.exit(code)


@main.command()
@JOB
@SET
@click.option("--all-columns", is_flag=True, help="Show every column, however many there are.")
@DEBUG
def check(*, job_file: Path, overrides: tuple[str, ...], all_columns: bool, debug: bool) -> None:
    """Validate a job and its data, and print the plan."""
    with exit_codes(debug=debug):
        job, console = load(job_file, overrides), make_table_console()
        with console.status("reading the training rows") as status:
            plan = check_job(job, lambda rows, shards: status.update(f"reading the {rows}: {shards} of {job.data.shards} shards"))
        print_plan(console, job, plan, all_columns=all_columns)


@main.command()
@JOB
@SET
@click.option(
    "--workers", "counts", default="1,2,4", show_default=True, metavar="N,N,…", help="Numbers of workers to train with."
)
@click.option("--kill", is_flag=True, help="For each number, train once more and kill a worker in the middle of a round.")
@DEBUG
def verify(*, job_file: Path, overrides: tuple[str, ...], counts: str, kill: bool, debug: bool) -> None:
    """Prove that the workers make no difference.

    Trains the job once for each number of workers and compares the digests of the weights. The run directories are temporary.
    Exits with 0 only if all digests are equal.
    """
    from cluster.verify import parse_counts, verify_job

    with exit_codes(debug=debug):
        console, trials = make_console(), []
        for trial in verify_job(load(job_file, overrides), parse_counts(counts), kill=kill, debug=debug):
            console.print(str(trial), highlight=False, soft_wrap=True)
            trials.append(trial)
        if any(trial.killed and not trial.failures for trial in trials):
            raise MismatchError("a run ended before a worker could be killed in it; verify a job of more rounds")
        digests = {trial.digest for trial in trials}
        if len(digests) > 1:
            raise MismatchError(f"{len(trials)} runs gave {len(digests)} different digests")
        console.print(f"{len(trials)} runs, one digest: the workers make no difference", style="green", highlight=False)


def _train(order: Order, address: str, display: Display, *, debug: bool) -> Summary:
    settle_cluster(address)
    # Ray takes a second to import, which the other commands need not wait for.
    from cluster.launch import IN_PROCESS, LOCAL, launch
    from coordinator.preparation import inspect

    # What can be told from here is told before a cluster is started or has room.
    here = address in (IN_PROCESS, LOCAL)
    if here:
        check_directory(decided(order))
    if here or _sees_data(order.job):
        inspect(order.job)
    if here and order.job.metrics is not None:
        check_endpoint(order.job.metrics)
    with interruptible() as interrupted:
        try:
            for event in launch(order, address, interrupted, debug=debug):
                display.show(event)
                if isinstance(event, Finished):  # what comes now is lingering, if anything
                    summary = event.summary
                    print_end(make_table_console(), summary, _short(order.directory), order.job.metrics)
        finally:
            display.close()
    return summary


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Give a function that tells whether Ctrl-C or SIGTERM came; the second one raises KeyboardInterrupt."""
    asked = threading.Event()

    def handle(*_: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _sees_data(job: JobSpec) -> bool:
    """Return whether the files that a cluster is to read are seen from here, too."""
    return all(Path(path).exists() for path in (job.data.train, job.data.validation) if isinstance(path, str))


def _new_run_directory(job: JobSpec) -> str:
    return f"runs/{job.job.name}-{datetime.now().astimezone():%Y%m%d-%H%M%S}"


def _short(address: Address) -> str:
    try:
        here = Path.cwd()
    except FileNotFoundError:  # that of a job on a cluster is in a cache, and may be cleared away
        return str(address)
    return str(address.relative_to(here) if isinstance(address, Path) and address.is_relative_to(here) else address)


for _command in (*SCORING, *ON_CLUSTERS):
    main.add_command(_command)

if __name__ == "__main__":
    main()
