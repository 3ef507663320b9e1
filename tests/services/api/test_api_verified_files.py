"""What is served is what its manifest says, or an error."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dearkd.settings import Settings
from dearkd.storage.catalog import StoredFile, models
from tests.support.api_contents import put_dataset, put_model
from tests.support.s3 import S3Server
from tests.support.services import Api, database, serving

pytestmark = pytest.mark.services


def local(api: Api, key: str) -> Path:
    return Path(api.settings.storage_url.removeprefix("file://")) / key


def flip(path: Path, place: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1]))


def put_files(api: Api, tmp_path: Path) -> list[tuple[str, Path]]:
    """A shard, and a model's weights: their addresses, and where they lie."""
    dataset = put_dataset(api, tmp_path, images=10)
    model = put_model(api)
    weights = bytes(range(256)) * 10_000
    catalog = models(api.storage)
    listed = StoredFile(name="model.safetensors", bytes=len(weights), sha256=hashlib.sha256(weights).hexdigest())
    api.storage.put(catalog.key(model, listed.name), weights)
    item = catalog.get(model)
    manifest = item.model_copy(update={"files": [*item.files, listed]}).model_dump_json()
    api.storage.put(catalog.key(model, "model.json"), manifest.encode())
    return [
        (f"/v1/datasets/{dataset}/files/train-000000.tar", local(api, f"datasets/{dataset}/train-000000.tar")),
        (f"/v1/models/{model}/files/model.safetensors", local(api, f"models/{model}/model.safetensors")),
    ]


def refused(api: Api, path: str, etag: str | None = None) -> None:
    """Whichever way one asks, nothing of it comes."""
    for method in ("GET", "HEAD"):
        for headers in ({}, {"range": "bytes=0-9"}, {"range": "bytes=-1"}, {"if-none-match": etag or '"x"'}):
            answer = api.http.request(method, path, headers=headers)
            assert answer.status_code == 500, (method, headers)
            assert "etag" not in answer.headers
            if method == "GET":
                assert answer.json()["code"] == "corrupt_data"
                assert path.rpartition("/")[2] in answer.json()["detail"]


@pytest.mark.parametrize("seen_before", [False, True])
@pytest.mark.parametrize("damage", ["first bit", "last bit", "cut", "longer", "empty", "others'"])
def test_an_altered_file_is_not_served(api: Api, tmp_path: Path, damage: str, seen_before: bool) -> None:
    for path, file in put_files(api, tmp_path):
        etag = api.http.get(path).headers["etag"] if seen_before else None
        whole = file.read_bytes()
        match damage:
            case "first bit":
                flip(file, 0)
            case "last bit":
                flip(file, len(whole) - 1)
            case "cut":
                os.truncate(file, len(whole) - 1)
            case "longer":
                file.write_bytes(whole + b"\0")
            case "empty":
                file.write_bytes(b"")
            case _:
                file.write_bytes(bytes(len(whole)))
        refused(api, path, etag)
        refused(api, path, etag)  # what is known to be bad is as bad again
        file.write_bytes(whole)
        again = api.http.get(path)
        assert (again.status_code, again.content) == (200, whole)


def test_a_file_altered_behind_the_clocks_back_is_not_served(api: Api, tmp_path: Path) -> None:
    for path, file in put_files(api, tmp_path):
        assert api.http.get(path).status_code == 200
        before = file.stat()
        flip(file, 100)
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert (file.stat().st_mtime_ns, file.stat().st_size) == (before.st_mtime_ns, before.st_size)
        refused(api, path)


def test_a_version_is_read_once_however_many_ask(api: Api, tmp_path: Path) -> None:
    _, (path, file) = put_files(api, tmp_path)
    size = file.stat().st_size

    def read_by(heads: int) -> float:
        """How many times the file's size the server read for so many HEAD requests at once, which send nothing."""

        def counted() -> int:
            (line,) = (one for one in Path(f"/proc/{api.process.pid}/io").read_text().split("\n") if "rchar" in one)
            return int(line.split()[1])

        before = counted()
        with ThreadPoolExecutor(heads) as pool:
            assert set(pool.map(lambda _: api.http.head(path).status_code, range(heads))) == {200}
        return (counted() - before) / size

    assert 1 <= read_by(12) < 2
    assert read_by(12) < 1
    file.write_bytes(file.read_bytes())  # the same, but who knows
    assert 1 <= read_by(12) < 2


def test_what_a_manifest_does_not_describe_is_served_as_it_is(api: Api, tmp_path: Path) -> None:
    dataset = put_dataset(api, tmp_path, images=1, num_classes=1)
    for content in (b"one", b"another"):
        api.storage.put(f"datasets/{dataset}/preview.png", content)
        assert api.http.get(f"/v1/datasets/{dataset}/files/preview.png").content == content


def test_a_bucket_sends_nothing_that_was_altered(s3: S3Server, redis_server: str, tmp_path: Path) -> None:
    settings = s3.settings("verified", Settings(redis_url=database(redis_server, 12)))
    with serving(settings, tmp_path) as api:
        dataset = put_dataset(api, tmp_path, images=10)
        key, path = f"datasets/{dataset}/train-000000.tar", f"/v1/datasets/{dataset}/files/train-000000.tar"
        whole = api.storage.read(key)
        assert [api.http.get(path).status_code for _ in range(2)] == [307, 307]
        api.storage.put(key, bytes([whole[0] ^ 1]) + whole[1:])
        refused(api, path)
        api.storage.put(key, whole)
        assert api.http.get(path, follow_redirects=True).content == whole
