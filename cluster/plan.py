"""What a person sees of a job that is checked: its plan, and what becomes of each column."""

from typing import Final

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cluster.display import print_notice
from cluster.tables import Trimmed
from cluster.wording import count
from coordinator.check import JobPlan
from coordinator.column_plans import ColumnPlan
from coordinator.job import JobSpec
from worker.memory import written_size

FIRST: Final = 50
LAST: Final = 9
"""Columns that are shown of very many. The label's are the last ones."""


def print_plan(console: Console, job: JobSpec, plan: JobPlan, *, all_columns: bool = False) -> None:
    """Print what a job would do, what becomes of each column (of very many, the first and last ones), and what is odd."""
    console.print(Trimmed(plan_table(job, plan)))
    console.print(Trimmed(columns_table(plan.columns, all_columns=all_columns)))
    for finding in plan.findings:
        print_notice(console, finding)


def columns_table(columns: list[ColumnPlan], *, all_columns: bool) -> Table:
    """Return what becomes of each column as a table; unless `all_columns`, of very many the first and the last ones."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("Column", "Type"):
        table.add_column(heading, overflow="fold")
    table.add_column("Missing", justify="right", no_wrap=True)
    for heading in ("Values", "Becomes"):
        table.add_column(heading, overflow="fold")
    table.add_column("Width", justify="right", no_wrap=True)
    left_out = 0 if all_columns else len(columns) - FIRST - LAST
    for place, column in enumerate(columns):
        if left_out <= 1 or not FIRST <= place < len(columns) - LAST:
            _add_column(table, column)
        elif place == FIRST:
            table.add_row(f"… {left_out:,} more columns, which --all-columns shows")
    return table


def _add_column(table: Table, column: ColumnPlan) -> None:
    missing = Text(f"{column.missing:.2%}" if column.missing else "none", style="yellow" if column.missing else "dim")
    width = f"{column.width:,}"
    table.add_row(Text(column.name, style="bold"), Text(column.type, style="dim"), missing, column.values, column.becomes, width)


def plan_table(job: JobSpec, plan: JobPlan) -> Table:
    """Return the plan of a job as a table of facts."""
    classes = "" if plan.classes is None else f", {count(len(plan.classes), 'class', 'classes')}"
    rounds = count(plan.rounds_per_epoch, "round") + " an epoch"
    if plan.most_rounds is not None:
        rounds += f", at most {plan.most_rounds:,}"
    table = Table.grid(padding=(0, 2))
    for name, value in (
        ("job", job.job.name),
        ("data", f"{plan.files}{classes}"),
        ("rows", f"{plan.rows:,} to train, {plan.validation_rows:,} to validate"),
        ("shards", f"{plan.shards}, on {count(job.workers.most, 'worker')}"),
        ("order", _order(plan)),
        ("rounds", f"{rounds}, of up to {count(job.training.batch_size, 'row')}"),
        ("network", f"{'-'.join(map(str, plan.sizes))}: {plan.parameters:,} parameters, {job.model.dtype}"),
        ("layers", f"{job.model.activation if job.model.hidden else 'none'} hidden, {job.model.output_name} output"),
        ("loss", job.model.loss_name),
        ("optimizer", f"{job.optimizer.name}, learning rate {job.optimizer.learning_rate:g} {job.optimizer.schedule.name}"),
        ("memory", f"{written_size(plan.data_bytes)} of rows over all workers; {_kept(plan)}"),
        ("", f"beside them {written_size(plan.worker_bytes)} a worker"),
        ("", f"and {written_size(plan.coordinator_bytes)} for the coordinator"),
    ):
        table.add_row(Text(name, style="dim"), Text(value, overflow="fold"))
    return table


def _order(plan: JobPlan) -> str:
    if plan.window_rows is None:
        return "all rows of a shard shuffled together"
    return f"shuffled in windows of {plan.window_rows:,} rows over all shards"


def _kept(plan: JobPlan) -> str:
    kept = "all" if plan.kept == plan.share else "none" if plan.kept == 0 else f"{plan.kept:,} of {plan.share:,}"
    rest = "" if plan.kept == plan.share else ", the others streamed" if plan.kept else ", all streamed"
    kept += f" kept as {plan.raw}" if plan.raw is not None and plan.kept else " kept"
    return f"{kept} in the {written_size(plan.limit_bytes)} of a worker{rest}"
