"""Taking up a run: which checkpoint, and whether it belongs to the job as it is now."""

from hashlib import sha256

from coordinator.checkpoint import Checkpoint, Origin, newest
from coordinator.folders import Folder, reason
from coordinator.job import JobSpec
from worker.columns import Columns
from worker.errors import JobError, UserError
from worker.scan import Scan
from worker.sources import Source
from worker.statistics import Counts, Statistics


def find_checkpoint(folder: Folder) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest whole checkpoint, and warnings about those that are not.

    Raises:
        UserError: there are checkpoints, but none of them is whole, or they can't be read now.
    """
    try:
        checkpoint, warnings = newest(folder)
    except OSError as error:
        raise UserError(f"--resume: {folder.address} can't be read: {reason(error)}; try again when it can") from error
    if checkpoint is None and warnings:
        raise UserError(f"--resume: no checkpoint is whole: {'; '.join(warnings)}; begin a new run in another directory")
    return checkpoint, warnings


def check_origin(checkpoint: Checkpoint, now: Origin, job: JobSpec) -> list[str]:
    """Return warnings about taking up a checkpoint.

    Raises:
        JobError: the job differs in a key that changes the result (the paths of the same data don't), the dataset has changed,
            or fewer rounds are asked for than are done.
    """
    before = checkpoint.origin
    for key in sorted(before.job.keys() | now.job.keys()):
        old, new = before.job.get(key), now.job.get(key)
        if old != new and (key not in now.files or before.files.get(key) != now.files[key]):
            other = f"{_shown(new)} " + ("has other files, and " if key in now.files else "")
            raise JobError(
                key, f"the run was begun with {_shown(old)}; {other}would change its result: set it back, or begin a new run"
            )
    if before.rows != now.rows:
        raise JobError(
            "data.train", f"had {before.rows:,} rows when the run was begun, and now has {now.rows:,}; restore the data"
        )
    if before.pieces != now.pieces:
        raise JobError("data.train", "had other files or row groups when the run was begun; restore the data")
    if before.content != now.content:
        raise JobError("data.train", "had other values in its columns when the run was begun; restore the data")
    warning = compare_fingerprints(now.fingerprint, before.fingerprint, "the run was begun on", job)
    return [warning] if warning else []


def files_of(source: Source) -> str:
    """Return a SHA-256 of a dataset's files in order, wherever they lie: name, columns in the names of folders, rows, bytes."""
    files = [
        (file.path.rpartition("/")[2], file.partitions, file.rows, file.version and file.version.size) for file in source.files
    ]
    return sha256(repr(files).encode()).hexdigest()


def content_of(columns: Columns, known: Scan) -> str:
    """Return a SHA-256 of what is known of the training rows: of each column its values' number and range, or its categories."""
    marks = [_marks(column) for column in (*known.features, *known.targets, known.classes, known.weights)]
    return sha256(repr((columns, marks)).encode()).hexdigest()


def _marks(known: Statistics | Counts | None) -> object:
    if isinstance(known, Statistics):  # whose sums depend on the kind of CPU, as does which of 0 and -0 is smaller
        return known.rows, known.count_V.tolist(), (known.low_V + 0.0).tolist(), (known.high_V + 0.0).tolist()
    return known and (sorted(known.of.items()), known.missing)


def compare_fingerprints(ours: dict[str, str], other: dict[str, str], what: str, job: JobSpec) -> str | None:
    """Return a warning where two fingerprints differ, None where they agree.

    Raises:
        JobError: they differ, and the job is strict about it.
    """
    differing = [key for key in sorted(ours.keys() | other.keys()) if ours.get(key) != other.get(key)]
    if not differing:
        return None
    told = ", ".join(f"{key} {other.get(key)} (here: {ours.get(key)})" for key in differing)
    if job.job.reproducible == "strict":
        raise JobError("job.reproducible", f"{what} {told}, where the bits may differ; use the same, or reproducible = 'warn'")
    return f"{what} {told}: the bits may differ"


def _shown(value: object) -> str:
    return "no value" if value is None else repr(value)
