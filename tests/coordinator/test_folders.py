"""What holds for every folder, whatever it lies in: this machine, an S3 store, a store that renames."""

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import fs

from coordinator.folders import Folder, name_of, open_folder, open_parent, parse_address
from coordinator.local_folder import LocalFolder
from coordinator.stored_folder import PIECE, StoredFolder, TakenOverError
from worker.errors import JobError
from worker.stores import Place, StorageSpec

PART = 10 * 2**20
"""More than pyarrow sends to S3 in one piece is two."""


def renaming(path: Path, pause: Callable[[], None] = lambda: None, files: Any = None) -> StoredFolder:
    """A folder as in a store that renames what is written, which HDFS is: here, files of this machine."""
    return StoredFolder(Place(files or fs.LocalFileSystem(), str(path), f"hdfs://server{path}"), pause)


@pytest.fixture(params=["local", "stored", "renaming"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    if request.param == "local":
        return LocalFolder(tmp_path / "run")
    if request.param == "renaming":
        return renaming(tmp_path / "run")
    store = request.getfixturevalue("store")
    return open_folder(f"s3://{store.bucket}/runs/run", StorageSpec(endpoint=store.endpoint, attempts=2))


@pytest.fixture
def stored(store: Any) -> Folder:
    return open_folder(f"s3://{store.bucket}/runs/run", StorageSpec(endpoint=store.endpoint, attempts=2))


def test_what_was_written_is_there_under_its_name(folder: Folder) -> None:
    folder.make()
    folder.write("one", b"first")
    folder.write("two", iter([b"se", memoryview(b"cond")]))

    assert sorted(folder.names()) == ["one", "two"]
    assert (folder.read("one"), folder.read("two")) == (b"first", b"second")
    assert (folder.exists("two"), folder.exists("three")) == (True, False)
    with folder.local("two") as path:
        assert path.read_bytes() == b"second"
    assert folder.name == "run"
    assert folder.at("one") == f"{folder.address}/one"


def test_a_folder_in_a_folder_is_another(folder: Folder) -> None:
    folder.make()
    inner = folder.folder("inner")
    assert inner.names() == []
    inner.make()
    inner.make()
    inner.write("one", b"inside")

    assert inner.address == f"{folder.address}/inner"
    assert folder.names() == []
    assert inner.names() == ["one"]


def test_a_file_that_is_not_there_is_told_as_such(folder: Folder) -> None:
    folder.make()
    with pytest.raises(FileNotFoundError):
        folder.read("none")
    with pytest.raises(FileNotFoundError), folder.local("none") as path:
        path.read_bytes()
    folder.delete("none")


def test_a_file_is_replaced_and_deleted(folder: Folder) -> None:
    folder.make()
    folder.write("file", b"first")
    folder.write("file", b"")
    assert folder.read("file") == b""
    folder.delete("file")
    assert folder.names() == []


def test_a_large_file_comes_back_as_it_was(folder: Folder) -> None:
    content = bytes(range(256)) * ((2 * PART + PIECE) // 256) + b"end"
    folder.make()
    folder.write("large", [content[:7], memoryview(content)[7:]])

    with folder.local("large") as path:
        assert path.read_bytes() == content


def test_what_fails_while_it_is_written_leaves_the_old_file(folder: Folder) -> None:
    folder.make()
    folder.write("file", b"old")

    with pytest.raises(ZeroDivisionError), folder.replacing("file") as file:
        file.writelines(bytes([12 // number]) for number in (2, 1, 0))

    assert (folder.names(), folder.read("file")) == (["file"], b"old")
    with folder.replacing("file") as file:
        file.write(b"new")
    assert (folder.names(), folder.read("file")) == (["file"], b"new")


def test_a_file_is_claimed_once(folder: Folder) -> None:
    folder.check()
    folder.claim("file", b"first")
    with pytest.raises(FileExistsError):
        folder.claim("file", b"second")

    assert (folder.names(), folder.read("file")) == (["file"], b"first")


def test_of_many_who_claim_a_file_at_once_one_gets_it(folder: Folder) -> None:
    claimants = 6
    together = threading.Barrier(claimants)

    def claim(number: int) -> bool:
        together.wait()
        try:
            folder.claim("file", bytes([number]))
        except FileExistsError:
            return False
        return True

    with ThreadPoolExecutor(claimants) as threads:
        won = list(threads.map(claim, range(claimants)))

    assert sum(won) == 1
    assert (folder.names(), folder.read("file")) == (["file"], bytes([won.index(True)]))


def test_a_line_is_added_or_not_at_all(folder: Folder) -> None:
    folder.make()
    folder.write("lines", b"one\n")

    added = folder.append("lines", b"two\n")

    assert folder.read("lines") == (b"one\ntwo\n" if added else b"one\n")
    assert added == isinstance(folder, LocalFolder)


def test_a_local_folder_needs_what_it_lies_in(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(FileNotFoundError):
        LocalFolder(tmp_path / "none" / "run").make()
    with pytest.raises(FileExistsError):
        LocalFolder(tmp_path / "file").make()
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        LocalFolder(tmp_path).write("folder", b"")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.parametrize("request_", ["PUT", "POST"])
def test_an_upload_that_breaks_off_leaves_no_part_of_a_file(store: Any, stored: Folder, request_: str) -> None:
    content = [bytes(PART) for _ in range(3)]
    stored.write("large", b"old")
    store.fail(f"{request_} /{store.bucket}/runs/run/large", "503 Slow Down", 100)

    for name in ("large", "new"):
        store.fail(f"{request_} /{store.bucket}/runs/run/{name}", "503 Slow Down", 100)
        with pytest.raises(OSError, match="runs/run/"):
            stored.write(name, content)

    assert (stored.names(), stored.read("large")) == (["large"], b"old")


def test_a_short_failure_of_the_store_is_not_noticed(store: Any, stored: Folder) -> None:
    for request_ in ("PUT", "POST", "GET", "HEAD", "DELETE"):
        store.fail(f"{request_} /{store.bucket}", "503 Slow Down")
    stored.write("file", b"there")
    assert stored.read("file") == b"there"
    stored.delete("file")
    assert stored.names() == []


def test_a_store_that_takes_nothing_is_told_before_anything_begins(store: Any, stored: Folder) -> None:
    store.fail("/.probe-", "403 Forbidden", 100)
    store.fail(f"/{store.bucket}/runs/run", "403 Forbidden", 100)
    with pytest.raises(OSError, match="ACCESS_DENIED"):
        stored.check()


class Turns:
    """Lets claimants do one thing to their common files at a time, in a given order, and by turns when that is at its end."""

    def __init__(self, order: Iterable[int], claimants: int) -> None:
        self._order, self._present = list(order), list(range(claimants))
        self._changed = threading.Condition()

    def _next(self) -> int:
        while self._order and self._order[0] not in self._present:
            self._order.pop(0)
        return self._order[0] if self._order else self._present[0]

    def take(self, who: int, action: Callable[[], Any]) -> Any:
        with self._changed:
            assert self._changed.wait_for(lambda: self._next() == who, 60)
            try:
                return action()
            finally:
                if self._order:
                    self._order.pop(0)
                else:
                    self._present.append(self._present.pop(0))
                self._changed.notify_all()

    def leave(self, who: int) -> None:
        with self._changed:
            self._present.remove(who)
            self._changed.notify_all()


class TurnFiles:
    """Files that one claimant reaches when it is its turn."""

    type_name = "s3"  # what is written has its name at once

    def __init__(self, turns: Turns, who: int) -> None:
        self._turns, self._who, self._files = turns, who, fs.LocalFileSystem()

    def open_output_stream(self, path: str) -> Any:
        return self._turns.take(self._who, lambda: self._files.open_output_stream(path))

    def get_file_info(self, what: Any) -> Any:
        return self._turns.take(self._who, lambda: self._files.get_file_info(what))

    def delete_file(self, path: str) -> None:
        self._turns.take(self._who, lambda: self._files.delete_file(path))


def claim_in_turns(folder: Path, order: Iterable[int], claimants: int) -> None:
    """Claim a file by several at once, in a given order; assert that one of them gets it."""
    turns = Turns(order, claimants)
    folder.mkdir()

    def claim(who: int) -> bool:
        try:
            renaming(folder, lambda: turns.take(who, lambda: None), TurnFiles(turns, who)).claim("file", bytes([who]))
        except FileExistsError:
            return False
        finally:
            turns.leave(who)
        return True

    with ThreadPoolExecutor(claimants) as threads:
        won = list(threads.map(claim, range(claimants)))
    assert sum(won) == 1, (order, won)
    assert [(path.name, path.read_bytes()) for path in folder.iterdir()] == [("file", bytes([won.index(True)]))]


def test_two_who_claim_a_file_in_a_store_never_both_get_it_in_whatever_order(tmp_path: Path) -> None:
    steps = 10
    for number, first in enumerate(combinations(range(steps), steps // 2)):
        claim_in_turns(tmp_path / str(number), [int(step in first) for step in range(steps)], 2)


@settings(max_examples=100)
@given(order=st.lists(st.integers(0, 2), max_size=24))
def test_nor_do_three(tmp_path_factory: pytest.TempPathFactory, order: list[int]) -> None:
    claim_in_turns(tmp_path_factory.mktemp("claims") / "run", order, 3)


def test_a_claim_that_was_left_behind_does_not_keep_others_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = renaming(tmp_path / "run")
    folder.make()
    folder.write(".claim-0", b"")
    with pytest.raises(FileExistsError):
        folder.claim("file", b"")
    assert folder.names() == [".claim-0"]

    (tmp_path / "run" / ".claim-0").rename(tmp_path / "run" / ".claim-z")
    folder.claim("file", b"")
    assert sorted(folder.names()) == [".claim-z", "file"]

    folder.write(".claim-0", b"")
    monkeypatch.setattr("coordinator.stored_folder.CLAIM_SECONDS", -60.0)
    folder.claim("other", b"")
    assert sorted(folder.names()) == [".claim-0", ".claim-z", "file", "other"]


@pytest.mark.parametrize(
    ("text", "address", "name"),
    [
        ("/runs/a", Path("/runs/a"), "a"),
        ("file:///runs/a%20b/", Path("/runs/a b"), "a b"),
        ("s3://bucket/runs/a", "s3://bucket/runs/a", "a"),
        ("gs://bucket/runs//a//", "gs://bucket/runs//a", "a"),
        ("hdfs://server:8020/a", "hdfs://server:8020/a", "a"),
        ("s3://bucket", "s3://bucket", "bucket"),
        ("runs/a", Path.cwd() / "runs" / "a", "a"),
    ],
)
def test_a_path_or_a_uri_is_an_address(text: str, address: Path | str, name: str) -> None:
    found = parse_address(text, "--run-dir", to_write=True)
    assert (found, name_of(found)) == (address, name)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("http://host/runs", "accepted are"),
        ("s3://key:secret@bucket/run", "has credentials in it"),
        ("s3:///run", "names no bucket"),
        (
            "abfs://container@account/run",
            "nothing can be written to abfs://; accepted are a local path, file://, s3://, gs://, hdfs",
        ),
    ],
)
def test_what_is_no_address_to_write_to_is_refused_in_a_sentence(text: str, told: str) -> None:
    with pytest.raises(JobError, match=told) as error:
        parse_address(text, "--run-dir", to_write=True)
    assert str(error.value).startswith("--run-dir: ")
    assert "secret" not in str(error.value)


def test_a_model_may_be_read_where_nothing_can_be_written() -> None:
    assert parse_address("abfs://container@account/run", "RUN_DIR", to_write=False) == "abfs://container@account/run"


def test_the_parent_of_an_address_is_a_folder(tmp_path: Path, store: Any) -> None:
    local, name = open_parent(tmp_path / "a" / "b.parquet", StorageSpec())
    assert (local.address, name) == (str(tmp_path / "a"), "b.parquet")
    for folder in ("a", ""):
        address = f"s3://{store.bucket}/{folder}".rstrip("/")
        stored, name = open_parent(f"{address}/b.parquet", StorageSpec(endpoint=store.endpoint))
        assert (stored.at(name), name) == (f"{address}/b.parquet", "b.parquet")


@pytest.mark.parametrize("kind", ["stored", "renaming"])
def test_who_holds_a_folder_in_a_store_last_has_it(kind: str, store: Any, tmp_path: Path) -> None:
    address, storage = f"s3://{store.bucket}/runs/run", StorageSpec(endpoint=store.endpoint)
    first, second = (renaming(tmp_path / "run") if kind == "renaming" else open_folder(address, storage) for _ in range(2))
    inner = first.folder("inner")
    inner.make()
    with first.hold() as locks:
        assert locks
        inner.write("one", b"first")
        with second.hold():
            told = (
                f"^--run-dir: process {os.getpid()} on host .* has taken {first.address} over, and goes on with the run; this one"
            )
            with pytest.raises(TakenOverError, match=told):
                inner.write("one", b"late")
            with pytest.raises(TakenOverError, match=told):
                inner.delete("one")
            with pytest.raises(TakenOverError, match=told):
                first.write("two", b"late")
            second.write("two", b"second")
        with pytest.raises(TakenOverError, match="another process has taken"):
            first.write("two", b"late")
    assert (inner.read("one"), first.read("two"), first.names()) == (b"first", b"second", ["two"])
    first.write("two", b"by someone who holds nothing")
