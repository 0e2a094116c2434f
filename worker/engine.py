"""A worker: holds shards and answers tasks about them. It knows neither Ray nor the other workers."""

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import pyarrow as pa

from worker.arrays import Floats, Integers
from worker.encoding import Encoding, scan_rows
from worker.messages import (
    Answer,
    ComputeGradients,
    CountRows,
    ErrorSumsByNode,
    Evaluate,
    GradientSums,
    PrepareShards,
    RowCounts,
    Scans,
    ScanShards,
    Setup,
    Split,
    Task,
)
from worker.network import ErrorSums, GradientSum, Network
from worker.shard import EVALUATION_ROWS, Gatherer, Shard, make_shard, read_shards, split_of
from worker.sources import count_rows
from worker.streams import Purpose, stream
from worker.tree import Node, cover, tree_sum

T = TypeVar("T")


class Worker:
    """Answers one task at a time. Arrays in an answer stay valid until a task of the next round."""

    def __init__(self) -> None:
        """Hold nothing yet."""
        self._tables: dict[int, pa.Table] = {}
        self._held: _Held | None = None

    def run(self, task: Task, weights_P: Floats | None = None) -> Answer:
        """Carry out a task; `weights_P` are the current parameters, for the tasks that need them.

        Raises:
            DataError: the rows can't be read or encoded.
        """
        # A diverging run overflows; the coordinator sees it in the sums, and a warning a slice would drown that.
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            match task:
                case CountRows():
                    return self.count(task)
                case ScanShards():
                    return self.scan(task)
                case PrepareShards():
                    self._prepare(task)
                    return None
                case ComputeGradients():
                    assert self._held is not None and weights_P is not None
                    return self._held.gradients(task, weights_P)
                case Evaluate():
                    assert self._held is not None and weights_P is not None
                    return self._held.evaluate(task, weights_P)

    def count(self, task: CountRows) -> RowCounts:
        """Return the rows of each file."""
        return {path: count_rows(path) for path in task.paths}

    def scan(self, task: ScanShards) -> Scans:
        """Read the shards, keep them for a while, and return what the encoding must know of them."""
        setup = task.setup
        self._tables |= read_shards(setup, task.shards)
        scans: Scans = {}
        for shard in task.shards:
            start, _ = setup.plan.shard_range(shard)
            training, _ = setup.plan.split(shard)

            def where(row: int, start: int = start, training: Integers = training) -> str:
                return setup.train.where(start + int(training[row]))

            table = self._tables[shard]
            rows = table if len(training) == table.num_rows else table.take(training)
            scans[shard] = scan_rows(rows, setup.columns, setup.scale, setup.model, where)
        return scans

    def _prepare(self, task: PrepareShards) -> None:
        setup, held = task.setup, self._held or _Held(task.setup, task.encoding)
        lacking = [shard for shard in task.shards if shard not in held.shards]
        tables = {shard: self._tables.pop(shard) for shard in lacking if shard in self._tables}
        tables |= read_shards(setup, [shard for shard in lacking if shard not in tables])
        validation = read_shards(setup, lacking, "validation") if setup.validation is not None else {}
        made = {shard: make_shard(setup, shard, tables[shard], validation.get(shard), task.encoding) for shard in lacking}
        held.shards = {shard: made[shard] if shard in made else held.shards[shard] for shard in task.shards}
        self._held = held
        self._tables.clear()


class _Held:
    """The shards that a worker holds, with the network and buffers to work on them."""

    def __init__(self, setup: Setup, encoding: Encoding) -> None:
        self.shards: dict[int, Shard] = {}
        self._plan = setup.plan
        self._network = Network(setup.model, len(setup.columns.feature_names), encoding.outputs)
        self._gatherer = Gatherer(self._network.inputs, self._network.outputs, setup.model.dtype)
        self._dropout = setup.model.dropout > 0
        self._free: list[Floats] = []
        self._lent: list[Floats] = []
        self._round = -1
        self._orders: dict[int, tuple[int, Integers]] = {}

    def gradients(self, task: ComputeGradients, weights_P: Floats) -> GradientSums:
        if task.round != self._round:
            # Sums of the same round, computed in a second portion after another worker's loss, are still to be added.
            self._free.extend(self._lent)
            self._lent.clear()
            self._round = task.round
        sums = self._sum(task.shards, lambda shard: self._slice(task.round, shard, weights_P), self._add)
        self._lent.extend(part.gradient_P for part in sums.values() if part is not None)
        return sums

    def evaluate(self, task: Evaluate, weights_P: Floats) -> ErrorSumsByNode:
        return self._sum(task.shards, lambda shard: self._errors(task.split, shard, weights_P), lambda left, right: left + right)

    def _sum(self, shards: tuple[int, ...], leaf: Callable[[int], T | None], add: Callable[[T, T], T]) -> dict[Node, T | None]:
        count = self._plan.shards
        return {
            node: tree_sum(node, count, lambda found: leaf(found[1]), add, lambda found: found[0] == 0)
            for node in cover(shards, count)
        }

    def _slice(self, round_number: int, number: int, weights_P: Floats) -> GradientSum | None:
        epoch, round_in_epoch = divmod(round_number, self._plan.rounds_per_epoch)
        first, last = self._plan.slice_range(round_in_epoch, number)
        if first == last:
            return None
        x_BI, t_BO = self._gatherer.gather(self.shards[number].training, self._order(epoch, number)[first:last])
        gradient_P = self._free.pop() if self._free else np.empty_like(weights_P)
        draws = stream(self._plan.seed, Purpose.DROPOUT, round_number, number) if self._dropout else None
        return GradientSum(gradient_P, self._network.gradient_sum(weights_P, x_BI, t_BO, gradient_P, draws))

    def _order(self, epoch: int, number: int) -> Integers:
        known = self._orders.get(number)
        if known is None or known[0] != epoch:
            shard = self.shards[number]
            known = epoch, shard.training_order[self._plan.permutation(epoch, number)]
            self._orders[number] = known
        return known[1]

    def _add(self, left: GradientSum, right: GradientSum) -> GradientSum:
        np.add(left.gradient_P, right.gradient_P, out=left.gradient_P)
        self._free.append(right.gradient_P)
        return GradientSum(left.gradient_P, left.errors + right.errors)

    def _errors(self, split: Split, number: int, weights_P: Floats) -> ErrorSums | None:
        rows, order = split_of(self.shards[number], split)
        sums: ErrorSums | None = None
        for first in range(0, len(order), EVALUATION_ROWS):
            x_BI, t_BO = self._gatherer.gather(rows, order[first : first + EVALUATION_ROWS])
            part = self._network.errors(weights_P, x_BI, t_BO)
            sums = part if sums is None else sums + part
        return sums
