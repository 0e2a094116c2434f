from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.stopping import Standing, StoppingSpec, TrainingSpec, stop_after_epoch, stop_in_round

ALL = StoppingSpec(all_correct=True, target_loss=0.5, patience=3, max_seconds=60.0)
ENDLESS = TrainingSpec()


def after_epoch(
    stopping: StoppingSpec,
    *,
    training: TrainingSpec = ENDLESS,
    epochs: int = 1,
    training_loss: float = 9.0,
    all_correct: bool = False,
    waited: int = 0,
) -> str | None:
    standing = Standing(best_loss=1.0, epochs_without_improvement=waited)
    return stop_after_epoch(
        training, stopping, epochs=epochs, training_loss=training_loss, all_correct=all_correct, standing=standing
    )


def test_nothing_met_goes_on() -> None:
    limits = TrainingSpec(epochs=10, rounds=100)

    assert stop_in_round(limits, ALL, rounds=99, seconds=59.9) is None
    assert after_epoch(ALL, training=limits, epochs=9, training_loss=0.51, waited=2) is None


def test_nothing_asked_for_goes_on_for_ever() -> None:
    nothing = StoppingSpec()

    assert not nothing.any_given
    assert stop_in_round(ENDLESS, nothing, rounds=10**9, seconds=1e9) is None
    assert after_epoch(nothing, epochs=10**6, training_loss=0.0, all_correct=True, waited=10**6) is None


def test_rounds() -> None:
    assert stop_in_round(TrainingSpec(rounds=100), ALL, rounds=100, seconds=0.0) == "rounds"


def test_max_seconds() -> None:
    assert stop_in_round(ENDLESS, ALL, rounds=1, seconds=60.0) == "max_seconds"


def test_all_correct() -> None:
    assert after_epoch(ALL, all_correct=True) == "all_correct"


def test_target_loss() -> None:
    assert after_epoch(ALL, training_loss=0.5) == "target_loss"


def test_a_target_loss_of_zero_is_a_target() -> None:
    assert StoppingSpec(target_loss=0.0).any_given
    assert after_epoch(StoppingSpec(target_loss=0.0), training_loss=0.0) == "target_loss"


def test_patience() -> None:
    assert after_epoch(ALL, waited=3) == "patience"


def test_epochs() -> None:
    assert after_epoch(ALL, training=TrainingSpec(epochs=10), epochs=10) == "epochs"


def test_what_was_achieved_is_named_before_what_ran_out() -> None:
    limits = TrainingSpec(epochs=1)
    everything = {"training": limits, "training_loss": 0.0, "waited": 9}

    assert after_epoch(ALL, **everything, all_correct=True) == "all_correct"
    assert after_epoch(ALL, **everything) == "target_loss"
    assert after_epoch(replace(ALL, target_loss=None), **everything) == "patience"


@given(losses=st.lists(st.floats(0, 10), min_size=1))
def test_the_standing_counts_epochs_since_the_first_that_had_the_least_loss(losses: list[float]) -> None:
    standing = Standing()
    for loss in losses:
        standing = standing.after(loss)

    assert standing.best_loss == min(losses)
    assert standing.epochs_without_improvement == len(losses) - 1 - losses.index(min(losses))
    assert standing.improved == (losses.index(min(losses)) == len(losses) - 1)


@pytest.mark.parametrize(("epochs", "rounds", "most"), [(None, None, None), (3, None, 21), (None, 5, 5), (3, 5, 5), (3, 50, 21)])
def test_the_most_rounds_are_the_lesser_of_both_limits(epochs: int | None, rounds: int | None, most: int | None) -> None:
    assert TrainingSpec(epochs=epochs, rounds=rounds).most_rounds(7) == most
