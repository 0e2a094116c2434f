"""Errors that the user can mend. Each is one sentence, and each survives pickling between processes."""


class UserError(ValueError):
    """The user's job, data or arguments are at fault; the message says what to change."""


class JobError(UserError):
    """A key of the job file is wrong.

    `key` is dotted (`model.hidden`); `problem` says what was wrong and what is accepted.
    """

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(key, problem)
        self.key = key
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.key}: {self.problem}"


class DataError(UserError):
    """The data can't be used as it is; the message names file, and row or column where there is one."""


def first_line(error: BaseException) -> str:
    """Return the first line of what a library says of an error: the one that says what happened."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def require(condition: bool, key: str, problem: str) -> None:
    """Raise `JobError(key, problem)` unless `condition` holds."""
    if not condition:
        raise JobError(key, problem)
