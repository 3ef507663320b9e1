"""Query parameters that no route knows: refused everywhere, and nothing is done."""

import re

import pytest

from tests.support.api_contents import pointers, post_synthesis, put_model, put_teacher
from tests.support.services import Api

pytestmark = pytest.mark.services


@pytest.mark.parametrize(
    ("query", "pointer", "told"),
    [
        ("dryrun=true", "/dryrun", "did you mean 'dry_run'"),
        ("dry-run=true", "/dry-run", "did you mean 'dry_run'"),
        ("DRY_RUN=true", "/DRY_RUN", "there are dry_run"),
        ("dry_run=true&x", "/x", "there are dry_run"),
        ("dry_run=true&dry_run=false", "/dry_run", "given 2 times"),
        ("from=beginning", "/from", "there are dry_run"),
        ("=", "/", "unknown query parameter ''"),
        ("a%2Fb~=1", "/a~1b~0", "unknown query parameter 'a/b~'"),
    ],
)
def test_a_misspelt_parameter_starts_no_job(api: Api, query: str, pointer: str, told: str) -> None:
    teacher = put_teacher(api)
    for path, body in (
        ("synthesis-jobs", {"teacher": teacher}),
        ("training-runs", {"dataset": "never looked at"}),
    ):
        refused = api.http.post(f"/v1/{path}?{query}", json=body)
        assert (refused.status_code, pointers(refused)) == (422, [pointer])
        assert told in refused.json()["detail"]
        assert api.http.get(f"/v1/{path}").json()["data"] == []


def test_every_route_refuses_what_it_does_not_know(api: Api) -> None:
    calls = [
        (method.upper(), re.sub(r"{\w+}", "x", path))
        for path, methods in api.http.get("/openapi.json").json()["paths"].items()
        if path.startswith("/v1")
        for method in methods
    ]
    calls += [("HEAD", path) for method, path in calls if "/files/" in path and method == "GET"]
    assert len(calls) > 25
    for method, path in calls:
        refused = api.http.request(method, f"{path}?no_such_parameter=1&limti=5")
        assert refused.status_code == 422, (method, path)
        if method != "HEAD":
            assert pointers(refused) == ["/no_such_parameter", "/limti"]


def test_nothing_is_done_where_a_parameter_is_unknown(api: Api) -> None:
    teacher, model = put_teacher(api), put_model(api)
    job = post_synthesis(api)
    for method, path in (
        ("DELETE", f"/v1/teachers/{teacher}?dry_run=true"),
        ("DELETE", f"/v1/models/{model}?force=1"),
        ("POST", f"{job['links']['cancel']}?dry_run=true"),
    ):
        assert api.http.request(method, path).status_code == 422
    assert api.http.get(f"/v1/teachers/{teacher}").status_code == 200
    assert api.http.get(f"/v1/models/{model}").status_code == 200
    assert api.http.get(job["links"]["self"]).json()["status"] == "queued"


def test_health_and_the_dashboard_take_any(api: Api) -> None:
    for path in ("/healthz?t=1", "/readyz?t=1", "/?utm_source=x"):
        assert api.http.get(path).status_code == 200
