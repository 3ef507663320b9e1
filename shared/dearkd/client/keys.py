"""Calls on API keys, on who may see what, and on the audit log."""

from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Any

from dearkd.answers import ApiKey, CreatedApiKey, OwnApiKey, RegisteredDataset, RegisteredTeacher, TrainedModel
from dearkd.choices import Scope
from dearkd.client.bodies import request_body
from dearkd.client.paths import Collection, path_of
from dearkd.client.sending import Sender
from dearkd.errors import InvalidInput
from dearkd.specs.requests import KeyRequest, Quotas, RotateRequest
from dearkd.storage.audit import AuditRecord

Resource = RegisteredTeacher | RegisteredDataset | TrainedModel

_RESOURCES: dict[str, tuple[Collection, type[RegisteredTeacher] | type[RegisteredDataset] | type[TrainedModel]]] = {
    "tch": ("teachers", RegisteredTeacher),
    "ds": ("datasets", RegisteredDataset),
    "mdl": ("models", TrainedModel),
}


class KeyCalls(Sender):
    """The calls on API keys, on sharing and on the audit log. All but `get_own_key` and sharing need an `admin` key."""

    async def create_key(
        self,
        name: str,
        *,
        scopes: Sequence[Scope] = ("submit",),
        expires_at: datetime | None = None,
        quotas: Quotas | None = None,
    ) -> CreatedApiKey:
        """Create a key; its `key` is shown this once. The first of all must have the scope `admin`.

        Args:
            name: of the key.
            scopes: that it has.
            expires_at: with its zone; None: never.
            quotas: of the key; None: no limits.
        """
        given: dict[str, Any] = {"name": name, "scopes": list(scopes)}
        if expires_at is not None:
            given["expires_at"] = expires_at.isoformat()
        if quotas is not None:
            given["quotas"] = quotas
        return await self._post(CreatedApiKey, "/v1/keys", json=request_body(KeyRequest, None, given))

    def list_keys(self) -> AsyncIterator[ApiKey]:
        return self._pages(ApiKey, "/v1/keys")

    async def get_key(self, identifier: str) -> ApiKey:
        return await self._get(ApiKey, path_of("keys", identifier))

    async def get_own_key(self) -> OwnApiKey:
        """The key that this client sends. Raises `NotFound` where the API has no keys."""
        return await self._get(OwnApiKey, "/v1/keys/self")

    async def rotate_key(self, identifier: str, *, grace_seconds: float = 0.0) -> CreatedApiKey:
        """Give a key a new secret; the old one is taken for `grace_seconds` more."""
        body = request_body(RotateRequest, None, {"grace_seconds": grace_seconds})
        return await self._post(CreatedApiKey, f"{path_of('keys', identifier)}/rotate", json=body)

    async def revoke_key(self, identifier: str) -> ApiKey:
        return await self._post(ApiKey, f"{path_of('keys', identifier)}/revoke")

    async def share(self, identifier: str, *, shared: bool = True) -> Resource:
        """Let every key see and use a teacher, dataset or model; or, with `shared` false, no other key any more."""
        prefix = identifier.partition("-")[0]
        if prefix not in _RESOURCES:
            raise InvalidInput(f"{identifier!r} is no teacher (tch-…), dataset (ds-…) or model (mdl-…)")
        collection, model = _RESOURCES[prefix]
        return await self._post(model, f"{path_of(collection, identifier)}/{'share' if shared else 'unshare'}")

    def list_audit(self) -> AsyncIterator[AuditRecord]:
        """The changes that clients made, newest first."""
        return self._pages(AuditRecord, "/v1/audit")
