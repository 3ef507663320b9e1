"""Storage: the same promises on disk and on real S3 servers."""

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from dearkd.errors import CorruptData, InvalidInput, NotFound, Unavailable
from dearkd.identifiers import new_id
from dearkd.local.garbage import Collector
from dearkd.settings import Settings
from dearkd.storage.catalog import Teacher, teachers
from dearkd.storage.keys import check_key
from dearkd.storage.objects import AlreadyExists, Storage
from tests.support.s3 import S3Server


@pytest.fixture
def storage(storage_settings: Settings) -> Storage:
    return Storage.open(storage_settings)


def test_create_lets_exactly_one_writer_win(storage: Storage) -> None:
    storage.create("a/manifest.json", b"first")
    with pytest.raises(AlreadyExists):
        storage.create("a/manifest.json", b"second")
    assert storage.read("a/manifest.json") == b"first"


def test_what_many_create_at_once_is_one_writers_alone(
    storage: Storage, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    def write(index: int) -> str:
        path = tmp_path / str(index)
        path.write_bytes(bytes([index]) * 100_000)
        try:
            storage.create("a/shard.tar", path)
        except AlreadyExists:
            return "lost"
        return "won"

    with ThreadPoolExecutor(8) as pool:
        outcome = Counter(pool.map(write, range(8)))
    # Swift looks before it writes, so of several at the same moment more than one may believe that it won: no promise
    # rests on that (leases and fencing tokens come first), but what lies there must be one writer's alone.
    swift = request.node.callspec.params["storage_settings"] == "s3"
    assert outcome["won"] >= 1 if swift else outcome["won"] == 1
    assert len(set(storage.read("a/shard.tar"))) == 1, "a mixture of two writers"
    assert storage.size("a/shard.tar") == 100_000


def test_what_is_larger_than_a_part_is_put_whole(storage: Storage, tmp_path: Path) -> None:
    data = os.urandom(11 * 2**20)  # obstore's parts have 5 MiB
    (tmp_path / "large").write_bytes(data)
    storage.put("a/large", tmp_path / "large")
    assert storage.read("a/large") == data
    assert [stored.size for stored in storage.objects("a")] == [len(data)]


@pytest.mark.services
def test_a_presigned_url_serves_the_object_to_who_has_no_keys(each_s3: S3Server, tmp_path: Path) -> None:
    storage = Storage.open(each_s3.settings("presigned", Settings()))
    storage.put("a/blob", bytes(range(200)))
    url = storage.presign("a/blob")
    assert url is not None
    assert httpx.get(url, trust_env=False).content == bytes(range(200))
    part = httpx.get(url, headers={"range": "bytes=10-19"}, trust_env=False)
    assert (part.status_code, part.content) == (206, bytes(range(10, 20)))
    for changed in (url[:-1] + ("0" if url[-1] != "0" else "1"), url.replace("a/blob", "a/blog")):
        assert httpx.get(changed, trust_env=False).status_code == 403
    assert Storage.open(Settings(storage_url=f"file://{tmp_path}")).presign("a/blob") is None


def test_ranges_are_those_of_the_bytes(storage: Storage) -> None:
    data = os.urandom(100_000)
    storage.put("a/blob", iter([data[:1000], data[1000:]]))
    for start, end in ((0, None), (0, 1), (99_999, 100_000), (500, 70_000), (500, None)):
        assert b"".join(storage.stream("a/blob", start=start, end=end, chunk_bytes=4096)) == data[start:end]
    assert storage.size("a/blob") == 100_000


def test_listing_and_deleting_keep_to_their_prefix(storage: Storage, request: pytest.FixtureRequest) -> None:
    for key in ("a/1/x", "a/1/y/z", "a/10/x", "b/x"):
        storage.put(key, b"1")
    assert storage.children("a") == ["1", "10"]
    assert [stored.key for stored in storage.objects("a/1")] == ["a/1/x", "a/1/y/z"]
    storage.delete_prefix("a/1")
    assert list(storage.objects("a/1")) == []
    assert "10" in storage.children("a")
    if request.node.callspec.params["storage_settings"] != "seaweed":  # it names an emptied folder for some minutes
        assert storage.children("a") == ["10"]
    storage.delete("a/1/x")
    assert storage.exists("b/x")


def test_a_folder_that_was_emptied_holds_nothing_for_who_lists(storage: Storage) -> None:
    facts = {"sha256": "0" * 64, "bytes": 1, "parameters": 1, "batch_norm_layers": 1}
    network = {"architecture": "resnet10t", "model_args": {}}
    shape = {"num_classes": 10, "in_chans": 1, "image_size": 32, "mean": [0.5], "std": [0.5]}
    now = datetime.now(UTC)
    teacher = Teacher.model_validate({"id": new_id("tch"), "name": "t", "created_at": now, **facts, **network, **shape})
    catalog = teachers(storage)
    catalog.create(teacher)
    assert catalog.page(limit=5) == ([teacher], False)
    catalog.delete(teacher.id)
    # SeaweedFS still names its folder.
    assert catalog.page(limit=5) == ([], False)
    assert not list(Collector(storage, retention_seconds=0, now=now + timedelta(days=9)).find())


def test_what_is_missing_is_not_found(storage: Storage) -> None:
    for act in (storage.read, storage.size, storage.stream):
        with pytest.raises(NotFound):
            act("nowhere/x")


def test_a_download_is_whole_and_right_or_not_there(storage: Storage, tmp_path: Path) -> None:
    storage.put("a/blob", b"abc")
    target = tmp_path / "deep" / "blob"
    with pytest.raises(CorruptData, match="sha256"):
        storage.download("a/blob", target, sha256="0" * 64)
    assert list(target.parent.iterdir()) == []
    # echo -n abc | sha256sum
    storage.download("a/blob", target, sha256="ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")
    assert target.read_bytes() == b"abc"


def test_a_failing_store_is_unavailable_and_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Without keys obstore would ask the machine for its role.
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    storage = Storage.open(
        Settings(storage_url="s3://bucket/prefix", s3_endpoint="http://127.0.0.1:9", cache_dir=tmp_path)
    )
    with pytest.raises(Unavailable, match="DEARKD_STORAGE_URL"):
        storage.read("a/b")


@pytest.mark.services
def test_a_wrong_secret_is_told_as_that(each_s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage.open(each_s3.settings("secret", Settings()))
    storage.put("object", b"1")
    assert storage.read("object") == b"1"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    for act in (lambda s: s.read("object"), lambda s: s.put("object", b"2"), lambda s: s.create("other", b"2")):
        with pytest.raises(Unavailable, match="refused its credentials"):
            act(Storage.open(each_s3.settings("secret", Settings())))
    assert storage.read("object") == b"1"


@pytest.mark.parametrize("url", ["http://x/y", "s3://", "/plain/path", "ftp://b"])
def test_other_urls_are_refused_with_the_remedy(url: str) -> None:
    with pytest.raises(InvalidInput, match="s3://bucket"):
        Storage.open(Settings().model_copy(update={"storage_url": url}))


@pytest.mark.parametrize("key", ["../x", "a/../b", "/abs", "s3://b/x", "a//b", "", "a/./b", "a\\b", "a\x00b"])
def test_keys_from_outside_cannot_leave_the_root(key: str) -> None:
    with pytest.raises(InvalidInput) as error:
        check_key(key, pointer="/prefix")
    assert error.value.errors[0].pointer == "/prefix"


def test_keys_from_outside_lose_a_trailing_slash() -> None:
    assert check_key("real/digits/", pointer="/prefix") == "real/digits"
