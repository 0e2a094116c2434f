"""What a person sees of jobs on a cluster: a table of them, and all that is known of one."""

from datetime import datetime
from time import time

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cluster.job_reports import JobReport
from cluster.status_file import RunStatus
from cluster.tables import STATUS_STYLE
from cluster.wording import clock, count, number
from coordinator.stopping import REASONS

STYLES = STATUS_STYLE | {"pending": "dim", "starting": "cyan", "running": "cyan", "stopped": "red"}


def jobs_table(reports: list[JobReport]) -> Table:
    """Return jobs as a table, one below the other."""
    table = Table()
    for heading in ("Job", "State", "Submitted"):
        table.add_column(heading, overflow="fold")
    for heading in ("Epoch", "Loss", "Validation", "Rows/s", "Left"):
        table.add_column(heading, justify="right", overflow="fold")
    for report in reports:
        run = report.run
        table.add_row(
            report.id,
            Text(report.state, style=STYLES[report.state]),
            _moment(report.submitted),
            _of(run.epoch, run.epochs),
            _number(run.loss),
            _number(run.validation_loss),
            "" if run.rows_per_second is None else f"{run.rows_per_second:,.0f}",
            "" if report.over or run.seconds_left is None else clock(run.seconds_left),
        )
    return table


def print_report(console: Console, report: JobReport) -> None:
    """Print all that is known of a job."""
    state = Text(report.state, style=f"bold {STYLES[report.state]}")
    ended = f", exit code {report.exit_code}" if report.over else ""
    console.print(Text.assemble(f"{report.id}: ", state, ended), soft_wrap=True)
    for name, value in _facts(report):
        console.print(Text.assemble((f"{name:<11}", "dim"), value), soft_wrap=True)


def _facts(report: JobReport) -> list[tuple[str, str]]:
    run = report.run
    on_host = f" on {run.host}" if run.host is not None else ""
    facts = [
        ("progress", _progress(run)),
        ("errors", _errors(run)),
        ("speed", _speed(run)),
        ("failures", f"{count(run.worker_failures, 'worker')} lost" if run.worker_failures else ""),
        ("submitted", _moment(report.submitted)),
        ("time", _time(report)),
        ("reason", REASONS.get(run.stop_reason, run.stop_reason) if run.stop_reason is not None else ""),
        ("weights", run.weights_digest or ""),
        ("directory", (run.run_directory or "") + on_host),
        # The endpoint ends with the run.
        ("metrics", "" if report.over or run.metrics_url is None else run.metrics_url + on_host),
        ("dashboard", "" if report.over or run.dashboard_url is None else run.dashboard_url + on_host),
        ("note", "" if report.over else run.notice or ""),
        ("error", report.error or ""),
    ]
    return [(name, value) for name, value in facts if value]


def _progress(run: RunStatus) -> str:
    if run.round is None:
        return ""
    return f"epoch {_of(run.epoch, run.epochs)}, round {_of(run.round, run.rounds)}"


def _errors(run: RunStatus) -> str:
    parts = [("loss", run.loss), ("validation", run.validation_loss)]
    shown = [f"{name} {number(value)}" for name, value in parts if value is not None]
    return "  ".join(shown + ([f"error {run.error_rate:.2%}"] if run.error_rate is not None else []))


def _speed(run: RunStatus) -> str:
    if run.rows_per_second is None or run.workers is None:
        return ""
    return f"{run.rows_per_second:,.0f} rows/s on {count(run.workers, 'worker')}"


def _time(report: JobReport) -> str:
    if report.submitted is None:
        return ""
    # The cluster's clock may be ahead.
    taken = clock(max((report.ended or time()) - report.submitted, 0))
    left = report.run.seconds_left
    return taken if report.over or left is None else f"{taken} so far, {clock(left)} left"


def _of(done: int | None, most: int | None) -> str:
    if done is None:
        return ""
    return f"{done:,}" if most is None else f"{done:,}/{most:,}"


def _number(value: float | None) -> str:
    return "" if value is None else number(value)


def _moment(seconds: float | None) -> str:
    return "" if seconds is None else f"{datetime.fromtimestamp(seconds).astimezone():%Y-%m-%d %H:%M:%S}"
