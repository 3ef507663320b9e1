"""Why a job is not accepted, in words for who asked for it."""

from dearkd.errors import Conflict, DearKDError, InvalidInput, LimitReached
from dearkd.identifiers import sibling
from dearkd.jobs.model import Job
from dearkd.jobs.references import REFERENCES


def refusal(job: Job, waits_for: str | None, outcome: str, detail: str = "") -> DearKDError:
    """The error that says why `scripts.CREATE` refused a job: what it answered, and the one detail beside it."""
    if outcome == "full":
        return too_many(int(detail))
    if outcome == "exists":
        return Conflict(f"{job.id} is being restored by another request: look at it again")
    if outcome == "dead":
        return Conflict(
            f"the synthesis job {waits_for}, which makes this dataset, is {detail}: retry it first, or name another "
            "dataset",
            code="dataset_failed",
        )
    field = next(name for name in REFERENCES if detail in (job.spec.get(name), sibling(str(job.spec.get(name)), "ds")))
    return InvalidInput.at(f"/{field}", f"{detail} is being deleted: name another")


def too_many(waiting: int) -> LimitReached:
    return LimitReached(
        f"{waiting} jobs and runs wait already: let some of them start, cancel some, or ask the operator for a higher "
        "limit (DEARKD_MAX_QUEUED_JOBS)",
        code="too_many_jobs",
    )
