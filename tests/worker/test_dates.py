from datetime import UTC, date, datetime, time, timedelta

import numpy as np
import pyarrow as pa
import pytest

from worker.data import Part
from worker.dates import in_parts, part_names, whole, written_moment, written_span

LEAP_DAY = datetime(2024, 2, 29, 18, 45, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("values", "number"),
    [
        (pa.array([date(1970, 1, 3)]), 2),
        (pa.array([date(1969, 12, 31)], pa.date64()), -1),
        (pa.array([datetime(1970, 1, 2, 12)], pa.timestamp("s")), 1.5),
        (pa.array([datetime(1970, 1, 2, 12)], pa.timestamp("ns")), 1.5),
        (pa.array([datetime(1970, 1, 2, 12)], pa.timestamp("ms", "UTC")), 1.5),
        (pa.array([datetime(1970, 1, 2, 12)], pa.timestamp("us", "Asia/Tokyo")), 1.875),
        (pa.array([time(1, 0, 1)], pa.time32("ms")), 3601),
        (pa.array([time(1, 0, 1, 500_000)], pa.time64("us")), 3601.5),
        (pa.array([timedelta(minutes=-1)], pa.duration("us")), -60),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_dates_are_days_since_1970_and_times_are_seconds(values: pa.Array, number: float) -> None:
    with_gap = pa.concat_arrays([values, pa.nulls(1, values.type)])

    assert whole(values).tolist() == [number]
    np.testing.assert_array_equal(whole(with_gap), [number, np.nan])


def test_parts_are_those_of_the_calendar() -> None:
    parts: tuple[Part, ...] = ("year", "month", "day", "day_of_year", "weekday", "hour", "minute", "second")
    values = pa.array([LEAP_DAY, None], pa.timestamp("ms", "UTC"))

    found = in_parts(values, parts, cyclical=False)

    assert found[0].tolist() == [2024, 2, 29, 60, LEAP_DAY.weekday(), 18, 45, 30]
    assert np.isnan(found[1]).all()
    assert in_parts(pa.array([LEAP_DAY.date()]), parts[:5], cyclical=False)[0].tolist() == found[0, :5].tolist()
    assert in_parts(pa.array([LEAP_DAY.time()], pa.time64("us")), parts[5:], cyclical=False)[0].tolist() == [18, 45, 30]


def test_parts_of_a_time_zone_are_those_of_its_clocks() -> None:
    values = pa.array([LEAP_DAY], pa.timestamp("s", "Asia/Tokyo"))

    assert in_parts(values, ("day", "hour"), cyclical=False).tolist() == [[1, 3]]


def test_an_unknown_time_zone_is_told_of() -> None:
    values = pa.array([0], pa.int64()).cast(pa.timestamp("s", "Mars/Base"))

    with pytest.raises(pa.ArrowInvalid, match="Mars/Base"):
        whole(values)


def test_cyclical_parts_come_round_again_and_the_others_stay() -> None:
    hours = pa.array([datetime(2024, 1, 1, hour, tzinfo=UTC) for hour in (0, 6, 12, 23)], pa.timestamp("s"))

    found = in_parts(hours, ("days", "hour"), cyclical=True)

    assert part_names("t", ("days", "hour"), cyclical=True) == ["t[days]", "t[hour sin]", "t[hour cos]"]
    np.testing.assert_allclose(found[:3, 1:], [[0, 1], [1, 0], [0, -1]], atol=1e-12)
    # 23 o'clock is as near to midnight as 1 o'clock is.
    assert found[3, 1:] == pytest.approx([-np.sin(2 * np.pi / 24), np.cos(2 * np.pi / 24)])
    assert found[:, 0].tolist() == whole(hours).tolist()


@pytest.mark.parametrize(
    ("part", "first", "last"),
    [("month", datetime(2024, 1, 1), datetime(2024, 12, 1)), ("weekday", datetime(2024, 1, 1), datetime(2024, 1, 7))],
)
def test_the_last_of_a_cycle_is_a_neighbour_of_the_first(part: Part, first: datetime, last: datetime) -> None:
    found = in_parts(pa.array([first, last], pa.timestamp("s")), (part,), cyclical=True)

    assert found[0] == pytest.approx([0, 1])
    assert found[1, 1] > 0.6


@pytest.mark.parametrize(
    ("days", "clock", "shown"),
    [
        (0.0, False, "1970-01-01"),
        (19782.99, False, "2024-02-29"),
        (19782.3125, True, "2024-02-29 07:30"),
        (19782 + 27011 / 86400, True, "2024-02-29 07:30:11"),
        (-0.25, True, "1969-12-31 18:00"),
        (2932896.5, True, "9999-12-31 12:00"),
        (2932897.0, True, "10000-01-01 00:00"),
        (2.0**31 - 1, False, "5881580-07-11"),
        (2.0**63 / 86400, True, "292277026596-12-04 15:30:08"),
    ],
)
def test_a_moment_is_written_as_a_person_does_in_whatever_year(days: float, clock: bool, shown: str) -> None:
    assert written_moment(days, clock=clock) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.0, "0:00:00"),
        (3601.4, "1:00:01"),
        (-60.0, "-0:01:00"),
        (86399.0, "23:59:59"),
        (90000.0, "1 day, 1:00:00"),
        (-1e15, "-11,574,074,074 days, 1:46:40"),
    ],
)
def test_a_span_of_time_is_written_as_a_person_does(seconds: float, shown: str) -> None:
    assert written_span(seconds) == shown
