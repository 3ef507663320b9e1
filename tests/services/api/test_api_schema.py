"""The running API keeps to its schema: Schemathesis tries it, with all of its checks, with and without keys."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import pytest

from dearkd.identifiers import Kind
from dearkd.jobs import store
from dearkd.jobs.log import JobLog
from dearkd.jobs.model import owner_of
from dearkd.redis_client import job_key
from dearkd.settings import Settings
from dearkd.specs import SynthesisSpec, TrainingSpec
from dearkd.storage.catalog import Model, StoredFile, Teacher, models, teachers
from dearkd_api import examples
from tests.support.api_contents import png, put_dataset
from tests.support.documents import ROOT
from tests.support.services import Api, database, serving

pytestmark = pytest.mark.services

KEY = "a-key-for-schemathesis"


@contextmanager
def an_api(redis_server: str, folder: Path, *, number: int, **settings: str) -> Iterator[Api]:
    """An API with limits on counts that no test of hundreds of jobs and wrong keys comes near."""
    chosen = Settings(
        redis_url=database(redis_server, number),
        storage_url=f"file://{folder}/storage",
        cache_dir=folder / "cache",
        max_body_bytes=100_000,
        max_upload_bytes=3_000_000,
        max_queued_jobs=100_000,
        max_key_failures=100_000,
        **settings,
    )
    with serving(chosen, folder) as api:
        yield api


def put_examples(api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: str | None) -> None:
    """Everything that the schema's examples name, so that they are answered as the schema shows."""
    made = datetime.now(UTC)
    teacher = Teacher.model_validate(examples.ANSWERS["teachers.get"] | {"created_at": made, "owner": owner})
    teachers(api.storage).create(teacher)
    put_dataset(api, tmp_path, id=examples.IDS["ds"], owner=owner)
    catalog = models(api.storage)
    api.storage.put(catalog.key(examples.IDS["mdl"], "model.safetensors"), tmp_path / "train-000000.tar")
    shard = json.loads(api.storage.read(f"datasets/{examples.IDS['ds']}/dataset.json"))["shards"][0]
    file = StoredFile(name="model.safetensors", bytes=shard["bytes"], sha256=shard["sha256"])
    model = Model.model_validate(examples.ANSWERS["models.get"] | {"created_at": made, "owner": owner})
    catalog.create(model.model_copy(update={"files": [file]}))
    api.storage.put(f"datasets/{examples.IDS['ds']}/preview.png", png())
    monkeypatch.setattr(store, "new_id", lambda kind: examples.IDS[kind])
    synthesis = SynthesisSpec.stored(examples.ANSWERS["synthesis_jobs.get"]["spec"])
    training = TrainingSpec.stored(examples.ANSWERS["training_runs.get"]["spec"])
    api.store.create_synthesis(synthesis, images=synthesis.num_samples, owner=owner)
    api.store.create_training(training, epochs=training.epochs, waits_for=examples.IDS["syn"], owner=owner)
    kinds: tuple[Kind, ...] = ("syn", "run")
    for kind in kinds:
        JobLog(api.store.redis, api.storage).add(examples.IDS[kind], "a line")
    rows = [json.dumps(row) for row in examples.ANSWERS["training_runs.metrics"]["data"]]
    api.store.redis.rpush(f"{job_key(examples.IDS['run'])}:rows", *rows)


def schemathesis(api: Api, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`schemathesis run` with all phases and checks; deterministic, so that it finds the same each time."""
    config = ["--config-file", str(ROOT / "schemathesis.toml")]
    bounds = ["--generation-deterministic", "--max-examples", "20", "--no-shrink", "--continue-on-failure"]
    command = [sys.executable, "-m", "schemathesis.cli", *config, "run", *bounds, *arguments]
    return subprocess.run(
        [*command, f"{api.url}/openapi.json"], cwd=api.log.parent, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("keyed", [False, True], ids=["open", "keyed"])
def test_schemathesis_finds_nothing(
    redis_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keyed: bool
) -> None:
    with an_api(redis_server, tmp_path, number=9 + keyed, api_keys=KEY if keyed else "") as api:
        owner = owner_of(sha256(KEY.encode()).digest()) if keyed else None
        put_examples(api, tmp_path, monkeypatch, owner)
        arguments = ["--header", f"Authorization: Bearer {KEY}"] if keyed else []
        found = schemathesis(api, *arguments)
    assert found.returncode == 0, found.stdout[-20_000:] + found.stderr
    for phase in ("Examples", "Coverage", "Fuzzing", "Stateful"):
        assert f"✅ {phase}" in found.stdout, found.stdout[-3000:]
