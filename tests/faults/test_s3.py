"""The promises that rest on storage, kept on a real S3 server as they are on files."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from world import SHORT, SYNTHESIS, TRAINING, World, kill, workers, world

from dearkd import scripts
from dearkd.client import Json
from dearkd.garbage import ABANDONED_SECONDS, Collector
from dearkd.identifiers import new_id
from dearkd.specs import TeacherSpec
from s3 import S3Server, s3
from services import eventually

__all__ = ["s3"]

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def bucket_world(s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("s3-world")
    with world(folder, DEARKD_STORAGE_URL=s3.url("faults"), DEARKD_S3_ENDPOINT=s3.endpoint, **SHORT) as found:
        yield found


@pytest.fixture(scope="module")
def bucket_teacher(bucket_world: World, plain_teacher: tuple[TeacherSpec, object]) -> str:
    spec, weights = plain_teacher
    identifier: str = bucket_world.client.create_teacher(spec.model_dump(), weights)["id"]  # type: ignore[arg-type]
    return identifier


@pytest.mark.parametrize("script", [scripts.DONE, scripts.TRANSITION], ids=["after the upload", "after the manifest"])
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


def test_damage_is_named_and_never_trained_on(bucket_world: World, bucket_teacher: str) -> None:
    here, client = bucket_world, bucket_world.client
    made = client.wait_for_job(client.create_synthesis_job({"teacher": bucket_teacher, **SYNTHESIS, "seed": 9})["id"])
    dataset = made["result"]["dataset"]
    whole: dict[str, bytes] = {}

    def damage(key: str) -> None:
        whole[key] = here.storage.read(key)
        data = bytearray(whole[key])
        data[len(data) // 2] ^= 1
        here.storage.put(key, bytes(data))

    shard = f"datasets/{dataset}/train-000001.tar"
    damage(shard)
    run: Json = client.wait_for_job(client.create_training_run({"dataset": dataset, **TRAINING})["id"])
    assert (run["status"], run["error"]["code"]) == ("failed", "corrupt_data")
    assert "train-000001.tar" in run["error"]["message"]
    here.storage.put(shard, whole[shard])
    run = client.wait_for_job(client.retry_job(run["id"])["id"])
    assert run["status"] == "succeeded", run["error"]


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
