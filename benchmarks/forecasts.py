"""Forecasts of a job with a budget against what came: `python benchmarks/forecasts.py`.

Digits, a resnet10t of a few epochs, rounds of a few images: behind each 2, 4, 8, … rounds the forecast for the largest
student, and at last that student itself; and the CPU time of forecasts as a share of the images'.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor

from dearkd.specs import Phase, SynthesisSpec
from dearkd_synth import DeepInversion
from dearkd_synth.forecast import Point, forecast
from dearkd_synth.student.forecast_student import judge_student
from dearkd_trainer.demo.digits import real_digits, train_teacher


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=32, help="a power of two")
    parser.add_argument("--images", type=int, default=5, help="of each class in a round")
    parser.add_argument("--iterations", type=int, default=100)
    parser.add_argument("--epochs", type=int, nargs="+", default=[12, 27], help="of the students")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        task, teacher = train_teacher(
            real_digits()[0], Path(folder) / "teacher.safetensors", epochs=4, seed=options.seed
        )
    posted = {
        "teacher": "digits",
        "images_per_class": options.images * options.rounds,
        "rounds": options.rounds,
        "batch_size": 10 * options.images,
        "shard_samples": 10 * options.images,
        "seed": options.seed,
    }
    phase = Phase(resolution=16, input_size=32, iterations=options.iterations)
    late = {"phases": [phase], "unlabelled_iterations": options.iterations // 4}
    spec = SynthesisSpec.resolve(posted, task).model_copy(update=late)
    images: list[Tensor] = []
    began = time.process_time()
    with DeepInversion(teacher, task, spec) as inversion:
        images = [inversion.shard(number).images for number in range(options.rounds)]
    made = time.process_time() - began
    for epochs in options.epochs:
        points: list[Point] = []
        began = time.process_time()
        print(f"{epochs} epochs | images | agreement | forecast for {len(images) // 2 * len(images[0])}")
        for half in (2**power for power in range(options.rounds.bit_length() - 1)):
            learnt, others = torch.cat(images[:half]), torch.cat(images[half : 2 * half])
            agreement = judge_student(teacher, task, spec, learnt, others, epochs=epochs)
            points.append(Point(images=len(learnt), judged_on=len(others), agreement=agreement))
            found = forecast(points, len(images) // 2 * len(images[0]))
            told = found.why_not if found.agreement is None else f"{found.agreement:.1%}"
            print(f"| {len(learnt)} | {agreement:.1%} | {told}", flush=True)
        print(f"{(time.process_time() - began) / made:.1%} of the images' CPU time")


if __name__ == "__main__":
    main()
