"""Keys that are created while the API runs: scopes, expiry, rotation, revocation, quotas, sharing, the audit log."""

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest

from dearkd.local.doctor import check_jobs
from dearkd.settings import Settings
from dearkd.specs.requests import Quotas
from dearkd.storage import api_keys
from dearkd.storage.api_keys import KeyRecords
from dearkd.storage.object_stores import StoredObject
from dearkd.storage.objects import Storage
from dearkd_api.access import scope_needed
from dearkd_api.keys import REFRESH_SECONDS
from dearkd_api.serving import _has_keys
from tests.support.api_contents import pointers, post_synthesis, put_dataset, put_model, put_teacher
from tests.support.services import Api, database, eventually, serving

pytestmark = pytest.mark.services

Bearing = Callable[[str | None], Api]


@contextmanager
def opened(settings: Settings, folder: Path) -> Iterator[Bearing]:
    """An API, as whoever bears a key sees it."""
    with serving(settings, folder) as api, ExitStack() as stack:

        def bearing(key: str | None) -> Api:
            headers = {"Authorization": f"Bearer {key}"} if key else {}
            client = httpx.Client(base_url=api.url, timeout=60, trust_env=False, headers=headers)
            return replace(api, http=stack.enter_context(client))

        yield bearing


@pytest.fixture
def settings(redis_server: str, tmp_path: Path) -> Settings:
    return Settings(redis_url=database(redis_server, 7), storage_url=f"file://{tmp_path}/storage")


@pytest.fixture
def bearing(settings: Settings, tmp_path: Path) -> Iterator[Bearing]:
    with opened(settings, tmp_path) as bearing:
        yield bearing


def create(api: Api, name: str, *scopes: str, **more: Any) -> dict[str, Any]:
    posted = api.http.post("/v1/keys", json={"name": name, "scopes": list(scopes), **more})
    assert posted.status_code == 201, posted.text
    assert posted.headers["location"] == f"/v1/keys/{posted.json()['id']}"
    return dict(posted.json())


@pytest.fixture
def admin(bearing: Bearing) -> Api:
    return bearing(create(bearing(None), "root", "admin")["key"])


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


def test_the_first_key_closes_the_api_and_is_an_administrators(bearing: Bearing, tmp_path: Path) -> None:
    nobody = bearing(None)
    assert nobody.http.get("/v1/teachers").status_code == 200
    assert nobody.http.get("/v1/keys/self").status_code == 404
    for scopes in (["read"], ["submit"], ["read", "submit"]):
        refused = nobody.http.post("/v1/keys", json={"name": "mine", "scopes": scopes})
        assert (code(refused), pointers(refused)) == ((422, "invalid_input"), ["/scopes"])
    assert nobody.http.get("/v1/keys").json()["data"] == []
    first = create(nobody, "root", "admin")
    assert re.fullmatch(r"dearkd_[A-Za-z0-9_-]{43}", first["key"])
    assert code(nobody.http.get("/v1/teachers")) == (401, "unauthorized")
    assert code(bearing(first["key"] + "x").http.get("/v1/teachers")) == (401, "unauthorized")
    admin = bearing(first["key"])
    assert admin.http.get("/v1/teachers").status_code == 200
    (listed,) = admin.http.get("/v1/keys").json()["data"]
    assert listed == {name: value for name, value in first.items() if name != "key"}
    assert admin.http.get(f"/v1/keys/{first['id']}").json() == listed
    secret = first["key"].removeprefix("dearkd_")
    stored = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.name == f"{first['id']}.json" for path in stored)
    assert not [path for path in stored if secret.encode() in path.read_bytes()]
    assert not list(admin.store.redis.scan_iter(f"*{secret}*"))


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "/name"),
        ({"name": ""}, "/name"),
        ({"name": "a\0b"}, "/name"),
        ({"name": "k", "scopes": []}, "/scopes"),
        ({"name": "k", "scopes": ["root"]}, "/scopes/0"),
        ({"name": "k", "scopes": ["admin"], "expires_at": "2020-01-01T00:00:00Z"}, "/expires_at"),
        ({"name": "k", "scopes": ["admin"], "expires_at": "2099-01-01T00:00:00"}, "/expires_at"),
        ({"name": "k", "scopes": ["admin"], "expires_at": 4102444800}, "/expires_at"),
        ({"name": "k", "scopes": ["admin"], "quotas": {"images": 1}}, "/quotas/images"),
        ({"name": "k", "scopes": ["admin"], "quotas": {"queued_jobs": -1}}, "/quotas/queued_jobs"),
        ({"name": "k", "scopes": ["admin"], "key": "own-secret"}, "/key"),
    ],
)
def test_bad_keys_are_refused(bearing: Bearing, body: dict[str, Any], pointer: str) -> None:
    refused = bearing(None).http.post("/v1/keys", json=body)
    assert (refused.status_code, pointers(refused)) == (422, [pointer])
    assert bearing(None).http.get("/v1/keys").json()["data"] == []


def test_scopes(bearing: Bearing, admin: Api) -> None:
    reader, submitter = (bearing(create(admin, scope, scope)["key"]) for scope in ("read", "submit"))
    teacher = put_teacher(admin)
    for api, may in ((reader, ()), (submitter, ("submit",)), (admin, ("submit", "admin"))):
        assert api.http.get("/v1/teachers").json()["data"][0]["id"] == teacher
        assert api.http.get("/v1/keys/self").status_code == 200
        submitted = api.http.post("/v1/synthesis-jobs", json={"teacher": teacher})
        assert submitted.status_code == (202 if "submit" in may else 403)
        for method, path in (("GET", "/v1/keys"), ("GET", "/v1/audit"), ("GET", "/v1/keys/no-such")):
            answer = api.http.request(method, path)
            if "admin" in may:
                assert answer.status_code == (404 if path.endswith("such") else 200)
            else:
                assert code(answer) == (403, "missing_scope")
                assert "scope admin" in answer.json()["detail"]
    for method, path in (("POST", "/v1/training-runs"), ("DELETE", f"/v1/teachers/{teacher}"), ("PUT", "/v1/no-such")):
        assert code(reader.http.request(method, path, json={})) == (403, "missing_scope")
    assert reader.http.get("/v1/synthesis-jobs").json()["data"] == []
    assert [reader.http.get("/v1/keys/self").json()[field] for field in ("name", "scopes")] == ["read", ["read"]]


@pytest.mark.parametrize(
    ("method", "path", "needed"),
    [
        ("GET", "/v1/keys/self", "read"),
        ("POST", "/v1/keys/self", "submit"),
        ("GET", "/v1/keys/self/", "admin"),
        ("GET", "/v1/keys", "admin"),
        ("GET", "/v1/keysmith", "read"),
        ("HEAD", "/v1/models/x/files/y", "read"),
        ("OPTIONS", "/v1/models", "submit"),
        ("GET", "/v1/audit/", "admin"),
    ],
)
def test_the_scope_that_a_path_needs(method: str, path: str, needed: str) -> None:
    assert scope_needed(method, path) == needed


def test_a_key_expires(bearing: Bearing, admin: Api) -> None:
    soon = datetime.now(UTC) + timedelta(seconds=2)
    mine = bearing(create(admin, "short", "submit", expires_at=soon.isoformat())["key"])
    assert mine.http.get("/v1/teachers").status_code == 200
    eventually(lambda: mine.http.get("/v1/teachers").status_code != 200, seconds=20)
    assert datetime.now(UTC) >= soon
    assert code(mine.http.get("/v1/teachers")) == (401, "key_expired")


def test_a_rotated_key_keeps_what_it_owns(bearing: Bearing, admin: Api) -> None:
    created = create(admin, "team", "submit")
    old = bearing(created["key"])
    job = post_synthesis(old)
    for key, lost in ((created["key"], 1), ("dearkd_of-nobody-at-all", 0)):  # the doctor knows whose a job is, too
        unended = list(check_jobs(old.settings.model_copy(update={"api_key": key}), resubmit=False))
        assert sum("1 " in finding.detail for finding in unended) == lost, unended
    rotated = admin.http.post(f"/v1/keys/{created['id']}/rotate", json={"grace_seconds": 2})
    assert (rotated.status_code, rotated.json()["id"]) == (200, created["id"])
    new = bearing(rotated.json()["key"])
    for api in (old, new):
        assert api.http.get(job["links"]["self"]).status_code == 200
    eventually(lambda: old.http.get("/v1/teachers").status_code == 401, seconds=20)
    assert code(old.http.get("/v1/teachers")) == (401, "key_revoked")
    newest = bearing(admin.http.post(f"/v1/keys/{created['id']}/rotate").json()["key"])
    assert code(new.http.get("/v1/teachers")) == (401, "unauthorized")
    assert newest.http.get(job["links"]["self"]).json()["id"] == job["id"]
    assert code(admin.http.post(f"/v1/keys/{created['id']}/rotate", json={"grace_seconds": -1})) == (
        422,
        "invalid_input",
    )


def test_a_revoked_key_is_out_at_once_and_the_last_one_leaves_the_api_closed(
    bearing: Bearing, admin: Api, settings: Settings, tmp_path: Path
) -> None:
    created = create(admin, "team", "submit")
    team = bearing(created["key"])
    job = post_synthesis(team)
    with opened(settings, tmp_path) as elsewhere:  # another server, which has let the key in
        there = elsewhere(created["key"])
        assert there.http.get(job["links"]["self"]).status_code == 200
        revoked = admin.http.post(f"/v1/keys/{created['id']}/revoke").json()
        assert code(team.http.get("/v1/teachers")) == (401, "key_revoked")
        begun = time.monotonic()
        eventually(lambda: there.http.get("/v1/teachers").status_code == 401, seconds=60)
        assert time.monotonic() - begun < REFRESH_SECONDS + 10
    assert admin.http.post(f"/v1/keys/{created['id']}/revoke").json() == revoked
    assert code(admin.http.post(f"/v1/keys/{created['id']}/rotate")) == (409, "key_revoked")
    (root,) = (key for key in admin.http.get("/v1/keys").json()["data"] if key["name"] == "root")
    assert admin.http.post(f"/v1/keys/{root['id']}/revoke").status_code == 200
    admin.store.redis.flushdb()
    with opened(settings, tmp_path) as again:
        assert code(again(None).http.get("/v1/teachers")) == (401, "unauthorized")
        assert code(again(None).http.post("/v1/keys", json={"name": "x", "scopes": ["admin"]})) == (401, "unauthorized")
        # A record that cannot be read lets nobody in, and keeps the door shut.
        for path in (tmp_path / "storage" / "keys").iterdir():
            path.write_bytes(b"{")
        time.sleep(REFRESH_SECONDS)
        assert code(again(None).http.get("/v1/teachers")) == (401, "unauthorized")


@pytest.mark.parametrize("hours", [-1, 0, 1])
def test_a_secret_that_was_rotated_within_the_second_of_its_creation_is_out_elsewhere_too(
    tmp_path: Path, hours: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a store tells times in whole seconds, as S3 does, and by a clock that is not the API's."""

    class WholeSeconds(Storage):
        def objects(self, prefix: str) -> Iterator[StoredObject]:
            return (shifted(one) for one in super().objects(prefix))

        def read(self, key: str) -> bytes:
            reads.append(key)
            return super().read(key)

    def shifted(stored: StoredObject) -> StoredObject:
        return replace(stored, modified=stored.modified.replace(microsecond=0) + timedelta(hours=hours))

    reads: list[str] = []
    settings = Settings(storage_url=f"file://{tmp_path}/storage")
    here, there = (KeyRecords(WholeSeconds.open(settings)) for _ in range(2))
    at = datetime.now(UTC)
    record, old = here.create(name="k", scopes=["read"], quotas=Quotas(), expires_at=None, at=at)
    assert there.all()[0][0].secrets[0].sha256 == sha256(old.encode()).hexdigest()
    moment = (tmp_path / "storage" / "keys" / f"{record.id}.json").stat().st_mtime
    _, new = here.rotate(record.id, grace=timedelta(0), at=at)
    os.utime(tmp_path / "storage" / "keys" / f"{record.id}.json", (moment, moment))
    assert there.all()[0][0].secrets[0].sha256 == sha256(new.encode()).hexdigest()
    monkeypatch.setattr(api_keys, "SETTLED_SECONDS", 0.0)
    there.all()
    reads.clear()
    assert there.all()[0][0].secrets[0].sha256 == sha256(new.encode()).hexdigest()
    assert reads == [], "what has long been the same is not read again"


@pytest.mark.parametrize("changed", [{"sha256": "no-digest"}, {"until": "2099-01-01T00:00:00"}])
def test_an_altered_record_lets_nobody_in_and_breaks_nothing(
    bearing: Bearing, admin: Api, tmp_path: Path, changed: dict[str, str]
) -> None:
    created = create(admin, "team", "submit")
    path = tmp_path / "storage" / "keys" / f"{created['id']}.json"
    record = json.loads(path.read_text())
    record["secrets"][0] |= changed
    path.write_text(json.dumps(record))
    time.sleep(REFRESH_SECONDS)
    assert code(bearing(created["key"]).http.get("/v1/teachers")) == (401, "unauthorized")
    assert admin.http.get("/v1/teachers").status_code == 200


def test_a_key_from_another_server_is_known_at_once(bearing: Bearing, settings: Settings, tmp_path: Path) -> None:
    root = create(bearing(None), "root", "admin")
    with opened(settings, tmp_path) as elsewhere:
        there = elsewhere(root["key"])
        assert there.http.get("/v1/teachers").status_code == 200
        time.sleep(0.6)
        assert there.http.get("/v1/teachers").status_code == 200
        mine = create(bearing(root["key"]), "mine", "read")
        time.sleep(0.6)
        assert elsewhere(mine["key"]).http.get("/v1/teachers").status_code == 200


def test_keys_of_storage_let_the_api_listen_beyond_loopback(settings: Settings, tmp_path: Path) -> None:
    assert not _has_keys(settings)
    with opened(settings, tmp_path) as bearing:
        root = create(bearing(None), "root", "admin")
        bearing(root["key"]).http.post(f"/v1/keys/{root['id']}/revoke")
    assert _has_keys(settings)
    (tmp_path / "storage").rename(tmp_path / "away")
    assert not _has_keys(settings)
    assert _has_keys(settings.model_copy(update={"admin_keys": "an-admins-key-0123456789"}))


def test_where_keys_cannot_be_read_nobody_is_let_in(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "storage").mkdir()
    with opened(settings, tmp_path) as bearing:
        root = create(bearing(None), "root", "admin")
    hidden = (tmp_path / "storage").rename(tmp_path / "away")
    with opened(settings, tmp_path) as bearing:
        assert bearing(None).http.get("/v1/teachers").status_code == 503
        assert bearing(root["key"]).http.get("/v1/synthesis-jobs").status_code == 503
        hidden.rename(tmp_path / "storage")
        eventually(lambda: bearing(None).http.get("/v1/teachers").status_code == 401, seconds=30)
        assert bearing(root["key"]).http.get("/v1/synthesis-jobs").status_code == 200
        (tmp_path / "storage").rename(tmp_path / "away")
        time.sleep(REFRESH_SECONDS)  # known keys go on counting while storage is away
        assert bearing(None).http.get("/v1/synthesis-jobs").status_code == 401
        assert bearing(root["key"]).http.get("/v1/synthesis-jobs").status_code == 200
        (tmp_path / "away").rename(tmp_path / "storage")


def test_quotas(bearing: Bearing, admin: Api) -> None:
    quotas = {"queued_jobs": 3, "images_per_day": 50}
    team = bearing(create(admin, "team", "submit", quotas=quotas)["key"])
    other = bearing(create(admin, "other", "submit", quotas=quotas)["key"])
    body = {"teacher": put_teacher(team), "images_per_class": 2}

    def post(images_per_class: int = 2, api: Api = team, **params: bool) -> httpx.Response:
        more = {"images_per_class": images_per_class}
        return api.http.post("/v1/synthesis-jobs", json=body | more, params=params)

    def used() -> int:
        return int(team.http.get("/v1/keys/self").json()["used_today"]["images"])

    assert post(4, dry_run=True).status_code == 200
    assert used() == 0
    assert post(4).status_code == 202
    assert used() == 40
    over = post(2)
    assert code(over) == (429, "quota_exceeded")
    assert "may use 50 images a day and has used 40; this would take 20 more" in over.json()["detail"]
    assert 0 < int(over.headers["retry-after"]) <= 86400
    assert used() == 40
    assert post(2, other).status_code == 202
    team.store.redis.hset(next(iter(team.store.redis.scan_iter("dearkd:quota:*"))), "images", 0)
    team.store.redis.delete(*team.store.redis.scan_iter("dearkd:quota:*"))
    assert [post(1).status_code for _ in range(3)] == [202, 202, 429]
    assert used() == 20  # the third, of which there were too many in the queue, is given back


def test_requests_and_bytes_have_quotas_too(bearing: Bearing, admin: Api) -> None:
    slow = bearing(create(admin, "slow", "read", quotas={"requests_per_minute": 5})["key"])
    if time.time() % 60 > 55:
        time.sleep(6)  # not over the end of a minute
    answers = [slow.http.get("/v1/teachers") for _ in range(7)]
    assert [answer.status_code for answer in answers] == [200] * 5 + [429] * 2
    assert code(answers[-1]) == (429, "too_many_requests")
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 60
    narrow = bearing(create(admin, "narrow", "submit", quotas={"bytes_per_day": 1000})["key"])
    refused = narrow.http.post("/v1/synthesis-jobs", json={"teacher": put_teacher(narrow)})
    assert code(refused) == (429, "quota_exceeded")
    assert "1000 bytes a day" in refused.json()["detail"]
    assert narrow.http.get("/v1/synthesis-jobs").json()["data"] == []


def test_what_is_not_shared_is_not_there_for_others(bearing: Bearing, admin: Api, tmp_path: Path) -> None:
    keys = [create(admin, name, "submit") for name in ("a", "b")]
    a, b = (bearing(key["key"]) for key in keys)
    teacher = put_teacher(a, owner=keys[0]["id"])
    dataset = put_dataset(a, tmp_path, images=20, owner=keys[0]["id"])
    model = put_model(a, owner=keys[0]["id"])
    paths = {"teachers": teacher, "datasets": dataset, "models": model}
    untaught = {"distillation": "none", "weights": {"hidden": 0.0}}

    def seen(api: Api) -> list[bool]:
        found = []
        for collection, identifier in paths.items():
            one = api.http.get(f"/v1/{collection}/{identifier}")
            listed = [item["id"] for item in api.http.get(f"/v1/{collection}").json()["data"]]
            assert (one.status_code == 200) == (identifier in listed)
            found.append(one.status_code == 200)
        asked: list[tuple[str, dict[str, Any]]] = [
            ("/v1/synthesis-jobs", {"teacher": teacher}),
            ("/v1/training-runs", {"dataset": dataset, "stage_one": untaught}),
        ]
        for path, body in asked:
            planned = api.http.post(path, json=body, params={"dry_run": True})
            assert planned.status_code in (200, 422), planned.text
            found.append(planned.status_code == 200)
        found.append(api.http.get(f"/v1/datasets/{dataset}/files/dataset.json").status_code == 200)
        return found

    assert (seen(a), seen(b), seen(admin)) == ([True] * 6, [False] * 6, [True] * 6)
    for path in (f"/v1/teachers/{teacher}/checks", f"/v1/models/{model}/predict"):
        image = {"content": b"x", "headers": {"content-type": "image/png"}}
        asked = {"json": {"dataset": dataset}} if path.endswith("checks") else image
        assert b.http.post(path, **asked).status_code == 404
    for collection, identifier in paths.items():
        path = f"/v1/{collection}/{identifier}"
        assert code(b.http.post(f"{path}/share")) == (403, "forbidden")
        shared = a.http.post(f"{path}/share")
        assert (shared.status_code, shared.json()["shared"]) == (200, True)
        assert b.http.get(path).json()["shared"] is True
        assert code(b.http.delete(path)) == (403, "forbidden")
        assert code(b.http.post(f"{path}/unshare")) == (403, "forbidden")
    assert seen(b) == [True] * 6
    for collection, identifier in paths.items():
        assert admin.http.post(f"/v1/{collection}/{identifier}/unshare").json()["shared"] is False
    assert seen(b) == [False] * 6
    assert a.http.post("/v1/teachers/tch-no/share").status_code == 404


def test_the_audit_log_tells_each_change(bearing: Bearing, admin: Api, tmp_path: Path) -> None:
    created = create(admin, "team", "submit")
    team = bearing(created["key"])
    job = post_synthesis(team)
    path = job["links"]["self"]
    again = {"Idempotency-Key": "once"}
    for _ in range(2):
        body = {"teacher": job["spec"]["teacher"]}
        second = team.http.post("/v1/synthesis-jobs", json=body, headers=again | {"X-Request-Id": "mine"}).json()
    for nothing in (
        team.http.get(path),
        team.http.post("/v1/synthesis-jobs", json={"teacher": "tch-no"}),
        team.http.post("/v1/synthesis-jobs", json=body, params={"dry_run": "true"}),
        team.http.post(f"{path}/resume"),
        bearing("not-a-key").http.post("/v1/synthesis-jobs", json=body),
    ):
        assert nothing.status_code in (200, 401, 409, 422)
    assert team.http.post(f"{path}/cancel").status_code == 202
    admin.http.post(f"/v1/keys/{created['id']}/revoke")
    told = admin.http.get("/v1/audit").json()["data"]
    assert [(one["method"], one["path"], one["status"], one["resource"]) for one in reversed(told)] == [
        ("POST", "/v1/keys", 201, f"/v1/keys/{told[-1]['resource'].rpartition('/')[2]}"),
        ("POST", "/v1/keys", 201, f"/v1/keys/{created['id']}"),
        ("POST", "/v1/synthesis-jobs", 202, path),
        ("POST", "/v1/synthesis-jobs", 202, second["links"]["self"]),
        ("POST", f"{path}/cancel", 202, path),
        ("POST", f"/v1/keys/{created['id']}/revoke", 200, None),
    ]
    assert [one["key_name"] for one in reversed(told)] == [None, "root", "team", "team", "team", "root"]
    assert {one["key"] for one in told if one["key_name"] == "team"} == {created["id"]}
    assert {one["address"] for one in told} == {"127.0.0.1"}
    assert told[2]["request_id"] == "mine"
    pages, after = [], None
    while True:
        answer = admin.http.get("/v1/audit", params={"limit": 2} | ({"after": after} if after else {})).json()
        pages += answer["data"]
        if not answer["has_more"]:
            break
        after = answer["data"][-1]["id"]
    assert pages == told
    assert admin.http.delete(f"/v1/audit/{told[0]['id']}").status_code in (404, 405)
    stored = sorted((tmp_path / "storage" / "audit").rglob("*.json"))
    assert len(stored) == len(told)
    assert not [one for one in stored if created["key"].encode() in one.read_bytes()]
