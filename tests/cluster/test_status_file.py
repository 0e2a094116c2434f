"""The file in which a run tells how it fares."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from cluster.cli import main
from cluster.status_file import RunStatus, StatusFile, read_status
from coordinator.dispatch import PoolError
from coordinator.job import JobSpec
from coordinator.records import EpochDone, Event, Finished, Noticed, RoundDone, Started
from worker.errors import JobError, UserError

Document = dict[str, dict[str, object]]
Jobs = Callable[..., JobSpec]


def read(path: Path) -> RunStatus:
    return read_status(path.read_bytes())


def test_it_holds_what_the_events_tell(blobs_job: Document, begin_job: Callable[..., Iterator[Event]], tmp_path: Path) -> None:
    blobs_job["data"]["validation"] = 0.2
    path, now = tmp_path / "status.json", 0.0
    with StatusFile(path, lambda: now) as file:
        assert read(path).state == "starting"
        for event in begin_job(blobs_job):
            now += 10
            file.show(event)
            status = read(path)
            match event:
                case Started():
                    assert (status.state, status.run_directory, status.host) == ("running", event.directory, event.host)
                    assert (status.epoch, status.epochs, status.round, status.rounds) == (1, 3, 0, event.most_rounds)
                    assert (status.loss, status.seconds_left) == (None, None)
                case RoundDone():
                    assert (status.round, status.workers) == (event.round, 2)
                    assert status.seconds_left is not None
                    if status.epoch == 1:
                        assert status.loss is not None
                        assert status.validation_loss is None
                case EpochDone(record=record):
                    assert record.validation is not None
                    assert (status.epoch, status.loss) == (record.epoch, record.train.loss)
                    assert (status.validation_loss, status.error_rate) == (record.validation.loss, record.validation.error_rate)
                case Finished(summary=summary):
                    assert (status.state, status.stop_reason, status.exit_code) == ("completed", "epochs", None)
                    assert (status.round, status.seconds_left) == (summary.rounds, 0)
                    assert status.weights_digest == summary.weights_digest
    assert read(path).exit_code == 0


def test_it_is_written_once_a_second_but_for_the_beginning_and_the_end(
    blobs_job: Document, run_job: Callable[..., tuple[list[Event], object]], tmp_path: Path
) -> None:
    events, _ = run_job(blobs_job)
    path, now = tmp_path / "status.json", 0.0
    with StatusFile(path, lambda: now) as file:
        for event in events[:-1]:
            file.show(event)
        assert read(path).round == 0
        now = 0.9
        file.show(Noticed(message="early"))
        assert read(path).notice is None
        now = 1.0
        file.show(Noticed(message="late"))
        assert read(path).notice == "late"
        assert read(path).round == 12
        file.show(events[-1])
        assert read(path).state == "completed"


@pytest.mark.parametrize(
    ("error", "state", "code", "sentence"),
    [
        (JobError("data.train", "is not there"), "failed", 2, "data.train: is not there"),
        (PoolError("no workers"), "failed", 4, "no workers"),
        (KeyboardInterrupt(), "interrupted", 130, "interrupted"),
        (ZeroDivisionError("x"), "failed", 1, "unexpected ZeroDivisionError: x; --debug shows where"),
    ],
)
def test_it_holds_what_ended_the_command(tmp_path: Path, error: BaseException, state: str, code: int, sentence: str) -> None:
    path = tmp_path / "status.json"
    with pytest.raises(type(error)), StatusFile(path):
        raise error
    status = read(path)
    assert (status.state, status.exit_code, status.error) == (state, code, sentence)


def test_a_run_that_was_over_keeps_its_state(
    blobs_job: Document, run_job: Callable[..., tuple[list[Event], object]], tmp_path: Path
) -> None:
    events, _ = run_job(blobs_job)
    path = tmp_path / "status.json"

    def linger() -> None:
        with StatusFile(path) as file:
            file.show(events[0])
            file.show(events[-1])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        linger()
    assert (read(path).state, read(path).exit_code) == ("completed", 130)


def test_train_keeps_one(small_job: Jobs, tmp_path: Path) -> None:
    small_job({})
    path = tmp_path / "status.json"
    command = ["train", str(tmp_path / "job.toml"), "--address", "none", "--run-dir", str(tmp_path / "run")]

    def train(*more: str) -> int:
        return CliRunner().invoke(main, [*command, "--status-file", str(path), *more]).exit_code

    assert train() == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (read(path).state, read(path).exit_code) == ("completed", 0)
    assert read(path).weights_digest == summary["weights_digest"]

    assert train() == 2
    status = read(path)
    assert (status.state, status.exit_code) == ("failed", 2)
    assert status.error is not None
    assert str(tmp_path / "run") in status.error

    assert train("--set", "optimizer.learning_rate=1e300", "--run-dir", str(tmp_path / "other")) == 3
    assert (read(path).state, read(path).exit_code) == ("diverged", 3)


def test_one_that_can_not_be_written_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--status-file: .*/none/status.json can't be written: No such file or directory"):
        StatusFile(tmp_path / "none" / "status.json").__enter__()


def test_a_disk_that_fills_up_does_not_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with StatusFile(tmp_path / "status.json") as file:
        monkeypatch.setattr("cluster.status_file.write_atomically", full)
        file.show(Noticed(message="x"))
