"""The student of a forecast: the small CNN, which learns from few images for few epochs, and is judged on others."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dearkd.specs import SynthesisSpec, TeacherSpec
from dearkd.vision.images import to_input
from dearkd_synth.engine.determinism import reproducible
from dearkd_synth.student.adaptive_student import LEARNING_RATE, TEMPERATURE, AdaptiveStudent

BATCH = 16
"""Images of a step: small, since few images are to give many steps (benchmarks/LOG.md) [R]."""


def judge_student(
    teacher: nn.Module,
    teacher_spec: TeacherSpec,
    spec: SynthesisSpec,
    images: Tensor,
    others: Tensor,
    *,
    epochs: int,
    on_step: Callable[[], None] | None = None,
) -> float:
    """Train a student, and tell on which fraction of other images it predicts the teacher's class.

    KL divergence at T=3 to the teacher's answer to each image as it is, on rolled and flipped views of it: so the
    teacher sees each image once. AdamW on one cycle. A function of its arguments alone, for the same versions, type of
    device and number of threads.

    Args:
        teacher: in eval mode; its device computes.
        teacher_spec: its classes and preprocessing.
        spec: gives `batch_size` (for the teacher's passes), `jitter`, `flip` and `seed`.
        images: (N, C, H, W), uint8, on the CPU: to learn from.
        others: (M, C, H, W), uint8, on the CPU.
        epochs: over the images.
        on_step: called after every step, also of the teacher's. What it raises ends the work.
    """
    step = on_step or (lambda: None)
    device = next(teacher.parameters()).device
    generator = torch.Generator().manual_seed(spec.seed)
    student = AdaptiveStudent(teacher_spec, spec.seed).to(device).train()
    batches = -(-len(images) // BATCH)
    optimizer = torch.optim.AdamW(student.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=LEARNING_RATE, total_steps=epochs * batches)
    with reproducible(device):
        wanted = torch.log_softmax(_answers(teacher, teacher_spec, images, spec.batch_size, step) / TEMPERATURE, dim=1)
        for _ in range(epochs):
            for picked in torch.randperm(len(images), generator=generator).tensor_split(batches):
                flipped = torch.rand(len(picked), generator=generator) < spec.flip
                rolls = torch.randint(-spec.jitter, spec.jitter + 1, (2,), generator=generator).tolist()
                x = images[picked]
                x = torch.where(flipped[:, None, None, None], x.flip(3), x).roll(rolls, (2, 3))
                answered = torch.log_softmax(student(to_input(x.to(device), teacher_spec)) / TEMPERATURE, dim=1)
                loss = F.kl_div(answered, wanted[picked.to(device)], reduction="batchmean", log_target=True)
                optimizer.zero_grad()
                (TEMPERATURE**2 * loss).backward()
                optimizer.step()
                schedule.step()
                step()
        student.eval()
        predicted, named = (
            _answers(network, teacher_spec, others, spec.batch_size, step).argmax(dim=1)
            for network in (student, teacher)
        )
    return (predicted == named).double().mean().item()


@torch.no_grad()
def _answers(
    network: nn.Module, task: TeacherSpec, images: Tensor, batch_size: int, step: Callable[[], None]
) -> Tensor:
    """Logits (N, num_classes), on the network's device."""
    device = next(network.parameters()).device
    logits = []
    for part in images.split(batch_size):
        logits.append(network(to_input(part.to(device), task)))
        step()
    return torch.cat(logits)
