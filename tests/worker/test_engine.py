import os
import pickle
import tracemalloc
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.arrays import Floats
from worker.blas import one_thread
from worker.choice import choose_columns
from worker.data import DataSpec
from worker.encoding import Encoding
from worker.engine import Worker
from worker.errors import DataError
from worker.keeping import Keeping, choose_keeping, training_need
from worker.messages import SPLITS, ComputeGradients, CountRows, Evaluate, PrepareShards, ScanShards, Setup, Split, Task
from worker.model import HiddenActivation, Layout, ModelSpec
from worker.network import ErrorSums, GradientSum, Network
from worker.order import ShardOrder
from worker.rows import EVALUATION_ROWS
from worker.scan import scan_sum
from worker.sharding import ShardPlan, Window
from worker.sources import CsvCount, Source, open_source, read_rows
from worker.stores import DEFAULT_STORAGE
from worker.streams import Purpose, stream
from worker.tree import finish, root

ROWS = 97
Parts = Sequence[Sequence[int]]
"""The shards of each worker."""


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


def write_rows(folder: Path, sizes: Sequence[int], inputs: int = 5, seed: int = 1) -> Source:
    """Writes files of so many rows: inputs `x`, three classes `kind`, and two numbers `value`."""
    draws = np.random.default_rng(seed)
    for number, rows in enumerate(sizes):
        x_NI = draws.normal(3, 2, (rows, inputs))
        columns = {
            "x": pa.FixedSizeListArray.from_arrays(x_NI.ravel(), inputs),
            "kind": np.array(["ant", "bee", "cat"])[(np.abs(x_NI[:, 0]) * 7).astype(int) % 3],
            "value": pa.FixedSizeListArray.from_arrays(np.sin(x_NI[:, :2]).ravel(), 2),
        }
        pq.write_table(pa.table(columns), folder / f"{number}.parquet", row_group_size=16)
    return open_source(str(folder), "data.train")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return write_rows(tmp_path_factory.mktemp("rows"), [60, ROWS - 60])


@pytest.fixture(scope="module")
def other_rows(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return write_rows(tmp_path_factory.mktemp("other"), [23], seed=2)


def make_setup(
    source: Source, *, shards: int, batch_size: int = 20, held_out: int = 0, validation: Source | None = None, **model: Any
) -> Setup:
    spec = ModelSpec(**{"task": "classification", "hidden": (6,)} | model)
    label = "value" if spec.task == "regression" else "kind"
    return Setup(
        model=spec,
        columns=choose_columns(source.schema, DataSpec(train="rows", features=("x",), label=label, scale="standard"), spec),
        plan=ShardPlan(rows=source.rows, validation_rows=held_out, shards=shards, batch_size=batch_size, seed=5),
        train=source,
        validation=validation,
    )


@st.composite
def setups(draw: st.DrawFn, source: Source, **model: Any) -> Setup:
    held_out = draw(st.sampled_from([0, 0, 1, 30]))
    dropout = draw(st.sampled_from([0.0, 0.4]))
    activation = draw(st.sampled_from(get_args(HiddenActivation)))
    setup = make_setup(
        source,
        shards=draw(st.integers(1, 11)),
        batch_size=draw(st.one_of(st.integers(1, 12), st.integers(13, 120))),
        held_out=held_out,
        dropout=dropout,
        activation=activation,
        **model,
    )
    window = draw(st.one_of(st.none(), st.integers(1, 30)))
    return setup if window is None else windowed(setup, window)


def windowed(setup: Setup, rows: int) -> Setup:
    """Returns the setup with rows shuffled in windows of so many of a shard."""
    return replace(setup, plan=replace(setup.plan, window=Window(rows, setup.train.cuts)))


def limits() -> st.SearchStrategy[int | None]:
    """Draws how much memory workers take for rows: all that they want, or too little to keep all shards, or any."""
    return st.sampled_from([None, 0, 2000, 4000])


@st.composite
def splits(draw: st.DrawFn, shards: int) -> Parts:
    """Draws which worker holds which shards: any subsets, as after losses."""
    workers = draw(st.lists(st.integers(0, 4), min_size=shards, max_size=shards))
    return [[shard for shard in range(shards) if workers[shard] == worker] for worker in sorted(set(workers))]


def ask(worker: Worker, task: Task, weights_P: Floats | None = None) -> Any:
    """Gives a worker a task as one that has crossed processes."""
    return worker.run(pickle.loads(pickle.dumps(task)), weights_P)


def together(setup: Setup) -> Parts:
    return [range(setup.plan.shards)]


def fitted(setup: Setup, parts: Parts) -> tuple[list[Worker], Encoding]:
    """Has workers scan their shards, and hold them."""
    workers = [Worker() for _ in parts]
    scans = {}
    for worker, shards in zip(workers, parts, strict=True):
        scans |= ask(worker, ScanShards(setup, tuple(shards)))
    encoding = Encoding.fit(setup.columns, setup.model, scan_sum((scans[shard] for shard in sorted(scans)), setup.columns))
    hold(workers, parts, setup, encoding)
    return workers, encoding


def hold(workers: Sequence[Worker], parts: Parts, setup: Setup, encoding: Encoding) -> None:
    for worker, shards in zip(workers, parts, strict=True):
        ask(worker, PrepareShards(setup, tuple(shards), encoding))


def random_weights(setup: Setup, encoding: Encoding) -> Floats:
    sizes = (len(encoding.input_names), *setup.model.hidden, encoding.outputs)
    draws = np.random.default_rng(3)
    return draws.normal(0, 0.5, Layout(sizes, bias=True).size).astype(setup.model.dtype)


def add(left: GradientSum, right: GradientSum) -> GradientSum:
    return GradientSum(left.gradient_P + right.gradient_P, left.errors + right.errors)


def gradient(workers: Sequence[Worker], parts: Parts, setup: Setup, round_number: int, weights_P: Floats) -> GradientSum:
    """Returns the finished sum of a round, copied out of the workers' buffers."""
    partials: dict[Any, Any] = {}
    for worker, shards in zip(workers, parts, strict=True):
        partials |= ask(worker, ComputeGradients(round_number, tuple(shards)), weights_P)
    total = finish(partials, setup.plan.shards, add)
    assert total is not None
    return GradientSum(total.gradient_P.copy(), total.errors)


def errors(workers: Sequence[Worker], parts: Parts, setup: Setup, split: Split, weights_P: Floats) -> ErrorSums:
    partials: dict[Any, Any] = {}
    for worker, shards in zip(workers, parts, strict=True):
        partials |= ask(worker, Evaluate(split, tuple(shards)), weights_P)
    total = finish(partials, setup.plan.shards, lambda left, right: left + right)
    assert total is not None
    return total


def encoded(setup: Setup, encoding: Encoding, source: Source) -> tuple[Floats, Floats]:
    """Returns all rows of a dataset as inputs and targets, without the shards' help."""
    table = read_rows(source, 0, source.rows, setup.columns.needed)
    targets = encoding.targets(table, source.where, setup.model.dtype)
    features_NF = encoding.features(table, source.where, setup.model.dtype)
    return features_NF, targets if targets.ndim == 2 else np.eye(encoding.outputs, dtype=setup.model.dtype)[targets]


def training_rows(plan: ShardPlan) -> list[int]:
    return [plan.shard_range(shard)[0] + row for shard in range(plan.shards) for row in plan.holdout(shard).split()[0].tolist()]


def same_bits(one: GradientSum, other: GradientSum) -> bool:
    return one.gradient_P.tobytes() == other.gradient_P.tobytes() and one.errors == other.errors


@settings(max_examples=60)
@given(data=st.data())
def test_the_gradient_and_errors_have_the_same_bits_for_any_workers(rows: Source, data: st.DataObject) -> None:
    setup = data.draw(setups(rows))
    parts = data.draw(splits(setup.plan.shards))
    round_number = data.draw(st.integers(0, 3 * setup.plan.rounds_per_epoch))
    workers, encoding = fitted(replace(setup, memory_limit=data.draw(limits())), parts)
    one, encoding_of_one = fitted(setup, together(setup))
    weights_P = random_weights(setup, encoding)

    assert encoding == encoding_of_one
    found = gradient(workers, parts, setup, round_number, weights_P)
    expected = gradient(one, together(setup), setup, round_number, weights_P)
    assert same_bits(found, expected)
    for split in ("train", "validation") if setup.plan.validation_rows else ("train",):
        assert errors(workers, parts, setup, split, weights_P) == errors(one, together(setup), setup, split, weights_P)


@settings(max_examples=20)
@given(data=st.data())
def test_rows_kept_as_in_the_files_make_no_difference(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    draws, folder = np.random.default_rng(3), tmp_path_factory.mktemp("narrow")
    columns = {
        "x": pa.FixedSizeListArray.from_arrays(draws.integers(0, 256, ROWS * 5).astype(np.uint8), 5),
        "kind": draws.integers(0, 3, ROWS),
    }
    pq.write_table(pa.table(columns), folder / "rows.parquet", row_group_size=16)
    setup = data.draw(setups(open_source(str(folder), "data.train")))
    one, encoding = fitted(setup, together(setup))
    numbers = range(setup.plan.shards)
    limit = sum(training_need(setup, encoding, number, "uint8").kept for number in numbers) + 13 * setup.plan.validation_rows
    narrow = replace(setup, memory_limit=limit)
    workers, _ = fitted(narrow, together(setup))
    weights_P, round_number = random_weights(setup, encoding), data.draw(st.integers(0, 2 * setup.plan.rounds_per_epoch))

    assert choose_keeping(narrow, encoding, numbers, limit) == Keeping("uint8", {number: frozenset(SPLITS) for number in numbers})
    expected = gradient(one, together(setup), setup, round_number, weights_P)
    assert same_bits(gradient(workers, together(setup), setup, round_number, weights_P), expected)
    for split in SPLITS if setup.plan.validation_rows else SPLITS[:1]:
        assert errors(workers, together(setup), setup, split, weights_P) == errors(one, together(setup), setup, split, weights_P)


@settings(max_examples=30)
@given(data=st.data())
def test_rounds_may_be_asked_for_again_and_in_any_order(rows: Source, data: st.DataObject) -> None:
    setup = data.draw(setups(rows))
    [streaming], encoding = fitted(replace(setup, memory_limit=0), together(setup))
    one, _ = fitted(setup, together(setup))
    weights_P = random_weights(setup, encoding)

    for round_number in data.draw(st.lists(st.integers(0, 3 * setup.plan.rounds_per_epoch), max_size=6)):
        found = gradient([streaming], together(setup), setup, round_number, weights_P)
        assert same_bits(found, gradient(one, together(setup), setup, round_number, weights_P))
        if data.draw(st.booleans()):
            streaming.anticipate(ComputeGradients(round_number, tuple(range(setup.plan.shards))))
        if data.draw(st.booleans()):
            assert errors([streaming], together(setup), setup, "train", weights_P) == errors(
                one, together(setup), setup, "train", weights_P
            )


@settings(max_examples=30)
@given(data=st.data())
def test_shards_may_move_between_workers_from_round_to_round(rows: Source, data: st.DataObject) -> None:
    setup = data.draw(setups(rows))
    first = data.draw(splits(setup.plan.shards))
    limited = replace(setup, memory_limit=data.draw(limits()))
    crew, encoding = fitted(limited, first)
    one, _ = fitted(setup, together(setup))
    weights_P = random_weights(setup, encoding)

    for round_number in range(4):
        parts = data.draw(splits(setup.plan.shards))
        crew += [Worker() for _ in range(len(parts) - len(crew))]
        workers = data.draw(st.permutations(crew))[: len(parts)]
        hold(workers, parts, limited, encoding)

        found = gradient(workers, parts, setup, round_number, weights_P)
        assert same_bits(found, gradient(one, together(setup), setup, round_number, weights_P))


def test_rows_of_very_many_shards_take_no_descriptors(rows: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    setup = make_setup(rows, shards=4, held_out=20)
    [shared], encoding = fitted(setup, together(setup))
    weights_P = random_weights(setup, encoding)
    monkeypatch.setattr("worker.shard.MOST_SHARED", 3)
    before, worker = len(os.listdir("/proc/self/fd")), Worker()

    assert ask(worker, PrepareShards(setup, (0, 1, 2, 3), encoding)) == {}
    assert len(os.listdir("/proc/self/fd")) <= before
    expected = gradient([shared], together(setup), setup, 7, weights_P)
    assert same_bits(gradient([worker], together(setup), setup, 7, weights_P), expected)


@pytest.mark.parametrize("validation", [0, 20], ids=["training rows", "both splits"])
def test_rows_that_another_worker_has_need_not_be_read(tmp_path: Path, validation: int) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    source = write_rows(folder, [60, 37])
    setup = make_setup(source, shards=4, held_out=validation)
    [first], encoding = fitted(setup, together(setup))
    holdings = ask(first, PrepareShards(setup, (0, 1, 2, 3), encoding))
    weights_P = random_weights(setup, encoding)
    expected = gradient([first], together(setup), setup, 7, weights_P)
    assert set(holdings) == {(shard, split) for shard in range(4) for split in SPLITS[: 1 + bool(validation)]}

    for path in folder.iterdir():
        path.unlink()
    second, third = Worker(), Worker()
    assert set(ask(second, PrepareShards(setup, (0, 1, 2, 3), encoding, holdings))) == set(holdings)
    assert same_bits(gradient([second], together(setup), setup, 7, weights_P), expected)
    assert not ask(first, PrepareShards(setup, (), encoding))
    with pytest.raises(DataError):  # the first one has let go of them, and there is nothing to read
        ask(third, PrepareShards(setup, (0, 1, 2, 3), encoding, holdings))


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_a_slice_is_the_shards_next_rows_in_the_epochs_order_with_units_dropped_by_round_and_shard(
    rows: Source, dropout: float
) -> None:
    setup = make_setup(rows, shards=4, batch_size=25, held_out=17, dropout=dropout)
    plan = setup.plan
    [worker], encoding = fitted(setup, together(setup))
    weights_P, expected_P = random_weights(setup, encoding), random_weights(setup, encoding)
    x_NI, t_NO = encoded(setup, encoding, rows)
    network = Network(setup.model, 5, 3)

    for round_number, shard in product(range(2 * plan.rounds_per_epoch), range(4)):
        epoch, round_in_epoch = divmod(round_number, plan.rounds_per_epoch)
        order = plan.shard_range(shard)[0] + plan.holdout(shard).split()[0][ShardOrder(plan, shard).ranks(epoch, 0)]
        chosen = order[slice(*plan.slice_range(round_in_epoch, shard))]
        draws = stream(plan.seed, Purpose.DROPOUT, round_number, shard) if dropout else None
        expected = network.gradient_sum(weights_P, x_NI[chosen], t_NO[chosen], expected_P, draws)

        [(node, found)] = ask(worker, ComputeGradients(round_number, (shard,)), weights_P).items()
        assert node == (0, shard)
        assert same_bits(found, GradientSum(expected_P, expected))


@pytest.mark.parametrize("model", [{}, {"task": "regression", "activation": "tanh"}], ids=["classes", "values"])
@pytest.mark.parametrize(("shards", "batch_size", "held_out"), [(1, 97, 0), (4, 10, 0), (7, 3, 20), (5, 1, 60)])
def test_the_rounds_of_an_epoch_add_up_to_the_gradient_of_all_training_rows(
    rows: Source, shards: int, batch_size: int, held_out: int, model: dict[str, Any]
) -> None:
    setup = make_setup(rows, shards=shards, batch_size=batch_size, held_out=held_out, dtype="float64", **model)
    workers, encoding = fitted(setup, together(setup))
    weights_P = random_weights(setup, encoding)
    x_NI, t_NO = (values[training_rows(setup.plan)] for values in encoded(setup, encoding, rows))
    expected_P = np.empty_like(weights_P)
    expected = Network(setup.model, x_NI.shape[1], t_NO.shape[1]).gradient_sum(weights_P, x_NI, t_NO, expected_P)

    for epoch in range(2):
        first = epoch * setup.plan.rounds_per_epoch
        parts = [gradient(workers, together(setup), setup, first + t, weights_P) for t in range(setup.plan.rounds_per_epoch)]
        np.testing.assert_allclose(sum(part.gradient_P for part in parts), expected_P, rtol=1e-9, atol=1e-9)
        assert sum(part.errors.rows for part in parts) == expected.rows == ROWS - held_out
        assert sum(part.errors.loss for part in parts) == pytest.approx(expected.loss, rel=1e-12)


@pytest.mark.parametrize("model", [{}, {"task": "regression"}], ids=["classes", "values"])
def test_evaluation_covers_each_row_of_a_split_once(rows: Source, other_rows: Source, model: dict[str, Any]) -> None:
    held_out = make_setup(rows, shards=6, held_out=20, dropout=0.3, dtype="float64", **model)
    separate = replace(held_out, plan=replace(held_out.plan, validation_rows=0, shards=30), validation=other_rows)
    for setup in (held_out, separate):  # 30 shards of 23 rows leave some without any
        workers, encoding = fitted(setup, together(setup))
        weights_P = random_weights(setup, encoding)
        chosen = training_rows(setup.plan)
        splits = {"train": [values[chosen] for values in encoded(setup, encoding, rows)]}
        splits["validation"] = [np.delete(values, chosen, axis=0) for values in encoded(setup, encoding, rows)]
        if setup.validation is not None:
            splits["validation"] = list(encoded(setup, encoding, other_rows))

        for split, (x_NI, t_NO) in splits.items():
            found = errors(workers, together(setup), setup, split, weights_P)
            expected = Network(setup.model, x_NI.shape[1], t_NO.shape[1]).errors(weights_P, x_NI, t_NO)
            assert (found.rows, found.outputs, found.wrong) == (expected.rows, expected.outputs, expected.wrong)
            assert [found.loss, found.absolute, found.squared] == pytest.approx(
                [expected.loss, expected.absolute, expected.squared], rel=1e-12
            )


@pytest.mark.parametrize("rows_of_shard", [EVALUATION_ROWS - 1, EVALUATION_ROWS, 2 * EVALUATION_ROWS + 1])
def test_long_shards_are_evaluated_in_portions(rows_of_shard: int, tmp_path: Path) -> None:
    source = write_rows(tmp_path, [2 * rows_of_shard])
    setup = make_setup(source, shards=2, dtype="float64")
    workers, encoding = fitted(setup, together(setup))
    weights_P = random_weights(setup, encoding)
    x_NI, t_NO = encoded(setup, encoding, source)

    found = errors(workers, together(setup), setup, "train", weights_P)

    expected = Network(setup.model, x_NI.shape[1], t_NO.shape[1]).errors(weights_P, x_NI, t_NO)
    assert (found.rows, found.wrong) == (2 * rows_of_shard, expected.wrong)
    assert found.loss == pytest.approx(expected.loss, rel=1e-12)


def test_a_worker_answers_with_the_maximal_nodes_of_its_shards_and_none_where_nothing_is_to_add(rows: Source) -> None:
    setup = make_setup(rows, shards=8, batch_size=1)
    workers, encoding = fitted(setup, together(setup))

    answers = {
        shards: ask(workers[0], ComputeGradients(0, shards), random_weights(setup, encoding))
        for shards in ((0, 1, 2, 3, 5), tuple(range(8)))
    }

    assert list(answers[0, 1, 2, 3, 5]) == [(2, 0), (0, 5)]
    assert answers[0, 1, 2, 3, 5][0, 5] is None
    assert list(answers[tuple(range(8))]) == [root(8)]
    assert answers[tuple(range(8))][root(8)].errors.rows == 1


def test_answers_stay_valid_until_a_task_of_the_next_round(rows: Source) -> None:
    setup = make_setup(rows, shards=6, held_out=12)
    one, encoding = fitted(setup, together(setup))
    weights_P = random_weights(setup, encoding)
    worker = Worker()
    hold([worker], [range(3)], setup, encoding)
    first = ask(worker, ComputeGradients(4, (0, 1, 2)), weights_P)
    kept = {node: part.gradient_P.copy() for node, part in first.items()}

    hold([worker], [range(6)], setup, encoding)
    ask(worker, Evaluate("validation", (0, 1, 2)), weights_P)
    second = ask(worker, ComputeGradients(4, (3, 4, 5)), weights_P)

    assert all(np.array_equal(first[node].gradient_P, kept[node]) for node in kept)
    total = finish(first | second, 6, add)
    assert total is not None and same_bits(total, gradient(one, together(setup), setup, 4, weights_P))
    expected = gradient(one, together(setup), setup, 5, weights_P)
    assert same_bits(gradient([worker], together(setup), setup, 5, weights_P), expected)


def test_the_weights_are_left_alone(rows: Source) -> None:
    setup = make_setup(rows, shards=3, dropout=0.2)
    workers, encoding = fitted(setup, together(setup))
    weights_P = random_weights(setup, encoding)
    weights_P.setflags(write=False)

    gradient(workers, together(setup), setup, 0, weights_P)
    errors(workers, together(setup), setup, "train", weights_P)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("activation", get_args(HiddenActivation))
def test_a_round_allocates_nothing_of_its_size_once_the_buffers_are_there(
    activation: HiddenActivation, dropout: float, wide_rows: Source
) -> None:
    setup = make_setup(wide_rows, shards=2, batch_size=2048, hidden=(256,), activation=activation, dropout=dropout)
    [worker], encoding = fitted(setup, together(setup))
    weights_P = random_weights(setup, encoding)
    for round_number in (0, 1):
        worker.run(ComputeGradients(round_number, (0, 1)), weights_P)
    batch_bytes, gradient_bytes = 1024 * 256 * 4, weights_P.nbytes
    tracemalloc.start()
    try:
        worker.run(ComputeGradients(2, (0, 1)), weights_P)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < min(batch_bytes, gradient_bytes) / 2


@pytest.fixture(scope="module")
def wide_rows(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return write_rows(tmp_path_factory.mktemp("wide"), [6144], inputs=512)


def test_weights_that_overflow_show_in_the_sums_and_warn_of_nothing(rows: Source) -> None:
    setup = make_setup(rows, shards=3)
    workers, encoding = fitted(setup, together(setup))
    weights_P = np.full_like(random_weights(setup, encoding), 1e38)

    assert not gradient(workers, together(setup), setup, 0, weights_P).errors.finite
    assert not errors(workers, together(setup), setup, "train", weights_P).finite


def refusal(setup: Setup) -> str:
    """Returns how a worker refuses the rows as it scans or encodes them."""
    with pytest.raises(DataError) as caught:
        fitted(setup, together(setup))
    return str(caught.value)


@pytest.mark.parametrize("bad", [0, 29, 59, 60, 96])
@pytest.mark.parametrize("held_out", [0, 40])
def test_a_bad_row_is_named_by_its_place_in_its_file_whichever_split_it_is_in(
    rows: Source, held_out: int, bad: int, tmp_path: Path
) -> None:
    table = read_rows(rows, 0, ROWS, ["x", "kind", "value"])
    values = table["x"].combine_chunks().flatten().to_numpy().copy()
    values[bad * 5 + 3] = np.nan
    table = table.set_column(0, "x", pa.FixedSizeListArray.from_arrays(values, 5))
    pq.write_table(table.slice(0, 60), tmp_path / "0.parquet", row_group_size=7)
    pq.write_table(table.slice(60), tmp_path / "1.parquet")
    setup = make_setup(open_source(str(tmp_path), "data.train"), shards=7, held_out=held_out)
    path, row = (tmp_path / "0.parquet", bad + 1) if bad < 60 else (tmp_path / "1.parquet", bad - 59)

    assert refusal(setup).startswith(f"{path}: row {row}, column 'x[3]': nan is not a finite float")


def test_a_bad_row_of_a_validation_dataset_is_named(rows: Source, tmp_path: Path) -> None:
    x = pa.FixedSizeListArray.from_arrays(np.zeros(15), 5)
    pq.write_table(pa.table({"x": x, "kind": ["ant", "bee", "dog"]}), tmp_path / "more.parquet")
    setup = make_setup(rows, shards=2, validation=open_source(str(tmp_path), "data.validation"))

    assert refusal(setup) == f"{tmp_path}/more.parquet: row 3, column 'kind': class 'dog' does not occur in the training rows"


def test_rows_of_csv_files_are_counted(tmp_path: Path) -> None:
    for rows, name in ((2, "a.csv"), (3, "b.csv")):
        (tmp_path / name).write_text("x,y\n" + "1,2\n" * rows + "A1,2\n")
    files = open_source(str(tmp_path), "data.train").files

    doubtful = {"x": pa.int64(), "y": pa.int64(), "another": pa.int64()}

    answer = ask(Worker(), CountRows(files, DEFAULT_STORAGE, (doubtful, {})))

    assert answer == {files[0].path: CsvCount(3, {"x": pa.string()}), files[1].path: CsvCount(4)}
