"""The base of all specs and requests: strictness, and the overlay of given values on defaults."""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    FailFast,
    Field,
    ValidationError,
    ValidationInfo,
    create_model,
    model_validator,
)

from dearkd.errors import FIELD_NAMES, InvalidInput
from dearkd.names import check_name

MAX_FIELDS = 200


class _FirstError(FailFast):
    """A list ends its check at the first wrong item: an error for each of 300,000 would take seconds to build."""

    def __hash__(self) -> int:  # so that it may stand in a union of types
        return hash(type(self))


FIRST_ERROR = _FirstError()
STORED = "stored"
"""The validation context of what dearkd itself has stored (`Spec.stored`)."""


def _check_name(text: str, info: ValidationInfo) -> str:
    return text if info.context == STORED else check_name(text)


REFERENCES = {
    "synthesis": ("teacher", "adaptive_student"),
    "training": ("teacher", "dataset", "eval_dataset", "init"),
}
"""Fields that name a stored resource, of the specs of each kind of job."""

Precision = Literal["float32", "bfloat16"]
Priority = Literal["low", "normal", "high"]
Name = Annotated[str, AfterValidator(_check_name)]
"""A text that people give and see: without control characters (see `dearkd.names`)."""


MAX_LABELS = 64
MAX_RETRIES = 10
"""The most automatic retries that a job may ask for."""


def check_labels(labels: dict[str, str]) -> dict[str, str]:
    """Raises `ValueError` unless these are labels that a filter can name."""
    if len(labels) > MAX_LABELS:
        raise ValueError(f"{len(labels)} labels; a job may have {MAX_LABELS}")
    for key, value in labels.items():
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,62}", key):
            raise ValueError(
                f"{key!r:.80} is no key of a label: letters, digits, '.', '_', '/' and '-', 63 at most, the first a "
                "letter or a digit"
            )
        if len(value) > 200 or "," in value:
            raise ValueError(f"the label {key!r} has {value!r:.80}: a value has 200 characters at most, and no comma")
        check_name(value)
    return labels


Labels = Annotated[dict[str, str], AfterValidator(check_labels)]
"""A map of short texts."""


class Spec(BaseModel):
    """Strict JSON: unknown fields, `"3"` for 3 and NaN are refused."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        FIELD_NAMES.update(cls.model_fields)

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
        """Validate what dearkd itself has stored: names that were taken before there was a rule for them stay."""
        return cls.model_validate(value, context=STORED)


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


RequestT = TypeVar("RequestT", bound=Spec)


def fields_of(
    spec: type[Spec], *, required: Collection[str] = (), nullable: Collection[str] = ()
) -> Callable[[type[RequestT]], type[RequestT]]:
    """Give a request the fields of a spec that it does not declare itself, with the same rules, but optional.

    So are those of the objects inside. A field that is left out is not in `model_fields_set`; it has the spec's
    default, or is None where the default depends on other things.

    Args:
        spec: the complete one.
        required: fields that may not be left out.
        nullable: fields that may also be null, which is as if they were left out.
    """

    def fill(request: type[RequestT]) -> type[RequestT]:
        fields: dict[str, Any] = {}
        for name, field in spec.model_fields.items():
            if name in request.model_fields:
                continue
            kind: Any = field.annotation
            if isinstance(kind, type) and issubclass(kind, Spec):
                name_of_request = kind.__name__.removesuffix("Spec") + "Request"
                kind = fields_of(kind)(create_model(name_of_request, __base__=Spec, __doc__=kind.__doc__))
            if name in required:
                left_out = Field(description=field.description)
            elif field.is_required():  # a factory, lest the API's schema show a default of null
                left_out = Field(default_factory=lambda: None, description=field.description)
            else:
                left_out = Field(default=field.default, description=field.description)
            rules = Annotated[kind, *field.metadata] if field.metadata else kind
            fields[name] = (rules | None if name in nullable else rules, left_out)
        filled: type[RequestT] = create_model(
            request.__name__, __base__=request, __doc__=request.__doc__, __module__=request.__module__, **fields
        )
        return filled

    return fill
