"""Finding the files of a dataset: a file, a folder or a glob, on this machine or in a store."""

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from glob import glob, has_magic
from pathlib import Path, PurePosixPath

import pyarrow as pa
from pyarrow import fs

from worker.errors import DataError, JobError, first_line
from worker.formats import format_of
from worker.stores import Place, StorageSpec, check_address, is_remote, locate


@dataclass(frozen=True)
class Found:
    """A file.

    Attributes:
        place: where it is.
        folders: names of the folders that it lies in, from the one that was named, or the fixed part of a glob, on.
    """

    place: Place
    folders: tuple[str, ...]


def find_files(address: str, key: str, storage: StorageSpec) -> list[Found]:
    """Return the files of a dataset in a fixed order, that of their paths.

    Args:
        address: of a file, a folder or a glob: a path or a URI.
        key: of the job file, for errors.
        storage: how stores are reached.

    Raises:
        JobError: at `key`, where the address is no good or nothing is found.
        DataError: a store can't be asked.
        UserError: a store can't be reached.
    """
    check_address(address, key)
    place = locate(address, storage)
    if is_remote(address):
        try:
            there, base, paths = _find_in_store(place)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{address}: can't be read: {first_line(error)}") from error
    else:
        there, base, paths = _find_here(place.path)
    if not paths:
        what = "no files in" if there else "no such file or folder:"
        raise JobError(
            key, f"{what} {address}; accepted are Parquet, Arrow IPC/Feather and CSV files, a folder or a glob of them"
        )
    return [Found(place.at(path), PurePosixPath(path).relative_to(base).parts[:-1]) for path in sorted(paths)]


def _find_here(path: str) -> tuple[bool, str, list[str]]:
    """Return whether there is such a folder, the folder that names count from, and the paths of the files."""
    if has_magic(path) and not Path(path).exists():
        # As a set, since a path that fits a pattern of several ** in several ways is found as often.
        found = [file for file in set(glob(path, recursive=True)) if Path(file).is_file()]
        return False, str(PurePosixPath(*_fixed(path))), found
    if Path(path).is_dir():
        found = [str(file) for file in Path(path).rglob("*") if file.is_file() and _wanted(PurePosixPath(file).relative_to(path))]
        return True, path, found
    return False, str(Path(path).parent), [path] if Path(path).is_file() else []


def _find_in_store(place: Place) -> tuple[bool, str, list[str]]:
    """Return what `_find_here` does."""
    path = place.path
    kind = place.filesystem.get_file_info(path).type
    if kind == fs.FileType.File:
        return False, str(PurePosixPath(path).parent), [path]
    if kind == fs.FileType.Directory:
        return True, path, [file for file in _listed(place, path) if _wanted(PurePosixPath(file).relative_to(path))]
    if not has_magic(path):
        return False, path, []
    base = "/".join(_fixed(path))
    patterns = PurePosixPath(path).relative_to(base).parts
    return False, base, [file for file in _listed(place, base) if _matches(PurePosixPath(file).relative_to(base).parts, patterns)]


def _listed(place: Place, folder: str) -> Iterator[str]:
    selector = fs.FileSelector(folder, allow_not_found=True, recursive=True)
    return (info.path for info in place.filesystem.get_file_info(selector) if info.type == fs.FileType.File)


def _fixed(path: str) -> list[str]:
    """Return the parts of a glob's path before the first that is a pattern."""
    parts = list(PurePosixPath(path).parts)
    return parts[: next(place for place, part in enumerate(parts) if has_magic(part))]


def _matches(parts: tuple[str, ...], patterns: tuple[str, ...]) -> bool:
    """Return whether a path matches a pattern as `glob` has it: * within a part, ** across parts, neither of them hidden ones."""
    if not patterns:
        return not parts
    if patterns[0] == "**" and _matches(parts, patterns[1:]):
        return True
    if not parts or (parts[0].startswith(".") and not patterns[0].startswith(".")):
        return False
    if patterns[0] == "**":
        return _matches(parts[1:], patterns)
    return fnmatchcase(parts[0], patterns[0]) and _matches(parts[1:], patterns[1:])


def _wanted(path: PurePosixPath) -> bool:
    """Return whether a file of a folder is of a known format, and neither it nor a folder around it is hidden."""
    return format_of(path.name) is not None and not any(part.startswith((".", "_")) for part in path.parts)
