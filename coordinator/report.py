"""The page on which a person watches a run, live or years later: what it says, and how it is put together."""

import hashlib
import json
from base64 import b64encode
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from string import Template
from typing import Any, Final

from coordinator.records import Checkpointed, CrewStatus, EpochDone, EpochRecord, Event, Finished, Noticed, RoundDone, Started, Summary

MOST_POINTS: Final = 1024
"""Points of a curve; a longer run has coarser ones."""

MOST_NOTICES: Final = 50
MOST_LOST: Final = 20

_PARTS: Final = Path(__file__).parent / "page"
_STYLE: Final = (_PARTS / "uplot.css").read_text(encoding="utf-8") + (_PARTS / "page.css").read_text(encoding="utf-8")
_SCRIPT: Final = (_PARTS / "uplot.js").read_text(encoding="utf-8") + (_PARTS / "page.js").read_text(encoding="utf-8")
_PAGE: Final = Template((_PARTS / "page.html").read_text(encoding="utf-8"))


def _hash(text: str) -> str:
    return f"'sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


POLICY: Final = (
    f"default-src 'none'; script-src {_hash(_SCRIPT)}; style-src {_hash(_STYLE)}; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'"
)
"""What a browser lets the page do: run its own script and style, ask its own origin, and nothing else."""


class _RoundCurves:
    """Curves over the rounds. Each point is the mean of as many rounds as keeps the points few."""

    COLUMNS: Final = ("loss", "seconds", "compute", "reduce", "update", "gradient_norm")

    def __init__(self) -> None:
        self._points: list[tuple[int, tuple[float, ...]]] = []
        self._stride, self._count = 1, 0
        self._sums = (0.0,) * len(self.COLUMNS)
        self._last = 0

    def add(self, event: RoundDone) -> None:
        phases = event.phases
        values = (event.loss, event.seconds, phases["compute"], phases["reduce"], phases["update"], event.gradient_norm)
        self._last = event.round
        self._count += 1
        self._sums = values if self._count == 1 else tuple(map(float.__add__, self._sums, values))
        if self._count == self._stride:
            self._points.append(self._point())
            self._count = 0
            if len(self._points) == MOST_POINTS:
                pairs = zip(self._points[::2], self._points[1::2], strict=True)
                self._points = [(last, _mean(one, other)) for (_, one), (last, other) in pairs]
                self._stride *= 2

    def _point(self) -> tuple[int, tuple[float, ...]]:
        return self._last, tuple(total / self._count for total in self._sums)

    def columns(self) -> dict[str, list[float]]:
        """Return the points by column, the rounds under `round`."""
        points = [*self._points, self._point()] if self._count else self._points
        columns = zip(*(values for _, values in points), strict=True) if points else ((),) * len(self.COLUMNS)
        return {"round": [last for last, _ in points]} | {
            name: list(map(_short, column)) for name, column in zip(self.COLUMNS, columns, strict=True)
        }


def _mean(one: tuple[float, ...], other: tuple[float, ...]) -> tuple[float, ...]:
    return tuple((first + second) / 2 for first, second in zip(one, other, strict=True))


def _short(value: float) -> float:
    return float(f"{value:.5g}")


class _Epochs:
    """The records of the epochs: all of them, or where there are many every second, fourth, … and the last."""

    def __init__(self) -> None:
        self._records: list[EpochRecord] = []
        self._stride, self._seen = 1, 0
        self.last: EpochRecord | None = None

    def add(self, record: EpochRecord) -> None:
        if self._seen % self._stride == 0:
            self._records.append(record)
            if len(self._records) == MOST_POINTS:
                self._records = self._records[::2]
                self._stride *= 2
        self._seen += 1
        self.last = record

    def records(self) -> list[EpochRecord]:
        if self.last is None or self._records[-1] is self.last:
            return self._records
        return [*self._records, self.last]


class Board:
    """What the page shows of a run, made of its events."""

    def __init__(self) -> None:
        """Begin with an empty page."""
        self._started: Started | None = None
        self._summary: Summary | None = None
        self._rounds, self._epochs = _RoundCurves(), _Epochs()
        self._round: RoundDone | None = None
        self._crew = CrewStatus()
        self._lost: deque[dict[str, Any]] = deque(maxlen=MOST_LOST)
        self._notices: deque[str] = deque(maxlen=MOST_NOTICES)
        self._checkpoint: Checkpointed | None = None
        self._evaluate_seconds: float | None = None

    def observe(self, event: Event) -> None:
        """Bring the page up to date with an event."""
        match event:
            case RoundDone():
                self._round = event
                self._rounds.add(event)
                if event.crew.lost != self._crew.lost:
                    gone = self._crew.shares.keys() - event.crew.shares.keys()
                    self._lost.extend({"worker": worker, "round": event.round} for worker in sorted(gone))
                self._crew = event.crew
            case Started():
                self._started, self._crew = event, event.crew
                for record in event.history:
                    self._epochs.add(record)
            case EpochDone(record=record):
                self._epochs.add(record)
                self._evaluate_seconds = event.evaluate_seconds
            case Checkpointed():
                self._checkpoint = event
            case Noticed(message=message):
                self._notices.append(message)
            case Finished(summary=summary):
                self._summary = summary

    def state(self, worker_means: dict[int, float]) -> bytes:
        """Return what the page shows, in JSON; `worker_means` are seconds that each worker computed in a round."""
        started, last = self._started, self._round
        document = {
            "started": asdict(started) | {"history": len(started.history)} if started is not None else None,
            "summary": asdict(self._summary) if self._summary is not None else None,
            "timestamp": last.timestamp if last is not None else None,
            "round": last.round if last is not None else (started.rounds_done if started is not None else 0),
            "epochs": _epoch_columns(self._epochs.records()),
            "rounds": self._rounds.columns(),
            "workers": self._worker_rows(worker_means),
            "lost": list(self._lost),
            "crew": asdict(self._crew),
            "checkpoint": asdict(self._checkpoint) if self._checkpoint is not None else None,
            "evaluate_seconds": self._evaluate_seconds,
            "notices": list(self._notices),
        }
        return json.dumps(document, allow_nan=False, ensure_ascii=False).encode()

    def page(self, worker_means: dict[int, float], *, live: bool) -> bytes:
        """Return the whole page with the state in it; a live one asks its server for news."""
        state = self.state(worker_means).decode()
        for character in "<>&\u2028\u2029":  # nothing in it may end the script element that it stands in
            state = state.replace(character, f"\\u{ord(character):04x}")
        title = self._started.run if self._started is not None else "isograd"
        return _PAGE.substitute(
            title=title, policy=POLICY, live=str(live).lower(), style=_STYLE, script=_SCRIPT, state=state
        ).encode()

    def _worker_rows(self, means: dict[int, float]) -> list[dict[str, Any]]:
        latest = self._round.worker_seconds if self._round is not None else {}
        return [
            {"worker": worker, "shards": shards, "last": latest.get(worker), "mean": means.get(worker)}
            for worker, shards in sorted(self._crew.shares.items())
        ]


def _epoch_columns(records: Sequence[EpochRecord]) -> dict[str, Any]:
    plain = ("epoch", "round", "seconds", "rows_per_second", "learning_rate", "gradient_norm")
    columns: dict[str, Any] = {name: [getattr(record, name) for record in records] for name in plain}
    columns["train"] = [asdict(record.train) for record in records]
    columns["validation"] = [asdict(record.validation) if record.validation else None for record in records]
    return columns
