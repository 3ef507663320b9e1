"""Time of a step of the inversion over time of its limit: the frozen teacher's forward and backward to the input.

    python benchmarks/inversion_step.py --json
    python benchmarks/inversion_step.py --architecture resnet18 --image-size 64 --batch-size 64
    python benchmarks/inversion_step.py --architecture resnet50 --image-size 224 --batch-size 8 --steps 15
    python benchmarks/inversion_step.py --memory --json

Both run in turn, step by step, in one process with the same precision, so that a noisy machine slows both alike; the
medians are compared. The step is the one of `DeepInversion` with all terms of the image size's preset at full
resolution: upsampling, roll, flip, teacher, statistics, boundary term, priors, Adam, clip.

With --compare the two formulations of `formulations.py` run in the same turns: plain hooks, and the reference's.

With --compile two more run in the same turns: our step with the spec's `compile`, and the teacher's forward and
backward compiled likewise. The latter is the fair bound of the former (`compiled_over_its_bound`); beside the bare pass
as written (`compiled_ratio`) a compiled step looks better than it is. Compiling takes minutes, before the first step.

With --previews nothing else is measured but steps with live previews against steps without: windows of two seconds, in
one run and in turn, with one picture at the beginning of every other one. It is taken, drawn and written to a file as
the synth worker does it, in a second thread; asking Redis and the network are left out, which that thread waits for.

With --memory the peak of each is measured too, in a process of its own, above what the process held before the first
step: of the device's allocator on a GPU, of resident memory on the CPU.

On a GPU the teacher and the images are channels_last and bfloat16 is by autocast, as in `DeepInversion`; CUDA graphs
are not used, and not measured.
"""

import argparse
import copy
import json
import math
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import psutil
import torch
from formulations import COMPILED, FORMULATIONS, Formulation
from torch import nn
from torch.nn import functional as F

from dearkd.settings import Settings
from dearkd.specs import SynthesisSpec, TeacherSpec
from dearkd.storage.catalog import Teacher
from dearkd.vision.teachers import build_teacher
from dearkd.work.attempt import Attempt
from dearkd_synth.engine.determinism import reproducible
from dearkd_synth.inversion import DeepInversion, Step
from dearkd_synth.service.live import LivePicture, LivePreviews, draw

WARM_UP = 3
WINDOW_SECONDS = 2.0
IMAGES_PER_CLASS = 4


class Stopwatch:
    """Told of each step of the inversion; runs and times a bare step after it, and those of other formulations."""

    def __init__(self, setting: "Setting", *, compare: bool, compile_it: bool) -> None:
        self.setting = setting
        self.step_seconds: list[float] = []
        others: dict[str, Formulation] = {"bare": setting.bare}
        if compare:
            others |= {name: setting.formulation(name) for name in FORMULATIONS}
        if compile_it:
            others |= {name: setting.formulation(name) for name in COMPILED}
            with reproducible(setting.device):  # as in each step, or what is compiled here would not serve there
                for name in COMPILED:
                    others[name]()
        self.others = others
        self.other_seconds: dict[str, list[float]] = {name: [] for name in others}
        self._began = self.now()

    def now(self) -> float:
        if self.setting.x.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def __call__(self, step: Step) -> None:
        ended = self.now()
        self.step_seconds.append(ended - self._began)
        for name, run in self.others.items():
            began = self.now()
            run()
            self.other_seconds[name].append(self.now() - began)
        self._began = self.now()


class Setting:
    """The teacher, the spec of the step and the images of the bare pass."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        size, batch = arguments.image_size, arguments.batch_size
        self.device = torch.device(arguments.device)
        self.autocast = arguments.precision == "bfloat16"
        self.teacher_spec, self.model, self.spec = _teacher_and_spec(arguments, self.device)
        self.labels = [i % self.spec.classes_per_batch for i in range(batch)]
        self.targets = torch.tensor(self.labels, device=self.device)
        x = torch.randn(batch, arguments.in_chans, size, size, device=self.device)
        self.x = x.contiguous(memory_format=torch.channels_last).requires_grad_()

    def bare(self) -> None:
        with torch.autocast(self.x.device.type, torch.bfloat16, enabled=self.autocast):
            logits = self.model(self.x)
        torch.autograd.grad(F.cross_entropy(logits.float(), self.targets), self.x)

    def described(self, arguments: argparse.Namespace) -> dict[str, object]:
        return {
            "architecture": arguments.architecture,
            "image_size": arguments.image_size,
            "in_chans": arguments.in_chans,
            "batch_size": arguments.batch_size,
            "preset": self.spec.preset,
            "precision": arguments.precision,
            "device": torch.cuda.get_device_name() if self.x.is_cuda else "cpu",
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }

    def formulation(self, name: str) -> Formulation:
        """Another way to write the step, on a teacher and images of its own."""
        x = self.x.detach().clone().requires_grad_()
        return (FORMULATIONS | COMPILED)[name](copy.deepcopy(self.model), self.spec, x, self.targets)

    def invert(self, on_step: Callable[[Step], None] | None = None) -> None:
        with DeepInversion(self.model, self.teacher_spec, self.spec, device=self.device, on_step=on_step) as inversion:
            inversion.batch(self.labels, seed=0)


def _teacher_and_spec(
    arguments: argparse.Namespace, device: torch.device
) -> tuple[TeacherSpec, nn.Module, SynthesisSpec]:
    size, batch = arguments.image_size, arguments.batch_size
    teacher_spec = TeacherSpec(
        name="benchmark",
        architecture=arguments.architecture,
        num_classes=max(2, batch // IMAGES_PER_CLASS),
        in_chans=arguments.in_chans,
        image_size=size,
        mean=[0.5] * arguments.in_chans,
        std=[0.25] * arguments.in_chans,
    )
    torch.manual_seed(0)
    model = build_teacher(teacher_spec)
    with torch.no_grad():  # statistics of some data, as a trained teacher has them
        model.train()(torch.randn(16, arguments.in_chans, size, size))
    model = model.eval().requires_grad_(False)
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
    spec = SynthesisSpec.resolve(
        {
            "teacher": "benchmark",
            "batch_size": batch,
            "classes_per_batch": batch // IMAGES_PER_CLASS,
            "images_per_class": IMAGES_PER_CLASS,
            "phases": [{"resolution": size, "input_size": size, "iterations": WARM_UP + arguments.steps}],
            "generator": None,
            "precision": arguments.precision,
            "weights": json.loads(arguments.weights),
        },
        teacher_spec,
    )
    return teacher_spec, model, spec


class OnlyDrawn(LivePreviews):
    """Draws what it sees, and writes it to a file in place of the job's storage."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.draw_seconds: list[float] = []

    def _show(self, attempt: Attempt, teacher: Teacher, picture: LivePicture) -> None:
        began = time.perf_counter()
        self.path.write_bytes(draw(picture.snapshot, teacher))
        self.draw_seconds.append(time.perf_counter() - began)


class Windows:
    """Told of each step; counts steps in windows of equal time, with a picture in every other one."""

    def __init__(self, previews: OnlyDrawn, device: torch.device, number: int) -> None:
        self._previews = previews
        self._device = device
        self._left = number + 1
        self._began = math.inf
        self._steps = 0
        self.step_seconds: dict[bool, list[float]] = {True: [], False: []}
        """The mean step of each window, with a picture or without."""
        self.snapshot_seconds: list[float] = []

    def __call__(self, step: Step) -> None:
        if step.iteration <= WARM_UP:
            return
        self._steps += 1
        if time.perf_counter() < self._began + WINDOW_SECONDS and self._began < math.inf:
            return
        with_picture = self._left % 2 == 1
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        if self._began < math.inf:
            self.step_seconds[with_picture].append((now - self._began) / self._steps)
        self._left -= 1
        if self._left == 0:
            raise Over
        self._began, self._steps = now, 0
        if self._left % 2 == 1:
            self._previews.see(step)
            self.snapshot_seconds.append(time.perf_counter() - now)


class Over(Exception):
    """The last window is over."""


def measure_previews(arguments: argparse.Namespace) -> dict[str, object]:
    setting = Setting(arguments)
    endless = [phase.model_copy(update={"iterations": 10**6}) for phase in setting.spec.phases]
    setting.spec = setting.spec.model_copy(update={"phases": endless})
    made = {"id": "tch-1", "created_at": datetime.now(UTC), "sha256": "", "bytes": 0, "parameters": 0}
    teacher = Teacher.model_validate(setting.teacher_spec.model_dump() | made | {"batch_norm_layers": 0})
    job = SimpleNamespace(id="syn-1", attempt=1)
    # Every look is due: the windows say when there is one.
    attempt = cast(Attempt, SimpleNamespace(job=job, unit="0", settings=Settings(preview_seconds=1e-9)))
    with tempfile.TemporaryDirectory() as folder:
        previews = OnlyDrawn(Path(folder) / "live.png")
        windows = Windows(previews, setting.device, arguments.windows)
        with suppress(Over), previews.showing(attempt, teacher):
            setting.invert(windows)
        size = previews.path.stat().st_size
    on, off = (statistics.median(windows.step_seconds[which]) for which in (True, False))
    return {
        **setting.described(arguments),
        "windows": arguments.windows,
        "step_milliseconds": round(off * 1000, 3),
        "step_with_previews_milliseconds": round(on * 1000, 3),
        "previews_ratio": round(on / off, 4),
        "snapshot_milliseconds": round(statistics.median(windows.snapshot_seconds) * 1000, 3),
        "draw_milliseconds": round(statistics.median(previews.draw_seconds) * 1000, 3),
        "picture_bytes": size,
    }


def peak_megabytes(arguments: argparse.Namespace) -> float:
    """The peak of `--peak`'s steps above what the process held before them."""
    setting = Setting(arguments)
    on_gpu = setting.x.is_cuda
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        before = psutil.Process().memory_info().rss
    if arguments.peak == "step":
        setting.invert()
    else:
        run = setting.bare if arguments.peak == "bare" else setting.formulation(arguments.peak)
        for _ in range(WARM_UP + arguments.steps):
            run()
    peak = torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return (peak - before) / 2**20


def measure(arguments: argparse.Namespace) -> dict[str, object]:
    setting = Setting(arguments)
    stopwatch = Stopwatch(setting, compare=arguments.compare, compile_it=arguments.compile)
    setting.invert(stopwatch)
    step = statistics.median(stopwatch.step_seconds[WARM_UP:])
    others = {name: statistics.median(seconds[WARM_UP:]) for name, seconds in stopwatch.other_seconds.items()}
    bare = others.pop("bare")
    figures = setting.described(arguments) | {
        "steps": arguments.steps,
        "step_milliseconds": round(step * 1000, 3),
        "bare_milliseconds": round(bare * 1000, 3),
        "ratio": round(step / bare, 3),
    }
    figures |= {f"{name}_ratio": round(seconds / bare, 3) for name, seconds in others.items()}
    if arguments.compile:
        figures["compiled_over_its_bound"] = round(others["compiled"] / others["compiled_bare"], 3)
    if arguments.memory:
        peaks = {
            what: float(subprocess.check_output([sys.executable, __file__, *sys.argv[1:], "--peak", what]))
            for what in (
                "step",
                "bare",
                *(FORMULATIONS if arguments.compare else ()),
                *(COMPILED if arguments.compile else ()),
            )
        }
        figures |= {f"{what}_peak_megabytes": round(peak, 1) for what, peak in peaks.items()}
        figures["memory_ratio"] = round(peaks["step"] / peaks["bare"], 3)
    return figures


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", default="resnet10t")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--in-chans", type=int, default=3, choices=[1, 3])
    parser.add_argument("--batch-size", type=int, default=200, help=f"a multiple of {IMAGES_PER_CLASS}")
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--weights", default="{}", help="terms that differ from the preset's, as JSON")
    parser.add_argument("--compare", action="store_true", help="time plain hooks and the reference's formulation too")
    parser.add_argument("--compile", action="store_true", help="time our step compiled, and its bound, too")
    parser.add_argument("--previews", action="store_true", help="time steps with live previews against without, alone")
    parser.add_argument("--windows", type=int, default=20, help="of two seconds, for --previews")
    parser.add_argument("--memory", action="store_true", help="measure the peaks of memory too")
    parser.add_argument(
        "--peak",
        choices=["step", "bare", *FORMULATIONS, *COMPILED],
        help="print the peak of one of them, and nothing else",
    )
    parser.add_argument("--json", action="store_true")
    return parser.parse_args(words)


def main() -> None:
    arguments = parse()
    if arguments.peak:
        print(peak_megabytes(arguments))
        return
    figures = measure_previews(arguments) if arguments.previews else measure(arguments)
    if arguments.json:
        print(json.dumps(figures))
    else:
        print("\n".join(f"{name:>18}  {value}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
