"""The commands for jobs on a cluster, which go through its dashboard."""

from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from cluster.addresses import settle
from cluster.options import AUTO_RESUME, DEBUG, JOB, RESUME, SET, WORKERS, chosen_resumes, exit_codes, parse_workers, replaced
from coordinator.job import read_job
from worker.errors import UserError

if TYPE_CHECKING:
    from cluster.job_commands import Commands

ADDRESS = click.option(
    "--address",
    metavar="URL",
    help="The cluster's dashboard, http://HEAD:8265. Default: RAY_API_SERVER_ADDRESS, RAY_ADDRESS, or port 8265 here.",
)
ID = click.argument("job", metavar="ID")
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts, one object a line.")


@click.command(short_help="Train a job on a cluster that runs.")
@JOB
@ADDRESS
@click.option("--follow", is_flag=True, help="Print the job's log as it comes, and end with its exit code.")
@WORKERS
@SET
@click.option(
    "--run-dir",
    metavar="DIR",
    help="On the cluster: a full path or a URI that all its machines see. Default: ~/isograd-runs/ID there.",
)
@RESUME
@AUTO_RESUME
@click.option("--upload-data", is_flag=True, help="Take rows and starting weights that are found here along, if they are small.")
@click.option("--pip", "install", is_flag=True, help="Have the cluster's nodes install what isograd needs, in the versions here.")
@click.option("--submission-id", metavar="ID", help="Default: isograd-NAME-TIME and four more characters.")
@AS_JSON
@DEBUG
def submit(
    *,
    job_file: Path,
    address: str | None,
    follow: bool,
    workers: str | None,
    overrides: tuple[str, ...],
    run_dir: str | None,
    resume: bool,
    auto_resume: bool,
    upload_data: bool,
    install: bool,
    submission_id: str | None,
    as_json: bool,
    debug: bool,
) -> None:
    """Train a job on a cluster: its dashboard takes isograd's code and the job, and the command need not wait.

    Data is given by a URI or a full path that the cluster's machines see.

    Ctrl-C while it follows leaves the job alone.
    """
    with exit_codes(debug=debug):
        job = read_job(job_file, replaced(overrides, parse_workers(workers) if workers is not None else {}))
        chosen = chosen_resumes(run_dir, resume=resume, auto_resume=auto_resume)
        if chosen and upload_data:
            raise UserError(
                f"{chosen[0]}: what --upload-data takes along is another dataset each time; put it where the cluster sees it"
            )
        commands = _commands(address, as_json=as_json, debug=debug)
        submission = commands.submit(
            job, job_file.resolve().parent, run_dir, submission_id, chosen, upload=upload_data, install=install
        )
        if follow:
            commands.follow(submission)
        else:
            commands.print_commands(submission)


@click.command(short_help="List the jobs on a cluster.")
@ADDRESS
@AS_JSON
@DEBUG
def jobs(*, address: str | None, as_json: bool, debug: bool) -> None:
    """List the jobs that isograd submitted to a cluster, the latest first."""
    with exit_codes(debug=debug):
        _commands(address, as_json=as_json, debug=debug).show_all()


@click.command(short_help="Tell how a job on a cluster fares.")
@ID
@ADDRESS
@AS_JSON
@DEBUG
def status(*, job: str, address: str | None, as_json: bool, debug: bool) -> None:
    """Tell how a job fares: epoch, errors, speed, time left, and where its run is."""
    with exit_codes(debug=debug):
        _commands(address, as_json=as_json, debug=debug).show(job)


@click.command(short_help="Print what a job on a cluster has printed.")
@ID
@ADDRESS
@click.option("--follow", is_flag=True, help="Go on as more comes, and end with the job's exit code.")
@AS_JSON
@DEBUG
def logs(*, job: str, address: str | None, follow: bool, as_json: bool, debug: bool) -> None:
    """Print what a job has printed."""
    with exit_codes(debug=debug):
        commands = _commands(address, as_json=as_json, debug=debug)
        if follow:
            commands.follow(job)
        else:
            commands.print_log(job)


@click.command(short_help="End a job on a cluster in good order.")
@ID
@ADDRESS
@click.option("--no-wait", is_flag=True, help="Ask for it only.")
@AS_JSON
@DEBUG
def stop(*, job: str, address: str | None, no_wait: bool, as_json: bool, debug: bool) -> None:
    """End a job after the round under way, with a checkpoint and the best weights, and wait for that."""
    with exit_codes(debug=debug):
        _commands(address, as_json=as_json, debug=debug).stop(job, wait=not no_wait)


def _commands(address: str | None, *, as_json: bool, debug: bool) -> "Commands":
    settled = settle(address)
    from cluster.job_commands import Commands  # brings Ray, which takes a second and reads the environment then

    return Commands(settled, address, as_json=as_json, debug=debug)


COMMANDS: Final = (submit, jobs, status, logs, stop)
