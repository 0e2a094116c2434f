"""Between crew and pool: the loop that carries out the crew's instructions and tells it what happened."""

from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from typing import Final

from coordinator.ahead import Ahead, RoundRun
from coordinator.crew import Answered, Crew, Give, Instruction, Job, Joined, Lost, Shards
from coordinator.pool import Pool, WorkersSpec
from coordinator.update import Parameters, Updater
from worker.arrays import Floats
from worker.messages import Answer, PrepareShards, Task

REMEMBERED: Final = 32
"""Jobs of a kind whose durations are remembered."""

PATIENCE_FACTOR: Final = 10.0

RESTARTED_SECONDS: Final = 15.0
"""How long a run whose coordinator was lost waits for all of its workers. Fewer would read all of the shards."""


class PoolError(RuntimeError):
    """The workers can't go on: too few of them, one slice that they all die of, or the cluster failed."""


def patience(recent: Sequence[float], floor: float) -> float | None:
    """Return how long to wait for an answer, given how long the last such jobs took; None where nothing is known yet."""
    return max(floor, PATIENCE_FACTOR * max(recent)) if recent else None


class Dispatcher:
    """Has the workers of a pool do one job after the other.

    Attributes:
        crew: who does what.
        seconds: how long each worker has worked on the last job.
    """

    def __init__(self, pool: Pool, spec: WorkersSpec, shards: int, inspect: Callable[[int, dict[str, str]], str | None]) -> None:
        """Make a crew for so many shards, without members yet.

        Args:
            pool: the workers.
            spec: how many of them, and how long to wait.
            shards: S.
            inspect: is shown the number and fingerprint of each worker that joins; returns a warning, or None, or raises.
        """
        self._inspect = inspect
        self._notices: list[str] = []
        self._assembled = self._streamed = False
        self._pool = pool
        self._spec = spec
        self._shards = shards
        self._began = 0.0, 0
        self._failures: list[Exception] = []
        self.crew = Crew(shards)
        self.seconds: dict[int, float] = {}
        self._durations: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=REMEMBERED))

    def assemble(self, *, restarted: bool = False) -> None:
        """Wait until there are as many workers as the run is to begin with.

        Where the run is `restarted`, those of a node that was lost may never come: after a while it goes on with as few as any
        run may go on with.

        Raises:
            PoolError: they don't come.
        """
        if not restarted or not self._gather(self._spec.first, min(RESTARTED_SECONDS, self._spec.wait_seconds)):
            self._await_members(self._spec.least if restarted else self._spec.first)
        self._assembled = True

    def learn_to_load(self, load: Callable[[Shards], PrepareShards], *, streamed: bool) -> None:
        """Have every worker hold its shards, and from now on whatever becomes its.

        Args:
            load: makes the task.
            streamed: whether rows may have to be read in the middle of a job, which takes as long as it takes.
        """
        self._streamed = streamed
        self.crew.learn_to_load(load)
        self._run(Job(None), None)

    def notices(self) -> list[str]:
        """Return what the user should know since the last time this was asked."""
        told, self._notices = self._notices, []
        return told

    def make_room(self, start: Parameters, updater: Updater) -> tuple[Parameters, Parameters]:
        """Return two places for parameters like these, whose weights need no copy to be published."""
        return self._pool.make_room(start, updater, self._shards)

    def publish(self, weights_P: Floats) -> None:
        """Make these the weights of the jobs from now on."""
        self._pool.publish(weights_P)

    def ask(self, kind: str, task: Callable[[Shards], Task], *, rows: bool = True) -> list[Answer]:
        """Return the answers to a task that together cover every shard once, whoever gave them.

        Args:
            kind: names the job, to know how long such jobs take.
            task: makes the task for some shards.
            rows: whether workers must hold the shards.

        Raises:
            PoolError: too few workers are left, or a shard costs one worker after the other.
            UserError: a worker raised it.
        """
        recent = self._durations[kind]
        self.seconds = {}
        began, lost = monotonic(), self.crew.lost
        answers = self._run(Job(task, rows), self._patience(recent))
        if self.crew.lost == lost:
            recent.append(monotonic() - began)
        return answers

    def run_ahead(self, rounds: Callable[[Mapping[int, Shards]], Ahead]) -> bool:
        """Have the workers run rounds by themselves, if they can; `ran` then waits for them.

        Args:
            rounds: makes what they are to run, for the shares they have.
        """
        self._raise_failure()
        runners = self._pool.ahead
        if runners is None or not self.crew.settled or not runners.can_run_ahead(self.crew.shares):
            return False
        self._began = monotonic(), self.crew.lost
        limit = self._patience(self._durations["ahead"] or self._durations["round"])
        runners.run_ahead(rounds(self.crew.run_ahead()), limit)
        return True

    def ran(self) -> list[RoundRun]:
        """Return the rounds that the workers have completed by themselves; fewer than were asked for where something came up.

        What is wrong with a worker meanwhile is raised by whatever is asked next: these rounds stand.
        """
        runners = self._pool.ahead
        assert runners is not None, "they were sent"
        while (rounds := runners.ran()) is None:
            try:
                self._listen(self._spec.wait_seconds, None)
            except Exception as error:  # of whatever kind a worker raised
                self._failures.append(error)
                if len(self._failures) > self._shards:  # more than there are workers
                    raise
                runners.stop_ahead()
        self._carry_out(self.crew.halt(), None)
        began, lost = self._began
        if self.crew.lost == lost:
            self._durations["ahead"].append(monotonic() - began)
        return rounds

    def _patience(self, recent: Sequence[float]) -> float | None:
        return None if self._streamed else patience(recent, self._spec.deadline_seconds)

    def _raise_failure(self) -> None:
        if self._failures:
            raise self._failures[0]

    def _run(self, job: Job, patience: float | None) -> list[Answer]:
        self._raise_failure()
        if self.crew.members < self._spec.least:
            self._await_members(self._spec.least)
        self._carry_out(self.crew.begin(job), patience)
        while not self.crew.done:
            if self.crew.members:
                self._listen(self._spec.wait_seconds, patience)
            else:
                self._await_members(1, patience)
        return self.crew.answers

    def _await_members(self, wanted: int, patience: float | None = None) -> None:
        if not self._gather(wanted, self._spec.wait_seconds, patience):
            raise PoolError(
                f"the cluster placed {self.crew.members} of {wanted} workers of {self._spec.cpus:g} CPUs within "
                f"{self._spec.wait_seconds:g} s; ask for fewer or smaller workers, or raise workers.wait_seconds"
            )

    def _gather(self, wanted: int, seconds: float, patience: float | None = None) -> bool:
        """Return whether there are so many members within so many seconds."""
        until = monotonic() + seconds
        while self.crew.members < wanted:
            left = until - monotonic()
            if left <= 0:
                return False
            self._listen(left, patience)
        return True

    def _listen(self, seconds: float, patience: float | None) -> None:
        for event in self._pool.wait(seconds):
            match event:
                case Answered(worker, _, seconds):
                    self.seconds[worker] = self.seconds.get(worker, 0.0) + seconds
                case Joined(worker, fingerprint):
                    warning = self._inspect(worker, fingerprint)
                    self._notices += [warning] if warning is not None else []
                    if self._assembled:
                        self._notices.append(f"worker {worker} joined, and takes its share once it has loaded it")
                case Lost(worker, cause):
                    self._notices.append(f"worker {worker} was lost: {cause}; the others take over its shards")
            self._carry_out(self.crew.on(event), patience)

    def _carry_out(self, instructions: list[Instruction], patience: float | None) -> None:
        for instruction in instructions:
            if not isinstance(instruction, Give):
                raise PoolError(instruction.reason)
            load = isinstance(instruction.task, PrepareShards)
            self._pool.submit(instruction.worker, instruction.task, None if load else patience)
