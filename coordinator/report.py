"""The page on which a person watches a run, live or years later: what it says, and how it is put together."""

import hashlib
import json
import tomllib
from base64 import b64encode
from collections import deque
from dataclasses import asdict, dataclass
from functools import cache
from html import escape
from pathlib import Path
from statistics import median
from string import Template
from time import time
from typing import Any, Final

from coordinator.curves import EpochCurves, RoundCurves, short
from coordinator.records import Checkpointed, CrewStatus, EpochDone, Event, Finished, Noticed, RoundDone, Started, Summary
from coordinator.stopping import REASONS

MOST_NOTICES: Final = 50
MOST_LOST: Final = 20

STRAGGLER_FACTOR: Final = 1.5
"""A worker is marked as a straggler if it takes so many times the median time for a shard."""

_SIZES: Final = ("rows", "validation_rows", "inputs", "outputs", "parameters", "shards", "most_workers")
_PLAN: Final = ("job", "timestamp", "rounds_per_epoch", "rounds_done", "most_rounds")


@dataclass(frozen=True)
class _Parts:
    """What the page is put together of: a template, and what goes into it as it is."""

    template: Template
    style: str
    script: str

    @property
    def policy(self) -> str:
        return (
            f"default-src 'none'; script-src {_hash(self.script)}; style-src {_hash(self.style)}; connect-src 'self'; "
            "img-src data:; base-uri 'none'; form-action 'none'"
        )


def _hash(text: str) -> str:
    return f"'sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


@cache
def _parts() -> _Parts:
    folder = Path(__file__).parent / "page"

    def read(*names: str) -> str:
        return "".join((folder / name).read_text(encoding="utf-8") for name in names)

    # A page that is passed on carries uPlot with it, and so its licence.
    script = f"/*\n{read('uplot.LICENSE')}\n*/\n" + read("uplot.js", "format.js", "charts.js", "panels.js", "page.js")
    return _Parts(Template(read("page.html")), read("uplot.css", "page.css"), script)


def policy() -> str:
    """Return what a browser lets the page do: run its own script and style, ask its own origin, and nothing else."""
    return _parts().policy


class Board:
    """What the page shows of a run, made of its events."""

    def __init__(self, run: str) -> None:
        """Begin with an empty page for the run of this name."""
        self._run = run
        self._started: Started | None = None
        self._plan: dict[str, Any] | None = None
        self._summary: Summary | None = None
        self._rounds, self._epochs = RoundCurves(), EpochCurves()
        self._round: RoundDone | None = None
        self._crew = CrewStatus()
        self._lost: deque[dict[str, int]] = deque(maxlen=MOST_LOST)
        self._notices: deque[str] = deque(maxlen=MOST_NOTICES)
        self._checkpoint: Checkpointed | None = None
        self._evaluate_seconds: float | None = None

    def observe(self, event: Event) -> None:
        """Bring the page up to date with an event."""
        match event:
            case RoundDone():
                self._observe_round(event)
            case Started():
                self._started, self._plan, self._crew = event, _plan(event), event.crew
                for record in event.history:
                    self._epochs.add(record)
            case EpochDone(record=record):
                self._epochs.add(record)
                if record.validation is not None:
                    self._evaluate_seconds = event.evaluate_seconds
            case Checkpointed():
                self._checkpoint = event
            case Noticed(message=message):
                self._notices.append(message)
            case Finished(summary=summary, crew=crew):
                self._summary = summary
                self._take_crew(crew, summary.rounds + 1)  # whoever was lost since was lost in a round that was not committed

    def _observe_round(self, event: RoundDone) -> None:
        self._round = event
        self._rounds.add(event)
        self._take_crew(event.crew, event.round)

    def _take_crew(self, crew: CrewStatus, number: int) -> None:
        """Take note of how the workers fared in the round of this number."""
        if crew.lost != self._crew.lost:
            gone = self._crew.shares.keys() - crew.shares.keys()
            self._lost.extend({"worker": worker, "round": number} for worker in sorted(gone))
        self._crew = crew

    def state(self, worker_means: dict[int, float]) -> bytes:
        """Return what the page shows, in JSON; `worker_means` are seconds that each worker computed in a round."""
        started, last, crew = self._started, self._round, self._crew
        document = {
            "run": self._run,
            "now": time(),
            "sizes": {name: getattr(started, name) for name in _SIZES} if started is not None else None,
            "plan": self._plan,
            "round": last.round if last is not None else (started.rounds_done if started is not None else 0),
            "timestamp": last.timestamp if last is not None else None,
            "epochs": self._epochs.columns(),
            "rounds": self._rounds.columns(),
            "crew": {name: getattr(crew, name) for name in ("workers", "loading", "lost", "recomputed", "moved")},
            "workers": self._worker_rows(worker_means),
            "lost": list(self._lost),
            "checkpoint": asdict(self._checkpoint) if self._checkpoint is not None else None,
            "evaluate_seconds": self._evaluate_seconds,
            "notices": list(self._notices),
            "summary": _ending(self._summary) if self._summary is not None else None,
        }
        return json.dumps(document, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()

    def page(self, worker_means: dict[int, float], *, live: bool) -> bytes:
        """Return the whole page with the state in it; a live one asks its server for news."""
        state = self.state(worker_means).decode()
        for character in "<>&\u2028\u2029":  # nothing in it may end the script element that it stands in
            state = state.replace(character, f"\\u{ord(character):04x}")
        parts = _parts()
        page = parts.template.substitute(
            title=escape(self._run),
            policy=escape(parts.policy, quote=False),
            live=str(live).lower(),
            style=parts.style,
            script=parts.script,
            state=state,
        )
        return page.encode()

    def _worker_rows(self, means: dict[int, float]) -> list[dict[str, Any]]:
        latest = self._round.worker_seconds if self._round is not None else {}
        shares = self._crew.shares
        slow = stragglers({worker: means[worker] / share for worker, share in shares.items() if share and worker in means})
        return [
            {
                "worker": worker,
                "shards": shards,
                "last": short(latest.get(worker)),
                "mean": short(means.get(worker)),
                "straggler": worker in slow,
            }
            for worker, shards in sorted(shares.items())
        ]


def stragglers(shard_seconds: dict[int, float]) -> set[int]:
    """Return the workers that take far longer for a shard than the median worker; of two, than the faster one."""
    if len(shard_seconds) < 2:
        return set()
    usual = min(shard_seconds.values()) if len(shard_seconds) == 2 else median(shard_seconds.values())
    return {worker for worker, seconds in shard_seconds.items() if seconds > STRAGGLER_FACTOR * usual}


def _plan(started: Started) -> dict[str, Any]:
    task = tomllib.loads(started.job)["model"]["task"]
    return {name: getattr(started, name) for name in _PLAN} | {"classified": task != "regression"}


def _ending(summary: Summary) -> dict[str, Any]:
    return asdict(summary) | {"reason": REASONS.get(summary.stop_reason, summary.stop_reason)}
