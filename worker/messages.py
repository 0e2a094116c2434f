"""What a worker is asked and what it answers: frozen, picklable, and silent about who asks."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

import pyarrow as pa

from worker.columns import Columns
from worker.encoding import Encoding
from worker.model import ModelSpec
from worker.network import ErrorSums, GradientSum
from worker.scan import Scan
from worker.segments import Handle
from worker.sharding import ShardPlan
from worker.sources import CsvCount, Source, SourceFile
from worker.stores import StorageSpec
from worker.tree import Node

Split = Literal["train", "validation"]
SPLITS: Final[tuple[Split, ...]] = ("train", "validation")
Holding = tuple[int, Split]
"""A split's rows of a shard."""
Holdings = dict[Holding, Handle]


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What every worker of a run must know; the same for all of them.

    Attributes:
        model: the network.
        columns: what a row is made of.
        plan: the rows of `train` over shards and rounds.
        train: the training dataset, with rows that `plan` may hold out.
        validation: a validation dataset of its own, cut into as many shards; None where there is none.
        memory_limit: bytes that the rows of a worker may take; None takes a share of the node's memory.
    """

    model: ModelSpec
    columns: Columns
    plan: ShardPlan
    train: Source
    validation: Source | None
    memory_limit: int | None = None


@dataclass(frozen=True)
class CountRows:
    """Count the rows of these CSV files, and look at columns whose guessed types are in doubt. Answer: what is found, by path.

    `doubtful` has the guesses for each file, by name.
    """

    files: tuple[SourceFile, ...]
    storage: StorageSpec
    doubtful: tuple[dict[str, pa.DataType], ...]


@dataclass(frozen=True)
class ScanShards:
    """Read these shards and say what the encoding must know of their training rows. Answer: a Scan a shard."""

    setup: Setup
    shards: tuple[int, ...]


@dataclass(frozen=True)
class PrepareShards:
    """Hold these shards, ready for rounds; let go of any other. Answer: where all rows are that are kept in memory.

    `found` tells where rows may be found on this machine already.
    """

    setup: Setup
    shards: tuple[int, ...]
    encoding: Encoding
    found: Mapping[Holding, Handle] = field(default_factory=dict)


@dataclass(frozen=True)
class TryValidation:
    """Read and encode these shards' rows to validate on, those apart that are kept, to see that it can be done. Answer: None."""

    shards: tuple[int, ...]


@dataclass(frozen=True)
class ComputeGradients:
    """Compute the round's slices of these shards. Answer: gradient sums over the maximal nodes they make up.

    `round` counts from the start of the run.
    """

    round: int
    shards: tuple[int, ...]


@dataclass(frozen=True)
class Evaluate:
    """Sum the errors over these shards' rows of a split. Answer: error sums over the maximal nodes they make up."""

    split: Split
    shards: tuple[int, ...]


Task = CountRows | ScanShards | PrepareShards | TryValidation | ComputeGradients | Evaluate
RowCounts = dict[str, CsvCount]
Scans = dict[int, Scan]
GradientSums = dict[Node, GradientSum | None]
ErrorSumsByNode = dict[Node, ErrorSums | None]
Answer = RowCounts | Scans | Holdings | GradientSums | ErrorSumsByNode | None
