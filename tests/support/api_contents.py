"""Things in storage and Redis, made by the same code that workers use."""

import hashlib
import io
import json
import socket
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from PIL import Image
from pydantic import BaseModel

from dearkd.data.manifests import DatasetManifest, count_classes, datasets
from dearkd.data.shard_files import Sample, Shard, write_shard
from dearkd.data.shard_info import info_json
from dearkd.identifiers import new_id
from dearkd.jobs.ledger import Claim, Ledger
from dearkd.storage.catalog import Model, StoredFile, Teacher, models, teachers
from tests.support.services import Api

Json = dict[str, Any]


class Payload(BaseModel):
    """What a worker says of a shard that is done."""

    samples: int


def put_teacher(
    api: Api,
    *,
    num_classes: int = 10,
    in_chans: int = 1,
    image_size: int = 32,
    class_names: list[str] | None = None,
    refused_input_sizes: Sequence[int] = (),
    owner: str | None = None,
    name: str = "t",
) -> str:
    teacher = Teacher(
        owner=owner,
        id=new_id("tch"),
        created_at=datetime.now(UTC),
        name=name,
        architecture="resnet10t",
        model_args={},
        num_classes=num_classes,
        in_chans=in_chans,
        image_size=image_size,
        mean=[0.5] * in_chans,
        std=[0.5] * in_chans,
        class_names=class_names,
        sha256="0" * 64,
        bytes=3,
        parameters=1,
        batch_norm_layers=1,
        refused_input_sizes=[*refused_input_sizes],
    )
    catalog = teachers(api.storage)
    api.storage.put(catalog.key(teacher.id, "weights.safetensors"), b"abc")
    catalog.create(teacher)
    return teacher.id


def png(size: int = 8, mode: str = "L", shade: int = 0) -> bytes:
    file = io.BytesIO()
    Image.new(mode, (size, size), shade if mode == "L" else (shade, shade, shade)).save(file, "PNG")
    return file.getvalue()


def shard(path: Path, labels: list[int], *, size: int = 8, mode: str = "L") -> Shard:
    """A real shard of one plain image for each label."""
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = (Sample(f"{i:05d}", png(size, mode, i), "png", label, {"label": label}) for i, label in enumerate(labels))
    return write_shard(path, samples)


def put_dataset(
    api: Api,
    tmp_path: Path,
    *,
    num_classes: int = 10,
    images: int = 400,
    in_chans: int = 1,
    class_names: list[str] | None = None,
    **fields: Any,
) -> str:
    """A finished dataset of one real shard."""
    made = shard(tmp_path / "train-000000.tar", [i % num_classes for i in range(images)])
    identifier = fields.pop("id", None) or new_id("ds")
    catalog = datasets(api.storage)
    api.storage.put(catalog.key(identifier, made.name), tmp_path / made.name)
    api.storage.put(catalog.key(identifier, "_info.json"), info_json([made]))
    manifest = DatasetManifest(
        id=identifier,
        created_at=datetime.now(UTC),
        num_samples=images,
        num_classes=num_classes,
        image_size=32,
        in_chans=in_chans,
        classes=count_classes([made], class_names, num_classes),
        shards=[made],
        prefix=f"datasets/{identifier}",
        **fields,
    )
    catalog.create(manifest)
    return identifier


def put_model(api: Api, **fields: Any) -> str:
    identifier = fields.pop("id", None) or new_id("mdl")
    catalog = models(api.storage)
    api.storage.put(catalog.key(identifier, "config.json"), b"{}")
    catalog.create(
        Model(
            id=identifier,
            created_at=datetime.now(UTC),
            architecture="dearkd_micro_patch8_32",
            num_classes=10,
            in_chans=fields.pop("in_chans", 1),
            image_size=32,
            dataset=fields.pop("dataset", None) or new_id("ds"),
            run=fields.pop("run", None) or new_id("run"),
            spec=fields.pop("spec", {}),
            files=fields.pop("files", None)
            or [StoredFile(name="config.json", bytes=2, sha256=hashlib.sha256(b"{}").hexdigest())],
            **fields,
        )
    )
    return identifier


def post_synthesis(api: Api, **spec: Any) -> Json:
    """A synthesis job of 20 images in two shards, unless said otherwise."""
    body = {"teacher": spec.pop("teacher", None) or put_teacher(api), "images_per_class": 2, "shard_samples": 10} | spec
    answer = api.http.post("/v1/synthesis-jobs", json=body)
    assert answer.status_code == 202, answer.text
    job: Json = answer.json()
    return job


def claim(api: Api, kind: str = "synthesis") -> Claim:
    found = Ledger(api.store).claim(kind, 600)
    assert found is not None
    return found


def finish_synthesis(api: Api, job: Json, tmp_path: Path) -> str:
    """What workers would do: every shard, then the manifest, then the end. Returns the dataset's id."""
    ledger = Ledger(api.store)
    shards = -(-job["progress"]["total"] // job["spec"]["shard_samples"])
    for _ in range(shards):
        ledger.done(claim(api), Payload(samples=10))
    last = claim(api)
    identifier = f"ds-{job['id'].partition('-')[2]}"
    put_dataset(api, tmp_path, id=identifier, images=400, teacher=job["spec"]["teacher"], spec=job["spec"])
    ledger.complete(last, {"dataset": identifier})
    return identifier


def pointers(answer: httpx.Response) -> list[str]:
    """The pointers of a problem document, after checking that it is one."""
    document = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert {"type", "title", "status", "detail", "code", "errors"} <= document.keys()
    assert document["status"] == answer.status_code
    assert all(error.keys() == {"pointer", "detail"} for error in document["errors"])
    return [error["pointer"] for error in document["errors"]]


def ask(api: Api, line: str, *headers: str) -> socket.socket:
    """A request whose body never comes; returns once the server looks for it, and so is at work on the request."""
    connection = socket.create_connection(("127.0.0.1", httpx.URL(api.url).port or 0), timeout=60)
    head = [f"{line} HTTP/1.1", "host: localhost", "connection: close", "content-length: 100", "expect: 100-continue"]
    connection.sendall("\r\n".join([*head, *headers, "", ""]).encode())
    assert connection.recv(1000).startswith(b"HTTP/1.1 100")
    return connection


def answer_of(connection: socket.socket) -> Json:
    """What came until the server closed the connection."""
    with connection, connection.makefile("rb") as received:
        document: Json = json.loads(received.read().partition(b"\r\n\r\n")[2])
    return document
