"""The job file: composed of the sections that the parts define, validated whole before anything starts."""

import json
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, cast, get_origin

import tomli_w
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from coordinator.checkpoint import CheckpointSpec
from coordinator.export import MetricsSpec
from coordinator.optimizers import OptimizerSpec
from coordinator.pool import WorkersSpec
from coordinator.stopping import StoppingSpec, TrainingSpec
from worker.data import DataSpec
from worker.errors import JobError, require
from worker.model import ModelSpec
from worker.stores import DEFAULT_STORAGE, StorageSpec


@dataclass(frozen=True, kw_only=True)
class IdentitySpec:
    """The `[job]` section.

    Attributes:
        name: names the run directory and the metrics' `run` label.
        seed: every random draw is a function of it.
        reproducible: what to do about a worker, or a resume, on another numpy build, BLAS kernel or kind of CPU, where the bits
            may differ: "warn" or "strict", which refuses it.
    """

    __pydantic_config__: ClassVar[Mapping[str, object]] = {"extra": "forbid"}

    name: str
    seed: int = 0
    reproducible: Literal["warn", "strict"] = "warn"

    def __post_init__(self) -> None:
        require(
            re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", self.name) is not None,
            "job.name",
            f"{self.name!r} can't name a folder; accepted are up to 100 of letters, digits, '.', '_', '-', no sign first",
        )
        require(0 <= self.seed < 2**63, "job.seed", f"must be from 0 to 2^63 - 1, got {self.seed}")


@dataclass(frozen=True, kw_only=True)
class JobSpec:
    """A validated job: one attribute a section of the file."""

    __pydantic_config__: ClassVar[Mapping[str, object]] = {"extra": "forbid"}

    job: IdentitySpec
    data: DataSpec
    model: ModelSpec
    optimizer: OptimizerSpec = field(default_factory=OptimizerSpec)
    training: TrainingSpec = field(default_factory=TrainingSpec)
    stopping: StoppingSpec = field(default_factory=StoppingSpec)
    checkpoint: CheckpointSpec = field(default_factory=CheckpointSpec)
    storage: StorageSpec = field(default_factory=StorageSpec)
    metrics: MetricsSpec | None = None
    workers: WorkersSpec = field(default_factory=WorkersSpec)

    def __post_init__(self) -> None:
        limited = self.training.epochs is not None or self.training.rounds is not None
        require(
            limited or self.stopping.any_given,
            "training.epochs",
            "nothing would end the run; set training.epochs or training.rounds, or a criterion in [stopping]",
        )
        require(
            limited or self.optimizer.schedule.name != "cosine",
            "optimizer.schedule.name",
            "cosine falls over a known number of rounds; set training.epochs or training.rounds",
        )
        require(
            not (self.stopping.all_correct and self.model.task == "regression"),
            "stopping.all_correct",
            "a regression classifies nothing; use stopping.target_loss",
        )
        require(
            self.model.task == "regression" or self.data.scale_target == "none",
            "data.scale_target",
            f"{self.model.task} learns classes, which have no scale; leave it out",
        )
        require(
            self.model.task != "regression" or self.data.class_weights == "none",
            "data.class_weights",
            "a regression has no classes; use data.weight",
        )
        require(
            self.model.loss_name != "binary_cross_entropy" or self.data.scale_target == "none",
            "data.scale_target",
            "binary_cross_entropy needs targets from 0 to 1 as they are; leave it out or use another loss",
        )
        require(
            self.workers.most <= self.data.shards,
            "workers.count" if self.workers.max is None else "workers.max",
            f"{self.workers.most} workers can't share {self.data.shards} shards; use at most {self.data.shards} workers, "
            "or more data.shards",
        )


_ADAPTER = TypeAdapter(JobSpec)

HARMLESS: Final = frozenset(
    {
        "workers",
        "metrics",
        "stopping",
        "checkpoint",
        "storage",
        "job.name",
        "job.reproducible",
        "data.memory_limit",
        "training.epochs",
        "training.rounds",
    }
)
"""Sections and keys that may change when a run is taken up again: they change when it ends, but not what it computes."""


def decisive(job: JobSpec) -> dict[str, Any]:
    """Return the keys that change the result, dotted, with their values as JSON has them."""
    flat = _flatten("", json.loads(_ADAPTER.dump_json(job)))
    # The cosine schedule falls over the whole run, so there the length of the run changes every round.
    harmless = HARMLESS - ({"training.epochs", "training.rounds"} if job.optimizer.schedule.name == "cosine" else set())
    return {key: value for key, value in flat.items() if key not in harmless and key.partition(".")[0] not in harmless}


def _flatten(prefix: str, value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {key: leaf for name, inner in value.items() for key, leaf in _flatten(f"{prefix}.{name}".lstrip("."), inner).items()}


def load_job(path: Path, overrides: Mapping[str, object]) -> JobSpec:
    """Read and validate a job file; paths in it become absolute, relative to the file. Raises JobError as `read_job` does."""
    folder = path.resolve().parent
    return with_paths(read_job(path, overrides), lambda _, path: str(folder / path))


def read_job(path: Path, overrides: Mapping[str, object]) -> JobSpec:
    """Read and validate a job file; paths in it stay as they are written.

    Args:
        path: the TOML file.
        overrides: values by dotted key (`training.epochs`), which replace the file's.

    Raises:
        JobError: the file can't be read, or a key is unknown, missing, of the wrong type, out of range or contradictory.
    """
    try:
        document: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise JobError(str(path), f"can't be read: {reason}; give the path of a job file in TOML") from error
    except tomllib.TOMLDecodeError as error:
        raise JobError(str(path), f"is not valid TOML: {error}") from error
    for key, value in overrides.items():
        _override(document, key, value)
    return parse_job(document)


def with_paths(job: JobSpec, resolve: Callable[[str, str], str]) -> JobSpec:
    """Return the job with `resolve`, called with the key and the path, applied to each file and folder in it; URIs stay."""

    def resolved(key: str, path: str) -> str:
        return path if "://" in path else resolve(key, path)

    data, model, metrics = job.data, job.model, job.metrics
    data = replace(data, train=resolved("data.train", data.train))
    if isinstance(data.validation, str):
        data = replace(data, validation=resolved("data.validation", data.validation))
    if model.initial_weights is not None and model.reads_initial_weights:
        model = replace(model, initial_weights=resolved("model.initial_weights", model.initial_weights))
    return replace(job, data=data, model=model, metrics=metrics.with_paths(resolved) if metrics is not None else None)


def storage_of(job_file: Path) -> StorageSpec:
    """Return how the job of a run reaches stores; the default without the job. Raises JobError as `load_job` does."""
    return load_job(job_file, {}).storage if job_file.exists() else DEFAULT_STORAGE


def parse_job(document: Mapping[str, Any]) -> JobSpec:
    """Validate a job given as nested tables. Raises JobError for the first fault."""
    try:
        # As JSON, strict validation still takes arrays for tuples and whole numbers for floats, but no text for numbers.
        return _ADAPTER.validate_json(json.dumps(document, default=str), strict=True)
    except ValidationError as error:
        # A misspelt key shows up as a missing one too: the unknown one is what the user wrote.
        faults = sorted(error.errors(include_url=False), key=lambda fault: fault["type"] != "unexpected_keyword_argument")
        raise _job_error(faults[0]) from error


def dump_job(job: JobSpec) -> str:
    """Return the job as TOML, every default filled in; keys without a value are left out."""
    return tomli_w.dumps(cast(dict[str, Any], _without_none(asdict(job))))


def parse_override(text: str) -> tuple[str, object]:
    """Split 'section.key=value'; the value is read as TOML, and as text where it is none. Raises JobError."""
    key, equals, value = text.partition("=")
    key = key.strip()
    require(bool(equals) and "." in key, f"--set {text}", "must have the form section.key=value, such as training.epochs=5")
    try:
        return key, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key, value.strip()


def _override(document: dict[str, Any], key: str, value: object) -> None:
    *tables, last = key.split(".")
    place = document
    for table in tables:
        place = place.setdefault(table, {})
        require(isinstance(place, dict), key, f"'{table}' is no table of the job file")
    place[last] = value


def _without_none(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_none(inner) for key, inner in value.items() if inner is not None}
    return value


_TYPES: Mapping[str, str] = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "dataclass_type": "a table of keys",
    "dict_type": "a table of keys",
}


def _job_error(fault: ErrorDetails) -> JobError:
    location = [part for part in fault["loc"] if part not in ("str", "float", "int", "tuple[str, ...]", "constrained-str")]
    key = ".".join(str(part) for part in location if not isinstance(part, int))
    key += "".join(f"[{part}]" for part in location if isinstance(part, int))
    match fault["type"]:
        case "value_error":
            inner = fault["ctx"]["error"]
            return inner if isinstance(inner, JobError) else JobError(key, str(inner))
        case "unexpected_keyword_argument":
            return JobError(key, _unknown_key(location))
        case "missing":
            what = "section" if len(location) == 1 else "key"
            return JobError(key, f"this {what} is missing; every job needs it")
        case "literal_error":
            accepted = fault["ctx"]["expected"].replace(" or ", ", ")
            close = get_close_matches(str(fault["input"]), re.findall(r"'([^']*)'", accepted), 1)
            hint = f"; did you mean '{close[0]}'?" if close else ""
            return JobError(key, f"{fault['input']!r} is not accepted; accepted: {accepted}{hint}")
        case kind if kind in _TYPES:
            return JobError(key, f"must be {_accepted_type(location, _TYPES[kind])}, got {_shown(fault['input'])}")
    return JobError(key, f"{fault['msg']}, got {_shown(fault['input'])}")


def _accepted_type(location: Sequence[str | int], named: str) -> str:
    unions: dict[tuple[str, ...], str] = {
        ("data", "label"): "a column name or a list of them",
        ("data", "validation"): "a share of the rows or a path",
    }
    return unions.get(tuple(str(part) for part in location[:2]), named)


def _shown(value: object) -> str:
    names = {str: "text", bool: "true/false", int: "number", float: "number", list: "list", dict: "table"}
    return f"the {names.get(type(value), 'value')} {json.dumps(value)}"


def _unknown_key(location: Sequence[str | int]) -> str:
    spec: object = JobSpec
    tables = iter(location[:-1])
    for part in tables:
        types = {entry.name: entry.type for entry in fields(cast(Any, spec))}
        kind = types[str(part)]
        spec = next((kind for kind in _candidates(kind) if is_dataclass(kind)), None)
        if get_origin(kind) is dict:
            next(tables)  # the name of an entry
    known = [entry.name for entry in fields(cast(Any, spec))]
    close = get_close_matches(str(location[-1]), known, 1, cutoff=0.5)
    what = "section" if len(location) == 1 else "key"
    return f"unknown {what}; " + (f"did you mean '{close[0]}'? " if close else "") + f"Known are {', '.join(known)}"


def _candidates(kind: Any) -> list[Any]:
    return [kind, *getattr(kind, "__args__", ())]
