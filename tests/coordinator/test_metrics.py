"""What a run tells, as those who watch it see it: counters, histograms, workers, a Pushgateway that fails."""

import re
import socket
import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from time import time

import pytest
from prometheus_client import push_to_gateway
from prometheus_client.parser import text_string_to_metric_families

from coordinator.export import MetricsSpec, expose
from coordinator.metrics import BOUNDS, ROUNDS_TOGETHER, STATUSES, Metrics
from coordinator.records import (
    Checkpointed,
    CrewStatus,
    EpochDone,
    EpochRecord,
    Errors,
    Event,
    Finished,
    Percentiles,
    RoundDone,
    Seconds,
    Started,
    Status,
    Summary,
)
from coordinator.watch import MOST_WAITING, Watch

DOCUMENTATION = Path(__file__).parents[2] / "docs" / "metrics.md"
Samples = dict[tuple[str, ...], float]
SECONDS = 120.0
ERRORS = Errors(loss=0.1 + 0.2, mean_absolute_error=1 / 3, mean_squared_error=1e-9, error_rate=0.25)
CREW = CrewStatus(workers=2, shares={0: 2, 1: 2})


def started(crew: CrewStatus = CREW, **changed: object) -> Started:
    known = {
        "run": "run-1", "directory": "/run-1", "job": '[model]\ntask = "classification"\n', "timestamp": 1e9, "rows": 640,
        "validation_rows": 0, "inputs": 4, "outputs": 3, "parameters": 51, "shards": 4, "most_workers": 3,
        "rounds_per_epoch": 10, "rounds_done": 0, "most_rounds": 100, "history": (), "metrics_url": None, "dashboard_url": None,
        "host": "here",
    }  # fmt: skip
    return Started(crew=crew, **(known | changed))  # type: ignore[arg-type]


def round_done(number: int, crew: CrewStatus = CREW, compute: float = 2e-4, **seconds: float) -> RoundDone:
    workers = {int(worker.removeprefix("w")): spent for worker, spent in seconds.items()}
    phases = {"compute": compute, "reduce": 4e-5, "update": 0.5}
    return RoundDone(
        round=number, timestamp=1e9 + number, rows=64, loss=0.5 / number, gradient_norm=1.5, learning_rate=0.1,
        seconds=0.7, phases=phases, worker_seconds=workers, crew=crew,
    )  # type: ignore[arg-type]  # fmt: skip


def epoch_done(epoch: int = 1, validation: Errors | None = None) -> EpochDone:
    record = EpochRecord(
        epoch=epoch, round=10 * epoch, rows=640, rows_expected=640, train=ERRORS, validation=validation, learning_rate=0.1,
        gradient_norm=1.5, seconds=1.0, rows_per_second=640.0,
    )  # fmt: skip
    return EpochDone(record=record, evaluate_seconds=0.02)


def finished(status: Status, crew: CrewStatus = CREW) -> Finished:
    summary = Summary(
        run="run-1", status=status, stop_reason="epochs", epochs=1, rounds=10, rows_trained=640, rows_expected=640, parameters=51,
        workers=2, worker_failures=0, slices_recomputed=0, kept_epoch=1, weights_digest="0" * 64,
        seconds=Seconds(startup=1.0, training=1.0, total=2.0), rows_per_second=640.0,
        round_seconds=Percentiles(p50=0.1, p99=0.2), train=ERRORS, validation=None, fingerprint={},
    )  # fmt: skip
    return Finished(summary=summary, crew=crew)


def samples_of(text: str) -> Samples:
    """The values by name and the values of the labels but the run's."""
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    assert {sample.labels.pop("run") for sample in samples} == {"run-1"}
    return {(sample.name.removeprefix("isograd_"), *sample.labels.values()): sample.value for sample in samples}


def after(*events: Event) -> Samples:
    metrics = Metrics("run-1")
    for event in events:
        metrics.observe(event)
    return samples_of(expose(metrics.collect()).decode())


def test_the_loss_is_there_after_the_first_round() -> None:
    samples = after(started(), round_done(1))

    assert samples["round_loss",] == 0.5
    assert samples["last_round_timestamp_seconds",] == 1e9 + 1
    assert samples["run_start_timestamp_seconds",] == 1e9
    assert ("loss", "train") not in samples
    assert ("checkpoint_last_success_timestamp_seconds",) not in samples


def test_errors_are_exported_to_the_last_digit() -> None:
    validation = Errors(loss=1e-300, mean_absolute_error=0.1, mean_squared_error=2 / 3, error_rate=0.0)

    samples = after(started(), round_done(1), epoch_done(validation=validation))

    for split, errors in (("train", ERRORS), ("validation", validation)):
        assert samples["loss", split] == errors.loss
        assert samples["mean_absolute_error", split] == errors.mean_absolute_error
        assert samples["mean_squared_error", split] == errors.mean_squared_error
        assert samples["error_ratio", split] == errors.error_rate


@pytest.mark.parametrize("count", [1, ROUNDS_TOGETHER - 1, ROUNDS_TOGETHER, 2 * ROUNDS_TOGETHER + 3])
def test_totals_count_every_round_once(count: int) -> None:
    samples = after(started(), *(round_done(number, w0=0.25, w1=0.5) for number in range(1, count + 1)))

    assert (samples["rounds_total",], samples["rows_total",]) == (count, 64 * count)
    assert samples["progress_ratio",] == count / 100
    for phase in ("compute", "reduce", "update"):
        assert samples["round_seconds_count", phase] == count
    assert samples["round_seconds_sum", "update"] == 0.5 * count
    assert samples["worker_compute_seconds_count", "0"] == count
    assert samples["worker_compute_seconds_sum", "1"] == 0.5 * count


@pytest.mark.parametrize(
    ("seconds", "bound"),
    [(0.0, "1e-05"), (1e-4, "0.0001"), (1.01e-4, "0.00025"), (0.3, "0.5"), (60.0, "100"), (249.0, "250"), (1e4, "+Inf")],
)
def test_a_duration_counts_in_the_buckets_of_its_bound_and_above(seconds: float, bound: str) -> None:
    samples = after(started(), round_done(1, compute=seconds))

    buckets = {key[1]: value for key, value in samples.items() if key[0] == "round_seconds_bucket" and key[2] == "compute"}
    assert len(buckets) == len(BOUNDS) + 1
    assert {name for name, count in buckets.items() if count == 1} == {name for name in buckets if float(name) >= float(bound)}


def test_evaluation_and_checkpoints_are_timed_where_there_are_any() -> None:
    without = after(started(), round_done(1), epoch_done())
    assert (without["round_seconds_count", "evaluate"], without["round_seconds_count", "checkpoint"]) == (0, 0)

    written = Checkpointed(round=1, seconds=0.03, timestamp=2e9)
    samples = after(started(), round_done(1), epoch_done(validation=ERRORS), written)
    assert samples["round_seconds_sum", "evaluate"] == 0.02
    assert samples["round_seconds_sum", "checkpoint"] == 0.03
    assert samples["checkpoint_last_success_timestamp_seconds",] == 2e9


def test_a_worker_that_is_lost_takes_its_series_along_and_is_counted() -> None:
    fewer = CrewStatus(workers=1, lost=1, recomputed=2, moved=2, shares={1: 4})
    more = CrewStatus(workers=2, loading=1, lost=1, recomputed=2, moved=2, shares={1: 4, 2: 0})

    samples = after(started(), round_done(1, w0=0.1, w1=0.2), round_done(2, fewer, w0=0.1, w1=0.4), round_done(3, more, w1=0.4))

    assert {key[1] for key in samples if key[0] == "worker_compute_seconds_count"} == {"1"}
    assert samples["worker_compute_seconds_sum", "1"] == pytest.approx(1.0)
    assert {key[1]: value for key, value in samples.items() if key[0] == "worker_shards"} == {"1": 4, "2": 0}
    states = {state: samples["workers", state] for state in ("ready", "loading", "missing")}
    assert states == {"ready": 1, "loading": 1, "missing": 1}
    assert samples["worker_failures_total",] == 1
    assert samples["shards_moved_total",] == 2
    assert samples["slices_recomputed_total",] == 2


def test_a_run_has_a_start_before_its_first_round_from_which_a_standstill_is_counted() -> None:
    before = time()
    samples = after()
    assert before <= samples["run_start_timestamp_seconds",] <= time()
    assert samples["run_status", "running"] == 1


def test_counters_of_a_run_that_is_taken_up_count_from_there() -> None:
    before = CrewStatus(workers=2, lost=5, recomputed=3, moved=8, shares={0: 2, 1: 2})
    now = CrewStatus(workers=1, lost=6, recomputed=4, moved=10, shares={1: 4})
    history = (epoch_done(1).record, epoch_done(2).record)

    resumed = started(before, crew_before=before, rounds_done=20, history=history)
    assert after(resumed)["progress_ratio",] == 0.2
    samples = after(resumed, round_done(21, now))

    assert samples["rounds_total",] == 1
    assert samples["worker_failures_total",] == 1
    assert samples["shards_moved_total",] == 2
    assert samples["slices_recomputed_total",] == 1
    assert samples["epoch",] == 2
    assert samples["loss", "train"] == ERRORS.loss
    assert samples["progress_ratio",] == 0.21


def test_workers_that_were_lost_before_the_first_round_are_counted() -> None:
    before = CrewStatus(workers=2, lost=5, recomputed=3, moved=8, shares={0: 2, 1: 2})
    now = CrewStatus(workers=1, lost=6, recomputed=3, moved=10, shares={1: 4})

    for events in ((), (round_done(21, now),)):
        samples = after(started(now, crew_before=before, rounds_done=20), *events)
        assert samples["worker_failures_total",] == 1
        assert samples["shards_moved_total",] == 2


def test_workers_that_were_lost_after_the_last_round_are_counted() -> None:
    none = CrewStatus(lost=2, recomputed=4, shares={})

    samples = after(started(), round_done(1, w0=0.1, w1=0.2), finished("failed", none))

    assert samples["worker_failures_total",] == 2
    assert samples["slices_recomputed_total",] == 4
    assert {state: samples["workers", state] for state in ("ready", "missing")} == {"ready": 0, "missing": 3}
    assert [key for key in samples if key[0].startswith(("worker_shards", "worker_compute"))] == []


@pytest.mark.parametrize("status", STATUSES[1:])
def test_how_the_run_ended_is_told(status: Status) -> None:
    running = after(started())
    assert {name: running["run_status", name] for name in STATUSES} == {name: float(name == "running") for name in STATUSES}

    samples = after(started(), finished(status))
    assert {name: samples["run_status", name] for name in STATUSES} == {name: float(name == status) for name in STATUSES}


def test_the_documentation_names_exactly_what_is_exported() -> None:
    metrics = Metrics("run-1")
    for event in (started(), round_done(1, w0=0.1), epoch_done(), Checkpointed(round=1, seconds=0.1, timestamp=1.0)):
        metrics.observe(event)
    exported = {}
    for family in metrics.collect():
        labels = sorted({name for sample in family.samples for name in sample.labels} - {"run", "le"})
        exported[family.name + ("_total" if family.type == "counter" else "")] = (family.type, labels)

    rows = [line.split("|") for line in DOCUMENTATION.read_text().splitlines() if line.startswith("| `isograd_")]
    documented = {row[1].strip(" `"): (row[2].strip(), sorted(re.findall(r"`(\w+)`", row[3]))) for row in rows}

    assert documented == exported
    assert len(documented) == len(rows)


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[Watch]:
    """The watch of a run with an endpoint and a page."""
    watch = Watch(MetricsSpec(dashboard=True), tmp_path / "run-1")
    yield watch
    watch.close()


def get(url: str | None) -> str:
    assert url is not None
    place, _, path = url.removeprefix("http://").partition("/")
    connection = HTTPConnection(place, timeout=SECONDS)
    try:
        connection.request("GET", f"/{path}")
        return connection.getresponse().read().decode()
    finally:
        connection.close()


def test_whoever_looks_sees_all_that_was_reported(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coordinator.endpoint.SAME_FOR_SECONDS", 0.0)
    watch.report(started())
    for number in range(1, 3 * MOST_WAITING):
        watch.report(round_done(number))
        if number in (1, MOST_WAITING, 2 * MOST_WAITING + 7):
            assert samples_of(get(watch.metrics_url))["rounds_total",] == number


def test_reporting_waits_for_nobody_who_looks(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    entered, leave = threading.Event(), threading.Event()
    collect = Metrics.collect

    def slow(metrics: Metrics) -> object:
        entered.set()
        assert leave.wait(SECONDS)
        return collect(metrics)

    monkeypatch.setattr(Metrics, "collect", slow)
    watch.report(started())
    found: list[str] = []
    looking = threading.Thread(target=lambda: found.append(get(watch.metrics_url)))
    looking.start()
    assert entered.wait(SECONDS)

    for number in range(1, 3 * MOST_WAITING):
        watch.report(round_done(number))  # would wait for ever

    leave.set()
    looking.join(SECONDS)
    assert samples_of(found[0])["epoch",] == 0


def test_without_the_section_there_is_a_report_and_no_endpoint(tmp_path: Path) -> None:
    watch = Watch(None, tmp_path / "run-1")
    watch.report(started())

    assert (watch.metrics_url, watch.dashboard_url) == (None, None)
    assert b"run-1" in watch.page()
    watch.linger(lambda: False)
    watch.close()


def test_a_gateway_that_can_not_be_reached_is_a_notice(tmp_path: Path) -> None:
    with socket.socket() as deaf:  # whose port is nobody else's, as long as it does not listen there
        deaf.bind(("127.0.0.1", 0))
        gateway = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        watch = Watch(MetricsSpec(pushgateway=gateway), tmp_path / "run-1")
        watch.report(started())

        (notice,) = watch.push()

    assert notice.message.startswith(f"the final errors could not be sent to the Pushgateway at {gateway}: ")
    assert "refused" in notice.message
    watch.close()


def test_a_gateway_that_answers_too_slowly_is_a_notice_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coordinator.export.PUSH_SECONDS", 0.2)
    # No call to the socket takes too long by itself, however slow this machine is.
    monkeypatch.setattr("coordinator.export.push_to_gateway", lambda *known, timeout: push_to_gateway(*known, timeout=SECONDS))
    over = threading.Event()

    def drip(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            while not over.wait(0.05):
                connection.send(b"H")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        gateway = f"http://127.0.0.1:{listener.getsockname()[1]}"
        dripping = threading.Thread(target=drip, args=(listener,))
        dripping.start()
        watch = Watch(MetricsSpec(pushgateway=gateway), tmp_path / "run-1")

        (notice,) = watch.push()
        over.set()
        dripping.join(SECONDS)

    assert notice.message == f"the final errors could not be sent to the Pushgateway at {gateway}: it took more than 0.2 s"
    watch.close()
