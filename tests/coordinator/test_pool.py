import pickle
from collections.abc import Callable, Collection, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coordinator.ahead import Ahead, RoundRun
from coordinator.crew import Answered, Joined, Lost
from coordinator.crew import Event as PoolEvent
from coordinator.dispatch import RESTARTED_SECONDS, Dispatcher, PoolError
from coordinator.pool import InProcessPool, RunsAhead, WorkersSpec
from coordinator.records import Event, Finished, Noticed, RoundDone, Summary
from coordinator.update import Parameters, Updater
from worker.arrays import Floats
from worker.blas import fingerprint
from worker.engine import Worker
from worker.messages import Answer, ComputeGradients, CountRows, PrepareShards, Task
from worker.network import ErrorSums, GradientSum
from worker.stores import DEFAULT_STORAGE
from worker.tree import root

Document = dict[str, dict[str, Any]]
Begin = Callable[..., Iterator[Event]]
Run = Callable[..., tuple[list[Event], Summary]]
Fate = Callable[[int, Task], str | None]


class ScriptedPool:
    """Workers as a network shows them: the last to be asked answers first, and all that is sent is a read-only copy.

    `dies` is asked for the cause of death of each worker that is given a task; `joins` are the numbers of the workers that
    come when the slices of a round are asked for. Waiting takes no time: that is only counted, in `waited`.
    """

    ahead: RunsAhead | None = None

    def __init__(self, workers: int, dies: Fate = lambda worker, task: None, joins: dict[int, list[int]] | None = None) -> None:
        self._workers: dict[int, Worker] = {}
        self._events: list[PoolEvent] = []
        self._dies, self._joins = dies, dict(joins or {})
        self._weights_P: Floats | None = None
        self.waited = 0.0
        self._come(list(range(workers)))

    def _come(self, numbers: list[int]) -> None:
        self._workers |= {number: Worker() for number in numbers}
        self._events += [Joined(number, fingerprint()) for number in numbers]

    def make_room(self, start: Parameters, updater: Updater, shards: int) -> tuple[Parameters, Parameters]:
        first_P, second_P = (np.full_like(start.weights_P, np.nan) for _ in range(2))
        return Parameters(first_P, start.optimizer), Parameters(second_P, start.optimizer)

    def publish(self, weights_P: Floats) -> None:
        self._weights_P = weights_P.copy()
        self._weights_P.setflags(write=False)

    def submit(self, worker: int, task: Task, patience: float | None) -> None:
        if isinstance(task, ComputeGradients):
            self._come(self._joins.pop(task.round, []))
        cause = self._dies(worker, task)
        if cause is not None:
            self.lose(worker, cause)
        else:
            answer = self._workers[worker].run(pickle.loads(pickle.dumps(task)), self._weights_P)
            self._events.append(Answered(worker, read_only(pickle.loads(pickle.dumps(answer)))))

    def lose(self, worker: int, cause: str) -> None:
        del self._workers[worker]
        self._events.append(Lost(worker, cause))

    @property
    def quiet(self) -> bool:
        return not self._events

    def wait(self, seconds: float) -> list[PoolEvent]:
        if not self._events:
            self.waited += seconds
            return []
        return [self._events.pop()]

    def close(self) -> None:
        self._workers.clear()


class TwoRounds:
    """Tells, once, of two rounds that workers have run by themselves before one of them died. The parameters stay as they are."""

    def __init__(self, pool: ScriptedPool, victim: int) -> None:
        self._pool, self._victim = pool, victim
        self._rounds: Ahead | None = None

    def can_run_ahead(self, workers: Collection[int]) -> bool:
        return self._rounds is None

    def run_ahead(self, rounds: Ahead, patience: float | None) -> None:
        self._rounds = rounds
        self._pool.lose(self._victim, "killed")

    def stop_ahead(self) -> None:
        raise AssertionError("there is no reason to")

    def ran(self) -> list[RoundRun] | None:
        assert self._rounds is not None
        if not self._pool.quiet:
            return None
        errors = ErrorSums(rows=16, weight=16.0, outputs=3, loss=1.0, absolute=1.0, squared=1.0, wrong=0)
        seconds = dict.fromkeys(self._rounds.shares, 0.01)
        run = RoundRun({root(5): errors}, 1.0, 0.0, seconds, reduce_seconds=0.001, update_seconds=0.001, duration=0.02)
        return [run, run]


def read_only(answer: Answer) -> Answer:
    for part in (answer or {}).values():
        if isinstance(part, GradientSum):
            part.gradient_P.setflags(write=False)
    return answer


def dies_in(kind: type[Task], *deaths: tuple[int, int]) -> Fate:
    """A worker, and which of its tasks of a kind (from 0) is its last."""
    tasks = dict.fromkeys((worker for worker, _ in deaths), 0)

    def fate(worker: int, task: Task) -> str | None:
        if worker not in tasks or not isinstance(task, kind):
            return None
        tasks[worker] += 1
        return "killed" if (worker, tasks[worker] - 1) in deaths else None

    return fate


@pytest.mark.parametrize(("shuffle", "limited"), [("full", True), ("window", False)])
def test_a_round_that_may_have_to_read_rows_may_take_any_time(
    run_job: Run, blobs_job: Document, shuffle: str, *, limited: bool
) -> None:
    given: list[float | None] = []

    class Watched(ScriptedPool):
        def submit(self, worker: int, task: Task, patience: float | None) -> None:
            if isinstance(task, ComputeGradients):
                given.append(patience)
            super().submit(worker, task, patience)

    run_job(blobs_job, {"data.shuffle": shuffle}, pool=Watched(2))
    assert len(given) > 2
    assert all((patience is not None) == limited for patience in given[2:])


def test_weights_are_published_once_for_a_round_and_the_evaluation_before_it(run_job: Run, blobs_job: Document) -> None:
    published: list[int] = []

    class Counting(ScriptedPool):
        def publish(self, weights_P: Floats) -> None:
            published.append(weights_P.size)
            super().publish(weights_P)

    _, summary = run_job(blobs_job, {"data.validation": 0.2}, pool=Counting(2))
    assert summary.epochs > 1
    assert summary.validation is not None
    assert len(published) == summary.rounds + 1  # those after the last round are evaluated


@pytest.fixture
def by_waiting(monkeypatch: pytest.MonkeyPatch) -> Callable[[ScriptedPool], ScriptedPool]:
    """Has time pass only while a pool is waited for; returns the pool."""

    def count(pool: ScriptedPool) -> ScriptedPool:
        monkeypatch.setattr("coordinator.dispatch.monotonic", lambda: pool.waited)
        return pool

    return count


@pytest.mark.parametrize(
    ("there", "restarted", "waited", "told"),
    [
        (1, False, 60.0, "placed 1 of 2 workers"),
        (1, True, RESTARTED_SECONDS, None),
        (0, True, RESTARTED_SECONDS + 60.0, "placed 0 of 1 workers"),
    ],
)
def test_a_run_whose_coordinator_was_lost_begins_with_as_few_as_it_may_go_on_with(
    by_waiting: Callable[[ScriptedPool], ScriptedPool], there: int, restarted: bool, waited: float, told: str | None
) -> None:
    pool = by_waiting(ScriptedPool(there))
    dispatcher = Dispatcher(pool, WorkersSpec(count=2, wait_seconds=60.0), 4, lambda *_: None)

    with pytest.raises(PoolError, match=told) if told is not None else nullcontext():
        dispatcher.assemble(restarted=restarted)

    assert (dispatcher.crew.members, pool.waited) == (there, waited)


@pytest.mark.parametrize(
    ("spec", "first", "least", "most"),
    [
        (WorkersSpec(), 2, 1, 2),
        (WorkersSpec(count=5), 5, 1, 5),
        (WorkersSpec(min=3), 3, 3, 3),
        (WorkersSpec(max=4), 4, 1, 4),
        (WorkersSpec(min=2, max=7), 2, 2, 7),
    ],
)
def test_how_many_workers_begin_suffice_and_are_asked_for(spec: WorkersSpec, first: int, least: int, most: int) -> None:
    assert (spec.first, spec.least, spec.most) == (first, least, most)


def test_workers_of_this_process_join_once_and_answer_each_task_once() -> None:
    pool = InProcessPool(2)
    assert pool.wait(0.0) == [Joined(0, fingerprint()), Joined(1, fingerprint())]

    for worker in (1, 0):
        pool.submit(worker, CountRows((), DEFAULT_STORAGE, ()), None)

    events = pool.wait(0.0)
    assert [(event.worker, event.answer) for event in events if isinstance(event, Answered)] == [(1, {}), (0, {})]
    assert pool.wait(0.0) == []


@pytest.mark.parametrize(
    ("workers", "pool", "lost"),
    [
        ({"count": 3}, lambda: ScriptedPool(3), 0),
        ({"min": 1, "max": 3}, lambda: ScriptedPool(3), 0),
        ({"count": 3}, lambda: ScriptedPool(3, joins={0: [7], 3: [8, 9]}), 0),
        ({"count": 3}, lambda: ScriptedPool(3, dies_in(ComputeGradients, (1, 2))), 1),
        ({"count": 3}, lambda: ScriptedPool(3, dies_in(ComputeGradients, (0, 0), (2, 5)), joins={5: [3]}), 2),
        ({"count": 4}, lambda: ScriptedPool(4, dies_in(PrepareShards, (2, 0))), 1),
    ],
    ids=["all at once", "one by one", "more join", "one dies in a round", "some die and one joins", "one dies while loading"],
)
def test_no_fate_of_the_workers_changes_a_bit(
    run_job: Run, blobs_job: Document, workers: dict[str, int], pool: Callable[[], ScriptedPool], lost: int
) -> None:
    overrides = {"data.validation": 0.2, "model.dropout": 0.2}
    undisturbed, expected = run_job(blobs_job, overrides | {"workers.count": 1})

    events, summary = run_job(blobs_job, overrides | {"workers": workers}, pool=pool())

    assert summary.weights_digest == expected.weights_digest
    assert (summary.train, summary.validation) == (expected.train, expected.validation)
    assert [(event.loss, event.gradient_norm) for event in events if isinstance(event, RoundDone)] == [
        (event.loss, event.gradient_norm) for event in undisturbed if isinstance(event, RoundDone)
    ]
    assert summary.rows_trained == summary.rows_expected == expected.rows_trained
    assert summary.worker_failures == lost


@pytest.mark.parametrize(("deaths", "lost"), [([], [0]), ([(1, 2)], [0, 1])], ids=["nobody dies", "one dies in the third round"])
def test_rounds_have_the_same_status_of_the_crew_until_it_changes(
    run_job: Run, blobs_job: Document, deaths: list[tuple[int, int]], lost: list[int]
) -> None:
    events, _ = run_job(blobs_job, {"workers.count": 3}, pool=ScriptedPool(3, dies_in(ComputeGradients, *deaths)))

    crews = [event.crew for event in events if isinstance(event, RoundDone)]
    different = list({id(crew): crew for crew in crews}.values())
    assert [crew.lost for crew in different] == lost
    assert all(sum(crew.shares.values()) == 5 for crew in different)


def test_rounds_tell_of_the_workers_that_ran_them_though_one_died_since(run_job: Run, blobs_job: Document) -> None:
    pool = ScriptedPool(3)
    pool.ahead = TwoRounds(pool, victim=1)

    events, summary = run_job(blobs_job, {"workers.count": 3}, pool=pool)

    rounds = [event for event in events if isinstance(event, RoundDone)]
    assert [event.crew.lost for event in rounds] == [0, 0] + [1] * 10
    assert [set(event.worker_seconds) for event in rounds[:2]] == [set(event.crew.shares) for event in rounds[:2]]
    assert set(rounds[2].crew.shares) == {0, 2}
    assert summary.worker_failures == 1


def test_the_user_is_told_which_worker_was_lost_and_why(run_job: Run, blobs_job: Document) -> None:
    events, _ = run_job(blobs_job, {"workers.count": 3}, pool=ScriptedPool(3, dies_in(ComputeGradients, (1, 2))))

    (notice,) = (event.message for event in events if isinstance(event, Noticed))
    assert notice.startswith("worker 1 was lost: killed")


def failing(events: Iterator[Event], match: str) -> tuple[Finished, list[str]]:
    """The end of a run that ends with a PoolError, and its notices."""
    seen: list[Event] = []
    with pytest.raises(PoolError, match=match):
        seen.extend(events)
    last = seen[-1] if seen else None
    assert isinstance(last, Finished)
    return last, [event.message for event in seen if isinstance(event, Noticed)]


def test_a_slice_that_kills_every_worker_ends_the_run_by_its_shard_and_the_last_worker(
    begin_job: Begin, blobs_job: Document, tmp_path: Path
) -> None:
    def dies(worker: int, task: Task) -> str | None:
        deadly = isinstance(task, ComputeGradients) and task.round == 6 and 3 in task.shards
        return "out of memory" if deadly else None

    events = begin_job(blobs_job, {"workers.count": 5}, pool=ScriptedPool(5, dies))

    finished, _ = failing(events, r"^shard 3 cost 3 workers in a row, the last of them worker \d: out of memory$")
    summary = finished.summary
    assert (summary.status, summary.rounds, summary.kept_epoch) == ("failed", 6, 1)
    assert summary.worker_failures == 3
    assert (tmp_path / "run-1" / "model" / "model.safetensors").exists()
    assert (tmp_path / "run-1" / "summary.json").exists()


def test_a_run_whose_workers_are_all_lost_and_not_replaced_ends_with_what_it_has(
    begin_job: Begin, blobs_job: Document, by_waiting: Callable[[ScriptedPool], ScriptedPool]
) -> None:
    pool = by_waiting(ScriptedPool(2, dies_in(ComputeGradients, (0, 6), (1, 7))))

    finished, notices = failing(begin_job(blobs_job, {"workers.wait_seconds": 60}, pool=pool), r"0 of 1 workers .* within 60 s")
    summary = finished.summary

    assert [notice.partition(":")[0] for notice in notices] == ["worker 0 was lost", "worker 1 was lost"]
    assert (finished.crew.workers, finished.crew.lost) == (0, 2)
    assert (summary.status, summary.workers, summary.worker_failures) == ("failed", 0, 2)
    assert summary.rows_trained == summary.rows_expected
