"""An adapter between a student and the teacher's input: other normalisation, other size."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dearkd.errors import InvalidInput, reason
from dearkd.specs import SynthesisSpec, TeacherSpec
from dearkd_synth.engine.resizing import resize


class StudentView(nn.Module):
    """A student that takes the teacher's normalised input, of any size.

    Args:
        student: in eval mode.
        teacher: the input has its normalisation.
        mean: per channel, of pixels in [0, 1], in the student's own normalisation.
        std: likewise.
        image_size: side of the student's input in pixels.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self, student: nn.Module, teacher: TeacherSpec, *, mean: Sequence[float], std: Sequence[float], image_size: int
    ) -> None:
        super().__init__()
        self.student = student
        self.image_size = image_size
        ours, theirs, our_std, their_std = (
            torch.tensor(v).view(1, -1, 1, 1) for v in (mean, teacher.mean, std, teacher.std)
        )
        # (x·σ_T + μ_T − μ_S)/σ_S, in one multiplication and one addition.
        self.register_buffer("scale", their_std / our_std, persistent=False)
        self.register_buffer("shift", (theirs - ours) / our_std, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes) of x (B, C, s, s) in the teacher's normalised space."""
        logits: Tensor = self.student(resize(x * self.scale + self.shift, self.image_size))
        return logits


def check_student(student: nn.Module, teacher: TeacherSpec, spec: SynthesisSpec) -> None:
    """Check that a network can be the adaptive student: two images of each phase's size give logits (2, num_classes).

    Raises:
        InvalidInput: at `/adaptive_student`, if it has a weight that is not finite, cannot take such images, or has
            other classes.
    """
    for name, tensor in student.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise InvalidInput.at("/adaptive_student", f"its {name} holds values that are not finite")
    for size in {phase.input_size for phase in spec.phases}:
        like = next(student.parameters())
        try:
            with torch.no_grad():
                logits = student(like.new_zeros(2, teacher.in_chans, size, size))
        except Exception as error:  # whatever a network raises on images that it cannot take
            raise InvalidInput.at(
                "/adaptive_student", f"it cannot take images of {size}×{size} pixels: {reason(error)}"
            ) from error
        if logits.shape != (2, teacher.num_classes):
            raise InvalidInput.at(
                "/adaptive_student", f"it has {logits.shape[-1]} classes, the teacher {teacher.num_classes}"
            )
