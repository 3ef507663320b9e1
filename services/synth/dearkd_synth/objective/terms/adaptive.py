"""Adaptive DeepInversion's competition: images on which a student still disagrees with the teacher."""

import math

import torch
from torch import Tensor

from dearkd_synth.objective.term import Term, TermInputs


class Adaptive(Term):
    """1 − JS(teacher ‖ student), the mean over the batch (`adaptive_loss`)."""

    name = "adaptive"
    needs_labels = True
    needs_student = True

    def loss(self, inputs: TermInputs) -> Tensor:
        return adaptive_loss(inputs.logits, inputs.student_logits)


def adaptive_loss(teacher_logits: Tensor, student_logits: Tensor, *, temperature: float = 3.0) -> Tensor:
    """1 − JS(p_T ‖ p_S), the mean over the batch, in [0, 1] (DeepInversion, eq. 6 and 7).

    JS(p ‖ q) = (½KL(p ‖ m) + ½KL(q ‖ m)) / ln 2 with m = (p + q)/2, softmax at the given temperature. The gradient goes
    through both networks' outputs. It is computed from log-softmax and so does not vanish; that of the published code
    does where its clamp of p to [0.01, 0.99] acts. So the published coefficient 0.2 does not carry over.

    Args:
        teacher_logits: (B, num_classes).
        student_logits: (B, num_classes).
        temperature: 3 in the published code.
    """
    p, q = (torch.log_softmax(logits / temperature, dim=1) for logits in (teacher_logits, student_logits))
    middle = torch.logaddexp(p, q) - math.log(2)
    divergence = 0.5 * (p.exp() * (p - middle) + q.exp() * (q - middle)).sum(dim=1) / math.log(2)
    return 1 - divergence.mean()
