"""Errors that say why a job is not accepted, or not retried."""

from dearkd.errors import Conflict, DearKDError, InvalidInput, LimitReached
from dearkd.identifiers import sibling
from dearkd.jobs.model import Job
from dearkd.specs.base import REFERENCES


def refusal(job: Job, waits_for: str | None, outcome: str, detail: str = "") -> DearKDError:
    """The error that says why `create.lua` refused a job: what it answered, and the one detail beside it."""
    if outcome == "full":
        return LimitReached(
            f"{detail} jobs and runs wait already: let some of them start, cancel some, or ask the operator for a "
            "higher limit (DEARKD_MAX_QUEUED_JOBS, or the key's quota)",
            code="too_many_jobs",
        )
    if outcome == "exists":
        return Conflict(f"{job.id} is being restored by another request: look at it again")
    if outcome == "dead":
        return Conflict(
            f"the synthesis job {waits_for}, which makes this dataset, is {detail}: retry it first, or name another "
            "dataset",
            code="dataset_failed",
        )
    named = {name: str(job.spec.get(name)) for name in REFERENCES[job.kind]}
    field = next(name for name, text in named.items() if detail in (text, sibling(text, "ds")))
    return InvalidInput.at(f"/{field}", f"{detail} is being deleted: name another")


def retry_refusal(identifier: str, outcome: str, *details: str) -> Conflict:
    """The error that says why `retry.lua` refused to start a job again: what it answered, and the details beside it."""
    if outcome == "under_way":
        return Conflict(f"a retry of {identifier} from its beginning is under way: wait until that has begun")
    if outcome == "dead":
        awaited, status = details
        return Conflict(
            f"{awaited}, which makes its dataset, is {status}: retry that first",
            code="dataset_failed",
        )
    return Conflict(f"{identifier} is {details[0]}: only a failed or canceled job can be retried")
