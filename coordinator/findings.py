"""What training and scoring go on in spite of, and the user should know of the data."""

from collections.abc import Iterator, Mapping
from math import inf
from typing import Final, Literal

import numpy as np
import pyarrow as pa

from worker.arrays import Floats
from worker.columns import Column, Columns, Feature
from worker.encoding import Encoding
from worker.inputs import CategoryInputs, scaling
from worker.model import ModelSpec
from worker.scan import Scan, count_labels
from worker.statistics import Counts, Statistics
from worker.values import Where

Precision = Literal["float32", "float64"]

EXACT: Final[Mapping[Precision, int]] = {"float32": 2**24, "float64": 2**53}
"""Whole numbers up to these are exact, in each precision."""

# All numbers are read in float64, before anything is done to them.
SUBTRACT: Final = "subtract a number near all of them"
REMEDIES: Final[Mapping[Precision, str]] = {"float32": "scale it or use float64", "float64": SUBTRACT}
REMEDIES_OF_WHOLE: Final[Mapping[Precision, str]] = {
    "float32": "scale it, make it a category, or use float64",
    "float64": f"{SUBTRACT}, or make it a category",
}
REMEDIES_OF_TARGETS: Final[Mapping[Precision, str]] = {
    "float32": 'set data.scale_target = "standard" or use float64',
    "float64": SUBTRACT,
}

REACH: Final[Mapping[str, tuple[float, float]]] = {"sigmoid": (0, 1), "softmax": (0, 1), "tanh": (-1, 1), "relu": (0, inf)}
"""From where to where the outputs of an activation go."""

COARSE: Final = 0.01
"""Share of the values' standard deviation: numbers so far apart, or farther, are too few to tell the values by."""

NOTHING: Final = "nothing to learn from, best left out of data.features"
CONSTANT: Final = f"the same value in all training rows: {NOTHING}"

FEW_ROWS: Final = 20
"""Rows below which it says nothing that all categories differ."""

MOST_NAMED: Final = 3


def findings(columns: Columns, model: ModelSpec, scan: Scan) -> list[str]:
    """Return a sentence for each kind of thing that is odd about the training rows."""
    named: dict[str, list[str]] = {}
    for name, what in (*_of_features(columns, model, scan), *_of_targets(columns, model, scan)):
        named.setdefault(what, []).append(name)
    return [f"{_named(names)} {what}" for what, names in named.items()] + _unlabelled(scan)


def _unlabelled(scan: Scan) -> list[str]:
    if not scan.unlabelled:
        return []
    rows = scan.targets[0].rows if scan.classes is None else scan.classes.rows
    return [f"{scan.unlabelled:,} of {rows:,} training rows have no label; they are read and weigh nothing"]


def _of_features(columns: Columns, model: ModelSpec, scan: Scan) -> Iterator[tuple[str, str]]:
    """Yield what is odd about columns to learn from, each time with the name of the column or value."""
    for feature, known in zip(columns.features, scan.features, strict=True):
        name = feature.column.name
        if isinstance(known, Counts):
            if len(known.of) + (known.missing > 0) == 1:
                yield name, CONSTANT
            elif len(known.of) == known.rows >= FEW_ROWS:
                yield name, f"another category in every training row: {NOTHING}"
            continue
        precision = _too_coarse(feature.column, known, model, scaled=feature.scale != "none")
        if precision is None:
            yield from ((value, CONSTANT) for value in _constant(feature, known))
            continue
        remedies = REMEDIES_OF_WHOLE if _whole(feature.column) and feature.column.width is None else REMEDIES
        yield name, _lost(feature.column, precision, remedies[precision])


def _of_targets(columns: Columns, model: ModelSpec, scan: Scan) -> Iterator[tuple[str, str]]:
    """Yield what is odd about a regression's targets, likewise."""
    if scan.classes is not None:
        return
    for column, known in zip(columns.labels, scan.targets, strict=True):
        precision = _too_coarse(column, known, model, scaled=columns.scale_target)
        if precision is not None:
            yield column.name, _lost(column, precision, REMEDIES_OF_TARGETS[precision])
        elif (known.low_V == known.high_V).all():
            yield column.name, "the same value in all training rows: the only one that can be learnt"
        low, high = REACH.get(model.output_name, (-inf, inf))
        shift_V, scale_V = scaling("standard" if columns.scale_target else "none", known, "data.label", column)
        lowest, highest = ((end_V - shift_V) / scale_V for end_V in (known.low_V, known.high_V))
        if (lowest < low).any() or (highest > high).any():
            ends = "below 0" if high == inf else f"outside {low} to {high}"
            yield column.name, f'targets {ends}, which model.output = "{model.output_name}" never gives; use another output'


def _lost(column: Column, precision: Precision, remedy: str) -> str:
    return f"{'whole numbers' if _whole(column) else 'values'} that differ by less than {precision} can tell; {remedy}"


def _whole(column: Column) -> bool:
    return column.kind == "integer"


def _too_coarse(column: Column, known: Statistics, model: ModelSpec, *, scaled: bool) -> Precision | None:
    """Return the precision in which different values of a column become the same ones, or nearly so; None where none does."""
    with np.errstate(over="ignore"):
        largest_V, range_V = np.maximum(abs(known.low_V), abs(known.high_V)), known.high_V - known.low_V
        deviation_V = np.sqrt(known.squares_V / known.count_V)
    # Scaling moves values near 0, where there are more of the model's numbers.
    sizes: dict[Precision, Floats] = {"float64": largest_V}
    if model.dtype == "float32":
        sizes["float32"] = range_V if scaled else largest_V
    for precision, size_V in sizes.items():
        if _whole(column):
            coarse_V = (size_V > EXACT[precision]) & ((range_V > 0) | (precision == "float64"))
        else:
            coarse_V = (size_V > COARSE * deviation_V * EXACT[precision]) & (range_V > 0)
        if coarse_V.any():
            return precision
    return None


def _constant(feature: Feature, known: Statistics) -> Iterator[str]:
    constant_V = known.low_V == known.high_V
    if feature.missing == "indicator":
        constant_V &= known.count_V == known.rows
    if feature.column.width is None:
        yield from (name for name, constant in zip(feature.numbers.names, constant_V, strict=True) if constant)
    elif constant_V.all():  # of a picture, some pixels may well be
        yield feature.column.name


def _named(names: list[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:MOST_NAMED])
    more = f" and {len(names) - MOST_NAMED:,} more" if len(names) > MOST_NAMED else ""
    return f"column{'s' if len(names) > 1 else ''} {shown}{more} {'have' if len(names) > 1 else 'has'}"


class Unknown:
    """Counts the rows of a table that is scored in which a column of categories has what no training row has."""

    def __init__(self, encoding: Encoding) -> None:
        """Count none yet."""
        self._columns = [_UnknownIn(given) for given in encoding.inputs if isinstance(given, CategoryInputs)]

    def look_at(self, table: pa.Table, where: Where) -> None:
        """Take account of some rows; `where` names one of them. Raises DataError as `label_values` does."""
        for column in self._columns:
            column.add(count_labels(table, column.inputs.column, where, gaps=column.inputs.gaps))

    @property
    def findings(self) -> list[str]:
        """A sentence for each column that has any."""
        return [sentence for column in self._columns for sentence in column.findings()]


class _UnknownIn:
    def __init__(self, inputs: CategoryInputs) -> None:
        self.inputs = inputs
        self._known = frozenset((*inputs.categories, *inputs.rare))
        self._other = self._missing = 0

    def add(self, counts: Counts) -> None:
        self._other += sum(rows for label, rows in counts.of.items() if label not in self._known)
        if self.inputs.fill is None:
            self._missing += 0 if self.inputs.missing else counts.missing
        elif self.inputs.fill not in self._known:
            self._other += counts.missing

    def findings(self) -> Iterator[str]:
        zero = "taken as 0 in all of its inputs"
        if self._other:
            yield self._sentence(
                self._other, "a category that no training row has", "taken as (other)" if self.inputs.other else zero
            )
        if self._missing:
            yield self._sentence(self._missing, "no value, though every training row has one", zero)

    def _sentence(self, rows: int, what: str, taken: str) -> str:
        return f"column '{self.inputs.column.name}': {rows:,} {'row has' if rows == 1 else 'rows have'} {what}; {taken}"
