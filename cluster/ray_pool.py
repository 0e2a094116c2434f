"""Workers as Ray actors: the Pool for local runs and clusters. Lost ones are replaced, hung ones are ended and replaced."""

import os
from collections.abc import Collection
from dataclasses import replace
from functools import partial
from time import monotonic
from typing import Any

from ray.exceptions import RayError, RayTaskError
from ray.util.placement_group import PlacementGroup

from cluster.actors import Place, WorkerActor, end_process
from cluster.ahead import RunningAhead
from cluster.arena import Arena, Terms
from cluster.calls import Calls, death_cause
from cluster.deadlines import Clock, Deadlines
from cluster.exchange import Link, LinkLostError, Listener
from cluster.object_exchange import ObjectExchange
from cluster.roster import Member, Roster
from cluster.shelf import Shelf
from cluster.waker import Waker
from coordinator.ahead import Ahead, RoundRun
from coordinator.crew import Answered, Event, Joined, Lost
from coordinator.pool import WorkersSpec
from coordinator.update import Parameters, Updater
from worker.arrays import Floats
from worker.errors import UserError
from worker.messages import Answer, ComputeGradients, Evaluate, PrepareShards, Task


class RayPool:
    """As many worker actors as the cluster can place, up to the most that were asked for.

    Every worker takes its tasks as calls of its actor, and those on this node the tasks of rounds over a link, once it stands.
    """

    def __init__(
        self,
        spec: WorkersSpec,
        group: PlacementGroup | None = None,
        kill_in_round: int | None = None,
        clock: Clock = monotonic,
    ) -> None:
        """Ask for the workers; those that the cluster places show up as events.

        Args:
            spec: how many, and how patient to be with them.
            group: places for those that a run begins with; without them, workers go wherever Ray puts them.
            kill_in_round: kill one worker while it computes this round, to prove that it makes no difference.
            clock: tells how long workers have taken.
        """
        self._clock, self._kill_in_round = clock, kill_in_round
        self._events: list[Event] = []
        self._deadlines = Deadlines(spec.deadline_seconds, clock)
        self._calls, self._listener, self._waker = Calls(), Listener(), Waker()
        self._waker.add(self._calls.fileno(), self._calls.deal_with_done, always=True)
        self._waker.add(self._listener.fileno(), self._accept, always=True)
        self._roster = Roster(WorkerActor, spec, group, self._calls, self._joined)
        self._members = self._roster.members
        self._shelf = Shelf(self._roster.node)
        self._objects = ObjectExchange(self._calls, self)
        self._arena: Arena | None = None
        self._runs: RunningAhead | None = None
        self._weights_P: Floats | None = None
        for _ in range(spec.most):
            self._roster.start_one()

    def make_room(self, start: Parameters, updater: Updater, shards: int) -> tuple[Parameters, Parameters]:
        self._arena = arena = Arena.create(Terms.of(updater.spec, shards, tuple(start.optimizer)))
        self._runs, self._objects.shards = RunningAhead(arena), shards
        for member in self._members.values():
            self._invite(member)
        first, second = arena.places or [Parameters(weights_P, start.optimizer) for weights_P in arena.weights]
        return first, second

    def publish(self, weights_P: Floats) -> None:
        self._weights_P = weights_P
        self._objects.publish(weights_P)

    def submit(self, worker: int, task: Task, patience: float | None) -> None:
        member = self._members.get(worker)
        if member is None:
            return  # it is lost, which has yet to be told
        if self._runs is not None:
            self._runs.break_off()
        self._deadlines.begin(worker, patience)
        place = self._shared_place
        if isinstance(task, PrepareShards):
            task = replace(task, found=self._shelf.found(self._roster.place(worker).node, task.shards))
            self._calls.add(member.handle.run.remote(task, None), partial(self._loaded, worker))
        elif member.link is not None and place is not None and isinstance(task, ComputeGradients | Evaluate):
            member.link.submit(task, place)
        else:
            apart = None if self._roster.is_here(member) else self._roster.place(worker).node
            self._objects.submit(worker, member.handle, task, apart)
        if isinstance(task, ComputeGradients):
            self._kill_if_asked(worker, range(task.round, task.round + 1))

    @property
    def ahead(self) -> "RayPool | None":
        return self if self._arena is not None and self._arena.terms.ahead else None

    def can_run_ahead(self, workers: Collection[int]) -> bool:
        # They look out for each other instead of sleeping, which takes a core each.
        return len(workers) <= len(os.sched_getaffinity(0)) and all(self._members[worker].link is not None for worker in workers)

    def run_ahead(self, rounds: Ahead, patience: float | None) -> None:
        if self._kill_in_round is not None and self._kill_in_round > rounds.first:
            # A worker is to be killed in that round, so it has to be the first of a run of rounds.
            rounds = replace(rounds, learning_rates=rounds.learning_rates[: self._kill_in_round - rounds.first])
        for worker in rounds.shares:
            self._deadlines.begin(worker, patience)
        links = [link for worker in rounds.shares if (link := self._members[worker].link) is not None]
        self._waker.await_all([link.fileno() for link in links])
        assert self._runs is not None
        self._runs.begin(rounds, links)
        self._kill_if_asked(list(rounds.shares)[-1], range(rounds.first, rounds.first + len(rounds.learning_rates)))

    def stop_ahead(self) -> None:
        if self._runs is not None:
            self._runs.stop()

    def ran(self) -> list[RoundRun] | None:
        if self._runs is None or not self._runs.under_way:
            return []
        if not self._runs.back:
            return None
        self._waker.await_all([])
        return self._runs.take()

    def wait(self, seconds: float) -> list[Event]:
        until = self._clock() + seconds
        while True:
            if self._clock() >= self._deadlines.next_check():
                self._check_on_workers()
            if self._runs is None or not self._runs.under_way:
                # A worker's death wakes whoever it is. Of workers that run rounds by themselves, each answer does.
                self._waker.await_one([link.fileno() for link in self._awaited_links])
            idle = 0.0 if self._events else max(0.0, min(until, self._deadlines.next_check()) - self._clock())
            self._waker.wait(idle)
            events, self._events = self._events, []
            if events or (self._runs is not None and self._runs.back) or self._clock() >= until:
                return events

    def close(self) -> None:
        for number in list(self._members):
            self._end(number)
        self._waker.close()
        self._listener.close()
        self._calls.close()
        self._shelf.close()

    @property
    def linked(self) -> int:
        """How many workers take the tasks of rounds over a link."""
        return sum(member.link is not None for member in self._members.values())

    @property
    def _shared_place(self) -> int | None:
        """Where among the shared arrays the published weights are, if they are."""
        for place, array in enumerate(self._arena.weights if self._arena is not None else ()):
            if array is self._weights_P:
                return place
        return None

    @property
    def _awaited_links(self) -> list[Link]:
        """The links of workers that have a task."""
        return [member.link for number, member in self._members.items() if member.link is not None and number in self._deadlines]

    def _joined(self, number: int, place: Place) -> None:
        self._invite(self._members[number])
        self._events.append(Joined(number, place.fingerprint, place.node))

    def _invite(self, member: Member) -> None:
        """Have a worker of this node connect, once there is memory to share with it."""
        if self._arena is not None and self._roster.is_here(member):
            # Where it can't connect, it goes on taking its tasks as calls.
            member.handle.serve.remote(self._listener.address, self._arena.terms)

    def _accept(self) -> None:
        accepted = self._listener.accept()
        if accepted is None:
            return
        pid, link = accepted
        for number, member in self._members.items():
            if member.link is None and self._roster.is_here(member) and self._roster.place(number).pid == pid:
                assert self._arena is not None
                link.share(self._arena)
                member.link = link
                self._waker.add(link.fileno(), partial(self._read_all, number), always=False)
                return
        link.close()

    def _read_all(self, first: int) -> None:
        """Take the answers that have come over links, beginning with the one that woke this process."""
        self._read(first)
        for number, member in list(self._members.items()):
            if member.link is not None and number in self._deadlines:
                self._read(number)

    def _read(self, number: int) -> None:
        link = self._members[number].link
        assert link is not None
        try:
            answered = link.answer()
        except LinkLostError:
            self._replace(number, "its process died")
            return
        except Exception:
            self._deadlines.end(number)
            self._leave_running(number)
            raise
        if answered is not None:
            self._deadlines.end(number)
            if self._runs is None or not self._runs.answered(number):
                self._events.append(Answered(number, *answered))

    def _loaded(self, worker: int, answer: Any) -> None:
        if self.is_here(worker, answer):
            self._shelf.tell(worker, self._roster.place(worker).node, answer[0])
            self.end_task(worker, *answer)

    def is_here(self, worker: int, result: Any) -> bool:
        """Return whether a worker is here and has answered; if it is dead, replace it. Raises what it raised."""
        if worker not in self._members:
            return False  # it was given up before
        if isinstance(result, RayTaskError) and not isinstance(result.cause, RayError):
            raise result.cause if isinstance(result.cause, UserError) else result
        if isinstance(result, BaseException):
            self._replace(worker, death_cause(result))
            return False
        return True

    def still_computes(self, worker: int) -> None:
        self._deadlines.renew(worker)

    def waits_for_others(self, worker: int) -> None:
        self._deadlines.suspend(worker)

    def end_task(self, worker: int, answer: Answer, seconds: float) -> None:
        if worker in self._members:
            self._deadlines.end(worker)
            self._events.append(Answered(worker, answer, seconds))

    def _replace(self, worker: int, cause: str) -> None:
        node = self._roster.place(worker).node
        self._leave_running(worker)
        self._end(worker)
        self._roster.start_one()
        self._events.append(Lost(worker, cause))
        self._objects.left(worker, node)

    def _leave_running(self, worker: int) -> None:
        """Have the others stop whom a worker leaves in the middle of rounds of their own, with time enough to do so."""
        for other in self._runs.leave(worker) if self._runs is not None else ():
            self._deadlines.renew(other)

    def _end(self, worker: int) -> None:
        link = self._members[worker].link
        if link is not None:
            self._waker.forget(link.fileno())
        self._deadlines.end(worker)
        self._shelf.forget(worker)
        self._roster.end(worker)

    def _kill_if_asked(self, worker: int, rounds: range) -> None:
        if self._kill_in_round in rounds:
            self._kill_in_round = None
            end_process(self._roster.place(worker))

    def _check_on_workers(self) -> None:
        """Ping those who may take any time for their task, and replace those who have taken too long."""
        for worker in self._deadlines.to_ping():
            self._calls.add(self._members[worker].handle.alive.remote(), partial(self._is_alive, worker))
        self._calls.deal_with_done()
        for worker in self._overdue():
            if self._members[worker].link is not None:
                self._read(worker)  # it may have answered long ago, while nobody looked
            if worker in self._overdue():
                self._replace(worker, f"no sign of life for {self._deadlines.given(worker):.3g} s")

    def _is_alive(self, worker: int, answer: Any) -> None:
        if not isinstance(answer, BaseException):  # the task's own call tells of a death
            self._deadlines.renew(worker)

    def _overdue(self) -> list[int]:
        return self._deadlines.overdue(self._runs.held_up() if self._runs is not None else ())
