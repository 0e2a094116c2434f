"""What the commands for jobs on a cluster do and print, once their options are read."""

import asyncio
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from time import sleep
from typing import Final

import click
from rich.console import Console

from cluster.display import make_table_console, print_notice
from cluster.following import Follower
from cluster.job_display import jobs_table, print_report
from cluster.job_reports import JobReport
from cluster.jobs import Jobs, connect
from cluster.options import Exit, fail
from cluster.parcel import packed, pins
from cluster.submission import Submission, check_id, new_id, run_directory
from coordinator.dispatch import PoolError
from coordinator.job import JobSpec

POLL_SECONDS: Final = 0.5


class Commands:
    """The commands, for one cluster."""

    def __init__(self, address: str, given: str | None, *, as_json: bool, debug: bool) -> None:
        """Connect to the dashboard at `address`; `given` is what the user gave for it. Raises as `connect` does."""
        if not debug:
            logging.disable(logging.CRITICAL)  # Ray's client tells of each step
        self._as_json = as_json
        self._out, self._notes = make_table_console(), Console(stderr=True, markup=False)
        self._again = "" if given is None else f" --address {given}"
        self._jobs: Jobs = connect(address)

    def submit(
        self,
        job: JobSpec,
        folder: Path,
        run_dir: str | None,
        given_id: str | None,
        options: Sequence[str],
        *,
        upload: bool,
        install: bool,
    ) -> str:
        """Submit a job, its paths relative to `folder`, and print where it goes; return its id."""
        self._jobs.check_version()
        same_machine = self._jobs.on_this_machine()
        name = check_id(given_id) if given_id is not None else new_id(job.job.name)
        directory = run_directory(run_dir, name, same_machine=same_machine)
        submission = Submission(id=name, job=job, directory=directory, options=options, packages=pins() if install else ())
        with packed(job, folder, upload=upload, same_machine=same_machine) as parcel:
            self._jobs.submit(**submission.request(parcel))
        if self._as_json:
            self._print_json({"id": name, "address": self._jobs.address, "run_directory": directory})
        else:
            self._print(f"{name} is submitted to {self._jobs.address}; its run goes to {directory} on the cluster")
        return name

    def print_commands(self, job: str) -> None:
        """Print what to do next with a job that nobody follows."""
        if not self._as_json:
            for command in (f"status {job}", f"logs {job} --follow", f"stop {job}"):
                self._print(f"  isograd {command}{self._again}")

    def follow(self, job: str) -> None:
        """Print a job's log as it comes; ends the process with the job's exit code, unless that is 0."""
        try:
            report = asyncio.run(Follower(self._jobs, self._print_piece, self._note).follow(job))
        except KeyboardInterrupt:
            self._note(f"{job} goes on; its log is taken up again, and it is ended, by")
            for command in (f"logs {job} --follow", f"stop {job}"):
                self._notes.print(f"  isograd {command}{self._again}", highlight=False, soft_wrap=True)
            sys.exit(Exit.INTERRUPTED)
        if self._as_json:
            self._print_json(report.flat())
        if report.exit_code and report.run.exit_code is None and report.error is not None:  # the log does not say it
            fail(f"{job} {report.state}: {report.error}", report.exit_code, debug=False)
        if report.exit_code:
            sys.exit(report.exit_code)

    def print_log(self, job: str) -> None:
        """Print what a job has printed so far."""
        self._print_piece(self._jobs.log(job))

    def show_all(self) -> None:
        """Print how each job fares, in a table."""
        reports = self._jobs.reports()
        if self._as_json:
            for report in reports:
                self._print_json(report.flat())
        elif not reports:
            self._print(f"no job was submitted to {self._jobs.address} by isograd")
        else:
            self._out.print(jobs_table(reports))

    def show(self, job: str) -> None:
        """Print how a job fares."""
        self._show(self._jobs.report(job))

    def stop(self, job: str, *, wait: bool) -> None:
        """End a job in good order.

        Raises:
            UserError: there is no such job.
            PoolError: the cluster can't end it.
        """
        asked = self._jobs.stop(job)
        report = self._jobs.report(job)
        if not asked and not report.over:
            raise PoolError(f"the cluster can't end {job}, which is {report.state}; try again in a moment")
        if not asked and not self._as_json:
            self._note(f"{job} had ended before")
        if asked and wait:
            with self._notes.status(f"{job} ends its round and writes a checkpoint"):
                while not report.over:
                    sleep(POLL_SECONDS)
                    report = self._jobs.report(job)
        self._show(report)

    def _show(self, report: JobReport) -> None:
        if self._as_json:
            self._print_json(report.flat())
        else:
            print_report(self._out, report)

    def _print(self, text: str) -> None:
        self._out.print(text, highlight=False, soft_wrap=True)

    def _print_piece(self, text: str) -> None:
        if self._as_json:
            self._print_json({"log": text})
        else:
            click.echo(text, nl=False)

    def _print_json(self, value: object) -> None:
        click.echo(json.dumps(value))

    def _note(self, text: str) -> None:
        print_notice(self._notes, text)
