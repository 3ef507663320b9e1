"""The promises that rest on storage, kept on a real S3 server as they are on files."""

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from dearkd.answers import JobView
from dearkd.errors import DearKDError, Unavailable
from dearkd.identifiers import new_id
from dearkd.local.garbage import ABANDONED_SECONDS, Collector
from dearkd.settings import Settings
from dearkd.specs import TeacherSpec
from dearkd.storage.objects import Storage
from tests.support.deaths import Death, require_one_unit_a_death
from tests.support.proxy import FaultProxy
from tests.support.s3 import S3Server
from tests.support.services import eventually
from tests.support.world import SHORT, SYNTHESIS, TRAINING, World, another_worker, kill, workers, world

pytestmark = pytest.mark.timeout(900)


OUTAGE_SECONDS = 25
"""More than the client's own retries (20 s) and four leases."""
UNAVAILABLE = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@pytest.fixture(scope="module")
def bucket_proxy(s3: S3Server) -> Iterator[FaultProxy]:
    proxy = FaultProxy(("127.0.0.1", urlsplit(s3.endpoint).port or 0))
    yield proxy
    proxy.close()


@pytest.fixture(scope="module")
def bucket_world(s3: S3Server, bucket_proxy: FaultProxy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("s3-world")
    endpoint = f"http://127.0.0.1:{bucket_proxy.port}"
    with world(folder, DEARKD_STORAGE_URL=s3.url("faults"), DEARKD_S3_ENDPOINT=endpoint, **SHORT) as found:
        yield found


@pytest.fixture(scope="module")
def bucket_teacher(bucket_world: World, plain_teacher: tuple[TeacherSpec, Path]) -> str:
    return bucket_world.upload(plain_teacher)


@pytest.fixture(scope="module")
def bucket_job(bucket_world: World, bucket_teacher: str) -> JobView:
    """A finished synthesis job."""
    return bucket_world.synthesise(bucket_teacher)


ONE_AFTER_ANOTHER: list[Death] = [
    ("horse", "mid-shard", "0"),
    ("part", "before the mark", "0"),
    ("worker", "mid-shard", "1"),
    ("horse", "before the mark", "1"),
    ("worker", "before the manifest", "finish"),
    ("horse", "before the end", "finish"),
]
"""A unit dies at most twice: the third death in a row would fail the job, which is another test's."""


def test_a_death_costs_one_unit_at_most_and_makes_nothing_twice(
    bucket_world: World, bucket_teacher: str, bucket_job: JobView
) -> None:
    here = bucket_world
    log = here.log(require_one_unit_a_death(here, bucket_teacher, bucket_job, ONE_AFTER_ANOTHER))
    for what in ("shard 0", "shard 1", "manifest"):
        assert any(f"{what} lies in storage already" in line for line in log), what


def test_who_is_stopped_in_mid_upload_publishes_nothing_when_let_go_on(
    s3: S3Server,
    bucket_world: World,
    bucket_proxy: FaultProxy,
    bucket_teacher: str,
    bucket_job: JobView,
    tmp_path: Path,
) -> None:
    here = bucket_world
    eventually(lambda: not workers())
    here.hold_at("claim")
    job = here.client.create_synthesis_job({"teacher": bucket_teacher, **SYNTHESIS}).id
    assert here.proxy.held.wait(120)
    prefix = f"datasets/ds-{job.partition('-')[2]}"
    bucket_proxy.hold(f"PUT /{urlsplit(s3.url('faults')).netloc}/faults/{prefix}/train-000000.tar".encode())
    here.proxy.release()
    assert bucket_proxy.held.wait(120)
    late = here.holder(job)
    os.kill(late.horse, signal.SIGSTOP)
    try:
        with another_worker(here.settings.model_copy(update={"s3_endpoint": s3.endpoint}), tmp_path):
            eventually(lambda: here.ledger.store.get(job).terminal)
            before = {o.key: here.storage.read(o.key) for o in here.storage.objects(prefix)}
            bucket_proxy.release()
            os.kill(late.horse, signal.SIGCONT)
            eventually(lambda: any("published nothing more" in line for line in here.log(job)))
    finally:
        bucket_proxy.release()
        with suppress(ProcessLookupError):
            os.kill(late.horse, signal.SIGCONT)
    ended = here.client.get_job(job)
    assert ended.status == "succeeded", ended.error
    assert here.shards(ended) == here.shards(bucket_job)
    assert {o.key: here.storage.read(o.key) for o in here.storage.objects(prefix)} == before
    eventually(lambda: not workers())


@pytest.fixture(scope="module")
def bucket_run(bucket_world: World, bucket_job: JobView) -> JobView:
    """A training run that has succeeded, once it had gone on from a checkpoint in the bucket."""
    here, client = bucket_world, bucket_world.client
    eventually(lambda: not workers())
    here.hold_at("add_row", skip=2)
    run = client.create_training_run({"dataset": bucket_job.result["dataset"], **TRAINING}).id
    assert here.proxy.held.wait(300)
    done = len(list(client.list_metrics(run)))
    kill(here.holder(run).horse)
    here.proxy.release(forward=False)
    ended: JobView = client.wait(run)
    assert ended.status == "succeeded", ended.error
    (resumed,) = [line for line in here.log(run) if "goes on after epoch" in line]
    assert int(resumed.split("epoch ")[1].split(",")[0]) >= done - 1
    assert len(list(client.list_metrics(run))) == 8
    return ended


def test_from_a_teacher_to_a_student_all_lies_in_the_bucket(
    bucket_world: World, bucket_job: JobView, bucket_run: JobView, tmp_path: Path
) -> None:
    here, client = bucket_world, bucket_world.client
    model = client.get_model(bucket_run.result["model"])
    dataset = client.get_dataset(model.dataset)
    shard = tmp_path / "shard.tar"
    client.download_dataset_file(dataset.id, dataset.shards[0].name, shard)
    assert shard.stat().st_size == dataset.shards[0].bytes
    assert not (here.tree.data / "storage").exists()
    stored = {stored.key: stored.size for stored in here.storage.objects("")}
    prefix = f"datasets/{dataset.id}"
    assert {f"{prefix}/{s.name}": s.bytes for s in dataset.shards}.items() <= stored.items()
    assert {f"models/{model.id}/{f.name}": f.bytes for f in model.files}.items() <= stored.items()
    for job in (bucket_job, bucket_run):
        assert f"jobs/{job.id}/final.json" in stored
    assert not [key for key in stored if key.startswith("tmp/")]


def test_damage_is_named_and_never_trained_on(bucket_world: World, bucket_job: JobView) -> None:
    here, client = bucket_world, bucket_world.client
    dataset = bucket_job.result["dataset"]

    def damage(key: str) -> bytes:
        whole = here.storage.read(key)
        data = bytearray(whole)
        data[len(data) // 2] ^= 1
        here.storage.put(key, bytes(data))
        return whole

    shard = f"datasets/{dataset}/train-000001.tar"
    whole = damage(shard)
    # The tree's cache is keyed by content, and has the whole shard of a job before.
    for path in (here.tree.data / "cache").rglob("train-000001.tar"):
        path.unlink()
    spec = {"dataset": dataset, **TRAINING, "stage_one": {"epochs": 500}}
    run: JobView = client.wait(client.create_training_run(spec).id)
    assert (run.status, run.error.code) == ("failed", "corrupt_data")
    assert "train-000001.tar" in run.error.message
    here.storage.put(shard, whole)
    client.retry_job(run.id)
    eventually(lambda: here.storage.exists(f"runs/{run.id}/checkpoints/checkpoint.json"))
    client.cancel_job(run.id)
    assert client.wait(run.id).status == "canceled"

    (last,) = (o.key for o in here.storage.objects(f"runs/{run.id}/checkpoints") if o.key.endswith("last.pt"))
    damage(last)
    client.retry_job(run.id)
    run = client.wait(run.id)
    assert (run.status, run.error.code) == ("failed", "corrupt_data")
    assert last in run.error.message

    manifest = f"datasets/{dataset}/dataset.json"
    whole = here.storage.read(manifest)
    here.storage.put(manifest, whole[:-20])
    with pytest.raises(DearKDError, match=manifest) as refused:
        client.get_dataset(dataset)
    assert refused.value.code == "corrupt_data"
    here.storage.put(manifest, whole)


def test_an_outage_of_the_object_store_is_waited_out(
    bucket_world: World, bucket_proxy: FaultProxy, bucket_teacher: str
) -> None:
    here, proxy = bucket_world, bucket_proxy
    eventually(lambda: not workers())
    broken = {"uploads": 0}

    def in_mid_upload(chunk: bytes) -> bytes | None:
        if b"PUT /" in chunk and b".tar" in chunk and broken["uploads"] < 2:
            broken["uploads"] += 1
            return b""
        return None

    def all_fail(chunk: bytes) -> bytes | None:
        return UNAVAILABLE if b"HTTP/1.1" in chunk else None

    with proxy.breaking(in_mid_upload):
        spec = {"teacher": bucket_teacher, **SYNTHESIS, "phases": [{"resolution": 8, "iterations": 80}], "seed": 4}
        job = here.client.create_synthesis_job(spec).id
        # In its midst: a unit that cannot even read what it needs goes back, and waits for its turn.
        eventually(lambda: here.client.get_job(job).metrics.get("shard") == 1)
    assert broken["uploads"] == 2
    before, began = proxy.faults, time.monotonic()
    with proxy.breaking(all_fail):
        # Until the worker has given up on the client's own retries, and says that it waits.
        eventually(lambda: any("waits for storage" in line for line in here.log(job)))
    with proxy.down():
        time.sleep(max(0.0, OUTAGE_SECONDS - (time.monotonic() - began)))
        eventually(lambda: proxy.faults > before + 10)
        eventually(lambda: sum("waits for storage" in line for line in here.log(job)) >= 3)
    assert not here.storage.exists(f"datasets/ds-{job.partition('-')[2]}/dataset.json")
    ended = here.client.wait(job)
    assert ended.status == "succeeded", ended.error
    assert here.begins(job) == ["0", "1", "finish"], "a shard that was made is not made again"
    shards = {shard.name: shard.bytes for shard in here.shards(ended)}
    assert set(shards) == {"train-000000.tar", "train-000001.tar"}
    stored = here.storage.objects(f"datasets/{ended.result['dataset']}")
    assert {o.key.rpartition("/")[2]: o.size for o in stored if o.key.endswith(".tar")} == shards


def test_abandoned_objects_go_and_what_a_manifest_names_stays(
    bucket_world: World, bucket_teacher: str, bucket_job: JobView
) -> None:
    here, job = bucket_world, bucket_job
    eventually(lambda: not workers())
    upload = f"tmp/{new_id('tch')}/weights.safetensors"
    here.storage.put(upload, b"abandoned")
    later = datetime.now(UTC) + timedelta(seconds=2 * ABANDONED_SECONDS)
    collector = Collector(here.storage, retention_seconds=0, now=later)
    found = {one.key for one in collector.find()}
    assert upload in found
    named = {f"datasets/{job.result['dataset']}/{shard.name}" for shard in here.shards(job)}
    assert not found & named
    for one in list(collector.find()):
        collector.remove(one)
    assert not here.storage.exists(upload)
    assert not list(collector.find())
    assert here.client.get_dataset(job.result["dataset"]).num_samples == 40
    assert here.client.get_teacher(bucket_teacher).status == "ready"


# --- the line to a bucket, without a tree -----------------------------------------------------------------------------


def bucket_through(proxy: FaultProxy, s3: S3Server, prefix: str) -> Storage:
    settings = s3.settings(prefix, Settings())
    return Storage.open(settings.model_copy(update={"s3_endpoint": f"http://127.0.0.1:{proxy.port}"}))


@pytest.fixture
def before_bucket(s3: S3Server) -> Iterator[FaultProxy]:
    """A proxy of its own, through which no tree's requests come."""
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
