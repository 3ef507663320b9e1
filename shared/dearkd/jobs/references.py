"""The stored resources that a job reads and makes, by what its spec names."""

from dearkd.identifiers import is_id, sibling
from dearkd.jobs.model import Job
from dearkd.specs.base import REFERENCES


def reads(job: Job) -> set[str]:
    """The resources that a job's spec names, a dataset also where it is named by the job that makes it."""
    named = {str(job.spec[field]) for field in REFERENCES[job.kind] if job.spec.get(field)}
    return named | {sibling(text, "ds") for text in named if is_id(text, "syn")}


def uses(job: Job) -> set[str]:
    """All that a job reads or is making."""
    return reads(job) | {sibling(job.id, "ds" if job.kind == "synthesis" else "mdl")}
