"""What a person is told of each column: its values in the training rows, and what becomes of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from worker.columns import Column, Columns, Feature, Kind
from worker.dates import written_moment, written_span
from worker.encoding import Encoding
from worker.inputs import CategoryInputs, Inputs
from worker.scan import Scan
from worker.statistics import Counts, Statistics

SHOWN: Final = 4
"""Categories that are named."""

SCALED: Final = {"none": "as it is", "standard": "standardised", "minmax": "scaled to 0…1"}


@dataclass(frozen=True, kw_only=True)
class ColumnPlan:
    """One column.

    Attributes:
        name: of the column.
        type: of its values.
        missing: share of the training rows without a value (of a list: of its entries).
        values: their range, or the categories.
        becomes: what the network gets of it.
        width: inputs, or outputs of a label.
    """

    name: str
    type: str
    missing: float
    values: str
    becomes: str
    width: int


def plan_columns(columns: Columns, encoding: Encoding, scan: Scan) -> list[ColumnPlan]:
    """Return what is to be told of each feature, in their order, and after them of the label's columns and the weight."""
    moments = iter(scan.moments)
    plans = [
        ColumnPlan(
            name=feature.column.name,
            type=_type(feature.column),
            missing=_missing(known),
            values=_values(feature.column, next(moments) if feature.parts else known),
            becomes=_becomes(feature, inputs),
            width=len(inputs.names),
        )
        for feature, inputs, known in zip(columns.features, encoding.inputs, scan.features, strict=True)
    ]
    labels: Sequence[Statistics | Counts] = scan.targets if scan.classes is None else [scan.classes]
    for column, known in zip(columns.labels, labels, strict=True):
        plans.append(
            ColumnPlan(
                name=column.name,
                type=_type(column),
                missing=_missing(known),
                values=_values(column, known),
                becomes="target" + ", standardised" * columns.scale_target + ", classes balanced" * columns.balanced,
                width=len(column.names) if encoding.label.classes is None else encoding.outputs,
            )
        )
    if columns.weight is not None and scan.weights is not None:
        values = _values(columns.weight, scan.weights)
        plans.append(
            ColumnPlan(
                name=columns.weight.name, type=_type(columns.weight), missing=0.0, values=values, becomes="weight", width=0
            )
        )
    return plans


def _type(column: Column) -> str:
    kind = f"{column.width} × {column.kind}" if column.width is not None else column.kind
    return f"{kind}, dictionary" if column.dictionary else kind


def _missing(known: Statistics | Counts) -> float:
    if isinstance(known, Counts):
        return known.missing / known.rows
    return 1.0 - float(known.count_V.mean()) / known.rows


def _values(column: Column, known: Statistics | Counts) -> str:
    if isinstance(known, Counts):
        ranked = sorted(known.labels, key=lambda label: -known.of[label])
        return f"{len(ranked):,}: {', '.join(map(str, ranked[:SHOWN]))}{', …' if len(ranked) > SHOWN else ''}"
    return _range(column.kind, float(known.low_V.min()), float(known.high_V.max()))


def _range(kind: Kind, low: float, high: float) -> str:
    if kind == "boolean":
        return "false, true" if low < high else "true" if low else "false"
    return written(kind, low) if low == high else f"{written(kind, low)} to {written(kind, high)}"


def written(kind: Kind, value: float) -> str:
    """Return a number that was read of a column of this kind as a person writes it."""
    match kind:
        case "date" | "timestamp":
            return written_moment(value, clock=kind == "timestamp")
        case "time" | "duration":
            return written_span(value)
        case "integer":
            return f"{value:.0f}"
    return f"{value:.5g}"


def _becomes(feature: Feature, inputs: Inputs) -> str:
    if isinstance(inputs, CategoryInputs):
        return f"one-hot: {len(inputs.categories):,}{', other' * inputs.other}{', missing' * inputs.missing}" + (
            f", gaps {inputs.fill}" if inputs.fill is not None else ""
        )
    parts = ", ".join(feature.parts) + " as sine and cosine" * feature.cyclical
    gaps = {
        "error": "",
        "constant": f", gaps {feature.fill}",
        "indicator": ", gaps mean + indicator" if inputs.indicators else ", gaps mean",
    }
    return f"{parts}{': ' * bool(parts)}{SCALED[feature.scale]}{gaps.get(feature.missing, f', gaps {feature.missing}')}"
