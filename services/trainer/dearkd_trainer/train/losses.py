"""The losses of DearKD's two stages, as named terms; `loss` is what is minimised.

Stage one (method [P], weights and hidden form [R]):

    (1-α)·CE(cls, y) + α·distil(dist or cls, teacher) + β·Σ_pairs MSE(aligner(student tokens), teacher features)

with 1-α, α and β given as three weights. Stage two: CE(cls, y) alone.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from dearkd.specs import StageOneSpec
from dearkd_trainer.model.student import StudentOutput


def classification_loss(logits: Tensor, target: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy, averaged over the batch.

    Args:
        logits: (B, K).
        target: class indices (B,), or class probabilities (B, K), which mixing of images makes.
        smoothing: of class indices; probabilities are taken as they are.
    """
    return F.cross_entropy(logits, target, label_smoothing=0.0 if target.is_floating_point() else smoothing)


def hard_distillation(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Cross-entropy with the teacher's decision (DeiT, Touvron et al., ICML 2021, eq. 3). Both (B, K)."""
    return F.cross_entropy(logits, teacher_logits.argmax(dim=1))


def soft_distillation(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """T²·KL(softmax(teacher/T) ‖ softmax(student/T)), averaged over the batch (Hinton et al., 2015). Both (B, K)."""
    divergence = F.kl_div(
        F.log_softmax(logits / temperature, dim=1),
        F.log_softmax(teacher_logits / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )
    return divergence * temperature**2


def hidden_loss(aligned: Sequence[Tensor], features: Sequence[Tensor]) -> Tensor:
    """Σ over pairs of the mean squared difference of two maps (B, C, H, W)."""
    terms = [
        F.mse_loss(_at_least_float32(mine), _at_least_float32(theirs))
        for mine, theirs in zip(aligned, features, strict=True)
    ]
    return torch.stack(terms).sum()


def stage_one_loss(
    output: StudentOutput,
    target: Tensor,
    teacher_logits: Tensor | None,
    aligned: Sequence[Tensor],
    features: Sequence[Tensor],
    spec: StageOneSpec,
    smoothing: float = 0.0,
) -> dict[str, Tensor]:
    """The terms of stage one, unweighted, and their weighted sum `loss`. A term of weight 0 is not computed.

    Args:
        output: of the student, for the batch. Its distillation token learns from the teacher where there is one,
            else its class token does.
        target: as in `classification_loss`.
        teacher_logits: (B, K); unused if nothing is distilled from them.
        aligned: the aligners' maps, one a pair.
        features: the teacher's, in the same order and of the same shapes.
        spec: weights, and the kind and temperature of distillation.
        smoothing: of labels.
    """
    terms: dict[str, Tensor] = {}
    if spec.weights.classification:
        terms["classification"] = classification_loss(_at_least_float32(output.logits), target, smoothing)
    if distils(spec):
        if teacher_logits is None:
            raise ValueError(f"distillation is {spec.distillation}, but there are no teacher logits")
        student_logits = _at_least_float32(output.logits if output.dist_logits is None else output.dist_logits)
        if spec.distillation == "hard":
            terms["distillation"] = hard_distillation(student_logits, teacher_logits)
        else:
            terms["distillation"] = soft_distillation(
                student_logits, _at_least_float32(teacher_logits), spec.temperature
            )
    if spec.weights.hidden:
        terms["hidden"] = hidden_loss(aligned, features)
    weighted = [getattr(spec.weights, name) * term for name, term in terms.items()]
    return {"loss": torch.stack(weighted).sum(), **terms}


def stage_two_loss(output: StudentOutput, target: Tensor, smoothing: float = 0.0) -> dict[str, Tensor]:
    """Classification alone, by the class token. Arguments as in `stage_one_loss`."""
    loss = classification_loss(_at_least_float32(output.logits), target, smoothing)
    return {"loss": loss, "classification": loss.detach()}


def distils(spec: StageOneSpec) -> bool:
    """True if stage one uses the teacher's logits."""
    return spec.distillation != "none" and spec.weights.distillation > 0


def _at_least_float32(values: Tensor) -> Tensor:
    """The values in float32 or finer: under autocast networks answer in bfloat16, too coarse for a loss."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
