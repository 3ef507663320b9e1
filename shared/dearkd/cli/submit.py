"""`dearkd synth` and `dearkd train`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dearkd.choices import PresetName, Recipe
from dearkd.cli.fields import parse_assignments, parse_budget, read_spec
from dearkd.cli.jobs import Wait, submitted
from dearkd.cli.output import AsJson, connect, json_of, print_json
from dearkd.names import printable

if TYPE_CHECKING:
    from dearkd.answers import SynthesisPlan, TrainingPlan

SpecFile = Annotated[
    Path | None,
    typer.Option("--spec", exists=True, dir_okay=False, readable=True, help="A spec as JSON; other options win."),
]
Assignments = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any field of the spec: seed=1, weights.boundary=0, classes=[0,1]"),
]
Seed = Annotated[int | None, typer.Option(help="Of everything random.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only show what it would make, and at what cost.")]
Name = Annotated[str | None, typer.Option(help="To tell it from others.")]


def register(app: typer.Typer) -> None:
    app.command("synth")(synth)
    app.command("train")(train)


def synth(
    teacher: Annotated[str, typer.Argument(metavar="TEACHER", help="Its id (tch-…) or its name.")],
    preset: Annotated[
        PresetName | None,
        typer.Option(
            "--preset", metavar="NAME", help="auto (the default), draft, published-imagenet or published-cifar."
        ),
    ] = None,
    images_per_class: Annotated[int | None, typer.Option(help="Default: the preset's.")] = None,
    budget: Annotated[
        str | None,
        typer.Option(metavar="TIME|N-passes", help="What it may cost: 30m, or 2M-passes through the teacher."),
    ] = None,
    seed: Seed = None,
    name: Name = None,
    assignments: Assignments = None,
    spec: SpecFile = None,
    dry_run: DryRun = False,
    wait: Wait = False,
    as_json: AsJson = False,
) -> None:
    """Synthesise a dataset from a teacher."""
    options: dict[str, Any] = {"preset": preset, "images_per_class": images_per_class, "seed": seed, "name": name}
    if budget is not None:
        options["budget"] = parse_budget(budget, "--budget")
    from dearkd.cli.references import identifier_of

    with connect() as client:
        body = _spec(spec, assignments, {"teacher": identifier_of(client, teacher, "teacher")} | options)
        if dry_run:
            from dearkd.cli.forecast import synthesis_lines

            plan = client.plan_synthesis_job(body)
            _print_plan(plan, lambda: synthesis_lines(client, plan), as_json=as_json)
        else:
            submitted(client, client.create_synthesis_job(body), wait=wait, as_json=as_json)


def train(
    dataset: Annotated[
        str,
        typer.Argument(metavar="DATASET_OR_JOB", help="Id or name of a dataset, or of a synthesis job to wait for."),
    ],
    recipe: Annotated[Recipe | None, typer.Option(help="Default: by image size.")] = None,
    teacher: Annotated[str | None, typer.Option(help="Id or name; default: the dataset's.")] = None,
    eval_dataset: Annotated[
        str | None, typer.Option(help="Id or name of the dataset to measure accuracy on while training.")
    ] = None,
    seed: Seed = None,
    name: Name = None,
    assignments: Assignments = None,
    spec: SpecFile = None,
    dry_run: DryRun = False,
    wait: Wait = False,
    as_json: AsJson = False,
) -> None:
    """Train a vision transformer on a dataset, or on that which a synthesis job is making."""
    options = {"recipe": recipe, "seed": seed, "name": name}
    from dearkd.cli.references import identifier_of

    with connect() as client:
        named: dict[str, Any] = {"dataset": identifier_of(client, dataset, "dataset", "synthesis job")}
        if teacher is not None:
            named["teacher"] = identifier_of(client, teacher, "teacher")
        if eval_dataset is not None:
            named["eval_dataset"] = identifier_of(client, eval_dataset, "dataset")
        body = _spec(spec, assignments, options | named)
        if dry_run:
            from dearkd.cli.forecast import training_lines

            plan = client.plan_training_run(body)
            _print_plan(plan, lambda: training_lines(client, plan), as_json=as_json)
        else:
            submitted(client, client.create_training_run(body), wait=wait, as_json=as_json)


def _print_plan(
    plan: SynthesisPlan | TrainingPlan, lines: Callable[[], list[tuple[str, str]]], *, as_json: bool
) -> None:
    if as_json:
        print_json(json_of(plan))
        return
    for name, value in lines():
        print(f"{name:8} {printable(value)}")


def _spec(path: Path | None, assignments: list[str] | None, options: dict[str, Any]) -> dict[str, Any]:
    """The file, over it `--set`, over that the options of their own."""
    from dearkd.specs.base import overlay

    given = {key: value for key, value in options.items() if value is not None}
    body = overlay(overlay(read_spec(path), parse_assignments(assignments or [], "--set")), given)
    if "budget" in given:  # one bound takes the place of another
        others = {"teacher_passes", "minutes"} - given["budget"].keys()
        body["budget"] = {name: value for name, value in body["budget"].items() if name not in others}
    return body
