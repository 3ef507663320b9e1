"""Answers of the control API that are no stored record as it is; the API sends them and the client reads them."""

from datetime import datetime
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from dearkd.choices import Scope
from dearkd.data.manifests import DatasetManifest
from dearkd.documents import Unread
from dearkd.jobs.model import Job
from dearkd.specs import SynthesisSpec, TrainingSpec
from dearkd.specs.requests import Quotas
from dearkd.storage.catalog import Model, StoredFile, Teacher

ItemT = TypeVar("ItemT")


class Page(BaseModel, Generic[ItemT]):
    """One page of a collection."""

    data: list[ItemT]
    has_more: bool
    """True if there are more behind the last one."""


class StoredPage(Page[ItemT], Generic[ItemT]):
    """One page of a collection of jobs or of what is stored."""

    unreadable: list[Unread] = Field(default_factory=list)
    """Documents from between the others that this server cannot read, damaged or of a newer version: why, and what
    to do. They are not among `data`, and may be more than `limit`."""


class FieldProblem(BaseModel):
    """A field that breaks a rule."""

    pointer: str
    """JSON pointer (RFC 6901) into the body, or `/` and the name of a query parameter or a part."""
    detail: str
    """The value, the rule, and what to do."""


class JobView(Job):
    """A job as the API shows it."""

    links: dict[str, str]


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


SHARED = "True if every key may see it: it was shared, or has no owner. So is all of a server that does not say."


class RegisteredTeacher(Teacher):
    """A teacher: its spec, and what the inspector found."""

    shared: bool = Field(default=True, description=SHARED)


class RegisteredDataset(DatasetManifest):
    """The manifest of a dataset. `teacher` and `spec` are null for sets that were registered, not synthesised."""

    status: Literal["ready"] = "ready"
    shared: bool = Field(default=True, description=SHARED)


class TrainedModel(Model):
    """A trained student: files under its prefix, and where it came from."""

    shared: bool = Field(default=True, description=SHARED)


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
    """With a budget of minutes: at the most; so are passes, shards and bytes."""
    least_images: int | None = None
    """The images of the first round, which is always made; `images` where the job cannot end early. Null of a server of
    before budgets."""
    forecasts: list[int] | None = None
    """Numbers of images after which a forecast is made; empty without a budget, or where there are too few rounds."""
    shards: int
    estimated_bytes: int
    student: StudentPlan | None

    @property
    def synthesis_spec(self) -> SynthesisSpec:
        return SynthesisSpec.stored(self.spec)


class TrainingPlan(BaseModel):
    """The answer to a dry run: the spec with every default filled in, and what the run would take."""

    spec: dict[str, Any]
    images: int
    epochs: int
    steps: int

    @property
    def training_spec(self) -> TrainingSpec:
        return TrainingSpec.stored(self.spec)


class MetricsRow(BaseModel):
    """The figures of one epoch, by name; a number that is not finite is null."""

    model_config = ConfigDict(extra="allow")

    id: str
    epoch: int | None = None
    stage: int | str | None = None

    @property
    def figures(self) -> dict[str, Any]:
        """Losses, rates, accuracies and whatever else the epoch has, by name."""
        return self.model_extra or {}


class Checkpoint(BaseModel):
    """A checkpoint that a run keeps. Of one that an earlier version of dearkd made, less is known."""

    id: str
    epoch: int | None
    """Epochs done."""
    stage: int | None
    step: int | None
    """Steps done, from the run's beginning."""
    created_at: datetime | None
    bytes: int
    metrics: dict[str, Any] | None
    """The figures of the epoch that ended with it, as in the run's metrics; null in the midst of an epoch."""
    files: list[StoredFile]


class ClassFigures(BaseModel):
    """The figures of one class; `top1` is null where none of its images was seen."""

    index: int
    name: str
    images: int
    top1: float | None


class Check(BaseModel):
    """A check of a teacher; the figures are null until it has succeeded. Accuracies are fractions in [0, 1]."""

    id: str
    teacher: str
    dataset: str
    status: Literal["queued", "running", "succeeded", "failed"]
    created_at: datetime
    error: RegistrationError | None = None
    images: int | None = None
    top1: float | None = None
    top5: float | None = None
    expected_calibration_error: float | None = None
    """Over 15 bins of the top class's probability."""
    mean_confidence: float | None = None
    classes: list[ClassFigures] | None = None
    diagnosis: dict[str, Any] | None = None
    """The same images with each usual mistake (normalisation, order of classes or channels, padding) made good in
    turn: `trials`, best first, and `together`, what to change; empty where nothing is clearly better."""


class ClassProbability(BaseModel):
    """A class by its number and its name, and its probability in [0, 1]."""

    number: int = Field(alias="class")
    name: str
    probability: float


class Attention(BaseModel):
    """The share of each patch in a student's answer, by attention rollout."""

    shares: list[list[float]]
    """The shares by row and column; they sum to 1."""
    overlay: str
    """The image as the student took it with the shares over it as a heat map: a PNG as a data URL."""


class Prediction(BaseModel):
    """The five most probable classes, the first first."""

    student: list[ClassProbability]
    teacher: list[ClassProbability] | None
    """The answer of the model's teacher; null where that is gone."""
    attention: Attention | None = None
    """The places where the student looked, if they were asked for and can be told."""


class ApiKey(BaseModel):
    """A key, without its secret."""

    id: str
    name: str
    scopes: list[Scope]
    quotas: Quotas
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None


class CreatedApiKey(ApiKey):
    """A key with its secret, which is shown this once."""

    key: str


class OwnApiKey(BaseModel):
    """The key that asks; `id` is null for one of the server's environment."""

    id: str | None
    name: str | None
    scopes: list[Scope]
    quotas: Quotas
    expires_at: datetime | None
    used_today: dict[str, int]
    """Images and bytes, since midnight (UTC)."""
