import hashlib
import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from coordinator.local_folder import LocalFolder
from coordinator.model_files import (
    load_model,
    safetensors_pieces,
    save_model,
    starting_weights,
    weights_digest,
)
from worker.arrays import Floats
from worker.columns import Column, Numbers
from worker.encoding import Encoding
from worker.errors import DataError, JobError, UserError
from worker.inputs import CategoryInputs, NumberInputs
from worker.model import Layout, ModelSpec
from worker.targets import Targets
from worker.values import Label

# No decimal writes a third, so only shortest-round-trip digits bring the same float back.
AGE = NumberInputs(numbers=Numbers(Column("age", "integer")), fill=(0.1,), indicators=(0,), shift=(1 / 3,), scale=(1.0,))
PIXELS = NumberInputs(
    numbers=Numbers(Column("pixels", "number", 2)), fill=None, indicators=(), shift=(-0.1, 1e-300), scale=(2 / 3, 5e300)
)
WHEN = NumberInputs(
    numbers=Numbers(Column("when", "date"), ("weekday",), cyclical=True), fill=None, indicators=(), shift=(0, 0), scale=(1, 1)
)
CATEGORIES = [
    CategoryInputs(column=Column("job", "text"), categories=("a", "1"), rare=("b",), missing=False, gaps=True, fill="a"),
    CategoryInputs(column=Column("code", "integer"), categories=(1, 7), rare=(), missing=True, gaps=True),
    CategoryInputs(column=Column("flag", "boolean"), categories=(False, True), rare=(), missing=False, gaps=False),
]
LAYOUT = Layout((14, 4, 2), bias=True)
NAMES = ["layers.0.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias"]


def model_spec(dtype: str = "float32", **keys: Any) -> ModelSpec:
    return ModelSpec(task="classification", hidden=(4,), dtype=dtype, **keys)


def encoding_of(classes: tuple[Label, ...] = ("ant", "bee")) -> Encoding:
    label = Targets(labels=(Column("kind", "text"),), task="classification", classes=classes, weight=Column("w", "number"))
    return Encoding(inputs=(AGE, PIXELS, WHEN, *CATEGORIES), label=replace(label, class_weights=(1 / 3, 2.0)))


def weights_of(dtype: str = "float32") -> Floats:
    return np.random.default_rng(5).normal(size=LAYOUT.size).astype(dtype)


def saved(run: Path, dtype: str = "float32", classes: tuple[Label, ...] = ("ant", "bee")) -> Path:
    """Save a model as a run does, and return its folder."""
    run.mkdir()
    save_model(LocalFolder(run / "model"), model_spec(dtype), encoding_of(classes), LAYOUT, weights_of(dtype))
    return run / "model"


def message_of(error: UserError) -> str:
    assert len(str(error).splitlines()) == 1
    return str(error)


def parse_safetensors(content: bytes) -> dict[str, Floats]:
    """Read the format by its specification: the header's length, the header in JSON, and the arrays' bytes."""
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    types = {"F32": "<f4", "F64": "<f8"}
    return {
        name: np.frombuffer(data[slice(*entry["data_offsets"])], types[entry["dtype"]]).reshape(entry["shape"])
        for name, entry in header.items()
    }


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("classes", [("ant", "bee"), (0, 1), (False, True), ("0", "ä\n")])
def test_a_model_comes_back_as_it_was_saved(tmp_path: Path, dtype: str, classes: tuple[Label, ...]) -> None:
    saved(tmp_path / "run", dtype, classes)

    model = load_model(tmp_path / "run")

    np.testing.assert_array_equal(model.weights_P, weights_of(dtype), strict=True)
    assert model.encoding == encoding_of(classes)
    assert [type(label) for label in model.encoding.label.classes or ()] == [type(label) for label in classes]
    assert model.network.spec == model_spec(dtype)
    assert model.network.layout.sizes == LAYOUT.sizes


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_weights_are_named_arrays_of_plain_bytes_with_the_digest_of_those_bytes(tmp_path: Path, dtype: str) -> None:
    folder = saved(tmp_path / "run", dtype)

    arrays = parse_safetensors((folder / "model.safetensors").read_bytes())

    assert {name: array.shape for name, array in arrays.items()} == dict(zip(NAMES, [(4, 14), (4,), (2, 4), (2,)], strict=True))
    digest = hashlib.sha256(b"".join(arrays[name].tobytes() for name in NAMES)).hexdigest()
    assert json.loads((folder / "model.json").read_text())["weights_digest"] == weights_digest(weights_of(dtype)) == digest


def test_a_model_is_two_files_and_says_what_wrote_it(tmp_path: Path) -> None:
    folder = saved(tmp_path / "run")

    description = json.loads((folder / "model.json").read_text())

    assert sorted(path.name for path in folder.iterdir()) == ["model.json", "model.safetensors"]
    assert description["format"] == 3
    assert description["input_names"] == [
        *("age", "age[missing]", "pixels[0]", "pixels[1]", "when[weekday sin]", "when[weekday cos]"),
        *("job=a", "job=1", "job=(other)", "code=1", "code=7", "code=(missing)", "flag=False", "flag=True"),
    ]
    assert description["libraries"]["numpy"] == np.__version__


def test_the_digest_is_of_the_values_and_not_of_how_they_lie_in_memory() -> None:
    weights_P = weights_of()

    assert weights_digest(weights_P.astype(">f4")) == weights_digest(weights_P)
    assert weights_digest(np.repeat(weights_P, 2)[::2]) == weights_digest(weights_P)
    assert weights_digest(weights_P.astype("float64")) != weights_digest(weights_P)
    assert weights_digest(weights_P[::-1]) != weights_digest(weights_P)


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, sprung: Path) -> None:
        self._sprung = sprung

    def __reduce__(self) -> tuple[Callable[..., None], tuple[Path]]:
        return Path.touch, (self._sprung,)


@pytest.mark.parametrize("name", ["model.safetensors", "model.json"])
def test_a_pickle_in_place_of_a_file_is_refused_and_not_run(tmp_path: Path, name: str) -> None:
    folder = saved(tmp_path / "run")
    (folder / name).write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))

    with pytest.raises(DataError, match=name):
        load_model(tmp_path / "run")

    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "model.json"])
def test_a_file_cut_short_anywhere_is_refused(tmp_path: Path, name: str) -> None:
    path = saved(tmp_path / "run") / name
    content = path.read_bytes()

    for length in range(len(content.rstrip())):
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match=name) as refused:
            load_model(tmp_path / "run")
        message_of(refused.value)


def test_a_changed_byte_of_the_weights_is_refused_unless_they_are_still_the_same(tmp_path: Path) -> None:
    path = saved(tmp_path / "run") / "model.safetensors"
    content = path.read_bytes()
    messages: list[str] = []

    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x41]) + content[place + 1 :])
        try:
            np.testing.assert_array_equal(load_model(tmp_path / "run").weights_P, weights_of())
        except DataError as refused:
            messages.append(message_of(refused))

    assert all("model.safetensors" in message for message in messages)
    assert len(messages) >= weights_of().nbytes


@pytest.mark.parametrize("mask", [0x01, 0x10, 0x80])
def test_whatever_byte_of_the_description_changes_the_error_is_the_users(tmp_path: Path, mask: int) -> None:
    path = saved(tmp_path / "run") / "model.json"
    content = path.read_bytes()
    refusals = 0

    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ mask]) + content[place + 1 :])
        try:
            load_model(tmp_path / "run")
        except UserError as refused:
            message_of(refused)
            refusals += 1

    assert refusals > len(content) // 4


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        ({"format": 2}, "has format 2, but this isograd reads format 3; train again"),
        ({"format": "1"}, "format"),
        ({"weights_digest": "0" * 64}, "its weights are not those that model.json was written for"),
        ({"model": None}, "model"),
        ({"model": {"task": "magic"}}, "model.task"),
        ({"model": {"task": "classification", "hidden": [5]}}, "has shape 4×14, but the network needs 5×14"),
        ({"model": {"task": "classification", "hidden": []}}, "model.safetensors"),
        ({"model": {"task": "classification", "hidden": [4], "loss": "squared"}}, "model.loss"),
        ({"encoding": {}}, "encoding.inputs"),
    ],
)
def test_a_damaged_description_is_refused_by_what_is_wrong_in_it(tmp_path: Path, edit: dict[str, Any], told: str) -> None:
    path = saved(tmp_path / "run") / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | edit))

    with pytest.raises(DataError) as refused:
        load_model(tmp_path / "run")

    assert str(path.parent) in message_of(refused.value)
    assert told in message_of(refused.value)


@pytest.mark.parametrize("key", ["format", "model", "encoding", "input_names", "weights_digest", "libraries"])
def test_a_description_that_lacks_a_key_is_refused(tmp_path: Path, key: str) -> None:
    path = saved(tmp_path / "run") / "model.json"
    path.write_text(json.dumps({name: value for name, value in json.loads(path.read_text()).items() if name != key}))

    with pytest.raises(DataError, match=f"damaged or from another version: {key}"):
        load_model(tmp_path / "run")


@pytest.mark.parametrize("key", ["shift", "scale", "indicators"])
def test_a_description_that_scales_another_number_of_features_is_refused(tmp_path: Path, key: str) -> None:
    path = saved(tmp_path / "run") / "model.json"
    description = json.loads(path.read_text())
    description["encoding"]["inputs"][1][key] = [2]
    path.write_text(json.dumps(description))

    with pytest.raises(DataError, match=r"model\.json"):
        load_model(tmp_path / "run")


@pytest.mark.parametrize("lost", ["model", "model/model.json", "model/model.safetensors"])
def test_a_run_without_its_model_is_refused_by_the_file_that_is_missing(tmp_path: Path, lost: str) -> None:
    saved(tmp_path / "run")
    (tmp_path / "run" / lost).rename(tmp_path / "elsewhere")

    with pytest.raises(DataError, match="can't be read") as refused:
        load_model(tmp_path / "run")

    assert str(tmp_path / "run" / lost) in message_of(refused.value)


def arrays_with(**changed: object) -> dict[str, Any]:
    arrays: dict[str, Any] = {name: array.copy() for name, array in LAYOUT.views(weights_of()).items()}
    for name, array in changed.items():
        full_name = "layers." + name.replace("_", ".")
        if array is None:
            del arrays[full_name]
        else:
            arrays[full_name] = array
    return arrays


def not_finite(value: float) -> dict[str, Any]:
    return arrays_with(**{"1_bias": np.array([0.0, value], "float32")})


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        (arrays_with(**{"1_bias": None}), "lacks 'layers.1.bias'; the network has layers.0.weight, layers.0.bias"),
        (arrays_with(**{"2_weight": np.zeros((2, 2))}), "has 'layers.2.weight', which the network has not"),
        ({}, "lacks 'layers.0.bias'"),
        (arrays_with(**{"0_weight": np.zeros((3, 4))}), "layers.0.weight has shape 3×4, but the network needs 4×14"),
        (arrays_with(**{"0_bias": np.zeros((4, 1))}), "layers.0.bias has shape 4×1, but the network needs 4"),
        (not_finite(np.nan), "layers.1.bias has entries that are not finite float32 numbers"),
        (not_finite(-np.inf), "layers.1.bias has entries that are not finite float32 numbers"),
        (arrays_with(**{"1_bias": np.array([0.0, 1e300])}), "layers.1.bias has entries that are not finite float32 numbers"),
    ],
)
def test_initial_weights_that_do_not_fit_are_refused_by_array(tmp_path: Path, arrays: dict[str, Any], told: str) -> None:
    path = tmp_path / "start.safetensors"
    save_file(arrays, path)

    with pytest.raises(JobError) as refused:
        starting_weights(model_spec(initial_weights=str(path)), LAYOUT, 0)

    assert refused.value.key == "model.initial_weights"
    assert str(path) in message_of(refused.value)
    assert told in message_of(refused.value)


@pytest.mark.parametrize("content", [None, b"", b"\x08", b"not weights at all", b"\xff" * 64, b"\x02" + b"\0" * 7 + b"{}{}"])
def test_initial_weights_that_are_no_safetensors_are_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "start.safetensors"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(JobError) as refused:
        starting_weights(model_spec(initial_weights=str(path)), LAYOUT, 0)

    assert refused.value.key == "model.initial_weights"
    assert str(path) in message_of(refused.value)


def test_initial_weights_are_taken_in_the_precision_of_the_model(tmp_path: Path) -> None:
    path = tmp_path / "start.safetensors"
    save_file(LAYOUT.views(weights_of("float64")), path)

    found = starting_weights(model_spec("float32", initial_weights=str(path)), LAYOUT, 0)

    np.testing.assert_array_equal(found, weights_of("float64").astype("float32"), strict=True)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_pieces_make_the_file_that_the_library_would_write(tmp_path: Path, dtype: str) -> None:
    arrays = {"one": np.arange(6, dtype=dtype).reshape(2, 3), "none": np.empty(0, dtype), "two": np.arange(10, dtype=dtype)[::2]}
    path = tmp_path / "pieces.safetensors"

    path.write_bytes(b"".join(safetensors_pieces(arrays, {"said": 'a "word"'})))

    found = load_file(path)
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array, strict=True)
    with safe_open(path, framework="numpy") as file:
        assert file.metadata() == {"said": 'a "word"'}
