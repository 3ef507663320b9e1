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

With --memory the peak of each is measured too, in a process of its own, above what the process held before the first
step: of the device's allocator on a GPU, of resident memory on the CPU.

On a GPU the teacher and the images are channels_last and bfloat16 is by autocast, as in `DeepInversion`; CUDA graphs
are not used, and not measured.
"""

import argparse
import copy
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import psutil
import torch
from formulations import COMPILED, FORMULATIONS, Formulation
from torch import nn
from torch.nn import functional as F

from dearkd.specs import SynthesisSpec, TeacherSpec
from dearkd.vision.teachers import build_teacher
from dearkd_synth.engine.determinism import reproducible
from dearkd_synth.inversion import DeepInversion, Step

WARM_UP = 3
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
    model = model.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)
    spec = SynthesisSpec.resolve(
        {
            "teacher": "benchmark",
            "batch_size": batch,
            "classes_per_batch": batch // IMAGES_PER_CLASS,
            "images_per_class": IMAGES_PER_CLASS,
            "phases": [{"resolution": size, "input_size": size, "iterations": WARM_UP + arguments.steps}],
            "precision": arguments.precision,
            "weights": json.loads(arguments.weights),
        },
        teacher_spec,
    )
    return teacher_spec, model, spec


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
    figures: dict[str, object] = {
        "architecture": arguments.architecture,
        "image_size": arguments.image_size,
        "in_chans": arguments.in_chans,
        "batch_size": arguments.batch_size,
        "preset": setting.spec.preset,
        "precision": arguments.precision,
        "device": torch.cuda.get_device_name() if setting.x.is_cuda else "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
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


def main() -> None:
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
    parser.add_argument("--memory", action="store_true", help="measure the peaks of memory too")
    parser.add_argument(
        "--peak",
        choices=["step", "bare", *FORMULATIONS, *COMPILED],
        help="print the peak of one of them, and nothing else",
    )
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.peak:
        print(peak_megabytes(arguments))
        return
    figures = measure(arguments)
    if arguments.json:
        print(json.dumps(figures))
    else:
        print("\n".join(f"{name:>18}  {value}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
