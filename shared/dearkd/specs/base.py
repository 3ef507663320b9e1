"""What all specs share: strictness, and filling in a posted object over its defaults."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, FailFast, ValidationError, ValidationInfo, model_validator

from dearkd.errors import InvalidInput
from dearkd.names import check_name

MAX_FIELDS = 200


class _FirstError(FailFast):
    """A list ends its check at the first wrong item: an error for each of 300,000 would take seconds to build."""

    def __hash__(self) -> int:  # so that it may stand in a union of types
        return hash(type(self))


FIRST_ERROR = _FirstError()
_STORED = "stored"


def _check_name(text: str, info: ValidationInfo) -> str:
    return text if info.context == _STORED else check_name(text)


REFERENCES = ("teacher", "dataset", "eval_dataset", "adaptive_student", "init")
"""Fields of specs that name a stored resource."""

Precision = Literal["float32", "bfloat16"]
Priority = Literal["low", "normal", "high"]
Name = Annotated[str, AfterValidator(_check_name)]
"""A text that people give and see: without control characters (see `dearkd.names`)."""


class Spec(BaseModel):
    """Strict JSON: unknown fields, `"3"` for 3 and NaN are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _not_many_fields(cls, value: Any) -> Any:
        """One error for an object full of unknown fields: an error for each would take seconds to build."""
        if isinstance(value, dict) and len(value) > MAX_FIELDS:
            raise ValueError(f"an object of {len(value)} fields; there are {len(cls.model_fields)}")
        return value

    @classmethod
    def check(cls, value: Any, *, prefix: str = "") -> Self:
        """Validate a JSON value.

        Raises:
            InvalidInput: with a JSON pointer, under `prefix`, for every broken rule.
        """
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            raise InvalidInput.from_pydantic(error, prefix=prefix) from None

    @classmethod
    def stored(cls, value: Any) -> Self:
        """What dearkd itself has stored: names that were taken before there was a rule for them stay."""
        return cls.model_validate(value, context=_STORED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The operator's bounds on a single job."""

    max_images: int = 10_000_000
    max_image_size: int = 1024
    max_iterations: int = 100_000
    max_shards: int = 100_000


def overlay(defaults: Mapping[str, Any], posted: Mapping[str, Any]) -> dict[str, Any]:
    """`posted` over `defaults`; objects are merged field by field, everything else (lists too) is replaced whole."""
    merged = dict(defaults)
    for key, value in posted.items():
        base = merged.get(key)
        merged[key] = overlay(base, value) if isinstance(base, Mapping) and isinstance(value, Mapping) else value
    return merged


def require_object(posted: Any) -> dict[str, Any]:
    """The posted body as a JSON object.

    Raises:
        InvalidInput: if it is anything else, or has more fields than any spec.
    """
    if not isinstance(posted, dict):
        raise InvalidInput.at("", f"expected a JSON object, got {type(posted).__name__}")
    if len(posted) > MAX_FIELDS:
        raise InvalidInput.at("", f"an object of {len(posted)} fields, and no spec has more than {MAX_FIELDS}")
    return posted
