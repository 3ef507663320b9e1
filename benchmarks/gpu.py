"""All that has to be known on a GPU, in one run of less than nine minutes, as one JSON for RESULTS.md.

    make gpu PYTHON=/path/to/python
    python benchmarks/gpu.py --device cpu --steps 3 --side 32        tries the script itself

Installs nothing and needs no network: an environment with torch 2.10 or newer, timm, and what dearkd imports. The GPU
tests (NCCL on one card, autocast, compile, no synchronisation, halving of batches), then a step of the inversion over
its limit for two teachers, a step of the trainer over its limit, and a student's step over timm's own DeiT-Ti.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dearkd.vision  # noqa: F401  # makes timm importable

# isort: split
import timm
import torch
from torch import nn
from torch.nn import functional as F

import dearkd_trainer  # noqa: F401  # registers the students' architectures

ROOT = Path(__file__).parent.parent
SECONDS = 150
"""The most that each part may take."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--side", type=int, default=224, help="of images, in pixels")
    parser.add_argument("--output", type=Path, default=Path("gpu.json"))
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("torch finds no CUDA device: see torch.cuda.is_available(), or try the script with --device cpu")
    on_gpu = options.device == "cuda"
    shared = ["--device", options.device, "--steps", str(options.steps), "--image-size", str(options.side), "--json"]
    batch = "64" if on_gpu else "8"
    report: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "versions": {"torch": torch.__version__, "timm": timm.__version__, "python": sys.version.split()[0]},
    }
    report["tests"] = run("-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", str(ROOT / "tests" / "unit"))
    for teacher in ("resnet50", "tf_efficientnet_lite0"):
        for precision in ("float32", "bfloat16"):
            found = measured(
                "inversion_step.py", *shared, "--architecture", teacher, "--batch-size", batch, "--precision", precision
            )
            if "step_milliseconds" in found:
                found["images_per_second"] = round(1000 * int(batch) / found["step_milliseconds"], 1)
            report[f"inversion {teacher} {precision}"] = found
    student = "dearkd_tiny_patch16_224" if on_gpu else "dearkd_micro_patch8_32"
    report["training"] = measured(
        "train_step.py", *shared, "--architecture", student, "--teacher", "resnet50", "--batch-size", batch,
        "--precision", "bfloat16", "--workers", "4",
    )  # fmt: skip
    report["students"] = students(torch.device(options.device), options.side, int(batch), options.steps)
    options.output.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))
    if report["tests"]["exit"]:
        sys.exit(1)


def run(*command: str) -> dict[str, Any]:
    """The exit status, the last lines and the seconds of a Python command."""
    began = time.monotonic()
    try:
        done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=SECONDS)
        status, said = done.returncode, done.stderr + done.stdout  # figures come last
    except subprocess.TimeoutExpired as error:
        status, said = 124, f"not done after {error.timeout} s"
    return {"exit": status, "said": said.splitlines()[-6:], "seconds": round(time.monotonic() - began, 1)}


def measured(script: str, *arguments: str) -> dict[str, Any]:
    """The figures that a benchmark prints as its last line; what went wrong where it does not."""
    done = run(str(ROOT / "benchmarks" / script), *arguments)
    if done["exit"]:
        return done
    figures: dict[str, Any] = json.loads(done["said"][-1])
    return figures


def students(device: torch.device, side: int, batch: int, steps: int) -> dict[str, float]:
    """Milliseconds of forward and backward: timm's DeiT-Ti, ours without and with MHCA; in turn, medians."""
    images = torch.randn(batch, 3, side, side, device=device)
    labels = torch.arange(batch, device=device) % 1000
    ours = "dearkd_tiny_patch16_224"
    models: dict[str, nn.Module] = {
        "timm_deit_tiny": timm.create_model("deit_tiny_patch16_224", img_size=side),
        "plain": timm.create_model(ours, img_size=side, mhca_blocks=0),
        "mhca": timm.create_model(ours, img_size=side),
    }
    seconds: dict[str, list[float]] = {name: [] for name in models}
    wait: Callable[[], None] = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    for model in models.values():
        model.to(device).train()
    for _ in range(steps + 3):
        for name, model in models.items():
            wait()
            began = time.perf_counter()
            with torch.autocast(device.type, torch.bfloat16):
                loss = F.cross_entropy(model(images), labels)
            loss.backward()
            wait()
            seconds[name].append(time.perf_counter() - began)
    medians = {name: 1000 * statistics.median(values[3:]) for name, values in seconds.items()}
    ratios = {f"{name}_ratio": medians[name] / medians["timm_deit_tiny"] for name in ("plain", "mhca")}
    return {name: round(value, 3) for name, value in (medians | ratios).items()}


if __name__ == "__main__":
    main()
