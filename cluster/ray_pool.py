"""Workers as Ray actors: the Pool for local runs and clusters. Lost ones are replaced, hung ones are ended and replaced."""

import os
import select
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import partial
from time import monotonic, perf_counter
from typing import Any, Final

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.placement_group import PlacementGroup

from cluster.actors import Place, WorkerActor, end_process
from cluster.arena import Arena, Terms
from cluster.calls import Calls, death_cause, first_line
from cluster.exchange import Link, LinkLostError, Listener
from cluster.gathering import Gathering
from cluster.placement import among, beside
from cluster.rounds import RunRounds, completed_rounds
from coordinator.ahead import Ahead, RoundRun
from coordinator.crew import Answered, Event, Joined, Lost
from coordinator.dispatch import PoolError
from coordinator.pool import RunsAhead, WorkersSpec
from coordinator.update import Parameters, Updater
from worker.arrays import Floats
from worker.errors import UserError
from worker.messages import Answer, ComputeGradients, Evaluate, Task

END_SECONDS: Final = 10.0
"""How long a killed process may take to be gone."""

MOST_FAILED_STARTS: Final = 5
"""Workers in a row that may die before they are up."""


GATHERED_BYTES: Final = 100 << 10
"""Size of the parameters from which the gradient sums of another node are added up there. Smaller ones come with the answer
itself, in fewer calls than it would take to add them up first."""


@dataclass
class _Pending:
    """A task that was given. Without patience, its worker counts as alive while it answers pings."""

    patience: float | None
    least: float
    due: float = 0.0
    pinged: bool = False

    def __post_init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Give the worker as long as at first, from now on."""
        self.due = monotonic() + (self.patience or self.least)

    def suspend(self) -> None:
        """Wait for others than this worker."""
        self.due = float("inf")


@dataclass(frozen=True)
class _Computed:
    """Gradient sums of a worker of another node, which are still there, and the seconds that they took."""

    member: "_Member"
    answer: Any
    seconds: float


@dataclass
class _Ahead:
    """Rounds that workers run by themselves: what they were asked for, which of them are still at it, and when they began."""

    rounds: Ahead
    ticket: int
    ranks: list[int]
    running: set[int]
    began: float


@dataclass
class _Member:
    """A worker: on its way until it has a place, on the coordinator's node linked once it has connected."""

    handle: Any
    in_group: bool
    place: Place | None = None
    link: Link | None = None
    pending: _Pending | None = None


class RayPool:
    """As many worker actors as the cluster can place, up to the most that were asked for.

    Every worker takes its tasks as calls of its actor, and those on this node the tasks of rounds over a link, once it stands.
    Large gradient sums of another node stay there until all of its workers have theirs, and are added up before they travel.
    """

    def __init__(self, spec: WorkersSpec, group: PlacementGroup | None = None, kill_in_round: int | None = None) -> None:
        """Ask for the workers; those that the cluster places show up as events.

        Args:
            spec: how many, and how patient to be with them.
            group: places for those that a run begins with; without them, workers go wherever Ray puts them.
            kill_in_round: kill one worker while it computes this round, to prove that it makes no difference.
        """
        self._spec, self._group = spec, group
        self._actor: Any = ray.remote(WorkerActor)
        self._kill_in_round = kill_in_round
        self._node = ray.get_runtime_context().get_node_id()
        self._numbers = 0
        self._failed_starts = 0
        self._members: dict[int, _Member] = {}
        self._events: list[Event] = []
        self._calls = Calls()
        self._listener = Listener()
        self._waiting = select.epoll()
        self._waiting.register(self._calls.fileno(), select.EPOLLIN)
        self._waiting.register(self._listener.fileno(), select.EPOLLIN)
        self._linked: dict[int, int] = {}
        self._awaited: int | None = None
        self._arena: Arena | None = None
        self._ahead: _Ahead | None = None
        self._ticket = 1
        self._ended: float | None = None
        self._weights_P: Floats | None = None
        self._put: Any = None
        self._gathering: Gathering[_Computed] = Gathering()
        for _ in range(spec.most):
            self._start_one()

    def make_room(self, start: Parameters, updater: Updater, shards: int) -> tuple[Parameters, Parameters]:
        self._arena = arena = Arena.create(Terms.of(updater.spec, shards, tuple(start.optimizer)))
        for member in self._members.values():
            self._invite(member)
        first, second = arena.places or [Parameters(weights_P, start.optimizer) for weights_P in arena.weights]
        return first, second

    def publish(self, weights_P: Floats) -> None:
        self._weights_P, self._put = weights_P, None

    def submit(self, worker: int, task: Task, patience: float | None) -> None:
        member = self._members.get(worker)
        if member is None:
            return  # it is lost, which has yet to be told
        self._ended = None
        member.pending = _Pending(patience, self._spec.deadline_seconds)
        place = self._shared_place
        if member.link is not None and place is not None and isinstance(task, ComputeGradients | Evaluate):
            member.link.submit(task, place)
        elif isinstance(task, ComputeGradients) and self._stays_there(member):
            assert member.place is not None
            self._gathering.begin(member.place.node, worker)
            answer, seconds = member.handle.run.options(num_returns=2).remote(task, self._weights(task))
            self._calls.add(seconds, partial(self._computed, worker, member, answer))
        else:
            self._calls.add(member.handle.run.remote(task, self._weights(task)), partial(self._answered, worker, member))
        if isinstance(task, ComputeGradients):
            self._kill_if_asked(worker, range(task.round, task.round + 1))

    @property
    def ahead(self) -> RunsAhead | None:
        return self if self._arena is not None and self._arena.terms.ahead else None

    def can_run_ahead(self, workers: Collection[int]) -> bool:
        # They look out for each other instead of sleeping, which takes a core each.
        return len(workers) <= len(os.sched_getaffinity(0)) and all(self._members[worker].link is not None for worker in workers)

    def run_ahead(self, rounds: Ahead, patience: float | None) -> None:
        assert self._arena is not None
        if self._kill_in_round is not None and self._kill_in_round > rounds.first:
            # A worker is to be killed in that round, so it has to be the first of a run of rounds.
            rounds = replace(rounds, learning_rates=rounds.learning_rates[: self._kill_in_round - rounds.first])
        count, workers = len(rounds.learning_rates), list(rounds.shares)
        self._arena.board.rates[:count] = rounds.learning_rates
        # Where one run of rounds follows the other, the time between them belongs to the first round.
        self._ahead = _Ahead(rounds, self._ticket, workers, set(workers), self._ended or perf_counter())
        # Above all flags that these rounds can raise.
        self._ticket += 2 * count + 2
        shares = tuple(rounds.shares.values())
        for rank, worker in enumerate(workers):
            member = self._members[worker]
            member.pending = _Pending(patience, self._spec.deadline_seconds)
            assert member.link is not None
            self._waiting.modify(member.link.fileno(), select.EPOLLIN)
            member.link.run_rounds(RunRounds(self._ahead.ticket, rounds.first, count, rounds.place, rank, shares))
        self._kill_if_asked(workers[-1], range(rounds.first, rounds.first + count))

    def stop_ahead(self) -> None:
        if self._ahead is not None and self._arena is not None:
            self._arena.board.stop(self._ahead.ticket)

    def ran(self) -> list[RoundRun] | None:
        if self._ahead is None or self._arena is None:
            return []
        if self._ahead.running:
            return None
        ahead, self._ahead = self._ahead, None
        for descriptor in self._linked:
            self._waiting.modify(descriptor, 0)
        self._awaited = None
        run = completed_rounds(self._arena, ahead.ticket, ahead.rounds, ahead.began)
        self._ended = ahead.began + sum(one.duration for one in run)
        return run

    def wait(self, seconds: float) -> list[Event]:
        until = monotonic() + seconds
        while True:
            if monotonic() >= self._next_check():
                self._send_pings()
                self._give_up_overdue()
            self._await_one()
            idle = 0.0 if self._events else max(0.0, min(until, self._next_check()) - monotonic())
            for descriptor, _ in self._waiting.poll(idle):
                self._take(descriptor)
            events, self._events = self._events, []
            back = self._ahead is not None and not self._ahead.running
            if events or back or monotonic() >= until:
                return events

    def close(self) -> None:
        self._ahead = None
        for number in list(self._members):
            self._end(number)
        self._waiting.close()
        self._listener.close()
        self._calls.close()

    @property
    def linked(self) -> int:
        """How many workers take the tasks of rounds over a link."""
        return len(self._linked)

    @property
    def _shared_place(self) -> int | None:
        """Where among the shared arrays the published weights are, if they are."""
        for place, array in enumerate(self._arena.weights if self._arena is not None else ()):
            if array is self._weights_P:
                return place
        return None

    def _weights(self, task: Task) -> Any:
        """Return a reference to the weights for a task that needs them, put once: all workers of a node read one copy."""
        if not isinstance(task, ComputeGradients | Evaluate):
            return None
        if self._put is None:
            self._put = ray.put(self._weights_P)
        return self._put

    def _start_one(self) -> None:
        number = self._numbers
        self._numbers += 1
        in_group = self._group is not None and sum(member.in_group for member in self._members.values()) < self._spec.first
        where = among(self._group) if in_group else beside(self._spec.placement)
        options = {"num_cpus": self._spec.cpus, "max_restarts": 0, "max_concurrency": 3, "scheduling_strategy": where}
        member = self._members[number] = _Member(self._actor.options(**options).remote(), in_group)
        self._calls.add(member.handle.place.remote(), partial(self._started, number, member))

    def _take(self, descriptor: int) -> None:
        """Deal with what has come in on a descriptor."""
        if descriptor == self._calls.fileno():
            self._calls.deal_with_done()
        elif descriptor == self._listener.fileno():
            self._accept()
        elif descriptor in self._linked:
            self._read(self._linked[descriptor])
            for number in [number for number in self._linked.values() if self._members[number].pending is not None]:
                self._read(number)

    def _await_one(self) -> None:
        """Be woken by one of the answers that are due, not by each: who is woken takes a core from those that still compute.

        A worker's death wakes whoever it is. Of workers that run rounds by themselves, each answer does.
        """
        if self._ahead is not None:
            return
        due = [descriptor for descriptor, number in self._linked.items() if self._members[number].pending is not None]
        if due and self._awaited not in due:
            if self._awaited in self._linked:
                self._waiting.modify(self._awaited, 0)
            self._awaited = due[0]
            self._waiting.modify(self._awaited, select.EPOLLIN)

    def _started(self, number: int, member: _Member, place: Place | BaseException) -> None:
        if isinstance(place, BaseException):
            self._failed_to_start(number, place)
            return
        self._failed_starts = 0
        member.place = place
        self._invite(member)
        self._events.append(Joined(number, place.fingerprint, place.node))

    def _failed_to_start(self, number: int, error: BaseException) -> None:
        self._failed_starts += 1
        self._members.pop(number, None)
        if self._failed_starts >= MOST_FAILED_STARTS:
            raise PoolError(
                f"{MOST_FAILED_STARTS} workers in a row died while starting, the last one: {first_line(error)}"
            ) from error
        self._start_one()

    def _invite(self, member: _Member) -> None:
        """Have a worker of this node connect, once there is memory to share with it."""
        if self._arena is not None and member.place is not None and member.place.node == self._node:
            # Where it can't connect, it goes on taking its tasks as calls.
            member.handle.serve.remote(self._listener.address, self._arena.terms)

    def _accept(self) -> None:
        accepted = self._listener.accept()
        if accepted is None:
            return
        pid, link = accepted
        for number, member in self._members.items():
            if member.place is not None and member.place.node == self._node and member.place.pid == pid and member.link is None:
                assert self._arena is not None
                link.share(self._arena)
                member.link = link
                self._linked[link.fileno()] = number
                self._waiting.register(link.fileno(), 0)
                return
        link.close()

    def _read(self, number: int) -> None:
        member = self._members[number]
        assert member.link is not None
        try:
            answered = member.link.answer()
        except LinkLostError:
            self._replace(number, "its process died")
            return
        except Exception:
            member.pending = None
            self._leave_running(number)
            raise
        if answered is not None:
            member.pending = None
            if self._ahead is not None and number in self._ahead.running:
                self._ahead.running.remove(number)
            else:
                self._events.append(Answered(number, *answered))

    def _answered(self, worker: int, member: _Member, answer: Any) -> None:
        if self._is_here(worker, member, answer):
            self._end_task(worker, member, *answer)

    def _is_here(self, worker: int, member: _Member, answer: Any) -> bool:
        """Return whether a worker has answered; if it is dead, replace it."""
        if self._members.get(worker) is not member:
            return False  # it was given up before
        if isinstance(answer, RayTaskError) and not isinstance(answer.cause, RayError):
            raise answer.cause if isinstance(answer.cause, UserError) else answer
        if isinstance(answer, BaseException):
            self._replace(worker, death_cause(answer))
            return False
        return True

    def _end_task(self, worker: int, member: _Member, answer: Answer, seconds: float) -> None:
        if self._members.get(worker) is member:
            member.pending = None
            self._events.append(Answered(worker, answer, seconds))

    def _stays_there(self, member: _Member) -> bool:
        """Return whether a worker's gradient sums are to be gathered on its node: on another one, and not small."""
        apart = member.place is not None and member.place.node != self._node
        return apart and self._weights_P is not None and self._weights_P.nbytes >= GATHERED_BYTES

    def _computed(self, worker: int, member: _Member, answer: Any, seconds: Any) -> None:
        if self._is_here(worker, member, seconds):
            assert member.place is not None and member.pending is not None
            member.pending.suspend()
            self._fetch(self._gathering.computed(member.place.node, worker, _Computed(member, answer, seconds)))

    def _fetch(self, sums: dict[int, _Computed]) -> None:
        """Have one of a node's workers add up what all of them have computed, and fetch it."""
        if not sums or self._arena is None:
            return
        (adder, first), *_ = sums.items()
        if first.member.pending is not None:
            first.member.pending.renew()
        answers = [computed.answer for computed in sums.values()]
        total = first.member.handle.add_up.remote(self._arena.terms.shards, *answers) if len(sums) > 1 else answers[0]
        self._calls.add(total, partial(self._fetched, adder, sums))

    def _fetched(self, adder: int, sums: dict[int, _Computed], total: Any) -> None:
        computed = sums.pop(adder)
        if self._is_here(adder, computed.member, total):
            self._end_task(adder, computed.member, total, computed.seconds)
            for worker, other in sums.items():
                self._end_task(worker, other.member, {}, other.seconds)
        else:
            self._fetch(sums)  # by the next one: they are still there, unless their node is gone

    def _replace(self, worker: int, cause: str) -> None:
        place = self._members[worker].place
        self._leave_running(worker)
        self._end(worker)
        self._start_one()
        self._events.append(Lost(worker, cause))
        if place is not None:
            self._fetch(self._gathering.left(place.node, worker))

    def _leave_running(self, worker: int) -> None:
        """Have the others stop whom a worker leaves in the middle of rounds of their own, with time enough to do so."""
        if self._ahead is None or worker not in self._ahead.running:
            return
        self.stop_ahead()
        self._ahead.running.remove(worker)
        for other in self._ahead.running:
            pending = self._members[other].pending
            if pending is not None:
                pending.renew()

    def _end(self, worker: int) -> None:
        """End a worker. Once this returns, nothing of it writes to the shared memory any more."""
        member = self._members.pop(worker)
        ray.kill(member.handle)
        if member.place is not None:
            end_process(member.place)
        if member.link is not None:
            del self._linked[member.link.fileno()]
            self._awaited = None if self._awaited == member.link.fileno() else self._awaited
            if not member.link.await_end(END_SECONDS):
                raise PoolError(f"the process of worker {worker} could not be ended within {END_SECONDS:g} s")

            member.link.close()

    def _kill_if_asked(self, worker: int, rounds: range) -> None:
        if self._kill_in_round in rounds:
            self._kill_in_round = None
            place = self._members[worker].place
            assert place is not None
            end_process(place)

    def _send_pings(self) -> None:
        for member in self._members.values():
            pending = member.pending
            if pending is not None and pending.patience is None and not pending.pinged and monotonic() >= self._ping_at(pending):
                pending.pinged = True
                self._calls.add(member.handle.alive.remote(), partial(self._is_alive, pending))

    def _is_alive(self, pending: _Pending, answer: Any) -> None:
        if not isinstance(answer, BaseException):  # the task's own call tells of a death
            pending.pinged = False
            pending.renew()

    def _ping_at(self, pending: _Pending) -> float:
        return pending.due - self._spec.deadline_seconds / 2

    def _next_check(self) -> float:
        """Return when something is due even if nothing happens."""
        times = [
            self._ping_at(member.pending) if member.pending.patience is None and not member.pending.pinged else member.pending.due
            for member in self._members.values()
            if member.pending is not None
        ]
        return min(times, default=float("inf"))

    def _give_up_overdue(self) -> None:
        self._calls.deal_with_done()
        for number, member in list(self._members.items()):
            pending = member.pending
            if pending is None or monotonic() < pending.due or number in self._waiting_for_others():
                continue
            if member.link is not None:
                self._read(number)  # it may have answered long ago, while nobody looked
            if self._members.get(number) is member and member.pending is pending:
                waited = pending.patience or self._spec.deadline_seconds
                self._replace(number, f"no sign of life for {waited:.3g} s")

    def _waiting_for_others(self) -> set[int]:
        """Return the workers that are further in rounds of their own than the one that holds them up."""
        if self._ahead is None or self._arena is None:
            return set()
        flags = {worker: self._arena.board.flag(rank) for rank, worker in enumerate(self._ahead.ranks)}
        last = min((flags[worker] for worker in self._ahead.running), default=0)
        return {worker for worker in self._ahead.running if flags[worker] > last}
