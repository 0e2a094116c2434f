"""What a person sees of a run on a terminal, however narrow."""

from collections.abc import Callable, Iterator
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from cluster.display import Bar
from cluster.tables import print_summary
from coordinator.records import EpochDone, Event, Finished, Noticed

Document = dict[str, dict[str, Any]]


def on_terminal(width: int) -> Console:
    return Console(file=StringIO(), force_terminal=True, color_system=None, width=width, height=30, markup=False, emoji=False)


def shown(console: Console) -> list[str]:
    """The lines that were written, whatever became of them."""
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_bar_and_the_errors_are_whole_on_any_terminal(
    width: int, begin_job: Callable[..., Iterator[Event]], blobs_job: Document
) -> None:
    console = on_terminal(width)
    bar = Bar(console)
    for event in begin_job(blobs_job, {"data.validation": 0.2}):
        bar.show(event)
        if isinstance(event, EpochDone):
            bar.show(Noticed(message="a worker was lost"))
            errors = f"validation {event.record.validation.loss:.5g}  error {event.record.validation.error_rate:.2%}"
    bar.close()

    *_, position, last = (line for line in shown(console) if line.strip("\x1b[?0123456789hlAK\r "))
    assert "epoch 3/3" in position and "100%" in position and "━" * (width // 4) in position
    assert errors in last
    assert sum("note: a worker was lost" in line for line in shown(console)) == 3


def test_a_closing_table_loses_no_digit_where_there_is_no_room(
    run_job: Callable[..., tuple[list[Event], Any]], blobs_job: Document
) -> None:
    events, summary = run_job(blobs_job, {"data.validation": 0.2})
    assert isinstance(events[-1], Finished)
    console = on_terminal(40)

    print_summary(console, summary, "runs/a")

    assert not any("…" in line for line in shown(console))


@pytest.mark.parametrize("width", [40, 60, 200])
def test_no_line_of_a_closing_table_ends_in_blanks(
    width: int, run_job: Callable[..., tuple[list[Event], Any]], blobs_job: Document
) -> None:
    _, summary = run_job(blobs_job, {"data.validation": 0.2})
    console = Console(file=StringIO(), width=width)

    print_summary(console, summary, "runs/a")

    lines = shown(console)
    assert lines == [line.rstrip() for line in lines]
    assert "rows trained" in "".join(lines) and "".join(lines).count("runs/a") == 1
