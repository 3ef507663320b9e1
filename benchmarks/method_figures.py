"""The figures of docs/method.md, each from what it shows: a synthesis, a teacher's features, MHCA, pairs, a run.

    python benchmarks/method_figures.py --demo dearkd-data     # three minutes on one core, after `make demo`

Teacher, time-lapse and run are the demo's, from its folder. For the boundary term 200 images are made with it and 200
without; with `--kept DIR` they are made once. The numbers that the captions name are printed.
"""

import argparse
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

# isort: split
import dearkd.vision  # noqa: F401  # makes timm importable

# isort: split
import matplotlib.pyplot as plt
import numpy as np
import torch
from arms import Network, resolved
from keeping import kept
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from dearkd.data.grid_layouts import LAYOUT
from dearkd.specs import DatasetFacts, SynthesisSpec, TeacherSpec, TrainingSpec
from dearkd.vision.images import to_input
from dearkd.vision.sample_grid import draw_grid
from dearkd.vision.teachers import build_teacher, load_teacher
from dearkd_synth.feature_map import principal_components
from dearkd_synth.inversion import DeepInversion
from dearkd_synth.quality import shard_quality
from dearkd_synth.service import timelapse
from dearkd_synth.service.live import CLASSES, EACH, SMALLEST_SIDE
from dearkd_synth.synthesised import SynthesisedShard
from dearkd_trainer import FrozenTeacher
from dearkd_trainer.demo.digits import real_digits
from dearkd_trainer.model.mhca import MHCA, head_offsets
from dearkd_trainer.model.student import Student, create_student
from dearkd_trainer.train.aligner import choose_pairs

DOCS = Path(__file__).parents[1] / "docs" / "method"
SIDE = 32
STEPS = (0, 10, 25, 50, 100, 200)
"""Drawn are the frames of the time-lapse that come nearest."""
IMAGES_PER_CLASS = 20
DIGIT = 3
"""The class whose features are drawn; chosen before any was looked at."""
QUERY = (3, 4)
"""The place, row and column, of the token whose attention is drawn."""
INK, SOFT, FIRST, SECOND, THIRD = "#24292f", "#6e7781", "#3f51b5", "#c2410c", "#0f766e"

plt.rcParams.update(
    {
        "font.size": 9,
        "font.family": "sans-serif",
        "svg.fonttype": "none",
        "svg.hashsalt": "dearkd",
        "axes.edgecolor": SOFT,
        "axes.labelcolor": INK,
        "xtick.color": SOFT,
        "ytick.color": SOFT,
        "text.color": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
)


def demo_teacher(folder: Path) -> Network:
    """The CNN of the demo, read from its folder."""
    pixels = real_digits()[0].images.float() / 255
    spec = TeacherSpec(
        name="digits",
        architecture="resnet10t",
        num_classes=10,
        in_chans=1,
        image_size=SIDE,
        mean=[round(pixels.mean().item(), 4)],
        std=[round(pixels.std().item(), 4)],
    )
    return Network(load_teacher(spec, folder / "demo" / "teacher.safetensors"), spec)


def synthesis(teacher: Network, **changes: Any) -> SynthesisSpec:
    return SynthesisSpec.resolve(
        {"teacher": "digits", "seed": 0, "images_per_class": IMAGES_PER_CLASS} | changes, teacher.spec
    )


def first_shard(teacher: Network, spec: SynthesisSpec) -> SynthesisedShard:
    with DeepInversion(teacher.model, teacher.spec, spec) as inversion:
        return inversion.shard(0)


def draw_steps(folder: Path) -> Figure:
    """One image of each class, a row for each step, out of the time-lapse of the demo's dataset."""
    (file,) = (folder / "storage" / "datasets").glob(f"*/{timelapse.NAME}")
    known = sorted(timelapse.moments(STEPS[-1]))
    chosen = {min(known, key=lambda step: abs(step - wanted)): None for wanted in STEPS}
    labels = torch.arange(CLASSES).repeat_interleave(EACH)
    names = [str(digit) for digit in range(CLASSES)]
    blank = torch.zeros(len(labels), 1, SIDE, SIDE, dtype=torch.uint8)
    like = draw_grid(blank, labels, rows=CLASSES, columns=EACH, names=names, smallest_cell=SMALLEST_SIDE)
    layout = json.loads(like.info[LAYOUT])
    figure, axes = plt.subplots(len(chosen), CLASSES, figsize=(7.6, 4.7), gridspec_kw={"wspace": 0.06, "hspace": 0.06})
    with Image.open(file) as frames:
        last = frames.n_frames - 1
        # The file format joins the last frames, where they are equal.
        assert len(known) - 2 <= last < len(known), "another time-lapse than a demo's"
        assert frames.size == like.size
        for line, step in zip(axes, chosen, strict=True):
            frames.seek(min(known.index(step), last))
            frame = torch.from_numpy(np.array(frames.convert("L")))
            left = layout["margin"] + layout["gap"]
            for digit, axis in enumerate(line):
                top = layout["gap"] + digit * (layout["cell"] + layout["gap"])
                show(axis, frame[None, top : top + layout["cell"], left : left + layout["cell"]])
            line[0].text(-0.15, 0.5, f"step {step}", transform=line[0].transAxes, ha="right", va="center")
    figure.subplots_adjust(left=0.1, right=0.995, top=0.995, bottom=0.005)
    return figure


def show(axis: Axes, image: Tensor) -> None:
    axis.imshow(image[0].numpy(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axis.set_axis_off()


def draw_boundary(spec: SynthesisSpec, shards: dict[str, SynthesisedShard]) -> Figure:
    """The features of a class without and with the term, on the same two axes, and some of the images below."""
    mine = {name: (shard.labels == DIGIT).nonzero()[:, 0] for name, shard in shards.items()}
    features = {name: F.normalize(shard.features[mine[name]].double(), dim=1) for name, shard in shards.items()}
    places, shares = principal_components(torch.cat([*features.values()]))
    figure = plt.figure(figsize=(7.6, 5.2))
    outer = figure.add_gridspec(2, 2, height_ratios=(3.1, 1.5), left=0.07, right=0.99, top=0.93, bottom=0.02)
    outer.update(wspace=0.12, hspace=0.24)
    limits = [(values.min() - 0.03, values.max() + 0.03) for values in places.T]
    for column, (name, shard) in enumerate(shards.items()):
        axis = figure.add_subplot(outer[0, column])
        points = places[: len(mine[name])] if column == 0 else places[-len(mine[name]) :]
        similarity = (features[name] @ features[name].T).fill_diagonal_(-torch.inf)
        easiest = similarity.argmax(dim=1)
        pushed = (shard.margin[mine[name]] > spec.boundary_margin) & (similarity.amax(dim=1) > spec.similarity_margin)
        for here, there, counts in zip(points, points[easiest], pushed, strict=True):
            if counts:
                axis.plot([here[0], there[0]], [here[1], there[1]], color=SOFT, linewidth=0.7, zorder=1)
        colour = (FIRST, SECOND)[column]
        axis.scatter(*points[pushed].T, s=20, color=colour, zorder=2)
        axis.scatter(*points[~pushed].T, s=20, facecolor="white", edgecolor=colour, zorder=2)
        diversity = shard_quality(shard)["classes"][str(DIGIT)]["intra_class_diversity"]
        axis.set_title(f"{name}: diversity {diversity:.3f}", fontsize=9)
        axis.set_xlim(*limits[0])
        axis.set_ylim(*limits[1])
        axis.set_xlabel(f"first component ({shares[0]:.0%})", fontsize=8)
        if column == 0:
            axis.set_ylabel(f"second component ({shares[1]:.0%})", fontsize=8)
        axis.tick_params(labelsize=7)
        grid = outer[1, column].subgridspec(2, 8, wspace=0.06, hspace=0.06)
        for number, index in enumerate(mine[name][:16].tolist()):
            show(figure.add_subplot(grid[number // 8, number % 8]), shard.images[index])
    return figure


def draw_attention(student: Student, image: Tensor, pixels: Tensor) -> Figure:
    """The places that a token of the first block looks at first, a panel for each head."""
    seen: list[Tensor] = []
    attention = student.get_submodule("blocks.0.attn")
    assert isinstance(attention, MHCA)
    handle = attention.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        student.eval()(image[None])
        handle.remove()
        weights = attention.attention(seen[0])[0]
    rows, columns = attention.grid_size
    first = attention.num_prefix_tokens
    here = weights[:, first + QUERY[0] * columns + QUERY[1]]
    figure, axes = plt.subplots(1, 1 + len(here), figsize=(7.6, 1.95), layout="constrained")
    show(axes[0], pixels)
    patch = SIDE / rows
    axes[0].add_patch(
        Rectangle((QUERY[1] * patch - 0.5, QUERY[0] * patch - 0.5), patch, patch, fill=False, edgecolor=SECOND, lw=1.6)
    )
    axes[0].set_title("the query token", fontsize=8)
    most = here[:, first:].max().item()
    for head, (axis, offset) in enumerate(zip(axes[1:], head_offsets(len(here)), strict=True)):
        shown = here[head, first:].view(rows, columns).numpy()
        axis.pcolormesh(shown, cmap="Purples", vmin=0, vmax=most, edgecolor="white", linewidth=0.4)
        axis.add_patch(Rectangle((QUERY[1], QUERY[0]), 1, 1, fill=False, edgecolor=SECOND, lw=1.6))
        axis.add_patch(Rectangle((0, 0), columns, rows, fill=False, edgecolor=SOFT, lw=0.8))
        axis.set_aspect("equal")
        axis.invert_yaxis()
        axis.set_axis_off()
        down, right = (f"{n:+d}".replace("-", "−").replace("+0", "0") for n in offset)
        axis.set_title(f"head {head + 1}: Δ = ({down}, {right})\nat most {shown.max():.0%}", fontsize=8)
    return figure


def draw_pairs(cases: Sequence[tuple[str, Student, FrozenTeacher]]) -> Figure:
    """A teacher's stages at the left, a student's blocks at the right, and a line for each pair."""
    figure, axes = plt.subplots(1, len(cases), figsize=(7.6, 3.7), layout="constrained")
    for axis, (name, student, teacher) in zip(axes, cases, strict=True):
        stages = teacher.stages()
        pairs = choose_pairs(student, stages)
        taught = {pair.block for pair in pairs}
        teaching = {pair.stage.index for pair in pairs}
        blocks = student.hidden_shapes
        high = [1 - (n + 0.5) / len(stages) for n in range(len(stages))]
        low = [1 - (n + 0.5) / len(blocks) for n in range(len(blocks))]
        for stage, y in zip(stages, high, strict=True):
            text = f"stage {stage.index}: {stage.channels} × {stage.height} × {stage.width}\nstride {stage.stride}"
            box(axis, 0.0, y, 0.44, 0.8 / len(stages), text, FIRST if stage.index in teaching else SOFT)
        for number, y in enumerate(low):
            kind = "MHCA" if number < student.early_blocks else "self-attention"
            text = f"block {number}: {kind}"
            box(axis, 0.6, y, 0.4, 0.8 / len(blocks), text, SECOND if number in taught else SOFT)
        for pair in pairs:
            axis.plot([0.43, 0.61], [high[pair.stage.index], low[pair.block]], color=INK, lw=1.4)
        axis.set_xlim(-0.01, 1.01)
        axis.set_ylim(-0.01, 1.01)
        axis.set_axis_off()
        axis.set_title(f"{name}:\ntokens {blocks[0].channels} × {blocks[0].rows} × {blocks[0].columns}", fontsize=8.5)
    return figure


def box(axis: Axes, left: float, middle: float, width: float, height: float, text: str, colour: str) -> None:
    axis.add_patch(
        FancyBboxPatch(
            (left + 0.01, middle - height / 2),
            width - 0.02,
            height,
            boxstyle="round,pad=0,rounding_size=0.015",
            facecolor="white",
            edgecolor=colour,
            linewidth=0.9 if colour == SOFT else 1.8,
        )
    )
    axis.text(left + width / 2, middle, text, ha="center", va="center", fontsize=7, color=INK)


def pair_cases() -> list[tuple[str, Student, FrozenTeacher]]:
    """A resnet18 before a student of DeiT-Ti's size at 224 px, and before the small one at 32 px."""
    cases = []
    for size, images in ((224, 1_281_167), (SIDE, 1000)):
        spec = TeacherSpec(
            name="resnet18",
            architecture="resnet18",
            num_classes=10,
            in_chans=3,
            image_size=size,
            mean=[0.5, 0.5, 0.5],
            std=[0.25, 0.25, 0.25],
        )
        facts = DatasetFacts(
            num_samples=images, num_classes=10, image_size=size, in_chans=3, synthetic=True, mirrored=True
        )
        student = TrainingSpec.resolve({"dataset": "images"}, facts, spec).student
        name = f"{student.architecture.split('_')[1]} at {size} px, patches of {student.patch_size} px"
        teacher = FrozenTeacher(build_teacher(spec).eval(), spec)
        cases.append((name, create_student(student, 10, 3), teacher))
    return cases


def demo_run(folder: Path) -> list[dict[str, Any]]:
    """The metrics of each epoch of the demo's student."""
    (file,) = (folder / "storage" / "models").glob("*/metrics.jsonl")
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def draw_run(rows: Sequence[dict[str, Any]]) -> Figure:
    """Losses and accuracies by epoch, the second stage shaded."""
    figure, (losses, accuracies) = plt.subplots(1, 2, figsize=(7.6, 3.0), layout="constrained")
    last = max(row["epoch"] for row in rows)
    first = sum(row["stage"] == 1 for row in rows) + 0.5
    named = ("classification", "distillation", "hidden")
    draw_lines(losses, rows, {name: name for name in named}, "loss, not weighted")
    losses.set_yscale("log")
    known = {"holdout_top1": "made images that were held out", "eval_top1": "real digits"}
    draw_lines(accuracies, rows, known, "top-1")
    accuracies.set_ylim(0, 1)
    for axis in (losses, accuracies):
        axis.axvspan(first, last + 0.5, color=SOFT, alpha=0.18, linewidth=0)
        axis.set_xlim(0.5, last + 0.5)
        axis.set_xlabel("epoch; shaded: stage two")
    return figure


def draw_lines(axis: Axes, rows: Sequence[dict[str, Any]], names: dict[str, str], up: str) -> None:
    for (key, shown), colour in zip(names.items(), (FIRST, SECOND, THIRD), strict=False):
        known = [(row["epoch"], row[key]) for row in rows if key in row]
        axis.plot(*zip(*known, strict=True), color=colour, label=shown, linewidth=1.6)
    axis.set_ylabel(up)
    axis.grid(alpha=0.25)
    axis.legend(fontsize=8, frameon=False)


def save(figure: Figure, name: str) -> None:
    """Write a figure on white: the site has a dark side too."""
    path = DOCS / name
    path.parent.mkdir(exist_ok=True)
    how: dict[str, Any] = {"metadata": {"Date": None}} if path.suffix == ".svg" else {"pil_kwargs": {"quality": 82}}
    figure.savefig(path, dpi=150, facecolor="white", **how)
    plt.close(figure)
    print(f"{path.name}: {path.stat().st_size / 1000:.0f} KB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("dearkd-data"), help="the folder of a finished `dearkd demo`")
    parser.add_argument("--kept", type=Path, help="a folder that keeps the images that are made")
    arguments = parser.parse_args()
    save(draw_steps(arguments.demo), "steps.webp")
    rows = demo_run(arguments.demo)
    save(draw_run(rows), "run.svg")
    print({row["epoch"]: round(row["eval_top1"], 4) for row in rows if "eval_top1" in row}, flush=True)
    teacher = demo_teacher(arguments.demo)
    held_out = real_digits()[1]
    print(f"teacher: {teacher.top1(held_out.images, held_out.labels):.3f} on held-out real digits", flush=True)
    torch.manual_seed(0)
    fresh = create_student(resolved(2000, teacher, {}, synthetic=True, mirrored=False).student, 10, 1)
    pixels = held_out.images[held_out.labels == DIGIT][0]
    save(draw_attention(fresh, to_input(pixels[None], teacher.spec)[0], pixels), "attention.svg")
    save(draw_pairs(pair_cases()), "pairs.svg")
    both: dict[str, SynthesisedShard] = {}
    for name, weight in (("weight 0", 0.0), ("weight 1, the default", 1.0)):
        spec = synthesis(teacher, weights={"boundary": weight})
        make = partial(first_shard, teacher, spec)
        both[name] = kept(arguments.kept / f"boundary-{weight:g}.pt", make) if arguments.kept else make()
        quality = shard_quality(both[name])
        known = ("samples", "teacher_accuracy", "confidence", "margin", "intra_class_diversity")
        print(name, json.dumps({key: round(quality[key], 4) for key in known}), flush=True)
    save(draw_boundary(spec, both), "boundary.webp")


if __name__ == "__main__":
    main()
