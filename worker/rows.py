"""Rows as arrays, and how chosen ones get to where a network reads them."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final, Self

import numpy as np

from worker.arrays import AnyArray, Floats, Integers
from worker.batch import Target
from worker.encoding import Encoding, Treatment
from worker.segments import Handle, Segment

ALIGNED: Final = 64
"""Bytes of which the place of targets in a segment is a multiple."""

EVALUATION_ROWS: Final = 1024
"""Rows evaluated at once. Fixed, since the shapes that BLAS sees must never depend on the workers."""


@dataclass(frozen=True)
class Rows:
    """Encoded rows.

    Attributes:
        features_NF: inputs as the network reads them, or raw ones.
        targets: as `Encoding.targets` returns them.
        treatment: makes inputs of raw ones; None where there is nothing to be done.
        segment: that they are in; None where they are in this process's own memory.
    """

    features_NF: AnyArray
    targets: AnyArray
    treatment: Treatment | None = None
    segment: Segment | None = None

    @classmethod
    def room(cls, rows: int, encoding: Encoding, dtype: str) -> Self:
        """Return memory for so many rows."""
        return cls(np.empty((rows, len(encoding.input_names)), dtype), encoding.label.room(rows, dtype))

    @classmethod
    def kept(
        cls, rows: int, encoding: Encoding, dtype: str, raw: str | None, found: Handle | None, *, shared: bool
    ) -> Self | None:
        """Return memory for so many rows, one at least, or those that are found there.

        Args:
            rows: how many.
            encoding: how rows become arrays.
            dtype: of the network.
            raw: type of the inputs before scaling, if they are to be kept raw.
            found: rows of another process's; None makes new memory.
            shared: whether other processes can map new memory.

        Returns:
            None where the rows are no longer found there.
        """
        targets = encoding.label.room(0, dtype)
        width, kind = len(encoding.input_names), np.dtype(raw or dtype)
        start = -(-rows * width * kind.itemsize // ALIGNED) * ALIGNED
        size = start + rows * targets[:1].itemsize * int(np.prod(targets.shape[1:]))
        segment = Segment.create(size, raw, shared=shared) if found is None else Segment.attach(found, size)
        if segment is None:
            return None
        features_NF = segment.array((rows, width), kind, 0)
        treatment = Treatment(encoding.inputs) if raw else None
        return cls(features_NF, segment.array((rows, *targets.shape[1:]), targets.dtype, start), treatment, segment)

    def slice(self, first: int, last: int) -> Self:
        """Return some of the rows, in the same memory."""
        return replace(self, features_NF=self.features_NF[first:last], targets=self.targets[first:last])

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.features_NF)


def pieces(rows: Rows) -> Iterator[Rows]:
    """Yield rows in pieces as they are to be evaluated."""
    for first in range(0, len(rows), EVALUATION_ROWS):
        yield rows.slice(first, min(first + EVALUATION_ROWS, len(rows)))


def gather(rows: Rows, chosen_B: Integers, x_BI: Floats, target: Target) -> None:
    """Copy the inputs and targets of the chosen rows to where a network reads them."""
    if rows.treatment is not None:
        rows.treatment.convert(rows.features_NF.take(chosen_B, axis=0), x_BI)
    else:
        # mode="clip" lets numpy write straight into `out`; the places are known to be inside.
        rows.features_NF.take(chosen_B, axis=0, out=x_BI, mode="clip")
    fill_targets(rows.targets[chosen_B], target)


def copy(rows: Rows, x_BI: Floats, target: Target) -> None:
    """Copy the inputs and targets of all rows to where a network reads them."""
    if rows.treatment is not None:
        rows.treatment.convert(rows.features_NF, x_BI)
    else:
        np.copyto(x_BI, rows.features_NF)
    fill_targets(rows.targets, target)


def fill_targets(targets: AnyArray, target: Target) -> None:
    """Write targets of rows as outputs: values as they are, a single output's class as 0 or 1, else one 1 a row.

    Weights go with them, where rows have any.
    """
    t_OB = target.t_OB
    if target.w_B is not None:
        target.w_B[...] = targets["weight"]
        targets = targets["target"]
    if targets.ndim == 2:
        t_OB[...] = targets.T
    elif len(t_OB) == 1:
        t_OB[0] = targets
    else:
        t_OB.fill(0.0)
        t_OB[targets, np.arange(len(targets))] = 1.0
