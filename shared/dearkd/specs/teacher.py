"""The spec of a teacher: how to rebuild the CNN around its weights, and what its inputs are."""

from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from dearkd.specs.base import FIRST_ERROR, MAX_FIELDS, Name
from dearkd.specs.task import Task

Number = bool | int | float

MAX_ARGUMENTS = 64
MAX_NUMBERS = 64
MAX_NUMBER = 65_536
"""The largest number in `model_args`: above that of any timm network, and small enough for a list of that length."""


def _bounded(value: Number | list[Number]) -> Number | list[Number]:
    numbers = value if isinstance(value, list) else [value]
    if len(numbers) > MAX_NUMBERS:
        raise ValueError(f"{len(numbers)} numbers, at most {MAX_NUMBERS} are allowed")
    if not all(-MAX_NUMBER <= number <= MAX_NUMBER for number in numbers):
        raise ValueError(f"numbers from -{MAX_NUMBER} to {MAX_NUMBER} are allowed")
    return value


ArgumentName = Annotated[str, Field(max_length=100, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Argument = Annotated[Number | Annotated[list[Number], FIRST_ERROR], AfterValidator(_bounded)]


RESERVED = {
    *("num_classes", "in_chans", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict"),
    *("checkpoint_path", "cache_dir", "device", "dtype"),
}


class TeacherSpec(Task):
    """A CNN and its preprocessing. Weights travel beside it, as safetensors."""

    name: Name = Field(min_length=1, max_length=200)
    architecture: str = Field(min_length=1, max_length=200, pattern=r"^(torchvision:)?[A-Za-z0-9_.-]+$")
    """A name of `timm.list_models()`, `torchvision:NAME`, or a network that the operator has installed."""
    model_args: dict[ArgumentName, Argument] = Field(default_factory=dict, max_length=MAX_ARGUMENTS)
    """Further arguments of its constructor (`timm.create_model`): numbers, booleans and lists of numbers."""

    @field_validator("model_args", mode="before")
    @classmethod
    def _not_many(cls, value: Any) -> Any:
        if isinstance(value, dict) and len(value) > MAX_FIELDS:
            raise ValueError(f"{len(value)} arguments, and {MAX_FIELDS} are allowed")
        return value

    @field_validator("model_args")
    @classmethod
    def _not_reserved(cls, value: dict[str, Any]) -> dict[str, Any]:
        reserved = sorted(RESERVED & value.keys())
        if reserved:
            raise ValueError(f"may not set {', '.join(reserved)}: these are fields of their own, or not allowed")
        return value

    @field_validator("mean", "std")
    @classmethod
    def _of_pixels_up_to_one(cls, value: list[float], info: ValidationInfo) -> list[float]:
        low, high = {"mean": (0.0, 1.0), "std": (0.001, 2.0)}[str(info.field_name)]
        for number in value:
            if not low <= number <= high:
                raise ValueError(
                    f"{number:g} does not lie in [{low:g}, {high:g}]: pixels lie in [0, 1], so divide by 255 what is "
                    "meant for 0 to 255"
                )
        return value
