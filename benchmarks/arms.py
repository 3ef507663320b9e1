"""What the comparisons of synthesis share: networks on real images, made images, students on them, and the figures."""

import json
import math
import statistics
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import dearkd.vision  # noqa: F401  # makes timm importable

# isort: split
import numpy as np
import torch
from keeping import kept
from manifolds import coverage
from tasks import Task
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch.nn import functional as F

from dearkd.data.shard_files import Sample, write_shard
from dearkd.specs import DatasetFacts, SynthesisSpec, TeacherSpec, TrainingSpec
from dearkd.vision.images import encode, to_input
from dearkd.vision.shards import ShardDataset
from dearkd.vision.teachers import build_teacher, features_and_logits
from dearkd_synth.inversion import DeepInversion
from dearkd_synth.student.adaptive_student import train_adaptive_student
from dearkd_synth.student.student_view import StudentView
from dearkd_synth.synthesised import SynthesisedShard
from dearkd_trainer import DearKDTrainer, FrozenTeacher
from dearkd_trainer.data.loader import EpochBatches, create_loader
from dearkd_trainer.data.recipe import create_average, create_schedule, train_transform
from dearkd_trainer.model.export import load_model

TEACHER, STRANGER = "resnet10t", "regnety_002"
"""The network that is inverted, and the independent one that judges the images: another family, another seed."""


@dataclass(frozen=True)
class Network:
    """A CNN that was trained on a task's real images, in eval mode."""

    model: nn.Module
    spec: TeacherSpec

    def answers(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled features (N, D) and logits (N, num_classes) of uint8 images."""
        with torch.inference_mode():
            parts = [features_and_logits(self.model, to_input(part, self.spec)) for part in images.split(256)]
        features, logits = zip(*parts, strict=True)
        return torch.cat(features), torch.cat(logits)

    def top1(self, images: Tensor, labels: Tensor) -> float:
        return (self.answers(images)[1].argmax(1) == labels).double().mean().item()


SMALLER: dict[str, dict[str, Any]] = {"vgg11_bn": {"mlp_ratio": 0.1}, "densenet121": {"block_config": [2, 2, 2, 2]}}
"""Arguments of architectures whose parts are of interest here, not their size."""

ADAM_RATES: dict[str | tuple[str, str], float] = {
    "efficientnet_lite0": 1e-3,
    "regnety_002": 1e-3,
    ("glyphs", "vgg11_bn"): 3e-4,
}
"""AdamW's rate for networks, or networks on a task, that SGD does not bring far in so few steps."""


def train_network(task: Task, architecture: str, seed: int, epochs: int, kept: Path | None = None) -> Network:
    """A CNN on the task's real training images, shifted, and mirrored where that changes no class.

    Args:
        task: of real images.
        architecture: a name of timm's.
        seed: of weights and order.
        epochs: over the training images.
        kept: a folder that keeps the weights of networks, by all of these, for another process.
    """
    pixels = task.images.float() / 255
    spec = TeacherSpec(
        name=f"{architecture} on {task.name}",
        architecture=architecture,
        model_args=SMALLER.get(architecture, {}),
        num_classes=len(task.class_names),
        in_chans=cast(Literal[1, 3], task.in_chans),
        image_size=task.images.shape[-1],
        mean=[round(m, 4) for m in pixels.mean((0, 2, 3)).tolist()],
        std=[round(s, 4) for s in pixels.std((0, 2, 3)).tolist()],
        class_names=task.class_names,
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_teacher(spec).train()
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    place = kept / f"{task.name}-{architecture}-{seed}-{epochs}.pt" if kept is not None else None
    if place is not None and place.exists():
        model.load_state_dict(torch.load(place, weights_only=True))
        return Network(model.eval().requires_grad_(False), spec)
    adam_rate = ADAM_RATES.get((task.name, architecture), ADAM_RATES.get(architecture))
    size, rate = (64, 0.1) if adam_rate is None else (32, adam_rate)
    steps = len(task.labels) // size
    optimizer: torch.optim.Optimizer = (
        torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, nesterov=True, weight_decay=5e-4)
        if adam_rate is None
        else torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.05)
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rate, total_steps=epochs * steps)
    inputs = to_input(task.images, spec)
    for _ in range(epochs):
        for batch in torch.randperm(len(inputs), generator=generator).split(size)[:steps]:
            shift = torch.randint(-2, 3, (2,), generator=generator).tolist()
            moved = inputs[batch].roll(shift, (2, 3))
            if task.mirrored:
                turned = torch.rand(len(moved), generator=generator) < 0.5
                moved[turned] = moved[turned].flip(3)
            moved = moved.contiguous(memory_format=torch.channels_last)
            loss = F.cross_entropy(model(moved), task.labels[batch], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    if place is not None:
        place.parent.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), place)
    return Network(model.eval().requires_grad_(False), spec)


JUDGE, OTHER_JUDGE = "resnet10t", "densenet121"
"""Judges the images of all families but its own, which `OTHER_JUDGE` judges."""
NETWORK_IMAGES = 12_000
PASSES = {"efficientnet_lite0": 36_000, "vgg11_bn": 20_000}
"""Images that a network sees in training: 60,000, or fewer where each takes long."""
MORE_PASSES = {
    ("glyphs", "efficientnet_lite0"): 150_000,
    ("glyphs", "mobilenetv3_small_050"): 250_000,
    ("glyphs", "regnety_002"): 250_000,
    ("glyphs", "vgg11_bn"): 40_000,
}
"""More, where so few leave it knowing a sixth of the classes."""


def judge_of(family: str) -> str:
    return OTHER_JUDGE if family == JUDGE else JUDGE


def network(folder: Path, of: Task, architecture: str, seed: int, *, passes: int | None = None) -> Network:
    """Trained once, then read from the folder; of several processes one trains, and the others wait.

    Args:
        folder: keeps it, by the other arguments.
        of: the task whose real training images it learns from.
        architecture: a name of timm's.
        seed: of weights and order.
        passes: images that it sees in training; by default as many as make a good one.
    """
    name = f"{of.name}-{architecture}-{seed}" if passes is None else f"{of.name}-{architecture}-{seed}-{passes}"

    def train() -> Network:
        seen = passes or MORE_PASSES.get((of.name, architecture)) or PASSES.get(architecture, 60_000)
        some = few(of, min(NETWORK_IMAGES, max(64, seen // 4)))  # at least one batch
        made = train_network(some, architecture, seed, max(1, seen // len(some.labels)))
        print(f"{of.name} {architecture} {made.top1(of.held_out_images, of.held_out_labels):.3f}", flush=True)
        return made

    found: Network = kept(folder / f"{name}.pt", train)
    return found


def few(of: Task, images: int) -> Task:
    """The task with so many training images, as many of each class."""
    taken = in_turn(of.labels)[:images]
    return replace(of, images=of.images[taken], labels=of.labels[taken])


@dataclass(frozen=True)
class Made:
    """Synthetic images (N, C, H, W), uint8, labels (N,), and the spec that they were made with."""

    images: Tensor
    labels: Tensor
    spec: SynthesisSpec


def synthesise(teacher: Network, posted: dict[str, Any], student: nn.Module | None = None) -> Made:
    """The images of a spec, made shard by shard, with the spec's own adaptive student where it trains one."""
    spec = SynthesisSpec.resolve({"teacher": "teacher"} | posted, teacher.spec)
    shards: dict[int, SynthesisedShard] = {}
    if spec.student_shards:
        with DeepInversion(teacher.model, teacher.spec, spec) as inversion:
            shards = {index: inversion.shard(index) for index in spec.student_shards}
        seen = torch.cat([shard.images for shard in shards.values()])
        student = train_adaptive_student(teacher.model, teacher.spec, spec, seen)
    with DeepInversion(teacher.model, teacher.spec, spec, adaptive_student=student) as inversion:
        shards |= {index: inversion.shard(index) for index in range(spec.num_shards) if index not in shards}
    made = [shards[index] for index in range(spec.num_shards)]
    return Made(torch.cat([shard.images for shard in made]), torch.cat([shard.labels for shard in made]), spec)


def train_students(
    made: Made, teacher: Network, task: Task, seed: int, posted: dict[str, Any], *, count: int = 1
) -> tuple[float, nn.Module]:
    """DearKD students on made images: their mean accuracy on the real held-out ones, and the first one.

    They differ in their own seeds alone (`seed`, `seed` + 100, …): where images are few, one student says more of its
    beginning than of them.
    """
    trained = [
        train_on(
            made.images,
            made.labels,
            teacher,
            task,
            {"seed": seed + 100 * number} | posted,
            synthetic=True,
            mirrored=made.spec.flip > 0,
        )
        for number in range(count)
    ]
    return statistics.fmean(top1 for top1, _ in trained), trained[0][1]


def train_on(
    images: Tensor,
    labels: Tensor,
    teacher: Network,
    task: Task,
    posted: dict[str, Any],
    *,
    synthetic: bool,
    mirrored: bool,
) -> tuple[float, nn.Module]:
    """A student on images (N, C, H, W), uint8, and labels (N,): its accuracy on the held-out ones, and itself.

    It sees what the teacher sees. `posted` is of the training spec.
    """
    spec = resolved(len(labels), teacher, posted, synthetic=synthetic, mirrored=mirrored)
    with tempfile.TemporaryDirectory() as folder:
        result = DearKDTrainer(
            spec,
            _stored(Path(folder) / "images.tar", images, labels, teacher.spec),
            directory=Path(folder) / "run",
            task=teacher.spec.at(spec.student.image_size),
            teacher=FrozenTeacher(teacher.model, teacher.spec) if spec.needs_teacher else None,
            eval_dataset=_stored(Path(folder) / "real.tar", task.held_out_images, task.held_out_labels, teacher.spec),
        ).fit()
        config = json.loads(result.weights.with_name("config.json").read_text())
        student = load_model(config, result.weights)
    assert result.evaluation is not None
    view = StudentView(
        student, teacher.spec, mean=teacher.spec.mean, std=teacher.spec.std, image_size=spec.student.image_size
    )
    return result.evaluation.top1, view.eval()


def train_peer(
    model: nn.Module, images: Tensor, labels: Tensor, teacher: Network, task: Task, posted: dict[str, Any]
) -> float:
    """Any timm model on real images and their labels, as a student's run would train it: its held-out accuracy.

    Batches, augmentations, optimiser, schedule and averaged weights are those of the spec; the loss is cross-entropy.
    """
    spec = resolved(len(labels), teacher, posted, synthetic=False, mirrored=task.mirrored)
    seen, how = spec.augmentation, spec.optimizer
    optimizer = create_optimizer_v2(model, opt=how.opt, lr=how.lr, weight_decay=how.weight_decay)
    with tempfile.TemporaryDirectory() as folder:
        data = _stored(Path(folder) / "images.tar", images, labels, teacher.spec)
        batches = EpochBatches(np.arange(len(data)), spec.batch_size, seed=spec.seed, epochs=range(spec.epochs))
        steps = len(batches.sizes)
        transform = train_transform(seen, image_size=images.shape[-1], mean=teacher.spec.mean, std=teacher.spec.std)
        schedule = create_schedule(optimizer, how, epochs=spec.epochs, steps_per_epoch=steps)
        average = create_average(model, how.model_ema_half_life, steps)
        assert average is not None, "the recipe `small` averages"
        loader = create_loader(data, transform, batches, seed=spec.seed, workers=0, pin_memory=False)
        for step, (inputs, targets) in enumerate(loader):
            schedule.step_update(step)
            optimizer.zero_grad()
            F.cross_entropy(model.train()(inputs), targets, label_smoothing=seen.smoothing).backward()
            nn.utils.clip_grad_norm_(model.parameters(), how.clip_grad or math.inf)
            optimizer.step()
            average.update(model, step + 1)
    return Network(average.module.eval(), teacher.spec).top1(task.held_out_images, task.held_out_labels)


def resolved(images: int, teacher: Network, posted: dict[str, Any], *, synthetic: bool, mirrored: bool) -> TrainingSpec:
    """The complete spec of a student on so many images."""
    facts = DatasetFacts(
        num_samples=images,
        num_classes=teacher.spec.num_classes,
        image_size=teacher.spec.image_size,
        in_chans=teacher.spec.in_chans,
        synthetic=synthetic,
        mirrored=mirrored,
        teacher="teacher",
    )
    return TrainingSpec.resolve({"dataset": "images", "eval_dataset": "real"} | posted, facts, teacher.spec)


def _stored(path: Path, images: Tensor, labels: Tensor, spec: TeacherSpec) -> ShardDataset:
    write_shard(
        path,
        (
            Sample(f"{i:09d}", encode(image, "png"), "png", label, {"label": label})
            for i, (image, label) in enumerate(zip(images, labels.tolist(), strict=True))
        ),
    )
    return ShardDataset([path], num_classes=spec.num_classes, in_chans=spec.in_chans)


def figures(made: Made, teacher: Network, stranger: Network, task: Task) -> dict[str, float]:
    """What can be said of made images without training on them.

    Precision and recall are over features of the stranger, between as many made as real held-out images, drawn class by
    class in turn.
    """
    ours, _ = teacher.answers(made.images)
    theirs, _ = stranger.answers(made.images)
    count = min(len(made.labels), len(task.held_out_labels))
    real, _ = stranger.answers(task.held_out_images[in_turn(task.held_out_labels)[:count]])
    precision, recall = coverage(real, theirs[in_turn(made.labels)[:count]])
    return {
        "teacher_accuracy": teacher.top1(made.images, made.labels),
        "stranger_accuracy": stranger.top1(made.images, made.labels),
        "diversity": intra_class_diversity(ours, made.labels),
        "nearest": nearest_of_class(ours, made.labels),
        "stranger_diversity": intra_class_diversity(theirs, made.labels),
        "precision": precision,
        "recall": recall,
    }


def intra_class_diversity(features: Tensor, labels: Tensor) -> float:
    """The mean cosine distance over all pairs of a class, averaged over classes."""
    distances = []
    for label in labels.unique():
        mine = F.normalize(features[labels == label].double(), dim=1)
        similarity = mine @ mine.T
        n = len(mine)
        distances.append(1 - (similarity.sum() - similarity.trace()).item() / (n * (n - 1)))
    return sum(distances) / len(distances)


def nearest_of_class(features: Tensor, labels: Tensor) -> float:
    """The median cosine similarity of a sample to the nearest other one of its class: near 1 where a class collapses.

    It grows with the number of samples of a class: compare sets of as many.
    """
    f = F.normalize(features.double(), dim=1)
    same = labels[:, None] == labels
    same.fill_diagonal_(False)
    return (f @ f.T).masked_fill(~same, -torch.inf).amax(dim=1).median().item()


def in_turn(labels: Tensor) -> Tensor:
    """Places in an order that takes one of each class after the other, so that any beginning is balanced."""
    rank = torch.zeros_like(labels)
    for label in labels.unique():
        mine = labels == label
        rank[mine] = torch.arange(int(mine.sum()))
    return torch.argsort(rank * (int(labels.max()) + 1) + labels)
