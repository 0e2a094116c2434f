"""The commands as a user calls them, without Ray where Ray makes no difference."""

import json
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import click
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from cluster.addresses import MODE
from cluster.cli import main
from cluster.display import print_start
from coordinator.job import JobSpec
from coordinator.records import Event, Started
from coordinator.watch import Watch

Jobs = Callable[..., JobSpec]


@pytest.fixture(autouse=True)
def _mode(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has forgotten what a command puts into the environment for a Ray that it has yet to import: here, that is another's."""
    monkeypatch.setenv(MODE, os.environ.get(MODE, ""))


def call(*arguments: object) -> Result:
    """Run the command line in this process."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def train(tmp_path: Path, *more: object) -> Result:
    return call("train", tmp_path / "job.toml", "--run-dir", tmp_path / "run", "--address", "none", *more)


@pytest.fixture
def trained(small_job: Jobs, tmp_path: Path) -> Path:
    small_job({})
    result = train(tmp_path)
    assert result.exit_code == 0, result.output
    return tmp_path / "run"


def test_help_names_every_command() -> None:
    output = call("--help").output
    assert "..." not in output.partition("Commands:")[2], "each is told of in a whole sentence"
    for command in ("train", "check", "evaluate", "predict"):
        assert command in output
        assert "Usage" in call(command, "--help").output


def test_train_prints_a_line_an_epoch_and_a_closing_table(small_job: Jobs, tmp_path: Path) -> None:
    small_job({})
    output = train(tmp_path).output
    assert "small" not in output.splitlines()[0] or "run:" in output
    assert [line.split()[1] for line in output.splitlines() if line.startswith("epoch ")] == ["1/3", "2/3", "3/3"]
    digest = json.loads((tmp_path / "run" / "summary.json").read_text())["weights_digest"]
    assert digest in output
    assert any(line.startswith("speed") for line in output.splitlines())


def test_a_misspelt_column_is_told_before_a_cluster_is_asked_for_room(small_job: Jobs, tmp_path: Path) -> None:
    small_job({})
    result = train(tmp_path, "--set", 'data.label="knid"', "--address", "nobody:1")
    assert (result.exit_code, "knid" in result.output) == (2, True), result.output


def test_the_closing_table_comes_before_the_lingering(small_job: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_job({})

    def linger(*_: object) -> None:
        click.echo("lingering")

    monkeypatch.setattr(Watch, "linger", linger)

    lines = train(tmp_path, "--set", "metrics.linger_seconds=60").output.splitlines()

    assert [line.split()[0] for line in lines if line.startswith(("completed ", "directory "))] == ["completed", "directory"]
    assert lines[-2:] == ["metrics stay for up to 60 s; Ctrl-C ends that", "lingering"]
    assert "metrics stay" not in train(tmp_path, "--run-dir", tmp_path / "other").output


def test_where_the_coordinator_is_belongs_to_its_addresses(
    blobs_job: dict[str, dict[str, object]], begin_job: Callable[..., Iterator[Event]]
) -> None:
    started = next(begin_job(blobs_job))
    assert isinstance(started, Started)

    def printed(host: str) -> list[str]:
        console = Console(file=StringIO())
        print_start(console, replace(started, host=host, metrics_url="http://127.0.0.1:9000/metrics"))
        return console.file.getvalue().splitlines()  # type: ignore[attr-defined]

    assert started.host == socket.gethostname()
    assert printed(started.host)[1] == "metrics: http://127.0.0.1:9000/metrics"
    assert printed("node-7")[1] == "metrics: http://127.0.0.1:9000/metrics on node-7"


def test_set_and_workers_override_the_file(small_job: Jobs, tmp_path: Path) -> None:
    small_job({})
    result = train(tmp_path, "--workers", 3, "--set", "training.epochs=1", "--set", "model.activation=tanh")
    assert result.exit_code == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["workers"], summary["epochs"]) == (3, 1)
    assert 'activation = "tanh"' in (tmp_path / "run" / "job.toml").read_text()


def test_the_resolved_job_trains_to_the_same_weights(trained: Path, tmp_path: Path) -> None:
    result = call("train", trained / "job.toml", "--run-dir", tmp_path / "again", "--address", "none")
    assert result.exit_code == 0
    first, second = (json.loads((run / "summary.json").read_text()) for run in (trained, tmp_path / "again"))
    assert first["weights_digest"] == second["weights_digest"]


def test_runs_models_and_predictions_may_be_in_a_store(
    small_job: Jobs, tmp_path: Path, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", store.endpoint)
    small_job({})
    run, output, data = f"s3://{store.bucket}/runs/a", f"s3://{store.bucket}/out.parquet", tmp_path / "rows.parquet"

    result = train(tmp_path, "--run-dir", f"{run}/")
    assert result.exit_code == 0, result.output
    assert [line.split() for line in result.output.splitlines() if line.startswith("directory")] == [["directory", run]]
    again = train(tmp_path, "--run-dir", run)
    assert again.exit_code == 2
    assert again.stderr.startswith(f"Error: --run-dir: {run} holds a run already; ")
    assert train(tmp_path, "--run-dir", run, "--resume").exit_code == 0

    assert "300 rows" in call("evaluate", run, "--data", data).output
    result = call("predict", run, "--data", data, "--output", output)
    assert result.output == f"300 predictions written to {output}\n"
    assert pq.read_table(f"{store.bucket}/out.parquet", filesystem=store.filesystem).num_rows == 300


def test_file_uris_are_paths(trained: Path, tmp_path: Path) -> None:
    data, output = tmp_path / "rows.parquet", tmp_path / "out of it.parquet"
    result = call("predict", f"file://{trained}", "--data", data, "--output", f"file://{tmp_path}/out%20of%20it.parquet")
    assert result.exit_code == 0, result.output
    assert pq.read_table(output).num_rows == 300


def test_check_prints_the_plan_and_writes_nothing(small_job: Jobs, tmp_path: Path) -> None:
    small_job({})
    before = sorted(tmp_path.iterdir())
    result = call("check", tmp_path / "job.toml", "--set", "training.batch_size=50")
    assert result.exit_code == 0
    for fact in ("240 to train, 60 to validate", "3 classes", "4-8-3: 67 parameters", "5 rounds an epoch, at most 15"):
        assert fact in result.output
    assert sorted(tmp_path.iterdir()) == before


def test_check_shows_the_first_and_last_of_very_many_columns_and_how_to_see_the_others(tmp_path: Path) -> None:
    columns = {f"x{place}": [float(place), 0.0] for place in range(70)}
    pq.write_table(pa.table(columns | {"y0": [0.0, 1.0], "y1": [1.0, 0.0]}), tmp_path / "wide.parquet")
    (tmp_path / "wide.toml").write_text(
        '[job]\nname = "wide"\n[data]\ntrain = "wide.parquet"\nlabel = ["y0", "y1"]\nshards = 1\n'
        '[model]\ntask = "regression"\n[training]\nepochs = 1\n[workers]\ncount = 1\n'
    )

    short, whole = (call("check", tmp_path / "wide.toml", *option).output for option in ([], ["--all-columns"]))

    def shown(output: str) -> list[str]:
        return [line.split()[0] for line in output.splitlines() if line.startswith((" x", " y"))]

    assert shown(whole) == [*columns, "y0", "y1"]
    assert shown(short) == [*list(columns)[:50], *list(columns)[-7:], "y0", "y1"]
    assert "… 13 more columns, which --all-columns shows" in short
    assert "more columns" not in whole


def test_scoring_tells_of_categories_that_training_has_not_shown(small_job: Jobs, tmp_path: Path) -> None:
    job = small_job({})
    rows = pq.read_table(job.data.train)
    pq.write_table(rows.append_column("town", pa.array(["Bonn", "Celle"] * 150)), job.data.train)
    assert train(tmp_path).exit_code == 0
    pq.write_table(rows.append_column("town", pa.array(["Bonn", "Emden"] * 150)), tmp_path / "new.parquet")

    scored = call("evaluate", tmp_path / "run", "--data", tmp_path / "new.parquet").output
    predicted = call("predict", tmp_path / "run", "--data", tmp_path / "new.parquet", "--output", tmp_path / "out.parquet").output

    told = "note: column 'town': 150 rows have a category that no training row has; taken as 0 in all of its inputs"
    assert told in scored.splitlines()
    assert told in predicted.splitlines()


def test_names_and_categories_that_look_like_markup_are_shown_as_they_are(tmp_path: Path) -> None:
    kinds = ["[red]", "[/]", ":cat:"]
    rows = pa.table({"[b]kind": kinds * 10, "[i]same": ["a"] * 30, "y": ["[u]yes", "[u]no", "[u]no"] * 10})
    pq.write_table(rows, tmp_path / "rows.parquet")
    pq.write_table(rows.set_column(0, "[b]kind", pa.array(["[green]"] * 30)), tmp_path / "new.parquet")
    (tmp_path / "job.toml").write_text(
        '[job]\nname = "marked"\n[data]\ntrain = "rows.parquet"\nlabel = "y"\nshards = 1\n'
        '[model]\ntask = "classification"\n[training]\nepochs = 1\n[workers]\ncount = 1\n'
    )
    new, out = tmp_path / "new.parquet", tmp_path / "out.parquet"

    checked, trained = call("check", tmp_path / "job.toml"), train(tmp_path)
    scored = call("evaluate", tmp_path / "run", "--data", new, "--table", 2)
    predicted = call("predict", tmp_path / "run", "--data", new, "--output", out)

    assert {result.exit_code for result in (checked, trained, scored, predicted)} == {0}
    for shown in ("[b]kind", "3: :cat:, [/], [red]", "2: [u]no, [u]yes", "note: column '[i]same' has"):
        assert shown in checked.output
    assert "note: column '[i]same' has" in trained.output
    assert "[green]" in scored.output
    assert "[u]yes" in scored.output
    assert all("note: column '[b]kind': 30 rows have a category" in result.output for result in (scored, predicted))


def test_evaluate_repeats_the_errors_and_shows_rows(trained: Path, tmp_path: Path) -> None:
    result = call("evaluate", trained, "--data", tmp_path / "rows.parquet", "--table", 2)
    assert result.exit_code == 0
    for heading in ("Input", "Desired", "Model output", "Absolute error", "Square error", "300 rows"):
        assert heading in result.output


def test_predict_keeps_the_order_and_the_other_columns(trained: Path, tmp_path: Path) -> None:
    result = call("predict", trained, "--data", tmp_path / "rows.parquet", "--output", tmp_path / "out.parquet")
    assert result.exit_code == 0
    table, given = pq.read_table(tmp_path / "out.parquet"), pq.read_table(tmp_path / "rows.parquet")
    assert table.column_names == ["kind", "prediction", "probability_a", "probability_b", "probability_c"]
    assert table.column("kind").equals(given.column("kind"))
    right = sum(a == b for a, b in zip(table.column("kind").to_pylist(), table.column("prediction").to_pylist(), strict=True))
    assert right > 100


def test_predict_never_overwrites_its_data(trained: Path, tmp_path: Path) -> None:
    before = (tmp_path / "rows.parquet").read_bytes()
    result = call("predict", trained, "--data", tmp_path / "rows.parquet", "--output", tmp_path / "rows.parquet")
    assert result.exit_code == 2
    assert (tmp_path / "rows.parquet").read_bytes() == before


BAD_ARGUMENTS: list[tuple[str, list[str], str]] = [
    ("missing data", ["--set", "data.train=nowhere.parquet"], "data.train: no such file or folder"),
    ("unknown column", ["--set", "data.label=knd"], "did you mean 'kind'?"),
    ("unknown key", ["--set", "model.hiden=[3]"], "did you mean 'hidden'?"),
    ("wrong type", ["--set", "training.epochs=soon"], "training.epochs: must be a whole number"),
    ("too many shards", ["--set", "data.shards=500"], "can't fill 500 shards"),
    ("too many workers", ["--workers", "7"], "7 workers can't share 6 shards"),
    (
        "float label",
        ["--set", "data.label=x0", "--set", "data.features=['x1']"],
        "floating-point numbers, which are no class labels",
    ),
    ("unwritable directory", ["--run-dir", "/dev/null/run"], "can't be written"),
    ("no form", ["--set", "epochs"], "section.key=value"),
    (
        "no address",
        ["--address", "head"],
        "--address: 'head' is no address to train at; accepted are local, none, auto, HOST:PORT and ray://HOST:PORT",
    ),
    ("address without an end", ["--address", "[::1:6379"], "--address: '[::1:6379' is no address to train at; "),
    (
        "address of a dashboard",
        ["--address", "http://127.0.0.1:8265"],
        "--address: 'http://127.0.0.1:8265' is no address to train at; ",
    ),
]


@pytest.mark.parametrize(("options", "expected"), [case[1:] for case in BAD_ARGUMENTS], ids=[case[0] for case in BAD_ARGUMENTS])
def test_the_users_mistakes_end_with_exit_2_and_one_sentence(
    small_job: Jobs, tmp_path: Path, options: list[str], expected: str
) -> None:
    small_job({})
    result = train(tmp_path, *options)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert expected in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_the_address_of_a_dashboard_in_the_environment_is_refused_by_its_name(
    small_job: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_job({})
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    result = train(tmp_path, "--address", "auto")
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: RAY_ADDRESS: 'http://127.0.0.1:8265' is no address to train at; accepted are ")


def test_a_run_directory_in_use_is_refused_and_left_alone(trained: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    result = train(tmp_path)
    assert result.exit_code == 2
    assert "holds a run already" in result.stderr
    assert {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()} == before


def test_the_same_command_again_ends_like_the_first(trained: Path, tmp_path: Path) -> None:
    before = (trained / "history.jsonl").read_bytes()
    result = train(tmp_path, "--auto-resume")
    assert result.exit_code == 0, result.output
    assert not any(line.startswith("speed") for line in result.output.splitlines()), "nothing was trained"
    assert (trained / "history.jsonl").read_bytes() == before


def test_a_run_to_go_on_with_has_to_be_named(small_job: Jobs, tmp_path: Path) -> None:
    small_job({})
    for option in ("--resume", "--auto-resume"):
        result = call("train", tmp_path / "job.toml", option)
        assert result.exit_code == 2
        assert f"{option}: needs --run-dir" in result.stderr


def test_a_diverging_run_exits_with_3_and_keeps_finite_weights(small_job: Jobs, tmp_path: Path) -> None:
    small_job({})
    result = train(tmp_path, "--set", "optimizer.name=sgd", "--set", "optimizer.learning_rate=1e30")
    assert result.exit_code == 3
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "diverged"


def test_evaluate_names_a_column_that_the_data_lacks(trained: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table({"x0": [1.0]}), tmp_path / "other.parquet")
    result = call("evaluate", trained, "--data", tmp_path / "other.parquet")
    assert result.exit_code == 2
    assert "has no column 'x1'" in result.stderr


def test_a_directory_without_a_run_is_refused(tmp_path: Path) -> None:
    result = call("evaluate", tmp_path, "--data", tmp_path)
    assert result.exit_code == 2
    assert "model.json: can't be read" in result.stderr


def test_a_port_in_use_is_told_before_anything_is_started(small_job: Jobs, tmp_path: Path) -> None:
    small_job({})
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = train(tmp_path, "--set", f"metrics.port={taken.getsockname()[1]}", "--address", "local")
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: metrics.port: ")
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_the_options_of_metrics_open_an_endpoint_and_win_over_the_file(small_job: Jobs, tmp_path: Path) -> None:
    small_job({})
    (tmp_path / "sd").mkdir()
    result = train(tmp_path, "--set", "metrics.sd_dir=elsewhere", "--metrics-sd-dir", tmp_path / "sd", "--dashboard")
    assert result.exit_code == 0, result.output
    addresses = dict(line.split(": ", 1) for line in result.output.splitlines() if line.startswith(("metrics: ", "dashboard: ")))
    assert addresses["metrics"] == addresses["dashboard"] + "metrics"
    assert list((tmp_path / "sd").iterdir()) == []
    assert f'sd_dir = "{tmp_path / "sd"}"' in (tmp_path / "run" / "job.toml").read_text()
