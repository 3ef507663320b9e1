"""What each part of DearKD brings, on real images and without any.

    python benchmarks/proof.py --task digits --lines digits.jsonl
    python benchmarks/proof.py --task photographs --lines photographs.jsonl
    python benchmarks/proof.py --task fashion --data 2000 10000 --arms vit resnet plain deit dearkd
    python benchmarks/proof.py --table digits.jsonl photographs.jsonl fashion.jsonl
    python benchmarks/proof.py --seeds 0 --epochs 1 --teacher-epochs 1 --images-per-class 4 --iterations 2

Five students, each the one before and one thing more: a plain ViT; distilled from the teacher's logits (DeiT); with
MHCA; with early hidden distillation in one stage; in two stages (DearKD). Each sees 10, 25, 50 and 100 % of the real
training images (or so many of them: `--data 2000`), and, without one of them, the images that the task's preset makes
of the teacher. Everything else is the trainer's `small` recipe. All have equally many epochs; the teacher, which has
seen all real training images, and the synthetic images are the same for all students of a seed. Two peers stand beside
them on real images, trained by the same recipe without a teacher: timm's plain ViT of the same size, and its ResNet-18,
of about the same cost an image.

Every training is a line of JSON as soon as it is done. `--lines` also appends it to a file, and skips what stands there
already: a run that was cut goes on, and several processes, each with seeds and a file of its own, share the work.

It is not called dearkd.py because a script's folder comes first on Python's path: the package would be hidden.
"""

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import dearkd.vision  # noqa: F401  # makes timm importable

# isort: split
import timm
import torch
from arms import TEACHER, Network, few, synthesise, train_network, train_on, train_peer
from tasks import TASKS, Task, photographs, task
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from dearkd.specs import SynthesisSpec
from dearkd.specs.geometry import choose_patch_size
from dearkd.specs.recipes import STUDENTS

Line = dict[str, Any]

ARMS = {
    "plain": "plain ViT",
    "deit": "+ logits (DeiT)",
    "mhca": "+ MHCA",
    "hidden": "+ early hidden distillation, one stage",
    "dearkd": "two stages (DearKD)",
}
PEERS = {"vit": "timm's ViT", "resnet": "timm's ResNet-18"}
SHARES = {"100": "100 %", "50": "50 %", "25": "25 %", "10": "10 %"}
DATA = SHARES | {"free": "data-free"}
"""Parts of the real images, or none; any other number counts images."""


def peer(name: str, classes: int, chans: int, side: int) -> nn.Module:
    """A model of `PEERS`, whose weights the global generator draws."""
    if name == "resnet":
        return timm.create_model("resnet18", num_classes=classes, in_chans=chans)
    micro = STUDENTS["dearkd_micro_patch8_32"]
    return VisionTransformer(
        img_size=side,
        patch_size=choose_patch_size(side),
        in_chans=chans,
        num_classes=classes,
        embed_dim=micro.embed_dim,
        depth=micro.depth,
        num_heads=micro.num_heads,
    )


def posted(arm: str, epochs: int, stage_two_epochs: int, distillation: str | None) -> dict[str, Any]:
    """The fields of a training spec in which an arm differs from the recipe.

    Args:
        arm: a name of `ARMS`.
        epochs: of both stages together.
        stage_two_epochs: of DearKD's second stage; the others have one stage.
        distillation: `hard` or `soft`; None leaves it to the recipe, which is soft.
    """
    place = list(ARMS).index(arm) if arm in ARMS else 0
    second = stage_two_epochs if place == 4 else 0
    one: dict[str, Any] = {"epochs": epochs - second}
    if place == 0:
        one["distillation"] = "none"
    elif distillation is not None:
        one["distillation"] = distillation
    if place < 3:
        one["weights"] = {"hidden": 0.0}
    body: dict[str, Any] = {"stage_one": one, "stage_two": {"epochs": second}}
    if place < 2:
        body["student"] = {"mhca_blocks": 0}
    return body


def settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """What lines must have in common to stand in one table, but for the task."""
    names = ["epochs", "stage_two_epochs", "distillation", "teacher_epochs"]
    names += ["teacher_seed", "train_per_class", "images_per_class", "iterations"]
    return {name: getattr(arguments, name) for name in names} | {"training": json.loads(arguments.training)}


def run(arguments: argparse.Namespace, data: Task, done: Sequence[Line]) -> Iterator[Line]:
    """The lines that are not done yet."""
    finished = {(line["task"], line["seed"], line["data"], line["arm"]) for line in done}
    for seed in arguments.seeds:
        wanted = [
            (images, arm)
            for images, arm in (*itertools.product(arguments.data, arguments.arms), *arguments.also)
            if (data.name, seed, images, arm) not in finished
        ]
        if not wanted:
            continue
        whose = seed if arguments.teacher_seed is None else arguments.teacher_seed
        teacher = train_network(data, TEACHER, whose, arguments.teacher_epochs, arguments.teachers)
        teacher_top1 = teacher.top1(data.held_out_images, data.held_out_labels)
        synthetic = None
        if any(images == "free" for images, _ in wanted):
            synthetic = synthesise(teacher, synthesis(arguments, data, teacher) | {"seed": seed})
        for images, arm in wanted:
            began = time.monotonic()
            body = posted(arm, arguments.epochs, arguments.stage_two_epochs, arguments.distillation)
            # What is held out chooses `best`, which nobody looks at here.
            body |= {"seed": seed, "holdout": 0.0, "eval_every": arguments.epochs, "workers": 0}
            more = json.loads(arguments.training)
            body |= more | {"student": more.get("student", {}) | body.get("student", {})}
            if images == "free":
                assert synthetic is not None
                pixels, labels = synthetic.images, synthetic.labels
            elif images in SHARES:
                pixels, labels = data.images, data.labels
                body["fraction"] = int(images) / 100
            else:
                some = few(data, int(images))
                pixels, labels = some.images, some.labels
            if arm in PEERS:
                torch.manual_seed(seed)
                model = peer(arm, len(data.class_names), data.in_chans, pixels.shape[-1])
                top1 = train_peer(model, pixels, labels, teacher, data, body)
            else:
                top1, _ = train_on(
                    pixels, labels, teacher, data, body, synthetic=images == "free", mirrored=data.mirrored
                )
            yield {
                "task": data.name,
                "arm": arm,
                "data": images,
                "seed": seed,
                "top1": round(top1, 4),
                "teacher_top1": round(teacher_top1, 4),
                "images": round(len(labels) * body.get("fraction", 1.0)),
                "seconds": round(time.monotonic() - began, 1),
                "settings": settings(arguments),
            }


def synthesis(arguments: argparse.Namespace, data: Task, teacher: Network) -> dict[str, Any]:
    """The preset's spec, but for what the command line changes."""
    body: dict[str, Any] = dict(data.synthesis)
    if arguments.images_per_class is not None:
        body["images_per_class"] = arguments.images_per_class
    if arguments.iterations is not None:
        preset = SynthesisSpec.resolve({"teacher": "teacher"} | body, teacher.spec).phases
        body["phases"] = [phase.model_dump() | {"iterations": arguments.iterations} for phase in preset]
    return body


def tables(lines: Sequence[Line]) -> str:
    """For each task, in Markdown: top-1 of every arm on all data, and what each arm has over the one before it."""
    parts = []
    for name in dict.fromkeys(line["task"] for line in lines):
        mine = [line for line in lines if line["task"] == name]
        found = dict.fromkeys(line["data"] for line in mine)
        columns = [*(c for c in DATA if c in found), *sorted((c for c in found if c not in DATA), key=int)]
        head = f"| {{}} | {' | '.join(DATA.get(c, c) for c in columns)} |\n" + "|---" * (len(columns) + 1) + "|"
        teachers = {line["seed"]: line["teacher_top1"] for line in mine}
        parts.append(
            f"{name}: teacher {_mean_and_spread(teachers.values())}, seeds {', '.join(map(str, sorted(teachers)))}\n"
        )
        parts.append(head.format("top-1, mean ± standard deviation"))
        parts += [
            f"| {name} | {' | '.join(_mean_and_spread(_by_seed(mine, arm, c).values()) for c in columns)} |"
            for arm, name in (PEERS | ARMS).items()
            if any(line["arm"] == arm for line in mine)
        ]
        parts.append("\n" + head.format("points over the line above, mean (lowest to highest)"))
        for before, arm in itertools.pairwise(arm for arm in ARMS if any(line["arm"] == arm for line in mine)):
            cells = [_gain(_by_seed(mine, before, c), _by_seed(mine, arm, c)) for c in columns]
            parts.append(f"| {ARMS[arm]} | {' | '.join(cells)} |")
        half, whole = _by_seed(mine, "dearkd", "50"), _by_seed(mine, "plain", "100")
        parts.append(f"\nDearKD at 50 % over plain at 100 %: {_gain(whole, half)}\n")
    return "\n".join(parts)


def _by_seed(lines: Iterable[Line], arm: str, images: str) -> dict[int, float]:
    return {line["seed"]: line["top1"] for line in lines if (line["arm"], line["data"]) == (arm, images)}


def _mean_and_spread(values: Iterable[float]) -> str:
    found = [100 * value for value in values]
    return f"{statistics.fmean(found):.1f} ± {statistics.pstdev(found):.1f}" if found else "–"


def _gain(before: dict[int, float], after: dict[int, float]) -> str:
    """Seed by seed: the seeds share teacher, split and images."""
    gains = [100 * (after[seed] - before[seed]) for seed in sorted(before.keys() & after.keys())]
    return f"{statistics.fmean(gains):+.1f} ({min(gains):+.1f} to {max(gains):+.1f})" if gains else "–"


def cell(text: str) -> tuple[str, str]:
    """What `--also` names, such as `100:plain`."""
    images, _, arm = text.partition(":")
    if arm not in ARMS | PEERS:
        raise argparse.ArgumentTypeError(f"{text!r}: the arm is one of {', '.join(ARMS | PEERS)}")
    return amount(images), arm


def amount(text: str) -> str:
    """What `--data` names: a key of `DATA`, or a number of images."""
    if text in DATA or (text.isdecimal() and int(text) > max(map(int, SHARES))):
        return text
    raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(DATA)}, and no number of images above 100")


def read_lines(paths: Iterable[Path]) -> list[Line]:
    return [json.loads(text) for path in paths if path.exists() for text in path.read_text().splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="digits", choices=TASKS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS | PEERS)
    parser.add_argument("--data", nargs="+", default=list(DATA), type=amount, help="shares, `free`, numbers of images")
    parser.add_argument("--also", nargs="+", default=[], type=cell, metavar="DATA:ARM", help="single ones beside these")
    parser.add_argument("--epochs", type=int, default=36, help="of each student, over both stages")
    parser.add_argument("--stage-two-epochs", type=int, help="of DearKD's; by default a twelfth, as in the recipe")
    parser.add_argument("--distillation", choices=["hard", "soft"], help="by default the recipe's, which asks the data")
    parser.add_argument("--teacher-epochs", type=int, default=15)
    parser.add_argument("--teacher-seed", type=int, help="one teacher for all seeds; by default each seed has its own")
    parser.add_argument("--teachers", type=Path, help="a folder that keeps them, for other processes and settings")
    parser.add_argument("--train-per-class", type=int, help="crops of a photograph; by default the task's")
    parser.add_argument("--images-per-class", type=int, help="of the synthetic ones; by default the preset's")
    parser.add_argument("--iterations", type=int, help="of each phase of synthesis; by default the preset's")
    parser.add_argument("--training", default="{}", help="fields of the training spec, as JSON")
    parser.add_argument("--lines", type=Path, help="a file to append to, whose trainings are not done again")
    parser.add_argument("--table", type=Path, nargs="+", help="print the tables of such files, and train nothing")
    arguments = parser.parse_args()
    if arguments.table:
        print(tables(read_lines(arguments.table)))
        return
    if arguments.stage_two_epochs is None:
        arguments.stage_two_epochs = min(arguments.epochs - 1, max(1, round(arguments.epochs / 12)))
    done = read_lines([arguments.lines]) if arguments.lines else []
    if any(line["settings"] != settings(arguments) for line in done):
        raise SystemExit(f"{arguments.lines} holds lines of other settings: name another file")
    lines = list(done)
    data = task(arguments.task)
    if arguments.train_per_class is not None:
        if arguments.task != "photographs":
            raise SystemExit("--train-per-class: crops can be as many as wanted, digits are as many as there are")
        data = photographs(train_per_class=arguments.train_per_class)
    for line in run(arguments, data, done):
        lines.append(line)
        print(json.dumps(line), flush=True)
        if arguments.lines:
            with arguments.lines.open("a") as file:
                file.write(json.dumps(line) + "\n")
    print(tables(lines), file=sys.stderr)


if __name__ == "__main__":
    main()
