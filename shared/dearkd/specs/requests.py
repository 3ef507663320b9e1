"""Requests for what is no job: to register teachers and datasets, to check a teacher, to steer jobs, to create keys."""

from typing import Literal

from pydantic import Field

from dearkd.choices import ClassOrder, Scope
from dearkd.specs.base import Name, Priority, Spec
from dearkd.specs.moments import Moment
from dearkd.specs.teacher import TeacherSpec


class TeacherRegistration(TeacherSpec):
    """A CNN whose weights lie in storage already; they stay where they are."""

    prefix: Name = Field(min_length=1)
    """The key of a safetensors file under the storage root, or of a folder that holds one."""


class DatasetRegistration(Spec):
    """A WebDataset that lies in storage already."""

    prefix: Name = Field(min_length=1)
    """The folder of its shards, as a key under the storage root."""
    name: Name | None = Field(default=None, min_length=1, max_length=200)
    class_order: ClassOrder | None = None
    """The order in which labels number the classes: class names sorted by `name` (torchvision), in `natural` order
    (timm) or by `number`; or `given`, already the order of the teacher's outputs. Needed for a teacher without class
    names if `name` and `natural` differ."""


class CheckRequest(Spec):
    """The images to try a teacher on."""

    dataset: str
    """A dataset of real images, by its id."""
    images: int = Field(default=2000, ge=1, le=10_000)
    """At most so many, spread over the classes."""


class RetryRequest(Spec):
    """The point from which a job is to go on."""

    start: Literal["last", "beginning"] = Field(default="last", alias="from")


class PriorityRequest(Spec):
    """The place of a job among those that wait."""

    priority: Priority


class Quotas(Spec):
    """Limits of one key; None is no limit. Days are those of UTC."""

    requests_per_minute: int | None = Field(default=None, ge=1, le=1_000_000)
    queued_jobs: int | None = Field(default=None, ge=0, le=1_000_000)
    """Jobs and runs that are queued or blocked at once."""
    images_per_day: int | None = Field(default=None, ge=0, le=10**12)
    """Images of the synthesis jobs that are accepted on one day."""
    bytes_per_day: int | None = Field(default=None, ge=0, le=10**18)
    """Bytes of the weights that are uploaded, and of the datasets that are ordered as estimated, on one day."""


class KeyRequest(Spec):
    """A key to create."""

    name: Name = Field(min_length=1, max_length=200)
    scopes: list[Scope] = Field(default=["submit"], min_length=1, max_length=3)
    """`read`: every GET; `submit`: that, and to create, steer and delete what is its own; `admin`: that, keys, the
    audit log, and all teachers, datasets and models."""
    expires_at: Moment | None = None
    """RFC 3339, with its zone; null: never."""
    quotas: Quotas = Quotas()


class RotateRequest(Spec):
    """A new secret for a key."""

    grace_seconds: float = Field(default=0.0, ge=0, le=30 * 86400.0)
    """For so long the secret of before is taken as well."""
