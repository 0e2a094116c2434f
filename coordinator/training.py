"""The training loop: rounds, epochs, evaluation, and the one place that acts on decisions."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any, cast

import numpy as np

from coordinator.job import JobSpec
from coordinator.optimizers import Step
from coordinator.pool import Crew
from coordinator.records import EpochDone, EpochRecord, Errors, RoundDone, Status
from coordinator.stopping import Standing, stop_after_epoch, stop_in_round
from coordinator.update import Parameters, Refused, Updated, Updater
from worker.arrays import Floats
from worker.messages import Answer, ComputeGradients, Evaluate, Setup, Split
from worker.model import Layout
from worker.network import ErrorSums, GradientSum
from worker.tree import Node, finish


@dataclass(frozen=True)
class Outcome:
    """How training ended. `kept` is the record of the epoch whose weights these are; None where none was completed."""

    status: Status
    reason: str
    weights_P: Floats
    kept: EpochRecord | None
    epochs: int
    rounds: int
    rows_trained: int


@dataclass
class _Epoch:
    """What has been added up in the epoch under way."""

    number: int
    errors: ErrorSums | None = None
    seconds: float = 0.0
    last: RoundDone | None = None


class Training:
    """One run's training, from given weights. After `events` is exhausted, `outcome` tells how it ended."""

    outcome: Outcome

    def __init__(self, job: JobSpec, setup: Setup, crew: Crew, layout: Layout, weights_P: Floats) -> None:
        """Get ready to train a network of this layout; the crew's workers must have prepared their shards."""
        self._job = job
        self._plan = setup.plan
        self._has_validation = setup.plan.validation_rows > 0 or setup.validation is not None
        self._crew = crew
        self._updater = Updater(job.optimizer, job.model, layout)
        self._parameters: Parameters = self._updater.start(weights_P)
        self._most_rounds = job.training.most_rounds(self._plan.rounds_per_epoch)
        self._round = 0
        self._rows = 0
        self._standing = Standing()
        self._kept: tuple[EpochRecord, Floats] | None = None

    def events(self, interrupted: Callable[[], bool]) -> Iterator[RoundDone | EpochDone]:
        """Train, yielding what happens, until a criterion is met, the run diverges or `interrupted` says so."""
        self._began = perf_counter()
        epoch = _Epoch(1)
        while True:
            done = self._do_round(epoch)
            if isinstance(done, Refused):
                return self._end("diverged", f"{done.reason} in round {self._round + 1}")
            yield done
            seconds = perf_counter() - self._began
            reason = stop_in_round(self._job.training, self._job.stopping, rounds=self._round, seconds=seconds)
            if self._round % self._plan.rounds_per_epoch and reason is None:
                if interrupted():
                    return self._end("interrupted", "interrupted")
                continue
            record = self._close(epoch)
            if record is None:
                return self._end("diverged", f"the validation loss is not finite after round {self._round}")
            yield EpochDone(record=record)
            reason = self._after_epoch(record) or reason
            if reason is not None:
                return self._end("completed", reason)
            if interrupted():
                return self._end("interrupted", "interrupted")
            epoch = _Epoch(epoch.number + 1)

    def _do_round(self, epoch: _Epoch) -> RoundDone | Refused:
        began = perf_counter()
        self._crew.publish(self._parameters.weights_P)
        answers = self._crew.ask(lambda shards: ComputeGradients(self._round, shards))
        summed: GradientSum | None = finish(_merge(answers), self._plan.shards, _add_gradients)
        assert summed is not None, "no round is empty"
        errors = summed.errors
        if not np.isfinite(errors.loss):
            return Refused("the loss is not finite")
        step = Step(self._round + 1, self._learning_rate())
        updated = self._updater.update(self._parameters, summed.gradient_P, errors.rows, step)
        if isinstance(updated, Refused):
            return updated
        return self._commit(epoch, updated, errors, step, began)

    def _commit(self, epoch: _Epoch, updated: Updated, errors: ErrorSums, step: Step, began: float) -> RoundDone:
        self._parameters = updated.parameters
        self._round += 1
        self._rows += errors.rows
        seconds = perf_counter() - began
        epoch.errors = errors if epoch.errors is None else epoch.errors + errors
        epoch.seconds += seconds
        epoch.last = RoundDone(
            round=self._round,
            rows=errors.rows,
            loss=errors.loss / errors.rows,
            gradient_norm=updated.gradient_norm,
            learning_rate=step.learning_rate,
            seconds=seconds,
        )
        return epoch.last

    def _learning_rate(self) -> float:
        optimizer = self._job.optimizer
        ratio = optimizer.schedule.ratio(self._round, self._plan.rounds_per_epoch, self._most_rounds)
        return optimizer.learning_rate * ratio

    def _close(self, epoch: _Epoch) -> EpochRecord | None:
        """Evaluate and record an epoch that is over; None where its validation loss is not finite."""
        assert epoch.errors is not None and epoch.last is not None
        validation = Errors.of(self._evaluate("validation")) if self._has_validation else None
        if validation is not None and not np.isfinite(validation.loss):
            return None
        record = EpochRecord(
            epoch=epoch.number,
            round=self._round,
            rows=epoch.errors.rows,
            train=Errors.of(epoch.errors),
            validation=validation,
            learning_rate=epoch.last.learning_rate,
            gradient_norm=epoch.last.gradient_norm,
            seconds=perf_counter() - self._began,
            rows_per_second=epoch.errors.rows / epoch.seconds,
        )
        self._standing = self._standing.after((validation or record.train).loss)
        best_only = self._job.training.keep == "best" and self._has_validation
        if not best_only or self._standing.improved:
            # Parameters are replaced by each update and never changed, so these weights need no copy.
            self._kept = record, self._parameters.weights_P
        return record

    def _after_epoch(self, record: EpochRecord) -> str | None:
        return stop_after_epoch(
            self._job.training,
            self._job.stopping,
            epochs=self._round // self._plan.rounds_per_epoch,
            training_loss=record.train.loss,
            all_correct=self._job.stopping.all_correct and self._all_correct(record),
            standing=self._standing,
        )

    def _all_correct(self, record: EpochRecord) -> bool:
        # The epoch's own count is of weights that changed from round to round: where it is 0, the weights as they are
        # now are put to the test.
        return record.train.error_rate == 0.0 and self._evaluate("train").wrong == 0

    def _evaluate(self, split: Split) -> ErrorSums:
        self._crew.publish(self._parameters.weights_P)
        answers = self._crew.ask(lambda shards: Evaluate(split, shards))
        sums: ErrorSums | None = finish(_merge(answers), self._plan.shards, ErrorSums.__add__)
        assert sums is not None, "a split that is evaluated has rows"
        return sums

    def _end(self, status: Status, reason: str) -> None:
        record, weights_P = self._kept or (None, self._parameters.weights_P)
        self.outcome = Outcome(
            status, reason, weights_P, record, self._round // self._plan.rounds_per_epoch, self._round, self._rows
        )


def _merge(answers: list[Answer]) -> dict[Node, Any]:
    """Return the partial sums of all workers together."""
    return {node: part for answer in answers for node, part in cast(Mapping[Node, Any], answer).items()}


def _add_gradients(left: GradientSum, right: GradientSum) -> GradientSum:
    # A worker's own arrays may be added into: they are its answer to this round. Ray's are read-only.
    out = left.gradient_P if left.gradient_P.flags.writeable else None
    return GradientSum(np.add(left.gradient_P, right.gradient_P, out=out), left.errors + right.errors)
