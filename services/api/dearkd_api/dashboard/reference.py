"""The reference of the API: its schema, as Swagger UI shows it."""

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

from dearkd_api.dashboard.frame import bare

router = APIRouter()


@router.get("/docs")
def reference() -> HTMLResponse:
    return bare("reference.html", status=200)
