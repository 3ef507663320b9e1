"""Starting a job over: what it made is deleted before it is queued again, and nobody else starts it meanwhile."""

from dearkd.errors import Conflict
from dearkd.jobs.model import Job, dataset_of, model_of
from dearkd.storage.objects import Storage


def starting_over(identifier: str) -> str:
    """The key that is there while what a job made is deleted."""
    return f"dearkd:starting-over:{identifier}"


def delete_made(storage: Storage, job: Job) -> None:
    """Delete what the attempts of a job left in storage, but for its log and what says that it was accepted.

    Raises:
        Conflict: if its dataset or model is complete: others may use it.
    """
    synthesis = job.kind == "synthesis"
    result = f"datasets/{dataset_of(job.id)}" if synthesis else f"models/{model_of(job.id)}"
    if storage.exists(f"{result}/{'dataset.json' if synthesis else 'model.json'}"):
        raise Conflict(
            f"{result} was completed before {job.id} {job.status}: delete it to start over, or retry without "
            "from: beginning"
        )
    for prefix in (result, f"jobs/{job.id}/shards" if synthesis else f"runs/{job.id}"):
        storage.delete_prefix(prefix)
