"""What is said where a dashboard does not answer as it should; the dashboards are small servers in this process."""

import json
import os
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import ray

from cluster import jobs as module
from cluster.jobs import connect
from coordinator.dispatch import PoolError
from worker.errors import UserError

VERSION = {"version": "4", "ray_version": ray.__version__, "ray_commit": "x", "session_name": "session_x"}
JOB = {"type": "SUBMISSION", "submission_id": "a", "status": "RUNNING", "entrypoint": "exec", "driver_node_id": "n"}
Answers = dict[str, tuple[int, object]]


@contextmanager
def dashboard(answers: Answers, seen: list[str] | None = None, location: str | None = None) -> Iterator[str]:
    """Serve JSON (or text) by path without query; enters with the URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if seen is not None:
                seen.append(self.path)
            code, value = answers.get(self.path.partition("?")[0], (404, "Not Found"))
            content = (value if isinstance(value, str) else json.dumps(value)).encode()
            self.send_response(code)
            if location is not None:
                self.send_header("Location", location)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has what `connect` puts into the environment forgotten."""
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        monkeypatch.setenv(name, "")


def test_nothing_listens() -> None:
    with socket.socket() as deaf:  # whose port is nobody else's, as long as it does not listen there
        deaf.bind(("127.0.0.1", 0))
        port = deaf.getsockname()[1]
        for address in (f"http://127.0.0.1:{port}", f"127.0.0.1:{port}"):
            with pytest.raises(PoolError, match=f"^no dashboard of Ray's at {address} can be reached: Connection refused$"):
                connect(address)


def test_nothing_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ANSWER_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(PoolError, match=f"^no dashboard of Ray's at {address} can be reached: no answer in time$"):
            connect(address)


@pytest.mark.parametrize(
    "answers",
    [{}, {"/api/version": (200, "<html>hello</html>")}, {"/api/version": (200, {"name": "x"})}, {"/api/version": (500, "x")}],
)
def test_something_else_answers(answers: Answers) -> None:
    with (
        dashboard(answers) as address,
        pytest.raises(UserError, match=f"^what answers at {address} is no dashboard of Ray's; give"),
    ):
        connect(address)


@pytest.mark.parametrize("address", ["http://127.0.0.1:port", "ftp://127.0.0.1:8265", "http://.", "somewhere"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(address)}: .*; give a dashboard's address, such as http://HEAD:8265$"):
        connect(address)


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        (401, "wants a token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to the token or RAY_AUTH_TOKEN_PATH to a file with it"),
        (403, "has another token than the one it was sent: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN"),
    ],
)
def test_a_token_is_wanted(code: int, sentence: str) -> None:
    with dashboard({"/api/version": (code, "Unauthorized")}) as address, pytest.raises(UserError, match=f"{address} {sentence}"):
        connect(address)


def test_no_token_is_taken_elsewhere() -> None:
    answers: Answers = {"/api/version": (302, "")}
    with dashboard(answers, location="http://127.0.0.1:1/login") as address, pytest.raises(UserError) as caught:
        connect(address)
    assert str(caught.value).startswith(f"{address} leads to http://127.0.0.1:1/login; give that address")


def test_an_address_without_a_scheme() -> None:
    with dashboard({"/api/version": (200, VERSION)}) as address:
        connect(address.removeprefix("http://"))


def test_the_address_given_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")
    with dashboard({"/api/version": (200, VERSION)}) as address:
        connect(address)
        assert os.environ["RAY_API_SERVER_ADDRESS"] == address


@pytest.mark.parametrize(
    ("path", "answer", "call", "error", "sentence"),
    [
        ("/api/jobs/a", (404, "Job a does not exist"), "report", UserError, "there is no job a at .*; isograd jobs lists"),
        ("/api/jobs/a/stop", (404, "Job a does not exist"), "stop", UserError, "there is no job a at"),
        ("/api/jobs/a/logs", (400, "Can only get logs of submission type jobs"), "log", UserError, "Can only get logs of"),
        ("/api/jobs/a/stop", (500, "Traceback …\nRuntimeError: agent gone"), "stop", PoolError, "RuntimeError: agent gone$"),
        ("/api/jobs/a", (200, "<html>"), "report", UserError, "is no dashboard of Ray's"),
    ],
)
def test_a_job_can_not_be_asked(path: str, answer: tuple[int, str], call: str, error: type[Exception], sentence: str) -> None:
    with dashboard({"/api/version": (200, VERSION), path: answer}) as address:
        jobs = connect(address)
        with pytest.raises(error, match=sentence) as caught:
            getattr(jobs, call)("a")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("call", ["report", "log", "stop"])
@pytest.mark.parametrize("name", ["", "..", "a/stop", "a?b", "a#b", "%61"])
def test_what_would_lead_elsewhere_is_no_id(name: str, call: str) -> None:
    answers: Answers = {"/api/version": (200, VERSION), "/api/jobs/": (200, []), "/api/jobs/a": (200, JOB)}
    seen: list[str] = []
    with dashboard(answers, seen) as address:
        jobs = connect(address)
        before = len(seen)
        with pytest.raises(UserError, match=f"^there is no job '{re.escape(name)}' at {address}; isograd jobs lists"):
            getattr(jobs, call)(name)
        assert len(seen) == before, "nothing else is asked, or ended, instead"


def test_an_id_that_is_taken() -> None:
    text = "Traceback …\nValueError: Job with submission_id a already exists. Please use a different submission_id.\n"
    with dashboard({"/api/version": (200, VERSION), "/api/jobs/": (400, text)}) as address:
        jobs = connect(address)
        with pytest.raises(UserError, match=f"^--submission-id: the cluster at {address} has a job a already; give another$"):
            jobs.submit(entrypoint="exec", submission_id="a")


def test_another_version_of_ray() -> None:
    answers: Answers = {"/api/version": (200, VERSION | {"ray_version": "2.9.0"})}
    with (
        dashboard(answers) as address,
        pytest.raises(UserError, match=r"has Ray 2\.9\.0, and this isograd, with Ray .*, needs ~="),
    ):
        connect(address).check_version()
    with dashboard({"/api/version": (200, VERSION)}) as address:
        connect(address).check_version()


def test_loopback_may_lead_to_another_machine(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with dashboard({"/api/version": (200, VERSION)}) as address:
        jobs = connect(address)
        assert not jobs.on_this_machine()
        os.makedirs(f"{tmp_path}/ray/session_x")
        assert jobs.on_this_machine()


def test_what_the_run_tells_is_read_beside_its_log() -> None:
    seen = list[str]()
    status = '{"state": "running", "epoch": 3, "of_a_later_version": 1}\n'
    answers: Answers = {"/api/version": (200, VERSION), "/api/jobs/a": (200, JOB), "/api/v0/logs/file": (200, status)}
    with dashboard(answers, seen) as address:
        report = connect(address).report("a")
    assert (report.state, report.run.epoch) == ("running", 3)
    assert seen[-1] == "/api/v0/logs/file?node_id=n&filename=isograd-a.json&lines=1"


@pytest.mark.parametrize("answer", [(500, "A file is not found"), (200, "half a li"), (200, "")])
def test_a_run_that_tells_nothing_yet_starts(answer: tuple[int, str]) -> None:
    with dashboard({"/api/version": (200, VERSION), "/api/jobs/a": (200, JOB), "/api/v0/logs/file": answer}) as address:
        assert connect(address).report("a").state == "starting"


def test_only_jobs_of_isograd_are_listed_the_latest_first() -> None:
    def job(name: str, start: int, **metadata: str) -> dict[str, object]:
        return JOB | {"submission_id": name, "start_time": start, "metadata": metadata, "driver_node_id": None}

    listed = [job("old", 1, isograd="1"), job("other", 2), job("new", 3, isograd="1")]
    with dashboard({"/api/version": (200, VERSION), "/api/jobs/": (200, listed)}) as address:
        assert [report.id for report in connect(address).reports()] == ["new", "old"]
