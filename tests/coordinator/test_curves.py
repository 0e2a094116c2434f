from itertools import pairwise
from math import inf, nan

import pytest

from coordinator.curves import MOST_POINTS, EpochCurves, RoundCurves, short
from coordinator.records import CrewStatus, EpochRecord, Errors, RoundDone


def round_done(number: int, loss: float = 1.0) -> RoundDone:
    return RoundDone(
        round=number,
        timestamp=1000.0 + number,
        rows=64,
        loss=loss,
        gradient_norm=2.0,
        learning_rate=0.1,
        seconds=0.006,
        phases={"compute": 0.003, "reduce": 0.002, "update": 0.001},
        crew=CrewStatus(),
    )


def epoch_record(number: int, *, validation: bool = True, error_rate: float | None = 0.5) -> EpochRecord:
    errors = Errors(loss=1.0 / number, mean_absolute_error=0.2, mean_squared_error=0.3, error_rate=error_rate)
    return EpochRecord(
        epoch=number,
        round=number * 10,
        rows=640,
        rows_expected=640,
        train=errors,
        validation=errors if validation else None,
        learning_rate=0.1,
        gradient_norm=2.0,
        seconds=float(number),
        rows_per_second=1000.0,
    )


def test_every_round_of_a_short_run_is_a_point() -> None:
    curves = RoundCurves()
    for number in range(1, 4):
        curves.add(round_done(number, loss=1 / number))

    assert curves.columns() == {
        "round": [1, 2, 3],
        "loss": [1.0, 0.5, 0.33333],
        "compute": [0.003] * 3,
        "reduce": [0.002] * 3,
        "update": [0.001] * 3,
        "gradient_norm": [2.0] * 3,
        "learning_rate": [0.1] * 3,
    }


def test_before_the_first_round_the_columns_are_there_and_empty() -> None:
    columns = RoundCurves().columns()

    assert set(columns) == {"round", *RoundCurves.COLUMNS}
    assert not any(columns.values())


@pytest.mark.parametrize("rounds", [MOST_POINTS - 1, MOST_POINTS, 5 * MOST_POINTS + 3, 40 * MOST_POINTS])
def test_a_long_run_has_few_points_that_are_means_over_all_rounds_before_them(rounds: int) -> None:
    curves = RoundCurves()
    for number in range(1, rounds + 1):
        curves.add(round_done(number, loss=float(number)))

    columns = curves.columns()

    places, losses = columns["round"], columns["loss"]
    assert MOST_POINTS / 2 <= len(places) <= MOST_POINTS
    assert places[-1] == rounds
    for before, place, loss in zip([0, *places], places, losses, strict=False):
        assert loss == short((before + 1 + place) / 2)  # the mean of the rounds from the one after `before` on


@pytest.mark.parametrize("epochs", [1, MOST_POINTS, 7 * MOST_POINTS + 5])
def test_epochs_are_left_out_of_a_long_run_but_never_the_first_or_last(epochs: int) -> None:
    curves = EpochCurves()
    for number in range(1, epochs + 1):
        curves.add(epoch_record(number))

    columns = curves.columns()

    numbers = columns["epoch"]
    assert isinstance(numbers, list)
    assert len(numbers) <= MOST_POINTS
    assert (numbers[0], numbers[-1]) == (1, epochs)
    assert len({after - before for before, after in pairwise(numbers[:-1])}) <= 1
    assert columns["train"] == columns["validation"]
    assert columns["train"] == {
        "loss": [short(1 / number) for number in numbers],
        "mean_absolute_error": [0.2] * len(numbers),
        "mean_squared_error": [0.3] * len(numbers),
        "error_rate": [0.5] * len(numbers),
    }


def test_what_a_run_does_not_have_is_none() -> None:
    curves = EpochCurves()
    assert curves.columns()["validation"] is None

    curves.add(epoch_record(1, validation=False, error_rate=None))

    columns = curves.columns()
    assert columns["validation"] is None
    assert columns["train"]["error_rate"] == [None]  # type: ignore[index]


def test_a_number_is_kept_in_five_digits_and_what_json_lacks_is_none() -> None:
    assert [short(value) for value in (0.123456, 123456.0, 1e-20, None, nan, inf)] == [0.12346, 123460.0, 1e-20, None, None, None]
