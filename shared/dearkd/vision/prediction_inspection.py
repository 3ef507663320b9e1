"""A model's prediction for one image, as the inspector answers it, and its teacher's beside it."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import typer
from torch import Tensor, nn

from dearkd.errors import InvalidInput, NotFound
from dearkd.jobs.inspections import Ticket, upload_key
from dearkd.storage.catalog import Model, fetch_weights, models, teachers
from dearkd.storage.file_cache import FileCache
from dearkd.storage.objects import Storage
from dearkd.vision.attention_overlay import attention_overlay
from dearkd.vision.image_sample import fitted, read_image
from dearkd.vision.prediction import Classifier
from dearkd.vision.students import load_student
from dearkd.vision.teachers import load_teacher

CPU = torch.device("cpu")


def answer_prediction(ticket: Ticket, storage: Storage, cache: FileCache, folder: Path) -> dict[str, Any]:
    """The best classes of an uploaded image: `student`, and `teacher`, which is null where that is gone.

    Where it is asked for also `attention`: `shares` of the student's patches in its answer, which sum to 1, and
    `overlay`, the image with them over it as a data URL; null where the student has no attention.

    The image is fitted as `dearkd evaluate` does it for the student, and for the teacher to its image size.

    Args:
        ticket: its request holds `model`, and may hold `attention`.
        storage: holds the image, the model and the teacher.
        cache: for verified copies.
        folder: for the image.

    Raises:
        InvalidInput: if that is no image.
        NotFound: if the model was deleted meanwhile.
        CorruptData: if stored files are not what their manifests say.
    """
    path = folder / "image"
    storage.download(upload_key(ticket.id), path)
    model = models(storage).get(ticket.request["model"])
    student = load_student(storage, model, cache)
    about = student.config.pretrained_cfg
    chans, size, _ = about.input_size
    pixels = fitted(_read(path, chans), size, about.crop_pct)
    network = Classifier(student.network, about.mean, about.std, student.config.class_names, CPU)
    answer: dict[str, Any] = {
        "student": network.answers(pixels[None])[0],
        "teacher": _teacher_answers(model, student.config.class_names, storage, cache, path),
    }
    if ticket.request.get("attention"):
        answer["attention"] = _attention(student.network, network.inputs(pixels[None]), pixels)
    return answer


def _attention(student: nn.Module, inputs: Tensor, pixels: Tensor) -> dict[str, Any] | None:
    """The places where a student looked; None where it cannot tell."""
    attention_maps = getattr(student, "attention_maps", None)
    maps: Tensor | None = attention_maps(inputs) if attention_maps is not None else None
    if maps is None:
        return None
    overlay = base64.b64encode(attention_overlay(pixels, maps[0])).decode()
    return {"shares": maps[0].tolist(), "overlay": f"data:image/png;base64,{overlay}"}


def _teacher_answers(
    model: Model, class_names: Sequence[str], storage: Storage, cache: FileCache, path: Path
) -> list[dict[str, Any]] | None:
    if model.teacher is None:
        return None
    try:
        teacher = teachers(storage).get(model.teacher)
        weights = fetch_weights(storage, teacher, cache)
    except NotFound:
        return None
    spec = teacher.spec
    names: Sequence[str] = spec.class_names or [str(label) for label in range(spec.num_classes)]
    if spec.class_names is None and spec.num_classes == len(class_names):
        names = class_names
    pixels = fitted(_read(path, spec.in_chans), spec.image_size)
    return Classifier(load_teacher(spec, weights, CPU), spec.mean, spec.std, names, CPU).answers(pixels[None])[0]


def _read(path: Path, in_chans: Literal[1, 3]) -> Tensor:
    try:
        image = read_image(path, in_chans)
    except typer.BadParameter as error:
        raise InvalidInput.at("", error.message.replace(str(path), "the image"), code="no_image") from None
    if image is None:
        raise InvalidInput.at(
            "", "the body is no image: send the bytes of a PNG, WebP, JPEG, GIF, BMP or TIFF file", code="no_image"
        )
    return image
