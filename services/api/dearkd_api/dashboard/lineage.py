"""The lineage of jobs and resources: teacher, synthesis job, dataset, runs, models."""

from dataclasses import dataclass, field
from typing import Any

from dearkd.errors import CorruptData, NotFound
from dearkd.identifiers import sibling
from dearkd.jobs.model import Job, dataset_of
from dearkd.storage.catalog import Catalog
from dearkd_api.backend import Backend
from dearkd_api.page_paths import page_of

MOST_RUNS = 12
LOOKED_THROUGH = 1000
"""Runs, newest first, that are searched for those on a dataset."""


@dataclass(frozen=True, slots=True)
class Node:
    """One thing of a lineage; it has no page of its own where it is gone, or to come."""

    name: str
    href: str | None
    state: str = ""
    here: bool = False


@dataclass(frozen=True, slots=True)
class Stage:
    """All that there is of one sort."""

    what: str
    nodes: list[Node] = field(default_factory=list)
    more: bool = False


@dataclass(slots=True)
class Branch:
    """A dataset and what comes of it, of the jobs of one page."""

    dataset: str
    job: Job | None = None
    """The synthesis job that makes it, if it is there."""
    runs: list[Job] = field(default_factory=list)


@dataclass(slots=True)
class Tree:
    """A teacher and what comes of it; without a teacher: datasets of real images."""

    teacher: Node | None
    branches: dict[str, Branch] = field(default_factory=dict)


def trees(jobs: list[Job], backend: Backend, caller: str | None, viewer: str | None) -> list[Tree]:
    """Jobs by teacher, dataset and run, the newest first. What none of them is of is not looked for."""
    found: dict[str | None, Tree] = {}
    makers: dict[str, tuple[Job | None, str | None]] = {}
    for job in jobs:
        dataset = dataset_of(job.id) if job.kind == "synthesis" else sibling(str(job.source), "ds")
        if dataset not in makers:
            makers[dataset] = _maker(dataset, backend, caller, viewer)
        maker, teacher = makers[dataset]
        if teacher not in found:
            found[teacher] = Tree(None if teacher is None else _resource(backend.teachers, teacher, viewer))
        branch = found[teacher].branches.setdefault(dataset, Branch(dataset, maker))
        if job.kind == "training":
            branch.runs.append(job)
    return [*found.values()]


def _maker(dataset: str, backend: Backend, caller: str | None, viewer: str | None) -> tuple[Job | None, str | None]:
    """The job that makes a dataset, and the id of its teacher; None for what is not known."""
    try:
        job = backend.store.get(sibling(dataset, "syn"), owner=caller)
        return job, job.source
    except NotFound:
        pass
    try:
        return None, backend.datasets.get(dataset, viewer=viewer).teacher
    except (NotFound, CorruptData):
        return None, None


def of_synthesis(job: Job, backend: Backend, caller: str | None, viewer: str | None) -> list[Stage]:
    """The lineage around a synthesis job."""
    dataset = dataset_of(job.id)
    made = (
        _resource(backend.datasets, dataset, viewer, "was deleted")
        if job.status == "succeeded"
        else Node(dataset, None, "to come" if not job.terminal else "not made")
    )
    return [
        Stage("teacher", [_resource(backend.teachers, job.spec.get("teacher"), viewer)]),
        Stage("synthesis", [Node(_name(job), page_of(job.id), job.status, here=True)]),
        Stage("dataset", [made]),
        *_runs(dataset, backend, caller),
    ]


def of_dataset(
    dataset: str, teacher: str | None, maker: str | None, backend: Backend, caller: str | None, viewer: str | None
) -> list[Stage]:
    """The lineage around a dataset, with the synthesis job that made it, if one did."""
    stages = []
    if teacher is not None:
        stages.append(Stage("teacher", [_resource(backend.teachers, teacher, viewer)]))
    if maker is not None:
        stages.append(Stage("synthesis", [_job(maker, backend, caller)]))
    stages.append(Stage("dataset", [_resource(backend.datasets, dataset, viewer, here=True)]))
    return [*stages, *_runs(dataset, backend, caller)]


def of_run(job: Job, backend: Backend, caller: str | None, viewer: str | None) -> list[Stage]:
    """The lineage around a training run."""
    named = str(job.spec.get("dataset"))
    dataset = sibling(named, "ds")
    try:
        made = backend.datasets.get(dataset, viewer=viewer)
    except (NotFound, CorruptData):
        made = None
    teacher = job.spec.get("teacher") or (made.teacher if made else None)
    maker = named if named.startswith("syn-") else made.job if made else None
    model = sibling(job.id, "mdl")
    return [
        *([Stage("teacher", [_resource(backend.teachers, teacher, viewer)])] if teacher else []),
        *([Stage("synthesis", [_job(maker, backend, caller)])] if maker else []),
        Stage("dataset", [_resource(backend.datasets, dataset, viewer, "not there yet, or deleted")]),
        Stage("run", [Node(_name(job), page_of(job.id), job.status, here=True)]),
        Stage("model", [_resource(backend.models, model, viewer, "was deleted")] if job.result else []),
    ]


def _runs(dataset: str, backend: Backend, caller: str | None) -> list[Stage]:
    """The runs on a dataset, or on the job that makes it, and their models."""
    names = (dataset, sibling(dataset, "syn"))
    runs, last = backend.store.search(
        "training",
        owner=caller,
        since=sibling(dataset, "run"),
        where=lambda job: job.source in names,
        limit=MOST_RUNS,
        most=LOOKED_THROUGH,
    )
    models = [model for run in runs if (model := run.made.get("model"))]
    return [
        Stage("runs", [Node(_name(run), page_of(run.id), run.status) for run in runs], more=last is not None),
        Stage("models", [Node(model, page_of(model)) for model in models]),
    ]


def _job(identifier: str, backend: Backend, caller: str | None) -> Node:
    try:
        job = backend.store.get(identifier, owner=caller)
    except NotFound:
        return Node(identifier, None, "its record is gone")
    return Node(_name(job), page_of(identifier), job.status)


def _resource(
    catalog: Catalog[Any], identifier: str | None, viewer: str | None, gone: str = "was deleted", *, here: bool = False
) -> Node:
    try:
        found = catalog.get(str(identifier), viewer=viewer)
    except NotFound:
        return Node(str(identifier), None, gone)
    except CorruptData:
        return Node(str(identifier), page_of(str(identifier)), "its manifest is damaged")
    return Node(found.name or found.id, page_of(found.id), here=here)


def _name(job: Job) -> str:
    return job.name or job.id
