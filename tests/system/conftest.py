"""Programs beside isograd that the tests of this folder run: they must be there in CI, and are skipped elsewhere without them."""

import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import monotonic
from typing import Any
from urllib.parse import urlencode
from urllib.request import ProxyHandler, build_opener

import pytest
import yaml
from playwright.sync_api import Browser, expect, sync_playwright

SECONDS = 120.0
POLL_SECONDS = 0.1
LISTENING = re.compile(r'msg="Listening on" address=(\S+)')
Find = Callable[[str], str]
# Root gets no sandbox; the rest keeps the browser from asking its maker for anything.
BROWSER_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="session")
def program() -> Find:
    """Finds a program that Debian installs; without it the test is skipped, but in CI it fails."""

    def find(name: str) -> str:
        path = shutil.which(name)
        if path is None:
            message = f"{name} is not installed; Debian's package of that name, or for promtool prometheus, brings it"
            if "CI" in os.environ:
                pytest.fail(message)
            pytest.skip(message)
        return path

    return find


def get(url: str) -> bytes:
    with build_opener(ProxyHandler({})).open(url, timeout=SECONDS) as answer:
        content: bytes = answer.read()
        return content


@contextmanager
def serving(command: list[str], ready: str = "") -> Iterator[str]:
    """Run a program that logs where it listens, on a free port; enters with its URL once it has logged `ready` too."""
    command = [*command, "--web.listen-address=127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            url, log = "", ""
            for line in process.stderr:
                log += line
                found = LISTENING.search(line)
                url = f"http://{found[1]}" if found else url
                if url and ready in log:
                    break
            else:
                pytest.fail(f"{command[0]} ended: {log}")
            drain = threading.Thread(target=process.stderr.read)
            drain.start()
            try:
                yield url
            finally:
                process.terminate()
                drain.join()
        finally:
            process.kill()


class Prometheus:
    """A Prometheus that runs."""

    def __init__(self, url: str) -> None:
        self.url = url

    def query(self, expression: str, **more: str) -> list[dict[str, Any]]:
        """The samples that an expression has now."""
        answer = json.loads(get(f"{self.url}/api/v1/query?{urlencode({'query': expression} | more)}"))
        assert answer["status"] == "success", answer
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found

    def wait_for(self, expression: str) -> list[dict[str, Any]]:
        """The samples of an expression, once there are any."""
        until, pause = monotonic() + SECONDS, threading.Event()
        while not (found := self.query(expression)):
            assert monotonic() < until, f"Prometheus has no sample of {expression}"
            pause.wait(POLL_SECONDS)
        return found


@pytest.fixture(scope="module")
def watcher(program: Find, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Prometheus, Path]]:
    """A Prometheus for a module's tests, as deploy/ configures it but in a hurry, and where runs announce themselves."""
    folder, files = tmp_path_factory.mktemp("watcher"), Path(__file__).resolve().parents[2] / "deploy" / "prometheus"
    configuration = yaml.safe_load((files / "prometheus.yml").read_text())
    configuration["global"] = {"scrape_interval": "500ms", "evaluation_interval": "500ms"}
    configuration["rule_files"] = [str(files / path) for path in configuration["rule_files"]]
    (discovery,) = configuration["scrape_configs"][0]["file_sd_configs"]
    (announced,) = discovery["files"]
    discovery["files"] = [str(folder / announced)]
    (folder / announced).parent.mkdir()
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    command = [program("prometheus"), f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
    with serving(command, "ready to receive web requests") as url:
        yield Prometheus(url), (folder / announced).parent


@pytest.fixture
def start_prometheus(program: Find, tmp_path: Path) -> Iterator[Callable[[str], Prometheus]]:
    """Starts a Prometheus with a configuration, given as text."""
    with ExitStack() as stack:

        def start(configuration: str) -> Prometheus:
            path = tmp_path / "prometheus.yml"
            path.write_text(configuration)
            command = [program("prometheus"), f"--config.file={path}", f"--storage.tsdb.path={tmp_path / 'prometheus'}"]
            return Prometheus(stack.enter_context(serving(command, "ready to receive web requests")))

        yield start


@pytest.fixture
def pushgateway(program: Find) -> Iterator[str]:
    """The URL of a Pushgateway that runs."""
    with serving([program("prometheus-pushgateway")]) as url:
        yield url


@pytest.fixture(scope="module")
def browser(program: Find) -> Iterator[Browser]:
    """Chromium, without a window."""
    with sync_playwright() as playwright:
        expect.set_options(timeout=1000 * SECONDS)
        path = program("chromium")
        browser = playwright.chromium.launch(executable_path=path, args=list(BROWSER_FLAGS), timeout=1000 * SECONDS)
        yield browser
        browser.close()
