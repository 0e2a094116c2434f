"""The live page and the report, as a browser shows them."""

import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from math import inf
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Dialog, Page, expect

from coordinator.records import CrewStatus, EpochDone, Event, Finished, Noticed, RoundDone, Started
from coordinator.report import Board

Document = dict[str, dict[str, Any]]
Begin = Callable[..., Iterator[Event]]
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SECONDS = 120.0

SCREENS: dict[str, dict[str, Any]] = {
    "light": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"},
    "dark": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 360, "height": 740}, "color_scheme": "light"},
}

DRAWN_COLUMNS = """(canvas) => {
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  const { width, height } = canvas;
  let drawn = 0;
  for (let x = 0; x < width; x += 1) {
    for (let y = 0; y < height; y += 1) {
      const place = (y * width + x) * 4;
      if (Math.abs(data[place] - data[place + 2]) > 60) { drawn += 1; break; }
    }
  }
  return drawn / width;
}"""
"""The share of a canvas's width in which something stands that is not grey: the curve, not the grid."""

DRAWING = """async (canvas) => {
  for (const _ of Array(2)) await new Promise(requestAnimationFrame);
  return canvas.toDataURL();
}"""
"""What a canvas shows, once the browser has laid the page out. In a screenshot there may also be what lies above it: a cursor."""


class Watcher:
    """A page in a browser, with all that it said and asked."""

    def __init__(self, browser: Browser, screen: str = "light") -> None:
        self.said: list[str] = []
        self.asked: list[str] = []
        context = browser.new_context(**SCREENS[screen])
        context.set_default_timeout(1000 * SECONDS)
        self.page: Page = context.new_page()
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", self._dismiss)
        self.page.on("request", lambda request: self.asked.append(request.url))

    def _dismiss(self, dialog: Dialog) -> None:
        self.said.append(dialog.message)
        dialog.dismiss()

    def origins(self) -> set[str]:
        return {"/".join(url.split("/")[:3]) for url in self.asked if not url.startswith("data:")}


@pytest.fixture
def watch(browser: Browser) -> Iterator[Callable[..., Watcher]]:
    """Opens an address, on one of the SCREENS."""
    opened: list[Watcher] = []

    def open_page(url: str, screen: str = "light") -> Watcher:
        opened.append(Watcher(browser, screen))
        opened[-1].page.goto(url)
        return opened[-1]

    yield open_page
    for watcher in opened:
        watcher.page.context.close()


@pytest.fixture(scope="module")
def live_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A real run of the digits example that goes on until it is told to stop: its page's address and its directory."""
    directory = tmp_path_factory.mktemp("live") / "digits"
    command = [sys.executable, "-m", "cluster.cli", "train", str(EXAMPLES / "digits" / "digits.toml"), "--address", "none"]
    command += ["--dashboard", "--run-dir", str(directory), "--set", "training.epochs=1000000", "--progress", "plain"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = next(line.split()[1] for line in process.stdout if line.startswith("dashboard: "))
        drain = threading.Thread(target=process.stdout.read)  # a full pipe would hold the run up
        drain.start()
        yield url, directory
        process.send_signal(signal.SIGINT)
        try:
            process.wait(SECONDS)
        finally:
            process.kill()
            drain.join()


@pytest.fixture
def finished(begin_job: Begin, blobs_job: Document) -> list[Event]:
    """The events of a small run."""
    return list(begin_job(blobs_job, {"data.validation": 0.2, "workers.count": 2}))


def board_of(events: list[Event], run: str = "run-1") -> Board:
    board = Board(run)
    for event in events:
        board.observe(event)
    return board


@pytest.fixture
def write_page(tmp_path: Path) -> Callable[..., str]:
    """Writes the page that shows these events, as a report does; returns its address."""

    def write(events: list[Event], run: str = "run-1", means: dict[int, float] | None = None) -> str:
        path = tmp_path / "page.html"
        path.write_bytes(board_of(events, run).page(means or {}, live=False))
        return path.as_uri()

    return write


def rounds_done(page: Page) -> int:
    found = re.search(r"round ([\d,]+)", page.locator("#done").inner_text())
    assert found is not None
    return int(found[1].replace(",", ""))


def wait_for_round(page: Page, number: int) -> None:
    done = page.locator("#done")
    while rounds_done(page) < number:
        expect(done).not_to_have_text(done.inner_text())


def figure(page: Page, title: str) -> Any:
    return page.locator("figure").filter(has=page.get_by_role("heading", name=title, exact=True))


def test_the_curves_of_a_real_run_appear_and_move(live_run: tuple[str, Path], watch: Callable[..., Watcher]) -> None:
    url, _ = live_run
    watcher = watch(url)
    page = watcher.page
    curve = figure(page, "Loss by epoch")
    expect(page.locator("#status")).to_have_text("running")
    curve.locator("canvas").wait_for()

    drawn = curve.locator("canvas").evaluate(DRAWING)  # before the rest: the page moves on meanwhile
    first, latest = rounds_done(page), curve.locator(".where").inner_text()
    wait_for_round(page, first + 24)  # an epoch has 23 rounds
    expect(curve.locator(".where")).not_to_have_text(latest)

    until = monotonic() + SECONDS
    while curve.locator("canvas").evaluate(DRAWING) == drawn:  # of many epochs, one more may not be seen
        assert monotonic() < until, "the curve stands still"
    assert curve.locator("canvas").evaluate(DRAWN_COLUMNS) > 0.5
    expect(page.locator("#workers tbody tr")).to_have_count(2)
    assert watcher.origins() == {url.rstrip("/")}
    assert watcher.said == []


@pytest.mark.parametrize("screen", SCREENS)
def test_the_live_page_can_be_read_by_everybody(live_run: tuple[str, Path], watch: Callable[..., Watcher], screen: str) -> None:
    page = watch(live_run[0], screen).page
    figure(page, "Loss by epoch").locator("canvas").wait_for()

    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    dark = page.evaluate("getComputedStyle(document.documentElement).backgroundColor").startswith("rgb(16")
    assert dark == (screen == "dark")


def test_a_page_follows_a_run_from_before_its_first_round_to_its_end(
    begin_job: Begin, blobs_job: Document, watch: Callable[..., Watcher]
) -> None:
    # The run stands still between its events, so that each state can be looked at.
    over = False
    events = begin_job(blobs_job, {"metrics.dashboard": True, "metrics.linger_seconds": 3600}, interrupted=lambda: over)
    started = next(events)
    assert isinstance(started, Started)
    assert started.dashboard_url is not None
    watcher = watch(started.dashboard_url)
    page = watcher.page

    expect(page.locator("#done")).to_have_text("Epoch 1 of 3, round 0 of 12")
    expect(figure(page, "Loss by round")).to_contain_text("Drawn when the first round is over")
    next(events)
    next(events)
    expect(page.locator("#done")).to_have_text("Epoch 1 of 3, round 2 of 12")
    figure(page, "Loss by round").locator("canvas").wait_for()
    expect(page.locator("#tiles")).to_contain_text("last round")
    expect(figure(page, "Loss by epoch")).to_contain_text("Drawn when the first epoch is over")
    while not isinstance(next(events), EpochDone):
        pass
    figure(page, "Loss by epoch").locator("canvas").wait_for()
    assert float(page.get_by_role("progressbar").get_attribute("value") or 0) == pytest.approx(4 / 12)
    while not isinstance(event := next(events), Finished):
        pass
    expect(page.locator("#status")).to_have_text("completed")
    expect(page.locator("#facts")).to_contain_text(event.summary.weights_digest)
    expect(page.locator("#ending")).to_contain_text("all epochs done")

    asked = len(watcher.asked)
    over = True
    assert list(events) == []  # the endpoint is gone now
    assert len(watcher.asked) == asked, "a page that knows the end asks no more"
    expect(page.locator("#contact")).to_be_hidden()
    assert watcher.said == []


@pytest.mark.parametrize("ending", ["completed", "interrupted"])
def test_a_page_that_is_open_learns_of_the_end_even_if_the_endpoint_does_not_linger(
    begin_job: Begin, blobs_job: Document, watch: Callable[..., Watcher], ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coordinator.watch.PAGE_SECONDS", 10 * SECONDS)
    stopped = False
    events = begin_job(blobs_job, {"metrics.dashboard": True}, interrupted=lambda: stopped)
    started = next(events)
    assert isinstance(started, Started)
    page = watch(started.dashboard_url).page
    expect(page.locator("#status")).to_have_text("running")

    stopped = ending == "interrupted"
    over = threading.Thread(target=list, args=(events,), daemon=True)
    over.start()

    expect(page.locator("#status")).to_have_text(ending)
    ending_text = "is completed after 12 rounds: all epochs done." if ending == "completed" else "was interrupted after 0 rounds."
    expect(page.locator("#ending")).to_have_text(f"The run {ending_text}")
    assert over.is_alive()
    monkeypatch.setattr("coordinator.endpoint.monotonic", lambda: inf)  # so the time for pages is over
    over.join(SECONDS)
    assert not over.is_alive()
    expect(page.locator("#contact")).to_be_hidden()


def test_a_page_whose_run_is_gone_keeps_what_it_shows_and_says_so(
    begin_job: Begin, blobs_job: Document, watch: Callable[..., Watcher]
) -> None:
    events = begin_job(blobs_job, {"metrics.dashboard": True})
    started = next(events)
    assert isinstance(started, Started)
    while not isinstance(next(events), EpochDone):
        pass
    page = watch(started.dashboard_url).page
    expect(page.locator("#status")).to_have_text("running")

    events.close()  # type: ignore[attr-defined]

    expect(page.locator("#status")).to_have_text("out of contact")
    expect(page.locator("#contact")).to_contain_text("No answer from the run since")
    expect(page.locator("#done")).to_have_text("Epoch 1 of 3, round 4 of 12")
    assert figure(page, "Loss by epoch").locator("canvas").evaluate(DRAWN_COLUMNS) > 0


def test_a_page_turns_to_the_run_that_has_its_port_now(
    begin_job: Begin, blobs_job: Document, waves_job: Document, watch: Callable[..., Watcher]
) -> None:
    first = begin_job(blobs_job, {"metrics.dashboard": True})
    started = next(first)
    assert isinstance(started, Started)
    assert started.dashboard_url is not None
    page = watch(started.dashboard_url).page
    expect(page.get_by_role("heading", level=1)).to_have_text("run-1")
    assert figure(page, "Error rate by epoch").count() == 1
    first.close()  # type: ignore[attr-defined]

    second = begin_job(
        waves_job, {"metrics.dashboard": True, "metrics.port": int(started.dashboard_url.split(":")[2].strip("/"))}
    )
    next(second)

    expect(page.get_by_role("heading", level=1)).to_have_text("run-2")
    expect(figure(page, "Mean squared error by epoch")).to_have_count(1)
    expect(figure(page, "Error rate by epoch")).to_have_count(0)
    second.close()  # type: ignore[attr-defined]


def test_the_report_shows_from_disk_what_the_run_left(
    begin_job: Begin, waves_job: Document, tmp_path: Path, watch: Callable[..., Watcher]
) -> None:
    list(begin_job(waves_job, {"data.validation": 0.2}))
    summary = json.loads((tmp_path / "run-1" / "summary.json").read_text())
    history = [json.loads(line) for line in (tmp_path / "run-1" / "history.jsonl").read_text().splitlines()]

    watcher = watch((tmp_path / "run-1" / "report.html").as_uri())
    page = watcher.page

    expect(page).to_have_title("run-1: completed")
    expect(page.get_by_role("heading", level=1)).to_have_text("run-1")
    expect(page.locator("#facts")).to_contain_text(summary["weights_digest"])
    curve = figure(page, "Loss by epoch")
    curve.get_by_text("Table").click()
    # The browser fills the table when it gets round to telling the page that it was opened.
    expect(curve.locator("tbody tr")).to_have_count(len(history))
    cells = [row.locator("td").all_inner_texts() for row in curve.locator("tbody tr").all()]
    assert [[float(cell) for cell in row] for row in cells] == [
        pytest.approx([line["train"]["loss"], line["validation"]["loss"]], rel=1e-4) for line in history
    ]
    assert figure(page, "Error rate by epoch").count() == 0  # a regression classifies nothing
    assert figure(page, "Mean squared error by epoch").count() == 1
    assert page.locator("#job").text_content() == (tmp_path / "run-1" / "job.toml").read_text()
    assert len(watcher.asked) == 1 + len([url for url in watcher.asked if url.startswith("data:")])
    assert watcher.said == []


@pytest.mark.parametrize("screen", SCREENS)
def test_a_finished_page_can_be_read_by_everybody(
    finished: list[Event], write_page: Callable[..., str], watch: Callable[..., Watcher], screen: str
) -> None:
    page = watch(write_page(finished), screen).page
    for summary in page.locator("summary").all():
        summary.click()
    expect(page.locator("figure tbody")).to_have_count(page.locator("figure").count())

    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    for role, name in (("progressbar", "Rounds done"), ("heading", "Workers"), ("main", None), ("banner", None)):
        assert page.get_by_role(role, name=name).count() == 1, role  # type: ignore[arg-type]
    assert page.get_by_role("table").count() == 2 + page.locator("figure").count()


def test_a_chart_is_read_point_by_point_with_the_keyboard(
    finished: list[Event], write_page: Callable[..., str], watch: Callable[..., Watcher]
) -> None:
    page = watch(write_page(finished)).page
    losses = [f"{event.record.train.loss:.5g}" for event in finished if isinstance(event, EpochDone)]
    chart = page.get_by_role("slider", name="Loss by epoch")

    def expect_told(epoch: int) -> None:
        told = re.escape(f"epoch {epoch}: train {losses[epoch - 1]}, validation ")
        expect(chart).to_have_attribute("aria-valuetext", re.compile(f"^{told}"))

    expect_told(3)
    chart.focus()
    page.keyboard.press("Home")
    expect_told(1)
    page.keyboard.press("ArrowRight")
    expect_told(2)
    page.keyboard.press("Tab")
    expect_told(3)


def test_the_scale_of_the_losses_can_be_logarithmic(
    finished: list[Event], write_page: Callable[..., str], watch: Callable[..., Watcher]
) -> None:
    watcher = watch(write_page(finished))
    page = watcher.page
    loss, rate = (figure(page, title).locator("canvas") for title in ("Loss by epoch", "Error rate by epoch"))
    before = loss.evaluate(DRAWING), rate.evaluate(DRAWING)

    page.get_by_label("Logarithmic scale").check()

    assert loss.evaluate(DRAWING) != before[0]
    assert rate.evaluate(DRAWING) == before[1]
    page.get_by_label("Logarithmic scale").uncheck()
    assert loss.evaluate(DRAWING) == before[0]
    assert watcher.said == []


def test_lost_workers_stragglers_and_notices_are_in_the_page(
    finished: list[Event], write_page: Callable[..., str], watch: Callable[..., Watcher]
) -> None:
    last = next(event for event in reversed(finished) if isinstance(event, RoundDone))
    crew = CrewStatus(workers=2, lost=1, recomputed=1, moved=2, shares={0: 2, 1: 3, 2: 0})
    fewer = replace(crew, shares={0: 2, 1: 3})
    later = [
        replace(last, round=13, crew=replace(crew, lost=0)),
        replace(last, round=14, crew=fewer),
        Noticed(message="worker 2 was lost"),
    ]

    page = watch(write_page([*finished[:-1], *later], means={0: 0.2, 1: 0.9})).page

    rows = [row.inner_text().split("\t") for row in page.locator("#workers tbody tr").all()]
    assert [(row[0], row[1], row[-1]) for row in rows] == [
        ("0", "2", "at work"),
        ("1", "3", "straggler"),
        ("2", "–", "lost in round 14"),
    ]
    assert page.locator("#notices li").all_inner_texts()[-1] == "worker 2 was lost"
    expect(page.locator("#crew")).to_have_text("2 workers, 1 lost, 2 shards moved, 1 slice computed again")


def test_a_hostile_name_is_shown_as_it_is(
    finished: list[Event], write_page: Callable[..., str], watch: Callable[..., Watcher]
) -> None:
    name = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&amp;"
    started = finished[0]
    assert isinstance(started, Started)
    events = [replace(started, job=f"{started.job}# {name}"), *finished[1:-1], Noticed(message=name)]

    watcher = watch(write_page(events, run=name))

    page = watcher.page
    expect(page.get_by_role("heading", level=1)).to_have_text(name)
    expect(page.locator("#notices li").last).to_have_text(name)
    assert page.title() == f"{name}: running"
    assert page.locator("img").count() == 0
    assert page.locator("script").count() == 2
    assert watcher.said == []
