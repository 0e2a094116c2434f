"""From the user's command to a running coordinator: in this process, on a Ray of its own, or on a running cluster."""

import logging
import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import ceil
from pathlib import Path
from typing import Any, Final

import ray
import ray._private.worker as ray_worker
from ray.exceptions import RayError

from cluster.addresses import AUTO, CLUSTER, MODE
from cluster.follow import follow
from cluster.orphans import StartTimeoutError, end_agents_with, start_anew_if_late
from coordinator.dispatch import PoolError
from coordinator.order import Order
from coordinator.pool import InProcessPool, WorkersSpec
from coordinator.records import Event
from coordinator.run import run
from worker.blas import one_thread
from worker.errors import first_line, require

IN_PROCESS: Final = "none"
LOCAL: Final = "local"

# Ray reads these when it starts.
RAY_SETTINGS: Final = {
    "RAY_worker_niceness": "0",  # training is the reason that the machine is busy
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


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
    _require_address(address)
    with connected(address, order.job.workers, debug=debug):
        yield from follow(order, interrupted)


def _require_address(address: str) -> None:
    """Raise JobError unless this is an address that Ray takes."""
    key, given = "--address", address
    if address == AUTO and os.environ.get(CLUSTER):
        key, given = CLUSTER, os.environ[CLUSTER]
    host = r"(\[[^][]+\]|[^][]+)"
    known = given in (LOCAL, AUTO) or re.fullmatch(rf"ray://{host}(:\d+)?|(?!\w+://){host}:\d+", given) is not None
    require(known, key, f"'{given}' is no address to train at; accepted are local, none, auto, HOST:PORT and ray://HOST:PORT")


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
        start_anew_if_late(lambda: ray.init(**options))
    except (ConnectionError, RayError, RuntimeError, ValueError, OSError, StartTimeoutError) as error:
        raise _unreachable(address, error) from error
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


def _unreachable(address: str, error: Exception) -> PoolError:
    # Ray says of a token that is missing the same as of a machine that is.
    sent = address == LOCAL or os.environ.get(MODE) == "token"
    wanted = "" if sent else f"; where it wants a token, set {MODE}=token"
    return PoolError(f"Ray at address '{address}' can't be reached: {first_line(error)}{wanted}")


def _protect_token() -> None:
    """Ray writes the token that opens a local cluster for all to read; close it to others."""
    token = Path.home() / ".ray" / "auth_token"
    if token.is_file() and token.stat().st_uid == os.getuid():
        token.chmod(0o600)
