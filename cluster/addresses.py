"""Which address and which token to use for a cluster: those that Ray's users have."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

AUTO: Final = "auto"
DEFAULT: Final = "http://127.0.0.1:8265"
SERVER: Final = "RAY_API_SERVER_ADDRESS"
CLUSTER: Final = "RAY_ADDRESS"
MODE: Final = "RAY_AUTH_MODE"
TOKENS: Final = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")


def chosen(address: str | None, environment: Mapping[str, str]) -> str:
    """Return the address given, else that of the environment, as Ray asks it, else that of a dashboard on this machine."""
    return address or next((environment[name] for name in (SERVER, CLUSTER) if environment.get(name)), DEFAULT)


def sends_token(address: str, environment: Mapping[str, str], home: Path) -> bool:
    """Return whether to turn Ray's token authentication on, for an environment that says nothing about it.

    A token that the environment names is there to be sent. The one that Ray keeps in the home directory goes to loopback only.
    """
    if environment.get(MODE):
        return False
    if any(environment.get(name) for name in TOKENS):
        return True
    return _host(address) in LOOPBACK and (home / ".ray" / "auth_token").is_file()


def _host(address: str) -> str | None:
    try:
        return urlsplit(address).hostname
    except ValueError:  # no address: whoever connects says so
        return None


def settle(address: str | None) -> str:
    """Return the address of the dashboard to use, and turn token authentication on where it is wanted.

    To be called before Ray is imported, which reads the mode then.
    """
    address = chosen(address, os.environ)
    _send_token_to(address)
    return address


def settle_cluster(address: str) -> None:
    """Turn token authentication on where it is wanted by a cluster to train on, by the rules for its dashboard.

    Ray itself does so for a node that it starts, but not for whoever connects to it. To be called before Ray is imported.
    """
    if address == AUTO:
        address = os.environ.get(CLUSTER) or "127.0.0.1:6379"
    if ":" in address:  # else it is a Ray of its own, or none
        _send_token_to(address if "://" in address else f"ray://{address}")


def _send_token_to(url: str) -> None:
    if sends_token(url, os.environ, Path.home()):
        os.environ[MODE] = "token"
