"""Weights and models on disk: safetensors and JSON, nothing that could run code when it is read."""

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file

from coordinator.folders import Address, Folder, open_folder, open_parent, parse_address, reason
from worker.arrays import Floats
from worker.csv_dialect import DEFAULT_CSV, CsvSpec
from worker.encoding import Encoding
from worker.errors import DataError, JobError
from worker.initial import initial_weights
from worker.model import Layout, ModelSpec
from worker.network import Network
from worker.stores import DEFAULT_STORAGE, StorageSpec

FORMAT: Final = 3
DESCRIPTION: Final = "model.json"
WEIGHTS: Final = "model.safetensors"
LIBRARIES: Final = ("isograd", "numpy", "pyarrow", "ray", "safetensors")


@dataclass(frozen=True, kw_only=True)
class ModelDescription:
    """model.json: all that is needed, beside the weights, to score raw tables."""

    format: int
    model: ModelSpec
    encoding: Encoding
    input_names: tuple[str, ...]
    weights_digest: str
    libraries: dict[str, str]
    csv: CsvSpec = DEFAULT_CSV


@dataclass(frozen=True)
class TrainedModel:
    """A model read back from a run directory; `csv` says how the CSV files of its training were written."""

    network: Network
    encoding: Encoding
    weights_P: Floats
    csv: CsvSpec = DEFAULT_CSV


@dataclass(frozen=True)
class _Format:
    """What is read first of a model.json, whatever else it may hold."""

    format: int


_ADAPTER = TypeAdapter(ModelDescription)
_FORMAT_ADAPTER = TypeAdapter(_Format)


def weights_digest(weights_P: Floats) -> str:
    """Return the SHA-256, in hexadecimal, of the parameters' little-endian bytes in the order of the layout."""
    contiguous_P = np.ascontiguousarray(weights_P, weights_P.dtype.newbyteorder("<"))  # no copy but where one is needed
    return hashlib.sha256(contiguous_P.data).hexdigest()


def safetensors_pieces(arrays: Mapping[str, Floats], metadata: Mapping[str, str] | None = None) -> Iterator[bytes | memoryview]:
    """Yield the bytes of a safetensors file piece by piece, the arrays where they are.

    The library's own `save` has two copies of all arrays in memory before the first byte is written. The format: the length of
    a header in JSON as 64 bits, little-endian; the header; the arrays in its order, without gaps.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, array in arrays.items():
        end = offset + array.nbytes
        header[name] = {"dtype": f"F{8 * array.itemsize}", "shape": list(array.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the arrays are aligned
    yield len(text).to_bytes(8, "little") + text
    for array in arrays.values():
        yield np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def save_model(
    folder: Folder, model: ModelSpec, encoding: Encoding, layout: Layout, weights_P: Floats, csv: CsvSpec = DEFAULT_CSV
) -> None:
    """Write model.safetensors and model.json into `folder`. Raises OSError where that can't be."""
    folder.make()
    folder.write(WEIGHTS, safetensors_pieces(layout.views(weights_P)))
    description = ModelDescription(
        format=FORMAT,
        model=model,
        encoding=encoding,
        input_names=tuple(encoding.input_names),
        weights_digest=weights_digest(weights_P),
        libraries={"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in LIBRARIES},
        csv=csv,
    )
    folder.write(DESCRIPTION, _ADAPTER.dump_json(description, indent=2) + b"\n")


def load_model(run_directory: Address, storage: StorageSpec = DEFAULT_STORAGE) -> TrainedModel:
    """Read a run's model. Raises DataError where it is missing, damaged or of another format."""
    folder = open_folder(run_directory, storage).folder("model")
    path = folder.at(DESCRIPTION)
    try:
        content = folder.read(DESCRIPTION)
        found = _FORMAT_ADAPTER.validate_json(content, strict=True).format
        if found != FORMAT:
            raise DataError(f"{path}: has format {found}, but this isograd reads format {FORMAT}; train again")
        description = _ADAPTER.validate_json(content, strict=True)
    except FileNotFoundError as error:
        raise DataError(f"{path}: can't be read: {reason(error)}; give the directory of a run that has ended") from error
    except OSError as error:
        raise DataError(f"{path}: can't be read: {reason(error)}") from error
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(str(part) for part in fault["loc"])
        raise DataError(f"{path}: is damaged or from another version: {where or 'file'}: {fault['msg']}") from error
    encoding = description.encoding
    network = encoding.network(description.model)
    weights_P = read_weights(folder, WEIGHTS, network.layout, description.model.dtype, DataError)
    if weights_digest(weights_P) != description.weights_digest:
        raise DataError(f"{folder.at(WEIGHTS)}: its weights are not those that {DESCRIPTION} was written for")
    return TrainedModel(network, encoding, weights_P, description.csv)


def starting_weights(model: ModelSpec, layout: Layout, seed: int, storage: StorageSpec = DEFAULT_STORAGE) -> Floats:
    """Return the parameters before the first round. Raises JobError where a file's do not fit the network."""
    if model.initial_weights is None or not model.reads_initial_weights:
        return initial_weights(model, layout, seed)
    key = "model.initial_weights"
    folder, name = open_parent(parse_address(model.initial_weights, key, to_write=False), storage)
    return read_weights(folder, name, layout, model.dtype, lambda problem: JobError(key, problem))


@contextmanager
def enough_memory(layout: Layout, model: ModelSpec) -> Iterator[None]:
    """Turn a lack of memory for parameters, or what is kept of each, into a JobError."""
    try:
        yield
    except MemoryError as error:
        gigabytes = layout.size * np.dtype(model.dtype).itemsize / 1e9
        raise JobError(
            "model.hidden",
            f"a network of {layout.size:,} parameters takes {gigabytes:,.0f} GB for its weights alone, for which this machine "
            "has no memory; use fewer or smaller layers",
        ) from error


def read_weights(folder: Folder, name: str, layout: Layout, dtype: str, fault: Callable[[str], Exception]) -> Floats:
    """Return the parameters (P,) of a safetensors file, raising `fault(problem)` where they don't fit the layout."""
    path = folder.at(name)
    try:
        with folder.local(name) as local:
            arrays = load_file(local)
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, AttributeError) as error:
        told = reason(error) if isinstance(error, OSError) else str(error) or type(error).__name__
        raise fault(f"{path}: can't be read as safetensors: {told}") from error
    wanted = {slot.name: slot.shape for slot in layout.slots}
    if set(arrays) != set(wanted):
        missing, extra = sorted(set(wanted) - set(arrays)), sorted(set(arrays) - set(wanted))
        what = f"lacks '{missing[0]}'" if missing else f"has '{extra[0]}', which the network has not"
        raise fault(f"{path}: {what}; the network has {', '.join(wanted)}")
    flat_P = np.empty(layout.size, dtype)
    for name, view in layout.views(flat_P).items():
        if arrays[name].shape != view.shape:
            raise fault(f"{path}: {name} has shape {_shape(arrays[name].shape)}, but the network needs {_shape(view.shape)}")
        with np.errstate(over="ignore"):
            view[...] = arrays[name]
        if not np.isfinite(view).all():
            raise fault(f"{path}: {name} has entries that are not finite {dtype} numbers")
    return flat_P


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))
