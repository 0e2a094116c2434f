"""What a person sees of a run while it goes on: a live bar on a terminal, plain lines elsewhere."""

import socket
from time import monotonic
from typing import Final, Literal, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from cluster.wording import clock, count, number
from coordinator.records import EpochDone, EpochRecord, Event, Finished, Noticed, RoundDone, Started

ProgressKind = Literal["auto", "bar", "plain", "none"]

WIDE: Final = 200


class Display(Protocol):
    """Shows the events of a run as they come."""

    def show(self, event: Event) -> None:
        """Show an event."""

    def close(self) -> None:
        """Leave the terminal as it was found."""


def make_console(width: int | None = None) -> Console:
    """Return a console that shows text as it is: in names and categories, brackets and colons are no markup."""
    return Console(width=width, markup=False, emoji=False)


def make_table_console() -> Console:
    """Return a console for tables: whoever reads a file or a pipe can do without line breaks in their cells."""
    console = make_console()
    return console if console.is_terminal else make_console(WIDE)


def make_display(kind: ProgressKind, console: Console) -> Display:
    """Return the display that was asked for; "auto" is a bar on a terminal and plain lines elsewhere."""
    if kind == "bar" or (kind == "auto" and console.is_terminal):
        return Bar(console)
    return Silent() if kind == "none" else Plain(console)


class Silent:
    """Shows nothing."""

    def show(self, event: Event) -> None:
        pass

    def close(self) -> None:
        pass


class Plain:
    """A line at the start, and one an epoch."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._pace: Pace | None = None

    def show(self, event: Event) -> None:
        match event:
            case Started():
                self._pace = Pace(event)
                print_start(self._console, event)
            case EpochDone(record=record):
                assert self._pace is not None
                self._console.print(self._line(record, self._pace), highlight=False, soft_wrap=True)
            case Noticed(message=message):
                print_notice(self._console, message)

    def _line(self, record: EpochRecord, pace: "Pace") -> str:
        parts = [f"epoch {pace.epochs(record.round)}", describe_errors(record), f"{record.rows_per_second:,.0f} rows/s"]
        left = pace.seconds_left(record.round)
        return "  ".join([*parts, f"{clock(left)} left"] if left else parts)

    def close(self) -> None:
        pass


class Bar:
    """A bar that moves with the rounds, and below it the last errors, so that both fit on a terminal of 60 columns."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("epoch {task.fields[epochs]}"),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            expand=True,
            auto_refresh=False,
        )
        self._errors = Text(no_wrap=True, overflow="ellipsis")
        self._live = Live(Group(self._progress, self._errors), console=console)
        self._pace: Pace | None = None
        self._last: EpochRecord | None = None

    def show(self, event: Event) -> None:
        match event:
            case Started():
                print_start(self._console, event)
                self._pace = Pace(event)
                for task in self._progress.task_ids:  # of a coordinator that was lost
                    self._progress.remove_task(task)
                self._progress.add_task("", total=event.most_rounds, epochs=self._pace.epochs(0), left="")
                self._live.start()
            case RoundDone():
                self._move(event.round)
            case EpochDone(record=record):
                self._last = record
                self._move(record.round)
            case Noticed(message=message):
                print_notice(self._console, message)
            case Finished():
                self.close()

    def _move(self, rounds: int) -> None:
        assert self._pace is not None
        left = self._pace.seconds_left(rounds)
        self._progress.update(
            self._progress.task_ids[0],
            completed=rounds,
            epochs=self._pace.epochs(rounds),
            left=f"{clock(left)} left" if left else "",
        )
        errors = [describe_errors(self._last)] if self._last is not None else []
        self._errors.plain = "  ".join([*errors, f"{self._pace.rows_per_second(rounds):,.0f} rows/s"])

    def close(self) -> None:
        self._live.stop()


class Pace:
    """How fast a run goes, by the clock of whoever watches."""

    def __init__(self, started: Started) -> None:
        self._started = started
        self._began = monotonic()

    def epochs(self, rounds: int) -> str:
        """Return '3/20' for the epoch that so many rounds have begun or ended."""
        per_epoch = self._started.rounds_per_epoch
        most = self._started.most_rounds
        number = max(1, -(-rounds // per_epoch))
        return f"{number}/{-(-most // per_epoch)}" if most is not None else str(number)

    def rows_per_second(self, rounds: int) -> float:
        """Return the mean since the start, evaluation included."""
        rows = (rounds - self._started.rounds_done) * self._started.rows / self._started.rounds_per_epoch
        return rows / max(monotonic() - self._began, 1e-9)

    def seconds_left(self, rounds: int) -> float | None:
        """Return the time that the remaining rounds would take at this pace; None where nothing limits them."""
        most = self._started.most_rounds
        done = rounds - self._started.rounds_done
        if most is None or done <= 0:
            return None
        return (monotonic() - self._began) / done * (most - rounds)


def print_start(console: Console, event: Started) -> None:
    """Say what is about to be trained, and where to watch it."""
    held_out = f", {event.validation_rows:,} to validate" if event.validation_rows else ""
    console.print(
        f"{event.run}: {count(event.rows, 'row')}{held_out}; {count(event.inputs, 'input')}, {count(event.outputs, 'output')}, "
        f"{count(event.parameters, 'parameter')}; {count(event.shards, 'shard')} on {count(event.crew.workers, 'worker')}, "
        f"{count(event.rounds_per_epoch, 'round')} an epoch",
        highlight=False,
        soft_wrap=True,
    )
    if event.rounds_done:
        console.print(f"going on after {count(event.rounds_done, 'round')}", highlight=False, soft_wrap=True)
    # A loopback address means nothing without the machine that it is on.
    where = f" on {event.host}" if event.host != socket.gethostname() else ""
    for what, url in (("metrics", event.metrics_url), ("dashboard", event.dashboard_url)):
        if url is not None:
            console.print(f"{what}: {url}{where}", highlight=False, soft_wrap=True)


def print_notice(console: Console, message: str) -> None:
    """Say something that the user should know, though the run goes on."""
    console.print(Text("note:", style="yellow"), message, highlight=False, soft_wrap=True)


def describe_errors(record: EpochRecord) -> str:
    """Return 'loss 0.12  validation 0.15  error 3.1%', the error being the validation's where there is one."""
    parts = [f"loss {number(record.train.loss)}"]
    if record.validation is not None:
        parts.append(f"validation {number(record.validation.loss)}")
    latest = record.validation or record.train
    if latest.error_rate is not None:
        parts.append(f"error {latest.error_rate:.2%}")
    else:
        parts.append(f"mean absolute error {number(latest.mean_absolute_error)}")
    return "  ".join(parts)
