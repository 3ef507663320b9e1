"""Storage that fails, fills up, or does not return what was stored."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from dearkd.client import Json
from dearkd.errors import DearKDError, Unavailable
from dearkd.settings import Settings
from dearkd.specs import TeacherSpec
from dearkd.storage.objects import Storage
from tests.support.proxy import FaultProxy
from tests.support.s3 import S3Server, s3
from tests.support.services import eventually
from tests.support.world import SHORT, SYNTHESIS, TRAINING, World, workers, world

__all__ = ["s3"]

pytestmark = pytest.mark.timeout(900)

OUTAGE_SECONDS = 60
UNAVAILABLE = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


def flip(here: World, key: str, at: int) -> None:
    """Invert a bit of a stored object."""
    path = Path(here.tree.storage_url.removeprefix("file://")) / key
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", ["a bit", "the end"])
def test_a_damaged_shard_is_named_and_never_trained_on(shared_world: World, teacher: str, damage: str) -> None:
    here, client = shared_world, shared_world.client
    made = client.wait_for_job(client.create_synthesis_job({"teacher": teacher, **SYNTHESIS})["id"])
    key = f"datasets/{made['result']['dataset']}/train-000001.tar"
    if damage == "a bit":
        flip(here, key, 5000)
    else:
        here.storage.put(key, here.storage.read(key)[:-1024])
    # The tree's cache is keyed by content, and another dataset of the same spec may lie in it.
    cache = here.tree.data / "cache"
    for path in cache.rglob("train-000001.tar"):
        path.unlink()
    run = client.wait_for_job(client.create_training_run({"dataset": made["result"]["dataset"], **TRAINING})["id"])
    assert (run["status"], run["error"]["code"], run["error"]["retryable"]) == ("failed", "corrupt_data", False)
    assert "train-000001.tar" in run["error"]["message"]
    assert not list(client.list_metrics(run["id"]))


def test_a_damaged_manifest_is_named_and_refused(shared_world: World, teacher: str) -> None:
    here, client = shared_world, shared_world.client
    made = client.wait_for_job(client.create_synthesis_job({"teacher": teacher, **SYNTHESIS})["id"])
    dataset = made["result"]["dataset"]
    key = f"datasets/{dataset}/dataset.json"
    here.storage.put(key, here.storage.read(key)[:-20])
    for act in (lambda: client.get_dataset(dataset), lambda: client.create_training_run({"dataset": dataset})):
        with pytest.raises(DearKDError) as error:
            act()
        assert (error.value.code, key in error.value.message) == ("corrupt_data", True)


def test_a_damaged_checkpoint_is_named_and_not_gone_on_with(shared_world: World, undisturbed: Json) -> None:
    here, client = shared_world, shared_world.client
    long = {**TRAINING, "stage_one": {"epochs": 500}}
    run = client.create_training_run({"dataset": undisturbed["result"]["dataset"], **long})["id"]
    eventually(lambda: len(list(client.list_metrics(run))) >= 2)
    client.cancel_job(run)
    assert client.wait_for_job(run)["status"] == "canceled"
    (last,) = (o for o in here.storage.objects(f"runs/{run}/checkpoints") if o.key.endswith("last.pt"))
    flip(here, last.key, last.size // 2)
    client.retry_job(run)
    ended = client.wait_for_job(run)
    assert (ended["status"], ended["error"]["code"]) == ("failed", "corrupt_data")
    assert last.key in ended["error"]["message"]
    assert f"`dearkd retry {run} --from beginning`" in ended["error"]["message"]
    again = client.retry_job(run, from_beginning=True)
    assert (again["progress"]["done"], list(client.list_metrics(run))) == (0, [])
    eventually(lambda: len(list(client.list_metrics(run))) >= 2)
    client.cancel_job(run)
    assert client.wait_for_job(run)["status"] == "canceled"


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of 8 MB."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if done.returncode != 0:
        pytest.skip(f"only who may mount a tmpfs can fill a disk: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_fails_the_job_and_with_room_a_retry_completes_it(
    plain_teacher: tuple[TeacherSpec, Path], tmp_path: Path
) -> None:
    spec, weights = plain_teacher
    with small_disk(tmp_path / "small") as disk:
        (disk / "teachers").symlink_to(tmp_path / "teachers")
        (disk / "tmp").symlink_to(tmp_path / "tmp")
        for name in ("teachers", "tmp"):
            (tmp_path / name).mkdir()
        with world(tmp_path, DEARKD_STORAGE_URL=f"file://{disk}", **SHORT) as here:
            teacher = here.client.create_teacher(spec.model_dump(), weights)["id"]
            job = here.client.create_synthesis_job({"teacher": teacher, **SYNTHESIS})["id"]
            with (disk / "filler").open("wb", buffering=0) as filler, suppress(OSError):
                while filler.write(bytes(4096)):
                    pass
            assert shutil.disk_usage(disk).free == 0
            eventually(lambda: here.client.get_job(job)["status"] == "failed")
            error = here.client.get_job(job)["error"]
            assert (error["code"], error["retryable"]) == ("disk_full", True)
            assert "make room and retry" in error["message"]
            assert not here.storage.exists(f"datasets/ds-{job.partition('-')[2]}/dataset.json")
            os.unlink(disk / "filler")
            here.client.retry_job(job)
            ended = here.client.wait_for_job(job)
            assert ended["status"] == "succeeded", ended["error"]


def test_an_outage_of_the_object_store_is_waited_out(
    s3: S3Server, plain_teacher: tuple[TeacherSpec, Path], tmp_path: Path
) -> None:
    upstream = urlsplit(s3.endpoint)
    proxy = FaultProxy(("127.0.0.1", upstream.port or 0))
    spec, weights = plain_teacher
    broken = {"uploads": 0}

    def in_mid_upload(chunk: bytes) -> bytes | None:
        if b"PUT /" in chunk and b".tar" in chunk and broken["uploads"] < 2:
            broken["uploads"] += 1
            return b""
        return None

    def all_fail(chunk: bytes) -> bytes | None:
        return UNAVAILABLE if b"HTTP/1.1" in chunk else None

    try:
        with world(
            tmp_path,
            DEARKD_STORAGE_URL=s3.url("outage"),
            DEARKD_S3_ENDPOINT=f"http://127.0.0.1:{proxy.port}",
            **SHORT,
        ) as here:
            teacher = here.client.create_teacher(spec.model_dump(), weights)["id"]
            with proxy.breaking(in_mid_upload):
                job = here.client.wait_for_job(
                    here.client.create_synthesis_job({"teacher": teacher, **SYNTHESIS})["id"]
                )
            assert broken["uploads"] == 2
            assert job["status"] == "succeeded", job["error"]
            second = here.client.create_synthesis_job({"teacher": teacher, **SYNTHESIS, "seed": 4})["id"]
            eventually(lambda: here.client.get_job(second)["metrics"].get("iteration", 0) > 0)
            before, began = proxy.faults, time.monotonic()
            with proxy.breaking(all_fail):
                # Until the worker has given up on the client's own retries, and says that it waits.
                eventually(lambda: any("waits for storage" in line for line in here.log(second)))
            with proxy.down():
                time.sleep(max(0.0, OUTAGE_SECONDS - (time.monotonic() - began)))
                eventually(lambda: proxy.faults > before + 10)
            assert not here.storage.exists(f"datasets/ds-{second.partition('-')[2]}/dataset.json")
            ended = here.client.wait_for_job(second)
            assert ended["status"] == "succeeded", ended["error"]
            assert here.begins(second) == ["0", "1", "finish"], "a shard that was made is not made again"
            shards = {shard["name"]: shard["bytes"] for shard in here.shards(ended)}
            assert set(shards) == {"train-000000.tar", "train-000001.tar"}
            stored = here.storage.objects(f"datasets/{ended['result']['dataset']}")
            assert {o.key.rpartition("/")[2]: o.size for o in stored if o.key.endswith(".tar")} == shards
            eventually(lambda: not workers())
    finally:
        proxy.close()


def bucket_through(proxy: FaultProxy, s3: S3Server, prefix: str) -> Storage:
    settings = s3.settings(prefix, Settings())
    return Storage.open(settings.model_copy(update={"s3_endpoint": f"http://127.0.0.1:{proxy.port}"}))


@pytest.fixture
def before_bucket(s3: S3Server) -> Iterator[FaultProxy]:
    proxy = FaultProxy(("127.0.0.1", urlsplit(s3.endpoint).port or 0))
    yield proxy
    proxy.close()


def test_what_is_altered_on_its_way_to_a_bucket_is_refused_and_not_there(
    s3: S3Server, before_bucket: FaultProxy
) -> None:
    storage = bucket_through(before_bucket, s3, "altered")

    def flip_a_bit(chunk: bytes) -> bytes:
        return bytes([*chunk[:-1], chunk[-1] ^ 1]) if len(chunk) > 20_000 else chunk

    with before_bucket.altering(flip_a_bit), pytest.raises(Unavailable):
        storage.create("shard.tar", os.urandom(100_000))
    assert not storage.exists("shard.tar")


def test_a_large_file_goes_to_a_bucket_in_one_request(s3: S3Server, before_bucket: FaultProxy, tmp_path: Path) -> None:
    """So that a process that is killed in the middle leaves no parts, which nobody could find."""
    storage = bucket_through(before_bucket, s3, "large")
    path = tmp_path / "last.pt"
    path.write_bytes(os.urandom(11 * 2**20))
    storage.put("first", b"")  # makes the bucket a storage, which is then believed to be one for a moment
    asked: list[bytes] = []

    def listen(chunk: bytes) -> bytes:
        if b" HTTP/1.1\r\n" in chunk:
            asked.append(chunk.partition(b" ")[0])
        return chunk

    with before_bucket.altering(listen):
        storage.put("last.pt", path)
    assert asked == [b"PUT"]
    assert storage.read("last.pt") == path.read_bytes()


def trickle(chunk: bytes) -> bytes:
    """48 MiB in 40 s."""
    time.sleep(len(chunk) / (1.2 * 2**20))
    return chunk


def test_what_takes_longer_than_half_a_minute_arrives(s3: S3Server, tmp_path: Path) -> None:
    """Which is obstore's limit for a request, unless told otherwise: a large shard would never be stored, nor read."""
    path = tmp_path / "train-000000.tar"
    path.write_bytes(os.urandom(48 * 2**20))
    Storage.open(s3.settings("slow", Settings())).put("stored.tar", path)
    with ExitStack() as stack:
        buckets = []
        for _ in range(2):
            proxy = FaultProxy(("127.0.0.1", urlsplit(s3.endpoint).port or 0))
            stack.callback(proxy.close)
            stack.enter_context(proxy.altering(trickle))
            buckets.append(bucket_through(proxy, s3, "slow"))
        pool = stack.enter_context(ThreadPoolExecutor(2))
        upload = pool.submit(buckets[0].create, "train-000000.tar", path)
        download = pool.submit(buckets[1].download, "stored.tar", tmp_path / "fetched.tar")
        upload.result()
        download.result()
    assert Storage.open(s3.settings("slow", Settings())).size("train-000000.tar") == path.stat().st_size
    assert (tmp_path / "fetched.tar").read_bytes() == path.read_bytes()
