"""The student that a job trains for itself: a small CNN that learns the teacher's answers on the first images.

Adaptive DeepInversion competes with a student that is trained while images are made; here one is trained once, on the
shards made first, and frozen, so that the others stay functions of the spec and their index. That there is one such
student, what it looks like and how it is trained is our choice [R].
"""

import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from dearkd.errors import CorruptData, Diverged, OutOfMemory
from dearkd.specs import SynthesisSpec, TeacherSpec
from dearkd.vision.images import to_input
from dearkd.vision.weight_files import separate_state
from dearkd_synth.engine.determinism import reproducible
from dearkd_synth.engine.resizing import resize

TEMPERATURE = 3.0
"""The temperature of the softmax, as in the adaptive term."""
LEARNING_RATE = 2e-3
STEPS_BETWEEN_READINGS = 25
WIDEST = 256


class AdaptiveStudent(nn.Module):
    """A plain CNN with BatchNorm: convolutions of stride 2 down to about 4 px, an average, a classifier [R].

    Args:
        teacher: it has the same classes, channels, image size and normalisation.
        seed: of the initial weights.
    """

    def __init__(self, teacher: TeacherSpec, seed: int = 0) -> None:
        super().__init__()
        self.image_size = teacher.image_size
        layers: list[nn.Module] = []
        before = teacher.in_chans
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for stage in range(max(2, min(6, round(math.log2(teacher.image_size / 4))))):
                width = min(WIDEST, 32 * 2**stage)
                layers += [
                    nn.Conv2d(before, width, 3, stride=2, padding=1, bias=False),
                    nn.BatchNorm2d(width),
                    nn.ReLU(inplace=True),
                ]
                before = width
            self.stages = nn.Sequential(*layers)
            self.classifier = nn.Linear(before, teacher.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes) of x (B, C, s, s) in the teacher's normalised space, of any size."""
        logits: Tensor = self.classifier(self.stages(resize(x, self.image_size)).mean(dim=(2, 3)))
        return logits


def train_adaptive_student(
    teacher: nn.Module,
    teacher_spec: TeacherSpec,
    spec: SynthesisSpec,
    images: Tensor,
    *,
    device: torch.device | str = "cpu",
    on_step: Callable[[int, float], None] | None = None,
) -> AdaptiveStudent:
    """Train one: KL divergence to the teacher at T=3 (times T²) on rolled and flipped images, AdamW, cosine.

    A function of its arguments alone: the same weights for the same versions, type of device and number of threads.

    Args:
        teacher: in eval mode, on `device`.
        teacher_spec: its classes and preprocessing.
        spec: gives `adaptive_iterations`, `batch_size`, `jitter`, `flip` and `seed`.
        images: (N, C, H, W), uint8, on the CPU: of the first shards, in their order.
        device: where to compute.
        on_step: called with the number of steps done, and the loss as last read. What it raises ends the work.

    Returns:
        The student on the CPU, in eval mode and frozen.

    Raises:
        Diverged: if a weight is not finite in the end.
        OutOfMemory: if the device has no memory for a batch.
    """
    seed = int.from_bytes(hashlib.sha256(f"{spec.seed}/student".encode()).digest()[:8], "big") >> 1
    # Everything random is drawn on the CPU, so that it does not depend on the device.
    generator = torch.Generator().manual_seed(seed)
    student = AdaptiveStudent(teacher_spec, seed).to(device).train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=LEARNING_RATE)
    steps, last = spec.adaptive_iterations, math.nan
    with reproducible(device), _memory_for(spec.batch_size, teacher_spec, device):
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * step / steps))
            view = _view(images, teacher_spec, spec, generator, device)
            with torch.no_grad():
                wanted = torch.log_softmax(teacher(view) / TEMPERATURE, dim=1)
            answered = torch.log_softmax(student(view) / TEMPERATURE, dim=1)
            loss = TEMPERATURE**2 * F.kl_div(answered, wanted, reduction="batchmean", log_target=True)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % STEPS_BETWEEN_READINGS == 0 or step == steps - 1:
                last = loss.item()
            if on_step is not None:
                on_step(step + 1, last)
    if not all(bool(torch.isfinite(value).all()) for value in student.state_dict().values()):
        raise Diverged(
            f"the student of the adaptive term left the finite numbers within {steps} steps (loss {last:.3g}): name an "
            "adaptive_student, or set weights.adaptive to 0"
        )
    return student.cpu().eval().requires_grad_(False)


@torch.no_grad()
def agreement(
    teacher: nn.Module, student: nn.Module, teacher_spec: TeacherSpec, images: Tensor, *, batch_size: int
) -> float:
    """The fraction of images (N, C, H, W), uint8, for which both predict the same class.

    Both networks are on one device, in eval mode.
    """
    device = next(teacher.parameters()).device
    same = 0
    with _memory_for(batch_size, teacher_spec, device):
        for part in images.split(batch_size):
            x = to_input(part.to(device), teacher_spec)
            same += int((teacher(x).argmax(dim=1) == student(x).argmax(dim=1)).sum())
    return same / len(images)


@contextmanager
def _memory_for(images: int, teacher: TeacherSpec, device: torch.device | str) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:
        raise OutOfMemory(
            f"{images} images of {teacher.image_size}×{teacher.image_size} pixels do not fit into the memory of "
            f"{device} beside the teacher and the student of the adaptive term: set a smaller batch_size, or name an "
            "adaptive_student"
        ) from None


def save_adaptive_student(student: AdaptiveStudent, path: Path) -> None:
    save_file(separate_state(student), path)


def load_adaptive_student(path: Path, teacher: TeacherSpec) -> AdaptiveStudent:
    """Load a student, in eval mode and frozen. Raises `CorruptData` if the file holds none for this teacher."""
    student = AdaptiveStudent(teacher)
    try:
        student.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError) as error:
        raise CorruptData(
            f"{path.name} holds no student for this teacher ({error}): delete it and retry the job"
        ) from None
    return student.eval().requires_grad_(False)


def _view(
    images: Tensor,
    teacher: TeacherSpec,
    spec: SynthesisSpec,
    generator: torch.Generator,
    device: torch.device | str,
) -> Tensor:
    """A batch (B, C, H, W), normalised: images drawn with replacement, each flipped or not, all rolled alike."""
    picked = torch.randint(len(images), (spec.batch_size,), generator=generator)
    flipped = torch.rand(spec.batch_size, generator=generator) < spec.flip
    rolls = torch.randint(-spec.jitter, spec.jitter + 1, (2,), generator=generator).tolist()
    x = images[picked]
    x = torch.where(flipped[:, None, None, None], x.flip(3), x).roll(rolls, (2, 3))
    return to_input(x.to(device), teacher)
