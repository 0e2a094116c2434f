"""From the user's command to a running coordinator: connecting to Ray, and following what the coordinator does."""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from time import monotonic
from typing import Any, Final

import ray
import ray._private.worker as ray_worker
from ray.exceptions import ActorUnavailableError, RayActorError, RayError, RayTaskError
from ray.util.placement_group import PlacementGroup

from cluster.calls import first_line
from cluster.orphans import end_agents_with
from cluster.placement import among, await_places, places
from cluster.ray_pool import RayPool
from coordinator.dispatch import PoolError
from coordinator.export import Announcement
from coordinator.pool import InProcessPool, WorkersSpec
from coordinator.records import Event, Finished, Noticed, RoundDone
from coordinator.run import Order, run
from worker.blas import one_thread
from worker.errors import UserError

IN_PROCESS: Final = "none"
LOCAL: Final = "local"
POLL_SECONDS: Final = 0.1
MOST_RESTARTS: Final = 5
"""How often a coordinator that dies is started anew."""

RESTART_SECONDS: Final = 60.0
"""How long that may take, at least."""

# Ray reads these when it starts.
RAY_SETTINGS: Final = {
    "RAY_worker_niceness": "0",  # training is the reason that the machine is busy
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@dataclass(frozen=True)
class News:
    """What happened since the last look: the events but for rounds, in order, and the latest round.

    `life` tells one coordinator process from the next, which begins its events anew.
    """

    life: int
    events: list[Event]
    latest: RoundDone | None


class CoordinatorActor:
    """The coordinator in a process of its own. `run` occupies one of its threads, the other methods the rest.

    When the process dies, Ray starts it anew and calls `run` again, which goes on from the last checkpoint.
    """

    def __init__(self) -> None:
        """Wait for an order."""
        self._one_thread = one_thread()
        self._events: list[Event] = []
        self._round: RoundDone | None = None
        self._interrupt = threading.Event()
        self._one_run = threading.Lock()
        self._outcome: Future[None] = Future()

    def run(self, order: Order, group: PlacementGroup | None, kill_in_round: int | None) -> None:
        """Carry the order out to its end, with workers at the group's places.

        Raises UserError and PoolError as `coordinator.run.run` does.
        """
        with self._one_run:  # where a connection breaks, Ray calls again, while the first call goes on
            if not self._outcome.done():
                try:
                    self._run(order, group, kill_in_round)
                    self._outcome.set_result(None)
                except Exception as error:
                    self._outcome.set_exception(error)
            self._outcome.result()

    def _run(self, order: Order, group: PlacementGroup | None, kill_in_round: int | None) -> None:
        if ray.get_runtime_context().was_current_actor_reconstructed:
            order = replace(order, resume_if_begun=True)
        pool = RayPool(order.job.workers, group, kill_in_round)
        try:
            for event in run(order, pool, self._interrupt.is_set):
                if isinstance(event, RoundDone):
                    self._round = event
                else:
                    self._events.append(event)
        finally:
            pool.close()

    def news(self, life: int, seen: int) -> News:
        """Return what happened after the first `seen` events of a life, or everything where this is another one."""
        ours = os.getpid()
        # The round is read first: an event that comes meanwhile is then newer than the round, and not the other way round.
        latest = self._round
        return News(ours, self._events[seen if life == ours else 0 :], latest)

    def interrupt(self) -> None:
        """End the run after the round under way."""
        self._interrupt.set()


def launch(order: Order, address: str, interrupted: Callable[[], bool], *, debug: bool) -> Iterator[Event]:
    """Run the order at an address, yielding what happens; the last event is Finished.

    Args:
        order: what to run.
        address: "none" for this process, "local" for a Ray of its own, else what ray.init takes.
        interrupted: asked again and again; once true, the run is ended in good order.
        debug: whether to let Ray's messages through.

    Raises:
        UserError: the job, its data, the run directory or the address are at fault.
        PoolError: the cluster failed or has too few workers.
    """
    if address == IN_PROCESS:
        with one_thread():
            yield from run(order, InProcessPool(order.job.workers.most), interrupted)
        return
    with connected(address, order.job.workers, debug=debug):
        yield from follow(order, interrupted)


@contextmanager
def connected(address: str, workers: WorkersSpec, *, debug: bool) -> Iterator[None]:
    """Start a local Ray with room for the workers, or connect to a running one, for the length of a `with` block.

    Raises:
        PoolError: Ray can't be started or reached.
    """
    for name, value in RAY_SETTINGS.items():
        os.environ.setdefault(name, value)
    options: dict[str, Any] = {
        "address": address,
        "log_to_driver": debug,
        "logging_level": logging.INFO if debug else logging.CRITICAL,
    }
    if address == LOCAL:
        # More workers than cores are slow, but what they compute is the same.
        needed = ceil(workers.most * workers.cpus)
        options |= {"num_cpus": max(os.cpu_count() or 1, needed), "include_dashboard": False}
    if not debug:
        # Ray prints a paragraph on stdout for every worker that dies, and has no setting against it; deaths are told
        # as events of the run.
        ray_worker.print_to_stdstream = lambda *_, **__: None
    on_sigterm = signal.getsignal(signal.SIGTERM)  # which ray.init replaces
    try:
        ray.init(**options)
    except (ConnectionError, RayError, RuntimeError, ValueError, OSError) as error:
        raise PoolError(f"Ray at address '{address}' can't be reached: {first_line(error)}") from error
    signal.signal(signal.SIGTERM, on_sigterm)
    _protect_token()
    watcher = None
    if address == LOCAL:
        node: Any = ray_worker.global_worker.node
        watcher = end_agents_with(node.all_processes["raylet"][0].process.pid)
    try:
        yield
    finally:
        ray.shutdown()
        if watcher is not None:
            watcher.wait()


def _protect_token() -> None:
    """Ray writes the token that opens a local cluster for all to read; close it to others."""
    token = Path.home() / ".ray" / "auth_token"
    if token.is_file() and token.stat().st_uid == os.getuid():
        token.chmod(0o600)


def follow(order: Order, interrupted: Callable[[], bool], kill_in_round: int | None = None) -> Iterator[Event]:
    """Have a coordinator actor of the connected Ray run the order; see `launch`.

    Where `kill_in_round` is given, a worker is killed while it computes that round.
    """
    # The places are the command's, so that a coordinator that is started anew finds them as they are.
    with places(order.job.workers) as group:
        yield from await_places(group, order.job.workers, interrupted)
        yield from _follow(order, group, interrupted, kill_in_round)


def _follow(order: Order, group: PlacementGroup, interrupted: Callable[[], bool], kill_in_round: int | None) -> Iterator[Event]:
    life, seen, ended, finished, reached = 0, 0, False, False, monotonic()
    patience = max(order.job.workers.wait_seconds, RESTART_SECONDS)
    with _coordinator(order, group) as actor:
        # Tried again as long as the actor is started anew: every try that finds it gone counts, several of them for one death.
        ending = actor.run.options(max_task_retries=-1).remote(order, group, kill_in_round)
        while not ended:
            done, _ = ray.wait([ending], timeout=POLL_SECONDS)
            ended = bool(done)
            try:
                if interrupted():
                    actor.interrupt.remote()
                news: News = ray.get(actor.news.remote(life, seen))
                reached = monotonic()
            except ActorUnavailableError as error:  # being restarted
                if monotonic() - reached > patience:
                    raise PoolError(
                        f"the coordinator was lost, and the cluster had no place for a new one within {patience:g} s; "
                        "go on with --resume once it has"
                    ) from error
                continue
            if news.life != life:
                if life:
                    yield Noticed(message="the coordinator was lost; a new one goes on from the last checkpoint")
                life, seen = news.life, 0
            seen += len(news.events)
            yield from news.events
            finished = finished or any(isinstance(event, Finished) for event in news.events)
            if news.latest is not None and not finished:
                yield news.latest
        ray.get(ending)


@contextmanager
def _coordinator(order: Order, group: PlacementGroup) -> Iterator[Any]:
    """Start a coordinator actor for the length of a `with` block, and name what it fails for."""
    options = {"num_cpus": 0, "max_concurrency": 4, "max_restarts": MOST_RESTARTS, "max_task_retries": 0}
    # At one of the workers' places, to share memory with those that are there too.
    actor: Any = ray.remote(CoordinatorActor).options(scheduling_strategy=among(group), **options).remote()
    killed = True
    try:
        yield actor
        killed = False
    except RayTaskError as error:
        killed = False
        if isinstance(error.cause, UserError | PoolError):
            raise error.cause from None
        raise
    except RayActorError as error:
        raise PoolError(f"the coordinator was lost: {first_line(error)}") from error
    finally:
        ray.kill(actor)
        metrics = order.job.metrics
        if killed and metrics is not None and metrics.sd_dir is not None:
            # It could not take its announcement back itself. One that came to an end did; what is there after that is
            # another's, who has the directory that this one was refused.
            Announcement(metrics.sd_dir, order.directory).withdraw()
