"""A worker: holds shards and answers tasks about them. It knows neither Ray nor the other workers."""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Final

import numpy as np

from worker.arrays import Floats
from worker.batch import CACHED_SHAPES, Batch
from worker.encoding import Encoding
from worker.memory import memory_limit
from worker.messages import (
    Answer,
    ComputeGradients,
    CountRows,
    ErrorSumsByNode,
    Evaluate,
    GradientSums,
    Holdings,
    PrepareShards,
    RowCounts,
    Scans,
    ScanShards,
    Setup,
    Split,
    Task,
    TryValidation,
)
from worker.network import ErrorSums, GradientSum
from worker.reading import Placed, ShardData, read_shards
from worker.rows import copy
from worker.scan import scan_rows
from worker.shard import Shards
from worker.sources import count_rows
from worker.streams import Purpose, stream
from worker.tree import Additions, Node, additions, children, cover, first_member, members, tree_sum

BATCH_BYTES: Final = 32 << 20
"""Slices are worked on together as far as their rows' buffers fit into so much, or into what the parameters take."""


TABLE_BYTES: Final = 128 << 20
"""Rows that were scanned are kept as they are in the files, so that they need not be read again, as long as all of them take no
more than this, or than the memory limit."""


class Worker:
    """Answers one task at a time, from whatever thread. Arrays in an answer stay valid until a task of the next round."""

    def __init__(self, share: float = 1.0) -> None:
        """Hold nothing yet.

        Args:
            share: of what the workers of a node may take of its memory.
        """
        self._share = share
        self._tables: dict[int, list[Placed]] = {}
        self._table_bytes = 0
        self._held: _Held | None = None
        self._busy = threading.Lock()

    def run(self, task: Task, weights_P: Floats | None = None, room: Sequence[Floats] = ()) -> Answer:
        """Carry out a task.

        Args:
            task: what to do.
            weights_P: the current parameters, for the tasks that need them.
            room: where to put the gradient sums of a round: each at the array of its node's first shard. Without room, they get
                memory of the worker's.

        Raises:
            DataError: the rows can't be read or encoded.
        """
        # A diverging run overflows; the coordinator sees it in the sums, and a warning a slice would drown that.
        with self._busy, np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            match task:
                case CountRows():
                    return self.count(task)
                case ScanShards():
                    return self.scan(task)
                case PrepareShards():
                    return self._prepare(task)
                case TryValidation():
                    assert self._held is not None
                    self._held.shards.try_validation(task.shards)
                    return None
                case ComputeGradients():
                    assert self._held is not None and weights_P is not None
                    return self._held.gradients(task, weights_P, room)
                case Evaluate():
                    assert self._held is not None and weights_P is not None
                    return self._held.evaluate(task, weights_P)

    def anticipate(self, task: ComputeGradients) -> None:
        """Use the time until the next task to prepare for the round after this one."""
        with self._busy:
            if self._held is not None and self._held.shards.held.keys() >= set(task.shards):
                self._held.anticipate(task)

    def count(self, task: CountRows) -> RowCounts:
        """Return the rows of each file, and what became of the guesses."""
        files = zip(task.files, task.doubtful, strict=True)
        return {file.path: count_rows(file, task.storage, doubtful) for file, doubtful in files}

    def scan(self, task: ScanShards) -> Scans:
        """Read the shards, and return what the encoding must know of them."""
        setup = task.setup
        most = min(TABLE_BYTES, memory_limit(setup.memory_limit, self._share))
        scans: Scans = {}
        for shard, pieces in read_shards(setup, task.shards):
            data = ShardData(setup, shard, "train")

            def where(row: int, data: ShardData = data) -> str:
                return data.where(data.holdout.training_position(row))

            tables = (data.only(piece).table for piece in self._remember(shard, pieces, most))
            scans[shard] = scan_rows(tables, setup.columns, setup.model, where)
        return scans

    def _remember(self, shard: int, pieces: Iterator[Placed], most: int) -> Iterator[Placed]:
        """Yield a shard's rows, and keep them for a while unless all that is kept would exceed so many bytes."""
        self._tables[shard] = []
        for piece in pieces:
            self._table_bytes += piece.table.nbytes
            if self._table_bytes > most:
                self._tables.clear()
            if shard in self._tables:
                self._tables[shard].append(piece)
            yield piece

    def _prepare(self, task: PrepareShards) -> Holdings:
        setup = task.setup
        if self._held is None:
            self._held = _Held(setup, task.encoding, memory_limit(setup.memory_limit, self._share))
        holdings = self._held.shards.hold(task.shards, self._tables, task.found)
        self._tables.clear()
        self._table_bytes = 0
        return holdings


@dataclass(frozen=True)
class _Group:
    """Slices that are worked on together: all that there are below a node of the tree.

    Attributes:
        shards: those that have rows in the round.
        sizes: how many rows each has.
        additions: in which order their sums are added.
    """

    shards: tuple[int, ...]
    sizes: tuple[int, ...]
    additions: Additions


Groups = dict[Node, dict[Node, _Group]]
"""The groups of each node that is to be answered, by their own nodes."""


@dataclass(frozen=True, eq=False)
class _RoundPlan:
    """What a task of a round comes to. `places` are those that each shard's rows have in the order of the epoch."""

    task: ComputeGradients
    epoch: int
    nodes: Groups
    places: dict[int, tuple[int, int]]


class _Held:
    """The shards that a worker holds, with the network and buffers to work on them."""

    def __init__(self, setup: Setup, encoding: Encoding, limit: int) -> None:
        self.shards = Shards(setup, encoding, limit)
        self._plan = setup.plan
        self._network = encoding.network(setup.model)
        self._dropout = setup.model.dropout > 0
        parameters = self._network.layout.size * np.dtype(setup.model.dtype).itemsize
        self._most_rows = self._network.rows_within(max(BATCH_BYTES, parameters))
        self._free: list[Floats] = []
        self._lent: list[Floats] = []
        self._round = -1
        self._groups_of: dict[tuple[int, ...], Groups] = {}
        self._anticipated: _RoundPlan | None = None
        self._gathered: tuple[_RoundPlan, _Group] | None = None

    def gradients(self, task: ComputeGradients, weights_P: Floats, room: Sequence[Floats]) -> GradientSums:
        if task.round != self._round:
            # Sums of the same round, computed in a second portion after another worker's loss, are still to be added.
            self._free += self._lent
            self._lent, self._round = [], task.round
        plan = self._anticipated if self._anticipated is not None and self._anticipated.task == task else self._plan_round(task)
        return {node: self._node_sum(plan, node, groups, weights_P, room) for node, groups in plan.nodes.items()}

    def anticipate(self, task: ComputeGradients) -> None:
        """Plan the round after this one, and gather its first rows, on the guess that the same shards will be asked for."""
        self._anticipated = plan = self._plan_round(ComputeGradients(task.round + 1, task.shards))
        first = next((group for groups in plan.nodes.values() for group in groups.values()), None)
        if first is not None:
            self._gather(plan, first)

    def evaluate(self, task: Evaluate, weights_P: Floats) -> ErrorSumsByNode:
        count = self._plan.shards
        self._gathered = None
        return {
            node: tree_sum(
                node,
                count,
                lambda found: self._errors(task.split, found[1], weights_P),
                lambda left, right: left + right,
                lambda found: found[0] == 0,
            )
            for node in _cover(task.shards, count)
        }

    def _plan_round(self, task: ComputeGradients) -> _RoundPlan:
        epoch, round_in_epoch = divmod(task.round, self._plan.rounds_per_epoch)
        places = {shard: self._plan.slice_range(round_in_epoch, shard) for shard in task.shards}
        sizes = {shard: last - first for shard, (first, last) in places.items()}
        # Slices differ by one row from round to round, so there are only a few combinations of sizes.
        key = (*task.shards, *sizes.values())
        nodes = self._groups_of.get(key)
        if nodes is None:
            if len(self._groups_of) >= CACHED_SHAPES:
                self._groups_of.clear()
            nodes = {node: dict(self._groups(node, sizes)) for node in _cover(task.shards, self._plan.shards)}
            self._groups_of[key] = nodes
        return _RoundPlan(task, epoch, nodes, places)

    def _groups(self, node: Node, sizes: dict[int, int]) -> Iterator[tuple[Node, _Group]]:
        """Yield the largest groups from `node` down whose slices fit into the buffers together, with their nodes."""
        shards = tuple(shard for shard in members(node, self._plan.shards) if sizes[shard])
        found = tuple(sizes[shard] for shard in shards)
        if node[0] == 0 or sum(found) <= self._most_rows:
            if shards:
                yield node, _Group(shards, found, _additions(node, self._plan.shards, shards))
            return
        for child in children(node, self._plan.shards):
            yield from self._groups(child, sizes)

    def _node_sum(
        self, plan: _RoundPlan, node: Node, groups: dict[Node, _Group], weights_P: Floats, room: Sequence[Floats]
    ) -> GradientSum | None:
        if groups.keys() == {node}:
            return self._group_sum(plan, groups[node], weights_P, self._place(node, weights_P, room))
        # The first group's memory is where the node's sum ends up.
        first = next(iter(groups), None)

        def compute(found: Node) -> GradientSum | None:
            if found not in groups:
                return None
            gradient_P = self._place(node, weights_P, room) if found == first else self._spare(weights_P)
            return self._group_sum(plan, groups[found], weights_P, gradient_P)

        return tree_sum(node, self._plan.shards, compute, self._add, lambda found: found in groups or found[0] == 0)

    def _group_sum(self, plan: _RoundPlan, group: _Group, weights_P: Floats, gradient_P: Floats) -> GradientSum:
        batch = self._gather(plan, group)
        self._gathered = None
        draws = None
        if self._dropout:
            draws = [stream(self._plan.seed, Purpose.DROPOUT, self._round, shard) for shard in group.shards]
        return GradientSum(gradient_P, self._network.gradient_sums(weights_P, batch, group.additions, gradient_P, draws))

    def _gather(self, plan: _RoundPlan, group: _Group) -> Batch:
        batch = self._network.batch(group.sizes)
        if self._gathered != (plan, group):
            self._gathered = None  # should a row turn out not to be readable
            for shard, (first, last), target in zip(group.shards, pairwise(batch.bounds), batch.targets, strict=True):
                self.shards.held[shard].training.gather(plan.epoch, *plan.places[shard], batch.x_RI[first:last], target)
            self._gathered = plan, group
        return batch

    def _spare(self, weights_P: Floats) -> Floats:
        return self._free.pop() if self._free else np.empty_like(weights_P)

    def _place(self, node: Node, weights_P: Floats, room: Sequence[Floats]) -> Floats:
        """Return where the node's sum is to be."""
        if room:
            return room[first_member(node)]
        self._lent.append(self._spare(weights_P))
        return self._lent[-1]

    def _add(self, left: GradientSum, right: GradientSum) -> GradientSum:
        np.add(left.gradient_P, right.gradient_P, out=left.gradient_P)
        self._free.append(right.gradient_P)
        return GradientSum(left.gradient_P, left.errors + right.errors)

    def _errors(self, split: Split, number: int, weights_P: Floats) -> ErrorSums | None:
        shard = self.shards.held[number]
        sums: ErrorSums | None = None
        for rows in (shard.training if split == "train" else shard.validation).evaluated():
            batch = self._network.batch((len(rows),))
            copy(rows, batch.x_RI, batch.targets[0])
            part = self._network.errors_of(weights_P, batch)
            sums = part if sums is None else sums + part
        return sums


@lru_cache(maxsize=256)
def _cover(shards: tuple[int, ...], count: int) -> list[Node]:
    return cover(shards, count)


@lru_cache(maxsize=256)
def _additions(group: Node, count: int, shards: tuple[int, ...]) -> Additions:
    return additions(group, count, {(0, shard): place for place, shard in enumerate(shards)})
