import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits

from worker.blas import fingerprint, one_thread


def blas_threads() -> set[int]:
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


def test_blas_is_held_to_one_thread_for_the_length_of_the_block() -> None:
    with threadpool_limits(2):
        assert blas_threads() == {2}
        with one_thread():
            assert blas_threads() == {1}
        assert blas_threads() == {2}


def test_the_fingerprint_names_what_the_bits_depend_on() -> None:
    found = fingerprint()

    assert list(found) == ["numpy", "blas", "kernel", "cpu"]
    assert found["numpy"] == np.__version__
    assert all(found.values()) and "unknown" not in (found["blas"], found["kernel"])
    assert fingerprint() == found
