"""The promises that rest on storage, kept on a real S3 server as they are on files."""

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from dearkd.client import Json
from dearkd.errors import DearKDError
from dearkd.identifiers import new_id
from dearkd.local.garbage import ABANDONED_SECONDS, Collector
from dearkd.specs import TeacherSpec
from tests.support.proxy import FaultProxy
from tests.support.s3 import S3Server, s3
from tests.support.services import eventually
from tests.support.world import SHORT, SYNTHESIS, TRAINING, World, another_worker, kill, workers, world

__all__ = ["s3"]

pytestmark = pytest.mark.timeout(900)


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
def bucket_job(bucket_world: World, bucket_teacher: str) -> Json:
    """A finished synthesis job."""
    return bucket_world.synthesise(bucket_teacher)


@pytest.mark.parametrize("script", ["done", "end_job"], ids=["after the upload", "after the manifest"])
def test_a_death_between_storage_and_mark_makes_nothing_twice(
    bucket_world: World, bucket_teacher: str, script: str
) -> None:
    here = bucket_world
    eventually(lambda: not workers())
    here.hold_at(script)
    job = here.client.create_synthesis_job({"teacher": bucket_teacher, **SYNTHESIS})["id"]
    assert here.proxy.held.wait(120)
    found = here.holder(job)
    prefix = f"datasets/ds-{job.partition('-')[2]}"
    before = {o.key: here.storage.read(o.key) for o in here.storage.objects(prefix) if o.key.endswith("tar")}
    assert before
    kill(found.supervisor, found.worker, found.horse)
    here.proxy.release(forward=False)
    ended = here.client.wait_for_job(job)
    assert ended["status"] == "succeeded", ended["error"]
    assert {key: here.storage.read(key) for key in before} == before
    assert any("lies in storage already" in line for line in here.log(job))
    shards = here.shards(ended)
    assert {o.key.rpartition("/")[2]: o.size for o in here.storage.objects(prefix) if o.key.endswith("tar")} == {
        shard["name"]: shard["bytes"] for shard in shards
    }


def test_who_is_stopped_in_mid_upload_publishes_nothing_when_let_go_on(
    s3: S3Server, bucket_world: World, bucket_proxy: FaultProxy, bucket_teacher: str, bucket_job: Json, tmp_path: Path
) -> None:
    here = bucket_world
    eventually(lambda: not workers())
    here.hold_at("claim")
    job = here.client.create_synthesis_job({"teacher": bucket_teacher, **SYNTHESIS})["id"]
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
    assert ended["status"] == "succeeded", ended["error"]
    assert here.shards(ended) == here.shards(bucket_job)
    assert {o.key: here.storage.read(o.key) for o in here.storage.objects(prefix)} == before
    eventually(lambda: not workers())


def test_a_run_goes_on_from_its_checkpoint_in_the_bucket(bucket_world: World, bucket_job: Json) -> None:
    here, client = bucket_world, bucket_world.client
    eventually(lambda: not workers())
    run = client.create_training_run({"dataset": bucket_job["result"]["dataset"], **TRAINING})["id"]
    eventually(lambda: len(list(client.list_metrics(run))) >= 2)
    done = len(list(client.list_metrics(run)))
    kill(here.holder(run).horse)
    ended = client.wait_for_job(run)
    assert ended["status"] == "succeeded", ended["error"]
    (resumed,) = [line for line in here.log(run) if "goes on after epoch" in line]
    assert int(resumed.split("epoch ")[1].split(",")[0]) >= done - 1
    assert len(list(client.list_metrics(run))) == 20


def test_damage_is_named_and_never_trained_on(bucket_world: World, bucket_job: Json) -> None:
    here, client = bucket_world, bucket_world.client
    dataset = bucket_job["result"]["dataset"]

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
    run: Json = client.wait_for_job(client.create_training_run(spec)["id"])
    assert (run["status"], run["error"]["code"]) == ("failed", "corrupt_data")
    assert "train-000001.tar" in run["error"]["message"]
    here.storage.put(shard, whole)
    client.retry_job(run["id"])
    eventually(lambda: here.storage.exists(f"runs/{run['id']}/checkpoints/checkpoint.json"))
    client.cancel_job(run["id"])
    assert client.wait_for_job(run["id"])["status"] == "canceled"

    (last,) = (o.key for o in here.storage.objects(f"runs/{run['id']}/checkpoints") if o.key.endswith("last.pt"))
    damage(last)
    client.retry_job(run["id"])
    run = client.wait_for_job(run["id"])
    assert (run["status"], run["error"]["code"]) == ("failed", "corrupt_data")
    assert last in run["error"]["message"]

    manifest = f"datasets/{dataset}/dataset.json"
    whole = here.storage.read(manifest)
    here.storage.put(manifest, whole[:-20])
    with pytest.raises(DearKDError, match=manifest) as refused:
        client.get_dataset(dataset)
    assert refused.value.code == "corrupt_data"
    here.storage.put(manifest, whole)


def test_abandoned_objects_go_and_what_a_manifest_names_stays(bucket_world: World, bucket_teacher: str) -> None:
    here = bucket_world
    job = here.client.wait_for_job(
        here.client.create_synthesis_job({"teacher": bucket_teacher, **SYNTHESIS, "seed": 10})["id"]
    )
    upload = f"tmp/{new_id('tch')}/weights.safetensors"
    here.storage.put(upload, b"abandoned")
    later = datetime.now(UTC) + timedelta(seconds=2 * ABANDONED_SECONDS)
    collector = Collector(here.storage, retention_seconds=0, now=later)
    found = {one.key for one in collector.find()}
    assert upload in found
    named = {f"datasets/{job['result']['dataset']}/{shard['name']}" for shard in here.shards(job)}
    assert not found & named
    for one in list(collector.find()):
        collector.remove(one)
    assert not here.storage.exists(upload)
    assert not list(collector.find())
    assert here.client.get_dataset(job["result"]["dataset"])["num_samples"] == 40
    assert here.client.get_teacher(bucket_teacher)["status"] == "ready"
