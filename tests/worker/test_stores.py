import re
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs

from worker.errors import JobError, UserError
from worker.stores import Place, StorageSpec, check_address, is_remote, locate

SECRET = "wJalrXUtnFEMI"


@pytest.mark.parametrize(
    "address",
    [
        "rows.parquet",
        "/data/a:b@c?d=e/*.csv",
        "file:///data/rows.parquet",
        "s3://bucket/folder/*.parquet",
        "s3://bucket/year=202?/part-[0-9].parquet",
        "s3://bucket/what?/year=2024",
        "gs://bucket",
        "abfs://container@account.dfs.core.windows.net/folder",
        "abfss://container/folder",
        "hdfs://namenode:8020/folder",
        "hdfs://user@namenode/folder",
        "hdfs:///folder",
    ],
)
def test_a_path_and_a_uri_of_a_known_store_are_accepted(address: str) -> None:
    check_address(address, "data.train")


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("ftp://host/rows.csv", "ftp://… is no address that can be read; accepted are a local path and file://, s3://, gs://, "),
        ("https://host/rows.csv?sig=" + SECRET, "https://… is no address that can be read"),
        (f"s3://key:{SECRET}@bucket/rows.csv", "s3://… has credentials in it; leave them to the environment"),
        (f"s3://{SECRET}@bucket/rows.csv", "s3://… has credentials in it"),
        (f"abfs://container:{SECRET}@account.dfs.core.windows.net/x", "abfs://… has credentials in it"),
        (f"hdfs://user:{SECRET}@namenode/x", "hdfs://… has credentials in it"),
        (
            f"s3://bucket/rows.csv?secret_key={SECRET}",
            "s3://… has options after a question mark; the [storage] section takes them",
        ),
        (f"abfs://c@a.dfs.core.windows.net/x?sv=1&sig={SECRET}", "abfs://… has options after a question mark"),
        ("s3:///rows.csv", "s3:///rows.csv names no bucket; accepted is s3://BUCKET/PATH"),
        ("file://host/rows.csv", "file://host/rows.csv names another machine; file:// is followed by an absolute path"),
        ("hdfs://namenode:x/rows.csv", "hdfs://namenode:x/rows.csv names no HDFS; accepted are hdfs://HOST:PORT/PATH"),
    ],
)
def test_any_other_address_is_refused_and_no_secret_repeated(address: str, problem: str) -> None:
    with pytest.raises(JobError) as caught:
        check_address(address, "data.train")

    assert str(caught.value).startswith(f"data.train: {problem}")
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"endpoint": "store.example:9000"}, "storage.endpoint: must be a URL such as https://store.example:9000"),
        ({"endpoint": f"https://key:{SECRET}@store.example"}, "storage.endpoint: must be a URL"),
        ({"endpoint": "https://store.example/bucket"}, "storage.endpoint: must be a URL"),
        ({"endpoint": "http://[::1"}, "storage.endpoint: must be a URL"),
        ({"endpoint": "http://store.example:port"}, "storage.endpoint: must be a URL"),
        ({"endpoint": "http://store.example:99999"}, "storage.endpoint: must be a URL"),
        ({"endpoint": "http://:9000"}, "storage.endpoint: must be a URL"),
        ({"region": ""}, "storage.region: is empty"),
        ({"attempts": 0}, "storage.attempts: must be from 1 to 100, got 0"),
        ({"attempts": 101}, "storage.attempts: must be from 1 to 100, got 101"),
    ],
)
def test_a_setting_out_of_range_is_refused_by_its_key(options: dict[str, Any], message: str) -> None:
    with pytest.raises(JobError) as caught:
        StorageSpec(**options)

    assert str(caught.value).startswith(message)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "path"),
    [("rows.csv", "rows.csv"), ("file:///data/a%20b", "/data/a b"), ("file://localhost/data/", "/data/"), ("a%20b", "a%20b")],
)
def test_a_local_address_is_a_path(address: str, path: str) -> None:
    place = locate(address, StorageSpec())

    assert (place.path, place.address) == (path, path)
    assert isinstance(place.filesystem, fs.LocalFileSystem)
    assert not is_remote(address)


@pytest.mark.parametrize(
    ("address", "kind", "path"),
    [
        ("s3://bucket/a b%20/c/", "s3", "bucket/a b%20/c"),
        ("gs://bucket/folder", "gcs", "bucket/folder"),
        ("gs://bucket", "gcs", "bucket"),
        ("abfs://container@account.dfs.core.windows.net/folder", "abfs", "container/folder"),
        ("abfss://container/folder", "abfs", "container/folder"),
    ],
)
@pytest.mark.parametrize("anonymous", [False, True])
@pytest.mark.parametrize("endpoint", [None, "http://127.0.0.1:9"])
def test_a_uri_is_a_path_in_its_store(
    address: str, kind: str, path: str, anonymous: bool, endpoint: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT", "account")
    storage = StorageSpec(anonymous=anonymous, endpoint=endpoint, region="eu-central-1")

    place = locate(address, storage)

    assert (place.filesystem.type_name, place.path, place.address) == (kind, path, address.rstrip("/"))
    assert place.below("d/e.csv") == Place(place.filesystem, f"{path}/d/e.csv", f"{address.rstrip('/')}/d/e.csv")
    assert place.at(f"{path}/d/e.csv") == place.below("d/e.csv")
    assert locate(address, storage).filesystem is place.filesystem, "making a client takes long"
    assert is_remote(address)


def test_azure_needs_an_account(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AZURE_STORAGE_ACCOUNT", "AZURE_STORAGE_ACCOUNT_NAME"):
        monkeypatch.delenv(name, raising=False)

    with pytest.raises(UserError, match=r"^the address of container 'container' names no account; accepted is abfs://"):
        locate("abfss://container/x", StorageSpec())


@pytest.mark.parametrize("variable", ["AZURE_STORAGE_KEY", "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_SAS_TOKEN"])
def test_azure_takes_a_key_from_the_environment(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found: dict[str, Any] = {}
    monkeypatch.setattr(fs, "AzureFileSystem", lambda **options: found.update(options))
    monkeypatch.setenv(variable, SECRET)

    locate(f"abfs://container@{variable.lower()}.dfs.core.windows.net/x", StorageSpec())

    assert found["sas_token" if "SAS" in variable else "account_key"] == SECRET


@pytest.mark.parametrize(
    ("address", "options", "path", "below"),
    [
        ("hdfs://namenode:8020/a/b/", {"host": "namenode", "port": 8020, "user": None}, "/a/b", "hdfs://namenode:8020/a/b/c"),
        ("hdfs://me@namenode/a", {"host": "namenode", "port": 0, "user": "me"}, "/a", "hdfs://me@namenode/a/c"),
        ("hdfs:///a", {"host": "default", "port": 0, "user": None}, "/a", "hdfs:///a/c"),
        ("hdfs:///", {"host": "default", "port": 0, "user": None}, "/", "hdfs:///c"),
    ],
)
def test_hdfs_is_reached_as_its_uri_says(
    address: str, options: dict[str, Any], path: str, below: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: dict[str, Any] = {}
    monkeypatch.setattr(fs, "HadoopFileSystem", lambda **given: found.update(given))

    place = locate(address, StorageSpec())

    assert (found, place.path) == (options, path)
    assert place.at(f"{path.rstrip('/')}/c").address == below


def test_hdfs_without_its_client_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> None:
        raise OSError("Unable to load libjvm\ndlopen failed")

    monkeypatch.setattr(fs, "HadoopFileSystem", fail)

    with pytest.raises(UserError) as caught:
        locate("hdfs://namenode:8020/x", StorageSpec())

    needed = "hdfs:// needs Java and Hadoop's client on this machine"
    assert str(caught.value) == f"hdfs://namenode:8020/x: can't be reached: Unable to load libjvm; {needed}"


# Against an S3 store on loopback


def read(address: str, storage: StorageSpec) -> bytes:
    place = locate(address, storage)
    with place.filesystem.open_input_file(place.path) as file:
        content: bytes = file.read()
        return content


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
@pytest.mark.parametrize("region", [None, "eu-central-1"])
def test_the_endpoint_comes_from_the_environment_too(
    variable: str, region: str | None, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv(variable, store.endpoint)

    assert read(store.put("a", b"content"), StorageSpec(region=region)) == b"content"


def test_the_job_s_endpoint_counts_before_that_of_the_environment(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")

    assert read(store.put("a", b"content"), StorageSpec(endpoint=store.endpoint)) == b"content"


def test_an_endpoint_of_the_environment_is_held_to_the_same_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "127.0.0.1:9000")

    with pytest.raises(UserError, match=r"^AWS_ENDPOINT_URL: must be a URL"):
        locate("s3://bucket/x", StorageSpec())


def test_without_endpoint_and_region_s3_is_asked_where_the_bucket_is(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(bucket: str) -> str:
        raise OSError(f"Bucket '{bucket}' not found")

    monkeypatch.setattr(fs, "resolve_s3_region", fail)

    with pytest.raises(UserError, match=r"^s3://elsewhere/x: can't be reached: Bucket 'elsewhere' not found$"):
        locate("s3://elsewhere/x", StorageSpec())
    monkeypatch.setattr(fs, "resolve_s3_region", lambda bucket: f"region-of-{bucket}")
    place = locate("s3://elsewhere/x", StorageSpec())
    assert isinstance(place.filesystem, fs.S3FileSystem)
    assert place.filesystem.region == "region-of-elsewhere"


@pytest.mark.parametrize("how", ["503 Slow Down", "500 Internal Server Error", "dropped", "cut", "silent"])
def test_a_request_that_fails_is_made_again(store: Any, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    address = store.put("a", b"content" * 1000)
    store.requests.clear()
    store.fail("GET", how)
    attempts = 2
    if how == "silent":  # so may a machine be that has too much to do
        monkeypatch.setattr("worker.stores.SILENCE_SECONDS", 1.0)
        attempts = 10

    assert read(address, StorageSpec(endpoint=store.endpoint, attempts=attempts)) == b"content" * 1000
    made = [request.split()[0] for request in store.requests]
    assert made == ["HEAD", "GET", "GET"] if how != "silent" else made.count("GET") >= 2


def test_a_request_is_made_as_often_as_the_job_says(store: Any) -> None:
    address = store.put("a", b"content")
    store.requests.clear()
    store.fail("HEAD", "503 Slow Down", times=2)

    with pytest.raises(OSError, match="503"):
        read(address, StorageSpec(endpoint=store.endpoint, attempts=2))

    assert len(store.requests) == 2


def test_the_address_of_a_file_in_a_folder_may_be_written_with_any_slashes(store: Any, tmp_path: Path) -> None:
    assert re.fullmatch(r"s3://bucket-\d+/folder/a", store.put("folder/a", b""))
    assert locate(f"s3://{store.bucket}/", StorageSpec(endpoint=store.endpoint)).below("a").path == f"{store.bucket}/a"
    assert locate(str(tmp_path), StorageSpec()).below("a").address == f"{tmp_path}/a"
