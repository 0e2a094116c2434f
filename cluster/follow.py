"""The coordinator in a process of its own, and following what it does: one that is lost is started anew."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from time import monotonic, sleep
from typing import Any, Final

import ray
from ray.exceptions import ActorUnavailableError, ActorUnschedulableError, RayActorError, RayTaskError
from ray.util.placement_group import PlacementGroup

from cluster.calls import death_cause
from cluster.placement import await_places, near, places
from cluster.ray_pool import RayPool
from cluster.succession import Succession
from coordinator.dispatch import PoolError
from coordinator.export import Announcement
from coordinator.order import Order
from coordinator.records import Event, Finished, RoundDone
from coordinator.run import run
from worker.blas import one_thread
from worker.errors import UserError

POLL_SECONDS: Final = 0.1
ANSWER_SECONDS: Final = 60.0
"""How long a coordinator may take to answer, at least: that it has yet to find a place is no reason to give up."""


@dataclass(frozen=True)
class News:
    """What happened since the last look.

    Attributes:
        events: all but the rounds, in order.
        latest: the latest round.
        ended: whether there is nothing more to come.
        node: where the coordinator is.
    """

    events: list[Event]
    latest: RoundDone | None
    ended: bool
    node: str


class NoPlaceInterrupt(KeyboardInterrupt):
    """Interrupted before the coordinator had a place, so that there is nothing yet that it could end in good order."""


class Untold:
    """Events in order, each until whoever asks has it: a run of weeks has more than should stay in memory."""

    def __init__(self) -> None:
        """Begin without any."""
        self._events: list[Event] = []
        self._first = 0
        self._lock = threading.Lock()

    def append(self, event: Event) -> None:
        """Add an event; another thread may."""
        self._events.append(event)

    def after(self, seen: int) -> list[Event]:
        """Return what came after the first `seen` events, which are not asked for again; a call that comes late has no use."""
        with self._lock:
            gone = max(0, seen - self._first)
            del self._events[:gone]
            self._first += gone
            return self._events.copy()


class CoordinatorActor:
    """The coordinator in a process of its own. It carries its order out in a thread, and tells of that whoever asks."""

    def __init__(self, order: Order, group: PlacementGroup, kill_in_round: int | None) -> None:
        """Begin to carry the order out, with workers at the group's places."""
        self._one_thread = one_thread()
        self._events = Untold()
        self._round: RoundDone | None = None
        self._interrupt = threading.Event()
        self._outcome: Future[None] = Future()
        self._node = ray.get_runtime_context().get_node_id()
        threading.Thread(target=self._run, args=(order, group, kill_in_round), name="run", daemon=True).start()

    def _run(self, order: Order, group: PlacementGroup, kill_in_round: int | None) -> None:
        try:
            with closing(RayPool(order.job.workers, group, kill_in_round)) as pool:
                for event in run(order, pool, self._interrupt.is_set):
                    if isinstance(event, RoundDone):
                        self._round = event
                    else:
                        self._events.append(event)
            self._outcome.set_result(None)
        except BaseException as error:  # whatever it is, those who follow are not to wait for more
            self._outcome.set_exception(error)

    def news(self, seen: int, *, interrupt: bool) -> News:
        """Return what happened after the first `seen` events, a moment later unless the run is at its end.

        With `interrupt`, have it end after the round under way.
        """
        if interrupt:
            self._interrupt.set()
        wait([self._outcome], POLL_SECONDS)
        # Read in this order: all events are there once it has ended, and an event that comes meanwhile is newer than the round.
        ended, latest = self._outcome.done(), self._round
        return News(self._events.after(seen), latest, ended, self._node)

    def outcome(self) -> None:
        """Return if the run has come to its end. Raises what it was ended by, as `coordinator.run.run` does."""
        self._outcome.result(timeout=0)


def follow(order: Order, interrupted: Callable[[], bool], kill_in_round: int | None = None) -> Iterator[Event]:
    """Have a coordinator actor of the connected Ray run the order, yielding what happens; the last event is Finished.

    Args:
        order: what to run.
        interrupted: asked again and again; once true, the run is ended in good order.
        kill_in_round: kill a worker while it computes this round.

    Raises:
        UserError: the job, its data or the run directory are at fault.
        PoolError: the cluster failed or has too few workers.
    """
    # The places are the command's, so that a coordinator that is started anew finds them as they are.
    with places(order.job.workers) as group:
        yield from await_places(group, order.job.workers, interrupted)
        yield from _follow(order, group, interrupted, kill_in_round)


def _follow(order: Order, group: PlacementGroup, interrupted: Callable[[], bool], kill_in_round: int | None) -> Iterator[Event]:
    node, succession, patience = "", Succession(order), max(order.job.workers.wait_seconds, ANSWER_SECONDS)
    while True:
        try:
            with _coordinator(succession.order, group, node, kill_in_round) as actor:
                for news in _all_news(actor, interrupted, patience):
                    node = news.node
                    for event in news.events:
                        yield event
                        yield from succession.heard(event)
            return
        except (RayActorError, ActorUnschedulableError) as error:
            if isinstance(error, RayActorError) and error.actor_init_failed:
                raise PoolError(f"the coordinator could not be started: {death_cause(error)}") from error
            yield succession.lost(death_cause(error))


def _all_news(actor: Any, interrupted: Callable[[], bool], patience: float) -> Iterator[News]:
    """Yield what the coordinator tells, the latest round among the events, and raise what ended it."""
    seen, finished, ended, heard = 0, False, False, False
    while not ended:
        # One that has yet to find a place can't be told of an interrupt.
        give_up = _never if heard else interrupted
        news: News = _ask(lambda: actor.news.remote(seen, interrupt=interrupted()), patience, give_up)  # noqa: B023 - called at once
        seen, ended, heard = seen + len(news.events), news.ended, True
        finished = finished or any(isinstance(event, Finished) for event in news.events)
        latest = [news.latest] if news.latest is not None and not finished else []
        yield replace(news, events=[*news.events, *latest])
    _ask(actor.outcome.remote, patience)


def _never() -> bool:
    return False


def _ask(call: Callable[[], Any], patience: float, give_up: Callable[[], bool] = _never) -> Any:
    """Return the result of a coordinator's method, called again where the connection to it breaks.

    Raises:
        PoolError: it does not answer.
        NoPlaceInterrupt: it has not answered yet, and `give_up` says so.
        RayActorError: it is lost.
        ActorUnschedulableError: the node that it was to go to is.
    """
    until = monotonic() + patience
    while True:
        try:
            answer = call()
            while not ray.wait([answer], timeout=POLL_SECONDS)[0]:
                if give_up():
                    raise NoPlaceInterrupt(
                        "interrupted before the coordinator had a place; if the directory holds a run, --resume goes on with it"
                    )
                if monotonic() >= until:
                    raise PoolError(_no_answer(patience))
            return ray.get(answer)
        except ActorUnavailableError as error:
            if monotonic() >= until:
                raise PoolError(_no_answer(patience)) from error
            sleep(POLL_SECONDS)


def _no_answer(patience: float) -> str:
    return (
        f"the coordinator has not answered for {patience:g} s, or has found no place in the cluster; "
        "--resume goes on with what the run directory holds"
    )


@contextmanager
def _coordinator(order: Order, group: PlacementGroup, node: str, kill_in_round: int | None) -> Iterator[Any]:
    """Start a coordinator actor for the length of a `with` block, and tell what it fails for in its own words."""
    # At one of the workers' places, to share memory with those that are there too.
    options = {"num_cpus": 0, "max_concurrency": 4, "scheduling_strategy": near(node, group)}
    actor: Any = ray.remote(CoordinatorActor).options(**options).remote(order, group, kill_in_round)
    ended = False
    try:
        yield actor
        ended = True
    except NoPlaceInterrupt:
        ended = True
        raise
    except RayTaskError as error:
        ended = True
        if isinstance(error.cause, UserError | PoolError):
            raise error.cause from None
        raise
    finally:
        ray.kill(actor)
        metrics = order.job.metrics
        if not ended and metrics is not None and metrics.sd_dir is not None:
            # It could not take its announcement back itself. One that came to an end did, and one without a place has none;
            # what is there then is another's, who has the directory that this one was refused.
            Announcement(metrics.sd_dir, order.directory).withdraw()
