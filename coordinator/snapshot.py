"""All that a run is between two rounds: what a checkpoint keeps, and what training goes on from."""

from dataclasses import dataclass, field

from coordinator.records import EpochRecord, RoundDone
from coordinator.stopping import Standing
from coordinator.update import Parameters
from worker.arrays import Floats
from worker.network import ErrorSums


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run has come, beside its arrays: all that it takes to go on as if nothing had happened.

    Attributes:
        rounds: committed.
        rows: that these rounds were computed from.
        seconds: of training.
        epoch_errors: sums over the rounds of the epoch under way; None at its beginning.
        epoch_seconds: of these rounds.
        standing: for the stopping criteria.
        kept: the epoch whose weights are kept so far.
        last: the last epoch recorded.
        last_round: the last round committed.
        history_lines: epochs recorded.
    """

    rounds: int = 0
    rows: int = 0
    seconds: float = 0.0
    epoch_errors: ErrorSums | None = None
    epoch_seconds: float = 0.0
    standing: Standing = field(default_factory=Standing)
    kept: EpochRecord | None = None
    last: EpochRecord | None = None
    last_round: RoundDone | None = None
    history_lines: int = 0


@dataclass(frozen=True)
class Snapshot:
    """A run between two rounds.

    The weights kept so far are never changed, but for those of the run itself where none are kept yet; the parameters are the
    run's own, until the next round.
    """

    progress: Progress
    parameters: Parameters
    kept_P: Floats

    def copied(self) -> "Snapshot":
        """Return a snapshot that the next rounds don't change."""
        state = {name: array.copy() for name, array in self.parameters.optimizer.items()}
        just_kept = self.progress.kept is not None and self.progress.kept.round == self.progress.rounds
        weights_P = self.kept_P if just_kept else self.parameters.weights_P.copy()
        kept_P = weights_P if self.kept_P is self.parameters.weights_P else self.kept_P
        return Snapshot(self.progress, Parameters(weights_P, state), kept_P)
