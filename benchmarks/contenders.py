"""Train one work with isograd or with what users would pick instead, and print its speed as JSON.

Run as `python benchmarks/contenders.py "PyTorch, 2 threads" "64-32-10 @ 64" --seconds 4`; compare.py runs them all. Each
contender has its rows in memory, shuffles them anew each epoch, and is timed by whole epochs, those of the first seconds left
out: caches fill, and Ray's own servers, which isograd and Ray Train have running beside them, take that long to start.
"""

import json
import os
import socket
import tempfile
import warnings
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from time import perf_counter, time
from typing import Any, Final

import click
import numpy as np
from works import Rows, Work, find, test_rows, training_rows

EPOCHS: Final = 3
"""Epochs of the work that has rows to test on, and the fewest of the others."""

WARM_UP_SECONDS: Final = 4.0

Result = dict[str, float]


def settled(rates: list[float], seconds: float) -> float:
    """Return the median of the rates that come after the warm-up, of epochs over `seconds` and the warm-up together."""
    return float(np.median(rates[int(len(rates) * WARM_UP_SECONDS / (WARM_UP_SECONDS + seconds)) :]))


def isograd(work: Work, seconds: float, address: str = "local", shards: int | None = None, workers: int = 2) -> Result:
    """Return what isograd does as the command line would have it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from cluster.launch import launch
    from coordinator.job import parse_job
    from coordinator.order import Order
    from coordinator.records import EpochDone, Finished

    def write(path: Path, rows: Rows) -> str:
        x = pa.FixedSizeListArray.from_arrays(rows[0].ravel(), rows[0].shape[1])
        pq.write_table(pa.table({"x": x, "label": rows[1]}), path)
        return str(path)

    with tempfile.TemporaryDirectory(prefix="isograd-bench-") as folder:
        data: dict[str, Any] = {"train": write(Path(folder) / "train.parquet", training_rows(work)), "label": "label"}
        test = test_rows(work)
        if test is not None:
            data["validation"] = write(Path(folder) / "test.parquet", test)
        if shards is not None:
            data["shards"] = shards
        job = parse_job(
            {
                "job": {"name": "bench"},
                "data": data,
                "model": {"task": "classification", "hidden": list(work.layers[1:-1])},
                "optimizer": {"name": "momentum", "learning_rate": work.learning_rate},
                "training": {"batch_size": work.batch, "epochs": EPOCHS if test is not None else 1_000_000, "keep": "last"},
                "checkpoint": {"every_epochs": 1_000_000},
                "stopping": {} if test is not None else {"max_seconds": seconds + WARM_UP_SECONDS},
                "workers": {"count": workers},
            }
        )
        ends: list[tuple[float, int]] = []
        summary = None
        for event in launch(Order(job, Path(folder) / "run", time()), address, lambda: False, debug=False):
            if isinstance(event, EpochDone) and event.record.rows == event.record.rows_expected:
                ends.append((event.record.seconds, event.record.rows))
            if isinstance(event, Finished):
                summary = event.summary
        assert summary is not None
        rates = [rows / (end - begin) for (begin, _), (end, rows) in pairwise(ends)]
        if not rates:
            raise SystemExit(f"{seconds} seconds are too few for two epochs")
        rate = settled(rates, seconds) if test is None else float(np.median(rates))
        result = {"rows_per_second": rate, "startup": summary.seconds.startup}
        if summary.validation is not None and summary.validation.error_rate is not None:
            result["accuracy"] = 1 - summary.validation.error_rate
        return result


def _timed(work: Work, seconds: float, rows: int, epoch: Callable[[], None]) -> float:
    """Run epochs until the time is over, and return the median rows a second, the warm-up left out."""
    epoch()
    rates: list[float] = []
    until = perf_counter() + seconds + WARM_UP_SECONDS
    while len(rates) < EPOCHS - 1 or (work.rows is not None and perf_counter() < until):
        began = perf_counter()
        epoch()
        rates.append(rows / (perf_counter() - began))
    return settled(rates, seconds) if work.rows is not None else float(np.median(rates))


def _torch_loop(work: Work, seconds: float, rank: int, ranks: int, wrap: Callable[[Any], Any]) -> Result:
    """Train a share of each batch, and return what the contender did; all ranks do as many epochs."""
    import torch

    x, y = (torch.from_numpy(array) for array in training_rows(work))
    torch.manual_seed(1)
    parts: list[Any] = []
    for inputs, outputs in pairwise(work.layers):
        parts += [torch.nn.Linear(inputs, outputs), torch.nn.ReLU()]
    plain = torch.nn.Sequential(*parts[:-1])
    model = wrap(plain)
    optimizer = torch.optim.SGD(model.parameters(), lr=work.learning_rate, momentum=0.9)
    loss = torch.nn.CrossEntropyLoss()
    share = work.batch // ranks

    def epoch() -> None:
        order = torch.randperm(len(x))  # the same on every rank: all have one seed
        for start in range(0, len(x) - work.batch + 1, work.batch):
            chosen = order[start + rank * share : start + (rank + 1) * share]
            optimizer.zero_grad(set_to_none=True)
            loss(model(x[chosen]), y[chosen]).backward()
            optimizer.step()

    # Ranks must not disagree about when to stop: how many epochs there is time for is settled by the first one's clock.
    epochs = _epochs(work, seconds, epoch, ranks)
    rates = []
    for _ in range(epochs):
        began = perf_counter()
        epoch()
        rates.append(len(x) // work.batch * work.batch / (perf_counter() - began))
    result = {"rows_per_second": settled(rates, seconds) if work.rows is not None else float(np.median(rates))}
    test = test_rows(work)
    if test is not None:
        with torch.no_grad():
            found = plain(torch.from_numpy(test[0])).argmax(dim=1)
        result["accuracy"] = float((found == torch.from_numpy(test[1])).float().mean())
    return result


def _epochs(work: Work, seconds: float, epoch: Callable[[], None], ranks: int) -> int:
    import torch

    began = perf_counter()
    epoch()
    count = torch.tensor([max(EPOCHS - 1, int((seconds + WARM_UP_SECONDS) / (perf_counter() - began)))])
    if work.rows is None:
        return EPOCHS - 1
    if ranks > 1:
        torch.distributed.broadcast(count, 0)
    return int(count)


def torch_threads(work: Work, seconds: float) -> Result:
    """Return what PyTorch does in one process with two threads."""
    import torch

    torch.set_num_threads(2)
    return _torch_loop(work, seconds, 0, 1, lambda model: model)


def torch_ddp(work: Work, seconds: float) -> Result:
    """Return what two processes of PyTorch's DistributedDataParallel do, which exchange by gloo."""
    import torch.multiprocessing

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="isograd-bench-") as folder:
        out = Path(folder) / "result.json"
        torch.multiprocessing.spawn(_ddp_rank, (work, seconds, port, str(out)), nprocs=2)
        result: Result = json.loads(out.read_text())
    return result


def _ddp_rank(rank: int, work: Work, seconds: float, port: int, out: str) -> None:
    import torch

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    result = _torch_loop(work, seconds, rank, 2, torch.nn.parallel.DistributedDataParallel)
    if rank == 0:
        Path(out).write_text(json.dumps(result))
    torch.distributed.destroy_process_group()


def ray_train(work: Work, seconds: float) -> Result:
    """Return what Ray Train's TorchTrainer does with two workers."""
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    import ray
    import ray.train
    import ray.train.torch

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    with tempfile.TemporaryDirectory(prefix="isograd-bench-") as folder:
        out = Path(folder) / "result.json"
        trainer = ray.train.torch.TorchTrainer(
            _ray_train_worker,
            train_loop_config={"work": work.name, "seconds": seconds, "out": str(out)},
            scaling_config=ray.train.ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}),
            run_config=ray.train.RunConfig(storage_path=folder, name="bench"),
        )
        trainer.fit()
        result: Result = json.loads(out.read_text())
    ray.shutdown()
    return result


def _ray_train_worker(config: dict[str, Any]) -> None:
    import ray.train
    import ray.train.torch
    import torch

    torch.set_num_threads(1)
    rank = ray.train.get_context().get_world_rank()
    result = _torch_loop(find(config["work"]), config["seconds"], rank, 2, ray.train.torch.prepare_model)
    if rank == 0:
        Path(config["out"]).write_text(json.dumps(result))


def scikit_learn(work: Work, seconds: float) -> Result:
    """Return what scikit-learn's MLPClassifier does with two threads of BLAS."""
    from sklearn.neural_network import MLPClassifier
    from threadpoolctl import threadpool_limits

    warnings.simplefilter("ignore")
    x, y = training_rows(work)
    network = MLPClassifier(
        work.layers[1:-1],
        solver="sgd",
        alpha=0.0,
        batch_size=work.batch,
        learning_rate_init=work.learning_rate,
        momentum=0.9,
        nesterovs_momentum=False,
        random_state=1,
    )
    with threadpool_limits(2):
        classes = np.arange(work.layers[-1])
        rate = _timed(work, seconds, len(x), lambda: network.partial_fit(x, y, classes=classes))
        result = {"rows_per_second": rate}
        test = test_rows(work)
        if test is not None:
            result["accuracy"] = float(network.score(*test))
    return result


CONTENDERS: Final[dict[str, Callable[[Work, float], Result]]] = {
    "isograd": isograd,
    "PyTorch DDP": torch_ddp,
    "PyTorch, 2 threads": torch_threads,
    "Ray Train": ray_train,
    "scikit-learn": scikit_learn,
}


def entrants(work: Work) -> Iterator[str]:
    """Yield who takes part in a work: scikit-learn is no choice for the largest network."""
    for name in CONTENDERS:
        if name != "scikit-learn" or max(work.layers) <= 1024:
            yield name


@click.command()
@click.argument("contender", type=click.Choice(list(CONTENDERS)))
@click.argument("work")
@click.option("--seconds", default=4.0, show_default=True, help="How long to measure.")
def main(contender: str, work: str, seconds: float) -> None:
    """Train WORK with CONTENDER, and print what it did as a line of JSON."""
    print(json.dumps(CONTENDERS[contender](find(work), seconds)))


if __name__ == "__main__":
    main()
