"""Who is let in at the endpoint: tokens, TLS, client certificates, names; and how it is announced."""

import base64
import json
import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.client import HTTPConnection, HTTPSConnection
from pathlib import Path
from typing import Any

import pytest

from coordinator.endpoint import METRICS, Content, Endpoint, check
from coordinator.export import Announcement, MetricsSpec
from worker.errors import JobError

SECONDS = 120.0
SECRET = "open-sesame"
Open = Callable[..., Endpoint]


@pytest.fixture
def open_endpoint(tmp_path: Path) -> Iterator[Open]:
    """Opens endpoints that serve an x at /metrics, and stops them."""
    with ExitStack() as stack:

        def start(**keys: Any) -> Endpoint:
            contents = {METRICS: Content("text/plain", lambda: b"x")}
            endpoint = Endpoint(MetricsSpec(**keys), tmp_path / "run-1", contents)
            stack.callback(endpoint.stop)
            return endpoint

        yield start


@pytest.fixture
def token_file(tmp_path: Path) -> str:
    path = tmp_path / "token"
    path.touch(mode=0o600)
    path.write_text(f"{SECRET}\n")
    return str(path)


def port_of(endpoint: Endpoint) -> int:
    return int(endpoint.url.rpartition(":")[2])


def ask(endpoint: Endpoint, headers: dict[str, str] | None = None, tls: ssl.SSLContext | None = None, path: str = METRICS) -> int:
    """The status of the answer."""
    place = ("127.0.0.1", port_of(endpoint))
    connection = HTTPSConnection(*place, timeout=SECONDS, context=tls) if tls else HTTPConnection(*place, timeout=SECONDS)
    try:
        connection.request("GET", path, headers=headers or {})
        answer = connection.getresponse()
        body = answer.read()
        assert (body == b"x") == (answer.status == 200)
        return answer.status
    finally:
        connection.close()


def trusting(authority: Any, own: tuple[str, str] | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(authority.path))
    if own is not None:
        context.load_cert_chain(*own)
    return context


def refusal(**keys: Any) -> JobError:
    """How a section is refused when the endpoint is opened, which `check` tells beforehand."""
    with pytest.raises(JobError) as refused:
        check(MetricsSpec(**keys))
    assert len(str(refused.value).splitlines()) == 1
    return refused.value


def basic(name: str, password: str) -> dict[str, str]:
    return {"Authorization": f"Basic {base64.b64encode(f'{name}:{password}'.encode()).decode()}"}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": f"Bearer {SECRET}"}, 200),
        ({"Authorization": f"bearer  {SECRET} "}, 200),
        (basic("anybody", SECRET), 200),
        (basic("", SECRET), 200),
        ({"Authorization": f"Bearer {SECRET}x"}, 401),
        ({"Authorization": f"Bearer {SECRET[:-1]}"}, 401),
        ({"Authorization": "Bearer"}, 401),
        ({"Authorization": "Bearer é"}, 401),
        ({"Authorization": f"Digest {SECRET}"}, 401),
        ({"Authorization": "Basic !!!"}, 401),
        ({"Authorization": "Basic /w=="}, 401),
        (basic(SECRET, "wrong"), 401),
    ],
)
def test_a_token_lets_in_whoever_presents_it(open_endpoint: Open, token_file: str, headers: dict[str, str], status: int) -> None:
    endpoint = open_endpoint(token_file=token_file)

    assert ask(endpoint, headers) == status
    assert ask(endpoint, headers, path="/elsewhere") == (404 if status == 200 else 401)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("127.0.0.1:9", 200),
        ("localhost:1234", 200),
        ("[::1]:80", 200),
        ("evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost.evil.example", 403),
        ("10.0.0.1", 403),
        ("[:", 403),
    ],
)
def test_a_page_from_elsewhere_can_not_read_it_through_a_name_that_leads_here(
    open_endpoint: Open, host: str, status: int
) -> None:
    assert ask(open_endpoint(), {"Host": host}) == status


def test_other_machines_may_use_any_name_where_they_are_let_in(open_endpoint: Open) -> None:
    endpoint = open_endpoint(address="0.0.0.0", allow_insecure=True)

    assert ask(endpoint, {"Host": "trainer.example"}) == 200
    assert endpoint.url == f"http://{socket.gethostname()}:{port_of(endpoint)}"


def test_with_a_certificate_only_tls_is_spoken(open_endpoint: Open, authority: Any) -> None:
    certificate, key = authority.issue("server")
    endpoint = open_endpoint(certificate=certificate, key=key)

    assert endpoint.url.startswith("https://")
    assert ask(endpoint, tls=trusting(authority)) == 200
    with pytest.raises(OSError, match=r"reset|without response|closed|Broken pipe"):
        ask(endpoint)
    old = trusting(authority)
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(OSError, match=r"protocol|alert|reset|Broken pipe"):
        ask(endpoint, tls=old)
    assert ask(endpoint, tls=trusting(authority)) == 200


def test_a_client_needs_a_certificate_of_the_right_authority(
    open_endpoint: Open, authority: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    certificate, key = authority.issue("server")
    (tmp_path / "other").mkdir()
    stranger = type(authority)(tmp_path / "other", "authority")
    endpoint = open_endpoint(certificate=certificate, key=key, client_ca=str(authority.path))

    assert ask(endpoint, tls=trusting(authority, authority.issue("client"))) == 200
    for own in (None, stranger.issue("client")):
        with pytest.raises(OSError, match=r"alert|reset|EOF|closed|Broken pipe"):
            ask(endpoint, tls=trusting(authority, own))
    assert ask(endpoint, tls=trusting(authority, authority.issue("client"))) == 200
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "content", [b"GET /metrics HTTP/1.1\r\n\r\n", b"\x16\x03\x01", b"\xff" * 4096, b"\x16\x03\x01\x00\x05hello"]
)
def test_nonsense_in_place_of_tls_is_no_news(
    open_endpoint: Open, authority: Any, content: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    certificate, key = authority.issue("server")
    endpoint = open_endpoint(certificate=certificate, key=key)
    with socket.create_connection(("127.0.0.1", port_of(endpoint)), timeout=SECONDS) as client:
        client.sendall(content)

        assert ask(endpoint, tls=trusting(authority)) == 200

    assert capfd.readouterr() == ("", "")


def test_files_that_can_not_be_used_are_refused_by_their_key(authority: Any, tmp_path: Path, token_file: str) -> None:
    certificate, key = authority.issue("server")
    _, sealed = authority.issue("sealed", b"password")
    _, other = authority.issue("other")
    missing = str(tmp_path / "missing")

    for keys, at_fault, told in (
        ({"certificate": missing, "key": key}, "metrics.certificate", "No such file"),
        ({"certificate": key, "key": key}, "metrics.certificate", "PEM files are needed"),
        ({"certificate": certificate, "key": other}, "metrics.certificate", "PEM files are needed"),
        ({"certificate": str(tmp_path / "sealed.crt"), "key": sealed}, "metrics.certificate", "the key unencrypted"),
        ({"certificate": certificate, "key": key, "client_ca": missing}, "metrics.client_ca", "No such file"),
        ({"certificate": certificate, "key": key, "client_ca": token_file}, "metrics.client_ca", token_file),
        ({"token_file": missing}, "metrics.token_file", "No such file"),
    ):
        error = refusal(**keys)
        assert (error.key, told in str(error)) == (at_fault, True), str(error)


def test_a_secret_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.touch(mode=0o600)
    assert "is empty" in str(refusal(token_file=str(path)))
    path.write_bytes("schlüssel".encode())
    assert "no ASCII" in str(refusal(token_file=str(path)))
    path.write_text(SECRET)
    path.chmod(0o604)
    assert "chmod o-rwx" in str(refusal(token_file=str(path)))
    path.chmod(0o640)
    check(MetricsSpec(token_file=str(path)))


def test_a_port_in_use_is_told(open_endpoint: Open) -> None:
    port = port_of(open_endpoint())

    error = refusal(port=port)

    assert error.key == "metrics.port"
    assert error.problem.startswith(f"{port} can't be served on 127.0.0.1: {os.strerror(98)}; use another port")


def test_an_address_of_another_machine_is_told() -> None:
    assert "can't be served on 192.0.2.1: " in str(refusal(address="192.0.2.1", allow_insecure=True))


@pytest.mark.skipif(not socket.has_ipv6, reason="this Python knows no IPv6")
def test_an_address_of_the_sixth_version_is_served_and_announced_in_brackets(open_endpoint: Open, tmp_path: Path) -> None:
    try:
        endpoint = open_endpoint(address="::1", sd_dir=str(tmp_path))
    except JobError as error:
        pytest.skip(f"this machine has no IPv6: {error}")

    (announcement,) = tmp_path.glob("*.json")
    target = f"[::1]:{port_of(endpoint)}"
    assert json.loads(announcement.read_text())[0]["targets"] == [target]
    assert endpoint.url == f"http://{target}"


def test_the_announcement_tells_that_tls_is_spoken(open_endpoint: Open, authority: Any, tmp_path: Path) -> None:
    certificate, key = authority.issue("server")
    endpoint = open_endpoint(certificate=certificate, key=key, sd_dir=str(tmp_path))

    (announcement,) = tmp_path.glob("*.json")
    target = f"127.0.0.1:{port_of(endpoint)}"
    assert json.loads(announcement.read_text()) == [{"targets": [target], "labels": {"__scheme__": "https"}}]
    endpoint.stop()
    assert list(tmp_path.glob("*.json")) == []


def test_runs_of_one_name_are_announced_side_by_side_and_one_taken_up_again_in_its_old_place(tmp_path: Path) -> None:
    spec = MetricsSpec(sd_dir=str(tmp_path))
    killed = Endpoint(spec, tmp_path / "a" / "digits", {})
    other = Endpoint(spec, tmp_path / "b" / "digits", {})

    again = Endpoint(spec, tmp_path / "a" / "digits", {})

    announced = {json.loads(path.read_text())[0]["targets"][0] for path in tmp_path.glob("*.json")}
    assert announced == {again.url.removeprefix("http://"), other.url.removeprefix("http://")}
    for endpoint in (killed, other, again):
        endpoint.stop()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["r" * 255, "ü" * 127, os.fsdecode(b"run-\xff"), "\\"])
def test_a_run_of_any_name_is_announced(tmp_path: Path, name: str) -> None:
    announcement = Announcement(str(tmp_path), tmp_path / name)

    announcement.publish("127.0.0.1:1", "http")

    (found,) = tmp_path.glob("isograd-*.json")
    assert found == announcement.path
    assert found.name.encode().decode() == found.name  # nothing that is no text, which Prometheus would not read
    announcement.withdraw()
    assert list(tmp_path.iterdir()) == []


def test_the_announcement_of_another_process_for_the_same_run_is_left(tmp_path: Path) -> None:
    first, second = Announcement(str(tmp_path), tmp_path / "run"), Announcement(str(tmp_path), tmp_path / "run")
    first.publish("10.0.0.1:1", "http")
    second.publish("10.0.0.2:1", "http")
    first.withdraw()
    assert json.loads(first.path.read_text())[0]["targets"] == ["10.0.0.2:1"]
    second.withdraw()
    first.withdraw()
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_announced_in_one_place_by_whatever_path_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "runs")

    named = {Announcement("sd", tmp_path / path / "digits").path for path in ("runs", "link", "runs/../link")}

    assert len(named) == 1


def test_runs_in_stores_are_announced_by_their_uris() -> None:
    paths = [Announcement("sd", f"s3://{place}/digits").path for place in ("a/runs", "b/runs", "a/runs")]

    assert all(path.name.startswith("isograd-digits-") for path in paths)
    assert paths[0] == paths[2] != paths[1]


def test_the_token_is_in_no_text_about_the_endpoint(open_endpoint: Open, token_file: str) -> None:
    assert SECRET not in repr(vars(open_endpoint(token_file=token_file)))


def test_a_token_that_can_not_be_read_leaves_no_port_open(tmp_path: Path, opened: list[socket.socket]) -> None:
    with pytest.raises(JobError) as refused:
        Endpoint(MetricsSpec(token_file=str(tmp_path / "missing")), tmp_path, {})

    assert refused.value.key == "metrics.token_file"
    assert [listener for listener in opened if listener.fileno() != -1] == []


def test_a_folder_that_went_meanwhile_does_not_keep_the_endpoint_from_stopping(open_endpoint: Open, tmp_path: Path) -> None:
    folder = tmp_path / "sd"
    folder.mkdir()
    endpoint = open_endpoint(sd_dir=str(folder))
    (announcement,) = folder.iterdir()
    announcement.unlink()
    folder.rmdir()
    folder.touch()

    endpoint.stop()


def test_an_answer_is_given_again_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    monkeypatch.setattr("coordinator.endpoint.SAME_FOR_SECONDS", 3600.0)

    def make() -> bytes:
        made.append(1)
        return b"x"

    endpoint = Endpoint(MetricsSpec(), tmp_path / "run-1", {METRICS: Content("text/plain", make)})
    assert [ask(endpoint) for _ in range(5)] == [200] * 5
    assert len(made) == 1
    endpoint.linger(1e-9, 0, lambda: False)
    ask(endpoint)
    assert len(made) == 2  # final values are made anew
    endpoint.stop()


def test_lingering_ends_after_so_many_scrapes(open_endpoint: Open) -> None:
    endpoint = open_endpoint()
    ask(endpoint)  # of values that are not final
    asked = [0]

    def interrupted() -> bool:
        if asked[0] < 3:
            asked[0] += 1
            ask(endpoint)
            ask(endpoint, path="/elsewhere")
        return False

    lingering = threading.Thread(target=endpoint.linger, args=(3600.0, 3, interrupted))
    lingering.start()
    lingering.join(SECONDS)

    assert not lingering.is_alive()
    assert asked == [3]
