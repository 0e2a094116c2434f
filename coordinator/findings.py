"""What training and scoring go on in spite of, and the user should know of the data."""

from collections.abc import Iterator
from typing import Final

import pyarrow as pa

from worker.columns import Columns, Feature
from worker.encoding import Encoding
from worker.inputs import CategoryInputs
from worker.model import ModelSpec
from worker.scan import Scan, count_labels
from worker.statistics import Counts, Statistics
from worker.values import Where

EXACT: Final = {"float32": 2**24, "float64": 2**53}
"""Whole numbers up to these are exact, in each precision."""

FEW_ROWS: Final = 20
"""Rows below which it says nothing that all categories differ."""

MOST_NAMED: Final = 3


def findings(columns: Columns, model: ModelSpec, scan: Scan) -> list[str]:
    """Return a sentence for each kind of thing that is odd about the training rows."""
    known = list(zip(columns.features, scan.features, strict=True))
    constant = [name for feature, values in known for name in _constant(feature, values)]
    inexact = [feature.column.name for feature, values in known if _inexact(feature, values, EXACT[model.dtype])]
    different = [feature.column.name for feature, values in known if _all_differ(values)]
    sentences = (
        (constant, "the same value in all training rows: nothing can be learnt of it; leave it out of data.features"),
        (inexact, f"whole numbers that differ by less than {model.dtype} can tell; scale it, make it a category, or use float64"),
        (different, "another category in every training row: nothing can be learnt of it; leave it out of data.features"),
    )
    return [f"{_named(names)} {rest}" for names, rest in sentences if names] + _unlabelled(scan)


def _unlabelled(scan: Scan) -> list[str]:
    if scan.classes is not None:
        rows, missing = scan.classes.rows, scan.classes.missing
    else:
        rows, missing = scan.targets[0].rows, max(int(known.rows - known.count_V.min()) for known in scan.targets)
    return [f"{missing:,} of {rows:,} training rows have no label; they are read and weigh nothing"] if missing else []


def _constant(feature: Feature, known: Statistics | Counts) -> Iterator[str]:
    if isinstance(known, Counts):
        if len(known.of) + (known.missing > 0) == 1:
            yield feature.column.name
        return
    constant_V = known.low_V == known.high_V
    if feature.missing == "indicator":
        constant_V &= known.count_V == known.rows
    if feature.column.width is None:
        yield from (name for name, constant in zip(feature.numbers.names, constant_V, strict=True) if constant)
    elif constant_V.all():  # of a picture, some pixels may well be
        yield feature.column.name


def _inexact(feature: Feature, known: Statistics | Counts, most: int) -> bool:
    if isinstance(known, Counts) or feature.column.kind != "integer":
        return False
    # Scaled ones are moved near 0 before they are rounded.
    size = known.high_V - known.low_V if feature.scale != "none" else abs(known.low_V).clip(abs(known.high_V))
    return bool((size > most).any())


def _all_differ(known: Statistics | Counts) -> bool:
    return isinstance(known, Counts) and len(known.of) == known.rows >= FEW_ROWS


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
