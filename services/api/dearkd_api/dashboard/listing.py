"""Jobs of both kinds in one list, newest first, searched and paged."""

from collections.abc import Callable
from dataclasses import dataclass

from dearkd.choices import Kind, Status
from dearkd.documents import Unread
from dearkd.identifiers import Kind as Sort
from dearkd.identifiers import sibling
from dearkd.jobs.model import Job
from dearkd.jobs.records import JobRecords

SORTS: dict[Kind, Sort] = {"synthesis": "syn", "training": "run"}


@dataclass(frozen=True, slots=True)
class Query:
    """Conditions on jobs."""

    text: str = ""
    """Occurs in their names or ids, whatever its case."""
    status: Status | None = None
    kind: Kind | None = None
    labels: tuple[tuple[str, str], ...] = ()

    def where(self) -> Callable[[Job], bool] | None:
        """The condition that no index knows; None where there is none."""
        if not self.text and not self.labels:
            return None
        text, labels = self.text.casefold(), set(self.labels)

        def matches(job: Job) -> bool:
            said = text in job.id or text in (job.name or "").casefold()
            return said and labels <= job.labels.items()

        return matches


def list_jobs(
    records: JobRecords,
    query: Query,
    *,
    owner: str | None,
    limit: int,
    after: str | None,
    unread: list[Unread] | None = None,
) -> tuple[list[Job], str | None]:
    """Up to `limit` jobs that fulfil a query, and the id to go on behind, of either kind; None if there are no more.

    Where few do, the list may be short, or empty, though there are more: not all jobs are looked through at once.
    `unread` is as for `JobRecords.search`.
    """
    jobs: list[Job] = []
    horizon = ""
    for kind, sort in SORTS.items():
        if query.kind not in (None, kind):
            continue
        found, last = records.search(
            kind,
            status=query.status,
            limit=limit,
            after=sibling(after, sort) if after else None,
            owner=owner,
            where=query.where(),
            unread=unread,
        )
        jobs += found
        # What lies behind the place where one kind stopped is for the next page, of the other kind too.
        horizon = max(horizon, _age(last) if last else "")
    jobs = sorted((job for job in jobs if _age(job.id) >= horizon), key=lambda job: _age(job.id), reverse=True)
    if len(jobs) > limit:
        return jobs[:limit], jobs[limit - 1].id
    return jobs, f"syn-{horizon}" if horizon else None


def _age(identifier: str) -> str:
    """The part of an id that sorts by time, whatever its kind."""
    return identifier.partition("-")[2]
