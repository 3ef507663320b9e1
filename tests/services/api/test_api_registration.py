"""Registration of teachers and datasets: by a real worker, and case by case with its task called here."""

import hashlib
import json
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from dearkd.errors import Conflict, InvalidInput, Unavailable
from dearkd.identifiers import new_id
from dearkd.jobs.inspections import Inspections, Ticket, upload_key
from dearkd.jobs.ledger import Ledger
from dearkd.jobs.queue import require_worker
from dearkd.settings import Settings
from dearkd.specs import TeacherSpec
from tests.services.api.test_api_teachers import SPEC, form
from tests.support.api_contents import pointers, post_synthesis, shard
from tests.support.both_clients import WAYS, Way, connected
from tests.support.services import Api, database, environment, eventually, inspecting, serving, suspended

pytestmark = pytest.mark.services

DATASETS = "/v1/datasets"


def tensors(architecture: str) -> bytes:
    """Weights of one of timm's smallest models, untrained, as safetensors."""
    import dearkd.vision  # noqa: F401  # before timm: it makes torchvision importable

    import timm  # isort: skip
    from safetensors.torch import save

    model = timm.create_model(architecture, num_classes=10, in_chans=1)
    return save({name: tensor.contiguous() for name, tensor in model.state_dict().items()})


@dataclass(frozen=True)
class Inspector:
    """A real inspector: what it was started with, and its process."""

    settings: Settings
    folder: Path
    head: psutil.Process


@pytest.fixture(scope="module")
def inspector(redis_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Inspector]:
    """A real inspector."""
    folder = tmp_path_factory.mktemp("registration")
    settings = Settings(
        redis_url=database(redis_server, 1),
        storage_url=f"file://{folder}/storage",
        cache_dir=folder / "cache",
    )
    with inspecting(settings, folder) as head:
        yield Inspector(settings, folder, head)


@pytest.fixture(scope="module")
def served(inspector: Inspector) -> Iterator[tuple[Api, Api]]:
    """Two APIs on one Redis and storage, with a real inspector: a patient one, and one that waits for nothing."""
    hasty = inspector.settings.model_copy(update={"inspect_seconds": 0.001})
    with serving(inspector.settings, inspector.folder) as api, serving(hasty, inspector.folder) as hurried:
        eventually(lambda: _listens(api))
        yield api, hurried


def _listens(api: Api) -> bool:
    try:
        require_worker(api.store.redis, "inspect")
    except Unavailable:
        return False
    return True


def upload(api: Api, weights: bytes, **change: Any) -> httpx.Response:
    spec = SPEC | {"architecture": "test_resnet"} | change
    return api.http.post("/v1/teachers", **form(("teacher", None, json.dumps(spec)), ("weights", "w", weights)))


def put_shards(api: Api, prefix: str, tmp_path: Path, *shards: list[int], **options: Any) -> None:
    for i, labels in enumerate(shards):
        made = shard(tmp_path / prefix / f"part-{i}.tar", labels, **options)
        api.storage.put(f"{prefix}/{made.name}", tmp_path / prefix / made.name)


# --- with a real inspector --------------------------------------------------------------------------------------------


def test_a_teacher_is_registered(served: tuple[Api, Api]) -> None:
    api, _ = served
    weights = tensors("test_resnet")
    answer = upload(api, weights)
    assert answer.status_code == 201, answer.text
    teacher = answer.json()
    assert answer.headers["location"] == f"/v1/teachers/{teacher['id']}"
    assert api.http.get(answer.headers["location"]).json() == teacher
    assert [item["id"] for item in api.http.get("/v1/teachers").json()["data"]] == [teacher["id"]]
    assert teacher | SPEC | {"architecture": "test_resnet"} == teacher
    assert teacher["sha256"] == hashlib.sha256(weights).hexdigest()
    assert (teacher["bytes"], teacher["status"]) == (len(weights), "ready")
    assert teacher["parameters"] > 0
    assert teacher["batch_norm_layers"] > 0
    assert teacher["refused_input_sizes"] == []
    assert api.storage.read(f"teachers/{teacher['id']}/weights.safetensors") == weights
    assert list(api.storage.objects("tmp")) == []
    assert api.http.delete(answer.headers["location"]).status_code == 204
    assert list(api.storage.objects("teachers")) == []


@pytest.mark.parametrize("way", WAYS)
def test_the_clients_register_what_they_upload_and_what_lies_in_storage(
    served: tuple[Api, Api], tmp_path: Path, way: Way
) -> None:
    weights = tmp_path / "net.safetensors"
    weights.write_bytes(tensors("test_resnet"))
    spec = TeacherSpec.check(SPEC | {"architecture": "test_resnet"})
    told: list[int] = []
    for api in served:  # the second answers before the inspector has looked
        put_shards(api, f"real/{way}", tmp_path, [0, 1], [2])
        api.storage.put(f"nets/{way}.safetensors", weights)
        with connected(way, api.url) as client:
            made = client.create_teacher(spec, weights, on_progress=lambda done, _: told.append(done))
            assert made.spec == spec
            assert made.sha256 == hashlib.sha256(weights.read_bytes()).hexdigest()
            assert told[-1] == made.bytes
            placed = client.register_teacher(spec, f"nets/{way}.safetensors")
            assert (placed.sha256, placed.weights) == (made.sha256, f"nets/{way}.safetensors")
            dataset = client.create_dataset(f"real/{way}", "real", class_order="name")
            assert (dataset.num_samples, dataset.class_order) == (3, "name")
            wrong = spec.model_copy(update={"num_classes": 9})
            with pytest.raises(InvalidInput, match=r"fc\.weight") as refused:
                client.create_teacher(wrong, weights)
            assert [error.pointer for error in refused.value.errors] == ["/weights"]
            for teacher in (made, placed):
                client.delete_teacher(teacher.id)
            client.delete_dataset(dataset.id)


def test_a_teacher_whose_weights_do_not_fit_is_refused(served: tuple[Api, Api]) -> None:
    api, _ = served
    refused = upload(api, tensors("test_resnet"), num_classes=9)
    assert (refused.status_code, pointers(refused)) == (422, ["/weights"])
    assert "fc.weight" in refused.json()["detail"]
    for prefix in ("tmp", "teachers"):
        assert list(api.storage.objects(prefix)) == []


def test_what_takes_longer_is_answered_with_202_and_can_be_watched(
    served: tuple[Api, Api], inspector: Inspector, tmp_path: Path
) -> None:
    _, api = served
    put_shards(api, "real/set", tmp_path, [0, 1], [2])
    with suspended(inspector.head):
        answer = api.http.post(DATASETS, json={"prefix": "real/set/", "name": "real"})
    assert (answer.status_code, answer.json()) == (202, {"id": answer.json()["id"], "status": "registering"})
    path = answer.headers["location"]
    assert path == f"{DATASETS}/{answer.json()['id']}"
    eventually(lambda: api.http.get(path).json()["status"] != "registering")
    dataset = api.http.get(path).json()
    assert (dataset["status"], dataset["num_samples"], dataset["name"]) == ("ready", 3, "real")


# --- case by case, without a worker -----------------------------------------------------------------------------------


@pytest.fixture
def inspected(api: Api, monkeypatch: pytest.MonkeyPatch) -> Inspections:
    """Inspections whose tickets are for `inspect` here."""
    for name, value in environment(api.settings).items():
        if name.startswith("DEARKD_"):
            monkeypatch.setenv(name, value)
    return Inspections(api.store.redis, api.storage)


def inspect(inspections: Inspections, identifier: str, **request: Any) -> Ticket:
    from dearkd.vision import inspector as inspection

    inspections.open(Ticket(id=identifier, request=request))
    inspection.inspect(identifier)
    ticket = inspections.get(identifier)
    assert ticket is not None
    return ticket


def refusal(inspections: Inspections, prefix: str) -> InvalidInput:
    identifier = new_id("ds")
    error = inspect(inspections, identifier, prefix=prefix, name=None).refusal
    assert error is not None
    assert isinstance(error.error, InvalidInput)
    assert [field.pointer for field in error.error.errors] == ["/prefix"]
    assert list(inspections.storage.objects(f"datasets/{identifier}")) == []
    return error.error


def test_a_teacher_without_batch_norm_is_refused_and_nothing_of_it_stays(api: Api, inspected: Inspections) -> None:
    weights = tensors("test_vit")
    identifier = new_id("tch")
    api.storage.put(upload_key(identifier), weights)
    sha256 = hashlib.sha256(weights).hexdigest()
    spec = SPEC | {"architecture": "test_vit", "image_size": 160}
    inspect(inspected, identifier, spec=spec, sha256=sha256, bytes=len(weights))
    shown = api.http.get(f"/v1/teachers/{identifier}").json()
    assert (shown["id"], shown["status"]) == (identifier, "failed")
    assert (shown["error"]["code"], shown["error"]["retryable"]) == ("no_batch_norm", False)
    assert [error["pointer"] for error in shown["error"]["errors"]] == ["/architecture"]
    assert api.http.delete(f"/v1/teachers/{identifier}").status_code == 404
    for prefix in ("tmp", "teachers"):
        assert list(api.storage.objects(prefix)) == []


def test_what_is_being_registered_can_be_looked_at_and_not_used(
    api: Api, inspected: Inspections, tmp_path: Path
) -> None:
    identifier = new_id("ds")
    prefix = f"datasets/{identifier}"
    put_shards(api, prefix, tmp_path, [0, 1])
    ticket = Ticket(id=identifier, request={"prefix": prefix, "name": None})
    inspected.open(ticket)
    path = f"{DATASETS}/{identifier}"
    assert api.http.get(path).json() == {"id": identifier, "status": "registering"}
    assert api.http.get(DATASETS).json()["data"] == []
    assert api.http.delete(path).json()["code"] == "in_use"
    run = api.http.post("/v1/training-runs", json={"dataset": identifier})
    assert (run.status_code, pointers(run)) == (422, ["/dataset"])
    with pytest.raises(Conflict, match="already"):
        inspected.open(ticket)


def test_a_registered_dataset_says_what_is_in_its_shards(api: Api, inspected: Inspections, tmp_path: Path) -> None:
    put_shards(api, "real/set", tmp_path, [0, 0, 2], [2, 5])
    identifier = new_id("ds")
    assert inspect(inspected, identifier, prefix="real/set", name="real").state == "ready"
    dataset = api.http.get(f"{DATASETS}/{identifier}").json()
    assert (dataset["num_samples"], dataset["num_classes"], dataset["image_size"], dataset["in_chans"]) == (5, 6, 8, 1)
    assert [c["samples"] for c in dataset["classes"]] == [2, 0, 2, 0, 0, 1]
    assert [s["name"] for s in dataset["shards"]] == ["part-0.tar", "part-1.tar"]
    for made in dataset["shards"]:
        assert made["sha256"] == hashlib.sha256(api.storage.read(f"real/set/{made['name']}")).hexdigest()
        served = api.http.get(f"{DATASETS}/{identifier}/files/{made['name']}")
        assert len(served.content) == made["bytes"]
    info = api.http.get(f"{DATASETS}/{identifier}/files/_info.json").json()["splits"]["train"]
    assert (info["filenames"], info["shard_lengths"]) == (["part-0.tar", "part-1.tar"], [3, 2])
    assert api.http.delete(f"{DATASETS}/{identifier}").status_code == 204
    assert list(api.storage.objects("datasets")) == []
    assert len(list(api.storage.objects("real/set"))) == 2, "what lay there before stays"


def test_names_of_classes_and_shards_come_from_the_files_beside_them(
    api: Api, inspected: Inspections, tmp_path: Path
) -> None:
    put_shards(api, "real/set", tmp_path, [0, 1], [1])
    info = {"splits": {"train": {"name": "train", "num_samples": 1, "filenames": ["part-1.tar"], "shard_lengths": [1]}}}
    api.storage.put("real/set/_info.json", json.dumps(info).encode())
    api.storage.put("real/set/class_names.json", b'["cat", "dog", "emu"]')
    identifier = new_id("ds")
    inspect(inspected, identifier, prefix="real/set", name=None)
    dataset = api.http.get(f"{DATASETS}/{identifier}").json()
    assert [(c["name"], c["samples"]) for c in dataset["classes"]] == [("cat", 0), ("dog", 1), ("emu", 0)]
    assert [s["name"] for s in dataset["shards"]] == ["part-1.tar"]
    assert api.http.get(f"{DATASETS}/{identifier}/files/_info.json").json() == info
    assert api.http.get(f"{DATASETS}/{identifier}/files/part-0.tar").status_code == 404


def test_a_dataset_in_its_own_place_keeps_its_id_and_goes_whole(
    api: Api, inspected: Inspections, tmp_path: Path
) -> None:
    identifier = new_id("ds")
    prefix = f"datasets/{identifier}"
    put_shards(api, prefix, tmp_path, [0, 1], size=16)
    inspect(inspected, identifier, prefix=prefix, name=None)
    again = api.http.post(DATASETS, json={"prefix": prefix})
    assert (again.status_code, again.json()["code"]) == (409, "already_registered")
    assert api.http.delete(f"{DATASETS}/{identifier}").status_code == 204
    assert list(api.storage.objects("datasets")) == []


def test_shards_that_are_not_as_they_must_be_are_named(api: Api, inspected: Inspections, tmp_path: Path) -> None:
    put_shards(api, "cut", tmp_path, [0, 1], [2])
    whole = api.storage.read("cut/part-1.tar")
    api.storage.put("cut/part-1.tar", whole[:2000])
    assert "part-1.tar" in refusal(inspected, "cut").message

    put_shards(api, "labels", tmp_path, [0, 3])
    api.storage.put("labels/class_names.json", b'["a", "b"]')
    assert "label 3" in refusal(inspected, "labels").message
    api.storage.put("labels/class_names.json", b'{"a": 1}')
    assert "class_names.json" in refusal(inspected, "labels").message

    put_shards(api, "counts", tmp_path, [0, 1])
    split = {"name": "train", "num_samples": 999, "filenames": ["part-0.tar"], "shard_lengths": [999]}
    api.storage.put("counts/_info.json", json.dumps({"splits": {"train": split}}).encode())
    assert "part-0.tar holds 999 samples, but it holds 2" in refusal(inspected, "counts").message

    put_shards(api, "splits", tmp_path, [0], [1])
    split = {"num_samples": 1, "filenames": ["part-0.tar"], "shard_lengths": [1]}
    api.storage.put("splits/_info.json", json.dumps({"splits": {"train": split, "test": split}}).encode())
    answer = api.http.post(DATASETS, json={"prefix": "splits"})
    assert (answer.status_code, pointers(answer)) == (422, ["/prefix"])
    assert "2 splits (train, test)" in answer.json()["detail"]

    put_shards(api, "far", tmp_path, [0, 10**7])
    assert "label 10000000" in refusal(inspected, "far").message


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, ["/prefix"]),
        ({"prefix": 3, "bogus": 1}, ["/prefix", "/bogus"]),
        ({"prefix": "a", "name": ""}, ["/name"]),
        ({"prefix": ""}, ["/prefix"]),
        ({"prefix": "/etc"}, ["/prefix"]),
        ({"prefix": "../outside"}, ["/prefix"]),
        ({"prefix": "a//b"}, ["/prefix"]),
        ({"prefix": "s3://bucket/x"}, ["/prefix"]),
        ({"prefix": "teachers/x"}, ["/prefix"]),
        ({"prefix": "tmp"}, ["/prefix"]),
        ({"prefix": "datasets"}, ["/prefix"]),
        ({"prefix": "datasets/ds-00000000000-00000000/inside"}, ["/prefix"]),
        ({"prefix": "nothing/here"}, ["/prefix"]),
    ],
)
def test_bad_registrations_are_refused_at_once(api: Api, body: dict[str, Any], expected: list[str]) -> None:
    answer = api.http.post(DATASETS, json=body)
    assert (answer.status_code, set(pointers(answer))) == (422, set(expected))


def test_shards_that_need_an_inspector_or_belong_to_a_job(api: Api, tmp_path: Path) -> None:
    put_shards(api, "real", tmp_path, [0])
    answer = api.http.post(DATASETS, json={"prefix": "real", "name": "x"})
    assert (answer.status_code, answer.json()["code"]) == (503, "inspector_unavailable")
    job = post_synthesis(api)["id"]
    made = f"datasets/ds-{job.partition('-')[2]}"
    put_shards(api, made, tmp_path, [0])
    assert api.http.post(DATASETS, json={"prefix": made}).status_code == 409


def test_a_registration_whose_inspector_died_has_failed_and_its_upload_is_gone(
    api: Api, inspected: Inspections
) -> None:
    ticket = Ticket(id=new_id("tch"), request={})
    api.storage.put(upload_key(ticket.id), b"weights")
    inspected.open(ticket)
    with inspected.inspecting(ticket, api.settings):
        held = inspected.get(ticket.id)
        assert held is not None
        assert held.state == "inspecting"
    inspected.redis.delete(f"dearkd:inspection:{ticket.id}:beat")  # as it would run out by itself
    shown = api.http.get(f"/v1/teachers/{ticket.id}").json()
    assert (shown["status"], shown["error"]["code"], shown["error"]["retryable"]) == ("failed", "worker_died", True)
    assert list(api.storage.objects("tmp")) == []


def test_an_inspector_that_is_asked_to_end_answers_and_leaves_nothing(
    api: Api, inspected: Inspections, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dearkd.vision import inspector as inspection

    identifier = new_id("tch")
    api.storage.put(upload_key(identifier), b"weights")

    def asked_to_end(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(60)

    monkeypatch.setattr(inspection, "register_teacher", asked_to_end)
    ticket = inspect(inspected, identifier)
    assert ticket.refusal is not None
    assert isinstance(ticket.refusal.error, Unavailable)
    assert list(api.storage.objects("tmp")) == []
    assert Ledger(api.store).claim("synthesis", 1) is None
