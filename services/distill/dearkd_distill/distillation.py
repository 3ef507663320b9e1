"""One call from a CNN to a transformer, in one process; a call that was stopped goes on from where it was."""

import fcntl
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress, TaskID
from torch import nn

from dearkd.choices import FolderOrder
from dearkd.cli.watching import duration
from dearkd.data.shard_files import Shard, shard_name
from dearkd.data.shard_info import CLASS_NAMES, INFO, info_json
from dearkd.errors import Conflict, Unavailable
from dearkd.specs import DatasetFacts, SynthesisSpec, TrainingSpec
from dearkd.storage.file_cache import is_copy
from dearkd.storage.new_folder import require_new
from dearkd.vision.devices import choose_device
from dearkd.vision.sample_grid import sample_grid
from dearkd.vision.shard_writer import write_samples
from dearkd.vision.shards import ShardDataset
from dearkd.vision.teacher_statistics import NEVER_UPDATED, never_updated
from dearkd.vision.teachers import batch_norm_layers
from dearkd_distill.budget import SHARE, fit, fit_epochs, measure_synthesis, measure_training, with_epochs
from dearkd_distill.inputs import Teacher, open_teacher, pack_images
from dearkd_distill.plan import Plan
from dearkd_distill.progress import progress_on
from dearkd_synth import DeepInversion
from dearkd_synth.inversion import Step
from dearkd_synth.quality import merge_quality, shard_quality, without_parts
from dearkd_synth.watch import require_good, warnings
from dearkd_trainer import DearKDTrainer, FrozenTeacher, Student, TrainingResult
from dearkd_trainer.record.facts import RunFacts
from dearkd_trainer.train.failures import LoaderLost

REQUEST = "distillation.json"
LOCK = ".lock"
IMAGES = "images"
PREVIEW = "preview.png"
MEASURING = "measuring the speed of this machine …"


@dataclass(frozen=True, slots=True)
class Distillation:
    """A student, and where it lies."""

    student: Student
    """In eval mode, with the exported weights, on the device that it was trained on."""
    directory: Path
    """`model.safetensors` and `config.json` (a timm model), its card, `report.html`, `distillation.json`; the images
    under `images`, with `preview.png` of them."""
    top1: float | None
    """Accuracy on `evaluate_on`; None without."""
    report: dict[str, Any]
    """The content of `distillation.json`: specs, quality of the images, accuracy, seconds."""


def distill(
    teacher: nn.Module | str | Path,
    out: str | Path,
    *,
    images: str | Path | None = None,
    evaluate_on: str | Path | None = None,
    budget: float | None = None,
    seed: int = 0,
    synthesis: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
    device: torch.device | str | None = None,
    console: Console | None = None,
    state_dict: str | None = None,
    class_order: FolderOrder | None = None,
    **task: Any,
) -> Distillation:
    """Train a vision transformer from a CNN: on images that are made of it alone, or on `images`.

    Called again with the same arguments it goes on from the shards and the checkpoint that are there, or gives what is
    finished.

    Args:
        teacher: a network with BatchNorm in memory, a file of weights, a folder with a `config.json`, or
            `hf-hub:owner/name`.
        out: a folder, new or that of an earlier call.
        images: class folders of real images, or shards; then none are made.
        evaluate_on: the same, to measure the student on; it decides nothing.
        budget: seconds that it may take, about; images and epochs are chosen to fit, by speeds that are measured
            first. Default: the preset's and the recipe's.
        seed: of everything random.
        synthesis: further fields of `SynthesisSpec`.
        training: further fields of `TrainingSpec`.
        device: default: CUDA where there is one.
        console: for progress; in a notebook it is one output of the cell.
        state_dict: the key of the weights to take where a file holds several.
        class_order: labels of class folders by name, number or in natural order, where the teacher has no class names
            and these differ.
        **task: fields of `TeacherSpec` that no file says or that win over it: `image_size`, `mean`, `std`,
            `class_names`, `architecture`, `model_args`.

    Raises:
        InvalidInput: naming the value, the rule it broke and the remedy.
        Conflict: if `out` holds another distillation, or something else.
        PoorImages: if the teacher does not recognise the first images that are made of it.
        Unavailable: if a process that reads images was ended from outside.
    """
    began = time.monotonic()
    console = console or Console(stderr=True)
    target = torch.device(device) if device is not None else choose_device()
    opened = open_teacher(teacher, task, state_dict)
    directory = Path(out).absolute()
    plan = Plan(opened, images, evaluate_on, class_order, budget, seed, dict(synthesis or {}), dict(training or {}))
    # What breaks a rule is refused before anything is made.
    planned = plan.synthesis_spec()
    plan.training_spec(plan.facts(planned.num_samples, mirrored=planned.flip > 0 or None))
    request = plan.request()
    state = _open(directory, request)
    with _alone(directory), progress_on(console) as progress:
        if images is None:
            made = _synthesis(plan, state, target, console)
            shards = _make_images(plan, made, directory, state, target, progress, console)
        else:
            shards = pack_images(Path(images), opened.spec, directory / IMAGES, class_order)
        data = ShardDataset(shards, num_classes=opened.spec.num_classes, in_chans=opened.spec.in_chans)
        spec = _training(plan, state, data, target, console)
        _save(directory, state)
        held = None
        if evaluate_on is not None:
            paths = pack_images(Path(evaluate_on), opened.spec, directory / "evaluation", class_order)
            held = ShardDataset(paths, num_classes=opened.spec.num_classes, in_chans=opened.spec.in_chans)
        about = plan.about(state)
        trainer, result = _train(opened, spec, data, held, directory, about, target, progress)
    state["accuracy"] = {"top1": result.evaluation.top1} if result.evaluation is not None else None
    state["seconds"] = round(state.get("seconds", 0.0) + time.monotonic() - began, 1)
    _save(directory, state)
    top1 = result.evaluation.top1 if result.evaluation is not None else None
    return Distillation(trainer.evaluated.eval(), directory, top1, state)


def _open(directory: Path, request: dict[str, Any]) -> dict[str, Any]:
    """The state of an earlier call with the same arguments, or a new one."""
    path = directory / REQUEST
    if path.is_file():
        state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        differing = [name for name in request if state.get("request", {}).get(name) != request[name]]
        if not differing:
            return state
        if state.keys() != {"request"}:  # else nothing came of it, as where an argument was refused
            raise Conflict(
                f"{directory} holds a distillation with another {', '.join(differing)}: name another folder, or "
                "remove that one"
            )
    else:
        require_new(directory)
    directory.mkdir(parents=True, exist_ok=True)
    state = {"request": request}
    _save(directory, state)
    return state


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Hold the folder: two processes that write the same checkpoints would lose each other's."""
    with (directory / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(f"another process works in {directory}: let it end, or name another folder") from None
        yield


def _save(directory: Path, state: Mapping[str, Any]) -> None:
    part = directory / f"{REQUEST}.part"
    part.write_text(json.dumps(state, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(directory / REQUEST)


def _synthesis(plan: Plan, state: dict[str, Any], device: torch.device, console: Console) -> SynthesisSpec:
    """The spec of the images; with a budget their number and that of epochs are chosen once, and kept in `state`."""
    if "synthesis" in state:
        return SynthesisSpec.resolve(state["synthesis"], plan.teacher.spec)
    spec = plan.synthesis_spec()
    if plan.budget is not None:
        console.print(MEASURING, style="dim")

        def trained(images: int) -> TrainingSpec:
            return plan.training_spec(plan.facts(images * len(spec.classes), mirrored=spec.flip > 0 or None))

        per_image = measure_synthesis(plan.teacher, spec, device)
        usual = trained(spec.images_per_class)
        per_image_and_epoch = measure_training(plan.teacher, usual, device)
        images, epochs = fit(
            plan.budget,
            per_image=per_image,
            per_image_and_epoch=per_image_and_epoch,
            images_per_class=spec.images_per_class,
            num_classes=len(spec.classes),
            epochs_for=lambda images: trained(images).epochs,
        )
        state["epochs"] = epochs
        console.print(f"{images:,} images of each of {len(spec.classes):,} classes, {epochs} epochs")
        if images < spec.images_per_class:
            whole = spec.num_samples * (per_image + usual.epochs * per_image_and_epoch) / SHARE
            console.print(
                f"without a budget it would be {spec.images_per_class:,} and {usual.epochs}, in about "
                f"{duration(whole)}; a student of fewer images knows less, and one of a few per class next to nothing",
                style="yellow",
            )
        spec = plan.synthesis_spec(images)
    state["synthesis"] = spec.model_dump(mode="json")
    return spec


def _training(
    plan: Plan, state: dict[str, Any], data: ShardDataset, device: torch.device, console: Console
) -> TrainingSpec:
    if "training" in state:
        posted = state["training"]
        return TrainingSpec.resolve(posted, _facts_of(plan, state, data), plan.teacher.spec)
    facts = _facts_of(plan, state, data)
    spec = plan.training_spec(facts)
    if plan.images is not None and plan.budget is not None:
        console.print(MEASURING, style="dim")
        per_epoch = len(data) * measure_training(plan.teacher, spec, device)
        state["epochs"] = epochs = fit_epochs(plan.budget, per_epoch=per_epoch, usual=spec.epochs)
        console.print(f"{len(data):,} images, {epochs} epochs; without a budget it would be {spec.epochs}")
    if "epochs" in state:
        spec = with_epochs(spec, facts, plan.teacher, state["epochs"])
    state["training"] = spec.model_dump(mode="json")
    return spec


def _facts_of(plan: Plan, state: Mapping[str, Any], data: ShardDataset) -> DatasetFacts:
    mirrored = plan.images is None and state["synthesis"]["flip"] > 0
    return plan.facts(len(data), mirrored=mirrored or None)


def _make_images(
    plan: Plan,
    spec: SynthesisSpec,
    directory: Path,
    state: dict[str, Any],
    device: torch.device,
    progress: Progress,
    console: Console,
) -> list[Path]:
    """The shards, of which those that an earlier call has finished are kept."""
    folder = directory / IMAGES
    folder.mkdir(exist_ok=True)
    finished: dict[str, Any] = state.setdefault("shards", {})
    paths = [folder / shard_name(index) for index in range(spec.num_shards)]
    waiting = [index for index, path in enumerate(paths) if not _is_whole(path, finished.get(path.name))]
    lengths = spec.shard_lengths()
    before = sum(lengths) - sum(lengths[index] for index in waiting)
    bar = progress.add_task("images", total=spec.num_samples, completed=before)
    if waiting:
        _make_shards(plan, spec, directory, waiting, state, device, progress, bar, console)
    kept = [finished[path.name] for path in paths]
    (folder / INFO).write_bytes(info_json(Shard.model_validate(one["shard"]) for one in kept))
    if plan.teacher.spec.class_names:
        (folder / CLASS_NAMES).write_text(json.dumps(plan.teacher.spec.class_names), encoding="utf-8")
    state["quality"] = without_parts(merge_quality([one["quality"] for one in kept]))
    return paths


def _make_shards(
    plan: Plan,
    spec: SynthesisSpec,
    directory: Path,
    waiting: Sequence[int],
    state: dict[str, Any],
    device: torch.device,
    progress: Progress,
    bar: TaskID,
    console: Console,
) -> None:
    lengths = spec.shard_lengths()
    done = sum(lengths) - sum(lengths[index] for index in waiting)

    def on_step(step: Step) -> None:
        progress.update(bar, completed=done + step.images_done + step.images * step.share)

    if never_updated(batch_norm_layers(plan.teacher.module)):
        console.print(NEVER_UPDATED, style="yellow")
    with DeepInversion(plan.teacher.module, plan.teacher.spec, spec, device=device, on_step=on_step) as inversion:
        for index in waiting:
            made = inversion.shard(index)
            if index == 0:
                names = plan.teacher.spec.class_names
                (directory / PREVIEW).write_bytes(sample_grid(made.images, made.labels, names=names))
                console.print(f"the first images: {directory / PREVIEW}")
                for warning in warnings(made):
                    console.print(warning, style="yellow")
                require_good(made, spec)
            path = directory / IMAGES / shard_name(index)
            part = path.with_suffix(".part")
            named = write_samples(part, made, spec).model_copy(update={"name": path.name})
            part.replace(path)
            state["shards"][path.name] = {"shard": named.model_dump(mode="json"), "quality": shard_quality(made)}
            _save(directory, state)
            done += lengths[index]
            progress.update(bar, completed=done)


def _is_whole(path: Path, record: Mapping[str, Any] | None) -> bool:
    """Tell whether a shard is as it was written: a full disk or a hand may have changed it since."""
    if record is None:
        return False
    shard = Shard.model_validate(record["shard"])
    return is_copy(path, name=shard.name, sha256=shard.sha256, size=shard.bytes)


def _train(
    teacher: Teacher,
    spec: TrainingSpec,
    data: ShardDataset,
    held: ShardDataset | None,
    directory: Path,
    about: RunFacts,
    device: torch.device,
    progress: Progress,
) -> tuple[DearKDTrainer, TrainingResult]:
    bar = progress.add_task("training", total=None)
    trainer = DearKDTrainer(
        spec,
        data,
        directory=directory,
        teacher=FrozenTeacher(teacher.module, teacher.spec),
        eval_dataset=held,
        class_order="given",
        about=about,
        device=device,
        on_step=lambda done, total: progress.update(bar, completed=done, total=total),
    )
    try:
        return trainer, trainer.fit()
    except LoaderLost as error:
        raise Unavailable(
            f"a process that reads images was ended from outside, perhaps for want of memory ({error}): the same call "
            "goes on from the last checkpoint"
        ) from error
