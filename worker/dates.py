"""Dates and times as numbers, whole or in parts.

Dates and timestamps are days since 1970-01-01, with fractions; times of day and durations are seconds. Timestamps with a time
zone are taken as the clocks there show them.
"""

from collections.abc import Mapping
from datetime import timedelta
from math import tau
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from worker.arrays import Floats
from worker.data import Part

SECONDS_A_DAY: Final = 86_400
DAYS_WITH_PARTS: Final = 10_960_000
"""Days before or after 1970-01-01, some 30,000 years, within which dates have parts."""

UNITS: Final[Mapping[str, int]] = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
"""Of a type's values, in a second."""

PERIODS: Final[Mapping[Part, tuple[int, int]]] = {
    "month": (1, 12),
    "day": (1, 31),
    "day_of_year": (1, 366),
    "weekday": (0, 7),
    "hour": (0, 24),
    "minute": (0, 60),
    "second": (0, 60),
}
"""The least value and the number of values of the parts that come round again."""

UTC: Final = ("UTC", "Etc/UTC", "GMT", "Z", "+00:00")
"""Names of the zone that needs no database of time zones."""


def part_names(name: str, parts: tuple[Part, ...], *, cyclical: bool) -> list[str]:
    """Return a name for each value that the parts of a column become."""
    names: list[str] = []
    for part in parts:
        names += [f"{name}[{part} sin]", f"{name}[{part} cos]"] if cyclical and part in PERIODS else [f"{name}[{part}]"]
    return names


def whole(values: pa.Array) -> Floats:
    """Return dates and times as numbers (N,), NaN where they are null. Raises pa.ArrowInvalid for an unknown time zone."""
    arrow = values.type
    if pa.types.is_date32(arrow):
        return _plain(values.cast(pa.int32()))
    if pa.types.is_date64(arrow):
        return _plain(values.cast(pa.int64())) / (SECONDS_A_DAY * 1000)
    if pa.types.is_timestamp(arrow):
        return _plain(_local(values).cast(pa.int64())) / (UNITS[arrow.unit] * SECONDS_A_DAY)
    integers = pa.int32() if pa.types.is_time32(arrow) else pa.int64()
    return _plain(values.cast(integers)) / UNITS[arrow.unit]


def in_parts(values: pa.Array, parts: tuple[Part, ...], *, cyclical: bool) -> Floats:
    """Return parts of dates and times (N, V), NaN where they are null. Raises pa.ArrowInvalid for an unknown time zone."""
    local = _local(values) if pa.types.is_timestamp(values.type) else values
    columns: list[Floats] = []
    for part in parts:
        numbers_N = whole(local) if part == "days" else _plain(_PART[part](local))
        if cyclical and part in PERIODS:
            first, count = PERIODS[part]
            angle_N = (numbers_N - first) * (tau / count)
            columns += [np.sin(angle_N), np.cos(angle_N)]
        else:
            columns.append(numbers_N)
    return np.stack(columns, axis=1)


def written_moment(days: float, *, clock: bool) -> str:
    """Return days since 1970-01-01 as a person writes them, with the time of day if `clock`; in whatever year."""
    day, seconds = divmod(round(days * SECONDS_A_DAY), SECONDS_A_DAY)
    date = str(np.datetime64(day, "D"))  # Python's own dates end with the year 9999
    minute, second = divmod(seconds, 60)
    return f"{date} {minute // 60:02}:{minute % 60:02}" + f":{second:02}" * (second > 0) if clock else date


def written_span(seconds: float) -> str:
    """Return a time of day or a duration as a person writes it, to the second."""
    days, rest = divmod(round(abs(seconds)), SECONDS_A_DAY)
    whole_days = f"{days:,} day{'s' * (days > 1)}, " if days else ""
    return "-" * (seconds < 0) + whole_days + str(timedelta(seconds=rest))


def _local(values: pa.Array) -> pa.Array:
    """Return timestamps as the clocks of their zone show them, without a zone."""
    zone = values.type.tz
    if zone is None:
        return values
    return values.cast(pa.int64()).cast(pa.timestamp(values.type.unit)) if zone in UTC else pc.local_timestamp(values)


def _plain(values: pa.Array) -> Floats:
    numbers: Floats = values.to_numpy(zero_copy_only=False).astype(np.float64, copy=False)
    return numbers


_PART: Final = {
    "year": pc.year,
    "month": pc.month,
    "day": pc.day,
    "day_of_year": pc.day_of_year,
    "weekday": pc.day_of_week,
    "hour": pc.hour,
    "minute": pc.minute,
    "second": pc.second,
}
