"""The fields that stored specs have, held to the number by which workers that do not know one leave a job alone."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from dearkd.jobs.model import Job
from dearkd.jobs.references import uses
from dearkd.specs import SynthesisSpec, TrainingSpec
from dearkd.specs.base import REFERENCES, Spec

LISTED = Path(__file__).parent / "spec_fields.json"
SPECS: dict[str, type[Spec]] = {"synthesis": SynthesisSpec, "training": TrainingSpec}


def fields(spec: type[Spec], prefix: str = "") -> Iterator[str]:
    """Names of all fields, of the objects in them too, and the words that those of a choice take."""
    for name, field in spec.model_fields.items():
        yield prefix + name
        for kind in parts(field.annotation):
            if isinstance(kind, str):
                yield f"{prefix}{name}={kind}"
            elif isinstance(kind, type) and issubclass(kind, Spec):
                yield from fields(kind, f"{prefix}{name}.")


def parts(kind: Any) -> Iterator[Any]:
    yield kind
    for one in get_args(kind):
        yield from parts(one)


def test_a_new_field_or_choice_has_a_new_number_of_jobs() -> None:
    """Specs refuse what they do not know: an older worker that took such a job would fail it."""
    listed = json.loads(LISTED.read_text())
    now = {kind: sorted(set(fields(spec))) for kind, spec in SPECS.items()}
    new = [name for kind in SPECS for name in now[kind] if name not in listed["fields"][kind]]
    assert not new, f"raise Job.newest above {listed['newest']}, say why there, and add {new} to {LISTED.name}"
    assert (listed["newest"], listed["fields"]) == (Job.newest, now), f"let {LISTED.name} say what there is now"


@pytest.mark.parametrize("kind", SPECS)
def test_what_names_a_resource_is_a_field_of_text(kind: str) -> None:
    named = {name: SPECS[kind].model_fields[name] for name in REFERENCES[kind]}
    assert all(str in parts(field.annotation) for field in named.values())


def test_the_beginning_of_batches_is_no_resource() -> None:
    """A training run's `init` names a model; a synthesis job's does not."""
    spec = {"teacher": "tch-a", "init": "earlier_batch", "adaptive_student": "mdl-b"}
    job = Job.model_validate(
        {"id": "syn-c", "kind": "synthesis", "status": "queued", "spec": spec, "progress": {"unit": "images"}}
        | {"created_at": "2026-11-29T00:00:00Z"}
    )
    assert uses(job) == {"tch-a", "mdl-b", "ds-c"}
