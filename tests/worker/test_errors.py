import pickle

import pytest

from worker.errors import DataError, JobError, UserError, require

ERRORS = [
    UserError("--data: give a file"),
    JobError("model.hidden[1]", "0 units is too few; at least 1 is needed"),
    DataError("rows.csv: row 7, column 'x': nan is not a finite float32 number; mend or leave out the row"),
]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_is_the_same_after_it_has_crossed_processes(error: UserError, protocol: int) -> None:
    crossed = pickle.loads(pickle.dumps(error, protocol))

    assert type(crossed) is type(error)
    assert str(crossed) == str(error)
    assert vars(crossed) == vars(error)


def test_every_error_for_the_user_is_among_the_tested() -> None:
    here = {kind for kind in UserError.__subclasses__() if kind.__module__.startswith("worker.")}

    assert here == {type(error) for error in ERRORS} - {UserError}


def test_a_job_error_names_the_key_and_the_problem() -> None:
    require(True, "data.shards", "is fine")
    with pytest.raises(JobError, match=r"^data\.shards: must be at least 1, got 0$") as caught:
        require(False, "data.shards", "must be at least 1, got 0")

    assert (caught.value.key, caught.value.problem) == ("data.shards", "must be at least 1, got 0")
    assert isinstance(caught.value, UserError) and isinstance(caught.value, ValueError)
