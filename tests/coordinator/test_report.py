import json
import re
from base64 import b64encode
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from coordinator.curves import MOST_POINTS
from coordinator.records import (
    Checkpointed,
    CrewStatus,
    EpochDone,
    EpochRecord,
    Errors,
    Event,
    Finished,
    Noticed,
    RoundDone,
    Started,
)
from coordinator.report import Board, policy, stragglers

Document = dict[str, dict[str, Any]]
Run = Callable[..., tuple[list[Event], Any]]


def board_of(events: list[Event], run: str = "run-1") -> Board:
    board = Board(run)
    for event in events:
        board.observe(event)
    return board


def state_of(board: Board, means: dict[int, float] | None = None) -> dict[str, Any]:
    state: dict[str, Any] = json.loads(board.state(means or {}))
    return state


def part(page: str, name: str) -> str:
    (found,) = re.findall(rf"<{name}>(.*?)</{name}>", page, re.DOTALL)
    return str(found)


@pytest.fixture
def events(run_job: Run, blobs_job: Document) -> list[Event]:
    """Of a run of three epochs of four rounds, on two workers."""
    return run_job(blobs_job, {"data.validation": 0.2, "workers.count": 2})[0]


def test_before_it_begins_a_run_has_a_page_all_the_same() -> None:
    state = state_of(board_of([]))

    assert (state["run"], state["plan"], state["summary"], state["round"]) == ("run-1", None, None, 0)
    assert board_of([]).page({}, live=True)


def test_the_state_tells_what_the_events_told(events: list[Event]) -> None:
    state = state_of(board_of(events), {0: 0.001, 1: 0.002})
    rounds = [event for event in events if isinstance(event, RoundDone)]
    records = [event.record for event in events if isinstance(event, EpochDone)]
    started, finished = events[0], events[-1]

    assert isinstance(started, Started)
    assert isinstance(finished, Finished)
    assert state["plan"]["job"] == started.job
    assert state["plan"]["classified"]
    assert state["sizes"]["rows"] == started.rows
    assert state["round"] == len(rounds) == 12
    assert state["rounds"]["round"] == [event.round for event in rounds]
    assert state["rounds"]["loss"] == pytest.approx([event.loss for event in rounds], rel=1e-4)
    assert state["epochs"]["epoch"] == [1, 2, 3]
    for split in ("train", "validation"):
        assert state["epochs"][split]["loss"] == pytest.approx([getattr(record, split).loss for record in records], rel=1e-4)
    assert state["summary"]["weights_digest"] == finished.summary.weights_digest
    assert state["summary"]["reason"] == "all epochs done"
    assert state["checkpoint"]["round"] == 12
    assert [(row["worker"], row["shards"], row["mean"]) for row in state["workers"]] == [(0, 2, 0.001), (1, 3, 0.002)]


def test_a_run_without_validation_says_so(run_job: Run, waves_job: Document) -> None:
    state = state_of(board_of(run_job(waves_job)[0]))

    assert not state["plan"]["classified"]
    assert state["epochs"]["validation"] is None
    assert state["epochs"]["train"]["error_rate"] == [None] * 3
    assert state["evaluate_seconds"] is None
    assert state["summary"]["validation"] is None


def test_epochs_from_before_a_run_was_taken_up_are_in_the_curves(events: list[Event]) -> None:
    started = events[0]
    assert isinstance(started, Started)
    records = tuple(event.record for event in events if isinstance(event, EpochDone))

    taken_up = {**vars(started), "history": records, "rounds_done": 12}
    state = state_of(board_of([Started(**taken_up)]))

    assert state["epochs"]["epoch"] == [1, 2, 3]
    assert state["round"] == 12
    assert state["rounds"]["round"] == []


def with_crew(event: RoundDone, number: int, crew: CrewStatus) -> RoundDone:
    return RoundDone(**{**vars(event), "round": number, "crew": crew})


def test_workers_that_were_lost_and_notices_are_told(events: list[Event]) -> None:
    first = next(event for event in events if isinstance(event, RoundDone))
    board = board_of(
        [
            with_crew(first, 1, CrewStatus(workers=3, shares={0: 2, 1: 2, 2: 1})),
            with_crew(first, 2, CrewStatus(workers=1, lost=2, recomputed=3, moved=3, shares={1: 5})),
            with_crew(first, 3, CrewStatus(workers=2, lost=2, recomputed=3, moved=5, shares={1: 3, 3: 2})),
            Noticed(message="worker 0 was lost"),
        ]
    )

    state = state_of(board)

    assert state["lost"] == [{"worker": 0, "round": 2}, {"worker": 2, "round": 2}]
    assert state["crew"] == {"workers": 2, "loading": 0, "lost": 2, "recomputed": 3, "moved": 5}
    assert [row["worker"] for row in state["workers"]] == [1, 3]
    assert state["notices"] == ["worker 0 was lost"]


def test_workers_that_were_lost_after_the_last_round_are_told(events: list[Event]) -> None:
    finished = events[-1]
    assert isinstance(finished, Finished)

    state = state_of(board_of([*events[:-1], Finished(summary=finished.summary, crew=CrewStatus(lost=2))]))

    assert state["lost"] == [{"worker": 0, "round": 13}, {"worker": 1, "round": 13}]
    assert (state["crew"]["workers"], state["crew"]["lost"], state["workers"]) == (0, 2, [])


@pytest.mark.parametrize(
    ("seconds", "slow"),
    [
        ({}, set()),
        ({0: 9.0}, set()),
        ({0: 1.0, 1: 1.4}, set()),
        ({0: 1.0, 1: 1.6}, {1}),
        ({0: 1.0, 1: 1.1, 2: 2.0, 3: 0.9}, {2}),
        ({0: 1.0, 1: 1.0, 2: 5.0, 3: 5.0}, {2, 3}),
    ],
)
def test_a_straggler_takes_far_longer_for_a_shard_than_the_others(seconds: dict[int, float], slow: set[int]) -> None:
    assert stragglers(seconds) == slow


def test_more_shards_do_not_make_a_straggler(events: list[Event]) -> None:
    board = board_of(events)  # worker 0 has two shards, worker 1 three

    for means, slow in (({0: 0.002, 1: 0.0035}, []), ({0: 0.004, 1: 0.003}, [0])):
        assert [row["worker"] for row in state_of(board, means)["workers"] if row["straggler"]] == slow


def test_the_state_of_a_long_run_stays_small(events: list[Event]) -> None:
    first = next(event for event in events if isinstance(event, RoundDone))
    record = next(event.record for event in events if isinstance(event, EpochDone))
    board = board_of(events[:1])
    for number in range(1, 20 * MOST_POINTS):
        board.observe(RoundDone(**{**vars(first), "round": number, "loss": first.loss / number}))
        board.observe(EpochDone(record=EpochRecord(**{**vars(record), "epoch": number})))
        board.observe(Noticed(message=f"notice {number}"))

    assert len(board.state({})) < 100_000


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_json_has_no_number_for_is_left_open(events: list[Event], value: float) -> None:
    record = next(event.record for event in events if isinstance(event, EpochDone))
    errors = Errors(loss=value, mean_absolute_error=1.0, mean_squared_error=1.0, error_rate=0.5)
    board = board_of([EpochDone(record=EpochRecord(**{**vars(record), "train": errors}))])

    assert state_of(board)["epochs"]["train"]["loss"] == [None]


@pytest.mark.parametrize("live", [True, False])
def test_the_page_is_whole_and_asks_nobody_else(events: list[Event], live: bool) -> None:
    page = board_of(events).page({}, live=live).decode()

    assert f'data-live="{str(live).lower()}"' in page
    assert re.findall(r'(?:src|href)="(?!#|data:)', page.partition("<script")[0]) == []
    for name, directive in (("script", "script-src"), ("style", "style-src")):
        digest = b64encode(sha256(part(page, name).encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in policy()
    assert f'http-equiv="Content-Security-Policy" content="{policy()}"' in page
    assert "unsafe" not in policy()
    (state,) = re.findall(r'<script id="state"[^>]*>(.*?)</script>', page, re.DOTALL)
    assert json.loads(state)["round"] == 12


def test_a_hostile_name_stays_a_name(events: list[Event]) -> None:
    name = "</title></script><script>alert(1)</script><!-- $state ${script} \u2028"
    plain = board_of(events).page({}, live=False).decode()

    page = board_of([*events, Noticed(message=name)], run=name).page({}, live=False).decode()

    assert page.count("<script") == plain.count("<script") == 2
    assert page.count("<!--") == plain.count("<!--")
    assert "&lt;/title&gt;&lt;/script&gt;" in part(page, "title")
    (state,) = re.findall(r'<script id="state"[^>]*>(.*?)</script>', page, re.DOTALL)
    assert json.loads(state)["run"] == json.loads(state)["notices"][-1] == name


def test_the_run_leaves_its_page_in_its_directory(run_job: Run, blobs_job: Document, tmp_path: Path) -> None:
    _, summary = run_job(blobs_job)

    page = (tmp_path / "run-1" / "report.html").read_text(encoding="utf-8")

    assert summary.weights_digest in page
    assert 'data-live="false"' in page


def test_a_checkpoint_is_shown_with_its_time() -> None:
    board = board_of([Checkpointed(round=4, seconds=0.25, timestamp=1234.5)])

    assert state_of(board)["checkpoint"] == {"round": 4, "seconds": 0.25, "timestamp": 1234.5}
