"""The task of a classifier: the images that it takes, and the classes that it tells apart."""

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from dearkd.specs.base import FIRST_ERROR, Name, Spec

Positive = Annotated[float, Field(gt=0)]


class Task(Spec):
    """The input and the classes of a classifier. A teacher's is part of its spec; a student has its own image size."""

    num_classes: int = Field(ge=2, le=100_000)
    in_chans: Literal[1, 3]
    image_size: int = Field(ge=8, le=4096)
    """Side of the square input in pixels."""
    mean: Annotated[list[float], FIRST_ERROR] = Field(min_length=1)
    """Per channel, of pixels in [0, 1]: `input = (pixel - mean) / std`."""
    std: Annotated[list[Positive], FIRST_ERROR] = Field(min_length=1)
    """0.0039 (1/255) where the network wants pixels of 0 to 255."""
    class_names: Annotated[list[Name], FIRST_ERROR] | None = None
    """In the order of labels."""

    def at(self, image_size: int) -> "Task":
        """The same task for images of another size. Of a teacher's spec it keeps the task alone."""
        return Task.stored(self.model_dump(include=set(Task.model_fields)) | {"image_size": image_size})

    @field_validator("mean", "std")
    @classmethod
    def _one_a_channel(cls, value: list[float], info: ValidationInfo) -> list[float]:
        channels = info.data.get("in_chans")
        if channels is not None and len(value) != channels:
            raise ValueError(f"{len(value)} values, but in_chans is {channels}: give one a channel")
        return value

    @field_validator("class_names")
    @classmethod
    def _one_a_class(cls, value: list[str] | None, info: ValidationInfo) -> list[str] | None:
        classes = info.data.get("num_classes")
        if value is not None and classes is not None and len(value) != classes:
            raise ValueError(f"{len(value)} names, but num_classes is {classes}: give one a class, or leave it out")
        return value
