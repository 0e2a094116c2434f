"""What those who watch a run cost it, and what a hostile client can: rows a second of one run while they come and go."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from threading import Event
from time import process_time, time
from typing import Any, Final

import clients
from works import WORKS, training_rows

SMALLEST: Final = WORKS[0]
"""Where a round is short, and a microsecond most."""

SETTLE_SECONDS: Final = 0.3
"""Until a client's process has begun."""

ROUNDS_RECORDED: Final = 100_000


def watched(turns: int, seconds: float) -> dict[str, float]:
    """Return the rows a second while each kind of client is there, and what recording a round takes.

    All kinds take turns within one run, so that they meet the same machine.
    """
    rates: dict[str, list[float]] = {kind: [] for kind in clients.CLIENTS}
    with tempfile.TemporaryDirectory(prefix="isograd-bench-") as folder:
        for kind, rate in _turns([*clients.CLIENTS] * turns, seconds, Path(folder)):
            rates[kind].append(rate)
    found = {f"{kind}, rows/s": median(values) for kind, values in rates.items()}
    return found | {"recording a round, µs": recording()}


def _turns(kinds: list[str], seconds: float, folder: Path) -> Iterator[tuple[str, float]]:
    """Train while one client after the other is there, yielding its kind and the rows a second meanwhile."""
    from cluster.launch import LOCAL, launch
    from coordinator.job import parse_job
    from coordinator.order import Order
    from coordinator.records import RoundDone, Started

    over = Event()
    order = Order(parse_job(_document(folder) | {"metrics": {"dashboard": True}}), folder / "run", time())
    events = launch(order, LOCAL, over.is_set, debug=False)
    url = str(next(event for event in events if isinstance(event, Started)).metrics_url)
    rounds = (event for event in events if isinstance(event, RoundDone))
    for kind in kinds:
        with subprocess.Popen([sys.executable, clients.__file__, kind, url]) as client:
            begin = time() + SETTLE_SECONDS
            first = next(event for event in rounds if event.timestamp >= begin)
            last = next(event for event in rounds if event.timestamp >= first.timestamp + seconds)
            client.kill()
        yield kind, (last.round - first.round) * SMALLEST.batch / (last.timestamp - first.timestamp)
    over.set()
    for _ in events:
        pass


def _document(folder: Path) -> dict[str, Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    x, labels = training_rows(SMALLEST)
    pq.write_table(
        pa.table({"x": pa.FixedSizeListArray.from_arrays(x.ravel(), x.shape[1]), "label": labels}), folder / "rows.parquet"
    )
    return {
        "job": {"name": "bench"},
        "data": {"train": str(folder / "rows.parquet"), "label": "label"},
        "model": {"task": "classification", "hidden": list(SMALLEST.layers[1:-1])},
        "optimizer": {"name": "momentum", "learning_rate": SMALLEST.learning_rate},
        "training": {"batch_size": SMALLEST.batch, "epochs": 1_000_000, "keep": "last"},
        "checkpoint": {"every_epochs": 1_000_000},
        "workers": {"count": 2},
    }


def recording() -> float:
    """Return the microseconds of processor time that a round's event takes to be recorded, all that comes later included."""
    from coordinator.records import CrewStatus, RoundDone
    from coordinator.watch import Watch

    crew = CrewStatus(workers=2, shares={0: 2, 1: 2})
    phases: Any = {"compute": 2e-4, "reduce": 5e-5, "update": 1e-4}
    known: dict[str, Any] = {
        "rows": 64,
        "gradient_norm": 1.0,
        "learning_rate": 0.1,
        "seconds": 4e-4,
        "phases": phases,
        "crew": crew,
    }
    rounds = [
        RoundDone(round=number, timestamp=1.0, loss=0.5, worker_seconds={0: 1e-4, 1: 1e-4}, **known)
        for number in range(1, ROUNDS_RECORDED + 1)
    ]
    times = []
    for _ in range(5):
        watch = Watch(None, Path("run"))
        began = process_time()
        for event in rounds:
            watch.report(event)
        watch.page()
        times.append(process_time() - began)
        watch.close()
    return 1e6 * min(times) / ROUNDS_RECORDED
