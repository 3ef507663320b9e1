"""How far a student without data is from one with it: real images, ours, published DeepInversion, and controls.

    python benchmarks/gap.py --folder gap --cells fashion:resnet10t photographs:resnet10t glyphs:resnet10t \\
        --seeds 0 1 2 --images 1000 --epochs 36 --arms real ours draft pixels published noise shuffled
    python benchmarks/gap.py --folder gap --cells fashion:resnet10t --arms ours boundary-0 boundary-3 --passes 200 20
    python benchmarks/gap.py --folder gap --table
    python benchmarks/gap.py --folder gap --plot gap.png
    python benchmarks/gap.py --folder gap --cells fashion:resnet10t --arms ours --nearest nearest.png
    python benchmarks/gap.py --folder gap --cells fashion:resnet10t --arms boundary-0 ours --features features.png
    python benchmarks/gap.py --folder smoke --cells digits:resnet10t --images 40 --epochs 2 --passes 4 \\
        --network-passes 2000

A cell is a task and the teacher's family. In it each arm gives a student of the trainer's `small` recipe, which learns
from the soft labels of the live teacher on every view: equally many images, steps and epochs, whatever the images are.

- `real`: of the task's training part, as many of each class.
- `ours`: the preset `auto`; `pixels`: that without its generator; `draft`: that preset; `published`: DeepInversion's
  objective in as many passes; `boundary-3`, `statistics-20`, `variation-1.0`: ours with that weight of the term;
  `restated`: ours, labelled by a teacher with their own statistics; `still`, `strong`, `crops`: ours, in views that are
  not turned, sheared and shifted, twice as much, or cropped too (`real-still`: real ones); `fine`: pixels, a quarter of
  the iterations on a tensor of 32 px; `earlier`: pixels, each batch begun from the images of the one before.
  `ours-20` has 20 teacher passes an image, `--passes 200 20` gives every such arm both.
- Controls (arXiv 2604.18811, 2406.10485), without which good students of soft labels say nothing of the images:
  `noise` (normal in the teacher's normalised space), `uniform` (of pixels), `shuffled` and `shuffled4` (ours, patches
  of 8 and 4 pixels in another order). Since no class is in them, the recorded hard label is what the teacher says of
  each; so it is not absurd, and classes are not balanced.

`--arm-file` adds arms as JSON, fields by name: `{"images": "ours", "synthesis": {…}, "training": {…},
"teacher_statistics": "images"}`, and `passes`, `count`, `epochs`, `patch`. `synthesis` and `training` are fields of the
specs; with `teacher_statistics` `images` the teacher that labels has BatchNorm statistics of the arm's own images (the
judge, precision, recall and what is held out have nothing to do with it).

Chosen is on a part of the training images that is in nobody's images (`gap_arms.parts_of`); `--final` looks at the
task's test images instead, once, when all is chosen. Networks are trained without that part, but those of `--teachers`,
which come from elsewhere (proof.py's, of `--teacher-epochs`): of other tasks than fashion they have seen it, and the
lines say so. All seeds have one teacher and the same real images; other images, and students, are each seed's own.

Networks, images, figures and students are files in the folder, each made once; several processes share the work, and
one that is cut goes on.
"""

import argparse
import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import dearkd.vision  # noqa: F401  # makes timm importable

# isort: split
from arms import Network, few, in_turn, judge_of, network, resolved, synthesise, train_network, train_on
from gap_arms import ARMS, Arm, arm_named, merged, noise, parts_of, restated, shuffled_patches, with_passes
from gap_figures import Line, plot, table
from gap_giveaway import feature_distance, given_away, pixel_distance
from gap_pictures import Shown, features_picture, nearest_picture
from keeping import Busy, kept
from manifolds import coverage
from tasks import TASKS, Task, task
from torch import Tensor

from dearkd.specs import SynthesisSpec, TrainingSpec


@dataclass(frozen=True)
class Cell:
    """A task, its networks and the folder, in which all else is kept."""

    folder: Path
    data: Task
    family: str
    teacher: Network
    judge: Network
    facts: Line
    """What lines say of teacher and task."""
    teacher_id: str
    images: int
    epochs: int
    posted: Line
    """Fields of every student's training spec."""

    @cached_property
    def training_features(self) -> Tensor:
        return self.teacher.answers(self.data.images)[0]

    def count(self, arm: Arm) -> int:
        return arm.count or self.images

    def synthesis(self, arm: Arm, seed: int) -> SynthesisSpec | None:
        """The complete spec of an arm's images; None where none are made."""
        if not arm.is_made:
            return None
        each = -(-self.count(arm) // len(self.data.class_names))
        posted = merged(self.data.synthesis | {"seed": seed, "images_per_class": each}, arm.synthesis)
        return with_passes(posted, self.teacher.spec, arm.passes)

    def training(self, arm: Arm, seed: int) -> Line:
        """The fields of an arm's training spec: all epochs it does not set itself, a twelfth of them in stage two."""
        epochs = arm.epochs or self.epochs
        second = arm.training.get("stage_two", {}).get("epochs", round(epochs / 12))
        body = {
            "seed": seed,
            "holdout": 0.0,
            "eval_every": epochs,
            "workers": 0,
            "stage_one": {"epochs": epochs - second},
            "stage_two": {"epochs": second},
        }
        return merged(merged(body, self.posted), arm.training)

    def training_spec(self, arm: Arm, seed: int) -> TrainingSpec:
        return resolved(
            self.count(arm),
            self.teacher,
            self.training(arm, seed),
            synthetic=arm.images != "real",
            mirrored=self.data.mirrored,
        )

    def images_name(self, arm: Arm, seed: int) -> str:
        """A name that tells sets of images apart; arms may share one."""
        spec = self.synthesis(arm, seed)
        asked: Line = {"kind": arm.images, "count": self.count(arm), "teacher": self.teacher_id}
        if spec is not None:
            asked["synthesis"] = spec.model_dump(mode="json", exclude_none=True)
        if arm.images == "shuffled":
            asked["patch"] = arm.patch
        if arm.images != "real":
            asked["seed"] = seed
        return f"{self.data.name}-{self.family}-{arm.images}-{digest(asked)}"

    def images_of(self, arm: Arm, seed: int, *, wait: bool = True) -> tuple[Tensor, Tensor, float]:
        """An arm's images, uint8, their labels, and the seconds that they took."""
        count = self.count(arm)
        if arm.images == "real":
            some = few(self.data, count)
            if len(some.labels) < count:
                raise SystemExit(f"--images {count}: {self.data.name} has {len(some.labels)} to train on: ask for them")
            return some.images, some.labels, 0.0
        if arm.images in ("noise", "uniform"):
            pixels = noise(arm.images, count, self.teacher.spec, seed)
            return pixels, self.named(pixels), 0.0
        if arm.images == "shuffled":
            pixels, _, seconds = self.images_of(replace(arm, images="ours"), seed, wait=wait)
            pixels = shuffled_patches(pixels, arm.patch, seed)
            return pixels, self.named(pixels), seconds
        spec = self.synthesis(arm, seed)
        assert spec is not None

        def make() -> tuple[Tensor, Tensor, float]:
            began = time.monotonic()
            made = synthesise(self.teacher, spec.model_dump(mode="json", exclude_none=True))
            taken = in_turn(made.labels)[:count]
            return made.images[taken], made.labels[taken], time.monotonic() - began

        found: tuple[Tensor, Tensor, float] = kept(
            self.folder / "images" / f"{self.images_name(arm, seed)}.pt", make, wait=wait
        )
        return found

    def named(self, images: Tensor) -> Tensor:
        """What the teacher says that images are."""
        return self.teacher.answers(images)[1].argmax(1).clone()

    def figures_of(self, arm: Arm, seed: int, images: Tensor, labels: Tensor) -> Line:
        """What can be said of images without training on them; kept, since arms of one set differ in training alone."""
        path = self.folder / "figures" / f"{self.images_name(arm, seed)}-{self.facts['part']}.json"
        found: Line = kept(path, partial(self._figures, arm, images, labels))
        return found

    def _figures(self, arm: Arm, images: Tensor, labels: Tensor) -> Line:
        features, logits = self.teacher.answers(images)
        theirs, judged = self.judge.answers(images)
        held = self.data.held_out_images[in_turn(self.data.held_out_labels)[: len(labels)]]
        count = len(held)
        found = coverage(self.judge.answers(held)[0], theirs[:count])
        line: Line = {
            "teacher_accuracy": (logits.argmax(1) == labels).double().mean().item(),
            "judge_accuracy": (judged.argmax(1) == labels).double().mean().item(),
            "precision": found.precision,
            "recall": found.recall,
        }
        if arm.images != "real":  # of which each is its own nearest
            line |= {
                "nearest_pixels": given_away(images, held, self.data.images, pixel_distance),
                "nearest_features": given_away(
                    features, self.teacher.answers(held)[0], self.training_features, feature_distance
                ),
            }
        return line


def digest(asked: Line) -> str:
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:8]


def cell_of(options: argparse.Namespace, name: str, family: str) -> Cell:
    data = parts_of(name, final=options.final)
    own = partial(network, options.folder / "networks", data, passes=options.network_passes)
    seed = options.teacher_seed
    if options.teachers is None:
        teacher, teacher_id = own(family, seed), f"own-{seed}"
    else:
        place = options.teachers / f"{name}-{family}-{seed}-{options.teacher_epochs}.pt"
        if not place.exists():
            raise SystemExit(f"{place}: there is no such teacher; without --teachers one is trained here")
        teacher = train_network(task(name), family, seed, options.teacher_epochs, options.teachers)
        teacher_id = f"given-{seed}-{options.teacher_epochs}"
    if options.network_passes is not None:
        teacher_id += f"-{options.network_passes}"
    judge = own(judge_of(family), 0)
    held, labels = data.held_out_images, data.held_out_labels
    facts = {
        "task": name,
        "family": family,
        "part": "test" if options.final else "validation",
        "teacher": teacher_id,
        "teacher_saw_part": options.teachers is not None and name != "fashion" and not options.final,
        "teacher_top1": round(teacher.top1(held, labels), 4),
        "judge_top1": round(judge.top1(held, labels), 4),
    }
    counts = options.images, options.epochs
    return Cell(options.folder, data, family, teacher, judge, facts, teacher_id, *counts, json.loads(options.training))


def line_of(cell: Cell, arm: Arm, seed: int, *, wait: bool) -> Line:
    """The line of an arm's student, trained unless it is there."""
    synthesis = cell.synthesis(arm, seed)
    count, body = cell.count(arm), cell.training(arm, seed)
    spec, synthetic = cell.training_spec(arm, seed), arm.images != "real"
    settings: Line = {
        "images": arm.images,
        "count": count,
        "patch": arm.patch if arm.images == "shuffled" else None,
        "synthesis": synthesis.model_dump(mode="json", exclude={"seed"}, exclude_none=True) if synthesis else None,
        "training": spec.model_dump(mode="json", exclude={"seed"}, exclude_none=True),
        "teacher_statistics": arm.teacher_statistics,
        "teacher": cell.teacher_id,
        "part": cell.facts["part"],
    }
    passes = sum(phase.iterations for phase in synthesis.phases) if synthesis else 0
    setting = digest(settings)
    name = f"{cell.data.name}-{cell.family}-{arm.name}-{passes}-{seed}-{setting}.json"

    def make() -> Line:
        images, labels, seconds = cell.images_of(arm, seed, wait=wait)
        figures = cell.figures_of(arm, seed, images, labels)
        teacher = restated(cell.teacher, images, seed) if arm.teacher_statistics == "images" else cell.teacher
        began = time.monotonic()
        top1, _ = train_on(images, labels, teacher, cell.data, body, synthetic=synthetic, mirrored=cell.data.mirrored)
        return {
            **cell.facts,
            "arm": arm.name,
            "seed": seed,
            "images": count,
            "epochs": spec.epochs,
            "passes": passes,
            "top1": round(top1, 4),
            **figures,
            "labelling_teacher_top1": teacher.top1(cell.data.held_out_images, cell.data.held_out_labels),
            "synthesis_seconds": round(seconds, 1),
            "student_seconds": round(time.monotonic() - began, 1),
            "setting": setting,
            "settings": settings,
        }

    found: Line = kept(cell.folder / "students" / name, make, wait=wait)
    return found


def wanted(options: argparse.Namespace, known: dict[str, dict[str, Any]]) -> list[Arm]:
    """The arms that the command line asks for."""
    arms = []
    for name in options.arms:
        try:
            arm = arm_named(name, known)
        except ValueError as error:
            raise SystemExit(f"--arms {error}") from None
        some = options.passes if options.passes and arm.is_made and arm.passes is None else [arm.passes]
        arms += [replace(arm, passes=passes) for passes in some]
    return arms


def run(options: argparse.Namespace, arms: list[Arm]) -> Iterator[Line]:
    """The lines, at the end those of what other processes made meanwhile."""
    work = []
    for name, family in options.cells:
        cell = cell_of(options, name, family)
        work += [(cell, arm, seed) for seed in options.seeds for arm in arms]
        for arm in arms:  # what is refused is refused before hours of work
            cell.synthesis(arm, 0)
            cell.training_spec(arm, 0)
    busy = []
    for cell, arm, seed in work:
        try:
            yield line_of(cell, arm, seed, wait=False)
        except Busy:
            busy.append((cell, arm, seed))
    for cell, arm, seed in busy:
        yield line_of(cell, arm, seed, wait=True)


def pictures(options: argparse.Namespace, arms: list[Arm]) -> None:
    """Draw the images of the first cell's arms, made where they are not there."""
    cell, seed = cell_of(options, *options.cells[0]), options.seeds[0]
    shown = []
    for arm in (arm for arm in arms if arm.is_made):
        images, labels, _ = cell.images_of(arm, seed)
        name = arm.name if arm.passes is None else f"{arm.name}-{arm.passes}"
        shown.append(Shown(name, images, labels, cell.teacher.answers(images)[0]))
    if not shown:
        raise SystemExit("--arms names none whose images are made: name one, such as ours")
    if options.nearest:
        nearest_picture(shown[0], cell.data.images, cell.training_features, options.nearest)
    if options.features:
        real = Shown("real", cell.data.images, cell.data.labels, cell.training_features)
        features_picture(shown, real, cell.data.class_names, options.features)


def lines_of(folder: Path) -> list[Line]:
    return [json.loads(path.read_text()) for path in sorted((folder / "students").glob("*.json"))]


def cell_name(text: str) -> tuple[str, str]:
    """What `--cells` names, such as `fashion:resnet10t`."""
    name, _, family = text.partition(":")
    if name not in TASKS or not family:
        raise argparse.ArgumentTypeError(f"{text!r}: is TASK:ARCHITECTURE, the task one of {', '.join(TASKS)}")
    return name, family


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("gap"))
    parser.add_argument("--cells", type=cell_name, nargs="+", default=[("fashion", "resnet10t")])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=48, help="of each student, over both stages")
    parser.add_argument("--training", default="{}", help="fields of every student's training spec, as JSON")
    parser.add_argument("--arms", nargs="+", default=["real", "ours", "published", "noise", "shuffled"])
    parser.add_argument("--arm-file", type=Path, help="JSON of further arms: name to fields")
    parser.add_argument("--passes", type=int, nargs="+", help="of the teacher, an image; by default the specs'")
    parser.add_argument("--teachers", type=Path, help="a folder of finished ones, TASK-ARCHITECTURE-SEED-EPOCHS.pt")
    parser.add_argument("--teacher-epochs", type=int, default=15, help="of those")
    parser.add_argument("--teacher-seed", type=int, default=0)
    parser.add_argument("--network-passes", type=int, help="images that teacher and judge see here, for a trial")
    parser.add_argument("--final", action="store_true", help="judge by the test images: once, when all is chosen")
    parser.add_argument("--table", action="store_true", help="print what is there, and make nothing")
    parser.add_argument("--plot", type=Path, help="draw what is there, and make nothing")
    parser.add_argument("--nearest", type=Path, help="a picture of the first cell's images beside training's")
    parser.add_argument("--features", type=Path, help="a picture of the first cell's classes as the teacher sees them")
    options = parser.parse_args()
    if options.table or options.plot:
        if options.table:
            print(table(lines_of(options.folder)))
        if options.plot:
            plot(lines_of(options.folder), options.plot)
        return
    known = ARMS | (json.loads(options.arm_file.read_text()) if options.arm_file else {})
    arms = wanted(options, known)
    if options.nearest or options.features:
        pictures(options, arms)
        return
    for line in run(options, arms):
        print(
            f"{line['task']:12} {line['family']:12} {line['arm']:16} {line['passes']:5} passes  seed {line['seed']}  "
            f"top-1 {line['top1']:.4f} (teacher {line['teacher_top1']:.4f})  label {line['teacher_accuracy']:.3f}  "
            f"judge {line['judge_accuracy']:.3f}  {line['synthesis_seconds'] + line['student_seconds']:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
