"""What bad input gets, on every route: a table, one row a route, which the test compares with the API's own list."""

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from dearkd.identifiers import new_id
from dearkd.jobs.inspections import Inspections, Ticket
from dearkd.settings import Settings
from dearkd.specs.requests import Quotas
from dearkd.storage.api_keys import KeyRecords
from tests.support.api_contents import put_dataset, put_model, put_teacher
from tests.support.services import Api, database, eventually, serving

pytestmark = pytest.mark.services

COLUMNS = ("scope", "other", "type", "field", "parameter", "kind", "dots", "nul", "huge", "broken", "slow")
"""A key of too narrow a scope; another's key; a body of text/plain; an unknown field; an unknown parameter; an id of
another kind; `../` and NUL as an id; a body of 100,000 keys; JSON that ends too early; a body that never ends.
Without a key and with an expired one every route answers 401."""

TABLE = """
POST   /v1/teachers                                              403   -   415 422 422  -   -   -  422 422 408
GET    /v1/teachers                                               -    -    -   -  422  -   -   -   -   -   -
GET    /v1/teachers/{identifier}                                  -   404   -   -  422 404 404 404  -   -   -
DELETE /v1/teachers/{identifier}                                 403  403   -   -  422 404 404 404  -   -   -
POST   /v1/teachers/{identifier}/share                           403  403   -   -  422 404 404 404  -   -   -
POST   /v1/teachers/{identifier}/unshare                         403  403   -   -  422 404 404 404  -   -   -
POST   /v1/teachers/{identifier}/checks                          403  404  415 422 422 404 404 404 422 422 408
GET    /v1/teachers/{identifier}/checks/{check}                   -   404   -   -  422 404 404 404  -   -   -
POST   /v1/synthesis-jobs                                        403   -   415 422 422  -   -   -  422 422 408
GET    /v1/synthesis-jobs                                         -    -    -   -  422  -   -   -   -   -   -
GET    /v1/synthesis-jobs/{identifier}                            -   404   -   -  422 404 404 404  -   -   -
POST   /v1/synthesis-jobs/{identifier}/cancel                    403  404   -   -  422 404 404 404  -   -   -
POST   /v1/synthesis-jobs/{identifier}/pause                     403  404   -   -  422 404 404 404  -   -   -
POST   /v1/synthesis-jobs/{identifier}/resume                    403  404   -   -  422 404 404 404  -   -   -
POST   /v1/synthesis-jobs/{identifier}/priority                  403  404  415 422 422 404 404 404 422 422 408
POST   /v1/synthesis-jobs/{identifier}/retry                     403  404  415 422 422 404 404 404 422 422 408
GET    /v1/synthesis-jobs/{identifier}/events                     -   404   -   -  422 404 404 404  -   -   -
GET    /v1/synthesis-jobs/{identifier}/log                        -   404   -   -  422 404 404 404  -   -   -
GET    /v1/synthesis-jobs/{identifier}/preview.png                -   404   -   -  422 404 404 404  -   -   -
GET    /v1/synthesis-jobs/{identifier}/live.png                   -   404   -   -  422 404 404 404  -   -   -
GET    /v1/synthesis-jobs/{identifier}/timelapse.webp             -   404   -   -  422 404 404 404  -   -   -
GET    /v1/synthesis-jobs/{identifier}/deliveries                 -   404   -   -  422 404 404 404  -   -   -
POST   /v1/synthesis-jobs/{identifier}/deliveries/{delivery}/redeliver 403 404 - -  422 404 404 404 -   -   -
POST   /v1/training-runs                                         403   -   415 422 422  -   -   -  422 422 408
GET    /v1/training-runs                                          -    -    -   -  422  -   -   -   -   -   -
GET    /v1/training-runs/{identifier}                             -   404   -   -  422 404 404 404  -   -   -
POST   /v1/training-runs/{identifier}/cancel                     403  404   -   -  422 404 404 404  -   -   -
POST   /v1/training-runs/{identifier}/pause                      403  404   -   -  422 404 404 404  -   -   -
POST   /v1/training-runs/{identifier}/resume                     403  404   -   -  422 404 404 404  -   -   -
POST   /v1/training-runs/{identifier}/priority                   403  404  415 422 422 404 404 404 422 422 408
POST   /v1/training-runs/{identifier}/retry                      403  404  415 422 422 404 404 404 422 422 408
GET    /v1/training-runs/{identifier}/events                      -   404   -   -  422 404 404 404  -   -   -
GET    /v1/training-runs/{identifier}/log                         -   404   -   -  422 404 404 404  -   -   -
GET    /v1/training-runs/{identifier}/metrics                     -   404   -   -  422 404 404 404  -   -   -
GET    /v1/training-runs/{identifier}/checkpoints                 -   404   -   -  422 404 404 404  -   -   -
GET    /v1/training-runs/{identifier}/checkpoints/{checkpoint}/files/{name} - 404 - - 422 404 404 404 -  -   -
GET    /v1/training-runs/{identifier}/deliveries                  -   404   -   -  422 404 404 404  -   -   -
POST   /v1/training-runs/{identifier}/deliveries/{delivery}/redeliver 403 404 - -   422 404 404 404 -   -   -
POST   /v1/datasets                                              403   -   415 422 422  -   -   -  422 422 408
GET    /v1/datasets                                               -    -    -   -  422  -   -   -   -   -   -
GET    /v1/datasets/{identifier}                                  -   404   -   -  422 404 404 404  -   -   -
DELETE /v1/datasets/{identifier}                                 403  403   -   -  422 404 404 404  -   -   -
POST   /v1/datasets/{identifier}/share                           403  403   -   -  422 404 404 404  -   -   -
POST   /v1/datasets/{identifier}/unshare                         403  403   -   -  422 404 404 404  -   -   -
GET    /v1/datasets/{identifier}/files/{name}                     -   404   -   -  422 404 404 404  -   -   -
GET    /v1/models                                                 -    -    -   -  422  -   -   -   -   -   -
GET    /v1/models/{identifier}                                    -   404   -   -  422 404 404 404  -   -   -
DELETE /v1/models/{identifier}                                   403  403   -   -  422 404 404 404  -   -   -
POST   /v1/models/{identifier}/share                             403  403   -   -  422 404 404 404  -   -   -
POST   /v1/models/{identifier}/unshare                           403  403   -   -  422 404 404 404  -   -   -
GET    /v1/models/{identifier}/files/{name}                       -   404   -   -  422 404 404 404  -   -   -
POST   /v1/models/{identifier}/predict                           403  404  415  -  422 404 404 404  -   -   -
GET    /v1/events                                                 -    -    -   -  422  -   -   -   -   -   -
POST   /v1/keys                                                  403   -   415 422 422  -   -   -  422 422 408
GET    /v1/keys                                                  403   -    -   -  422  -   -   -   -   -   -
GET    /v1/keys/self                                              -    -    -   -  422  -   -   -   -   -   -
GET    /v1/keys/{identifier}                                     403   -    -   -  422 404 404 404  -   -   -
POST   /v1/keys/{identifier}/rotate                              403   -   415 422 422 404 404 404 422 422 408
POST   /v1/keys/{identifier}/revoke                              403   -    -   -  422 404 404 404  -   -   -
GET    /v1/audit                                                 403   -    -   -  422  -   -   -   -   -   -
"""
ROWS: dict[tuple[str, str], dict[str, int]] = {
    (method, path): {name: int(cell) for name, cell in zip(COLUMNS, cells, strict=True) if cell != "-"}
    for method, path, *cells in (line.split() for line in TABLE.strip().splitlines())
}
BODY_SECONDS = 1.0


class Callers:
    """One API as several keys see it, with something of each sort that belongs to `owner`."""

    def __init__(self, api: Api, folder: Path) -> None:
        self.api = api
        records = KeyRecords(api.storage)
        now = datetime.now(UTC)
        self.keys: dict[str, str] = {}
        owner = ""
        for name, scopes, expires in (
            ("admin", ["admin"], None),
            ("owner", ["submit"], None),
            ("other", ["submit"], None),
            ("reader", ["read"], None),
            ("expired", ["admin"], now - timedelta(hours=1)),
        ):
            record, self.keys[name] = records.create(
                name=name,
                scopes=scopes,
                quotas=Quotas(),
                expires_at=expires,
                at=now,
            )
            owner = record.id if name == "owner" else owner
            self.key_id = record.id
        eventually(lambda: self.ask("owner", "GET", "/v1/teachers").status_code == 200)
        job = self.post("/v1/synthesis-jobs", {"teacher": put_teacher(api, owner=owner)})
        run = self.post("/v1/training-runs", {"dataset": job["id"]})
        api.storage.put(f"datasets/ds-{job['id'].partition('-')[2]}/preview.png", b"x")
        self.check = new_id("chk")
        self.ids = {
            "teachers": put_teacher(api, owner=owner),
            "datasets": put_dataset(api, folder, owner=owner),
            "models": put_model(api, owner=owner),
            "synthesis-jobs": job["id"],
            "training-runs": run["id"],
            "keys": self.key_id,
        }
        question = {"teacher": self.ids["teachers"], "dataset": self.ids["datasets"]}
        Inspections(api.store.redis, api.storage).open(Ticket(id=self.check, request=question, owner=owner))

    def ask(self, who: str | None, method: str, path: str, **more: Any) -> httpx.Response:
        headers = more.pop("headers", {}) | ({"Authorization": f"Bearer {self.keys[who]}"} if who else {})
        return self.api.http.request(method, path, headers=headers, **more)

    def post(self, path: str, body: Any) -> dict[str, Any]:
        posted = self.ask("owner", "POST", path, json=body)
        assert posted.status_code == 202, posted.text
        return dict(posted.json())

    def place(self, path: str, identifier: str | None = None) -> str:
        """A path with ids of what there is, or another in place of the first."""
        known = self.ids.get(path.split("/")[2], "")
        filled = path.replace("{identifier}", known if identifier is None else identifier)
        return (
            filled.replace("{check}", self.check)
            .replace("{delivery}", f"msg_{known}_1")
            .replace("{checkpoint}", "0" * 16)
            .replace("{name}", "config.json" if path.startswith("/v1/models") else "_info.json")
        )

    def slow(self, path: str) -> int:
        """The status of a body of which the last byte never comes."""
        head = (
            f"POST {self.place(path)} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            f"Authorization: Bearer {self.keys['admin']}\r\nContent-Length: 100\r\n\r\n{{"
        )
        with socket.create_connection(("127.0.0.1", self.api.settings.port), timeout=60) as connection:
            connection.sendall(head.encode())
            return int(connection.recv(1000).split()[1])


@pytest.fixture(scope="module")
def callers(redis_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callers]:
    folder = tmp_path_factory.mktemp("rows")
    settings = Settings(
        redis_url=database(redis_server, 8),
        storage_url=f"file://{folder}/storage",
        body_seconds=BODY_SECONDS,
        max_body_bytes=4_000_000,
        max_key_failures=10_000,
    )
    with serving(settings, folder) as api:
        yield Callers(api, folder)


def test_every_route_has_a_row(callers: Callers) -> None:
    paths = callers.api.http.get("/openapi.json").json()["paths"]
    there = {(method.upper(), path) for path, methods in paths.items() for method in methods if path.startswith("/v1")}
    assert there == set(ROWS)


@pytest.mark.parametrize(("method", "path"), ROWS, ids=[" ".join(row) for row in ROWS])
def test_bad_input(callers: Callers, method: str, path: str) -> None:
    place = callers.place(path)
    found: dict[str, int] = {}
    json_type = {"headers": {"content-type": "application/json"}}
    narrow = "other" if method == "GET" else "reader"
    body: dict[str, Any] = {"json": {}} if "field" in ROWS[method, path] else {}
    if path.endswith("priority"):
        body = {"json": {"priority": "high"}}
    asked: dict[str, tuple[str, str, dict[str, Any]]] = {
        "scope": (narrow, place, body),
        "other": ("other", place, body),
        "type": ("admin", place, {"content": b"{}", "headers": {"content-type": "text/plain"}}),
        "field": ("admin", place, {"json": {"no_such_field": 1}}),
        "parameter": ("admin", f"{place}?no_such=1", body),
        "kind": ("admin", callers.place(path, new_id("tmp")), body),
        "dots": ("admin", callers.place(path, "..%2f..%2fjobs"), body),
        "nul": ("admin", callers.place(path, "%00"), body),
        "huge": ("admin", place, {"json": {f"key{n}": n for n in range(100_000)}}),
        "broken": ("admin", place, {"content": b'{"name": ', **json_type}),
    }
    for column in ROWS[method, path]:
        if column == "slow":
            found[column] = callers.slow(path)
            continue
        who, where, more = asked[column]
        answer = callers.ask(who, method, where, **more)
        found[column] = answer.status_code
        if answer.status_code >= 400:
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.json()["detail"]
    assert found == ROWS[method, path]
    refused: list[tuple[str | None, str]] = [(None, "unauthorized"), ("expired", "key_expired")]
    for nobody, code in refused:
        answer = callers.ask(nobody, method, place)
        assert (answer.status_code, answer.json()["code"]) == (401, code)


@pytest.mark.parametrize("path", ["/v1/synthesis-jobs", "/v1/training-runs", "/v1/teachers/{identifier}/checks"])
def test_duplicates_at_once_are_one(callers: Callers, path: str) -> None:
    body = {
        "/v1/synthesis-jobs": {"teacher": callers.ids["teachers"]},
        "/v1/training-runs": {"dataset": callers.ids["synthesis-jobs"]},
    }.get(path, {"dataset": callers.ids["datasets"]})
    key = {"Idempotency-Key": new_id("tmp")}
    with ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(lambda _: callers.ask("owner", "POST", callers.place(path), json=body, headers=key), range(16))
        )
    if path.endswith("checks"):  # no inspector lives here
        assert {answer.status_code for answer in answers} == {503}
        return
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1
