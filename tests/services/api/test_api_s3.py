"""The API on a bucket: files are fetched from the bucket itself, by a redirect."""

import hashlib
import os
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from dearkd.settings import Settings
from dearkd.storage.catalog import StoredFile
from tests.support.api_contents import put_dataset, put_model, put_teacher
from tests.support.both_clients import WAYS, connected
from tests.support.proxy import FaultProxy
from tests.support.s3 import S3Server
from tests.support.services import database, serving

pytestmark = pytest.mark.services


def test_files_are_redirected_to_the_bucket(s3: S3Server, redis_server: str, tmp_path: Path) -> None:
    settings = s3.settings("api", Settings(redis_url=database(redis_server, 10)))
    with serving(settings, tmp_path) as api:
        assert api.http.get("/readyz").status_code == 200
        identifier = put_dataset(api, tmp_path, images=10, teacher=put_teacher(api), spec={"flip": 0.0})
        (shard,) = api.http.get(f"/v1/datasets/{identifier}").json()["shards"]
        path = f"/v1/datasets/{identifier}/files/{shard['name']}"
        answer = api.http.get(path)
        assert answer.status_code == 307
        assert answer.headers["location"].startswith(s3.endpoint)
        content = (tmp_path / shard["name"]).read_bytes()
        assert api.http.get(path, follow_redirects=True).content == content
        part = api.http.get(path, headers={"range": "bytes=5-9"}, follow_redirects=True)
        assert (part.status_code, part.content) == (206, content[5:10])
        head = api.http.head(path)
        assert (head.status_code, head.headers["content-length"]) == (200, str(len(content)))
        assert api.http.delete(f"/v1/datasets/{identifier}").status_code == 204
        assert list(api.storage.objects("datasets")) == []


def test_a_download_from_the_bucket_goes_on_where_it_broke_off(s3: S3Server, redis_server: str, tmp_path: Path) -> None:
    weights = os.urandom(4_000_000)
    proxy = FaultProxy(("127.0.0.1", urlsplit(s3.endpoint).port or 0))
    passed = 0

    def cut(chunk: bytes) -> bytes:
        nonlocal passed
        passed += len(chunk)
        if passed % 1_500_000 < len(chunk):
            raise ConnectionResetError
        return chunk

    settings = s3.settings("downloads", Settings(redis_url=database(redis_server, 10)))
    settings = settings.model_copy(update={"s3_endpoint": f"http://127.0.0.1:{proxy.port}"})
    try:
        with serving(settings, tmp_path) as api:
            listed = StoredFile(name="w", bytes=len(weights), sha256=hashlib.sha256(weights).hexdigest())
            model = put_model(api, files=[listed])
            api.storage.put(f"models/{model}/w", weights)
            for way in WAYS:
                assert api.http.head(f"/v1/models/{model}/files/w").status_code == 200  # verified: no more is read
                passed = 0
                with connected(way, api.url) as client, proxy.altering(cut):
                    client.download_model_file(model, "w", tmp_path / way)
                assert (tmp_path / way).read_bytes() == weights
                assert len(weights) + 3000 < passed < 1.3 * len(weights), "it broke off, and did not begin anew"
    finally:
        proxy.close()
