import pytest

from cluster.submission import run_directory
from worker.errors import UserError


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("s3://AKIAKEY:hidden@bucket/run", "--run-dir: s3://… has credentials in it"),
        ("s3://bucket/run?secret_key=hidden", "--run-dir: s3://… has options after a question mark"),
        ("abfs://container/run", "--run-dir: nothing can be written to abfs://"),
        ("https://hidden@store.example/run", "--run-dir: https://… is no address"),
        ("runs/mine", "--run-dir: runs/mine is relative to a folder here"),
    ],
)
def test_a_run_directory_where_no_run_can_go_is_not_sent(given: str, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        run_directory(given, "job-1", same_machine=False)
    assert str(caught.value).startswith(sentence)
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize("given", ["s3://bucket/run", "file:///shared/run", "/shared/run", "~/run"])
def test_what_the_cluster_sees_is_sent_as_it_is(given: str) -> None:
    assert run_directory(given, "job-1", same_machine=False) == given


def test_without_one_the_run_goes_to_a_directory_of_its_own() -> None:
    assert run_directory(None, "job-1", same_machine=False) == "~/isograd-runs/job-1"
