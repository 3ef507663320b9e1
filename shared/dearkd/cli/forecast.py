"""Summaries of what a job would make and cost, for `--dry-run`: from the API's plan, and from what ran here before."""

from collections.abc import Callable, Iterable
from itertools import islice

from dearkd.answers import JobView, SynthesisPlan, TrainingPlan
from dearkd.cli.watching import duration
from dearkd.client import Client

LOOKED_AT = 200
"""Jobs, newest first, among which one is sought that says how fast it is here."""


def synthesis_lines(client: Client, plan: SynthesisPlan) -> list[tuple[str, str]]:
    """The outcome and cost of a synthesis job, as names and values."""
    spec = plan.spec
    classes = len(spec["classes"])
    teacher = client.get_teacher(spec["teacher"])
    shown = f"{teacher.name} ({teacher.architecture}, {teacher.image_size} px)"
    phases = ", ".join(
        f"{phase['iterations']} iterations at {phase['resolution']} px, seen at {phase['input_size']}"
        for phase in spec["phases"]
    )
    lines = [
        ("teacher", shown),
        ("preset", f"{spec['preset']}, {phases}"),
        ("images", f"{plan.images:,}: {spec['images_per_class']:,} of each of {classes:,} classes"),
        ("shards", f"{plan.shards:,}, about {size(plan.estimated_bytes)}"),
        ("cost", f"{plan.teacher_passes:,} teacher passes"),
    ]
    if plan.student:
        lines.append(("student", f"{plan.student.iterations:,} iterations on {plan.student.images:,} images"))

    def rate(job: JobView) -> float | None:
        """Teacher passes a second. Of one that was retried, nobody knows how long it worked."""
        if job.spec.get("teacher") != spec["teacher"] or job.attempt > 1 or job.status != "succeeded":
            return None
        if job.started_at is None or job.finished_at is None:
            return None
        seconds = (job.finished_at - job.started_at).total_seconds()
        return job.synthesis_spec.teacher_passes / max(1e-3, seconds)

    return [*lines, ("time", _time(client.list_jobs("synthesis"), rate, plan.teacher_passes))]


def training_lines(client: Client, plan: TrainingPlan) -> list[tuple[str, str]]:
    """The work and time of a training run, as names and values."""
    spec = plan.spec
    student = spec["student"]

    def rate(job: JobView) -> float | None:
        alike = job.spec.get("student") == student and job.spec.get("batch_size") == spec["batch_size"]
        return job.metrics.get("images_per_second") if alike else None

    passes = float(plan.images * plan.epochs)
    return [
        ("recipe", f"{spec['recipe']}, batches of {spec['batch_size']}"),
        ("images", f"{plan.images:,}"),
        ("epochs", f"{plan.epochs:,}: {plan.steps:,} steps"),
        ("time", _time(client.list_jobs("training"), rate, passes)),
    ]


def _time(jobs: Iterable[JobView], rate: Callable[[JobView], float | None], wanted: float) -> str:
    for job in islice(jobs, LOOKED_AT):
        per_second = rate(job)
        if per_second:
            return f"about {duration(wanted / per_second)}, at the rate of {job.id}"
    return "not known: nothing like it has run here yet"


def size(count: float) -> str:
    """`3.2 MB`, in powers of 1000."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
