"""What the commands have in common: options, the job that they make up, and how errors become exit codes."""

import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import Final, NoReturn

import click
from rich.console import Console
from rich.markup import escape

from coordinator.dispatch import PoolError
from coordinator.job import JobSpec, load_job, parse_override
from coordinator.records import Status
from worker.errors import JobError, UserError

JOB = click.argument("job_file", metavar="JOB.toml", type=click.Path(path_type=Path))
WORKERS = click.option(
    "--workers",
    metavar="N|MIN:MAX",
    help="Worker processes: a number, or a range. The result does not depend on them.",
)
SET = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="SECTION.KEY=VALUE",
    help="Replace a value of the job file; may be repeated.",
)
RESUME = click.option("--resume", is_flag=True, help="Go on with the run in --run-dir, from its newest whole checkpoint.")
AUTO_RESUME = click.option("--auto-resume", is_flag=True, help="Go on with the run in --run-dir if there is one, else begin it.")
DEBUG = click.option("--debug", is_flag=True, help="Show tracebacks, and Ray's own messages.")


class Exit(IntEnum):
    """Exit codes."""

    COMPLETED = 0
    UNEXPECTED = 1
    USER = 2
    DIVERGED = 3
    WORKERS = 4
    INTERRUPTED = 130


STATUS_EXIT: Final[dict[Status, Exit]] = {
    "completed": Exit.COMPLETED,
    "diverged": Exit.DIVERGED,
    "failed": Exit.WORKERS,
    "interrupted": Exit.INTERRUPTED,
}


class MismatchError(Exception):
    """Runs did not give the same bits, or proved nothing."""


@contextmanager
def exit_codes(*, debug: bool) -> Iterator[None]:
    """Turn errors into one sentence on stderr and an exit code."""
    try:
        yield
    except BrokenPipeError:
        raise  # whoever read the output has gone, which click ends the command for without a word
    except (Exception, KeyboardInterrupt) as error:
        fail(*verdict(error), debug=debug)


def verdict(error: BaseException) -> tuple[str, Exit]:
    """Return the sentence and the exit code that an error comes to."""
    match error:
        case UserError():
            return str(error), Exit.USER
        case PoolError():
            return str(error), Exit.WORKERS
        case MismatchError():
            return str(error), Exit.UNEXPECTED
        case KeyboardInterrupt():
            return str(error) or "interrupted", Exit.INTERRUPTED
    return f"unexpected {type(error).__name__}: {error}; --debug shows where", Exit.UNEXPECTED


def fail(message: str, code: int, *, debug: bool) -> NoReturn:
    """Say what went wrong on stderr, and end with an exit code."""
    if debug:
        traceback.print_exc()
    Console(stderr=True, emoji=False).print(f"[bold red]Error:[/] {escape(message)}", highlight=False, soft_wrap=True)
    sys.exit(code)


def load(job_file: Path, overrides: tuple[str, ...], options: Mapping[str, object] | None = None) -> JobSpec:
    """Read the job, with what `replaced` says in place of its own."""
    return load_job(job_file, replaced(overrides, options or {}))


def replaced(overrides: tuple[str, ...], options: Mapping[str, object]) -> dict[str, object]:
    """Return the values that replace the file's; `options` are keys that have an option of their own, which wins over `--set`."""
    return dict(parse_override(text) for text in overrides) | dict(options)


def chosen_resumes(run_dir: str | None, *, resume: bool, auto_resume: bool) -> list[str]:
    """Return which of --resume and --auto-resume were given. Raises UserError where they don't know of which run."""
    chosen = [option for option, given in (("--resume", resume), ("--auto-resume", auto_resume)) if given]
    if chosen and run_dir is None:
        raise UserError(f"{chosen[0]}: needs --run-dir, the directory of the run to go on with")
    return chosen


def parse_workers(text: str) -> dict[str, object]:
    """Return what `--workers` sets: N a fixed number, MIN:MAX a range. Raises JobError for any other form."""
    match = re.fullmatch(r"(\d+)(?::(\d+))?", text)
    if match is None:
        raise JobError("--workers", f"'{text}' is neither a number such as 2 nor a range such as 1:4")
    low, high = match.groups()
    if high is None:
        return {"workers.count": int(low), "workers.min": None, "workers.max": None}
    return {"workers.count": None, "workers.min": int(low), "workers.max": int(high)}
