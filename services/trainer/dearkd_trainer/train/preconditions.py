"""Checks before a run begins: of its task, its data, its class names and its processes."""

from collections.abc import Sequence

from dearkd.choices import ClassOrder
from dearkd.errors import FieldError, InvalidInput
from dearkd.specs import Task, TeacherSpec, TrainingSpec
from dearkd.specs.batches import smallest_batch
from dearkd.specs.class_order import other_order, share_names, uncertain_order
from dearkd.vision.shards import ShardDataset
from dearkd_trainer.data.world import World
from dearkd_trainer.train.teacher import FrozenTeacher


def task_of(spec: TrainingSpec, task: Task | None, teacher: FrozenTeacher | None) -> Task:
    """The student's task: the given one, else the teacher's at the student's image size.

    Raises:
        InvalidInput: at `/task`, if there is neither, or at `/task/image_size`, if the spec has another.
    """
    size = spec.student.image_size
    if task is None:
        if teacher is None:
            raise InvalidInput.at("/task", "there is no teacher whose task the student could have: give the task")
        return teacher.spec.at(size)
    if task.image_size != size:
        raise InvalidInput.at(
            "/task/image_size", f"{task.image_size}, but the spec's student takes {size}: use task.at"
        )
    return task


def check_data(task: Task, dataset: ShardDataset, eval_dataset: ShardDataset | None) -> None:
    """Require both datasets to be of the task's classes and channels, and to hold an image.

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
    if errors:
        raise InvalidInput("; ".join(f"{e.pointer}: {e.detail}" for e in errors), errors=errors)


def check_class_names(
    class_names: Sequence[str] | None, teacher: TeacherSpec | None, class_order: ClassOrder | None
) -> None:
    """Require the labels to be the teacher's, as far as names can show it.

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


def checked_world(spec: TrainingSpec, images: int) -> World:
    """The processes that have joined, if they are as many as the spec's and each batch of `images` has one for each.

    On a Ray cluster they may be fewer: as many as find room.

    Raises:
        InvalidInput: at `/processes`.
    """
    world = World.current()
    if world.size != spec.processes and not (spec.engine == "ray" and world.size < spec.processes):
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
