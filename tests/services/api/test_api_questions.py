"""Questions that the inspector answers: a teacher's check on a dataset, a model's prediction for an image."""

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from dearkd.client import Client
from dearkd.data.shard_files import Sample, write_shard
from dearkd.identifiers import new_id
from dearkd.settings import Settings
from dearkd.specs import TeacherSpec
from dearkd.specs.recipes import native_student
from dearkd.storage.catalog import describe_file
from tests.support.api_contents import png, pointers, put_dataset, put_model, put_teacher
from tests.support.pages import HTML, forms, get
from tests.support.services import Api, database, eventually, inspecting, serving

pytestmark = pytest.mark.services

CLASSES = 10
SHOWN = 60
KEY = "a-key-of-a-user-0123456789"


@pytest.fixture(scope="module")
def served(redis_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """An API with a real inspector."""
    folder = tmp_path_factory.mktemp("questions")
    settings = Settings(
        redis_url=database(redis_server, 3), storage_url=f"file://{folder}/storage", cache_dir=folder / "cache"
    )
    with inspecting(settings, folder), serving(settings, folder) as api:
        eventually(lambda: api.http.get("/readyz").json().get("workers", {}).get("inspect"))
        yield api


@pytest.fixture(scope="module")
def digits(served: Api, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A registered dataset of held-out digits in two shards."""
    from dearkd_trainer.demo.digits import real_digits

    held_out, folder = real_digits()[1], tmp_path_factory.mktemp("digits")
    for number, places in enumerate((range(SHOWN // 2), range(SHOWN // 2, SHOWN))):
        samples = (
            Sample(f"{i:05d}", as_png(held_out.images[i]), "png", label, {"label": label})
            for i in places
            for label in [int(held_out.labels[i])]
        )
        write_shard(folder / f"{number}.tar", samples)
        served.storage.put(f"real/digits/{number}.tar", folder / f"{number}.tar")
    answer = served.http.post("/v1/datasets", json={"prefix": "real/digits", "name": "held out"})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def as_png(image: torch.Tensor) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image[0].numpy()).save(file, "PNG")
    return file.getvalue()


def upload(api: Api, spec: TeacherSpec, weights: Path) -> str:
    about = (None, json.dumps(spec.model_dump()).encode(), "application/json")
    answer = api.http.post("/v1/teachers", files={"teacher": about, "weights": ("w", weights.read_bytes())})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def checked(api: Api, teacher: str, **body: object) -> dict[str, Any]:
    answer = api.http.post(f"/v1/teachers/{teacher}/checks", json=body)
    assert answer.status_code == 202, answer.text
    place = answer.headers["location"]
    assert place == f"/v1/teachers/{teacher}/checks/{answer.json()['id']}"
    assert answer.json()["status"] in ("queued", "running")
    assert answer.json()["error"] is None
    eventually(lambda: api.http.get(place).json()["status"] not in ("queued", "running"))
    found: dict[str, Any] = api.http.get(place).json()
    return found


def logits_of(spec: TeacherSpec, weights: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Answers to the digits by timm alone, and their labels."""
    import dearkd.vision  # noqa: F401  # before timm: it makes torchvision importable

    import timm  # isort: skip
    from safetensors.torch import load_file

    from dearkd_trainer.demo.digits import real_digits

    held_out = real_digits()[1]
    model = timm.create_model(spec.architecture, num_classes=CLASSES, in_chans=1, **spec.model_args)
    model.load_state_dict(load_file(weights))
    pixels = held_out.images[:SHOWN].float() / 255
    with torch.no_grad():
        return model.eval()((pixels - spec.mean[0]) / spec.std[0]), held_out.labels[:SHOWN]


# --- a teacher's check ------------------------------------------------------------------------------------------------


def test_a_check_has_the_figures_of_timm_alone(
    served: Api, digits: str, digits_teacher: tuple[TeacherSpec, Path]
) -> None:
    spec, weights = digits_teacher
    check = checked(served, upload(served, spec, weights), dataset=digits)
    assert (check["status"], check["dataset"], check["images"]) == ("succeeded", digits, SHOWN)
    logits, labels = logits_of(spec, weights)
    ranked = logits.argsort(1, descending=True)[:, :5] == labels[:, None]
    assert check["top1"] == pytest.approx(ranked[:, 0].double().mean().item())
    assert check["top5"] == pytest.approx(ranked.any(1).double().mean().item())
    assert check["mean_confidence"] == pytest.approx(logits.softmax(1).amax(1).mean().item(), rel=1e-3)
    assert 0 < check["expected_calibration_error"] < 1
    for row in check["classes"]:
        mine = labels == row["index"]
        assert row["images"] == int(mine.sum())
        assert row["top1"] == pytest.approx(ranked[mine, 0].double().mean().item())
    assert check["diagnosis"]["together"] == []


def test_a_check_says_what_would_explain_a_low_figure(
    served: Api, digits: str, digits_teacher: tuple[TeacherSpec, Path]
) -> None:
    spec, weights = digits_teacher
    wrong = spec.model_copy(update={"mean": [1.0], "std": [0.05]})
    check = checked(served, upload(served, wrong, weights), dataset=digits, images=50)
    assert check["images"] == 50
    with Client(served.url) as client:
        again = client.check_teacher(check["teacher"], digits, images=50)
    shown = again.model_dump(mode="json", exclude_unset=True)
    assert shown == check | {name: shown[name] for name in ("id", "created_at")}
    right = logits_of(spec, weights)
    assert check["top1"] < (right[0].argmax(1) == right[1]).double().mean() - 0.2
    assert [trial["kind"] for trial in check["diagnosis"]["together"]] == ["normalisation"]


def test_a_check_that_cannot_be_is_refused_and_one_that_fails_says_why(
    served: Api, digits: str, plain_teacher: tuple[TeacherSpec, Path], tmp_path: Path
) -> None:
    teacher = upload(served, *plain_teacher)
    here = f"/v1/teachers/{teacher}/checks"
    for body, wrong in [
        ({}, "/dataset"),
        ({"dataset": new_id("ds")}, "/dataset"),
        ({"dataset": put_dataset(served, tmp_path, num_classes=4)}, "/dataset"),
        ({"dataset": digits, "images": 0}, "/images"),
        ({"dataset": digits, "pictures": 3}, "/pictures"),
    ]:
        answer = served.http.post(here, json=body)
        assert (answer.status_code, pointers(answer)) == (422, [wrong]), answer.text
    assert served.http.post(f"/v1/teachers/{new_id('tch')}/checks", json={"dataset": digits}).status_code == 404
    for check in (new_id("chk"), new_id("run"), "x"):
        assert served.http.get(f"{here}/{check}").status_code == 404
    lost = put_dataset(served, tmp_path / "lost")
    served.storage.delete(f"datasets/{lost}/train-000000.tar")
    failed = checked(served, teacher, dataset=lost)
    assert (failed["status"], failed.get("top1")) == ("failed", None)
    assert "gone from storage" in failed["error"]["message"]
    assert served.http.get(f"/v1/teachers/{put_teacher(served)}/checks/{failed['id']}").status_code == 404


# --- a model's prediction ---------------------------------------------------------------------------------------------


def store_student(api: Api, folder: Path, *, teacher: str | None) -> tuple[str, torch.nn.Module]:
    from dearkd.specs import Task
    from dearkd_trainer.model.export import model_config, save_model
    from dearkd_trainer.model.student import create_student

    spec = native_student("dearkd_micro_patch8_32", drop_path_rate=0.0, distilled=False)
    names = [f"digit {n}" for n in range(CLASSES)]
    task = Task(num_classes=CLASSES, in_chans=1, image_size=32, mean=[0.3], std=[0.4], class_names=names)
    torch.manual_seed(0)
    student = create_student(spec, num_classes=CLASSES, in_chans=1).eval()
    save_model(folder, student, model_config(spec, student, task))
    files = [folder / "config.json", folder / "model.safetensors"]
    identifier = put_model(api, teacher=teacher, files=[describe_file(path) for path in files])
    for path in files:
        api.storage.put(f"models/{identifier}/{path.name}", path)
    return identifier, student


def predict(api: Api, model: str, image: bytes, kind: str = "image/png") -> httpx.Response:
    return api.http.post(f"/v1/models/{model}/predict", content=image, headers={"content-type": kind})


def assert_is(answer: list[dict[str, Any]], logits: torch.Tensor, names: list[str]) -> None:
    probabilities = logits.softmax(0)
    order = probabilities.argsort(descending=True)[:5].tolist()
    assert [(row["class"], row["name"]) for row in answer] == [(index, names[index]) for index in order]
    assert [row["probability"] for row in answer] == pytest.approx(probabilities[order].tolist(), rel=1e-3)


def test_an_image_gets_the_students_and_the_teachers_answer(
    served: Api, digits_teacher: tuple[TeacherSpec, Path], tmp_path: Path
) -> None:
    from dearkd_trainer.demo.digits import real_digits

    spec, weights = digits_teacher
    teacher = upload(served, spec, weights)
    model, student = store_student(served, tmp_path, teacher=teacher)
    image = real_digits()[1].images[0]
    found = predict(served, model, as_png(image))
    assert found.status_code == 200, found.text
    pixels = image[None].float() / 255
    with torch.no_grad():
        assert_is(found.json()["student"], student((pixels - 0.3) / 0.4)[0], [f"digit {n}" for n in range(CLASSES)])
    names = spec.class_names or [f"digit {n}" for n in range(CLASSES)]
    assert_is(found.json()["teacher"], logits_of(spec, weights)[0][0], names)
    assert list(served.storage.objects("tmp")) == []
    assert "attention" not in found.json()
    looked = served.http.post(
        f"/v1/models/{model}/predict?attention=true", content=as_png(image), headers={"content-type": "image/png"}
    ).json()
    shares = torch.tensor(looked["attention"]["shares"])
    torch.testing.assert_close(shares[None], student.attention_maps((pixels - 0.3) / 0.4), rtol=1e-4, atol=1e-6)
    kind, _, encoded = looked["attention"]["overlay"].partition(",")
    with Image.open(io.BytesIO(base64.b64decode(encoded))) as overlay:
        assert (kind, overlay.format, overlay.size) == ("data:image/png;base64", "PNG", (224, 224))
        coarse = torch.from_numpy(np.array(overlay.resize(shares.T.shape, Image.Resampling.BOX))).float()
    warmth = (coarse[..., 0] - coarse[..., 2]).flatten()
    assert torch.corrcoef(torch.stack([warmth, shares.flatten()]))[0, 1] > 0.9
    # In colour, larger, as JPEG, and of a type that says nothing: it is the bytes that count.
    large = Image.fromarray(image[0].numpy()).convert("RGB").resize((96, 64))
    file = io.BytesIO()
    large.save(file, "JPEG")
    again = predict(served, model, file.getvalue(), "application/octet-stream")
    assert (again.status_code, len(again.json()["student"])) == (200, 5)
    page = get(served, f"/models/{model}")
    (form,) = forms(page.text, f"/models/{model}/predict")
    asked = served.http.post(f"/models/{model}/predict", data=form, files={"image": as_png(image)}, headers=HTML)
    assert asked.status_code == 200
    best = found.json()["student"][0], found.json()["teacher"][0]
    assert all(f"<td>{100 * one['probability']:.1f} %" in asked.text for one in best)
    assert looked["attention"]["overlay"] in asked.text
    assert served.http.delete(f"/v1/teachers/{teacher}").status_code == 204
    alone = predict(served, model, as_png(image)).json()
    assert (alone["student"], alone["teacher"]) == (found.json()["student"], None)
    with Client(served.url) as client:
        assert client.predict(model, as_png(image)).model_dump(by_alias=True) == alone | {"attention": None}
        answer = client.predict(model, as_png(image), attention=True)
        assert answer.attention is not None
        assert answer.attention.model_dump() == looked["attention"]


def test_what_is_no_image_is_refused_and_leaves_nothing(served: Api, tmp_path: Path) -> None:
    model, _ = store_student(served, tmp_path, teacher=None)
    for body, code in [(b"", "no_image"), (b"GIF89a but no more", "no_image"), (b"%PDF-1.7", "no_image")]:
        answer = predict(served, model, body)
        assert (answer.status_code, answer.json()["code"]) == (422, code), answer.text
        assert str(served.settings.storage_url) not in answer.text
    truncated = predict(served, model, png(64)[:60])
    assert (truncated.status_code, truncated.json()["code"]) == (422, "no_image")
    for kind in ("application/json", "text/plain", "multipart/form-data; boundary=x", ""):
        answer = predict(served, model, png(), kind)
        assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type"), kind
        assert "image/png" in answer.json()["detail"]
    assert predict(served, new_id("mdl"), png()).status_code == 404
    assert predict(served, "x", png()).status_code == 404
    too_large = predict(served, model, b"\0" * (64 * 2**20 + 1))
    assert too_large.status_code == 413
    empty = put_model(served)  # a manifest that names no weights
    answer = predict(served, empty, png())
    assert (answer.status_code, answer.json()["code"]) == (500, "corrupt_data"), answer.text
    assert list(served.storage.objects("tmp")) == []
    assert served.store.redis.keys("dearkd:inspection:prd-*") == []


def test_without_an_inspector_both_are_told_to_come_later(api: Api, tmp_path: Path) -> None:
    teacher, dataset, model = put_teacher(api), put_dataset(api, tmp_path), put_model(api)
    for answer in (
        api.http.post(f"/v1/teachers/{teacher}/checks", json={"dataset": dataset}),
        predict(api, model, png()),
    ):
        assert (answer.status_code, answer.json()["code"]) == (503, "inspector_unavailable")
        assert "retry-after" in answer.headers
    assert api.store.redis.keys("dearkd:inspection*") == []


def test_a_prediction_that_the_inspector_does_not_come_to_is_withdrawn(
    redis_server: str, tmp_path: Path, plain_teacher: tuple[TeacherSpec, Path]
) -> None:
    settings = Settings(
        redis_url=database(redis_server, 4),
        storage_url=f"file://{tmp_path}/storage",
        cache_dir=tmp_path / "cache",
        inspect_seconds=0.001,
        api_keys=f"{KEY},another-{KEY}",
    )
    with inspecting(settings, tmp_path), serving(settings, tmp_path) as api:
        api.http.headers["authorization"] = f"Bearer {KEY}"
        eventually(lambda: api.http.get("/readyz").json().get("workers", {}).get("inspect"))
        model, _ = store_student(api, tmp_path / "model", teacher=None)
        answer = predict(api, model, png())
        assert (answer.status_code, answer.json()["code"]) == (503, "inspector_busy")
        eventually(lambda: not api.store.redis.keys("dearkd:inspection:prd-*"))
        assert list(api.storage.objects("tmp")) == []
        # What one key asks, another does not see.
        teacher = put_teacher(api)
        asked = api.http.post(f"/v1/teachers/{teacher}/checks", json={"dataset": put_dataset(api, tmp_path)})
        place = asked.headers["location"]
        assert api.http.get(place).status_code == 200
        assert api.http.get(place, headers={"authorization": f"Bearer another-{KEY}"}).status_code == 404
