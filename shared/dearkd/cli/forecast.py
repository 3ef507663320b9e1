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
    minutes = (spec.get("budget") or {}).get("minutes")
    most = "at most " if minutes else ""
    lines = [
        ("teacher", shown),
        ("preset", f"{spec['preset']}, {phases}"),
        ("images", f"{most}{plan.images:,}: {spec['images_per_class']:,} of each of {classes:,} classes"),
        ("shards", f"{most}{plan.shards:,}, about {size(plan.estimated_bytes)}"),
        ("cost", f"{most}{plan.teacher_passes:,} teacher passes"),
    ]
    least = plan.least_images or plan.images
    if minutes:
        lines.append(
            ("budget", f"{duration(60 * minutes)}, in rounds of {least:,} images, of which one is made at least")
        )
    if plan.forecasts:
        lines.append(("forecast", f"after {', '.join(f'{images:,}' for images in plan.forecasts)} images"))
    if plan.student:
        lines.append(("student", f"{plan.student.iterations:,} iterations on {plan.student.images:,} images"))

    def rate(job: JobView) -> float | None:
        """Teacher passes a second. Of one that was retried, nobody knows how long it worked."""
        if job.spec.get("teacher") != spec["teacher"] or job.attempt > 1 or job.status != "succeeded":
            return None
        if job.started_at is None or job.finished_at is None:
            return None
        seconds = (job.finished_at - job.started_at).total_seconds()
        made = job.synthesis_spec
        images = float((job.result or {}).get("ended_early", {}).get("made", made.num_samples))
        return images * made.teacher_passes / made.num_samples / max(1e-3, seconds)

    def told(per_second: float) -> str:
        if not minutes:
            return f"about {duration(plan.teacher_passes / per_second)}"
        fit = 60 * minutes * per_second * plan.images / plan.teacher_passes
        return f"about {max(least, min(plan.images, int(fit // least * least))):,} images in it"

    return [*lines, ("time", _at_the_rate(client.list_jobs("synthesis"), rate, told))]


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
        (
            "time",
            _at_the_rate(client.list_jobs("training"), rate, lambda each: f"about {duration(passes / each)}"),
        ),
    ]


def _at_the_rate(jobs: Iterable[JobView], rate: Callable[[JobView], float | None], told: Callable[[float], str]) -> str:
    for job in islice(jobs, LOOKED_AT):
        per_second = rate(job)
        if per_second:
            return f"{told(per_second)}, at the rate of {job.id}"
    return "not known: nothing like it has run here yet"


def size(count: float) -> str:
    """`3.2 MB`, in powers of 1000."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
