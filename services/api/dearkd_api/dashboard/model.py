"""The page of a model: accuracy, what it confuses, and its answers to an image that one brings."""

import json
from hashlib import sha256
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse
from starlette.concurrency import run_in_threadpool

from dearkd.errors import DearKDError, InvalidInput, NotFound, Unavailable
from dearkd.jobs.model import kind_of
from dearkd.storage.catalog import Model, StoredFile
from dearkd_api import models, predictions
from dearkd_api.access import Caller, Viewer
from dearkd_api.answer_headers import REPORT_HEADERS
from dearkd_api.backend import Backend, Uses
from dearkd_api.dashboard import lineage
from dearkd_api.dashboard.forms import PageRoute, sent_file
from dearkd_api.dashboard.frame import show
from dearkd_api.verification import ServedFile

EVALUATION = "evaluation.json"
MAX_EVALUATION_BYTES = 30_000_000
REPORT = "report.html"
MAX_REPORT_BYTES = 10_000_000
PICTURES = ("attention_distance.png",)
MATRIX = 20
"""The most classes of which the whole confusion matrix is shown; of more, the pairs that are confused most."""
PAIRS = 20

router = APIRouter(route_class=PageRoute)


@router.get("/models/{identifier}")
def model_page(identifier: str, request: Request, backend: Uses, caller: Caller, viewer: Viewer) -> Response:
    """Show a model."""
    return _show(request, backend.models.get(identifier, viewer=viewer), backend, caller, viewer)


@router.post("/models/{identifier}/predict")
async def try_it(identifier: str, request: Request, backend: Uses, caller: Caller, viewer: Viewer) -> Response:
    """Show a model with its answers, and its teacher's, to the image that a form sent; or why there are none."""
    model = await run_in_threadpool(backend.models.get, identifier, viewer=viewer)
    answers, why, status = None, None, 200
    try:
        answers = await predictions.predict_image(model, sent_file(request), request, backend, caller)
    except (InvalidInput, Unavailable) as error:
        why, status = error.message, 422 if isinstance(error, InvalidInput) else 503
    if request.headers.get("hx-request") == "true":
        status = 200  # htmx shows nothing else
    return await run_in_threadpool(
        _show, request, model, backend, caller, viewer, answers=answers, why=why, status=status
    )


@router.get("/models/{identifier}/files/{name:path}")
async def download(identifier: str, name: str, request: Request, backend: Uses, viewer: Viewer) -> Response:
    """A file of the model, as `GET /v1/models/{id}/files/{name}` gives it."""
    return await models.get_file(identifier, name, request, backend, viewer)


@router.get("/models/{identifier}/report")
async def show_report(identifier: str, backend: Uses, viewer: Viewer) -> Response:
    """Show the report that the model's run has left: a page on its own."""
    model = await run_in_threadpool(backend.models.get, identifier, viewer=viewer)
    listed = report_file(model)
    if listed is None:
        raise NotFound(f"{model.id} has no {REPORT} that can be shown: its run left none, or another program wrote it")
    key = backend.models.key(model.id, REPORT)
    await backend.verification.require(ServedFile(key, listed))
    page = await run_in_threadpool(backend.storage.read, key)
    return HTMLResponse(page, headers=dict(REPORT_HEADERS))


def report_file(model: Model) -> StoredFile | None:
    """The report among a model's files, if it has one of a size that a page may have."""
    return next((file for file in model.files if file.name == REPORT and file.bytes <= MAX_REPORT_BYTES), None)


def _show(
    request: Request,
    model: Model,
    backend: Backend,
    caller: str | None,
    viewer: str | None,
    *,
    answers: dict[str, Any] | None = None,
    why: str | None = None,
    status: int = 200,
) -> Response:
    report = _evaluation(model, backend)
    return show(
        request,
        "model.html",
        status=status,
        model=model,
        home=f"/models/{model.id}",
        lineage=_lineage(model, backend, caller, viewer),
        report=report,
        classes=_classes(report),
        confusion=_matrix(report),
        pairs=_pairs(report),
        has_report=report_file(model) is not None,
        pictures=[file.name for file in model.files if file.name in PICTURES],
        answers=answers,
        why=why,
    )


def _lineage(model: Model, backend: Backend, caller: str | None, viewer: str | None) -> list[lineage.Stage]:
    try:
        run = backend.store.get(model.run, owner=caller) if kind_of(model.run) else None
    except NotFound:
        run = None
    if run is None:
        node = lineage.Node(model.name or model.id, None, here=True)
        around = lineage.of_dataset(model.dataset, model.teacher, None, backend, caller, viewer)
        return [*(stage for stage in around if stage.what in ("teacher", "dataset")), lineage.Stage("model", [node])]
    return lineage.of_run(run, backend, caller, viewer)


def _evaluation(model: Model, backend: Backend) -> dict[str, Any]:
    """The model's evaluation; empty where it has none that can be read."""
    listed = next((file for file in model.files if file.name == EVALUATION), None)
    if listed is None or listed.bytes > MAX_EVALUATION_BYTES:
        return {}
    try:
        text = backend.storage.read(backend.models.key(model.id, EVALUATION))
        found = json.loads(text) if sha256(text).hexdigest() == listed.sha256 else {}
    except (DearKDError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _classes(report: dict[str, Any]) -> list[dict[str, Any]]:
    found = report.get("per_class")
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def _matrix(report: dict[str, Any]) -> list[list[float]] | None:
    """The confusion matrix, where it is one and small enough to be shown whole."""
    rows = report.get("confusion")
    if not isinstance(rows, list) or not 0 < len(rows) <= MATRIX or len(rows) != len(_classes(report)):
        return None
    square = all(isinstance(row, list) and len(row) == len(rows) for row in rows)
    shares = square and all(isinstance(one, int | float) and 0 <= one <= 1 for row in rows for one in row)
    return rows if shares else None


def _pairs(report: dict[str, Any]) -> list[tuple[int, int, float]]:
    """The true and the predicted class of what is confused most, and its share of the true class."""
    rows = report.get("confusion")
    if not isinstance(rows, list):
        return []
    wrong = [
        (true, predicted, share)
        for true, row in enumerate(rows)
        if isinstance(row, list)
        for predicted, share in enumerate(row)
        if true != predicted and isinstance(share, int | float) and share > 0
    ]
    return sorted(wrong, key=lambda one: -one[2])[:PAIRS]
