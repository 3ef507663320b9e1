"""API keys: who is let in, and that a key's jobs are there for nobody else."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest

from dearkd.errors import InvalidInput
from dearkd.jobs.ledger import Ledger
from dearkd.jobs.model import JobError, dataset_of, live_key
from dearkd.local.doctor import check_jobs
from dearkd.local.embedded_redis import free_port
from dearkd.settings import Settings
from dearkd.specs import SynthesisSpec
from dearkd_api.keys import Keys
from dearkd_api.serving import listen
from tests.services.api.test_api_server import run
from tests.support.api_contents import pointers, post_synthesis, put_teacher
from tests.support.services import Api, database, serving

pytestmark = pytest.mark.services

VERBS = ("cancel", "retry", "pause", "resume")

A, B = "key-of-a-0123456789", "key-of-b-0123456789"
LIMIT = 3


@dataclass(frozen=True)
class Keyed:
    """One API as two keys see it; `nobody` has none."""

    nobody: Api
    a: Api
    b: Api


@pytest.fixture(scope="module")
def _server(redis_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyed]:
    folder = tmp_path_factory.mktemp("keyed")
    settings = Settings(
        redis_url=database(redis_server, 5),
        storage_url=f"file://{folder}/storage",
        cache_dir=folder / "cache",
        api_keys=f"{A}, sha256:{sha256(B.encode()).hexdigest().upper()}",
        max_queued_jobs=LIMIT,
        max_key_failures=10_000,
    )
    with serving(settings, folder) as api, ExitStack() as stack:

        def bearing(key: str) -> Api:
            headers = {"Authorization": f"Bearer {key}"}
            client = httpx.Client(base_url=api.url, timeout=90, trust_env=False, headers=headers)
            return replace(api, http=stack.enter_context(client))

        yield Keyed(api, bearing(A), bearing(B))


@pytest.fixture
def keyed(_server: Keyed) -> Keyed:
    _server.nobody.store.redis.flushdb()
    return _server


def owner(key: str) -> str:
    return sha256(key.encode()).hexdigest()[:16]


def listed(api: Api, collection: str = "synthesis-jobs", **params: Any) -> list[str]:
    return [job["id"] for job in api.http.get(f"/v1/{collection}", params=params).json()["data"]]


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", "Bearer wrong-key-0123456789", f"Basic {A}", A, f"Bearer {A}x", "Bearer \xe9"],
)
def test_without_one_of_the_keys_nothing_under_v1_answers(keyed: Keyed, authorization: str | None) -> None:
    headers = [] if authorization is None else [(b"Authorization", authorization.encode("latin-1"))]
    for method, path in (
        ("GET", "/v1/teachers"),
        ("POST", "/v1/teachers"),
        ("POST", "/v1/synthesis-jobs"),
        ("GET", "/v1/datasets/x/files/y"),
        ("DELETE", "/v1/models/x"),
        ("GET", "/v1/no-such-page"),
        ("GET", "/v1"),
    ):
        refused = keyed.nobody.http.request(method, path, headers=headers)
        assert (refused.status_code, refused.json()["code"]) == (401, "unauthorized"), path
        assert refused.headers["content-type"] == "application/problem+json"
        assert refused.headers["www-authenticate"] == "Bearer"
    for path in ("/healthz", "/readyz", "/docs", "/login"):
        assert keyed.nobody.http.get(path, headers=headers).status_code == 200, path


def test_a_key_and_one_of_which_only_the_hash_is_configured_are_let_in(keyed: Keyed) -> None:
    for api in (keyed.a, keyed.b):
        assert api.http.get("/v1/teachers").status_code == 200
    hashed = {"Authorization": f"Bearer sha256:{sha256(B.encode()).hexdigest()}"}
    assert keyed.nobody.http.get("/v1/teachers", headers=hashed).status_code == 401


def test_anothers_jobs_do_not_exist(keyed: Keyed) -> None:
    a, b = keyed.a, keyed.b
    job = post_synthesis(a)
    training = a.http.post("/v1/training-runs", json={"dataset": job["id"]}).json()
    theirs = post_synthesis(b)
    ledger = Ledger(a.store)
    for one in (job, training):
        ledger.log.add(one["id"], "secret")
        ledger.log.keep(one["id"])
    ledger.set_rows(training["id"], [{"epoch": 1}])
    for picture in ("preview.png", "timelapse.webp"):
        a.storage.put(f"datasets/{dataset_of(job['id'])}/{picture}", b"picture")
    a.storage.put(live_key(job["id"]), b"picture")
    reads = [link for one in (job, training) for name, link in one["links"].items() if name not in VERBS]
    assert len(reads) == 13

    def nothing_is_told() -> None:
        for path in [*reads, f"{job['links']['self']}?wait=0.1"]:
            hidden = b.http.get(path)
            assert (hidden.status_code, hidden.json()["code"]) == (404, "not_found"), path
            assert "secret" not in hidden.text
        for one in (job, training):
            for verb in VERBS:
                assert b.http.post(one["links"][verb]).status_code == 404, verb
        for reference, detail in (
            (job["id"], "there is no synthesis job"),
            (dataset_of(job["id"]), "in datasets; GET /v1/datasets lists them"),
        ):
            refused = b.http.post("/v1/training-runs", json={"dataset": reference})
            assert (refused.status_code, pointers(refused)) == (422, ["/dataset"])
            assert detail in refused.json()["detail"]

    nothing_is_told()
    assert all(a.http.get(path).status_code == 200 for path in reads)
    assert a.http.get(job["links"]["self"]).json()["status"] == "queued"
    assert (listed(a), listed(b)) == ([job["id"]], [theirs["id"]])
    assert (listed(a, "training-runs"), listed(b, "training-runs")) == ([training["id"]], [])
    assert (listed(a, status="queued"), listed(b, status="queued")) == ([job["id"]], [theirs["id"]])
    assert a.http.post(job["links"]["cancel"]).json()["status"] == "canceled"
    assert (listed(a, status="canceled"), listed(a, status="queued")) == ([job["id"]], [])
    a.store.redis.flushdb()  # what only storage knows is as hidden
    nothing_is_told()
    assert a.http.get(job["links"]["log"]).text.count("secret") == 1


def test_a_lost_job_that_is_retried_is_still_its_owners(keyed: Keyed) -> None:
    job = post_synthesis(keyed.a)
    keyed.a.store.redis.flushdb()
    assert keyed.b.http.post(job["links"]["retry"]).status_code == 404
    again = keyed.a.http.post(job["links"]["retry"])
    assert (again.status_code, again.json()["id"], again.json()["attempt"]) == (202, job["id"], 2)
    assert keyed.b.http.get(job["links"]["self"]).status_code == 404
    assert (listed(keyed.a), listed(keyed.b)) == ([job["id"]], [])
    ledger = Ledger(keyed.a.store)
    ledger.fail(job["id"], JobError(code="x", message="x", retryable=True))
    assert keyed.a.http.post(job["links"]["retry"]).json()["status"] == "queued"
    assert (listed(keyed.a, status="queued"), listed(keyed.a, status="failed")) == ([job["id"]], [])


def test_the_doctor_takes_anothers_jobs_for_none_that_were_lost(keyed: Keyed) -> None:
    keyed.a.storage.delete_prefix("jobs")
    job = post_synthesis(keyed.a)
    found = {}
    for emptied in (False, True):
        if emptied:
            keyed.a.store.redis.flushdb()
        for key in (A, B):
            settings = keyed.a.settings.model_copy(update={"api_key": key})
            (found[key, emptied],) = check_jobs(settings, resubmit=key == B)
    assert [found[B, emptied].state for emptied in (False, True)] == ["ok", "ok"]
    assert not any(job["id"] in found[B, emptied].detail for emptied in (False, True))
    assert [found[A, emptied].state for emptied in (False, True)] == ["ok", "problem"]
    assert job["id"] in found[A, True].detail


def test_each_key_has_its_own_limit_on_what_waits(keyed: Keyed) -> None:
    teacher = put_teacher(keyed.a)
    first = post_synthesis(keyed.a, teacher=teacher)
    for _ in range(LIMIT - 1):  # blocked, which waits too
        assert keyed.a.http.post("/v1/training-runs", json={"dataset": first["id"]}).status_code == 202
    refused = keyed.a.http.post("/v1/synthesis-jobs", json={"teacher": teacher})
    assert (refused.status_code, refused.json()["code"]) == (429, "too_many_jobs")
    for _ in range(LIMIT):
        post_synthesis(keyed.b, teacher=teacher)
    assert keyed.b.http.post("/v1/synthesis-jobs", json={"teacher": teacher}).status_code == 429
    keyed.a.http.post(first["links"]["cancel"])
    assert keyed.a.http.post("/v1/synthesis-jobs", json={"teacher": teacher}).status_code == 202


def test_jobs_from_before_there_were_keys_are_everyones_and_in_nobodys_listing(keyed: Keyed) -> None:
    spec = keyed.a.store.get(post_synthesis(keyed.a)["id"]).spec
    ownerless = keyed.a.store.create_synthesis(SynthesisSpec.check(spec), images=20)
    keyed.a.store.redis.hdel(f"dearkd:job:{ownerless.id}", "owner")  # as a record of an earlier version
    path = f"/v1/synthesis-jobs/{ownerless.id}"
    assert all(api.http.get(path).json()["status"] == "queued" for api in (keyed.a, keyed.b))
    assert ownerless.id not in listed(keyed.a) + listed(keyed.b)
    assert keyed.b.http.post(f"{path}/cancel").json()["status"] == "canceled"
    assert keyed.a.http.post(f"{path}/retry").json()["status"] == "queued"


def test_nobody_is_told_the_owner(keyed: Keyed) -> None:
    job = post_synthesis(keyed.a)
    assert keyed.a.store.get(job["id"]).owner == owner(A)
    for answer in (job, keyed.a.http.get("/v1/synthesis-jobs").json()["data"][0]):
        assert "owner" not in answer
    schemas = keyed.nobody.http.get("/openapi.json").json()["components"]["schemas"]
    assert "finished_at" in schemas["JobView"]["properties"]
    assert "owner" not in schemas["JobView"]["properties"]


def test_without_keys_nothing_is_asked_for_and_all_is_shown(api: Api) -> None:
    job = post_synthesis(api)
    assert api.store.get(job["id"]).owner is None
    job_of_a_key = api.store.create_synthesis(SynthesisSpec.check(job["spec"]), images=20, owner=owner(A))
    assert listed(api) == [job_of_a_key.id, job["id"]]
    assert api.http.get(f"/v1/synthesis-jobs/{job_of_a_key.id}", headers={"Authorization": "x"}).status_code == 200


@pytest.mark.parametrize(
    ("keys", "rule"),
    [
        ("x" * 15, "key 1 .* has 15 characters, at least 16 .*secrets.token_urlsafe"),
        (f"{A},sha256:abc", "key 2 .* 64 hex digits"),
        (f"{A},key with blanks in it", "key 2 .* blanks"),
        (f"{A},{'ü' * 20}", "key 2 .* outside ASCII"),
        (" , ", "holds no key"),
    ],
)
def test_keys_that_break_a_rule_are_refused_and_not_shown(keys: str, rule: str) -> None:
    with pytest.raises(InvalidInput, match=rule) as refused:
        Keys.parse(keys)
    assert not any(key.strip() in refused.value.message for key in keys.split(",") if key.strip())


def test_the_server_does_not_start_on_a_short_key(tmp_path: Path) -> None:
    refused = run(Settings(port=free_port(), storage_url=f"file://{tmp_path}", api_keys=f"{A},short-one"))
    assert refused.returncode == 1
    assert "16" in refused.stderr
    assert "short-one" not in refused.stderr
    assert "Traceback" not in refused.stderr


def test_with_keys_others_may_reach_it() -> None:
    with pytest.raises(InvalidInput, match="DEARKD_API_KEYS"):
        listen("0.0.0.0", 0, keyed=False)
    with listen("0.0.0.0", 0, keyed=True) as listener:
        assert listener.getsockname()[0] == "0.0.0.0"
