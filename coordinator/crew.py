"""Who computes which shards, through deaths and arrivals: events go in, instructions come out. No I/O and no clock.

A job is one task for every shard: a round's gradients, say. Members hold shards (their rows are in memory) and have a share
of them to compute. A lost member's share goes to the others, who load what they lack and compute what is missing of the job;
a newcomer loads its share in the background and takes it over when the next job begins.
"""

from collections import Counter, deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from coordinator.shares import deal_out, fill, relieve
from worker.messages import Answer, PrepareShards, Task

SUSPICIOUS: Final = 2
"""Losses in a job after which a slice is computed by itself."""

MOST_LOSSES: Final = 3
"""Workers in a job that one slice, computed by itself, may cost before the run is given up."""

Shards = tuple[int, ...]


@dataclass(frozen=True)
class Job:
    """One task for every shard.

    Attributes:
        task: makes the task for some shards; None where holding the shards is all there is to do.
        rows: whether a member must hold the shards.
    """

    task: Callable[[Shards], Task] | None
    rows: bool = True


@dataclass(frozen=True)
class Joined:
    """A worker is up and idle. `fingerprint` tells what its bits depend on, `node` which others share a machine with it."""

    worker: int
    fingerprint: dict[str, str]
    node: str = ""


@dataclass(frozen=True)
class Answered:
    """A worker finished the task it was given, in so many seconds."""

    worker: int
    answer: Answer
    seconds: float = 0.0


@dataclass(frozen=True)
class Lost:
    """A worker is gone, and with it the task it was given."""

    worker: int
    cause: str


Event = Joined | Answered | Lost


@dataclass(frozen=True)
class Give:
    """The instruction to give an idle worker a task."""

    worker: int
    task: Task


@dataclass(frozen=True)
class GiveUp:
    """The instruction to end the run, since going on would only cost more workers."""

    reason: str


Instruction = Give | GiveUp


@dataclass
class _Member:
    node: str
    share: set[int] = field(default_factory=set)
    held: frozenset[int] = frozenset()
    queue: deque[Shards] = field(default_factory=deque)
    loading: Shards | None = None
    computing: Shards | None = None

    @property
    def idle(self) -> bool:
        return self.loading is None and self.computing is None


class Crew:
    """The members and the job under way.

    Attributes:
        answers: of the job under way.
        lost: members lost since the start.
        recomputed: slices that were under way when their worker was lost, since the start.
        moved: shards that changed hands since the start.
        changes: how often members came or went, or shares changed, since the start.
    """

    def __init__(self, shards: int) -> None:
        """Begin without members."""
        self._shards = shards
        self._members: dict[int, _Member] = {}
        self._unowned: set[int] = set(range(shards))
        self._missing: set[int] = set()
        self._job: Job | None = None
        self._load: Callable[[Shards], PrepareShards] | None = None
        self._coming: dict[int, set[int]] = {}
        self._losses: Counter[int] = Counter()
        self._blame: Counter[int] = Counter()
        self.answers: list[Answer] = []
        self.lost = 0
        self.recomputed = 0
        self.moved = 0
        self.changes = 0

    @property
    def members(self) -> int:
        """How many workers there are."""
        return len(self._members)

    @property
    def newcomers(self) -> int:
        """How many of them have yet to load what they will take over."""
        return len(self._coming)

    @property
    def done(self) -> bool:
        """Whether every shard's part of the job is in `answers`."""
        return not self._missing

    @property
    def shares(self) -> dict[int, Shards]:
        """The shards that each member is to compute."""
        return {worker: tuple(sorted(member.share)) for worker, member in self._members.items()}

    @property
    def share_sizes(self) -> dict[int, int]:
        """How many shards each member is to compute."""
        return {worker: len(member.share) for worker, member in self._members.items()}

    @property
    def settled(self) -> bool:
        """Whether there is nothing to do but compute: every member holds its share and is idle, and nobody is to take over."""
        return (
            bool(self._members)
            and self.done
            and not self._coming
            and all(member.idle and member.share and member.held == member.share for member in self._members.values())
        )

    def run_ahead(self) -> dict[int, Shards]:
        """Take all members for busy with their shares, until `halt`; return the shares. Only where `settled`."""
        shares = self.shares
        for worker, share in shares.items():
            self._members[worker].computing = share
        return shares

    def halt(self) -> list[Instruction]:
        """Take the members that `run_ahead` has sent off for idle again."""
        for member in self._members.values():
            member.computing = None
        return self._instructions()

    def learn_to_load(self, load: Callable[[Shards], PrepareShards]) -> None:
        """From now on, have members hold shards by this task."""
        self._load = load

    def begin(self, job: Job) -> list[Instruction]:
        """Begin a job over all shards, once the last one is done."""
        assert self.done, "one job at a time"
        self._job, self.answers = job, []
        self._missing = set(range(self._shards))
        self._losses.clear()
        self._blame.clear()
        self._settle()
        for member in self._members.values():
            member.queue.clear()
            if member.share:
                member.queue.append(tuple(sorted(member.share)))
        return self._instructions()

    def on(self, event: Event) -> list[Instruction]:
        """Take note of an event, and return what is to be done about it."""
        match event:
            case Joined(worker, _, node):
                self._join(worker, node)
            case Answered(worker, answer):
                self._answer(self._members[worker], answer)
            case Lost(worker, cause) if worker in self._members:
                reason = self._lose(worker, cause)
                if reason is not None:
                    return [GiveUp(reason)]
        return self._instructions()

    def _join(self, worker: int, node: str) -> None:
        self.changes += 1
        self._members[worker] = member = _Member(node)
        if self._job is None:
            members = self._by_node(self._members.values())
            sizes = list(Counter(other.node for other in members).values())
            for other, part in zip(members, deal_out(self._shards, sizes), strict=True):
                other.share = set(part)
            self._unowned = set()
        elif self._unowned:
            self._hand(self._unowned, [member])
            self._unowned = set()
        else:
            shares = {number: other.share - set().union(*self._coming.values()) for number, other in self._members.items()}
            shares |= {number: set(coming) for number, coming in self._coming.items()} | {worker: set()}
            taken = relieve(shares, worker, self._shards)
            for coming in self._coming.values():
                coming -= taken
            self._coming[worker] = taken

    def _answer(self, member: _Member, answer: Answer) -> None:
        if member.loading is not None:
            member.held, member.loading = frozenset(member.loading), None
        else:
            assert member.computing is not None, "an answer to a task that was given"
            self._missing -= set(member.computing)
            member.computing = None
            self.answers.append(answer)

    def _lose(self, worker: int, cause: str) -> str | None:
        member = self._members.pop(worker)
        self._coming.pop(worker, None)
        self.changes += 1
        self.lost += 1
        # Whatever it was busy with may be what killed it.
        suspects = set(member.computing or ())
        self.recomputed += len(suspects)
        if member.loading is not None:
            suspects = set(member.loading) - member.held
        self._losses.update(suspects)
        if len(suspects) == 1:
            (suspect,) = suspects
            self._blame[suspect] += 1
            if self._blame[suspect] >= MOST_LOSSES:
                return f"shard {suspect} cost {self._losses[suspect]} workers in a row, the last of them worker {worker}: {cause}"
        others = [other for number, other in self._members.items() if number not in self._coming]
        if not others:
            # Nobody is left but newcomers that are still loading: they take it all.
            others = list(self._members.values())
            self._coming.clear()
        if others:
            self._hand(member.share, others)
        else:
            self._unowned |= member.share
        return None

    def _hand(self, shards: Collection[int], members: list[_Member]) -> None:
        """Share out shards that nobody owns, and queue what the job under way misses of them."""
        self.moved += len(shards)
        members, left = self._by_node(members), iter(sorted(shards))
        for member, size in zip(members, fill([len(member.share) for member in members], len(shards)), strict=True):
            part = list(islice(left, size))
            member.share |= set(part)
            missing = [shard for shard in part if shard in self._missing]
            suspected = [shard for shard in missing if self._losses[shard] >= SUSPICIOUS]
            # Each by itself, so that the one to blame is found.
            member.queue.extend((shard,) for shard in suspected)
            rest = tuple(shard for shard in missing if shard not in suspected)
            if rest:
                member.queue.append(rest)

    def _by_node(self, members: Collection[_Member]) -> list[_Member]:
        """Return members, those of a node next to each other: with neighbouring shards, their sums can be added up there."""
        nodes = list(dict.fromkeys(member.node for member in self._members.values()))
        return sorted(members, key=lambda member: nodes.index(member.node))

    def _settle(self) -> None:
        """Let newcomers that have loaded their share take it over."""
        for worker, coming in list(self._coming.items()):
            member = self._members[worker]
            if member.loading is None and member.held >= coming:
                for other in self._members.values():
                    other.share -= coming
                member.share = coming
                self.moved += len(coming)
                self.changes += 1
                del self._coming[worker]

    def _instructions(self) -> list[Instruction]:
        if self._job is None:
            return []
        given: list[Instruction] = []
        for worker, member in self._members.items():
            task = self._next(worker, member) if member.idle else None
            if task is not None:
                given.append(Give(worker, task))
        return given

    def _next(self, worker: int, member: _Member) -> Task | None:
        assert self._job is not None
        while member.queue:
            shards = member.queue[0]
            if self._job.rows and not member.held.issuperset(shards):
                return self._hold(member, member.held.intersection(member.share).union(shards))
            member.queue.popleft()
            if self._job.task is not None:
                member.computing = shards
                return self._job.task(shards)
            self._missing -= set(shards)
        # Nothing to compute: a newcomer loads what it will take over, another lets go of what it gave away.
        wanted = self._coming.get(worker, member.share)
        if self._load is not None and self._job.rows and member.held != wanted:
            return self._hold(member, wanted)
        return None

    def _hold(self, member: _Member, shards: Collection[int]) -> Task:
        assert self._load is not None
        member.loading = tuple(sorted(shards))
        return self._load(member.loading)
