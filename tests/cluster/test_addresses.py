"""Which address and which token a command uses."""

import os
from pathlib import Path

import pytest

from cluster.addresses import MODE, chosen, sends_token, settle_cluster


@pytest.mark.parametrize(
    ("given", "environment", "address"),
    [
        (None, {}, "http://127.0.0.1:8265"),
        (None, {"RAY_ADDRESS": "http://a:1"}, "http://a:1"),
        (None, {"RAY_ADDRESS": "http://a:1", "RAY_API_SERVER_ADDRESS": "http://b:1"}, "http://b:1"),
        (None, {"RAY_ADDRESS": "http://a:1", "RAY_API_SERVER_ADDRESS": ""}, "http://a:1"),
        ("http://c:1", {"RAY_ADDRESS": "http://a:1", "RAY_API_SERVER_ADDRESS": "http://b:1"}, "http://c:1"),
    ],
)
def test_the_address_given_wins_over_the_environment(given: str | None, environment: dict[str, str], address: str) -> None:
    assert chosen(given, environment) == address


@pytest.mark.parametrize(
    ("address", "environment", "sends"),
    [
        ("http://127.0.0.1:8265", {}, True),
        ("http://localhost:8265", {}, True),
        ("http://[::1]:8265", {}, True),
        ("http://cluster.example.com:8265", {}, False),
        ("http://127.0.0.1.example.com:8265", {}, False),
        ("http://127.0.0.1@example.com:8265", {}, False),
        ("http://[127.0.0.1:8265", {}, False),
        ("http://cluster.example.com:8265", {"RAY_AUTH_TOKEN": "secret"}, True),
        ("http://cluster.example.com:8265", {"RAY_AUTH_TOKEN_PATH": "/token"}, True),
        ("http://127.0.0.1:8265", {"RAY_AUTH_MODE": "disabled"}, False),
        ("http://cluster.example.com:8265", {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "secret"}, False),
    ],
)
def test_the_token_of_the_home_directory_goes_to_loopback_alone(
    tmp_path: Path, address: str, environment: dict[str, str], sends: bool
) -> None:
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("secret")
    assert sends_token(address, environment, tmp_path) is sends


def test_without_any_token_none_is_sent(tmp_path: Path) -> None:
    assert not sends_token("http://127.0.0.1:8265", {}, tmp_path)


@pytest.mark.parametrize(
    ("address", "environment", "sends"),
    [
        ("auto", {}, True),
        ("auto", {"RAY_ADDRESS": "10.0.0.1:6379"}, False),
        ("127.0.0.1:6379", {}, True),
        ("ray://localhost:10001", {}, True),
        ("head.example.com:6379", {}, False),
        ("head.example.com:6379", {"RAY_AUTH_TOKEN": "secret"}, True),
        ("local", {"RAY_AUTH_TOKEN": "secret"}, False),
        ("none", {"RAY_AUTH_TOKEN": "secret"}, False),
    ],
)
def test_whoever_trains_on_a_cluster_sends_the_token_by_the_same_rules(
    tmp_path: Path, address: str, environment: dict[str, str], sends: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("secret")
    for name in (MODE, "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS"):
        monkeypatch.setenv(name, environment.get(name, ""))
    monkeypatch.setenv("HOME", str(tmp_path))

    settle_cluster(address)

    assert (os.environ[MODE] == "token") is sends
