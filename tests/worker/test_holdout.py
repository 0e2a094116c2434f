import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.holdout import BLOCK_ROWS, Holdout, draw
from worker.streams import Purpose, stream

SEVERAL_BLOCKS = 2 * BLOCK_ROWS + 12_345


def check(holdout: Holdout, held_out: int) -> None:
    """Compares what a holdout tells with its own mask, row by row or at some of them."""
    mask_N = holdout.mask(0, holdout.rows)
    training, validation = holdout.split()
    step = max(1, holdout.rows // 50)
    positions = np.arange(0, holdout.rows + 1, step)

    assert len(mask_N) == holdout.rows and np.count_nonzero(mask_N) == held_out == len(validation)
    assert training.tolist() == np.flatnonzero(~mask_N).tolist()
    assert validation.tolist() == np.flatnonzero(mask_N).tolist()
    assert holdout.training_rows == holdout.rows - held_out
    before = np.append(0, np.cumsum(~mask_N))
    assert holdout.training_before(positions).tolist() == before[positions].tolist()
    for rank in range(0, len(training), step):
        assert holdout.training_position(rank) == training[rank]
    for first in positions.tolist():
        last = min(first + 3 * step, holdout.rows)
        assert np.array_equal(holdout.mask(first, last), mask_N[first:last])


@given(rows=st.integers(1, 300), share=st.floats(0, 1), seed=st.integers(0, 2**63), shard=st.integers(0, 50))
def test_what_a_holdout_tells_agrees_with_its_mask(rows: int, share: float, seed: int, shard: int) -> None:
    held_out = int(rows * share)

    check(draw(seed, shard, rows, held_out), held_out)


@pytest.mark.parametrize("held_out", [0, 1, 500_000, SEVERAL_BLOCKS])
def test_shards_of_several_blocks_hold_out_as_many_rows_as_asked_for_spread_evenly(held_out: int) -> None:
    holdout = draw(7, 3, SEVERAL_BLOCKS, held_out)
    mask_N = holdout.mask(0, SEVERAL_BLOCKS)

    check(holdout, held_out)
    for first in range(0, SEVERAL_BLOCKS, BLOCK_ROWS):
        block = mask_N[first : first + BLOCK_ROWS]
        assert abs(np.count_nonzero(block) - len(block) * held_out / SEVERAL_BLOCKS) <= 1


def test_blocks_are_drawn_by_seed_shard_and_block() -> None:
    blocks = [
        draw(seed, shard, 2 * BLOCK_ROWS, BLOCK_ROWS).mask(first, first + BLOCK_ROWS).tobytes()
        for seed, shard, first in [(1, 0, 0), (1, 0, BLOCK_ROWS), (1, 1, 0), (2, 0, 0)]
    ]

    assert len(set(blocks)) == len(blocks)


def test_the_rows_of_a_small_shard_are_the_last_of_a_permutation() -> None:
    order = stream(5, Purpose.VALIDATION_ROWS, 2).permutation(100)

    assert draw(5, 2, 100, 30).split()[1].tolist() == sorted(order[70:].tolist())
