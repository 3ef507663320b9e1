"""Logging in by key: the cookie, what it opens, and how it ends."""

import re
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import httpx
import pytest
from starlette.requests import Request

from dearkd.identifiers import sibling
from dearkd.settings import Settings
from dearkd_api.dashboard.problem_pages import problem_page
from tests.services.api.test_api_keys import A, B
from tests.support.api_contents import post_synthesis, put_dataset, put_teacher
from tests.support.pages import HTML, forms, send
from tests.support.services import Api, database, serving

pytestmark = pytest.mark.services

ADMIN = "key-of-an-admin-0123456789"


@pytest.fixture(scope="module")
def _server(redis_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    folder = tmp_path_factory.mktemp("login")
    settings = Settings(
        redis_url=database(redis_server, 6),
        storage_url=f"file://{folder}/storage",
        cache_dir=folder / "cache",
        api_keys=f"{A},{B}",
        admin_keys=ADMIN,
        max_key_failures=5,
    )
    with serving(settings, folder) as api:
        yield api


@pytest.fixture
def browser(_server: Api) -> Iterator[Api]:
    """The API as a browser calls it that keeps cookies and sends no keys."""
    _server.store.redis.flushdb()
    with httpx.Client(base_url=_server.url, timeout=90, trust_env=False) as http:
        yield replace(_server, http=http)


def by_key(api: Api, key: str) -> httpx.Client:
    return httpx.Client(base_url=api.url, timeout=90, trust_env=False, headers={"Authorization": f"Bearer {key}"})


def log_in(api: Api, key: str = A, path: str = "/") -> httpx.Response:
    page = api.http.get(path, headers=HTML)
    assert (page.status_code, "API key" in page.text) == (401, True)
    return send(api.http, page, "/login", key=key)


def test_nothing_is_shown_before_a_login_and_one_leads_back_to_where_one_was(browser: Api) -> None:
    with by_key(browser, A) as http:
        job = post_synthesis(replace(browser, http=http), name="a secret name")
    path = f"/jobs/{job['id']}"
    for closed in ("/", path, f"{path}/preview.png", f"{path}/log", f"{path}/terms.json", "/datasets", "/nowhere"):
        page = browser.http.get(closed, headers=HTML)
        assert (page.status_code, "a secret name" in page.text) == (401, False), closed
        assert browser.http.get(closed).json()["code"] == "unauthorized"
    assert browser.http.post(f"{path}/cancel").status_code == 401
    entered = log_in(browser, path=f"{path}?x=1")
    assert (entered.status_code, entered.headers["location"]) == (303, f"{path}?x=1")
    cookie = entered.headers["set-cookie"]
    assert {"HttpOnly", "Path=/"} <= set(cookie.split("; "))
    assert "samesite=strict" in cookie.lower()
    assert A not in cookie
    assert sha256(A.encode()).hexdigest() not in cookie
    page = browser.http.get(path, headers=HTML)
    assert page.status_code == 200
    assert "a secret name" in page.text
    assert A not in page.text
    stored = [*browser.store.redis.scan_iter("dearkd:session:*")]
    token = re.match(r"dearkd_session=([^;]+)", cookie)
    assert token
    assert len(stored) == 1
    assert token[1].encode() not in stored[0]
    assert A.encode() not in (browser.store.redis.get(stored[0]) or b"")
    assert 0 < browser.store.redis.ttl(stored[0]) <= 12 * 3600
    done = send(browser.http, page, f"{path}/cancel")
    assert done.status_code == 303


def test_a_login_sees_what_its_key_sees_and_opens_no_route_of_the_api(browser: Api, tmp_path: Path) -> None:
    with by_key(browser, B) as http:
        b = replace(browser, http=http)
        theirs = post_synthesis(b, name="of b", teacher=put_teacher(b))
    dataset = put_dataset(browser, tmp_path, owner=sha256(B.encode()).hexdigest()[:16], name="set of b")
    assert log_in(browser, A).status_code == 303
    assert "of b" not in browser.http.get("/", headers=HTML).text
    assert browser.http.get(f"/jobs/{theirs['id']}", headers=HTML).status_code == 404
    assert "set of b" not in browser.http.get("/datasets", headers=HTML).text
    own = forms(browser.http.get("/", headers=HTML).text, "/logout")[0]
    assert browser.http.post(f"/jobs/{theirs['id']}/cancel", data=own, headers=HTML).status_code == 404
    for method, path in (("GET", "/v1/synthesis-jobs"), ("POST", f"/v1/synthesis-jobs/{theirs['id']}/cancel")):
        assert browser.http.request(method, path).status_code == 401, "a cookie opens pages alone"
    browser.storage.put(f"datasets/{dataset}/shared", b"")
    assert "set of b" in browser.http.get("/datasets", headers=HTML).text


def test_a_login_ends_by_logging_out_by_expiry_and_with_its_key(browser: Api) -> None:
    log_in(browser)
    page = browser.http.get("/", headers=HTML)
    cookies = dict(browser.http.cookies)
    assert send(browser.http, page, "/logout").headers["location"] == "/login"
    assert not browser.http.cookies
    browser.http.cookies.update(cookies)
    old = browser.http.get("/", headers=HTML)
    assert (old.status_code, "login that has expired" in old.text) == (401, True)
    browser.http.cookies.clear()

    log_in(browser)
    browser.store.redis.delete(*browser.store.redis.scan_iter("dearkd:session:*"))
    page = browser.http.get("/?status=queued", headers=HTML)
    assert (page.status_code, "login that has expired" in page.text) == (401, True)
    assert browser.http.get("/", headers={"HX-Request": "true"}).headers["hx-refresh"] == "true"
    assert send(browser.http, page, "/login", key=A).headers["location"] == "/?status=queued"
    browser.http.cookies.clear()

    with by_key(browser, ADMIN) as admin:
        made = admin.post("/v1/keys", json={"name": "reader", "scopes": ["read"]}).json()
        log_in(browser, made["key"])
        page = browser.http.get("/", headers=HTML)
        assert page.status_code == 200
        job = post_synthesis(replace(browser, http=admin))
        own = forms(page.text, "/logout")[0]
        refused = browser.http.post(f"/jobs/{job['id']}/cancel", data=own, headers=HTML)
        assert (refused.status_code, "scope submit" in refused.text) == (403, True)
        admin.post(f"/v1/keys/{made['id']}/revoke")
    page = browser.http.get("/", headers=HTML)
    assert (page.status_code, "was revoked" in page.text) == (401, True)


def test_wrong_keys_are_said_to_be_wrong_and_limited(browser: Api) -> None:
    page = browser.http.get("/login?next=//evil.example", headers=HTML)
    assert 'name="next" value="/"' in page.text
    statuses = []
    for _ in range(7):
        answer = send(browser.http, page, "/login", key="wrong")
        statuses.append(answer.status_code)
        assert "set-cookie" not in answer.headers
    assert statuses[0] == 401
    assert statuses[-1] == 429
    assert browser.http.post("/login", data={"key": A}, headers=HTML).status_code == 403, "no token"
    assert send(browser.http, page, "/login", key=f" {A} ", next="https://evil.example").headers["location"] == "/"
    # A form of a page from before a login is none of a page after it.
    job = forms(page.text, "/login")[0]
    assert browser.http.post("/logout", data=job, headers=HTML).status_code == 403


def test_the_way_back_leads_to_this_server_alone(browser: Api) -> None:
    for path in ("//evil.example", "//evil.example/datasets?x=1", "///evil.example/"):
        page = browser.http.get(browser.url + path, headers=HTML)
        assert (page.status_code, 'name="next" value="/"' in page.text) == (401, True), path
        assert 'href="//' not in page.text, path
    # The page of a fault has a link to try again.
    scope = {"type": "http", "method": "GET", "path": "//evil.example", "headers": [], "query_string": b""}
    fault = {"status": 503, "title": "Away", "code": "redis_unavailable", "detail": "x"}
    shown = problem_page(Request(scope), fault, {"type": "http.response.start", "status": 503, "headers": []})
    assert b"Try again" in bytes(shown.body)
    assert b'href="//' not in bytes(shown.body)


def test_a_login_over_an_encrypted_connection_is_kept_to_such(browser: Api) -> None:
    """Also where a proxy takes the encryption off: the browser says by which address it came."""
    for scheme, secure in (("http", False), ("https", True)):
        (form,) = forms(browser.http.get("/login", headers=HTML).text, "/login")
        origin = {"Origin": browser.url.replace("http", scheme)}
        cookie = browser.http.post("/login", data=form | {"key": A}, headers=HTML | origin).headers["set-cookie"]
        assert ("; Secure" in cookie) == secure
        browser.http.cookies.clear()


def test_no_form_begins_a_job_under_the_id_of_what_another_has(browser: Api, tmp_path: Path) -> None:
    """A job's id is that of what it makes: it would overwrite another's dataset, and show its preview."""
    theirs = put_dataset(browser, tmp_path, owner=sha256(B.encode()).hexdigest()[:16])
    browser.storage.put(f"datasets/{theirs}/preview.png", b"a picture of b's")
    with by_key(browser, B) as http:
        lost = post_synthesis(replace(browser, http=http))["id"]
    browser.store.redis.delete(f"dearkd:job:{lost}")
    kept = browser.storage.read(f"jobs/{lost}/job.json")
    log_in(browser)
    page = browser.http.get("/new/synthesis", headers=HTML)
    for taken in (theirs, lost):
        fields = {"teacher": put_teacher(browser), "images_per_class": "2", "once": sibling(taken, "tmp")}
        begun = send(browser.http, page, "/new/synthesis", **fields).headers["location"]
        assert begun != f"/jobs/{sibling(taken, 'syn')}"
        assert b"picture of b's" not in browser.http.get(f"{begun}/preview.png").content
        assert browser.http.get(f"/jobs/{sibling(taken, 'syn')}/preview.png").status_code == 404
    assert browser.storage.read(f"jobs/{lost}/job.json") == kept


def test_without_keys_nobody_is_asked(api: Api) -> None:
    assert api.http.get("/login?next=/datasets", headers=HTML).headers["location"] == "/datasets"
    assert "Log out" not in api.http.get("/", headers=HTML).text
