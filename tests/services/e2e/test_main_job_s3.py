"""The main job with everything in a bucket: a teacher, its dataset, and a student, over a real S3 server."""

import os
from pathlib import Path

import pytest

from dearkd.client import Client
from dearkd.local.up import UpTree
from dearkd.settings import Settings
from dearkd.specs import TeacherSpec
from dearkd.storage.objects import Storage
from tests.services.e2e.test_main_job import SYNTHESIS, TRAINING
from tests.support.s3 import S3Server, s3

__all__ = ["s3"]

pytestmark = [pytest.mark.services, pytest.mark.timeout(600)]


def test_from_a_teacher_to_a_student_in_a_bucket(
    s3: S3Server, plain_teacher: tuple[TeacherSpec, Path], tmp_path: Path
) -> None:
    spec, weights = plain_teacher
    environment = {**os.environ, "DEARKD_STORAGE_URL": s3.url("job"), "DEARKD_S3_ENDPOINT": s3.endpoint}
    environment.pop("DEARKD_REDIS_URL", None)
    with UpTree(tmp_path / "up", port=0, environment=environment) as tree, Client(tree.url) as client:
        teacher = client.create_teacher(spec.model_dump(), weights)
        job = client.create_synthesis_job({"teacher": teacher["id"], **SYNTHESIS})
        run = client.wait_for_job(client.create_training_run({"dataset": job["id"], **TRAINING})["id"])
        assert run["status"] == "succeeded", run["error"]
        model = client.get_model(run["result"]["model"])
        dataset = client.get_dataset(model["dataset"])
        shard = tmp_path / "shard.tar"
        client.download_dataset_file(dataset["id"], dataset["shards"][0]["name"], shard)
        assert shard.stat().st_size == dataset["shards"][0]["bytes"]
    assert not (tmp_path / "up" / "storage").exists()
    storage = Storage.open(s3.settings("job", Settings()))
    stored = {stored.key: stored.size for stored in storage.objects("")}
    prefix = f"datasets/{dataset['id']}"
    assert {f"{prefix}/{s['name']}": s["bytes"] for s in dataset["shards"]}.items() <= stored.items()
    assert {f"models/{model['id']}/{f['name']}": f["bytes"] for f in model["files"]}.items() <= stored.items()
    assert f"jobs/{job['id']}/final.json" in stored
    assert not [key for key in stored if key.startswith("tmp/")]
