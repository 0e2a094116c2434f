"""The crew's decisions, by scripted events: no workers, no clock."""

import random
import re
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from coordinator.crew import Answered, Crew, Event, Give, GiveUp, Instruction, Job, Joined, Lost, Shards
from worker.messages import ComputeGradients, CountRows, PrepareShards, Task

ROUND = Job(lambda shards: ComputeGradients(0, shards))


def load(shards: Shards) -> PrepareShards:
    return PrepareShards(None, shards, None)  # type: ignore[arg-type]


def shards_of(task: Task) -> Shards:
    assert not isinstance(task, CountRows)
    return task.shards


class Script:
    """Plays the pool: keeps what each worker was told, and answers when the test says so."""

    def __init__(self, shards: int, workers: int, nodes: str = "") -> None:
        self.crew = Crew(shards)
        self.given: dict[int, Task] = {}
        self.gave_up: list[str] = []
        self.computed: Counter[int] = Counter()
        self._status: dict[int, object] = {}
        for worker in range(workers):
            self.tell(Joined(worker, {}, nodes[worker] if nodes else ""))

    def begin(self, job: Job = ROUND) -> None:
        self.computed.clear()
        self._note(self.crew.begin(job))

    def hold(self) -> None:
        """Have everybody load, as at the start of a run."""
        self.crew.learn_to_load(load)
        self.begin(Job(None))
        self.answer_all()

    def tell(self, event: Event) -> None:
        if isinstance(event, Lost):
            self.given.pop(event.worker, None)
        self._note(self.crew.on(event))

    def answer(self, worker: int) -> None:
        task = self.given.pop(worker)
        if isinstance(task, ComputeGradients):
            self.computed.update(task.shards)
        self.tell(Answered(worker, None))

    def answer_all(self) -> None:
        while self.given:
            self.answer(next(iter(self.given)))

    def _note(self, instructions: list[Instruction]) -> None:
        crew = self.crew
        status = crew.members, crew.newcomers, crew.lost, crew.recomputed, crew.moved, crew.share_sizes
        assert self._status.setdefault(crew.changes, status) == status, "a change is counted"
        for instruction in instructions:
            if isinstance(instruction, GiveUp):
                self.gave_up.append(instruction.reason)
                continue
            assert isinstance(instruction, Give)
            assert instruction.worker not in self.given, "one task at a time"
            self.given[instruction.worker] = instruction.task


def ready(shards: int, workers: int) -> Script:
    script = Script(shards, workers)
    script.hold()
    return script


def test_shards_are_shared_evenly_and_each_is_computed_once() -> None:
    script = ready(8, 3)
    assert script.crew.shares == {0: (0, 1), 1: (2, 3, 4), 2: (5, 6, 7)}
    script.begin()
    script.answer_all()
    assert script.crew.done
    assert script.computed == Counter(range(8))


def test_a_lost_workers_share_is_loaded_and_computed_by_the_others_in_the_same_job() -> None:
    script = ready(8, 2)
    script.begin()
    script.answer(1)
    script.tell(Lost(0, "killed"))
    assert script.given == {1: load(tuple(range(8)))}
    script.answer(1)
    assert script.given == {1: ComputeGradients(0, (0, 1, 2, 3))}
    script.answer(1)
    assert script.crew.done
    assert script.computed == Counter(range(8))
    assert (script.crew.lost, script.crew.recomputed, script.crew.moved) == (1, 4, 4)


def test_a_worker_lost_after_it_answered_costs_nothing_in_that_job() -> None:
    script = ready(4, 2)
    script.begin()
    script.answer(0)
    script.tell(Lost(0, "killed"))
    script.answer_all()
    assert script.computed == Counter(range(4))
    assert script.crew.recomputed == 0
    script.begin()
    script.answer_all()
    assert script.computed == Counter(range(4))


def test_when_nobody_is_left_the_job_waits_for_a_newcomer_who_does_it_all() -> None:
    script = ready(4, 2)
    script.begin()
    script.answer(0)
    script.tell(Lost(0, "killed"))
    script.tell(Lost(1, "killed"))
    assert not script.given
    assert not script.crew.done
    script.tell(Joined(2, {}))
    script.answer_all()
    assert script.crew.done
    assert script.computed == Counter(range(4))


def test_a_newcomer_loads_beside_the_job_and_takes_over_at_the_next() -> None:
    script = ready(8, 2)
    script.begin()
    script.tell(Joined(2, {}))
    assert script.given[2] == load((3, 7))
    script.answer(0)
    script.answer(1)
    assert script.crew.done, "nobody waits for the newcomer"
    script.begin()
    assert script.crew.shares[2] == (), "it has not loaded yet"
    script.answer_all()
    script.begin()
    assert script.crew.shares == {0: (0, 1, 2), 1: (4, 5, 6), 2: (3, 7)}
    script.answer_all()
    assert script.computed == Counter(range(8))


def test_who_gave_shards_away_lets_go_of_them_when_idle() -> None:
    script = ready(4, 1)
    script.begin()
    script.tell(Joined(1, {}))
    script.answer_all()
    script.begin()
    script.answer(1)
    script.answer(0)
    assert script.given == {0: load((0, 1))}


def test_a_death_while_loading_what_another_left_is_covered() -> None:
    script = ready(6, 3)
    script.begin()
    script.tell(Lost(0, "killed"))
    script.answer(1)
    script.tell(Lost(1, "killed while loading"))
    script.answer_all()
    assert script.crew.done
    assert script.computed == Counter(range(6))


def test_a_slice_that_costs_one_worker_after_the_other_is_named() -> None:
    script = ready(4, 2)
    script.begin()
    workers = 2
    while not script.gave_up:
        busy = next((worker for worker, task in script.given.items() if 2 in shards_of(task)), None)
        if busy is None and script.given:
            script.answer(next(iter(script.given)))
        elif busy is None:
            script.tell(Joined(workers, {}))
            workers += 1
        elif isinstance(script.given[busy], ComputeGradients):
            script.tell(Lost(busy, "SIGSEGV"))
        else:
            script.answer(busy)
        assert workers < 20, "it must not go on for ever"
    assert re.match(r"shard 2 cost [45] workers in a row, the last of them worker \d+: SIGSEGV", script.gave_up[0])
    assert script.crew.lost <= 5


def test_workers_that_die_of_other_things_are_not_held_against_a_slice() -> None:
    script = ready(4, 2)
    for worker in range(2, 12):
        script.begin()
        script.tell(Lost(max(script.given), "killed"))
        script.tell(Joined(worker, {}))
        script.answer_all()
        assert script.crew.done
    assert not script.gave_up


@given(shards=st.integers(1, 16), workers=st.integers(1, 5), seed=st.integers(0, 2**32))
def test_whatever_happens_every_shard_is_computed_once_by_someone_who_holds_it(shards: int, workers: int, seed: int) -> None:
    chance = random.Random(seed)
    script = ready(shards, workers)
    held: dict[int, set[int]] = {worker: set(share) for worker, share in script.crew.shares.items()}
    newcomer = workers
    for _ in range(5):
        script.begin()
        deaths = 0
        while not script.crew.done:
            roll = chance.random()
            if (roll < 0.15 and newcomer < 40) or not script.crew.members:
                script.tell(Joined(newcomer, {}))
                held[newcomer] = set()
                newcomer += 1
            elif roll < 0.25 and deaths < 2:
                deaths += 1
                script.tell(Lost(chance.choice(list(script.crew.shares)), "chance"))
            else:
                worker = chance.choice(sorted(script.given))
                task = script.given[worker]
                if isinstance(task, PrepareShards):
                    held[worker] = set(task.shards)
                else:
                    assert held[worker] >= set(shards_of(task))
                script.answer(worker)
        assert script.computed == Counter(range(shards))
        shares = list(script.crew.shares.values())
        if shares:
            assert sorted(shard for share in shares for shard in share) == list(range(shards))
    assert not script.gave_up


def test_workers_of_a_node_hold_neighbouring_shards() -> None:
    script = Script(shards=12, workers=6, nodes="abacbc")
    shares = script.crew.shares
    assert (shares[0] + shares[2], shares[1] + shares[4], shares[3] + shares[5]) == ((0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11))
    script.hold()
    script.begin()
    script.answer_all()
    script.tell(Lost(3, "its node is gone"))
    script.tell(Lost(5, "its node is gone"))
    shares = script.crew.shares
    assert sorted(shares[0] + shares[2]) == [0, 1, 2, 3, 8, 9]
    assert sorted(shares[1] + shares[4]) == [4, 5, 6, 7, 10, 11]


def test_who_takes_a_lost_workers_place_gets_back_what_it_had() -> None:
    script = ready(8, 4)
    before = script.crew.shares
    script.begin()
    script.tell(Lost(1, "killed"))
    script.answer_all()
    script.tell(Joined(4, {}))
    script.answer_all()
    script.begin()
    assert script.crew.shares == {0: before[0], 2: before[2], 3: before[3], 4: before[1]}


def test_two_newcomers_that_load_at_once_both_end_up_with_a_share() -> None:
    script = Script(shards=4, workers=1)
    script.hold()
    script.begin()
    script.tell(Joined(1, {}))
    script.tell(Joined(2, {}))
    script.answer(2)  # the second of them is the first to have loaded
    script.answer(0)
    for _ in range(4):
        script.begin()
        script.answer_all()

    assert sorted(shard for share in script.crew.shares.values() for shard in share) == [0, 1, 2, 3]
    assert all(script.crew.shares.values())
    assert script.crew.settled
