"""Requests for what is no job: to register a teacher or a dataset, to check a teacher, to steer a job."""

from typing import Literal

from pydantic import Field

from dearkd.choices import ClassOrder
from dearkd.specs.base import Name, Priority, Spec
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
