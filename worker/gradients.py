"""From the deltas of a batch to the gradient sums of its weights, chunk by chunk of the parameter vector.

Shapes: K slices, B rows of a slice, I inputs, O outputs of a layer, C entries of a chunk, P parameters. A chunk's gradients of
all slices are computed into a stack (K, C) and added in the tree's order, the last addition into the result. Where chunks begin
depends on the network alone, so that the shapes that BLAS sees are the same for any workers.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Final
from weakref import WeakKeyDictionary

import numpy as np

from worker.arrays import Floats
from worker.batch import Batch, Run
from worker.model import Layout, Slot
from worker.tree import Additions

CHUNK: Final = 1 << 20
"""Entries of a chunk, unless a quarter of all parameters is more."""


@dataclass(frozen=True)
class Piece:
    """Some outputs of one layer's weights or biases: `start` is their place in the chunk, `size` their entries."""

    layer: int
    is_weight: bool
    outputs: slice
    start: int
    size: int


@dataclass(frozen=True)
class Chunk:
    """A part of the parameter vector: whole arrays, or some rows of a large one."""

    start: int
    stop: int
    pieces: tuple[Piece, ...]


def chunk_entries(layout: Layout) -> int:
    """Return how many entries of a network's parameters a chunk has at most."""
    return max(CHUNK, layout.size // 4)


def chunks(layout: Layout, most: int) -> list[Chunk]:
    """Cut the parameter vector into chunks of `most` entries at most, unless a single output has more weights."""
    found: list[Chunk] = []
    open_pieces: list[Piece] = []
    start = end = 0
    for slot, layer, first, last in _parts(layout, most):
        size = (last - first) * slot.width
        if open_pieces and end + size - start > most:
            found.append(Chunk(start, end, tuple(open_pieces)))
            start, open_pieces = end, []
        open_pieces.append(Piece(layer, slot.is_weight, slice(first, last), end - start, size))
        end += size
    return [*found, Chunk(start, end, tuple(open_pieces))]


def _parts(layout: Layout, most: int) -> list[tuple[Slot, int, int, int]]:
    """Return (slot, layer, first output, last output) in the vector's order, large slots in parts equal to within one."""
    parts: list[tuple[Slot, int, int, int]] = []
    for number, slot in enumerate(layout.slots):
        outputs = slot.shape[0]
        count = -(-outputs // max(1, most // slot.width))
        bounds = [place * outputs // count for place in range(count + 1)]
        layer = number // (2 if layout.bias else 1)
        parts += [(slot, layer, first, last) for first, last in pairwise(bounds)]
    return parts


@dataclass(frozen=True)
class _Views:
    """The arrays of a batch that make up a chunk: the products (left, right, result), and each slice's result as a whole."""

    products: tuple[tuple[Floats, Floats, Floats], ...]
    slices: tuple[Floats, ...]


class GradientStack:
    """Adds up gradients of batches; keeps the memory for it."""

    def __init__(self, layout: Layout, dtype: str) -> None:
        """Plan the chunks for a network."""
        self._chunks = chunks(layout, chunk_entries(layout))
        self._largest = max(chunk.stop - chunk.start for chunk in self._chunks)
        self._flat: Floats = np.empty(0, dtype)
        self._ones: Floats = np.ones(0, dtype)
        self._views: WeakKeyDictionary[Batch, list[_Views]] = WeakKeyDictionary()

    def sum(self, batch: Batch, additions: Additions, gradient_P: Floats) -> None:
        """Write the sum of the slices' gradients into `gradient_P`, given the deltas and activations of a backward pass."""
        if self._ones.size < batch.rows:
            self._ones = np.ones(batch.rows, gradient_P.dtype)
            self._views.clear()
        if batch.slices == 1:
            for chunk in self._chunks:
                _multiply(self._chunk_views(batch, chunk, gradient_P[np.newaxis, chunk.start : chunk.stop]))
            return
        for chunk, views in zip(self._chunks, self._stack_views(batch), strict=True):
            _multiply(views)
            parts = views.slices
            *before, (left, right) = additions
            for into, other in before:
                np.add(parts[into], parts[other], out=parts[into])
            np.add(parts[left], parts[right], out=gradient_P[chunk.start : chunk.stop])

    def _stack_views(self, batch: Batch) -> list[_Views]:
        known = self._views.get(batch)
        if known is None:
            if self._flat.size < batch.slices * self._largest:
                self._flat = np.empty(batch.slices * self._largest, self._flat.dtype)
                self._views.clear()
            known = self._views[batch] = [self._chunk_views(batch, chunk, self._stack(batch, chunk)) for chunk in self._chunks]
        return known

    def _stack(self, batch: Batch, chunk: Chunk) -> Floats:
        size = chunk.stop - chunk.start
        return self._flat[: batch.slices * size].reshape(batch.slices, size)

    def _chunk_views(self, batch: Batch, chunk: Chunk, out_KC: Floats) -> _Views:
        products = tuple(
            self._product(run, piece, out_KC[run.first : run.first + run.slices, piece.start : piece.start + piece.size])
            for run in batch.runs
            for piece in chunk.pieces
        )
        return _Views(products, tuple(out_KC))

    def _product(self, run: Run, piece: Piece, out_KC: Floats) -> tuple[Floats, Floats, Floats]:
        d_KOB = run.layers[piece.layer].d_KOB[:, piece.outputs]
        if not piece.is_weight:
            # A product with ones takes a quarter of the time that np.add.reduce takes along rows.
            return d_KOB, self._ones[: d_KOB.shape[2]], out_KC
        below_KIB = run.layers[piece.layer - 1].out_KOB if piece.layer else run.x_KIB
        return d_KOB, below_KIB.transpose(0, 2, 1), out_KC.reshape(run.slices, d_KOB.shape[1], below_KIB.shape[1])


def _multiply(views: _Views) -> None:
    for left, right, out in views.products:
        np.matmul(left, right, out=out)
