"""What the benchmarks train: networks, data, and the arithmetic that they come to."""

import gzip
import multiprocessing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

FASHION_MNIST: Final = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts its files."""


@dataclass(frozen=True)
class Work:
    """A network trained with SGD and momentum 0.9 in float32: ReLU between layers, softmax and cross-entropy at the end.

    Attributes:
        name: how the tables call it.
        layers: inputs, hidden units, outputs.
        batch: rows of a global batch.
        rows: of random data; None for Fashion-MNIST.
        learning_rate: of all contenders.
    """

    name: str
    layers: tuple[int, ...]
    batch: int
    rows: int | None = 20_000
    learning_rate: float = 0.01

    @property
    def operations(self) -> int:
        """Floating-point operations of a row: two a weight forward, two for its gradient, two for the layer below's delta."""
        return sum((4 if layer == 0 else 6) * inputs * outputs for layer, (inputs, outputs) in enumerate(pairwise(self.layers)))


WORKS: Final = (
    Work("64-32-10 @ 64", (64, 32, 10), 64),
    Work("784-256-10 @ 128", (784, 256, 10), 128),
    Work("784-256-10 @ 512", (784, 256, 10), 512),
    Work("28-300-300-300-2 @ 1024", (28, 300, 300, 300, 2), 1024),
    Work("784-1024-1024-10 @ 1024", (784, 1024, 1024, 10), 1024),
    Work("784-4096-4096-10 @ 1024", (784, 4096, 4096, 10), 1024, rows=8_192),
    Work("Fashion-MNIST 784-256-10 @ 512", (784, 256, 10), 512, rows=None, learning_rate=0.05),
)

Rows = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]


def find(name: str) -> Work:
    """Return the work of this name."""
    return next(work for work in WORKS if work.name == name)


def training_rows(work: Work) -> Rows:
    """Return inputs (N, I) and classes (N,)."""
    if work.rows is None:
        return _fashion_mnist("train")
    draws = np.random.default_rng(1)
    x = draws.random((work.rows, work.layers[0]), dtype=np.float32)
    return x, draws.integers(0, work.layers[-1], work.rows)


def test_rows(work: Work) -> Rows | None:
    """Return rows to test on, for the work that has any."""
    return _fashion_mnist("t10k") if work.rows is None else None


def _fashion_mnist(part: str) -> Rows:
    def read(kind: str, header: int) -> npt.NDArray[np.uint8]:
        return np.frombuffer(gzip.decompress((FASHION_MNIST / f"{part}-{kind}.gz").read_bytes())[header:], np.uint8)

    x = read("images-idx3-ubyte", 16).reshape(-1, 784).astype(np.float32) / 255
    return x, read("labels-idx1-ubyte", 8).astype(np.int64)


def arithmetic_limit(work: Work, operations_a_second: float) -> float:
    """Return the rows a second of cores that do nothing but multiply matrices at this rate."""
    return operations_a_second / work.operations


def machine_rate(cores: int, seconds: float = 1.0) -> float:
    """Return the floating-point operations a second that so many cores reach at once, each multiplying 1024 x 1024 matrices."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(cores) as pool:
        return float(sum(pool.map(_core_rate, [seconds] * cores, chunksize=1)))


def _core_rate(seconds: float) -> float:
    size = 1024
    with threadpool_limits(1):
        left = np.ones((size, size), np.float32)
        out = np.empty_like(left)
        rates: list[Any] = []
        until = perf_counter() + seconds
        while perf_counter() < until:
            began = perf_counter()
            np.matmul(left, left, out=out)
            rates.append(2 * size**3 / (perf_counter() - began))
    return float(np.median(rates))
