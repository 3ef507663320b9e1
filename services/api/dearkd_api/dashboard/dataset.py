"""The page of a dataset: its samples by class, quality, another dataset beside it, downloads, snippets."""

from functools import partial
from typing import Annotated, Any

import anyio.to_thread
from fastapi import APIRouter, Query, Request, Response

from dearkd.data.feature_maps import FEATURE_MAP
from dearkd.data.manifests import DatasetManifest
from dearkd.data.shard_files import shard_name
from dearkd.errors import CorruptData, InvalidInput, NotFound, TooLarge
from dearkd.identifiers import is_id
from dearkd_api import datasets
from dearkd_api.access import Caller, Viewer
from dearkd_api.backend import Backend, Uses
from dearkd_api.dashboard import feature_map, gallery, lineage
from dearkd_api.dashboard.forms import PageRoute
from dearkd_api.dashboard.frame import show
from dearkd_api.sample_files import Picture

SHARDS_SHOWN = 100
CHIPS = 60
"""The most classes that stand as links; of more, one is chosen from a list."""
OTHERS = 50
BESIDE = ("_info.json", "README.md", "preview.png", "timelapse.webp", FEATURE_MAP)

router = APIRouter(route_class=PageRoute)


@router.get("/datasets/{identifier}")
async def dataset_page(
    identifier: str,
    request: Request,
    backend: Uses,
    caller: Caller,
    viewer: Viewer,
    label: Annotated[str, Query(alias="class", max_length=20)] = "",
    page: Annotated[int, Query(ge=1, le=10**9)] = 1,
    image: Annotated[str, Query(max_length=2000)] = "",
    beside: Annotated[str, Query(alias="with", max_length=60)] = "",
) -> Response:
    """Show a dataset.

    Args:
        label: index of the class that is shown; empty: all.
        page: of the gallery, from 1.
        image: the sample that is shown large, as `SHARD/KEY`.
        beside: the id of another dataset, of which the same class and page are shown beside it.
    """
    made = partial(_page, request, identifier, backend, caller, viewer, label, page, image, beside)
    return await anyio.to_thread.run_sync(made, limiter=backend.shard_limiter)


def _page(
    request: Request,
    identifier: str,
    backend: Backend,
    caller: str | None,
    viewer: str | None,
    label: str,
    page: int,
    image: str,
    beside: str,
) -> Response:
    dataset = _find(identifier, backend, viewer)
    other = None
    if beside:
        if not is_id(beside, "ds"):
            raise InvalidInput.at("/with", f"{beside!r} is no id of a dataset")
        other = _find(beside, backend, viewer)
    index = _class(label, dataset)
    asked = {"class": label, "with": beside}
    return show(
        request,
        "dataset.html",
        dataset=dataset,
        other=other,
        label=index,
        names={str(one.index): one.name for one in dataset.classes},
        chips=len(dataset.classes) <= CHIPS,
        sides=[_side(one, index, page - 1, backend) for one in (dataset, other) if one is not None],
        zoomed=_zoomed(image, dataset, index, page - 1, backend) if image else None,
        worst=_worst(dataset),
        map=feature_map.drawing(dataset, backend),
        map_width=feature_map.WIDTH,
        hue=feature_map.hue,
        lineage=lineage.of_dataset(dataset.id, dataset.teacher, dataset.job, backend, caller, viewer),
        asked={name: value for name, value in asked.items() if value},
        number=page,
        others=[one for one in backend.datasets.page(limit=OTHERS, viewer=viewer)[0] if one.id != dataset.id],
        shards=dataset.shards[:SHARDS_SHOWN],
        files=["dataset.json", *(name for name in BESIDE if backend.storage.exists(f"datasets/{dataset.id}/{name}"))],
        pattern=_pattern(dataset),
        size=sum(shard.bytes for shard in dataset.shards),
    )


@router.get("/datasets/{identifier}/images/{shard}/{key:path}")
async def image_file(identifier: str, shard: int, key: str, backend: Uses, viewer: Viewer) -> Response:
    """The image of a sample. What is no PNG, JPEG or WebP is not sent."""

    def read() -> Picture:
        return backend.samples.picture(_find(identifier, backend, viewer), shard, key)

    picture = await anyio.to_thread.run_sync(read, limiter=backend.shard_limiter)
    # Who may see a dataset can change; what is in it cannot.
    headers = {"Cache-Control": "private, max-age=600"}
    return Response(picture.data, media_type=picture.media_type, headers=headers)


@router.get("/datasets/{identifier}/files/{name:path}")
async def download(identifier: str, name: str, request: Request, backend: Uses, viewer: Viewer) -> Response:
    """A file of the dataset, as `GET /v1/datasets/{id}/files/{name}` gives it."""
    return await datasets.get_file(identifier, name, request, backend, viewer)


def _find(identifier: str, backend: Backend, viewer: str | None) -> DatasetManifest:
    return backend.datasets.get(identifier, viewer=viewer)


def _class(text: str, dataset: DatasetManifest) -> int | None:
    if text == "":
        return None
    if not text.isdecimal() or int(text) >= dataset.num_classes:
        raise InvalidInput.at(
            "/class", f"{text!r} is no class of {dataset.id}: they count from 0 to {dataset.num_classes - 1}"
        )
    return int(text)


def _pattern(dataset: DatasetManifest) -> str:
    """The shards' names as webdataset takes them."""
    names = [shard.name for shard in dataset.shards]
    if names == [shard_name(index) for index in range(len(names))]:
        return f"train-{{000000..{len(names) - 1:06d}}}.tar"
    return names[0] if len(names) == 1 else "{" + ",".join(names[:3]) + (",…" if len(names) > 3 else "") + "}"


def _side(dataset: DatasetManifest, label: int | None, number: int, backend: Backend) -> dict[str, Any]:
    """A gallery, or why there is none."""
    try:
        return {"dataset": dataset, "page": gallery.page(backend.samples, dataset, label, number), "why": None}
    except (CorruptData, NotFound, TooLarge) as error:
        return {"dataset": dataset, "page": None, "why": error.message}


def _zoomed(image: str, dataset: DatasetManifest, label: int | None, number: int, backend: Backend) -> dict[str, Any]:
    """A sample, its figures, and those before and behind it on the page."""
    shard, _, key = image.partition("/")
    if not shard.isdecimal():
        raise NotFound(f"there is no image {image!r:.200}: name the shard's number and the sample's key")
    cell = gallery.Cell(int(shard[:9]), key)
    index, figures = backend.samples.sample(dataset, cell.shard, cell.key)
    cells = gallery.page(backend.samples, dataset, label, number).cells
    place = cells.index(cell) if cell in cells else None
    return {
        "cell": cell,
        "label": index,
        "figures": {name: value for name, value in figures.items() if isinstance(value, int | float | str)},
        "before": cells[place - 1] if place else None,
        "behind": cells[place + 1] if place is not None and place + 1 < len(cells) else None,
    }


def _worst(dataset: DatasetManifest) -> list[tuple[gallery.Cell, dict[str, Any]]]:
    """The samples of lowest margin, as the job that made the dataset found them."""
    listed = (dataset.quality or {}).get("outliers") or []
    found = [(gallery.of_sample(dataset, str(one.get("key"))), one) for one in listed if isinstance(one, dict)]
    return [(cell, one) for cell, one in found if cell is not None]
