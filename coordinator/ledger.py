"""What a run has come to so far, in numbers: rounds, rows, errors of the epoch under way, and the epochs recorded."""

from collections.abc import Mapping

from coordinator.records import CrewStatus, EpochRecord, Errors, Phase, RoundDone
from coordinator.snapshot import Progress
from worker.network import ErrorSums
from worker.sharding import ShardPlan


class Ledger:
    """Counts what is committed, once each.

    Attributes:
        rounds: committed.
        rows: that these rounds were computed from.
        errors: sums over the rounds of the epoch under way; None at its beginning.
        standing: for the stopping criteria.
        kept: the epoch whose weights are kept so far.
        last: the last epoch recorded.
        last_round: the last round committed.
    """

    def __init__(self, plan: ShardPlan, before: Progress) -> None:
        """Go on from where a run was."""
        self._plan = plan
        self.rounds, self.rows = before.rounds, before.rows
        self.errors, self._epoch_seconds = before.epoch_errors, before.epoch_seconds
        self.standing, self.kept, self.last = before.standing, before.kept, before.last
        self.last_round, self._lines = before.last_round, before.history_lines

    @property
    def epochs(self) -> int:
        """Complete epochs."""
        return self.rounds // self._plan.rounds_per_epoch

    def progress(self, seconds: float) -> Progress:
        """Return all that it takes to go on from here; `seconds` is the time of training so far."""
        return Progress(
            rounds=self.rounds,
            rows=self.rows,
            seconds=seconds,
            epoch_errors=self.errors,
            epoch_seconds=self._epoch_seconds,
            standing=self.standing,
            kept=self.kept,
            last=self.last,
            last_round=self.last_round,
            history_lines=self._lines,
        )

    def commit(
        self,
        *,
        errors: ErrorSums,
        gradient_norm: float,
        learning_rate: float,
        timestamp: float,
        seconds: float,
        phases: dict[Phase, float],
        worker_seconds: Mapping[int, float],
        crew: CrewStatus,
    ) -> RoundDone:
        """Count a round, and return what is told of it."""
        self.rounds += 1
        self.rows += errors.rows
        self.errors = errors if self.errors is None else self.errors + errors
        self._epoch_seconds += seconds
        self.last_round = RoundDone(
            round=self.rounds,
            timestamp=timestamp,
            rows=errors.rows,
            loss=errors.loss / errors.divisor,
            gradient_norm=gradient_norm,
            learning_rate=learning_rate,
            seconds=seconds,
            phases=phases,
            worker_seconds=dict(worker_seconds),
            crew=crew,
        )
        return self.last_round

    def close_epoch(self, validation: Errors | None, seconds: float) -> EpochRecord:
        """Return the record of the epoch under way, and begin the next."""
        assert self.errors is not None
        assert self.last_round is not None
        rounds_per_epoch = self._plan.rounds_per_epoch
        epoch = (self.rounds - 1) // rounds_per_epoch
        record = EpochRecord(
            epoch=epoch + 1,
            round=self.rounds,
            rows=self.errors.rows,
            rows_expected=self._plan.rows_before(self.rounds) - self._plan.rows_before(epoch * rounds_per_epoch),
            train=Errors.of(self.errors),
            validation=validation,
            learning_rate=self.last_round.learning_rate,
            gradient_norm=self.last_round.gradient_norm,
            seconds=seconds,
            rows_per_second=self.errors.rows / self._epoch_seconds,
        )
        self.standing = self.standing.after((validation or record.train).loss)
        self.last, self.errors, self._epoch_seconds = record, None, 0.0
        self._lines += 1
        return record
