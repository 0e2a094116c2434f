"""Writes the dashboard to stdout, as Grafana 11 takes it; `make dashboard` keeps isograd.json up to date with it."""

import json
import sys
from collections.abc import Iterator
from itertools import count
from typing import Final

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as shapes
from grafana_foundation_sdk.models import dashboard as model

from expressions import STATUSES, age, compute_time, gauge, last, quantile, rate, ready, slowest, starts, status, time_left
from panels import Panel, bars, curves, limited, listing, number, stacked, thresholds

SOURCE: Final = model.DataSourceRef(type_val="prometheus", uid="${datasource}")
COLOURS: Final = ("text", "orange", "red", "red", "green", "blue")
"""Of the statuses."""
OLD_CHECKPOINT: Final = 3600.0
"""Seconds after which a checkpoint is old; as in the alert."""


def now() -> Iterator[tuple[Panel, int]]:
    """Yield what is seen first; like all of these, each panel with its width."""
    results = {
        str(place): model.ValueMappingResult(text=name, color=colour)
        for place, (name, colour) in enumerate(zip(STATUSES, COLOURS, strict=True))
    }
    panel = number(status(), "none", "no run was seen").title("Status").mappings([model.ValueMap(options=results)])
    yield panel.description("What the run is, or how it ended. Out of sight: it was running when it was last scraped."), 4
    progress = bars(gauge("progress_ratio"), "no limit on epochs or rounds").title("Progress")
    yield progress.description("Share of the run's rounds that are done. A run with a stopping criterion may end sooner."), 8
    panel = number(time_left(), "s").title("Time left")
    yield panel.description("At the pace of the last five minutes, to the end of all rounds."), 3
    yield number(last("epoch"), "none").title("Epoch").description("Epochs that are over."), 3
    yield number(ready(), "none").title("Workers").description("Workers that compute."), 3
    panel = number(age("checkpoint_last_success_timestamp_seconds"), "s").title("Checkpoint")
    panel = panel.thresholds(thresholds("text", (OLD_CHECKPOINT, "orange")))
    yield panel.description("Time since the last checkpoint was written: the work that the coordinator's death would cost."), 3


def error() -> Iterator[tuple[Panel, int]]:
    """Yield the panels of what a run is about."""
    split = "{{run}} {{split}}"
    panel = curves("short", {split: gauge("loss", "run, split")}, log=True).title("Loss by epoch")
    yield panel.description("Mean over the last epoch's rows: train during its rounds, validation by the weights at its end."), 12
    panel = curves("short", {"{{run}}": gauge("round_loss")}, log=True).title("Loss by round")
    yield panel.description("Mean over the last round's rows; there before the first epoch is over."), 12
    panel = curves("percentunit", {split: gauge("error_ratio", "run, split")}).title("Error ratio").axis_soft_min(0)
    yield panel.description("Share of the last epoch's rows that were classified wrongly.").no_value("a regression has none"), 8
    for metric in ("mean_absolute_error", "mean_squared_error"):
        panel = curves("short", {split: gauge(metric, "run, split")}).axis_soft_min(0)
        yield panel.title(metric.replace("_", " ").capitalize()).description("Over rows and outputs of the last epoch."), 8


def optimisation() -> Iterator[tuple[Panel, int]]:
    """Yield the panels of what the optimizer does."""
    panel = curves("short", {"{{run}}": gauge("gradient_norm")}, log=True).title("Gradient norm")
    yield panel.description("Euclidean norm of the last round's gradient, before clipping. It soars before a run diverges."), 12
    panel = curves("short", {"{{run}}": gauge("learning_rate")}).title("Learning rate")
    yield panel.description("Of the last round, by the schedule."), 12


def speed() -> Iterator[tuple[Panel, int]]:
    """Yield the panels of how fast it goes, and where the time goes."""
    phase = "{{run}} {{phase}}"
    panel = curves("rowsps", {"{{run}}": rate("rows_total")}).title("Rows per second").axis_soft_min(0)
    yield panel.description("Rows trained in a second, evaluation and waiting included."), 12
    panel = stacked(curves("percentunit", {phase: rate("round_seconds_sum", "run, phase")})).title("Where the time goes")
    yield panel.description("Share of the time spent in each phase. Checkpoints are written beside training."), 12
    for share, name in ((0.5, "median"), (0.99, "99th percentile")):
        panel = curves("s", {phase: quantile(share)}, log=True).title(f"Time of a phase, {name}")
        yield panel.description("Estimated within the histogram's buckets."), 12


def workers() -> Iterator[tuple[Panel, int]]:
    """Yield the panels of who computes."""
    worker = "{{run}} worker {{worker}}"
    panel = curves("s", {worker: f"max by (run, worker) ({compute_time()})"}).title("Compute time by worker").axis_soft_min(0)
    yield panel.description("Time that each worker computes in a round, in the mean. A round waits for the slowest."), 12
    panel = curves("none", {"{{run}}": slowest()}).title("Slowest worker, against the others").decimals(2).axis_soft_min(0)
    panel = panel.no_value("needs two workers that compute").description(
        "How many times longer the slowest worker computes than the others do in the mean. It may just have more shards: "
        "the alert about stragglers compares the time of a shard, too."
    )
    yield panel, 12
    panel = stacked(curves("none", {"{{run}} {{state}}": gauge("workers", "run, state")})).title("Workers by state")
    yield panel.description("Ready, loading their rows, or missing of those that were asked for.").decimals(0).min(0), 8
    faults = ("worker_failures_total", "shards_moved_total", "slices_recomputed_total")
    counts = {"{{run}} " + metric.removesuffix("_total").replace("_", " "): gauge(metric) for metric in faults}
    panel = curves("none", counts).title("Failures, and what they cost").line_interpolation(shapes.LineInterpolation.STEP_AFTER)
    yield panel.description("Since the coordinator started. Shards also move when workers join.").decimals(0).min(0), 8
    panel = stacked(curves("none", {worker: gauge("worker_shards", "run, worker")})).title("Shards by worker")
    yield panel.description("Shards that each worker computes in every round.").decimals(0).min(0), 8


def run() -> Iterator[tuple[Panel, int]]:
    """Yield the panels of the run as such."""
    panel = limited(curves("s", {"{{run}}": age("checkpoint_last_success_timestamp_seconds")}), OLD_CHECKPOINT)
    panel = panel.title("Checkpoint age").axis_soft_min(0)
    yield panel.description("Time since the last checkpoint. The alert begins at the line, or later where epochs are long."), 8
    panel = curves("s", {"{{run}}": age("last_round_timestamp_seconds")}).title("Time since the last round").axis_soft_min(0)
    yield panel.description("Grows while a run evaluates, waits for workers or hangs, and after its end."), 8
    columns = {"run": "Run", "parameters": "Parameters", "shards": "Shards", "Value": "Began"}
    runs = listing(starts(), columns).title("Runs")
    yield runs.description("What is trained, and since when: from the coordinator's first round, perhaps after a checkpoint."), 8


def build() -> model.Dashboard:
    """Return the dashboard."""
    runs = (
        dashboard.QueryVariable("run")
        .label("Run")
        .datasource(SOURCE)
        .query({"qryType": 1, "query": "label_values(isograd_run_info, run)", "refId": "runs"})
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(model.VariableSort.ALPHABETICAL_DESC)
        .multi(True)  # noqa: FBT003
    )
    board = (
        dashboard.Dashboard("isograd")
        .uid("isograd")
        .description("Error, speed, workers and checkpoints of isograd's training runs.")
        .tags(["isograd"])
        .time("now-30m", "now")
        .refresh("5s")
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(runs)
    )
    numbers = count(1)
    for panels, height in ((now, 4), (error, 9), (optimisation, 8), (speed, 9), (workers, 9), (run, 8)):
        board = board.with_row(dashboard.Row(panels.__name__.capitalize()).id(next(numbers)))
        for panel, width in panels():
            board = board.with_panel(panel.id(next(numbers)).datasource(SOURCE).height(height).span(width))
    return board.build()


if __name__ == "__main__":
    json.dump(build(), sys.stdout, cls=JSONEncoder, indent=2)
    sys.stdout.write("\n")
