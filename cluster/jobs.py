"""Jobs on a cluster: asking its dashboard, and what the answers come to."""

import os
import re
import socket
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import ray
import requests
from ray._common.utils import get_default_ray_temp_dir
from ray.exceptions import AuthenticationError, RayError
from ray.job_submission import JobDetails, JobSubmissionClient

from cluster.addresses import SERVER, TOKENS
from cluster.job_reports import VERSION, JobReport, describe
from cluster.status_file import RunStatus, read_status
from cluster.submitted import needs, status_name
from coordinator.dispatch import PoolError
from worker.errors import UserError, first_line

CONNECT_SECONDS: Final = 10.0
ANSWER_SECONDS: Final = 120.0
"""Within which an answer has to begin; a parcel of code has been stored by then."""

AT_ONCE: Final = 8
"""Jobs that are asked after at once."""

GIVE: Final = "give a dashboard's address, such as http://HEAD:8265"


class _Client(JobSubmissionClient):
    """Ray's client, which waits for no answer for ever, and takes no token elsewhere."""

    def _do_request(self, method: str, endpoint: str, **options: Any) -> requests.Response:
        limits: dict[str, Any] = {"timeout": (CONNECT_SECONDS, ANSWER_SECONDS), "allow_redirects": False}
        response: requests.Response = super()._do_request(method, endpoint, **(limits | options))
        if response.is_redirect:
            raise UserError(
                f"{self._address} leads to {response.headers['location']}; give that address, if it is the dashboard's"
            )
        return response


class Jobs:
    """The jobs of one cluster. Its methods raise PoolError and UserError as `asking` says."""

    def __init__(self, client: Any, address: str) -> None:
        """Take Ray's client for the jobs, or something like it, and the address by which people know it."""
        self.client, self.address = client, address

    def report(self, job: str) -> JobReport:
        """Return how a job fares."""
        with asking(self.address):
            details = self.client.get_job_info(self._named(job))
            return describe(details, self._run(details))

    def reports(self) -> list[JobReport]:
        """Return how isograd's jobs fare, the latest first."""
        with asking(self.address):
            ours = [details for details in self.client.list_jobs() if VERSION in (details.metadata or {})]
            ours.sort(key=lambda details: details.start_time or 0, reverse=True)
            with ThreadPoolExecutor(AT_ONCE) as threads:
                return list(map(describe, ours, threads.map(self._run, ours)))

    def log(self, job: str) -> str:
        """Return what a job has printed so far."""
        with asking(self.address):
            text: str = self.client.get_job_logs(self._named(job))
            return text

    def stream(self, job: str) -> AsyncIterator[str]:
        """Yield what a job prints, until it has ended or the stream breaks off, without raising as the others do."""
        stream: AsyncIterator[str] = self.client.tail_job_logs(job)
        return stream

    def stop(self, job: str) -> bool:
        """Ask a job to end in good order; return whether there was anything to end."""
        with asking(self.address):
            return bool(self.client.stop_job(self._named(job)))

    def submit(self, **options: Any) -> str:
        """Submit a job, as Ray's `submit_job` takes it."""
        with asking(self.address):
            submission: str = self.client.submit_job(**options)
            return submission

    def on_this_machine(self) -> bool:
        """Return whether the cluster's head runs on this machine; an address of loopback may as well lead to another one."""
        with asking(self.address):
            session = self._version()["session_name"]
        folder: str = get_default_ray_temp_dir()  # type: ignore[no-untyped-call]
        return (Path(folder) / session).is_dir()

    def check_version(self) -> None:
        """Raise UserError if the cluster has a Ray that this isograd was not made for."""
        with asking(self.address):
            theirs = self._version()["ray_version"]
        (wanted,) = (need.specifier for need in needs() if need.name == "ray")
        if not wanted.contains(theirs, prereleases=True):
            raise UserError(
                f"the cluster at {self.address} has Ray {theirs}, and this isograd, with Ray {ray.__version__}, needs {wanted}"
            )

    def _named(self, job: str) -> str:
        """Return a job's id. Raises UserError where it would lead elsewhere: Ray takes it into a URL as it is."""
        if re.fullmatch(r"(?!\.{1,2}$)[^/?#%]+", job) is None:
            raise _no_job(repr(job), self.address)
        return job

    def _version(self) -> dict[str, str]:
        found: dict[str, str] = self.client._do_request("GET", "/api/version").json()
        return found

    def _run(self, details: JobDetails) -> RunStatus | None:
        """Return what a job's run tells of itself, if that can be had."""
        if details.driver_node_id is None:
            return None
        query = f"node_id={details.driver_node_id}&filename={quote(status_name(details.submission_id or ''))}&lines=1"
        try:
            answer = self.client._do_request("GET", f"/api/v0/logs/file?{query}")
            return read_status(answer.text) if answer.status_code == 200 else None
        except (requests.RequestException, ValueError):
            return None


def connect(address: str) -> Jobs:
    """Return the jobs at an address that `settle` gave. Raises PoolError and UserError as `asking` says."""
    with asking(address):
        url = _url(address)
        # Ray's client takes an address from there before it takes the one that it is given.
        os.environ[SERVER] = url
        return Jobs(_Client(url), address)


def _url(address: str) -> str:
    """Return the dashboard's URL for an address in any form that Ray knows; in one with host and port alone, either's port."""
    host, colon, port = address.rpartition(":")
    if colon and "/" not in address and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
        try:
            requests.get(f"http://{address}/api/version", timeout=CONNECT_SECONDS, allow_redirects=False)
        except requests.ConnectionError:  # it speaks otherwise, as the GCS does
            return address
        return f"http://{address}"
    return address


@contextmanager
def asking(address: str) -> Iterator[None]:
    """Turn what goes wrong when a dashboard is asked into one sentence.

    Raises:
        PoolError: nothing answers at the address, or not in time, or the cluster can't do what it is asked.
        UserError: what answers is no dashboard of Ray's, wants a token or another one, or knows no such job.
    """
    try:
        yield
    except (UserError, PoolError):
        raise
    except AuthenticationError as error:
        raise UserError(_token_sentence(address, str(error))) from error
    except (requests.JSONDecodeError, requests.HTTPError, KeyError) as error:
        raise _no_dashboard(address) from error
    except (RuntimeError, ValueError) as error:  # what requests has against a URL among them
        raise _refusal(address, error) from error
    except (requests.RequestException, OSError, RayError) as error:
        raise PoolError(f"no dashboard of Ray's at {address} can be reached: {_reason(error)}") from error


def _no_dashboard(address: str) -> UserError:
    return UserError(f"what answers at {address} is no dashboard of Ray's; {GIVE}")


def _no_job(job: str, address: str) -> UserError:
    return UserError(f"there is no job {job} at {address}; isograd jobs lists those that there are")


def _token_sentence(address: str, text: str) -> str:
    how = f"set RAY_AUTH_MODE=token, and {TOKENS[0]} to the token or {TOKENS[1]} to a file with it"
    if text.startswith("Authentication required"):
        return f"the cluster at {address} wants a token: {how}"
    if text.startswith("Authentication failed"):
        return f"the cluster at {address} has another token than the one it was sent: {how}"
    return f"there is no token to send to {address}: {text.split('. ')[0]}"


def _refusal(address: str, error: Exception) -> UserError | PoolError:
    refused = re.match(r"Request failed with status code (\d+): (.*)", str(error), re.DOTALL)
    if refused is None:
        unknown = "Version check returned" in str(error)
        return _no_dashboard(address) if unknown else UserError(f"{address}: {first_line(error).rstrip('.')}; {GIVE}")
    code, answer = int(refused[1]), refused[2].strip(". \n")
    if taken := re.search(r"Job with submission_id (\S+) already exists", answer):
        return UserError(f"--submission-id: the cluster at {address} has a job {taken[1]} already; give another")
    if missing := re.search(r"Job (\S+) does not exist", answer):
        return _no_job(missing[1], address)
    problem = answer.splitlines()[-1] if answer else f"HTTP status {code}"
    return UserError(f"{address}: {problem}") if code < 500 else PoolError(f"the cluster at {address} can't do it: {problem}")


def _reason(error: BaseException | None) -> str:
    """Return what the operating system said, of an error that libraries have wrapped."""
    first = error
    while error is not None:
        if isinstance(error, requests.Timeout | TimeoutError):
            return "no answer in time"
        if isinstance(error, OSError) and error.strerror:
            return error.strerror
        error = error.__cause__ or error.__context__
    assert first is not None
    return first_line(first)
