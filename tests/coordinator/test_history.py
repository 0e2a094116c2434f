import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from coordinator.history import HISTORY, History
from coordinator.local_folder import LocalFolder
from coordinator.records import EpochRecord


def epochs_in(folder: Path) -> list[int]:
    return [json.loads(line)["epoch"] for line in (folder / HISTORY).read_text().splitlines()]


class Full(LocalFolder):
    """A folder on a disk that is full at times: half a line still fits."""

    full = True

    def append(self, name: str, line: bytes) -> bool:
        if not self.full:
            return super().append(name, line)
        super().append(name, line[: len(line) // 2])
        raise OSError("full")


def test_lines_that_did_not_fit_are_made_up_for(tmp_path: Path, epoch_record: EpochRecord) -> None:
    folder = Full(tmp_path)
    history = History(folder)
    assert not history.add(epoch_record)
    folder.full = False
    assert not history.add(replace(epoch_record, epoch=2))  # behind what is missing
    history.write()
    assert epochs_in(tmp_path) == [1, 2]
    assert history.add(replace(epoch_record, epoch=3))
    assert epochs_in(tmp_path) == [1, 2, 3]


class Late(LocalFolder):
    """A folder to which a line is appended when another thread has had the time to write the whole history."""

    history: History
    other: threading.Thread

    def append(self, name: str, line: bytes) -> bool:
        self.other = threading.Thread(target=self.history.write)
        self.other.start()
        self.other.join(0.1)
        return super().append(name, line)


def test_no_line_is_there_twice_where_another_thread_writes_the_history_meanwhile(
    tmp_path: Path, epoch_record: EpochRecord
) -> None:
    folder = Late(tmp_path)
    folder.history = History(folder)
    for epoch in (1, 2, 3):
        folder.history.add(replace(epoch_record, epoch=epoch))
        folder.other.join()
        assert epochs_in(tmp_path) == list(range(1, epoch + 1))


@pytest.mark.parametrize("lines", [0, 2, 3])
def test_a_history_is_taken_up_cut_to_its_first_lines(tmp_path: Path, epoch_record: EpochRecord, lines: int) -> None:
    history = History(LocalFolder(tmp_path))
    for epoch in (1, 2, 3):
        history.add(replace(epoch_record, epoch=epoch))

    again = History.resume(LocalFolder(tmp_path), lines)
    assert [record.epoch for record in again.records()] == epochs_in(tmp_path) == [1, 2, 3][:lines]
    again.add(replace(epoch_record, epoch=9))
    assert epochs_in(tmp_path) == [*[1, 2, 3][:lines], 9]
