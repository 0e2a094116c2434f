"""The training loop: rounds, epochs, evaluation, and the one place that acts on decisions."""

from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from time import perf_counter, time
from typing import Any, TypeVar, cast

from coordinator.ahead import Ahead, RoundRun, rounds_ahead
from coordinator.dispatch import Dispatcher
from coordinator.job import JobSpec
from coordinator.ledger import Ledger
from coordinator.optimizers import Step
from coordinator.records import CrewStatus, EpochDone, EpochRecord, Errors, Phase, RoundDone, Status
from coordinator.snapshot import Snapshot
from coordinator.stopping import stop_after_epoch, stop_in_round
from coordinator.update import Parameters, PartialSums, Refused, Updater
from worker.arrays import Floats
from worker.messages import Answer, ComputeGradients, Evaluate, Setup, Split
from worker.network import ErrorSums
from worker.tree import Node, finish, first_member

T = TypeVar("T")
Steps = Generator[RoundDone | EpochDone, None, T]
Ending = tuple[Status, str]


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


class Training:
    """One run's training, from a snapshot on. When `events` is exhausted, `outcome` tells how it ended."""

    outcome: Outcome

    def __init__(self, job: JobSpec, setup: Setup, dispatcher: Dispatcher, updater: Updater, start: Snapshot) -> None:
        """Get ready to go on from `start`; the dispatcher's workers must have learned to load."""
        self._job = job
        self._plan = setup.plan
        self._has_validation = setup.plan.validation_rows > 0 or setup.validation is not None
        self._dispatcher = dispatcher
        self._updater = updater
        self._most_rounds = job.training.most_rounds(self._plan.rounds_per_epoch)
        self._places, self._place = dispatcher.make_room(start.parameters, updater), 0
        self._parameters.take(start.parameters)
        progress = start.progress
        # Until an epoch is kept, the weights as they are would be.
        self._kept_P = start.kept_P if progress.kept is not None else None
        self._ledger = Ledger(setup.plan, progress)
        self._crew_before = progress.last_round.crew if progress.last_round else CrewStatus()
        self._crew, self._crew_changes = self._crew_now(), dispatcher.crew.changes
        self._began = perf_counter() - progress.seconds
        self._away, self._untold, self._crew_away = False, deque[RoundRun](), self._crew
        self._published: int | None = None
        self._resume_at: Snapshot | None = None
        self._state_lost = False

    @property
    def crew(self) -> CrewStatus:
        """How the workers have fared, those before the run was taken up included; the same object until that changes."""
        changes = self._dispatcher.crew.changes
        if changes != self._crew_changes:
            self._crew, self._crew_changes = self._crew_now(), changes
        return self._crew

    def _crew_now(self) -> CrewStatus:
        now, before = self._dispatcher.crew, self._crew_before
        return CrewStatus(
            workers=now.members,
            loading=now.newcomers,
            lost=before.lost + now.lost,
            recomputed=before.recomputed + now.recomputed,
            moved=before.moved + now.moved,
            shares=now.share_sizes,
        )

    @property
    def snapshot(self) -> Snapshot | None:
        """The state from which a run would go on to the same end, until the next round; None where it was lost in diverging."""
        if self._state_lost:
            return None
        if self._resume_at is not None:
            return self._resume_at
        self._settle()
        return Snapshot(self._ledger.progress(self._seconds), self._parameters, self._kept_weights)

    def events(self, interrupted: Callable[[], bool]) -> Steps[None]:
        """Train, yielding what happens, until a criterion is met, the run diverges or `interrupted` says so."""
        ending = self._already_met()
        while ending is None:
            if self._rounds_left_in_epoch == 0:
                yield from self._tell()
                ending = yield from self._end_epoch(None)
            else:
                ending = yield from self._advance(interrupted)
        yield from self._tell()
        self._end(*ending)

    def fail(self, reason: str) -> None:
        """Take note that the run can't go on; what was committed stands."""
        self._settle()
        self._end("failed", reason)

    def _already_met(self) -> Ending | None:
        """Return whether a run that is taken up has met a criterion: it may have ended, or got another one since."""
        if self._ledger.last is None or self._ledger.errors is not None:
            return None
        reason = self._after_epoch(self._ledger.last)
        return None if reason is None else ("completed", reason)

    def _advance(self, interrupted: Callable[[], bool]) -> Steps[Ending | None]:
        """Do some rounds, unless there is a reason to stop."""
        cut_short = stop_in_round(self._job.training, self._job.stopping, rounds=self._rounds_run, seconds=self._seconds)
        if cut_short is not None:
            yield from self._tell()
            if self._ledger.errors is None:
                return "completed", cut_short
            # A run that is taken up again goes on within the epoch, as if it had not been cut short.
            self._resume_at = self.snapshot
            return (yield from self._end_epoch(cut_short))
        if interrupted():
            return "interrupted", "interrupted"
        if (yield from self._run_ahead()):
            return None
        yield from self._tell()
        done = self._do_round()
        if isinstance(done, Refused):
            return "diverged", f"{done.reason} in round {self._ledger.rounds + 1}"
        yield done
        return None

    def _end_epoch(self, cut_short: str | None) -> Steps[Ending | None]:
        """Evaluate and record the epoch under way, and return why the run is over, if it is."""
        began = perf_counter()
        validation = self._evaluate("validation") if self._has_validation else None
        if validation is not None and not validation.finite:
            return "diverged", f"the validation error is not finite after round {self._ledger.rounds}"
        evaluate_seconds = perf_counter() - began if validation is not None else 0.0
        record = self._ledger.close_epoch(
            Errors.of(validation, "validation rows") if validation is not None else None, self._seconds
        )
        best_only = self._job.training.keep == "best" and self._has_validation
        if not best_only or self._ledger.standing.improved:
            self._ledger.kept, self._kept_P = record, self._parameters.weights_P.copy()
        yield EpochDone(record=record, evaluate_seconds=evaluate_seconds)
        reason = self._after_epoch(record) or cut_short
        return None if reason is None else ("completed", reason)

    @property
    def _seconds(self) -> float:
        return perf_counter() - self._began

    @property
    def _parameters(self) -> Parameters:
        return self._places[self._place]

    @property
    def _kept_weights(self) -> Floats:
        return self._kept_P if self._kept_P is not None else self._parameters.weights_P

    @property
    def _rounds_run(self) -> int:
        """Rounds that the parameters have been through, those included that workers ran by themselves and nobody was told of."""
        return self._ledger.rounds + len(self._untold)

    @property
    def _rounds_left_in_epoch(self) -> int:
        """How many rounds it takes until the epoch under way is to be recorded."""
        if self._ledger.errors is None and not self._untold:
            return self._plan.rounds_per_epoch
        return -self._rounds_run % self._plan.rounds_per_epoch

    def _run_ahead(self) -> Steps[bool]:
        """Have the workers run rounds by themselves, and meanwhile tell of those before; return whether any was completed."""
        first, left = self._rounds_run, None if self._most_rounds is None else self._most_rounds - self._rounds_run
        last = self._ledger.last_round
        seconds = self._untold[-1].duration if self._untold else last.seconds if last is not None else None
        count = rounds_ahead(left_in_epoch=self._rounds_left_in_epoch, left=left, round_seconds=seconds)
        if count < 1:
            return False
        rates = tuple(self._learning_rate(number) for number in range(first, first + count))
        self._away = self._dispatcher.run_ahead(lambda shares: Ahead(first, rates, self._place, shares))
        if not self._away:
            return False
        yield from self._tell()
        return self._come_back()

    def _come_back(self) -> bool:
        """Wait for workers that run rounds by themselves, if they do, and return whether any was completed."""
        if not self._away:
            return False
        # Until it is known how far they came, there is nothing to go on from: a wrong checkpoint is worse than none.
        self._away, self._state_lost = False, True
        # Whoever is lost meanwhile had a part in all rounds that count.
        self._crew_away = self.crew
        rounds = self._dispatcher.ran()
        self._state_lost = False
        self._untold += rounds
        self._place = (self._place + len(rounds)) % 2
        return bool(rounds)

    def _settle(self) -> None:
        """Bring the state up to the last round that was completed, though nobody hears of these rounds one by one."""
        self._come_back()
        for _ in self._tell():
            pass

    def _tell(self) -> Iterator[RoundDone]:
        """Take account of the rounds that workers have run by themselves, one by one."""
        while self._untold:
            run = self._untold.popleft()
            errors = finish(run.parts, self._plan.shards, ErrorSums.__add__)
            assert errors is not None, "no round is empty"
            phases: dict[Phase, float] = {"reduce": run.reduce_seconds, "update": run.update_seconds}
            phases["compute"] = run.duration - run.reduce_seconds - run.update_seconds
            yield self._ledger.commit(
                errors=errors,
                gradient_norm=run.gradient_norm,
                learning_rate=self._learning_rate(self._ledger.rounds),
                timestamp=run.timestamp,
                seconds=run.duration,
                phases=phases,
                worker_seconds=run.seconds,
                crew=self._crew_away,
            )

    def _do_round(self) -> RoundDone | Refused:
        began = perf_counter()
        number = self._ledger.rounds
        self._publish()
        answers = self._dispatcher.ask("round", lambda shards: ComputeGradients(number, shards))
        computed = perf_counter()
        parts = {node: part for node, part in _merge(answers).items() if part is not None}
        errors = finish({node: part.errors for node, part in parts.items()}, self._plan.shards, ErrorSums.__add__)
        assert errors is not None, "no round is empty"
        if not errors.finite:
            return Refused("the error is not finite")
        sums = PartialSums.of({node: part.gradient_P for node, part in parts.items()}, self._plan.shards)
        step = Step(number + 1, self._learning_rate(number))
        updated = self._updater.update(self._parameters, sums, errors.divisor, step, self._places[1 - self._place])
        if isinstance(updated, Refused):
            self._state_lost = updated.state_lost
            return updated
        self._place = 1 - self._place
        phases: dict[Phase, float] = {"compute": computed - began, "reduce": updated.reduce_seconds}
        phases["update"] = perf_counter() - computed - updated.reduce_seconds
        return self._ledger.commit(
            errors=errors,
            gradient_norm=updated.gradient_norm,
            learning_rate=step.learning_rate,
            timestamp=time(),
            seconds=perf_counter() - began,
            phases=phases,
            worker_seconds=self._dispatcher.seconds,
            crew=self.crew,
        )

    def _publish(self) -> None:
        """Give the workers the weights, unless they have them: these would travel to every other node once more."""
        if self._published != self._rounds_run:
            self._dispatcher.publish(self._parameters.weights_P)
            self._published = self._rounds_run

    def _learning_rate(self, number: int) -> float:
        """Return the learning rate of a round, from 0."""
        optimizer = self._job.optimizer
        return optimizer.learning_rate * optimizer.schedule.ratio(number, self._plan.rounds_per_epoch, self._most_rounds)

    def _after_epoch(self, record: EpochRecord) -> str | None:
        return stop_after_epoch(
            self._job.training,
            self._job.stopping,
            epochs=self._ledger.epochs,
            training_loss=record.train.loss,
            all_correct=self._job.stopping.all_correct and self._all_correct(record),
            standing=self._ledger.standing,
        )

    def _all_correct(self, record: EpochRecord) -> bool:
        # The epoch's own count is of weights that changed from round to round: where it is 0, the weights as they are
        # now are put to the test.
        return record.train.error_rate == 0.0 and self._evaluate("train").wrong == 0

    def _evaluate(self, split: Split) -> ErrorSums:
        self._publish()
        answers = self._dispatcher.ask(split, lambda shards: Evaluate(split, shards))
        sums: ErrorSums | None = finish(_merge(answers), self._plan.shards, ErrorSums.__add__)
        assert sums is not None, "a split that is evaluated has rows"
        return sums

    def _end(self, status: Status, reason: str) -> None:
        self.outcome = Outcome(
            status,
            reason,
            self._kept_weights,
            self._ledger.kept,
            self._ledger.epochs,
            self._ledger.rounds,
            self._ledger.rows,
        )


def _merge(answers: list[Answer]) -> dict[Node, Any]:
    """Return the partial sums of all workers together, from left to right whoever answered first."""
    parts = {node: part for answer in answers for node, part in cast(Mapping[Node, Any], answer).items()}
    return dict(sorted(parts.items(), key=lambda part: first_member(part[0])))
