"""API keys, administered over HTTP: created, listed, rotated, revoked."""

from datetime import timedelta
from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from dearkd.answers import ApiKey, CreatedApiKey, OwnApiKey, Page
from dearkd.errors import InvalidInput, NotFound
from dearkd.jobs.model import now
from dearkd.specs.requests import KeyRequest, RotateRequest
from dearkd.storage.api_keys import KeyRecord
from dearkd_api.access import Asking
from dearkd_api.backend import Uses
from dearkd_api.bodies import JsonRoute
from dearkd_api.keys import SCOPES
from dearkd_api.pages import DEFAULT_LIMIT, After, Limit, page, require_id

router = APIRouter(prefix="/v1/keys", tags=["keys"], route_class=JsonRoute)


class KeyPage(Page[ApiKey]):
    pass


@router.post("", status_code=201, response_model=CreatedApiKey)
def create(posted: KeyRequest, backend: Uses) -> Response:
    """Create a key. The first of all must be an administrator's: from then on nobody is let in without a key."""
    if not backend.keys and "admin" not in posted.scopes:
        raise InvalidInput.at(
            "/scopes",
            f"{', '.join(posted.scopes)}: the first key needs the scope admin, since from then on no request is "
            "answered without a key, and nobody could create another",
        )
    at = now()
    if posted.expires_at is not None and posted.expires_at <= at:
        raise InvalidInput.at("/expires_at", f"{posted.expires_at.isoformat()} is over: give a time to come")
    record, secret = backend.key_records.create(
        name=posted.name,
        scopes=sorted(set(posted.scopes), key=list(SCOPES).index),
        quotas=posted.quotas,
        expires_at=posted.expires_at,
        at=at,
    )
    backend.keys.read()
    headers = {"Location": f"/v1/keys/{record.id}", "Cache-Control": "no-store"}
    return JSONResponse(_render(record) | {"key": secret}, status_code=201, headers=headers)


@router.get("", response_model=KeyPage)
def list_newest_first(backend: Uses, limit: Limit = DEFAULT_LIMIT, after: After = None) -> Response:
    """List all keys, revoked ones too, newest first."""
    require_id(after, "key")
    records, _ = backend.key_records.all()
    found = [record for record in records if after is None or record.id < after]
    return JSONResponse(page([_render(record) for record in found[:limit]], len(found) > limit))


@router.get("/self", response_model=OwnApiKey)
def get_own(backend: Uses, identity: Asking) -> Response:
    """The key that the request bears, and what it has used today. Any scope will do."""
    if identity is None:
        raise NotFound("this server has no keys: nobody needs one")
    record = identity.record
    return JSONResponse(
        {
            "id": record.id if record else None,
            "name": identity.name,
            "scopes": [scope for scope in SCOPES if scope in identity.scopes],
            "quotas": identity.quotas.model_dump(mode="json"),
            "expires_at": _render(record)["expires_at"] if record else None,
            "used_today": backend.quotas.used(identity.owner),
        }
    )


@router.get("/{identifier}", response_model=ApiKey)
def get(identifier: str, backend: Uses) -> Response:
    return JSONResponse(_render(backend.key_records.get(identifier)))


@router.post("/{identifier}/rotate", response_model=CreatedApiKey)
def rotate(identifier: str, backend: Uses, posted: RotateRequest = RotateRequest()) -> Response:
    """Give a key a new secret; what it owns stays its own. 409 `key_revoked` if it was revoked."""
    grace = timedelta(seconds=posted.grace_seconds)
    record, secret = backend.key_records.rotate(identifier, grace=grace, at=now())
    backend.keys.read()
    return JSONResponse(_render(record) | {"key": secret}, headers={"Cache-Control": "no-store"})


@router.post("/{identifier}/revoke", response_model=ApiKey)
def revoke(identifier: str, backend: Uses) -> Response:
    """Let a key be taken no more: here at once, by other servers within seconds. Its jobs go on."""
    record = backend.key_records.revoke(identifier, at=now())
    backend.keys.read()
    return JSONResponse(_render(record))


def _render(record: KeyRecord) -> dict[str, Any]:
    return record.model_dump(mode="json", exclude={"secrets", "schema_version"})
