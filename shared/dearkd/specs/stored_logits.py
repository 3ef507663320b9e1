"""Stage one without its teacher: what must hold where the logits that lie beside the images are learnt from."""

from typing import Any

from dearkd.errors import FieldError

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


def wants_stored_logits(body: Any) -> bool:
    """Whether a posted training spec asks for them."""
    stage_one = body.get("stage_one") if isinstance(body, dict) else None
    return isinstance(stage_one, dict) and stage_one.get("teacher_logits") == "stored"


def with_stored_logits(defaults: dict[str, Any]) -> dict[str, Any]:
    """A recipe's defaults for such a run: no augmentation of pixels, and nothing of the teacher's features."""
    one = defaults["stage_one"]
    return defaults | {
        "augmentation": defaults["augmentation"] | UNCHANGED,
        "stage_one": one | {"weights": one["weights"] | {"hidden": 0.0}},
    }


def refusals(spec: dict[str, Any], *, has_logits: bool, teacher: str | None) -> list[FieldError]:
    """What stands against learning from stored logits in a filled-in training spec that asks for it.

    Args:
        spec: as JSON.
        has_logits: whether the dataset's samples have them.
        teacher: the dataset's own, whose logits they are.
    """
    where, one = "/stage_one/teacher_logits", spec["stage_one"]
    errors = []
    if not has_logits:
        remedy = "synthesise it with store_logits, or leave this at computed"
        errors.append(FieldError(where, f"stored, but the dataset holds no logits: {remedy}"))
    if spec["teacher"] not in (None, teacher):
        errors.append(
            FieldError("/teacher", f"the stored logits are those of {teacher or 'another teacher'}: leave this out")
        )
    if one["distillation"] == "none" or not one["weights"]["distillation"]:
        errors.append(FieldError(where, "stored, but stage one distils no logits: leave it out"))
    if one["weights"]["hidden"]:
        errors.append(
            FieldError("/stage_one/weights/hidden", "features are not stored: with stored logits it must be 0")
        )
    errors += [
        FieldError(f"/augmentation/{name}", f"stored logits are those of unchanged pixels: it must be {unchanged}")
        for name, unchanged in UNCHANGED.items()
        if spec["augmentation"][name] != unchanged
    ]
    return errors
