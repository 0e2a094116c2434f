"""Which rows a worker keeps in memory, and in what form; it streams the others."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from worker.encoding import Encoding
from worker.memory import Need, choose_kept
from worker.messages import SPLITS, Setup, Split
from worker.order import ShardOrder
from worker.reading import ShardData

ORDER_BYTES: Final = 8
"""Of a training row: its place in the order of an epoch, or of a window."""


@dataclass(frozen=True)
class Keeping:
    """What of some shards is kept.

    Attributes:
        raw: type of the inputs that are kept as in the files, to be scaled as they are used; None keeps them as the network reads
            them.
        splits: of each shard whose rows are kept.
    """

    raw: str | None
    splits: dict[int, frozenset[Split]]

    @property
    def training_shards(self) -> int:
        """Shards whose training rows are kept."""
        return sum("train" in splits for splits in self.splits.values())


def choose_keeping(setup: Setup, encoding: Encoding, numbers: Sequence[int], limit: int) -> Keeping:
    """Return what to keep of shards within so many bytes: the first ones before others, training rows before validation rows.

    If not all training rows fit as the network reads them, they are kept in the files' type, where that is narrower and exact.
    """
    keeping, left = _choose(setup, encoding, numbers, limit, None)
    if keeping.training_shards == len(numbers) and left >= 0:
        return keeping
    raw = raw_type(setup, encoding)
    return keeping if raw is None else _choose(setup, encoding, numbers, limit, raw)[0]


def _choose(setup: Setup, encoding: Encoding, numbers: Sequence[int], limit: int, raw: str | None) -> tuple[Keeping, int]:
    needs = {number: training_need(setup, encoding, number, raw) for number in numbers}
    training, left = choose_kept(needs, limit)
    row_bytes = encoding.row_bytes(setup.model.dtype, raw)
    rows = {number: ShardData(setup, number, "validation").split_rows for number in numbers}
    validation, _ = choose_kept({number: Need(rows[number] * row_bytes, 0) for number in numbers}, left)
    kept: dict[Split, set[int]] = {"train": training, "validation": validation}
    splits = {number: frozenset(split for split in SPLITS if number in kept[split]) for number in numbers}
    return Keeping(raw, splits), left


def training_need(setup: Setup, encoding: Encoding, number: int, raw: str | None) -> Need:
    """Return what the training rows of a shard take in memory, kept with raw inputs of a type if that is given."""
    plan, dtype = setup.plan, setup.model.dtype
    order = ShardOrder(plan, number)
    kept = order.rows * (encoding.row_bytes(dtype, raw) + ORDER_BYTES)
    return Need(kept, streamed_bytes(order.window_rows, encoding.row_bytes(dtype)), must=plan.window is None)


def streamed_bytes(window_rows: int, row_bytes: int) -> int:
    """Return what a streamed shard takes in memory: a window, the next one, and the order of one's rows."""
    return window_rows * (2 * row_bytes + ORDER_BYTES)


def raw_type(setup: Setup, encoding: Encoding) -> str | None:
    """Return the type in which inputs may be kept raw; None where it would not be narrower, or is not the same in all files."""
    sources = [setup.train] if setup.validation is None else [setup.train, setup.validation]
    types = {encoding.raw_type(source.schema, setup.model.dtype) for source in sources}
    return types.pop() if len(types) == 1 else None
