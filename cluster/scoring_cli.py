"""The commands that put a trained model to use."""

from pathlib import Path
from typing import Final

import click
from rich.console import Console

from cluster.display import make_console, make_table_console, print_notice
from cluster.options import DEBUG, exit_codes
from cluster.tables import error_table, rows_table
from cluster.wording import count
from coordinator.folders import parse_address
from coordinator.job import storage_of
from coordinator.model_files import TrainedModel, load_model
from coordinator.scoring import evaluate as evaluate_model
from coordinator.scoring import predict as predict_with_model
from worker.blas import one_thread
from worker.stores import DEFAULT_STORAGE, StorageSpec

RUN = click.argument("run_directory", metavar="RUN_DIR")
DATA = click.option(
    "--data", required=True, metavar="PATH", help="A file, folder or glob of Parquet, Arrow IPC or CSV; a path or a URI."
)


@click.command(short_help="Print the errors of a model on labelled data.")
@RUN
@DATA
@click.option(
    "--table", type=click.IntRange(min=0), default=0, metavar="N", help="Also print the first N rows with their errors."
)
@DEBUG
def evaluate(*, run_directory: str, data: str, table: int, debug: bool) -> None:
    """Print the errors of a run's model on a labelled dataset."""
    with exit_codes(debug=debug), one_thread():
        model, storage = _open_run(run_directory)
        evaluation = evaluate_model(model, data, table, storage)
        console = make_table_console()
        if evaluation.table:
            console.print(rows_table(evaluation.table))
        console.print(error_table({count(evaluation.rows, "row"): evaluation.errors}))
        _print_findings(console, evaluation.findings)


@click.command()
@RUN
@DATA
@click.option("--output", required=True, metavar="OUT.parquet", help="Parquet file to write, or the URI of one.")
@DEBUG
def predict(*, run_directory: str, data: str, output: str, debug: bool) -> None:
    """Score a dataset with a run's model.

    Writes, row by row, the columns that are no features, then the prediction, and for classes their probabilities.
    """
    with exit_codes(debug=debug), one_thread():
        written = parse_address(output, "--output", to_write=True)
        model, storage = _open_run(run_directory)
        predictions, console = predict_with_model(model, data, written, storage), make_console()
        console.print(f"{predictions.rows:,} predictions written to {output}", highlight=False, soft_wrap=True)
        _print_findings(console, predictions.findings)


def _open_run(run_directory: str) -> tuple[TrainedModel, StorageSpec]:
    """Return a run's model, and how its job reaches stores; where it lies in a store itself, that is up to the environment."""
    address = parse_address(run_directory, "RUN_DIR", to_write=False)
    storage = storage_of(address / "job.toml") if isinstance(address, Path) else DEFAULT_STORAGE
    return load_model(address, storage), storage


def _print_findings(console: Console, findings: list[str]) -> None:
    for finding in findings:
        print_notice(console, finding)


COMMANDS: Final = (evaluate, predict)
