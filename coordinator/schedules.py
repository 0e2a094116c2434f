"""The `[optimizer.schedule]` section: the learning rate as a pure function of the round."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import cos, pi
from typing import ClassVar, Literal

from worker.errors import require


@dataclass(frozen=True, kw_only=True)
class ScheduleSpec:
    """How the learning rate changes.

    Attributes:
        name: constant; step (times `factor` after every `step_epochs`); exponential (times `factor` an epoch, a little each
            round); cosine (from the full rate to `final_ratio` of it over the run; Loshchilov and Hutter, 2017, eq. 5).
        warmup_epochs: epochs over which the rate first rises in equal steps, on top of the schedule.
        step_epochs: of the step schedule.
        factor: of the step and exponential schedules.
        final_ratio: of the cosine schedule.
    """

    __pydantic_config__: ClassVar[Mapping[str, object]] = {"extra": "forbid"}

    name: Literal["constant", "step", "exponential", "cosine"] = "constant"
    warmup_epochs: float = 0.0
    step_epochs: int = 10
    factor: float = 0.5
    final_ratio: float = 0.0

    def __post_init__(self) -> None:
        key = "optimizer.schedule"
        require(0 <= self.warmup_epochs < float("inf"), f"{key}.warmup_epochs", f"must be 0 or more, got {self.warmup_epochs}")
        require(self.step_epochs >= 1, f"{key}.step_epochs", f"must be at least 1, got {self.step_epochs}")
        require(0 < self.factor <= 1, f"{key}.factor", f"must be above 0 and at most 1, got {self.factor}")
        require(0 <= self.final_ratio <= 1, f"{key}.final_ratio", f"must be from 0 to 1, got {self.final_ratio}")

    def ratio(self, round_number: int, rounds_per_epoch: int, rounds: int | None) -> float:
        """Return the share of the full learning rate for a round.

        Args:
            round_number: from 0, over the whole run.
            rounds_per_epoch: T.
            rounds: the most that the run can have; the cosine schedule needs it.
        """
        epoch = round_number / rounds_per_epoch
        match self.name:
            case "constant":
                ratio = 1.0
            case "step":
                ratio = self.factor ** (round_number // (rounds_per_epoch * self.step_epochs))
            case "exponential":
                ratio = self.factor**epoch
            case "cosine":
                assert rounds is not None
                ratio = self.final_ratio + (1.0 - self.final_ratio) * 0.5 * (1.0 + cos(pi * round_number / rounds))
        warmup_rounds = self.warmup_epochs * rounds_per_epoch
        return ratio * min(1.0, (round_number + 1) / warmup_rounds) if warmup_rounds > 0 else ratio
