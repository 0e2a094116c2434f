import errno
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from coordinator.local_folder import LocalFolder
from coordinator.locks import locked
from coordinator.records import Event, Finished, Noticed, Summary
from coordinator.run_directory import RunDirectoryError, hold

HOLD = """
import sys
from pathlib import Path
from coordinator.locks import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(path: Path) -> Iterator["subprocess.Popen[str]"]:
    """Another process that holds a lock until its input ends."""
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_lock_is_held_by_one_process_which_it_names(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with holder(path) as process:
        with pytest.raises(BlockingIOError) as error, locked(path):
            pass
        assert error.value.strerror == f"process {process.pid} on host {os.uname().nodename}"

        process.communicate()
        with locked(path) as held:
            assert held
    assert not path.exists()


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with holder(path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert path.exists()
        with locked(path) as held:
            assert held


def test_who_opened_the_file_before_it_was_deleted_takes_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, flock = tmp_path / ".lock", fcntl.flock
    with ExitStack() as first:
        first.enter_context(locked(path))

        def flock_late(descriptor: int, how: int) -> None:
            first.close()
            flock(descriptor, how)

        monkeypatch.setattr(fcntl, "flock", flock_late)
        with locked(path):
            monkeypatch.undo()
            with pytest.raises(BlockingIOError), locked(path):
                pass


def without_locks(*_: object) -> None:
    raise OSError(errno.ENOLCK, "No locks available")


def test_a_file_system_without_locks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", without_locks)
    with ExitStack() as held:
        (notice,) = hold(LocalFolder(tmp_path), held, 0.0, lambda: False)
    assert notice.message == f"{tmp_path} is on a file system without locks: nothing keeps a second run out of it"
    assert list(tmp_path.iterdir()) == []


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("kept")
    (tmp_path / ".lock").symlink_to(tmp_path / "precious")
    with ExitStack() as held, pytest.raises(RunDirectoryError):
        list(hold(LocalFolder(tmp_path), held, 0.0, lambda: False))
    assert (tmp_path / "precious").read_text() == "kept"


def test_a_run_that_another_process_has_is_refused_by_its_name(
    begin_job: Callable[..., Iterator[Event]], blobs_job: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coordinator.run.ASKED_SECONDS", 0.0)
    run = begin_job(blobs_job)
    next(run)
    with pytest.raises(RunDirectoryError) as error:
        next(begin_job(blobs_job, directory=tmp_path / "run-1", resume=True))
    assert str(error.value) == (
        f"--run-dir: {tmp_path / 'run-1'} is in use by another run (process {os.getpid()} on host {os.uname().nodename}); "
        "wait until that has ended, or give another directory"
    )
    *_, last = run
    assert isinstance(last, Finished)


def test_a_run_that_starts_again_waits_for_its_predecessor(
    begin_job: Callable[..., Iterator[Event]], blobs_job: dict[str, Any], tmp_path: Path
) -> None:
    def summary_of(run: Iterator[Event]) -> Summary:
        *_, last = run
        assert isinstance(last, Finished)
        return last.summary

    whole = summary_of(begin_job(blobs_job))
    predecessor = begin_job(blobs_job)
    next(predecessor)
    successor = begin_job(blobs_job, directory=tmp_path / "run-2", resume_if_begun=True)
    notice = next(successor)
    assert isinstance(notice, Noticed)
    assert notice.message.startswith(f"waiting until another run (process {os.getpid()} on host ")

    predecessor.close()  # type: ignore[attr-defined]
    assert summary_of(successor).weights_digest == whole.weights_digest
    assert not (tmp_path / "run-2" / ".lock").exists()


def test_who_waits_for_a_run_can_be_interrupted(tmp_path: Path) -> None:
    with locked(tmp_path / ".lock"), ExitStack() as held, pytest.raises(RunDirectoryError, match="in use by another run"):
        list(hold(LocalFolder(tmp_path), held, float("inf"), lambda: True))
