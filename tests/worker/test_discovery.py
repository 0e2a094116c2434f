from pathlib import Path
from typing import Any

import pytest

from worker.discovery import find_files
from worker.errors import DataError, JobError
from worker.stores import DEFAULT_STORAGE, StorageSpec

FILES = (
    "a.parquet",
    "a.txt",
    "b/c.PARQUET",
    "b/d.pq",
    "b/deep/e.csv",
    "e[1].parquet",
    "e1.parquet",
    "year=2024/month=1/f.parquet",
    "year=2025/month=1/f.parquet",
    ".hidden.parquet",
    "_written.parquet",
    ".checkpoints/a.parquet",
    "_temporary/0/a.parquet",
    "with space/g%20.parquet",
)
ADDRESSES = (
    "",
    "a.parquet",
    "a.txt",
    "b",
    "b/",
    "b/*",
    "b/*.p*",
    "b/**",
    "**/*.parquet",
    "**/[b-d].*",
    "*/*.p*",
    "[ab]*",
    "e[1].parquet",
    "e[12].parquet",
    "e?.parquet",
    "?*.parquet",
    ".*.parquet",
    "year=2024",
    "year=*/*/*.parquet",
    "year=202?/month=1",
    "year=202?/month=1/*",
    "with space",
    "with space/g%20.parquet",
    "nothing",
    "nothing/*.csv",
    "b/nothing",
)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tree")
    for name in FILES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


def found(address: str, storage: StorageSpec = DEFAULT_STORAGE) -> list[tuple[str, tuple[str, ...]]]:
    """What is found below an address' first part, with the folders that count; an error's sentence, where it is one."""
    return [(file.place.address, file.folders) for file in find_files(address, "data.train", storage)]


def test_files_come_in_the_order_of_their_paths_with_the_folders_below_what_is_named(tree: Path) -> None:
    assert found(f"{tree}/year=*/month=1/*") == [
        (f"{tree}/year=2024/month=1/f.parquet", ("year=2024", "month=1")),
        (f"{tree}/year=2025/month=1/f.parquet", ("year=2025", "month=1")),
    ]
    assert found(f"{tree}/year=2024") == [(f"{tree}/year=2024/month=1/f.parquet", ("month=1",))]
    assert found(f"{tree}/year=2024/month=1/f.parquet") == [(f"{tree}/year=2024/month=1/f.parquet", ())]
    assert [Path(path).name for path, _ in found(f"{tree}/")] == [
        "a.parquet",
        "c.PARQUET",
        "d.pq",
        "e.csv",
        "e1.parquet",
        "e[1].parquet",
        "g%20.parquet",
        "f.parquet",
        "f.parquet",
    ]


def test_a_path_may_be_relative(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)

    assert found("year=2024/*/f.*") == [("year=2024/month=1/f.parquet", ("month=1",))]
    assert found("*1.parquet") == [("e1.parquet", ())]
    assert found("b") == [("b/c.PARQUET", ()), ("b/d.pq", ()), ("b/deep/e.csv", ("deep",))]


def test_a_file_uri_is_a_local_path(tree: Path) -> None:
    assert found(f"file://{tree}/with%20space/*") == [(f"{tree}/with space/g%20.parquet", ())]


def test_a_folder_that_leads_back_to_itself_is_searched_once(tmp_path: Path) -> None:
    (tmp_path / "a.csv").touch()
    (tmp_path / "again").symlink_to(tmp_path)

    assert [path for path, _ in found(str(tmp_path))] == [str(tmp_path / "a.csv")]


@pytest.fixture
def same_tree(store: Any) -> Any:
    """The tree in a store's folder `tree`."""
    for name in FILES:
        store.put(f"tree/{name}", name.encode())
    return store


@pytest.mark.parametrize("address", ADDRESSES)
def test_in_a_store_the_same_is_found_as_on_this_machine(address: str, tree: Path, same_tree: Any) -> None:
    def all_of(root: str, storage: StorageSpec) -> Any:
        try:
            return [(path.removeprefix(root), folders) for path, folders in found(f"{root}/{address}", storage)]
        except JobError as error:
            return str(error).replace(root, "")

    here = all_of(str(tree), DEFAULT_STORAGE)

    assert all_of(f"s3://{same_tree.bucket}/tree", StorageSpec(endpoint=same_tree.endpoint)) == here


def test_the_whole_of_a_bucket_is_a_folder(same_tree: Any) -> None:
    files = find_files(f"s3://{same_tree.bucket}", "data.train", StorageSpec(endpoint=same_tree.endpoint))

    assert files[0].place.address == f"s3://{same_tree.bucket}/tree/a.parquet"
    assert files[0].place.path == f"{same_tree.bucket}/tree/a.parquet"
    assert files[0].folders == ("tree",)
    with files[-1].place.filesystem.open_input_file(files[-1].place.path) as file:
        assert file.read() == b"year=2025/month=1/f.parquet"


def test_a_store_that_fails_is_told_of_in_one_sentence(store: Any) -> None:
    storage = StorageSpec(endpoint=store.endpoint, attempts=1)
    store.fail("GET", "503 Slow Down")

    with pytest.raises(DataError, match=r"^s3://bucket-\d+/folder: can't be read: .*HTTP status 503.*$"):
        find_files(f"s3://{store.bucket}/folder", "data.train", storage)
    with pytest.raises(JobError, match=r"^data.train: no such file or folder: s3://nobody-s/folder; accepted are "):
        find_files("s3://nobody-s/folder", "data.train", storage)


def test_an_address_that_is_no_good_is_refused_by_its_key() -> None:
    with pytest.raises(JobError, match=r"^--data: ftp://… is no address that can be read; accepted are "):
        find_files("ftp://host/rows.csv", "--data", DEFAULT_STORAGE)


def test_a_file_that_fits_a_glob_in_several_ways_is_found_once(tmp_path: Path) -> None:
    deep = tmp_path / "a" / "b" / "rows.csv"
    deep.parent.mkdir(parents=True)
    deep.touch()
    found = find_files(f"{tmp_path}/**/**/*.csv", "data.train", DEFAULT_STORAGE)
    assert [file.place.path for file in found] == [str(deep)]


@pytest.mark.parametrize("name", ["a.csv#1.csv", "a.csv?1.csv", "a.csv%1.csv"])
def test_a_file_uri_names_its_file_whole(name: str, tmp_path: Path) -> None:
    for there in ("a.csv", name):
        (tmp_path / there).touch()
    found = find_files(f"file://{tmp_path}/{name}", "data.train", DEFAULT_STORAGE)
    assert [file.place.path for file in found] == [f"{tmp_path}/{name}"]
