"""Buffers for slices that are worked on together, and the views of them that each slice size needs.

Shapes: R rows of all slices, K slices of one size, B rows of a slice, I inputs, O outputs of a layer. The rows of `x` stand
one below the other; of everything after it each slice has a block (O, B), so that a slice's numbers are contiguous, and
slices of one size that follow each other make one array (K, O, B). A stacked product treats each of its K matrices like
one by itself: that slices are worked on together changes no bit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from math import prod
from typing import Final, NamedTuple

import numpy as np

from worker.arrays import Floats

CACHED_SHAPES: Final = 64
"""Combinations of slice sizes whose views are kept. Slices of a run differ by one row at most, so there are few."""


@dataclass(frozen=True)
class LayerViews:
    """One layer's arrays for a run of slices.

    `z` and `a` may be one buffer. `out` is what the layer above reads: a derivative needs the activation as it was before
    units were dropped. `keep` is None where units are never dropped.
    """

    z_KOB: Floats
    a_KOB: Floats
    d_KOB: Floats
    scratch_KOB: Floats
    out_KOB: Floats
    keep_KOB: Floats | None


class Target(NamedTuple):
    """Where a slice's targets go (O, B), and its rows' weights (B,) if they have any."""

    t_OB: Floats
    w_B: Floats | None

    def slice(self, first: int, last: int) -> "Target":
        """Return where the targets of some of the rows go."""
        return Target(self.t_OB[:, first:last], None if self.w_B is None else self.w_B[first:last])


@dataclass(frozen=True)
class Run:
    """Slices of one size, one after the other: the first of them is the batch's slice number `first`.

    `w_K1B` is None where all rows weigh the same.
    """

    first: int
    x_KIB: Floats
    t_KOB: Floats
    w_K1B: Floats | None
    layers: tuple[LayerViews, ...]

    @property
    def slices(self) -> int:
        """K."""
        return len(self.x_KIB)


@dataclass(frozen=True, eq=False)
class Batch:
    """Slices to be worked on together. Equal to itself alone, so that views of its arrays can be kept by it.

    Attributes:
        x_RI: inputs, to be filled.
        bounds: where each slice begins in `x_RI`, and where the last one ends.
        targets: of each slice, to be filled.
        runs: the same memory, slices of one size together.
    """

    x_RI: Floats
    bounds: tuple[int, ...]
    targets: tuple[Target, ...]
    runs: tuple[Run, ...]

    @property
    def rows(self) -> int:
        """R."""
        return self.bounds[-1]

    @property
    def slices(self) -> int:
        """Slices altogether."""
        return len(self.targets)


class Buffers:
    """Memory for a batch of any sizes, reused from batch to batch; it grows to the largest one."""

    def __init__(
        self, sizes: tuple[int, ...], dtype: str, *, in_place: Sequence[bool], dropout: Sequence[bool], weighted: bool
    ) -> None:
        """Take note of a network's shape.

        Args:
            sizes: inputs, hidden units and outputs.
            dtype: of all arrays.
            in_place: for each layer, whether z and a may be one buffer.
            dropout: for each layer, whether units may be dropped.
            weighted: whether rows have weights.
        """
        self._inputs, self._units = sizes[0], sizes[1:]
        self._dtype = dtype
        self._in_place, self._dropout, self._weighted = in_place, dropout, weighted
        self._capacity = 0
        self._flat: dict[tuple[str, int], Floats] = {}
        self._batches: dict[tuple[int, ...], Batch] = {}

    @property
    def bytes_per_row(self) -> int:
        """What a row of a batch takes."""
        layers = zip(self._units, self._in_place, self._dropout, strict=True)
        entries = sum(units * (2 + (not in_place) + 2 * dropout) for units, in_place, dropout in layers)
        entries += self._inputs + self._units[-1] + max(self._units) + self._weighted
        return int(np.dtype(self._dtype).itemsize) * entries

    def batch(self, sizes: tuple[int, ...]) -> Batch:
        """Return views for slices of these sizes, none of them 0. Whatever was returned before is overwritten."""
        known = self._batches.get(sizes)
        if known is not None:
            return known
        rows = sum(sizes)
        if rows > self._capacity:
            self._capacity = rows
            self._batches.clear()
            self._flat.clear()
        if len(self._batches) >= CACHED_SHAPES:
            self._batches.clear()
        made = self._batches[sizes] = self._make(sizes)
        return made

    def _make(self, sizes: tuple[int, ...]) -> Batch:
        bounds = (0, *np.cumsum(sizes).tolist())
        runs: list[Run] = []
        first = 0
        for size, group in groupby(sizes):
            count = len(list(group))
            runs.append(self._run(first, bounds[first], count, size))
            first += count
        targets = tuple(
            Target(t_OB, None if run.w_K1B is None else run.w_K1B[place, 0])
            for run in runs
            for place, t_OB in enumerate(run.t_KOB)
        )
        return Batch(self._cut("x", 0, 0, (bounds[-1], self._inputs)), bounds, targets, tuple(runs))

    def _run(self, first: int, row: int, count: int, size: int) -> Run:
        x_KBI = self._cut("x", 0, row * self._inputs, (count, size, self._inputs))
        t_KOB = self._cut("t", 0, row * self._units[-1], (count, self._units[-1], size))
        w_K1B = self._cut("w", 0, row, (count, 1, size)) if self._weighted else None
        layers = tuple(self._layer(number, row, count, size) for number in range(len(self._units)))
        return Run(first, x_KBI.transpose(0, 2, 1), t_KOB, w_K1B, layers)

    def _layer(self, number: int, row: int, count: int, size: int) -> LayerViews:
        units = self._units[number]

        def cut(name: str, which: int = number) -> Floats:
            return self._cut(name, which, row * units, (count, units, size))

        z_KOB = cut("z")
        a_KOB = z_KOB if self._in_place[number] else cut("a")
        dropout = self._dropout[number]
        # Nothing in the scratch buffer outlives a call, so that all layers share one.
        scratch_KOB = self._cut("scratch", 0, 0, (count, units, size))
        return LayerViews(z_KOB, a_KOB, cut("d"), scratch_KOB, cut("out") if dropout else a_KOB, cut("keep") if dropout else None)

    def _cut(self, name: str, number: int, start: int, shape: tuple[int, ...]) -> Floats:
        flat = self._flat.get((name, number))
        if flat is None:
            widths = {"x": self._inputs, "t": self._units[-1], "w": 1, "scratch": max(self._units)}
            width = widths.get(name, self._units[number])
            flat = self._flat[name, number] = np.empty(self._capacity * width, self._dtype)
        return flat[start : start + prod(shape)].reshape(shape)
