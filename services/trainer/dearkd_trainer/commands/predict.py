"""The work of `dearkd predict`."""

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import typer
from torch import Tensor

from dearkd.cli.output import connect, note, print_json, print_table
from dearkd.cli.teacher_source import registered_teacher
from dearkd.errors import DearKDError, InvalidInput
from dearkd.names import printable
from dearkd.settings import Settings
from dearkd.specs import TeacherSpec
from dearkd.storage.file_cache import FileCache
from dearkd.storage.new_folder import new_folder
from dearkd.vision.devices import choose_device
from dearkd.vision.image_sample import fitted, read_image
from dearkd.vision.prediction import Classifier
from dearkd.vision.teachers import load_teacher
from dearkd_trainer.commands.sources import TrainedModel, open_model
from dearkd_trainer.evaluate.pictures import attention_picture
from dearkd_trainer.model.student import Student

IMAGES_AT_ONCE = 32
PREDICTIONS = "predictions.json"


def run_predict(
    reference: str, images: Sequence[Path], *, teacher: str | None, out: Path | None, as_json: bool
) -> None:
    """Classify image files, print the answers, and leave pictures of attention in `out` where one is named.

    Args:
        reference: the model, by id or as a folder.
        images: paths of image files.
        teacher: id of one to ask too; by default the model's own, if it can be had.
        out: a new or empty folder.
        as_json: print JSON.

    Raises:
        typer.BadParameter: naming an image that cannot be read.
        InvalidInput: naming a file that is no image, or as `open_model`.
        NotFound: if a teacher that was asked for, or its weights, are not there.
    """
    settings = Settings()
    if settings.torch_threads is not None:
        torch.set_num_threads(settings.torch_threads)
    device = choose_device()
    with (
        FileCache(settings.cache_dir, settings.cache_bytes) as cache,
        new_folder(out) if out is not None else nullcontext() as folder,
    ):
        model = open_model(reference, connect, cache)
        about = model.config.pretrained_cfg
        network = model.load().to(device)
        student = Classifier(network, about.mean, about.std, model.class_names, device)
        asked, spec, beside = _teacher(teacher, model, settings, cache, device)
        found = []
        for start in range(0, len(images), IMAGES_AT_ONCE):
            paths = images[start : start + IMAGES_AT_ONCE]
            pixels = torch.stack([_as_evaluated(path, model) for path in paths])
            answers = student.answers(pixels)
            others: Sequence[Any] = [None] * len(paths)
            if beside is not None and spec is not None:
                others = beside.answers(torch.stack([_as_taught(path, spec) for path in paths]))
            found += [
                {"image": str(path), "student": answer, "teacher": other}
                for path, answer, other in zip(paths, answers, others, strict=True)
            ]
            if folder is not None:
                _draw(folder, start, student, pixels, found[start:])
        report = {"model": reference, "teacher": asked, "predictions": found}
        if folder is not None:
            text = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
            (folder / PREDICTIONS).write_text(text, encoding="utf-8", errors="replace")
    if as_json:
        print_json(report)
        return
    _print(found)
    if out is None:
        note("--out DIR also writes the answers as JSON, and pictures of what the student attended to")
    else:
        note(", ".join(str(path) for path in sorted(out.iterdir())))


def _teacher(
    asked: str | None, model: TrainedModel, settings: Settings, cache: FileCache, device: torch.device
) -> tuple[str | None, TeacherSpec | None, Classifier | None]:
    """Id, spec and network of the teacher to ask; of the model's own, only if it can be had."""
    own = model.manifest.teacher if model.manifest is not None else None
    reference = asked or own
    if reference is None:
        note("its teacher is left out: the model does not say which it was; --teacher ID names one that is registered")
        return None, None, None
    try:
        spec, weights = registered_teacher(reference, settings, cache)
    except (DearKDError, typer.BadParameter) as error:
        if asked is not None:
            raise
        note(f"its teacher is left out: {error}")
        return None, None, None
    names = spec.class_names or [str(label) for label in range(spec.num_classes)]
    if spec.class_names is None and spec.num_classes == model.num_classes:
        names = model.class_names
    return reference, spec, Classifier(load_teacher(spec, weights, device), spec.mean, spec.std, names, device)


def _as_evaluated(path: Path, model: TrainedModel) -> Tensor:
    """Pixels as `dearkd evaluate` gives them to a student."""
    return fitted(_read(path, model.in_chans), model.image_size, model.config.pretrained_cfg.crop_pct)


def _as_taught(path: Path, teacher: TeacherSpec) -> Tensor:
    return fitted(_read(path, teacher.in_chans), teacher.image_size)


def _read(path: Path, in_chans: Any) -> Tensor:
    if not path.is_file():
        raise InvalidInput(f"{path} is no file on this machine: give image files")
    image = read_image(path, in_chans)
    if image is None:
        raise InvalidInput(
            f"{path} is no image: give PNG, WebP, JPEG or another format that `dearkd dataset add` takes"
        )
    return image


def _draw(folder: Path, first: int, student: Classifier, pixels: Tensor, found: Sequence[dict[str, Any]]) -> None:
    """Draw the student's attention over each image, and name the file beside its answer."""
    network = student.network
    maps = network.attention_maps(student.inputs(pixels)) if isinstance(network, Student) else None
    for number, entry in enumerate(found):
        entry["attention"] = None
        if maps is None:
            continue
        best = entry["student"][0]
        stem = re.sub(r"[^\w.-]+", "_", Path(entry["image"]).stem)[:80]
        name = f"{first + number:04d}-{stem}.png"
        title = f"{printable(best['name'])} {best['probability']:.1%}"
        (folder / name).write_bytes(attention_picture(pixels[number], maps[number], title))
        entry["attention"] = name


def _print(found: Sequence[Mapping[str, Any]]) -> None:
    with_teacher = any(entry["teacher"] for entry in found)
    rows = []
    for entry in found:
        beside = entry["teacher"] or []
        for rank in range(max(len(entry["student"]), len(beside))):
            cells = [*_cells(entry["student"], rank), *(_cells(beside, rank) if with_teacher else [])]
            rows.append([entry["image"] if rank == 0 else "", *cells])
    print_table(["IMAGE", "STUDENT", "", *(["TEACHER", ""] if with_teacher else [])], rows)


def _cells(answers: Sequence[Mapping[str, Any]], rank: int) -> list[str]:
    if rank >= len(answers):
        return ["", ""]
    return [str(answers[rank]["name"]), f"{answers[rank]['probability']:.1%}"]
