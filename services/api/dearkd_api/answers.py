"""Answers that are no stored record as it is, for the schema: problems, plans, health, registrations under way."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from dearkd.data.manifests import DatasetManifest
from dearkd.jobs.model import Event
from dearkd.storage.catalog import Model, Teacher
from dearkd_api.pages import Page


class FieldProblem(BaseModel):
    """A field that breaks a rule."""

    pointer: str
    """JSON pointer (RFC 6901) into the body, or `/` and the name of a query parameter or a part."""
    detail: str
    """The value, the rule, and what to do."""


class Problem(BaseModel):
    """A problem document (RFC 9457). `code` is stable and meant for programs; members beside these may be there."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(pattern="^urn:dearkd:problem:[a-z0-9_]+$")
    title: str
    status: int = Field(ge=400, le=599)
    detail: str
    code: str = Field(pattern="^[a-z0-9_]+$")
    errors: list[FieldProblem]


class Alive(BaseModel):
    """The process lives."""

    status: Literal["alive"]


class Ready(BaseModel):
    """Redis and storage can be reached."""

    status: Literal["ready"]
    workers: dict[str, int]
    """Workers that are alive, by kind."""


class RegistrationError(BaseModel):
    """The reason why a registration failed."""

    code: str
    message: str
    retryable: bool
    errors: list[FieldProblem]


class Registering(BaseModel):
    """A registration that takes longer than a request waits for it, or that has failed since."""

    id: str
    status: Literal["registering", "failed"]
    error: RegistrationError | None = None
    """Given where `status` is `failed`."""


SHARED = "True if every key may see it: it was shared, or has no owner."


class RegisteredTeacher(Teacher):
    """A teacher: its spec, and what the inspector found."""

    shared: bool = Field(description=SHARED)


class RegisteredDataset(DatasetManifest):
    """The manifest of a dataset. `teacher` and `spec` are null for sets that were registered, not synthesised."""

    status: Literal["ready"] = "ready"
    shared: bool = Field(description=SHARED)


class TrainedModel(Model):
    """A trained student: files under its prefix, and where it came from."""

    shared: bool = Field(description=SHARED)


class StudentPlan(BaseModel):
    """The cost of training a synthesis job's own student."""

    shards: int
    images: int
    iterations: int
    teacher_forward_passes: int


class SynthesisPlan(BaseModel):
    """The answer to a dry run: the spec with every default filled in, and what the job would take."""

    spec: dict[str, Any]
    teacher_passes: int
    images: int
    shards: int
    estimated_bytes: int
    student: StudentPlan | None


class TrainingPlan(BaseModel):
    """The answer to a dry run: the spec with every default filled in, and what the run would take."""

    spec: dict[str, Any]
    images: int
    epochs: int
    steps: int


class EventPage(Page):
    data: list[Event]  # type: ignore[assignment]  # narrower, for the schema


class MetricsRow(BaseModel):
    """The figures of one epoch, by name; a number that is not finite is null."""

    model_config = ConfigDict(extra="allow")

    id: str
    epoch: int | None = None
    stage: int | str | None = None


class MetricsPage(Page):
    data: list[MetricsRow]  # type: ignore[assignment]  # narrower, for the schema
