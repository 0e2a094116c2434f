"""Curves of a run, kept to a few hundred points however long it goes on."""

from math import isfinite
from typing import Final

from coordinator.records import EpochRecord, Errors, RoundDone

MOST_POINTS: Final = 512
"""Points of a curve, which is about what a screen can show; a longer run has coarser curves."""

Column = list[float | None]


class RoundCurves:
    """Curves over the rounds. Each point is the mean of as many rounds as keeps the points few."""

    COLUMNS: Final = ("loss", "compute", "reduce", "update", "gradient_norm", "learning_rate")

    def __init__(self) -> None:
        """Begin without a point."""
        self._rounds: list[int] = []
        self._points: list[list[float]] = []
        self._stride, self._count, self._last = 1, 0, 0
        self._sums = [0.0] * len(self.COLUMNS)

    def add(self, event: RoundDone) -> None:
        """Take note of a round."""
        sums, phases = self._sums, event.phases
        sums[0] += event.loss
        sums[1] += phases["compute"]
        sums[2] += phases["reduce"]
        sums[3] += phases["update"]
        sums[4] += event.gradient_norm
        sums[5] += event.learning_rate
        self._last = event.round
        self._count += 1
        if self._count == self._stride:
            self._rounds.append(self._last)
            self._points.append(self._mean())
            self._count, self._sums = 0, [0.0] * len(self.COLUMNS)
            if len(self._points) == MOST_POINTS:
                self._thin()

    def _mean(self) -> list[float]:
        return [total / self._count for total in self._sums]

    def _thin(self) -> None:
        """Make one point of every two."""
        pairs = zip(self._points[::2], self._points[1::2], strict=True)
        self._points = [[(one + other) / 2 for one, other in zip(*pair, strict=True)] for pair in pairs]
        self._rounds = self._rounds[1::2]
        self._stride *= 2

    def columns(self) -> dict[str, Column | list[int]]:
        """Return the points by column; `round` has the last round of each. The last point may be of fewer rounds."""
        rounds, points = self._rounds, self._points
        if self._count:
            rounds, points = [*rounds, self._last], [*points, self._mean()]
        columns = zip(*points, strict=True) if points else ((),) * len(self.COLUMNS)
        named = {name: [short(value) for value in column] for name, column in zip(self.COLUMNS, columns, strict=True)}
        return {"round": rounds, **named}


class EpochCurves:
    """Curves over the epochs: of all of them, or where there are many of every second, fourth, … and the last."""

    def __init__(self) -> None:
        """Begin without a point."""
        self._records: list[EpochRecord] = []
        self._stride, self._seen = 1, 0
        self._last: EpochRecord | None = None

    def add(self, record: EpochRecord) -> None:
        """Take note of an epoch."""
        if self._seen % self._stride == 0:
            self._records.append(record)
            if len(self._records) == MOST_POINTS:
                self._records = self._records[::2]
                self._stride *= 2
        self._seen += 1
        self._last = record

    def columns(self) -> dict[str, object]:
        """Return the points by column, the errors by split: `validation` is None where there is none."""
        records = list(self._records)
        if self._last is not None and records[-1] is not self._last:
            records.append(self._last)
        validation = [record.validation for record in records if record.validation is not None]
        return {
            "epoch": [record.epoch for record in records],
            "rows_per_second": [short(record.rows_per_second) for record in records],
            "train": _error_columns([record.train for record in records]),
            "validation": _error_columns(validation) if validation else None,
        }


def _error_columns(errors: list[Errors]) -> dict[str, Column]:
    names = ("loss", "mean_absolute_error", "mean_squared_error", "error_rate")
    return {name: [short(getattr(split, name)) for split in errors] for name in names}


def short(value: float | None) -> float | None:
    """Return a number in the five digits that are shown of it; None for what JSON can't hold."""
    return float(f"{value:.5g}") if value is not None and isfinite(value) else None
