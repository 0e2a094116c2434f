import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from worker.streams import Purpose, stream

INDICES = st.lists(st.integers(0, 2**32 - 1) | st.integers(0, 3), max_size=3).map(tuple)
KEYS = st.tuples(st.sampled_from(Purpose), INDICES)


def draws(seed: int, purpose: Purpose, indices: tuple[int, ...]) -> list[int]:
    return stream(seed, purpose, *indices).integers(2**63, size=4).tolist()


@given(seed=st.integers(0, 2**64 - 1), one=KEYS, other=KEYS)
def test_two_purposes_or_indices_have_two_streams(
    seed: int, one: tuple[Purpose, tuple[int, ...]], other: tuple[Purpose, tuple[int, ...]]
) -> None:
    assert (draws(seed, *one) == draws(seed, *other)) == (one == other)


def test_an_index_of_0_is_an_index() -> None:
    found = [draws(7, Purpose.DROPOUT, indices) for indices in ((), (0,), (0, 0), (0, 0, 0))]

    assert len(set(map(tuple, found))) == len(found)


@given(one=st.integers(0, 2**64 - 1), other=st.integers(0, 2**64 - 1), key=KEYS)
def test_two_seeds_have_two_streams(one: int, other: int, key: tuple[Purpose, tuple[int, ...]]) -> None:
    assert (draws(one, *key) == draws(other, *key)) == (one == other)


def test_a_stream_is_no_part_of_any_ambient_state() -> None:
    before = draws(7, Purpose.PERMUTATION, (1, 2))
    stream(7, Purpose.DROPOUT, 1, 2).random(1000)
    np.random.seed(1)  # noqa: NPY002

    assert draws(7, Purpose.PERMUTATION, (1, 2)) == before
