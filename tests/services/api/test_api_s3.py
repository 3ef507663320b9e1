"""The API on a bucket: files are fetched from the bucket itself, by a redirect."""

from pathlib import Path

import pytest

from dearkd.settings import Settings
from tests.support.api_contents import put_dataset, put_teacher
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
