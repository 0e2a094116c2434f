"""Rows of a table as arrays: inputs out of features, and targets. Fitted once, kept with the model.

Shapes: N rows, B rows of a block, F inputs, O outputs.
"""

from dataclasses import dataclass
from typing import Final, Self

import numpy as np
import pyarrow as pa

from worker.arrays import AnyArray, Floats
from worker.columns import Column, Columns
from worker.errors import DataError
from worker.inputs import CategoryInputs, Inputs, NumberInputs
from worker.model import ModelSpec
from worker.network import Network
from worker.scan import Scan
from worker.statistics import Counts
from worker.targets import Targets
from worker.values import Where, not_finite

BLOCK_ROWS: Final = 4096
"""Rows converted and scaled at once, at most."""

BLOCK_VALUES: Final = 1 << 17
"""Inputs converted and scaled at once, at most, unless a single row has more."""


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How a row of a table becomes inputs and targets.

    Attributes:
        inputs: what each column to learn from becomes.
        label: what there is to learn.
    """

    inputs: tuple[Inputs, ...]
    label: Targets

    @classmethod
    def fit(cls, columns: Columns, model: ModelSpec, scan: Scan) -> Self:
        """Return the encoding for training rows of which `scan` tells. Raises JobError where they don't fit the job."""
        inputs: list[Inputs] = []
        for feature, known in zip(columns.features, scan.features, strict=True):
            inputs.append(CategoryInputs.fit(feature, known) if isinstance(known, Counts) else NumberInputs.fit(feature, known))
        return cls(inputs=tuple(inputs), label=Targets.fit(columns, model, scan))

    @property
    def feature_columns(self) -> tuple[Column, ...]:
        """The columns to learn from."""
        return tuple(given.column for given in self.inputs)

    @property
    def categories(self) -> tuple[Column, ...]:
        """The columns whose values are categories or classes, not numbers."""
        classes = self.label.labels if self.label.classes is not None else ()
        return (*(given.column for given in self.inputs if isinstance(given, CategoryInputs)), *classes)

    @property
    def input_names(self) -> list[str]:
        """A name for each of the F inputs."""
        return [name for given in self.inputs for name in given.names]

    @property
    def outputs(self) -> int:
        """Outputs of a network for this encoding, O."""
        return self.label.outputs

    def network(self, spec: ModelSpec) -> Network:
        """Return the network for rows encoded like this. Raises JobError as `Network` does."""
        label = self.label
        return Network(spec, len(self.input_names), label.outputs, label.units, weighted=label.weighted)

    def row_bytes(self, dtype: str, raw: str | None = None) -> int:
        """Return what the inputs, raw ones of this type if it is given, and targets of a row take in memory."""
        return len(self.input_names) * np.dtype(raw or dtype).itemsize + self.label.room(1, dtype).nbytes

    def raw_type(self, schema: pa.Schema, dtype: str) -> str | None:
        """Return the type of the inputs in tables of this schema before scaling, if it is narrower than `dtype`, else None."""
        if any(isinstance(given, NumberInputs) and given.fill is not None for given in self.inputs):
            return None  # gaps become NaN, in float64
        empty, types = schema.empty_table(), [np.dtype(np.bool_)]  # the least type, and that of categories
        types += [
            part[:0].dtype
            for given in self.inputs
            if isinstance(given, NumberInputs)
            for part in given.parts(empty, lambda _: "")
        ]
        common = np.result_type(*types)
        return common.name if common.itemsize < np.dtype(dtype).itemsize else None

    def features(self, table: pa.Table, where: Where, dtype: str) -> Floats:
        """Return the inputs (N, F). Raises DataError as `fill` does."""
        x_NF = np.empty((table.num_rows, len(self.input_names)), dtype)
        self.fill(x_NF, table, where)
        return x_NF

    def fill(self, x_NF: Floats, table: pa.Table, where: Where) -> None:
        """Write the inputs.

        Raises:
            DataError: a value is missing where there must be one, or not a finite number in the array's type.
        """
        parts = [part for given in self.inputs for part in given.parts(table, where)]
        treatment = Treatment(self.inputs)
        finite_BF = np.empty((treatment.block_rows, x_NF.shape[1]), np.bool_)
        # A block at a time, so that it stays in the cache from the first pass over it to the last.
        for first in range(0, len(x_NF), treatment.block_rows):
            block_BF = x_NF[first : first + treatment.block_rows]
            raw_BF = treatment.room(block_BF)
            with np.errstate(over="ignore"):
                np.concatenate([part[first : first + len(block_BF)] for part in parts], axis=1, out=raw_BF, casting="same_kind")
            treatment.apply(raw_BF, block_BF)
            if not np.isfinite(block_BF, out=finite_BF[: len(block_BF)]).all():
                row, place = (int(index) for index in np.argwhere(~np.isfinite(block_BF))[0])
                raise self._not_finite(table, where, first + row, place, x_NF.dtype.name)

    def fill_raw(self, raw_NF: AnyArray, table: pa.Table, where: Where) -> None:
        """Write the inputs before scaling, in the type that `raw_type` returned. Raises DataError as `fill` does."""
        parts = [part[:] for given in self.inputs for part in given.parts(table, where)]
        np.concatenate(parts, axis=1, out=raw_NF, casting="safe")
        if not np.isfinite(raw_NF).all():
            row, place = (int(index) for index in np.argwhere(~np.isfinite(raw_NF))[0])
            raise self._not_finite(table, where, row, place, raw_NF.dtype.name)

    def _not_finite(self, table: pa.Table, where: Where, row: int, place: int, dtype: str) -> DataError:
        for given in self.inputs:
            width = len(given.names)
            if place < width:
                assert isinstance(given, NumberInputs), "categories are 0 or 1"
                return not_finite(table, given.numbers, where, row, place, dtype)
            place -= width
        raise AssertionError("the place lies beyond the inputs")

    def targets(self, table: pa.Table, where: Where, dtype: str) -> AnyArray:
        """Return what the rows are to be taught, and their weights if they have any, as `Targets.of` does."""
        return self.label.of(table, where, dtype)


class Treatment:
    """What is done to the values of all inputs, in float64: filling in, shifting and dividing; maybe nothing.

    Attributes:
        block_rows: rows to be treated at once, at most.
    """

    def __init__(self, inputs: tuple[Inputs, ...]) -> None:
        """Take what each input says."""
        self._fill_F = np.array([entry for given in inputs for entry in given.fills])
        self._shift_F = np.array([entry for given in inputs for entry in given.shifts])
        self._scale_F = np.array([entry for given in inputs for entry in given.scales])
        self._fills = not np.isnan(self._fill_F).all()
        self._scales = bool(self._shift_F.any() or (self._scale_F != 1.0).any())
        self.block_rows = max(1, min(BLOCK_ROWS, BLOCK_VALUES // len(self._fill_F)))
        self._scratch_BF = np.empty((self.block_rows if self._fills or self._scales else 0, len(self._fill_F)))

    def room(self, out_BF: Floats) -> Floats:
        """Return where to put the values of a block that are to end up, treated, in `out_BF`."""
        return self._scratch_BF[: len(out_BF)] if self._fills or self._scales else out_BF

    def apply(self, raw_BF: Floats, out_BF: Floats) -> None:
        """Write what is in the room for it, treated."""
        with np.errstate(over="ignore", invalid="ignore"):
            if self._fills:
                np.copyto(raw_BF, self._fill_F, where=np.isnan(raw_BF))
            if self._scales:
                np.subtract(raw_BF, self._shift_F, out=raw_BF)
                np.divide(raw_BF, self._scale_F, out=out_BF, casting="same_kind")
            elif raw_BF is not out_BF:
                np.copyto(out_BF, raw_BF, casting="same_kind")

    def convert(self, raw_NF: AnyArray, out_NF: Floats) -> None:
        """Write values of whatever type, treated."""
        for first in range(0, len(out_NF), self.block_rows):
            block_BF = out_NF[first : first + self.block_rows]
            room_BF = self.room(block_BF)
            np.copyto(room_BF, raw_NF[first : first + len(block_BF)])
            self.apply(room_BF, block_BF)
