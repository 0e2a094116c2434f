"""What a person sees of errors: those of a run that is over, with what else it came to, and those of rows that were scored."""

from dataclasses import dataclass
from typing import Final

from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from cluster.wording import count, number, readable
from coordinator.export import MetricsSpec
from coordinator.records import Errors, Summary
from coordinator.scoring import ScoredRow
from coordinator.stopping import REASONS

STATUS_STYLE: Final = {"completed": "green", "interrupted": "yellow", "diverged": "red", "failed": "red"}


@dataclass(frozen=True)
class Trimmed:
    """A table without the blanks that fill up its last column: in a log or a file, they are none of its content."""

    table: Table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the lines."""
        for line in console.render_lines(self.table, options, pad=False):
            while line and not line[-1].text.strip():
                line.pop()
            yield from (*line[:-1], *(Segment(last.text.rstrip(), last.style) for last in line[-1:]), Segment.line())


def print_end(console: Console, summary: Summary, directory: str, metrics: MetricsSpec | None) -> None:
    """Print the closing table, and for how long the command goes on nevertheless."""
    print_summary(console, summary, directory)
    if metrics is not None and metrics.linger_seconds > 0:
        ends = "Ctrl-C once more" if summary.status == "interrupted" else "Ctrl-C"
        console.print(f"metrics stay for up to {metrics.linger_seconds:g} s; {ends} ends that", highlight=False, soft_wrap=True)


def print_summary(console: Console, summary: Summary, directory: str) -> None:
    """Print the closing table and what a person needs to go on."""
    colour = STATUS_STYLE[summary.status]
    reason = REASONS.get(summary.stop_reason, summary.stop_reason)
    ending = f"after {count(summary.rounds, 'round')}: {reason}"
    console.print(Text(summary.status, style=f"bold {colour}"), ending, highlight=False, soft_wrap=True)
    if summary.train is not None:
        errors = {"train": summary.train} | ({"validation": summary.validation} if summary.validation else {})
        console.print(error_table(errors))
    facts = Table.grid(padding=(0, 2))
    for name, value in (
        ("epochs", f"{summary.epochs}" + (f", weights of epoch {summary.kept_epoch} kept" if summary.kept_epoch else "")),
        ("rows trained", f"{summary.rows_trained:,} of {summary.rows_expected:,}"),
        *_failures(summary),
        *_speed(summary),
        ("time", f"{summary.seconds.startup:.1f} s to start, {summary.seconds.training:.1f} s to train"),
        ("weights", summary.weights_digest),
        ("directory", directory),
    ):
        facts.add_row(Text(name, style="dim"), Text(value, overflow="fold"))
    console.print(Trimmed(facts))


def _speed(summary: Summary) -> list[tuple[str, str]]:
    if not summary.rows_per_second:
        return []  # of a run that was over when it was taken up
    return [("speed", f"{summary.rows_per_second:,.0f} rows/s, a round takes {summary.round_seconds.p50 * 1e3:.3g} ms")]


def _failures(summary: Summary) -> list[tuple[str, str]]:
    if not summary.worker_failures:
        return []
    repeated = count(summary.slices_recomputed, "slice")
    return [("failures", f"{count(summary.worker_failures, 'worker')} lost, {repeated} computed again, no row lost or repeated")]


def error_table(errors: dict[str, Errors]) -> Table:
    """Return the errors as a table, a row a split."""
    table = Table()
    table.add_column(overflow="fold")
    classified = any(split.error_rate is not None for split in errors.values())
    for heading in ("Loss", "Mean abs. error", "Mean sq. error", *(["Error rate"] if classified else [])):
        table.add_column(heading, justify="right", overflow="fold")
    for name, split in errors.items():
        cells = [number(split.loss), number(split.mean_absolute_error), number(split.mean_squared_error)]
        table.add_row(name, *cells, *([f"{split.error_rate:.2%}"] if split.error_rate is not None else []))
    return table


def rows_table(rows: list[ScoredRow]) -> Table:
    """Return rows as a table, one below the other; the errors of a row are means over its outputs."""
    table = Table()
    for heading in ("Input", "Desired", "Model output", "Absolute error", "Square error"):
        table.add_column(heading, justify="right", overflow="fold")
    for row in rows:
        inputs = row.inputs[0] if len(row.inputs) == 1 else row.inputs
        table.add_row(*map(readable, (inputs, row.desired, row.output, row.absolute_error, row.squared_error)))
    return table
