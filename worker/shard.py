"""One shard held in memory: its rows as arrays, and how chosen ones get to where a network reads them."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa

from worker.arrays import AnyArray, Floats, Integers
from worker.batch import Target
from worker.encoding import Encoding
from worker.messages import Setup, Split
from worker.sharding import shard_ranges
from worker.sources import Source, read_rows

EVALUATION_ROWS: Final = 1024
"""Rows evaluated at once. Fixed, since the shapes that BLAS sees must never depend on the workers."""


@dataclass(frozen=True)
class Rows:
    """Encoded rows. `targets` is as `Encoding.targets` returns it."""

    features_NF: Floats
    targets: AnyArray

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.features_NF)


@dataclass(frozen=True)
class Shard:
    """The rows of one shard: those to train on, and those to validate on, by their place in `rows`."""

    number: int
    training: Rows
    training_order: Integers
    validation: Rows
    validation_order: Integers


def read_shards(setup: Setup, shards: Iterable[int], split: Split = "train") -> dict[int, pa.Table]:
    """Read shards of the training dataset, or of the validation dataset where that is one of its own.

    Neighbours are read in one go, so that a row group that they share is decoded once.
    """
    source = setup.train if split == "train" or setup.validation is None else setup.validation
    ranges = shard_ranges(source.rows, setup.plan.shards)
    tables: dict[int, pa.Table] = {}
    for run in consecutive(shards):
        start = ranges[run[0]][0]
        table = read_rows(source, start, ranges[run[-1]][1], setup.columns.needed)
        tables |= {shard: table.slice(ranges[shard][0] - start, ranges[shard][1] - ranges[shard][0]) for shard in run}
    return tables


def consecutive(numbers: Iterable[int]) -> list[list[int]]:
    """Return the numbers in runs without a gap."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return runs


def make_shard(setup: Setup, number: int, table: pa.Table, validation: pa.Table | None, encoding: Encoding) -> Shard:
    """Encode a shard that was read. Raises DataError for rows that can't be encoded.

    Args:
        setup: the run.
        number: of the shard.
        table: its rows of the training dataset.
        validation: its rows of the validation dataset; None where there is none of its own.
        encoding: how rows become arrays.
    """
    training, held_out = setup.plan.split(number)
    rows = _encode(setup, setup.train, number, table, encoding)
    if setup.validation is None or validation is None:
        return Shard(number, rows, training, rows, held_out)
    validation_rows = _encode(setup, setup.validation, number, validation, encoding)
    return Shard(number, rows, training, validation_rows, np.arange(len(validation_rows)))


def _encode(setup: Setup, source: Source, number: int, table: pa.Table, encoding: Encoding) -> Rows:
    start, _ = shard_ranges(source.rows, setup.plan.shards)[number]

    def where(row: int) -> str:
        return source.where(start + row)

    dtype = setup.model.dtype
    return Rows(encoding.features(table, where, dtype), encoding.targets(table, where, dtype))


def gather(shard: Rows, chosen_B: Integers, x_BI: Floats, target: Target) -> None:
    """Copy the inputs and targets of the chosen rows to where a network reads them."""
    # mode="clip" lets numpy write straight into `out`; the places are known to be inside.
    shard.features_NF.take(chosen_B, axis=0, out=x_BI, mode="clip")
    fill_targets(shard.targets[chosen_B], target)


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


def split_of(shard: Shard, split: Split) -> tuple[Rows, Integers]:
    """Return a split's rows and which of them belong to it."""
    if split == "train":
        return shard.training, shard.training_order
    return shard.validation, shard.validation_order
