"""Where files lie: on this machine, or in a store that pyarrow reaches by URI, with the store's own settings and retries."""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import lru_cache
from typing import Any, ClassVar, Final
from urllib.parse import unquote, urlencode, urlsplit

import pyarrow as pa
from pyarrow import fs

from worker.errors import JobError, UserError, first_line, require

CONNECT_SECONDS: Final = 10.0
"""After which an attempt to reach a store is given up."""

SILENCE_SECONDS: Final = 30.0
"""After which a store that sends nothing is asked again."""

MOST_ATTEMPTS: Final = 100


@dataclass(frozen=True, kw_only=True)
class StorageSpec:
    """The `[storage]` section: how stores are reached. Credentials come from the environment alone.

    Attributes:
        endpoint: URL of a store other than the provider's own; None goes by the environment, then to the provider.
        region: of S3 buckets; None goes by the environment, then asks S3.
        anonymous: whether to read without credentials.
        attempts: at each request, before an error of the network or the store counts.
    """

    __pydantic_config__: ClassVar[Mapping[str, object]] = {"extra": "forbid"}

    endpoint: str | None = None
    region: str | None = None
    anonymous: bool = False
    attempts: int = 5

    def __post_init__(self) -> None:
        if self.endpoint is not None:
            _split_endpoint(self.endpoint, "storage.endpoint")
        require(self.region != "", "storage.region", "is empty; name a region such as eu-central-1, or leave it out")
        require(
            1 <= self.attempts <= MOST_ATTEMPTS, "storage.attempts", f"must be from 1 to {MOST_ATTEMPTS}, got {self.attempts}"
        )


DEFAULT_STORAGE: Final = StorageSpec()


@dataclass(frozen=True)
class Place:
    """A file or folder in a store.

    Attributes:
        filesystem: the store.
        path: in that store.
        address: as the user knows it: a URI, or the plain path on this machine.
    """

    filesystem: fs.FileSystem
    path: str
    address: str

    def below(self, path: str) -> "Place":
        """Return the place at a path relative to this folder."""
        return replace(self, path=f"{self.path.rstrip('/')}/{path}", address=f"{self.address.rstrip('/')}/{path}")

    def at(self, path: str) -> "Place":
        """Return the place at another path in the same store."""
        if not is_remote(self.address):
            return replace(self, path=path, address=path)
        inside = self.path.partition("/")[2]
        root = self.address[: len(self.address) - len(inside)].removesuffix("/")
        return replace(self, path=path, address=f"{root}/{path.partition('/')[2]}")


def is_remote(address: str) -> bool:
    """Return whether an address is a URI of a store other than this machine's files."""
    return "://" in address and not address.startswith("file://")


def local_path(address: str) -> str:
    """Return the path of an address on this machine: a plain one as it is, that of a file URI without its escapes."""
    if not address.startswith("file://"):
        return address
    # Not split as a web address is: # and ? may be part of a name, or of a glob.
    return unquote(address.removeprefix("file://").removeprefix("localhost"))


def check_address(address: str, key: str) -> None:
    """Raise JobError at `key` unless the address is a path, or a URI of a known scheme without credentials."""
    scheme, separator, rest = address.partition("://")
    if not separator:
        return
    # What follows may hold a secret, so it is not repeated.
    shown, authority = f"{scheme}://…", rest.split("/")[0]
    accepted = ", ".join(f"{name}://" for name in _STORES)
    require(scheme in _STORES, key, f"{shown} is no address that can be read; accepted are a local path and {accepted}")
    secretive = ":" in authority.rpartition("@")[0] or ("@" in authority and scheme in ("s3", "gs", "file"))
    require(not secretive, key, f"{shown} has credentials in it; leave them to the environment, as the store's own tools do")
    # A question mark may stand for one character of a name; what a web address has after it, names and values, does not.
    options = re.search(r"\?[^/]*=", rest)
    require(options is None, key, f"{shown} has options after a question mark; the [storage] section takes them")
    if scheme == "file":
        require(authority in ("", "localhost"), key, f"{address} names another machine; file:// is followed by an absolute path")
    elif scheme == "hdfs":
        fits = re.fullmatch(r"([^:@]+@)?[^:@]*(:\d+)?", authority) is not None
        require(
            fits, key, f"{address} names no HDFS; accepted are hdfs://HOST:PORT/PATH and, for the configured one, hdfs:///PATH"
        )
    else:
        require(bool(authority), key, f"{address} names no bucket; accepted is {scheme}://BUCKET/PATH")


def locate(address: str, storage: StorageSpec) -> Place:
    """Return the place of an address that `check_address` lets through.

    Raises:
        UserError: the store can't be reached with what is known of it.
    """
    scheme, _, rest = address.partition("://")
    if not is_remote(address):
        path = local_path(address)
        return Place(fs.LocalFileSystem(), path, path)
    try:
        filesystem, path = _STORES[scheme](rest, storage)
    except (OSError, pa.ArrowException) as error:
        needs = "; hdfs:// needs Java and Hadoop's client on this machine" if scheme == "hdfs" else ""
        raise UserError(f"{address}: can't be reached: {first_line(error)}{needs}") from error
    if path.strip("/"):  # of HDFS, the root has no other name
        path, address = path.rstrip("/"), address.rstrip("/")
    return Place(filesystem, path, address)


def _environment(*names: str) -> str | None:
    return next((value for name in names if (value := os.environ.get(name))), None)


def _split_endpoint(endpoint: str, key: str) -> tuple[str, str]:
    """Return the scheme of an endpoint, and its host and port."""
    wanted = "must be a URL such as https://store.example:9000, of a host and port alone, without credentials"
    try:
        parts = urlsplit(endpoint)
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and "@" not in parts.netloc
    except ValueError as error:  # of brackets without an end, and ports that are no numbers
        raise JobError(key, wanted) from error
    require(fits and parts.path in ("", "/") and not (parts.query or parts.fragment), key, wanted)
    return parts.scheme, parts.netloc


@lru_cache
def _client(make: Callable[..., fs.FileSystem], **options: object) -> fs.FileSystem:
    """Return the client for a store, the same each time, since making one may take a second."""
    return make(**options)


def _s3(rest: str, storage: StorageSpec) -> tuple[fs.FileSystem, str]:
    # pyarrow takes no endpoint from the environment where it is given a region.
    endpoint = storage.endpoint or _environment("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
    region = storage.region or _environment("AWS_REGION", "AWS_DEFAULT_REGION")
    if region is None:
        # Without one, the client would ask the metadata service of a machine at Amazon's, and wait for it elsewhere.
        region = "us-east-1" if endpoint else fs.resolve_s3_region(rest.split("/")[0])
    scheme, host = _split_endpoint(endpoint, "AWS_ENDPOINT_URL") if endpoint else ("https", None)
    client = _client(
        _make_s3,
        attempts=storage.attempts,
        scheme=scheme,
        endpoint_override=host,
        region=region,
        anonymous=storage.anonymous,
        tls_ca_file_path=_environment("AWS_CA_BUNDLE"),
        connect_timeout=CONNECT_SECONDS,
        request_timeout=SILENCE_SECONDS,
    )
    return client, rest


def _make_s3(attempts: int, **options: Any) -> fs.FileSystem:
    return fs.S3FileSystem(retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=attempts), **options)


def _gcs(rest: str, storage: StorageSpec) -> tuple[fs.FileSystem, str]:
    scheme, host = _split_endpoint(storage.endpoint, "storage.endpoint") if storage.endpoint else ("https", None)
    # Google's client counts time in place of attempts.
    limit = timedelta(seconds=storage.attempts * CONNECT_SECONDS)
    options: dict[str, Any] = {
        "anonymous": storage.anonymous,
        "scheme": scheme,
        "endpoint_override": host,
        "retry_time_limit": limit,
    }
    return _client(fs.GcsFileSystem, **options), rest


def _azure(rest: str, storage: StorageSpec) -> tuple[fs.FileSystem, str]:
    authority, _, path = rest.partition("/")
    container, _, host = authority.partition("@")
    account = host.partition(".")[0] or _environment("AZURE_STORAGE_ACCOUNT", "AZURE_STORAGE_ACCOUNT_NAME")
    if account is None:
        raise UserError(
            f"the address of container '{container}' names no account; accepted is "
            "abfs://CONTAINER@ACCOUNT.dfs.core.windows.net/PATH, or AZURE_STORAGE_ACCOUNT in the environment"
        )
    scheme, server = _split_endpoint(storage.endpoint, "storage.endpoint") if storage.endpoint else ("https", None)
    authorities = {} if server is None else dict.fromkeys(("blob_storage_authority", "dfs_storage_authority"), server)
    if storage.anonymous:  # which pyarrow takes in a URI only
        options = {"credential_kind": "anonymous", "enable_tls": str(scheme == "https").lower(), **authorities}
        uri = f"abfs://{container}@{account}.dfs.core.windows.net/?{urlencode(options)}"
        return _client(_from_uri, uri=uri), f"{container}/{path}"
    schemes = dict.fromkeys(("blob_storage_scheme", "dfs_storage_scheme"), scheme)
    key = _environment("AZURE_STORAGE_KEY", "AZURE_STORAGE_ACCOUNT_KEY")
    token = None if key else _environment("AZURE_STORAGE_SAS_TOKEN")
    client = _client(fs.AzureFileSystem, account_name=account, account_key=key, sas_token=token, **schemes, **authorities)
    return client, f"{container}/{path}"


def _from_uri(uri: str) -> fs.FileSystem:
    return fs.FileSystem.from_uri(uri)[0]


def _hdfs(rest: str, _storage: StorageSpec) -> tuple[fs.FileSystem, str]:
    authority, _, path = rest.partition("/")
    user, _, server = authority.rpartition("@")
    host, _, port = server.partition(":")
    client = _client(fs.HadoopFileSystem, host=host or "default", port=int(port or 0), user=user or None)
    return client, f"/{path}"


def _local(rest: str, _storage: StorageSpec) -> tuple[fs.FileSystem, str]:
    return fs.LocalFileSystem(), local_path(f"file://{rest}")


_STORES: Final[Mapping[str, Callable[[str, StorageSpec], tuple[fs.FileSystem, str]]]] = {
    "file": _local,
    "s3": _s3,
    "gs": _gcs,
    "abfs": _azure,
    "abfss": _azure,
    "hdfs": _hdfs,
}
