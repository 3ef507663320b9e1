"""What must hold before a run begins: of its data, its teacher and its processes."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import nn

from dearkd.errors import FieldError, InvalidInput
from dearkd.specs import TeacherSpec, TrainingSpec
from dearkd.specs.batches import smallest_batch
from dearkd.specs.class_order import ClassOrder, other_order, share_names, uncertain_order
from dearkd.vision.shards import ShardDataset
from dearkd_trainer.data.world import World


@dataclass(frozen=True, slots=True)
class Task:
    """What a student learns to do."""

    num_classes: int
    in_chans: int
    mean: list[float]
    """Per channel, of pixels in [0, 1], and so is `std`."""
    std: list[float]


def check_data(
    task: Task, dataset: ShardDataset, eval_dataset: ShardDataset | None, class_names: Sequence[str] | None
) -> None:
    """Whether both datasets are of the task's classes and channels and hold an image.

    Raises:
        InvalidInput: with a pointer to each argument that does not fit.
    """
    errors = []
    for pointer, data in (("/dataset", dataset), ("/eval_dataset", eval_dataset)):
        if data is None:
            continue
        purpose = "train" if data is dataset else "evaluate"
        if len(data) == 0:
            errors.append(FieldError(pointer, f"there is no image to {purpose} on: the dataset is empty"))
        errors += [
            FieldError(pointer, f"its {field} is {theirs}, the student's {ours}: they must be equal")
            for field, theirs, ours in (
                ("num_classes", data.num_classes, task.num_classes),
                ("in_chans", data.in_chans, task.in_chans),
            )
            if theirs != ours
        ]
    errors += [
        FieldError(f"/{name}", f"{len(values)} values, but in_chans is {task.in_chans}: give one a channel")
        for name, values in (("mean", task.mean), ("std", task.std))
        if len(values) != task.in_chans
    ]
    if class_names is not None and len(class_names) != task.num_classes:
        errors.append(FieldError("/class_names", f"{len(class_names)} names, but num_classes is {task.num_classes}"))
    if errors:
        raise InvalidInput("; ".join(f"{e.pointer}: {e.detail}" for e in errors), errors=errors)


def check_class_names(
    class_names: Sequence[str] | None, teacher: TeacherSpec | None, class_order: ClassOrder | None
) -> None:
    """Whether the labels are those of the teacher, as far as names can tell.

    Args:
        class_names: in the order of labels.
        teacher: None where none takes part.
        class_order: how the labels follow, where the caller says it.

    Raises:
        InvalidInput: at `/class_names`, if the teacher has another order, or has no names and nobody has said which of
            two usual orders it was trained with.
    """
    if class_names is None or teacher is None:
        return
    if (difference := other_order(class_names, teacher.class_names)) is not None:
        raise InvalidInput.at(
            "/class_names",
            f"the teacher has these classes in another order ({difference}): make the labels again in it",
        )
    if class_order is not None or share_names(class_names, teacher.class_names):
        return
    if (orders := uncertain_order(class_names)) is not None:
        lacks = "has no class names" if teacher.class_names is None else "names none of these classes"
        raise InvalidInput.at(
            "/class_names",
            f"the teacher {lacks}, and the order of these is not certain: {orders}. Say which one it was "
            "trained with (class_order='name', 'natural' or 'number'), or give its spec class_names",
        )


def checked_teacher(task: Task, teacher: nn.Module | None, spec: TeacherSpec | None, device: torch.device) -> nn.Module:
    """The teacher, frozen, in eval mode and on the device, if it does the same task.

    Raises:
        InvalidInput: at `/teacher`, if there is none, its spec is of another task, or the network is not its spec's.
    """
    if teacher is None or spec is None:
        raise InvalidInput.at("/teacher", "stage one distils, but there is no teacher: give one with its spec")
    for field, ours in asdict(task).items():
        if (theirs := getattr(spec, field)) != ours:
            raise InvalidInput.at("/teacher", f"its {field} is {theirs}, the student's {ours}: they must be equal")
    teacher = teacher.eval().requires_grad_(False).to(device)
    shape = (1, spec.in_chans, spec.image_size, spec.image_size)
    like = next(teacher.parameters())
    try:
        with torch.no_grad():
            logits = teacher(like.new_zeros(shape))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # what a network raises on other channels or another size is its own affair
        raise InvalidInput.at(
            "/teacher", f"{type(teacher).__name__} cannot take a batch of shape {shape}, as its spec says: {error}"
        ) from error
    if tuple(logits.shape) != (1, task.num_classes):
        raise InvalidInput.at(
            "/teacher",
            f"{type(teacher).__name__} answers an image with a tensor of shape {tuple(logits.shape)}, but its spec has "
            f"{task.num_classes} classes: give the teacher of that spec",
        )
    # torch's own stubs lack this signature of Module.to.
    return teacher.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def checked_world(spec: TrainingSpec, images: int) -> World:
    """The processes that have joined, if they are as many as the spec's and each batch of `images` has one for each.

    Raises:
        InvalidInput: at `/processes`.
    """
    world = World.current()
    if world.size != spec.processes:
        raise InvalidInput.at(
            "/processes",
            f"{spec.processes}, but {world.size} joined: start them by torchrun --nproc-per-node {spec.processes}, and "
            "join in each (dearkd_trainer.data.world)",
        )
    smallest = smallest_batch(images, spec.batch_size)
    if smallest < world.size:
        raise InvalidInput.at(
            "/processes", f"{world.size}, but a batch has {smallest} images: each process needs one at least"
        )
    return world
