"""Ways to a bucket besides lasting keys and the path: session tokens, roles, and the bucket in the host's name."""

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import httpx
import obstore
import pytest

from dearkd.addresses import StorageAddress
from dearkd.errors import Unavailable
from dearkd.local.doctor import check_storage
from dearkd.local.store_rules import RULES
from dearkd.settings import Settings
from dearkd.storage.marker import KEY
from dearkd.storage.object_stores import CREDENTIALS, open_bucket
from dearkd.storage.objects import Storage
from tests.support.s3 import ACCESS_KEY, SECRET_KEY, S3Server
from tests.support.temporary_keys import temporary_keys

pytestmark = pytest.mark.services
ROLE = "/latest/meta-data/iam/security-credentials/"


class Metadata(BaseHTTPRequestHandler):
    """What hands out the keys of a role: the metadata of an instance (IMDSv2), and the agent of pods (`/pod`)."""

    asked: ClassVar[list[str]] = []
    keys: ClassVar[dict[str, str]] = {}

    def log_message(self, *about: Any) -> None:
        """Say nothing."""

    def do_PUT(self) -> None:
        self.say("a-token")

    def do_GET(self) -> None:
        token = self.headers["Authorization"] if self.path == "/pod" else self.headers["X-aws-ec2-metadata-token"]
        self.asked.append(f"{self.path} {token}")
        self.say("worker" if self.path == ROLE else json.dumps(self.keys))

    def say(self, text: str) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())


@pytest.fixture
def metadata() -> Iterator[str]:
    Metadata.asked.clear()
    until = datetime.now(UTC) + timedelta(hours=1)
    Metadata.keys = {"AccessKeyId": ACCESS_KEY, "SecretAccessKey": SECRET_KEY, "Token": "temporary"}
    Metadata.keys["Expiration"] = until.isoformat()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_keys_of_a_machines_role_sign_what_a_server_accepts(
    s3: S3Server, metadata: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in CREDENTIALS.values():
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", metadata)
    storage = Storage.open(s3.settings("role", Settings()))
    storage.create("object", b"1")
    assert storage.read("object") == b"1"
    assert Metadata.asked == [f"{ROLE} a-token", f"{ROLE}worker a-token"]
    assert "X-Amz-Security-Token=temporary" in str(storage.presign("object"))


def test_temporary_keys_keep_the_rules_with_their_session_token_alone(
    seaweed: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = temporary_keys(seaweed)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", keys["AccessKeyId"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", keys["SecretAccessKey"])
    monkeypatch.setenv("AWS_SESSION_TOKEN", keys["SessionToken"])
    settings = seaweed.settings("temporary", Settings())
    (_, *found) = check_storage(settings)
    assert [one.detail.partition(":")[0] for one in found] == [rule.promise for rule in RULES]
    assert not [one for one in found if one.state == "problem"]
    for token in (keys["SessionToken"][:-4] + "AAAA", ""):
        monkeypatch.setenv("AWS_SESSION_TOKEN", token)
        with pytest.raises(Unavailable, match="refused its credentials"):
            Storage.open(settings).read(KEY)


@pytest.mark.parametrize("whose", ["machine", "pod"])
def test_a_role_hands_out_temporary_keys_that_a_server_checks(
    whose: str, seaweed: S3Server, metadata: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in CREDENTIALS.values():
        monkeypatch.delenv(name, raising=False)
    keys = temporary_keys(seaweed)
    Metadata.keys = {**keys, "Token": keys["SessionToken"]}
    if whose == "machine":
        monkeypatch.setenv("AWS_METADATA_ENDPOINT", metadata)
        asked = [f"{ROLE} a-token", f"{ROLE}worker a-token"]
    else:
        (tmp_path / "token").write_text("the-pods")
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{metadata}/pod")
        monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", str(tmp_path / "token"))
        asked = ["/pod the-pods"]
    storage = Storage.open(seaweed.settings(whose, Settings()))
    storage.create("object", b"1")
    assert storage.read("object") == b"1"
    assert httpx.get(str(storage.presign("object")), trust_env=False).content == b"1"
    assert Metadata.asked == asked


def test_a_bucket_in_the_hosts_name_is_found_and_its_signature_is_accepted(each_s3: S3Server) -> None:
    Storage.open(each_s3.settings("virtual", Settings())).put("object", b"here")
    port = urlsplit(each_s3.endpoint).port
    settings = Settings(s3_endpoint=f"http://s3.test:{port}", s3_addressing="virtual")
    store = open_bucket(StorageAddress.parse(each_s3.url("virtual")), settings)
    url = urlsplit(obstore.sign(store, "GET", "object", timedelta(minutes=5)))
    assert (url.netloc, url.path) == (f"dearkd.s3.test:{port}", "/virtual/object")
    # No resolver knows that name.
    direct = url._replace(netloc=f"127.0.0.1:{port}").geturl()
    assert httpx.get(direct, headers={"Host": url.netloc}, trust_env=False).content == b"here"
    assert httpx.get(direct, trust_env=False).status_code in (403, 404)


@pytest.mark.parametrize(
    ("bucket", "addressing", "host"),
    [
        ("plain", None, "plain.s3.us-east-1.amazonaws.com"),
        ("with.dots", None, "s3.us-east-1.amazonaws.com"),
        ("plain", "path", "s3.us-east-1.amazonaws.com"),
        ("with.dots", "virtual", "with.dots.s3.us-east-1.amazonaws.com"),
    ],
)
def test_the_bucket_of_aws_stands_where_it_is_set(
    bucket: str, addressing: Any, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "any")
    store = open_bucket(
        StorageAddress.parse(f"s3://{bucket}"), Settings(s3_region="us-east-1", s3_addressing=addressing)
    )
    assert urlsplit(obstore.sign(store, "GET", "key", timedelta(minutes=5))).netloc == host
