"""The `[training]` and `[stopping]` sections, and the decision when a run is over."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import ClassVar, Final, Literal

from worker.errors import require

REASONS: Final = {
    "epochs": "all epochs done",
    "rounds": "all rounds done",
    "all_correct": "all training rows are classified correctly",
    "target_loss": "the target loss is reached",
    "patience": "the loss has stopped improving",
    "max_seconds": "the time is up",
    "interrupted": "interrupted",
}
"""What each reason to stop means, for people."""


@dataclass(frozen=True, kw_only=True)
class TrainingSpec:
    """How long and in what portions to train.

    Attributes:
        batch_size: rows of a global batch, at most; 1 is the textbook's one example at a time.
        epochs: the most epochs; None sets no limit.
        rounds: the most rounds; None sets no limit.
        keep: final weights: the best by validation loss (the last where there is no validation), or always the last.
    """

    __pydantic_config__: ClassVar[Mapping[str, object]] = {"extra": "forbid"}

    batch_size: int = 64
    epochs: int | None = None
    rounds: int | None = None
    keep: Literal["best", "last"] = "best"

    def __post_init__(self) -> None:
        require(self.batch_size >= 1, "training.batch_size", f"must be at least 1, got {self.batch_size}")
        require(self.epochs is None or self.epochs >= 1, "training.epochs", f"must be at least 1, got {self.epochs}")
        require(self.rounds is None or self.rounds >= 1, "training.rounds", f"must be at least 1, got {self.rounds}")

    def most_rounds(self, rounds_per_epoch: int) -> int | None:
        """Return the most rounds that the run can have; None where nothing limits them."""
        limits = [self.rounds, None if self.epochs is None else self.epochs * rounds_per_epoch]
        return min((limit for limit in limits if limit is not None), default=None)


@dataclass(frozen=True, kw_only=True)
class StoppingSpec:
    """When to end before the epochs or rounds are over; the first criterion met ends the run.

    Attributes:
        all_correct: end when every training row is classified correctly.
        target_loss: end when an epoch's training loss is this or less.
        patience: end after so many epochs in which the validation loss (training loss, if there is none) did not improve.
        max_seconds: end after this time of training.
    """

    __pydantic_config__: ClassVar[Mapping[str, object]] = {"extra": "forbid"}

    all_correct: bool = False
    target_loss: float | None = None
    patience: int | None = None
    max_seconds: float | None = None

    def __post_init__(self) -> None:
        require(self.patience is None or self.patience >= 1, "stopping.patience", f"must be at least 1, got {self.patience}")
        require(
            self.target_loss is None or isfinite(self.target_loss),
            "stopping.target_loss",
            f"must be a finite number, got {self.target_loss}",
        )
        require(
            self.max_seconds is None or 0 < self.max_seconds < float("inf"),
            "stopping.max_seconds",
            f"must be above 0, got {self.max_seconds}",
        )

    @property
    def any_given(self) -> bool:
        """Whether any criterion is set."""
        return self.all_correct or (self.target_loss, self.patience, self.max_seconds) != (None, None, None)


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Where a run stands at the end of an epoch, as far as stopping is concerned.

    Attributes:
        best_loss: least loss of an epoch so far, by validation where there is one; None before the first.
        epochs_without_improvement: since the epoch that had it.
    """

    best_loss: float | None = None
    epochs_without_improvement: int = 0

    def after(self, loss: float) -> "Standing":
        """Return the standing after an epoch with this loss."""
        if self.best_loss is None or loss < self.best_loss:
            return Standing(best_loss=loss)
        return Standing(best_loss=self.best_loss, epochs_without_improvement=self.epochs_without_improvement + 1)

    @property
    def improved(self) -> bool:
        """Whether the last epoch was the best so far."""
        return self.epochs_without_improvement == 0


def stop_in_round(training: TrainingSpec, stopping: StoppingSpec, *, rounds: int, seconds: float) -> str | None:
    """Return why the run is over after so many rounds and seconds of training, else None."""
    if training.rounds is not None and rounds >= training.rounds:
        return "rounds"
    if stopping.max_seconds is not None and rounds > 0 and seconds >= stopping.max_seconds:
        return "max_seconds"
    return None


def stop_after_epoch(
    training: TrainingSpec,
    stopping: StoppingSpec,
    *,
    epochs: int,
    training_loss: float,
    all_correct: bool,
    standing: Standing,
) -> str | None:
    """Return why the run is over at the end of an epoch, else None.

    Args:
        training: limits.
        stopping: criteria.
        epochs: complete epochs so far.
        training_loss: of the epoch.
        all_correct: whether every training row is classified correctly by the weights as they are now.
        standing: after the epoch.
    """
    if stopping.all_correct and all_correct:
        return "all_correct"
    if stopping.target_loss is not None and training_loss <= stopping.target_loss:
        return "target_loss"
    if stopping.patience is not None and standing.epochs_without_improvement >= stopping.patience:
        return "patience"
    if training.epochs is not None and epochs >= training.epochs:
        return "epochs"
    return None
