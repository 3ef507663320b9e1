"""Job records, the states of a job, and the steps between them that are allowed."""

from datetime import UTC, datetime
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.json_schema import SkipJsonSchema

from dearkd.choices import Kind, Status
from dearkd.documents import Document
from dearkd.identifiers import is_id, sibling
from dearkd.specs import SynthesisSpec, TrainingSpec

Unit = Literal["images", "epochs"]
EventType = Literal["status", "progress", "metrics", "preview", "log"]
DeliveryState = Literal["pending", "delivered", "failed"]

STATUSES: tuple[Status, ...] = (
    "blocked",
    "queued",
    "running",
    "paused",
    "canceling",
    "succeeded",
    "failed",
    "canceled",
)
TERMINAL: frozenset[Status] = frozenset(("succeeded", "failed", "canceled"))
ACTIVE: frozenset[Status] = frozenset(STATUSES) - TERMINAL

UNREADABLE = [["unreadable"]]
"""Units of a job whose record holds no spec: who claims it reads the spec, and fails the job with what is wrong."""

TRANSITIONS: dict[Status, frozenset[Status]] = {
    "blocked": frozenset(("queued", "paused", "failed", "canceled")),
    "queued": frozenset(("running", "paused", "failed", "canceled")),
    # Back to queued when a worker died or handed the work back.
    "running": frozenset(("queued", "paused", "canceling", "succeeded", "failed", "canceled")),
    # What a worker finished before it heard of the pause counts.
    "paused": frozenset(("blocked", "queued", "running", "canceling", "succeeded", "failed", "canceled")),
    # A cancel that comes after the manifest was written comes too late.
    "canceling": frozenset(("canceled", "succeeded", "failed")),
    "failed": frozenset(("blocked", "queued")),
    "canceled": frozenset(("blocked", "queued")),
    "succeeded": frozenset(),
}
"""The only steps there are: each is taken by a transition in `lua/`, which compares before it sets."""


def sources_of(target: Status) -> list[Status]:
    """The states from which `target` may be entered."""
    return [status for status in STATUSES if target in TRANSITIONS[status]]


class Progress(BaseModel):
    """Progress of a job, in `unit`; rates are per second, the estimate in seconds."""

    model_config = ConfigDict(frozen=True)

    done: int = 0
    total: int | None = None
    unit: Unit
    per_second: float | None = None
    eta_seconds: float | None = None


class JobError(BaseModel):
    """The reason why a job failed. `retryable`: the same spec may succeed when it is retried."""

    model_config = ConfigDict(frozen=True)

    code: str
    message: str
    retryable: bool


class Job(Document):
    """A job as clients see it, less its links."""

    model_config = ConfigDict(frozen=True)
    newest: ClassVar[int] = 6
    """1: before there were numbers. 2: workers that know none leave it alone. 3: specs with `resources`. 4: synthesis
    specs with `init`; runs that need a worker with Ray. 5: `pyramid_levels`, `init_std`, `draft`. 6: `generator`. It
    rises with every new field of a spec, and where the schema of a manifest or a checkpoint does: jobs decide who works
    on them."""

    id: str
    kind: Kind
    status: Status
    attempt: int = 1
    spec: dict[str, Any]
    """The spec as the JSON object that was stored, perhaps by another version of dearkd."""
    progress: Progress
    metrics: dict[str, Any] = Field(default_factory=dict)
    result: dict[str, Any] | None = None
    """The id of what it made, as `dataset` or `model`. Of a synthesis job with a budget also `forecast`, and
    `ended_early` where it made fewer images than it had planned: `reason`, `planned`, `made` and `detail`."""
    error: JobError | None = None
    """The reason why it failed or, where it is `queued` and has a `retry_at`, why its last try did."""
    retry_at: datetime | None = None
    """The time at which its next automatic try comes, while it waits for that."""
    waiting_for: str | None = None
    """The worker that it waits for, where there are some and none of them can take it; None where none has said so."""
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    owner: SkipJsonSchema[str | None] = None
    """`owner_of` the API key that posted it, None where none was needed; clients do not see it."""
    traceparent: SkipJsonSchema[str | None] = None
    """The span of the request that posted it, where that is traced; clients do not see it."""

    @property
    def synthesis_spec(self) -> SynthesisSpec:
        """The spec of a synthesis job."""
        return SynthesisSpec.stored(self.spec)

    @property
    def training_spec(self) -> TrainingSpec:
        """The spec of a training run."""
        return TrainingSpec.stored(self.spec)

    @property
    def published_spec(self) -> dict[str, Any]:
        """The spec without whom the job tells: what it makes is seen by others, who are not to learn of that."""
        return {name: value for name, value in self.spec.items() if name != "webhook"}

    @property
    def name(self) -> str | None:
        """The name that who posted it gave it, if any."""
        return _text(self.spec.get("name"))

    @property
    def labels(self) -> dict[str, str]:
        """The labels that who posted it gave it."""
        given = self.spec.get("labels")
        return given if isinstance(given, dict) else {}

    @property
    def source(self) -> str | None:
        """The id of what it works from: of a teacher, of a dataset, or of the job that makes one."""
        return _text(self.spec.get("teacher" if self.kind == "synthesis" else "dataset"))

    @property
    def made(self) -> dict[str, str]:
        """The id of what it made, as `dataset` or `model`; empty while there is nothing."""
        return {name: str(made) for name, made in (self.result or {}).items() if name in ("dataset", "model")}

    @property
    def terminal(self) -> bool:
        return self.status in TERMINAL

    def visible_to(self, owner: str | None) -> bool:
        """Say whether it is `owner`'s, or everyone's. Who asks without a key, where none is needed, sees all."""
        return owner is None or self.owner in (None, owner)


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


class Event(BaseModel):
    """Something that happened to a job; `id` grows."""

    model_config = ConfigDict(frozen=True)

    id: str
    at: datetime
    type: EventType
    data: dict[str, Any]
    job: str | None = None
    """The job's id, in the events of all jobs; elsewhere it is known."""


class DeliveryAttempt(BaseModel):
    """One try at telling a webhook: the status of its answer, or why there was none."""

    model_config = ConfigDict(frozen=True)

    at: datetime
    seconds: float
    status: int | None = None
    error: str | None = None


class Delivery(BaseModel):
    """One thing that a webhook is told, as clients see it."""

    model_config = ConfigDict(frozen=True)

    id: str
    """The `webhook-id`: the same at each attempt."""
    event: Status
    created_at: datetime
    state: DeliveryState
    attempts: list[DeliveryAttempt]
    """Oldest first; the latest 25."""
    next_attempt_at: datetime | None


def as_now(job: Job) -> Job:
    """The job that a document of any schema describes: what older versions did unasked stands in its spec."""
    if job.kind == "synthesis" and job.spec:
        # A stored spec is complete: one without it is older, and was accepted on the terms that what comes out counts.
        return job.model_copy(update={"spec": {"min_teacher_accuracy": 0.0} | job.spec})
    return job


def kind_of(identifier: str) -> Kind | None:
    """The kind that a job identifier is of; None for anything else."""
    if is_id(identifier, "syn"):
        return "synthesis"
    return "training" if is_id(identifier, "run") else None


def owner_of(digest: bytes) -> str:
    """The name under which the jobs of an API key are kept, from the key's sha256 digest: its first 16 hex digits."""
    return digest.hex()[:16]


def dataset_of(job: str) -> str:
    """The id of the dataset that a synthesis job makes: known before it is made, and the same after a retry."""
    return sibling(job, "ds")


def live_key(job: str) -> str:
    """The object in storage that shows what a synthesis job is optimising; there is none once it has ended."""
    return f"jobs/{job}/live.png"


def model_of(job: str) -> str:
    """The id of the model that a training run makes."""
    return sibling(job, "mdl")


def planned_of(job: Job) -> int | None:
    """Images or epochs that a job is to make, also where it has ended with fewer; None where nobody knows."""
    if job.kind == "training":
        return job.progress.total
    try:
        return job.synthesis_spec.num_samples
    except ValidationError:
        return job.progress.total


def units_of(job: Job) -> list[list[str]]:
    """The units of a job, in groups of which each begins when the one before it is done."""
    try:
        return (SynthesisSpec if job.kind == "synthesis" else TrainingSpec).stored(job.spec).units
    except ValidationError:
        return UNREADABLE


def now() -> datetime:
    return datetime.now(UTC)
