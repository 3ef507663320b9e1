"""`dearkd teacher check`: a teacher on a few real images, before hours are spent on what it says."""

from __future__ import annotations

import shlex
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dearkd.choices import FolderOrder
from dearkd.cli.output import AsJson, connect, note, print_json, print_table
from dearkd.cli.teacher_source import (
    Architecture,
    ClassName,
    ImageSize,
    InChans,
    Mean,
    ModelArg,
    NumClasses,
    StateDict,
    Std,
    fetched,
    given_fields,
    name_of,
    read_source,
    registered_teacher,
)
from dearkd.identifiers import is_id
from dearkd.imports import import_large
from dearkd.names import printable, printable_json

if TYPE_CHECKING:
    from rich.progress import Progress

    from dearkd.settings import Settings
    from dearkd.specs import TeacherSpec
    from dearkd.storage.file_cache import FileCache

NAMED = 20
"""The most classes whose order is printed as flags."""
SHOWN = 24
"""The most images in the picture."""


def check(
    teacher: Annotated[
        str, typer.Argument(metavar="TEACHER", help="Its id (tch-…), or what `dearkd teacher add` takes.")
    ],
    dataset: Annotated[
        str,
        typer.Argument(metavar="DIR", help="Class folders of images that it should know, a folder of *.tar, or ds-…."),
    ],
    images: Annotated[int, typer.Option(min=1, max=10_000, help="At most so many, spread over the classes.")] = 256,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A new or empty folder for check.json and check.png.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Of a folder that holds several: train, val, test, …")] = None,
    class_order: Annotated[
        FolderOrder | None, typer.Option(help="Of class folders: as torchvision, by number, as timm.")
    ] = None,
    architecture: Architecture = None,
    num_classes: NumClasses = None,
    image_size: ImageSize = None,
    mean: Mean = None,
    std: Std = None,
    in_chans: InChans = None,
    class_name: ClassName = None,
    model_arg: ModelArg = None,
    state_dict: StateDict = None,
    as_json: AsJson = False,
) -> None:
    """Try a teacher on real images: accuracy, calibration, and what would explain a low figure.

    Wrong normalisation, order of classes or channels, or padding: each is made good in turn and measured.
    """
    from functools import partial
    from tempfile import TemporaryDirectory

    from dearkd.settings import Settings
    from dearkd.storage.file_cache import FileCache
    from dearkd.storage.new_folder import new_folder

    given = given_fields(
        architecture=architecture,
        num_classes=num_classes,
        in_chans=in_chans,
        image_size=image_size,
        mean=mean,
        std=std,
        model_arg=model_arg,
        class_name=class_name,
    )
    settings = Settings()
    with (
        TemporaryDirectory(prefix="dearkd-teacher-") as scratch,
        FileCache(settings.cache_dir, settings.cache_bytes) as cache,
        new_folder(out) if out is not None else nullcontext() as folder,
    ):
        if is_id(teacher, "tch"):
            if given:
                flags = ", ".join(f"--{name.replace('_', '-').replace('class-names', 'class-name')}" for name in given)
                raise typer.BadParameter(f"{teacher} is registered, and has what {flags} would say: leave that out")
            spec, weights = registered_teacher(teacher, settings, cache)
        else:
            from dearkd.specs import TeacherSpec

            named = given | {"name": name_of(teacher)}
            body, weights = read_source(fetched(teacher), named, Path(scratch), state_dict)
            spec = TeacherSpec.check(body)
        large = import_large("dearkd.vision.teacher_check")
        sample = _sample(dataset, spec, images, split, class_order, cache)
        for remark in sample.remarks:
            note(f"{dataset}: {remark}")
        with _bar(with_bar=not as_json) as bar:
            task = bar.add_task("answers", total=None)
            found = large.check_on_images(spec, weights, sample, _device(settings), partial(bar.advance, task))
        report = {
            "teacher": teacher,
            "dataset": dataset,
            **spec.model_dump(include={"architecture", "num_classes", "in_chans", "image_size", "mean", "std"}),
            **large.check_as_json(found, sample),
        }
        if folder is not None:
            _write(folder, report, sample)
    if as_json:
        print_json(report)
    else:
        _print(report)
        note("--out DIR also writes the answers as JSON and as a picture" if out is None else f"{out}: see check.png")


def _sample(
    reference: str, spec: TeacherSpec, count: int, split: str | None, order: FolderOrder | None, cache: FileCache
) -> Any:
    """Images as `dearkd.vision.image_sample` reads them."""
    reading = import_large("dearkd.vision.image_sample")
    if not is_id(reference, "ds"):
        return reading.read_sample(Path(reference), spec, count, split=split, class_order=order)
    from functools import partial

    with connect() as client:
        manifest = client.get_dataset(reference)
        names = [entry.name for entry in manifest.classes]
        reading.require_classes(reference, names, spec)
        download = partial(client.download_dataset_file, reference, resume=False)
        paths = [
            cache.obtain(partial(download, shard.name), name=shard.name, sha256=shard.sha256, size=shard.bytes)
            for shard in reading.few_shards(manifest.shards, count)
        ]
    return reading.sample_of_shards(paths, spec, count, names)


def _bar(*, with_bar: bool) -> Progress:
    """A count of answers on a terminal: how many there will be is known only at the end."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.completed:,.0f} answers"), BarColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True, disable=not (with_bar and console.is_terminal))


def _device(settings: Settings) -> Any:
    if settings.torch_threads is not None:
        import_large("torch").set_num_threads(settings.torch_threads)
    return import_large("dearkd.vision.devices").choose_device()


def _write(folder: Path, report: dict[str, Any], sample: Any) -> None:
    (folder / "check.json").write_text(printable_json(report) + "\n", encoding="utf-8")
    count = len(report["answers"])
    places = [place * count // min(SHOWN, count) for place in range(min(SHOWN, count))]
    lines = [
        (printable(a["class"]), f"{printable(a['answer'])} ({a['confidence']:.0%})", a["right"])
        for a in (report["answers"][place] for place in places)
    ]
    grid = import_large("dearkd.vision.answer_grid")
    grid.write_answer_grid(folder / "check.png", sample.pixels[places], lines)


def _print(report: dict[str, Any]) -> None:
    def row(name: str, figures: dict[str, float], mark: str = "") -> list[str]:
        error = figures["expected_calibration_error"]
        return [
            name,
            f"{figures['top1']:.1%}",
            f"{figures['top5']:.1%}",
            f"{error:.3f}",
            f"{figures['mean_confidence']:.1%}",
            mark,
        ]

    print(f"{report['images']:,} images, {report['num_classes']:,} classes")
    print()
    rows = [row("as given", report["as_given"])]
    rows += [row(t["change"], t["figures"], "clearly better" if t["clearly_better"] else "") for t in report["trials"]]
    names = [trial["change"] for trial in report["together"]]
    if report["figures_together"] is not None:
        rows.append(row("together: " + " + ".join(names), report["figures_together"], "clearly better"))
    print_table(["INPUT", "TOP-1", "TOP-5", "CALIBRATION ERROR", "CONFIDENCE", ""], rows)
    print()
    better = [trial for trial in report["trials"] if trial["clearly_better"]]
    for trial in better:
        print(printable(f"{trial['change']} is clearly better: {trial['remedy']}"))
    if len(names) > 1:
        print(printable(f"best of all is {' with '.join(names)}:"))
        for trial in report["together"]:
            print(printable(f"  {trial['remedy']}"))
    if report["own_order"] is not None:
        print(printable(_own_order(report)))
    elif not better and not names:
        print("none of what was tried is clearly better")


def _own_order(report: dict[str, Any]) -> str:
    order = report["own_order"]
    some = ", ".join(f"{name!r} is answered as class {label}" for name, label in [*order.items()][:4])
    besides = "".join(f" and {trial['change']}," for trial in report["together"])
    flags = [trial["flags"] for trial in report["together"] if trial["kind"] == "image size"]
    remedy = "Give its class names in its order (--class-name)"
    if sorted(order.values()) == list(range(report["num_classes"])) and len(order) <= NAMED:
        names = sorted(order, key=order.__getitem__)
        flags += [f"--class-name {shlex.quote(name)}" for name in names]
        remedy = f"If that is right, give {' '.join(flags)}"
    elif flags:
        remedy += f" and {' '.join(flags)}"
    return (
        f"its classes are in an order of their own ({some}, …): with it{besides} top-1 is "
        f"{report['figures_own_order']['top1']:.1%}. {remedy}"
    )
