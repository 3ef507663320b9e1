"""Rules of a stage one that learns from the logits beside the images instead of asking the teacher."""

from dearkd.errors import FieldError
from dearkd.specs.dataset_facts import DatasetFacts
from dearkd.specs.training import TrainingSpec

UNCHANGED = {
    "scale": [1.0, 1.0],
    "ratio": [1.0, 1.0],
    "hflip": 0.0,
    "aa": None,
    "color_jitter": 0.0,
    "reprob": 0.0,
    "mixup": 0.0,
    "cutmix": 0.0,
    "degrees": 0.0,
    "translate": 0.0,
    "shear": 0.0,
}
"""The augmentation that shows the pixels as they are stored. Mixing too would ask for what the teacher never said: its
logits of a mixed image are no mixture of logits."""


STORED_LOGITS = {"augmentation": UNCHANGED, "stage_one": {"weights": {"hidden": 0.0}}}
"""Over a recipe for such a run: no augmentation of pixels, and nothing of the teacher's features."""


def stored_logits_refusals(spec: TrainingSpec, dataset: DatasetFacts) -> list[FieldError]:
    """Find what stands against learning from stored logits in a training spec that asks for it."""
    where, one = "/stage_one/teacher_logits", spec.stage_one
    errors = []
    if not dataset.stored_logits:
        remedy = "synthesise it with store_logits, or leave this at computed"
        errors.append(FieldError(where, f"stored, but the dataset holds no logits: {remedy}"))
    if spec.teacher not in (None, dataset.teacher):
        errors.append(
            FieldError(
                "/teacher", f"the stored logits are those of {dataset.teacher or 'another teacher'}: leave this out"
            )
        )
    if one.distillation == "none" or not one.weights.distillation:
        errors.append(FieldError(where, "stored, but stage one distils no logits: leave it out"))
    if one.weights.hidden:
        errors.append(
            FieldError("/stage_one/weights/hidden", "features are not stored: with stored logits it must be 0")
        )
    errors += [
        FieldError(f"/augmentation/{name}", f"stored logits are those of unchanged pixels: it must be {unchanged}")
        for name, unchanged in UNCHANGED.items()
        if getattr(spec.augmentation, name) != unchanged
    ]
    return errors
