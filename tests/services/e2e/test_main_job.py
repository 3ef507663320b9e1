"""The main job as a client sees it: real processes, a real Redis, files, HTTP; as small as it can be and still fail."""

import contextlib
import re
import tarfile
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dearkd.client import Client
from dearkd.errors import Conflict, NotFound
from dearkd.jobs.model import Progress
from dearkd.local.up import UpTree
from dearkd.specs import TeacherSpec
from dearkd.storage.catalog import Teacher
from tests.support.documents import blocks, read
from tests.support.generated_client import GeneratedClient
from tests.support.programs import run_program
from tests.support.services import eventually

pytestmark = [pytest.mark.services, pytest.mark.timeout(600)]

SYNTHESIS = {
    "images_per_class": 8,
    "batch_size": 40,
    "shard_samples": 40,
    "phases": [{"resolution": 12, "iterations": 12}],
    "min_teacher_accuracy": 0,
}
TRAINING = {
    "student": {"patch_size": 8},
    "stage_one": {"epochs": 2},
    "stage_two": {"epochs": 1},
    "batch_size": 16,
    "checkpoint_every": 1,
}


@pytest.fixture(scope="module")
def metrics_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("metrics")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, metrics_dir: Path) -> Iterator[Client]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEARKD_METRICS_SINKS", "tensorboard")
        patch.setenv("DEARKD_METRICS_DIR", str(metrics_dir))
        with UpTree(tmp_path_factory.mktemp("up"), port=0) as tree, Client(tree.url) as client:
            yield client


@pytest.fixture(scope="module")
def teacher(client: Client, plain_teacher: tuple[TeacherSpec, Path]) -> Teacher:
    spec, weights = plain_teacher
    return client.create_teacher(spec, weights)


def work_horses() -> list[int]:
    """Processes below this one that perform work: the children that rq workers fork."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            parent = process.parent()
            listens = parent is not None and "--multiprocessing-fork" in parent.cmdline()
            if listens and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


def test_from_a_teacher_to_a_student(client: Client, teacher: Teacher, metrics_dir: Path, tmp_path: Path) -> None:
    assert teacher.batch_norm_layers > 5
    job = client.create_synthesis_job({"teacher": teacher.id, **SYNTHESIS})
    run = client.create_training_run({"dataset": job.id, **TRAINING})
    assert run.status == "blocked"
    assert job.progress == Progress(done=0, total=80, unit="images")

    job = client.wait(job.id)
    assert job.status == "succeeded", job.error
    assert (job.progress.done, job.progress.total) == (80, 80)
    dataset = client.get_dataset(job.result["dataset"])
    assert dataset.num_samples == 80
    assert [c.samples for c in dataset.classes] == [8] * 10
    assert dataset.teacher == teacher.id
    assert 0 <= dataset.quality["teacher_accuracy"] <= 1
    assert [shard.samples for shard in dataset.shards] == [40, 40]

    shard = tmp_path / "shard.tar"
    client.download_dataset_file(dataset.id, dataset.shards[0].name, shard)
    assert shard.stat().st_size == dataset.shards[0].bytes
    with tarfile.open(shard) as tar:
        assert len([name for name in tar.getnames() if name.endswith(".png")]) == 40
    client.download_preview(job.id, tmp_path / "preview.png")
    assert (tmp_path / "preview.png").read_bytes().startswith(b"\x89PNG")

    run = client.wait(run.id)
    assert run.status == "succeeded", run.error
    rows = list(client.list_metrics(run.id))
    assert [(row.epoch, row.stage) for row in rows] == [(1, 1), (2, 1), (3, 2)]
    assert {"loss", "classification", "distillation", "hidden"} <= rows[0].figures.keys()
    assert "distillation" not in rows[2].figures
    shown = EventAccumulator(str(metrics_dir / run.id))
    shown.Reload()
    assert [(point.step, point.value) for point in shown.Scalars("loss")] == [
        (row.epoch, pytest.approx(row.figures["loss"])) for row in rows
    ]
    model = client.get_model(run.result["model"])
    assert {file.name for file in model.files} >= {"model.safetensors", "config.json"}
    assert model.dataset == dataset.id

    with pytest.raises(Conflict):
        client.cancel_job(run.id)
    with pytest.raises(Conflict):
        client.retry_job(job.id)


def test_the_same_spec_twice_gives_the_same_bytes(client: Client, teacher: Teacher) -> None:
    spec = {"teacher": teacher.id, **SYNTHESIS, "seed": 7}
    ended = [client.wait(client.create_synthesis_job(spec).id) for _ in range(2)]
    first, second = (client.get_dataset(job.result["dataset"]).shards for job in ended)
    assert first == second
    assert len({shard.sha256 for shard in first}) == len(first)


def test_cancel_in_the_middle_leaves_no_process_and_no_dataset(client: Client, teacher: Teacher) -> None:
    eventually(lambda: not work_horses(), seconds=240)
    before = {dataset.id for dataset in client.list_datasets()}
    endless = {**SYNTHESIS, "phases": [{"resolution": 12, "iterations": 50_000}]}
    job = client.create_synthesis_job({"teacher": teacher.id, **endless})
    run = client.create_training_run({"dataset": job.id, **TRAINING})
    eventually(lambda: client.get_job(job.id).metrics.get("iteration", 0) > 0, seconds=240)
    assert work_horses()
    assert client.cancel_job(job.id).status == "canceling"
    assert client.cancel_job(job.id).status in ("canceling", "canceled")
    assert client.wait(job.id).status == "canceled"
    failed = client.wait(run.id)
    assert (failed.status, failed.error.code) == ("failed", "dataset_failed")
    eventually(lambda: not work_horses(), seconds=240)
    assert {dataset.id for dataset in client.list_datasets()} == before
    with pytest.raises(NotFound):
        client.get_dataset("ds-" + job.id.partition("-")[2])
    with pytest.raises(Conflict, match="canceled"):
        client.create_training_run({"dataset": job.id, **TRAINING})


def test_a_canceled_training_run_goes_on_from_its_checkpoint(client: Client, teacher: Teacher) -> None:
    made = client.wait(client.create_synthesis_job({"teacher": teacher.id, **SYNTHESIS}).id)
    spec = {"dataset": made.result["dataset"], **TRAINING, "stage_one": {"epochs": 20}}
    run = client.create_training_run(spec)
    eventually(lambda: len(list(client.list_metrics(run.id))) >= 3, seconds=240)
    client.cancel_job(run.id)
    assert client.wait(run.id).status == "canceled"
    again = client.retry_job(run.id)
    assert (again.status, again.attempt) == ("queued", 2)
    ended = client.wait(run.id)
    assert ended.status == "succeeded", ended.error
    rows = list(client.list_metrics(run.id))
    assert [row.epoch for row in rows] == list(range(1, 22))
    notes = [e.data["message"] for e in client.list_events(run.id) if e.type == "log"]
    assert any("goes on after epoch" in note for note in notes)


def test_what_is_paused_in_the_middle_lets_its_worker_go_and_makes_the_same(client: Client, teacher: Teacher) -> None:
    eventually(lambda: not work_horses(), seconds=240)
    spec = {"teacher": teacher.id, **SYNTHESIS, "seed": 11, "phases": [{"resolution": 12, "iterations": 120}]}
    undisturbed = client.wait(client.create_synthesis_job(spec).id)
    job = client.create_synthesis_job(spec).id
    eventually(lambda: client.get_job(job).metrics.get("iteration", 0) > 0, seconds=240)
    assert client.pause_job(job).status == "paused"
    eventually(lambda: not work_horses(), seconds=240)
    assert client.get_job(job).status == "paused"
    assert "goes back: the job was paused" in client.get_log(job)
    client.resume_job(job)
    ended = client.wait(job)
    assert (ended.status, ended.attempt) == ("succeeded", 1)
    first, second = (client.get_dataset(each.result["dataset"]).shards for each in (undisturbed, ended))
    assert first == second

    run = client.create_training_run({"dataset": ended.result["dataset"], **TRAINING, "stage_one": {"epochs": 12}})
    eventually(lambda: len(list(client.list_metrics(run.id))) >= 3, seconds=240)
    client.pause_job(run.id)
    eventually(lambda: not work_horses(), seconds=240)
    reached = len(list(client.list_metrics(run.id)))
    client.resume_job(run.id)
    ended = client.wait(run.id)
    assert ended.status == "succeeded", ended.error
    assert [row.epoch for row in client.list_metrics(run.id)] == list(range(1, 14))
    notes = [e.data["message"] for e in client.list_events(run.id) if e.type == "log"]
    assert any("goes on after epoch" in note for note in notes), reached


def test_a_resource_in_use_cannot_be_deleted(client: Client, teacher: Teacher) -> None:
    endless = {**SYNTHESIS, "phases": [{"resolution": 12, "iterations": 50_000}]}
    job = client.create_synthesis_job({"teacher": teacher.id, **endless})
    with pytest.raises(Conflict):
        client.delete_teacher(teacher.id)
    client.cancel_job(job.id)
    assert client.wait(job.id).status == "canceled"


def test_the_dashboard_is_there(client: Client) -> None:
    page = httpx.get(client.url)
    assert page.status_code == 200
    assert "dearkd" in page.text


def test_a_client_that_was_generated_from_the_schema_runs_the_main_job(
    client: Client, plain_teacher: tuple[TeacherSpec, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign = GeneratedClient(tmp_path, client.url, monkeypatch)
    models, File = foreign.models, foreign.types.File
    spec, weights = plain_teacher
    with weights.open("rb") as file:
        upload = models.TeachersCreateFilesBody(
            teacher=models.TeachersCreateFilesBodyTeacherSpec.from_dict(spec.model_dump(mode="json")),
            weights=File(payload=file, file_name="weights.safetensors"),
        )
        teacher = foreign.call("teachers.create", body=upload)
    assert isinstance(teacher, models.RegisteredTeacher), teacher
    assert teacher.batch_norm_layers > 5

    plan = foreign.call("synthesis_jobs.create", body=models.SynthesisRequest(teacher=teacher.id), dry_run=True)
    assert plan.to_dict() == client.plan_synthesis_job({"teacher": teacher.id}).model_dump(mode="json"), (
        "it sent what nobody gave"
    )
    small = models.SynthesisRequest.from_dict({"teacher": teacher.id, **SYNTHESIS})
    job = foreign.call("synthesis_jobs.create", body=small)
    course = foreign.call("training_runs.create", body=models.TrainingRequest(dataset=job.id), dry_run=True)
    assert course.to_dict() == client.plan_training_run({"dataset": job.id}).model_dump(mode="json"), (
        "it sent what nobody gave"
    )
    asked = models.TrainingRequest.from_dict({"dataset": job.id, **TRAINING})
    run = foreign.call("training_runs.create", body=asked)
    assert (job.status, run.status) == ("queued", "blocked")

    def ended(name: str, identifier: str) -> Any:
        while (found := foreign.call(f"{name}.get", identifier, wait=30)).finished_at is None:
            assert isinstance(found, models.JobView), found
        assert found.status == "succeeded", found.error
        return found

    made = ended("synthesis_jobs", job.id).result["dataset"]
    dataset = foreign.call("datasets.get", made)
    assert (dataset.num_samples, len(dataset.shards)) == (80, 2)
    shard = foreign.call("datasets.files.get", made, dataset.shards[0].name).payload.read()
    assert sha256(shard).hexdigest() == dataset.shards[0].sha256
    assert {event.type_ for event in foreign.call("synthesis_jobs.events", job.id).data} >= {"status"}
    model = foreign.call("models.get", ended("training_runs", run.id).result["model"])
    assert model.dataset == made
    rows = foreign.call("training_runs.metrics", run.id).data
    assert [(row.epoch, row.stage) for row in rows] == [(1, 1), (2, 1), (3, 2)]
    refused = foreign.call("training_runs.cancel", run.id)
    assert (refused.status, refused.title) == (409, "The state of things forbids this")


def test_the_python_clients_page_runs_as_shown_but_for_its_size(
    client: Client, plain_teacher: tuple[TeacherSpec, Path], tmp_path: Path
) -> None:
    (snippet,) = (block for block in blocks(read("docs/client.md"), "python") if "create_teacher" in block)
    spec, weights = plain_teacher
    code = snippet.replace("http://127.0.0.1:8000", client.url)
    code = code.replace('Path("dearkd-data/demo/teacher.safetensors")', f"Path({str(weights)!r})")
    code = re.sub(r"TeacherSpec\(\n.*?\n\)", f"TeacherSpec.check({spec.model_dump()!r})", code, flags=re.DOTALL)
    code = code.replace("(teacher=teacher.id, seed=1)", f"(teacher=teacher.id, seed=1, **{SYNTHESIS!r})")
    code = code.replace("(dataset=job.id, seed=1)", f"(dataset=job.id, seed=1, **{TRAINING!r})")
    done = run_program(code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "succeeded 3 epochs" in done.stdout
    assert f"{weights.stat().st_size} of {weights.stat().st_size} bytes" in done.stdout
    assert "/images_per_klass unknown field 'images_per_klass'; did you mean 'images_per_class'?" in done.stdout
    assert {"model.safetensors", "config.json"} <= {path.name for path in tmp_path.iterdir()}
