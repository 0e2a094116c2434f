"""Which rows belong to which shard, slice and split: pure arithmetic that never looks at the workers."""

from dataclasses import dataclass

from worker.holdout import Holdout, draw


def part_range(rows: int, parts: int, part: int) -> tuple[int, int]:
    """Return the half-open range of one part of so many rows in a row, sizes equal to within one, the longer ones first."""
    size, longer = divmod(rows, parts)
    first = part * size + min(part, longer)
    return first, first + size + (part < longer)


@dataclass(frozen=True)
class Window:
    """How rows are shuffled that may not fit into memory; see `worker/order.py`.

    Attributes:
        rows: of a shard that are shuffled together.
        cuts: ascending positions in the dataset at which pieces begin that can be read by themselves.
    """

    rows: int
    cuts: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class ShardPlan:
    """The rows of a training dataset laid out over shards, rounds and epochs.

    Attributes:
        rows: rows of the dataset, validation rows included.
        validation_rows: how many of them are held out for validation.
        shards: number of shards, S. The number of workers appears nowhere.
        batch_size: rows of a global batch, at most.
        seed: the job's seed.
        window: how rows are shuffled; None shuffles all of a shard together.
    """

    rows: int
    validation_rows: int
    shards: int
    batch_size: int
    seed: int
    window: Window | None = None

    @property
    def training_rows(self) -> int:
        """Rows that count once an epoch, N."""
        return self.rows - self.validation_rows

    @property
    def rounds_per_epoch(self) -> int:
        """T = ceil(N / B)."""
        return -(-self.training_rows // self.batch_size)

    def shard_range(self, shard: int) -> tuple[int, int]:
        """Return the half-open range of dataset positions that the shard covers."""
        return part_range(self.rows, self.shards, shard)

    def shard_training_rows(self, shard: int) -> int:
        """Return how many rows of the shard are trained on; equal over shards to within one."""
        first, last = part_range(self.training_rows, self.shards, shard)
        return last - first

    def holdout(self, shard: int) -> Holdout:
        """Return which of the shard's rows are held out for validation."""
        start, stop = self.shard_range(shard)
        return draw(self.seed, shard, stop - start, stop - start - self.shard_training_rows(shard))

    def rows_before(self, rounds: int) -> int:
        """Return how many rows the first `rounds` rounds of a run use, each epoch's counted anew."""
        epochs, rest = divmod(rounds, self.rounds_per_epoch)
        return epochs * self.training_rows + rest * self.training_rows // self.rounds_per_epoch

    def slice_range(self, round_in_epoch: int, shard: int) -> tuple[int, int]:
        """Return the half-open range of places in the shard's order that this round uses.

        Row j of shard s's order has place j·S + s, and round t takes the places from floor(t·N/T) to
        floor((t+1)·N/T), so each row is used exactly once an epoch and rounds differ by at most one row.
        """
        # Asked for every slice, so each property only once.
        rows, rounds, shards = self.training_rows, self.rounds_per_epoch, self.shards
        first, last = round_in_epoch * rows // rounds, (round_in_epoch + 1) * rows // rounds
        return max(0, -((shard - first) // shards)), max(0, -((shard - last) // shards))
