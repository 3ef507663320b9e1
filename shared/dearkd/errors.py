"""Every error that dearkd raises on purpose, as one tree.

    DearKDError
    ├── InvalidInput        what was asked for breaks a rule; nothing was stored            HTTP 422
    ├── Forbidden           it is there to be seen, but belongs to somebody else            HTTP 403
    ├── NotFound            no such thing                                                   HTTP 404
    ├── Conflict            it exists, but its state forbids the request                    HTTP 409
    ├── TooLarge            over a configured limit on bytes                                HTTP 413
    ├── TooSlow             the request did not come in time                                HTTP 408
    ├── LimitReached        as many of these as are allowed are there already              HTTP 429
    ├── Unavailable         Redis, storage or a worker cannot be reached; try again later   HTTP 503
    │   └── DiskFull        no room is left, here or in storage; waiting alone does not help
    ├── CorruptData         stored bytes are not what their manifest says                   HTTP 500
    │   └── Unreadable      a manifest or record in storage that cannot be read itself      HTTP 409
    │       └── NewerSchema it is whole, but a newer version of dearkd wrote it             HTTP 409
    ├── Diverged            an optimisation left the finite numbers, or all bounds
    ├── PoorImages          a teacher does not recognise the images that were made of it
    ├── OutOfMemory         a device has too little memory for what was asked of it
    ├── Canceled            the job was canceled while it ran (control flow, not a fault)
    └── LostLease           another attempt holds the work now (control flow, not a fault)

A message names the value, the rule it broke and the remedy. `code` is for programs, `retryable` says whether the same
request can succeed later without a change.
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from pydantic import ValidationError


@dataclass(frozen=True, slots=True)
class FieldError:
    """One broken rule: a JSON pointer (RFC 6901) to the field, and what is wrong with it and allowed there."""

    pointer: str
    detail: str


class DearKDError(Exception):
    """Base of all errors raised on purpose; `code` is stable and meant for programs."""

    default_code: ClassVar[str] = "error"
    retryable: ClassVar[bool] = False
    is_fault: ClassVar[bool] = True

    def __init__(
        self, message: str, *, code: str | None = None, errors: Sequence[FieldError] = (), cause: str = ""
    ) -> None:
        """`cause` is for who runs dearkd: the words of another library, with paths and addresses. No client reads it,
        and `str` leaves it out."""
        super().__init__(message)
        self.message = message
        self.cause = cause
        self.code = code or self.default_code
        self.errors = tuple(errors)


class InvalidInput(DearKDError):
    default_code = "invalid_input"

    @classmethod
    def at(cls, pointer: str, detail: str, *, code: str | None = None) -> "InvalidInput":
        """An error about a single field."""
        return cls(f"{pointer}: {detail}" if pointer else detail, code=code, errors=[FieldError(pointer, detail)])

    @classmethod
    def from_pydantic(cls, error: "ValidationError", *, prefix: str = "") -> "InvalidInput":
        """The same errors with JSON pointers; `prefix` is the pointer under which the validated value stands."""
        return cls.from_details(error.errors(include_url=False), prefix=prefix)

    @classmethod
    def from_details(cls, details: Iterable[Mapping[str, Any]], *, prefix: str = "") -> "InvalidInput":
        """The same, of what `ValidationError.errors()` lists."""
        return cls.all_of(
            [
                # Looking for a similar name takes a millisecond: a body full of unknown fields does not get them all.
                FieldError(prefix + json_pointer(error["loc"]), _detail(error, suggest=number < MOST_SUGGESTIONS))
                for number, error in enumerate(details)
            ]
        )

    @classmethod
    def all_of(cls, errors: Sequence[FieldError]) -> "InvalidInput":
        """One error about several fields."""
        return cls("; ".join(f"{e.pointer or '/'}: {e.detail}" for e in errors), errors=errors)


class Forbidden(DearKDError):
    default_code = "forbidden"


class NotFound(DearKDError):
    default_code = "not_found"


class Conflict(DearKDError):
    default_code = "conflict"


class TooLarge(DearKDError):
    default_code = "too_large"


class TooSlow(DearKDError):
    default_code = "too_slow"
    retryable = True


class LimitReached(DearKDError):
    default_code = "limit_reached"
    retryable = True
    retry_after: int | None = None
    """Seconds after which the same request may succeed, where that is known."""


class Unavailable(DearKDError):
    default_code = "unavailable"
    retryable = True


class DiskFull(Unavailable):
    default_code = "disk_full"


class CorruptData(DearKDError):
    default_code = "corrupt_data"


class Unreadable(CorruptData):
    """Nothing can be said about the thing until somebody mends or removes what is stored of it.

    Args:
        key: of the object.
        remedy: what to do about it.
        problem: what pydantic or the parser found.
    """

    def __init__(self, key: str, remedy: str, problem: ValueError) -> None:
        from pydantic import ValidationError

        if isinstance(problem, ValidationError):
            first = problem.errors(include_url=False, include_context=False)[0]
            place = json_pointer(first["loc"])
            found = f"{place}: {first['msg']}" if place else str(first["msg"])
        else:
            found = str(problem)
        super().__init__(f"{key} cannot be read ({found:.200}), it was altered or cut short in storage: {remedy}")


class NewerSchema(Unreadable):
    """The thing is whole: a version that knows its schema can read it."""

    default_code = "newer_version"

    def __init__(self, message: str) -> None:
        DearKDError.__init__(self, message)


class Diverged(DearKDError):
    """Not retryable: a shard or a step is a function of the spec, and would do the same again."""

    default_code = "diverged"


class PoorImages(DearKDError):
    """Not retryable: the spec or the teacher has to change."""

    default_code = "poor_images"


class OutOfMemory(DearKDError):
    default_code = "out_of_memory"


class Canceled(DearKDError):
    default_code = "canceled"
    is_fault = False


class LostLease(DearKDError):
    default_code = "lost_lease"
    is_fault = False


def reason(error: BaseException) -> str:
    """The text of an exception; its type's name if it has no text, as a bare assertion."""
    return str(error) or type(error).__name__


def json_pointer(parts: Iterable[str | int]) -> str:
    """RFC 6901: `("phases", 0, "a/b")` is `/phases/0/a~1b`."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in parts)


FIELD_NAMES: set[str] = set()
"""Names of all fields of specs and requests, put here by them: an unknown field is told which of them it resembles."""

_OBJECT_TYPES = ("model_type", "model_attributes_type")


MOST_SUGGESTIONS = 5


def _detail(error: Mapping[str, Any], *, suggest: bool) -> str:
    if error["type"] == "extra_forbidden":
        name = str(error["loc"][-1])
        near = difflib.get_close_matches(name[:100], FIELD_NAMES, n=1) if suggest else []
        remedy = f"did you mean {near[0]!r}?" if near else "see the API's schema for the fields that exist"
        return f"unknown field {name!r:.200}; {remedy}"
    if error["type"] == "missing":
        return "required, but missing" + (f": {error['remedy']}" if "remedy" in error else "")
    if error["loc"][-1:] == ("secret",):  # nothing repeats it
        return str(error["msg"])
    given = _beginning(error.get("input"))
    # pydantic speaks of Python's objects here, and of attributes.
    wanted = "Input should be an object" if error["type"] in _OBJECT_TYPES else error["msg"]
    return f"{wanted} (got {given if len(given) <= 80 else given[:77] + '...'})"


def _beginning(value: Any) -> str:
    """The value as Python shows it, without building more of it than is seen."""
    if isinstance(value, list) and len(value) > 80:
        value = value[:80]
    elif isinstance(value, str | bytes):
        value = value[:100]
    elif isinstance(value, dict) and len(value) > 80:
        value = dict(islice(value.items(), 80))
    return repr(value)
