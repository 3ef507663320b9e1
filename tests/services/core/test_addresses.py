"""Addresses among the settings are checked when they are read: one clear line each, and nothing goes elsewhere."""

import json
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import obstore
import pytest
from obstore.store import S3Store
from pydantic import ValidationError

from dearkd.addresses import StorageAddress
from dearkd.errors import InvalidInput, Unavailable
from dearkd.redaction import public
from dearkd.settings import Settings, broken_settings
from dearkd.storage.object_stores import errors_told, open_bucket
from dearkd.storage.objects import Storage

BROKEN = {
    "storage_url": [
        "file://~/x",
        "file://~me/x",
        "file://localhost/x",
        "file://tmp/x",
        "file://",
        "file:///",
        "file:///C:/data",
        "file:///c:\\data",
        "file:x",
        "file:/x",
        "file://./a\nb",
        "/srv/data",
        "s3://b/exp#1",
        "s3://b/exp?x=1",
        "s3://b/100%25",
        "s3://b//x",
        "s3://b/../x",
        "s3://key:secret@b/x",
        "s3://minio:9000/b",
        "s3://b#1/x",
        "s3:///x",
        "s3:b/x",
        "gs://",
        "http://b/x",
    ],
    "s3_endpoint": [
        "minio:9000",
        "",
        "HTTP://",
        "http://",
        "//minio",
        "ftp://minio",
        "http://h:port",
        "http://h:99999",
    ],
    # And more of them.
    "s3_endpoint ": ["http://user:secret@minio:9000", "http://mi nio", "http://h/?x=1", "http://h/#x", "http://:9000"],
    "redis_url": ["localhost:6379", "http://h:1", "redis://:secret@h:port/0", "redis://h/zero", "redis://h:99999/0"],
    "url": ["127.0.0.1:8000", "", "ftp://h", "http://", "http://h:port", "http://h:70000"],
    "cache_dir": ["~nobody-of-this-name/x", "/a\nb"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BROKEN.items() for value in values])
def test_a_broken_address_is_refused_in_one_line_without_its_password(name: str, value: str) -> None:
    name = name.strip()
    with pytest.raises(ValidationError) as caught:
        Settings(**{name: value})
    (line,) = broken_settings(caught.value)
    assert line.startswith(f"DEARKD_{name.upper()} is ")
    assert "\n" not in line
    assert "secret" not in line


@pytest.mark.parametrize(
    ("url", "folder"),
    [
        ("file:///srv/x", Path("/srv/x")),
        ("FILE:///srv/x", Path("/srv/x")),
        ("file://./x", Path("x").absolute()),
        ("file://../x", Path("../x").absolute()),
        ("file:///srv/a b#1?c%20d", Path("/srv/a b#1?c%20d")),
    ],
)
def test_a_folder_is_the_one_that_was_named(url: str, folder: Path) -> None:
    assert StorageAddress.parse(url).folder == folder


def test_folders_with_odd_names_are_used_as_they_are(tmp_path: Path) -> None:
    for name in ("exp#1", "exp#2", "exp?3", "100%", "a b", "%20"):
        Storage.open(Settings(storage_url=f"file://{tmp_path / name}")).put("tmp/x", name.encode())
    for name in ("exp#1", "exp#2", "exp?3", "100%", "a b", "%20"):
        assert (tmp_path / name / "tmp" / "x").read_text() == name


def test_addresses_that_are_right_are_taken_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    settings = Settings(
        s3_endpoint="HTTPS://minio.example:9000/", redis_url="rediss://u:p@h:6380/3", cache_dir=Path("~/cache")
    )
    assert settings.s3_endpoint == "https://minio.example:9000"
    assert settings.cache_dir == Path("/home/me/cache")
    bucket = StorageAddress.parse("s3://b/exp/1/")
    assert (bucket.bucket, bucket.prefix) == ("b", "exp/1")
    assert Settings(storage_url="").storage_url == Settings.model_fields["storage_url"].default


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "session-token")
    return monkeypatch


def signed(settings: Settings) -> str:
    """Where a client would fetch an object; nothing is sent."""
    store = open_bucket(StorageAddress.parse(settings.storage_url), settings)
    return str(obstore.sign(store, "GET", "k", timedelta(minutes=1)))


def test_without_an_endpoint_a_bucket_is_one_of_aws(aws: pytest.MonkeyPatch) -> None:
    url = signed(Settings(storage_url="s3://bucket/pre/fix"))
    assert url.startswith("https://bucket.s3.us-east-1.amazonaws.com/pre/fix/k?")
    assert "X-Amz-Security-Token=session-token" in url
    aws.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    assert urlsplit(signed(Settings(storage_url="s3://bucket"))).netloc == "bucket.s3.eu-west-1.amazonaws.com"
    aws.setenv("AWS_REGION", "eu-north-1")
    assert urlsplit(signed(Settings(storage_url="s3://bucket"))).netloc == "bucket.s3.eu-north-1.amazonaws.com"
    url = signed(Settings(storage_url="s3://bucket", s3_region="ap-south-1"))
    assert urlsplit(url).netloc == "bucket.s3.ap-south-1.amazonaws.com"
    # A certificate for *.s3.….amazonaws.com covers no name with more dots.
    url = signed(Settings(storage_url="s3://my.bucket/x"))
    assert url.startswith("https://s3.eu-north-1.amazonaws.com/my.bucket/x/k?")


def test_with_an_endpoint_the_bucket_is_part_of_the_path(aws: pytest.MonkeyPatch) -> None:
    url = signed(Settings(storage_url="s3://bucket/x", s3_endpoint="http://127.0.0.1:9"))
    assert url.startswith("http://127.0.0.1:9/bucket/x/k?")
    aws.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:8/")
    assert signed(Settings(storage_url="s3://bucket/x")).startswith("http://127.0.0.1:8/bucket/x/k?")
    aws.setenv("AWS_ENDPOINT_URL", "minio:9000")
    with pytest.raises(InvalidInput, match="AWS_ENDPOINT_URL"):
        Storage.open(Settings(storage_url="s3://bucket/x"))


def test_other_clouds_buckets_open_or_say_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not Storage.open(Settings(storage_url="gs://bucket/x")).is_local
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    assert not Storage.open(Settings(storage_url="az://container/x")).is_local
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME")
    with pytest.raises(InvalidInput, match="Account must be specified"):
        Storage.open(Settings(storage_url="az://container/x"))


def test_a_panic_of_obstore_is_an_outage() -> None:
    store = S3Store("b", endpoint="minio:9000", access_key_id="a", secret_access_key="b", region="r")
    with pytest.raises(Unavailable) as caught, errors_told("some/key"):
        obstore.head(store, "k")
    assert "InvalidUri" not in caught.value.message


def test_a_failing_stores_own_words_are_not_in_the_message(aws: pytest.MonkeyPatch) -> None:
    storage = Storage.open(Settings(storage_url="s3://bucket/prefix", s3_endpoint="http://127.0.0.1:9/inner"))
    with pytest.raises(Unavailable) as caught:
        storage.read("a/b")
    assert "127.0.0.1" not in caught.value.message
    assert "127.0.0.1" in caught.value.cause
    assert "Debug source" not in caught.value.cause


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[Errno 2] No such file: '/srv/data/x/weights.bin'", "[Errno 2] No such file: '…/weights.bin'"),
        ('File "/opt/venv/lib/a.py", line 3, in f', 'File "…/a.py", line 3, in f'),
        ("redis://:pass@host:6379/0 and https://u:p@h/x", "redis://…@host:6379/0 and https://…@h/x"),
        ("jobs/syn-1/job.json is not there; 3/4 done, and/or", "jobs/syn-1/job.json is not there; 3/4 done, and/or"),
        ("see https://example.org/a/b/c", "see https://example.org/a/b/c"),
        ("failed\n\nDebug source:\nGeneric {\n store: 1 }", "failed"),
    ],
)
def test_what_clients_read_has_no_folders_and_no_passwords(text: str, told: str) -> None:
    assert public(text) == told


@pytest.mark.services
@pytest.mark.parametrize(
    ("name", "value", "commands"),
    [
        ("DEARKD_S3_ENDPOINT", "minio:9000", ["gc", "doctor --json"]),
        ("DEARKD_STORAGE_URL", "file://~/x", ["jobs", "up"]),
        ("DEARKD_REDIS_URL", "nonsense", ["worker synth", "api"]),
    ],
)
def test_every_command_says_it_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, value: str, commands: list[str]
) -> None:
    monkeypatch.setenv(name, value)
    for command in map(str.split, commands):
        done = subprocess.run(
            [sys.executable, "-P", "-m", "dearkd.cli", *command], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode in (1, 2), command
        assert "Traceback" not in done.stderr
        if command[0] == "doctor":
            (check,) = json.loads(done.stdout)["checks"]
            assert (check["subject"], check["state"]) == ("settings", "problem")
            assert name in check["detail"]
        else:
            assert len(done.stderr.strip().splitlines()) == 1
            assert name in done.stderr
    assert list(tmp_path.iterdir()) == []
