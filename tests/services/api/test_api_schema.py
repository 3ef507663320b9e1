"""The running API keeps to its schema: Schemathesis tries it, with all of its checks, with and without keys."""

import json
import subprocess
import sys
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch

from dearkd.identifiers import Kind
from dearkd.jobs import store
from dearkd.jobs.log import JobLog
from dearkd.jobs.model import live_key, owner_of
from dearkd.redis_client import job_key
from dearkd.settings import Settings
from dearkd.specs import SynthesisSpec, Task, TeacherSpec, TrainingSpec
from dearkd.storage.api_keys import KeyRecord, Secret
from dearkd.storage.audit import AuditLog, AuditRecord
from dearkd.storage.catalog import Model, Teacher, describe_file, manifest_bytes, models, teachers
from dearkd_api import examples
from tests.support.api_contents import png, put_dataset
from tests.support.documents import ROOT
from tests.support.services import Api, database, eventually, inspecting, serving

pytestmark = pytest.mark.services

KEY = "a-key-for-schemathesis"
IDS = examples.IDS


def put_examples(api: Api, weights: Path, folder: Path, patch: pytest.MonkeyPatch, owner: str | None) -> None:
    """Everything that the schema's examples name, so that Schemathesis meets answers and not only refusals."""
    known: dict[str, Any] = {"created_at": datetime.now(UTC), "owner": owner}
    file = describe_file(weights)
    teacher = examples.ANSWERS["teachers.get"] | known | {"sha256": file.sha256, "bytes": file.bytes}
    api.storage.put(f"teachers/{IDS['tch']}/weights.safetensors", weights)
    teachers(api.storage).create(Teacher.model_validate(teacher))
    put_dataset(api, folder, id=IDS["ds"], owner=owner)
    for picture in ("preview.png", "timelapse.webp"):
        api.storage.put(f"datasets/{IDS['ds']}/{picture}", png())
    api.storage.put(live_key(IDS["syn"]), png())
    put_student(api, folder / "student", known)
    api.storage.put("shared/digits/train-000000.tar", folder / "train-000000.tar")
    api.storage.put("shared/digits/teacher.safetensors", weights)

    patch.setattr(store, "new_id", lambda kind: IDS[kind])
    synthesis = SynthesisSpec.stored(examples.ANSWERS["synthesis_jobs.get"]["spec"])
    training = TrainingSpec.stored(examples.ANSWERS["training_runs.get"]["spec"])
    api.store.create_synthesis(synthesis, images=synthesis.num_samples, owner=owner)
    api.store.create_training(training, epochs=training.epochs, waits_for=IDS["syn"], owner=owner)
    kinds: tuple[Kind, ...] = ("syn", "run")
    for kind in kinds:
        JobLog(api.store.redis, api.storage).add(IDS[kind], "a line")
    secret = Secret(sha256=sha256(b"nobody's").hexdigest())
    if owner is not None:  # a key would close an API that is to be open
        key = KeyRecord.model_validate({**examples.ANSWERS["keys.get"], "secrets": [secret]})
        api.storage.create(f"keys/{key.id}.json", manifest_bytes(key))
    AuditLog(api.storage).add(AuditRecord.model_validate(examples.ANSWERS["audit.list"]["data"][0]))
    rows = [json.dumps(row) for row in examples.ANSWERS["training_runs.metrics"]["data"]]
    api.store.redis.rpush(f"{job_key(IDS['run'])}:rows", *rows)


def put_student(api: Api, folder: Path, known: dict[str, Any]) -> None:
    """A student that has learnt nothing, but can be asked."""
    from dearkd_trainer.model.export import model_config, save_model
    from dearkd_trainer.model.student import create_student

    spec = TrainingSpec.stored(examples.ANSWERS["models.get"]["spec"]).student
    student = create_student(spec, num_classes=10, in_chans=1).eval()
    task = Task(num_classes=10, in_chans=1, image_size=32, mean=[0.3], std=[0.4])
    save_model(folder, student, model_config(spec, student, task))
    files = [folder / "config.json", folder / "model.safetensors"]
    for path in files:
        api.storage.put(f"models/{IDS['mdl']}/{path.name}", path)
    listed = {"files": [describe_file(path) for path in files]}
    models(api.storage).create(Model.model_validate(examples.ANSWERS["models.get"] | known | listed))


def schemathesis(api: Api, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`schemathesis run` with all phases and checks; deterministic, so that it tries the same each time."""
    config = ["--config-file", str(ROOT / "schemathesis.toml")]
    bounds = [
        "--generation-deterministic",
        "--max-examples",
        "8",
        "--no-shrink",
        "--continue-on-failure",
        "--request-timeout",
        "120",
    ]
    command = [sys.executable, "-m", "schemathesis.cli", *config, "run", *bounds, *arguments]
    where = {"cwd": api.log.parent, "capture_output": True, "text": True, "check": False}
    return subprocess.run([*command, f"{api.url}/openapi.json"], **where)  # type: ignore[call-overload]


@pytest.mark.parametrize("keyed", [False, True], ids=["open", "keyed"])
def test_schemathesis_finds_nothing(
    redis_server: str,
    tmp_path: Path,
    plain_teacher: tuple[TeacherSpec, Path],
    monkeypatch: pytest.MonkeyPatch,
    keyed: bool,
) -> None:
    torch.manual_seed(0)
    settings = Settings(
        redis_url=database(redis_server, 9 + keyed),
        storage_url=f"file://{tmp_path}/storage",
        cache_dir=tmp_path / "cache",
        max_body_bytes=100_000,
        max_upload_bytes=3_000_000,
        # Hundreds of jobs and of wrong keys are posted; that there are too many is tested elsewhere.
        max_queued_jobs=100_000,
        max_key_failures=100_000,
        admin_keys=KEY if keyed else "",
    )
    with inspecting(settings, tmp_path), serving(settings, tmp_path) as api:
        eventually(lambda: api.http.get("/readyz").json().get("workers", {}).get("inspect"))
        owner = owner_of(sha256(KEY.encode()).digest()) if keyed else None
        put_examples(api, plain_teacher[1], tmp_path, monkeypatch, owner)
        # Without keys the first one that is created would close the API to all that follows.
        how = ["--header", f"Authorization: Bearer {KEY}"] if keyed else ["--exclude-operation-id", "keys.create"]
        found = schemathesis(api, *how)
    assert found.returncode == 0, found.stdout[-20_000:] + found.stderr
    for phase in ("Examples", "Coverage", "Fuzzing", "Stateful"):
        assert f"✅ {phase}" in found.stdout, found.stdout[-3000:]
