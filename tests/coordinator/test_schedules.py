from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.records import Event, RoundDone, Summary
from coordinator.schedules import ScheduleSpec

EPOCH = 10  # rounds
SCHEDULES = {
    "constant": ScheduleSpec(),
    "step": ScheduleSpec(name="step", step_epochs=2, factor=0.1),
    "exponential": ScheduleSpec(name="exponential", factor=0.25),
    "cosine": ScheduleSpec(name="cosine", final_ratio=0.2),
    "warm": ScheduleSpec(warmup_epochs=2),
    "half warm": ScheduleSpec(warmup_epochs=0.5),
    "warm exponential": ScheduleSpec(name="exponential", factor=0.25, warmup_epochs=1),
}


@pytest.mark.parametrize(
    ("schedule", "round_number", "ratio"),
    [
        ("constant", 0, 1.0),
        ("constant", 99, 1.0),
        ("step", 19, 1.0),
        ("step", 20, 0.1),
        ("step", 39, 0.1),
        ("step", 40, 0.01),
        ("exponential", 0, 1.0),
        ("exponential", 5, 0.5),
        ("exponential", 10, 0.25),
        ("exponential", 20, 0.0625),
        ("cosine", 0, 1.0),
        ("cosine", 25, 0.2 + 0.8 * (2 + 2**0.5) / 4),
        ("cosine", 50, 0.6),
        ("cosine", 100, 0.2),
        ("warm", 0, 0.05),
        ("warm", 9, 0.5),
        ("warm", 19, 1.0),
        ("warm", 20, 1.0),
        ("half warm", 0, 0.2),
        ("half warm", 4, 1.0),
        ("half warm", 5, 1.0),
        ("warm exponential", 0, 0.1),
        ("warm exponential", 4, 0.5 * 0.25**0.4),
        ("warm exponential", 10, 0.25),
    ],
)
def test_ratio_of_a_run_of_100_rounds(schedule: str, round_number: int, ratio: float) -> None:
    assert SCHEDULES[schedule].ratio(round_number, EPOCH, 100) == pytest.approx(ratio, rel=1e-12)


@given(
    spec=st.builds(
        ScheduleSpec,
        name=st.sampled_from(["constant", "step", "exponential", "cosine"]),
        warmup_epochs=st.floats(0, 3),
        step_epochs=st.integers(1, 4),
        factor=st.floats(0.5, 1),
        final_ratio=st.floats(0.01, 1),
    ),
    rounds_per_epoch=st.integers(1, 7),
    rounds=st.integers(1, 60),
)
def test_the_rate_stays_within_its_bounds_rises_in_the_warm_up_and_never_after(
    spec: ScheduleSpec, rounds_per_epoch: int, rounds: int
) -> None:
    bare = ScheduleSpec(name=spec.name, step_epochs=spec.step_epochs, factor=spec.factor, final_ratio=spec.final_ratio)
    ratios = [spec.ratio(number, rounds_per_epoch, rounds) for number in range(rounds)]
    unwarmed = [bare.ratio(number, rounds_per_epoch, rounds) for number in range(rounds)]

    assert all(0 < ratio <= 1 for ratio in ratios)
    assert all(later <= earlier for earlier, later in pairwise(unwarmed))
    for number, (ratio, full) in enumerate(zip(ratios, unwarmed, strict=True)):
        share = (number + 1) / (spec.warmup_epochs * rounds_per_epoch) if spec.warmup_epochs else 1.0
        assert ratio == pytest.approx(full * min(1.0, share))


def test_only_the_cosine_schedule_needs_to_know_the_length_of_the_run() -> None:
    assert [SCHEDULES[name].ratio(20, EPOCH, None) for name in ("constant", "step", "warm")] == [1.0, 0.1, 1.0]


def test_a_run_follows_its_schedule_over_as_many_rounds_as_it_can_have(
    run_job: Callable[..., tuple[list[Event], Summary]], blobs_job: dict[str, dict[str, object]]
) -> None:
    blobs_job["optimizer"]["schedule"] = {"name": "cosine", "warmup_epochs": 1, "final_ratio": 0.5}

    events, _ = run_job(blobs_job, {"training.epochs": 9, "training.rounds": 10})  # of 4 rounds an epoch

    spec = ScheduleSpec(name="cosine", warmup_epochs=1, final_ratio=0.5)
    rates = [event.learning_rate for event in events if isinstance(event, RoundDone)]
    assert rates == [0.1 * spec.ratio(number, 4, 10) for number in range(10)]
