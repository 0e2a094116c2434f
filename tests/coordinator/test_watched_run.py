import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

import pytest
from prometheus_client.parser import text_string_to_metric_families

from coordinator.records import EpochDone, Errors, Event, Finished, Noticed, RoundDone, Started, Summary
from coordinator.watch import Watch
from worker.errors import JobError, UserError

Document = dict[str, dict[str, Any]]
Begin = Callable[..., Iterator[Event]]
Samples = dict[tuple[str, str | None], float]
RUN = "run-1"
SECONDS = 120.0


def scrape_text(url: str) -> str:
    with build_opener(ProxyHandler({})).open(url, timeout=SECONDS) as answer:
        return answer.read().decode()


def scrape(url: str) -> Samples:
    """The values of a run's metrics by name and split (None where there is none)."""
    families = text_string_to_metric_families(scrape_text(url))
    samples = [sample for family in families for sample in family.samples]
    assert {sample.labels["run"] for sample in samples} == {RUN}
    return {(sample.name.removeprefix("isograd_"), sample.labels.get("split")): sample.value for sample in samples}


def errors_in(samples: Samples, split: str) -> Errors:
    return Errors(
        loss=samples["loss", split],
        mean_absolute_error=samples["mean_absolute_error", split],
        mean_squared_error=samples["mean_squared_error", split],
        error_rate=samples.get(("error_ratio", split)),
    )


def start(events: Iterator[Event]) -> str:
    first = next(events)
    assert isinstance(first, Started)
    assert first.metrics_url is not None
    return first.metrics_url


def port_of(url: str) -> int:
    return int(url.split(":")[2].split("/")[0])


def is_served(url: str) -> bool:
    try:
        scrape_text(url)
    except URLError:
        return False
    return True


def test_every_scrape_of_a_run_in_progress_has_the_values_of_its_records(
    begin_job: Begin, blobs_job: Document, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coordinator.endpoint.SAME_FOR_SECONDS", 0.0)
    events = begin_job(blobs_job, {"metrics.port": 0, "data.validation": 0.2})
    url = start(events)
    rows, done = 0, []

    for event in events:
        samples = scrape(url)
        match event:
            case RoundDone():
                rows += event.rows
                assert samples["rows_total", None] == rows
                assert samples["rounds_total", None] == event.round
                assert samples["gradient_norm", None] == event.gradient_norm > 0
                assert samples["learning_rate", None] == event.learning_rate == 0.1
                assert samples["progress_ratio", None] == event.round / 12
            case EpochDone():
                done.append(event.record)
            case Finished():
                assert samples["progress_ratio", None] == 1.0
        assert samples["epoch", None] == len(done)
        if done:
            assert errors_in(samples, "train") == done[-1].train
            assert errors_in(samples, "validation") == done[-1].validation

    assert len(done) == 3


def test_the_run_and_its_workers_are_told_before_the_first_round(begin_job: Begin, blobs_job: Document) -> None:
    events = begin_job(blobs_job, {"metrics.port": 0, "workers.count": 3})

    text = scrape_text(start(events))
    events.close()

    assert f'isograd_workers{{run="{RUN}",state="ready"}} 3.0' in text
    info = next(line for line in text.splitlines() if line.startswith("isograd_run_info{"))
    assert 'shards="5"' in info
    assert 'parameters="51"' in info


def test_only_isograds_own_metrics_are_exported_each_with_help_and_none_with_its_creation_time(
    begin_job: Begin, blobs_job: Document
) -> None:
    events = begin_job(blobs_job, {"metrics.port": 0})
    url = start(events)
    while not isinstance(next(events), EpochDone):
        pass

    families = list(text_string_to_metric_families(scrape_text(url)))
    events.close()

    assert all(family.name.startswith("isograd_") and family.documentation for family in families)
    assert [sample.name for family in families for sample in family.samples if sample.name.endswith("_created")] == []


def test_what_a_run_does_not_have_is_left_out(begin_job: Begin, waves_job: Document) -> None:
    del waves_job["training"]["epochs"]
    events = begin_job(waves_job, {"metrics.port": 0, "stopping.target_loss": 0.0})
    url = start(events)
    while not isinstance(next(events), EpochDone):
        pass

    samples = scrape(url)
    events.close()

    assert {split for _, split in samples} == {None, "train"}
    assert "error_ratio" not in {name for name, _ in samples}  # a regression classifies nothing
    assert "progress_ratio" not in {name for name, _ in samples}  # nothing limits the rounds


def test_a_job_without_the_section_has_no_endpoint(begin_job: Begin, blobs_job: Document) -> None:
    first = next(begin_job(blobs_job))

    assert isinstance(first, Started)
    assert first.metrics_url is None


def test_the_endpoint_is_for_this_machine_alone(begin_job: Begin, blobs_job: Document) -> None:
    events = begin_job(blobs_job, {"metrics.port": 0})
    url = start(events)

    assert url.startswith("http://127.0.0.1:")
    # All of 127.0.0.0/8 leads to this machine: whoever listened at every address would answer here too.
    with pytest.raises(OSError, match=r"refused|assign"):
        socket.create_connection(("127.0.0.2", port_of(url)), timeout=SECONDS)
    events.close()


def test_a_port_in_use_is_refused_before_anything_is_made(begin_job: Begin, blobs_job: Document, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(JobError) as refused:
            next(begin_job(blobs_job, {"metrics.port": port, "metrics.sd_dir": "."}))

    assert refused.value.key == "metrics.port"
    assert str(refused.value).startswith(f"metrics.port: {port} can't be served on 127.0.0.1: Address already in use; use")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["blobs.parquet", "job.toml"]


def test_the_endpoint_is_announced_to_prometheus_while_it_stands(begin_job: Begin, blobs_job: Document, tmp_path: Path) -> None:
    (tmp_path / "sd").mkdir()
    events = begin_job(blobs_job, {"metrics.port": 0, "metrics.sd_dir": "sd"})
    url = start(events)

    (announcement,) = (tmp_path / "sd").iterdir()
    assert announcement.match("isograd-run-1-*.json")
    groups = json.loads(announcement.read_text())
    assert groups == [{"targets": [f"127.0.0.1:{port_of(url)}"], "labels": {"__scheme__": "http"}}]

    assert isinstance(list(events)[-1], Finished)
    assert list((tmp_path / "sd").iterdir()) == []
    assert not is_served(url)


@pytest.mark.parametrize("sd_dir", ["missing", "blobs.parquet"])
def test_a_folder_that_takes_no_announcement_is_refused_and_the_port_let_go(
    begin_job: Begin, blobs_job: Document, sd_dir: str, opened: list[socket.socket]
) -> None:
    with pytest.raises(JobError) as refused:
        next(begin_job(blobs_job, {"metrics.port": 0, "metrics.sd_dir": sd_dir}))

    assert refused.value.key == "metrics.sd_dir"
    assert len(str(refused.value).splitlines()) == 1
    assert [listener.fileno() for listener in opened] == [-1]


@pytest.mark.parametrize("ending", ["abandoned", "refused"])
def test_a_run_that_does_not_finish_takes_endpoint_and_announcement_back(
    begin_job: Begin, blobs_job: Document, tmp_path: Path, ending: str
) -> None:
    (tmp_path / "sd").mkdir()
    overrides = {"metrics.port": 0, "metrics.sd_dir": "sd"}
    if ending == "abandoned":
        events = begin_job(blobs_job, overrides)
        url = start(events)
        events.close()
        assert not is_served(url)
    else:
        with pytest.raises(UserError, match=r"data\.shards"):
            next(begin_job(blobs_job, overrides | {"data.shards": 99}))

    assert list((tmp_path / "sd").iterdir()) == []


def test_that_a_run_was_interrupted_lingers_as_any_other_end(begin_job: Begin, blobs_job: Document) -> None:
    found: list[str] = []
    done: list[Event] = []

    def scrape_at_the_end() -> None:
        assert ended.wait(SECONDS)
        found.append(scrape_text(url))

    ended, looking = threading.Event(), threading.Thread(target=scrape_at_the_end)
    overrides = {"metrics.port": 0, "metrics.linger_seconds": 3600, "metrics.linger_scrapes": 1}
    events = begin_job(blobs_job, overrides, interrupted=lambda: any(isinstance(event, EpochDone) for event in done))
    url = start(events)
    looking.start()
    for event in events:
        done.append(event)
        if isinstance(event, Finished):
            ended.set()
    looking.join(SECONDS)

    assert f'isograd_run_status{{run="{RUN}",status="interrupted"}} 1.0' in found[0]
    assert not is_served(url)


def test_a_run_that_does_not_linger_ends_at_once_when_it_is_interrupted(begin_job: Begin, blobs_job: Document) -> None:
    events = begin_job(blobs_job, {"metrics.port": 0}, interrupted=lambda: True)
    url = start(events)

    last = list(events)[-1]

    assert isinstance(last, Finished)
    assert last.summary.status == "interrupted"
    assert not is_served(url)


def test_the_final_values_linger_until_the_run_is_interrupted(begin_job: Begin, blobs_job: Document) -> None:
    summaries: list[Summary] = []
    lingered: list[Samples] = []

    def interrupted() -> bool:
        if summaries:
            lingered.append(scrape(url))
        return bool(summaries)

    events = begin_job(blobs_job, {"metrics.port": 0, "metrics.linger_seconds": 3600}, interrupted=interrupted)
    url = start(events)
    summaries.extend(event.summary for event in events if isinstance(event, Finished))

    assert len(lingered) == 1
    assert errors_in(lingered[0], "train") == summaries[0].train
    assert not is_served(url)


def test_a_run_that_breaks_off_is_exported_as_failed_as_long_as_any_other_end(
    begin_job: Begin, blobs_job: Document, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coordinator.endpoint.SAME_FOR_SECONDS", 0.0)
    broken: list[Noticed] = []
    lingered: list[str] = []

    def interrupted() -> bool:
        if broken:
            lingered.append(scrape_text(url))
        return bool(broken)

    events = begin_job(blobs_job, {"metrics.port": 0, "metrics.linger_seconds": 3600}, interrupted=interrupted)
    url = start(events)
    (tmp_path / "run-1" / "history.jsonl").mkdir()

    with pytest.raises(UserError, match="run-1"):
        broken.extend(event for event in events if isinstance(event, Noticed) and event.message.startswith("the run broke off: "))

    assert str(tmp_path / "run-1") in broken[0].message
    assert f'isograd_run_status{{run="{RUN}",status="failed"}} 1.0' in lingered[-1]
    assert not is_served(url)


def test_report_and_summary_are_written_before_anything_is_pushed(
    begin_job: Begin, blobs_job: Document, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[str] = []

    def push(watch: Watch) -> list[Noticed]:
        found.extend(path.name for path in (tmp_path / "run-1").iterdir())
        return [Noticed(message="pushed")]

    monkeypatch.setattr(Watch, "push", push)

    events = list(begin_job(blobs_job))

    assert {"report.html", "summary.json"} <= set(found)
    assert events[-2] == Noticed(message="pushed")
    assert isinstance(events[-1], Finished)
