"""What a submitted job takes along: isograd's code, the job, and rows if that is asked for."""

import importlib.metadata
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from glob import iglob
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import cluster
import coordinator
import worker
from cluster.submitted import needs
from coordinator.job import JobSpec, dump_job, with_paths
from worker.csv_dialect import CsvSpec
from worker.discovery import find_files
from worker.errors import JobError
from worker.memory import written_size
from worker.sources import open_source
from worker.stores import DEFAULT_STORAGE

MOST_BYTES: Final = 50_000_000
"""Of rows that are taken along: they stay in the memory of the cluster's head, and Ray takes no more than 100 MiB."""

JOB_FILE: Final = "job.toml"
ROWS: Final = ("data.train", "data.validation")
WEIGHTS: Final = "model.initial_weights"


@contextmanager
def packed(job: JobSpec, folder: Path, *, upload: bool, same_machine: bool) -> Iterator[Path]:
    """Pack a parcel for the length of a `with` block; enters with its folder.

    URIs and paths that are given in full mean the same on the cluster. Others are relative to the job file, and mean something
    on its machine alone.

    Args:
        job: the job, its paths as they were given.
        folder: that of the job file.
        upload: take along the rows and starting weights that are found here.
        same_machine: the cluster's head is this machine, so that it sees what is found here.

    Raises:
        JobError: the job names something that the cluster can't see, or that is too large to be taken along.
        DataError: rows that are to be taken along can't be read.
    """
    with TemporaryDirectory(prefix="isograd-") as temporary:
        parcel = Path(temporary)
        luggage = _Luggage(parcel, job.data.csv)

        def place(key: str, path: str) -> str:
            found, relative = str(folder / path), not Path(path).is_absolute()
            if upload and key in (*ROWS, WEIGHTS) and (relative or any(iglob(found, recursive=True))):
                return luggage.take(key, found)
            if relative and not same_machine:
                raise JobError(key, _unseen(key, path))
            return found

        placed = dump_job(with_paths(job, place))
        (parcel / JOB_FILE).write_text(placed, encoding="utf-8")
        _pack_code(parcel)
        yield parcel


def _unseen(key: str, path: str) -> str:
    problem = f"{path} is relative to the job file, whose folder the cluster does not see"
    if key in (*ROWS, WEIGHTS):
        return (
            f"{problem}; give a URI or a full path that all its machines see, such as --set {key}=/shared/{Path(path).name}, "
            f"or take up to {written_size(MOST_BYTES)} along with --upload-data"
        )
    return f"{problem}; give the full path that it has there"


@dataclass
class _Luggage:
    """Takes files along, up to a limit."""

    parcel: Path
    csv: CsvSpec
    bytes: int = field(default=0, init=False)

    def take(self, key: str, path: str) -> str:
        """Copy what is found at `path` into the parcel, in the order of its rows; return where it is in there."""
        files = _rows(path, key, self.csv) if key in ROWS else {Path(path): Path()}
        if not all(file.is_file() for file in files):
            raise JobError(key, f"no such file: {path}")
        self.bytes += sum(file.stat().st_size for file in files)
        if self.bytes > MOST_BYTES:
            raise JobError(
                key,
                f"--upload-data takes up to {written_size(MOST_BYTES)} along, and with {path} it would be "
                f"{written_size(self.bytes)}; put it where all machines of the cluster see it",
            )
        place = Path(key)
        (self.parcel / place).mkdir()
        if list(files.values()) == [Path()]:
            (file,) = files
            return str(self._copy(file, place / file.name))
        for number, (file, folder) in enumerate(files.items()):  # files of a folder are read in the order of their paths
            self._copy(file, place / f"{number:06d}" / folder / f"{number:06d}-{file.name}")
        return str(place)

    def _copy(self, file: Path, place: Path) -> Path:
        (self.parcel / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, self.parcel / place)
        return place


def _rows(path: str, key: str, csv: CsvSpec) -> dict[Path, Path]:
    """Return the files of a dataset in the order of its rows, each with the folders that make up columns."""
    open_source(path, key, csv=csv)
    found = find_files(path, key, DEFAULT_STORAGE)
    return {Path(file.place.path): Path(*(folder for folder in file.folders if "=" in folder)) for file in found}


def _pack_code(parcel: Path) -> None:
    for package in (cluster, coordinator, worker):
        assert package.__file__ is not None
        source = Path(package.__file__).parent
        shutil.copytree(source, parcel / source.name, ignore=shutil.ignore_patterns("__pycache__"))
    # By this, Python finds the version of isograd there, and what it needs.
    ours = importlib.metadata.distribution("isograd")
    information = parcel / f"isograd-{ours.version}.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(ours.read_text("METADATA") or "", encoding="utf-8")


def pins() -> list[str]:
    """Return what isograd needs beside Ray, as pip takes it, in the versions that are here."""
    return [f"{need.name}=={importlib.metadata.version(need.name)}" for need in needs() if need.name != "ray"]
