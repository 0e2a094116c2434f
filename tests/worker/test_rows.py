import numpy as np
import pytest

from worker.batch import Target
from worker.rows import Rows, gather


@pytest.mark.parametrize(
    ("targets", "outputs", "expected"),
    [
        (np.array([2, 0, 1, 1]), 3, [[0, 1, 0], [0, 0, 1], [0, 1, 0]]),
        (np.array([20, 0, 17, 3]), 21, [[float(place == one) for place in range(21)] for one in (3, 20, 17)]),
        (np.array([0, 0, 1, 1]), 1, [[1], [0], [1]]),
        (np.array([[0.5, 1], [1.5, 2], [2.5, 3], [3.5, 4]], np.float32), 2, [[3.5, 4], [0.5, 1], [2.5, 3]]),
    ],
    ids=["one of several classes", "one of many classes", "one of two classes", "values"],
)
def test_chosen_rows_are_gathered_with_their_targets(targets: np.ndarray, outputs: int, expected: list[list[float]]) -> None:
    rows = Rows(np.arange(8, dtype=np.float32).reshape(4, 2), targets)
    x_BI, t_OB = np.full((3, 2), np.nan, np.float32), np.full((outputs, 3), np.nan, np.float32)

    gather(rows, np.array([3, 0, 2]), x_BI, Target(t_OB, None))

    assert x_BI.tolist() == [[6, 7], [0, 1], [4, 5]]
    assert t_OB.T.tolist() == expected


@pytest.mark.parametrize("shape", [(), (2,)], ids=["classes", "values"])
def test_weights_go_with_the_targets(shape: tuple[int, ...]) -> None:
    targets = np.zeros(4, [("target", np.intp if not shape else np.float32, shape), ("weight", np.float32)])
    targets["target"] = np.arange(4).reshape(4, *[1] * len(shape))
    targets["weight"] = [0.5, 1, 1.5, 2]
    x_BI, t_OB, w_B = np.empty((2, 2), np.float32), np.empty((4 if not shape else 2, 2), np.float32), np.empty(2, np.float32)

    gather(Rows(np.zeros((4, 2), np.float32), targets), np.array([3, 1]), x_BI, Target(t_OB, w_B))

    assert w_B.tolist() == [2, 1]
    assert (t_OB.argmax(axis=0) if not shape else t_OB[0]).tolist() == [3, 1]
