"""A web page cannot drive the API, read it or frame it; and what it holds shows no page anything but itself."""

import re
import socket
from hashlib import sha256
from pathlib import Path

import httpx
import pytest

import dearkd_api
from dearkd.errors import InvalidInput
from dearkd.settings import Settings
from dearkd_api.hosts import AllowedHosts
from tests.support.api_contents import pointers, put_teacher
from tests.support.services import Api, database, serving

JOBS = "/v1/synthesis-jobs"
ROOT = Path(__file__).parents[3]
STATIC = Path(dearkd_api.__file__).parent / "static"


def jobs(api: Api) -> int:
    return len(api.http.get(JOBS).json()["data"])


@pytest.mark.services
@pytest.mark.parametrize(
    "kind",
    [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=b",
        "application/jsonx",
        "",
        None,
    ],
)
def test_a_json_body_of_another_content_type_creates_nothing(api: Api, kind: str | None) -> None:
    body = f'{{"teacher": "{put_teacher(api)}"}}'.encode()
    answer = api.http.post(JOBS, content=body, headers={} if kind is None else {"content-type": kind})
    assert (answer.status_code, answer.json()["code"], pointers(answer)) == (415, "unsupported_media_type", [])
    assert "application/json" in answer.json()["detail"]
    assert jobs(api) == 0


@pytest.mark.services
def test_a_chunked_body_needs_its_content_type_too_and_an_empty_one_none(api: Api) -> None:
    teacher = put_teacher(api)
    body = f'{{"teacher": "{teacher}"}}'.encode()
    assert api.http.post(JOBS, content=iter([body])).status_code == 415
    twice = [("content-type", "application/json"), ("content-type", "text/plain")]
    assert api.http.post(JOBS, content=body, headers=twice).status_code == 415
    assert jobs(api) == 0
    kind = {"content-type": 'Application/JSON; charset="utf-8"'}
    job = api.http.post(JOBS, content=body, headers=kind)
    assert job.status_code == 202
    cancel = f"{JOBS}/{job.json()['id']}/cancel"
    assert api.http.post(cancel, content=b"{}", headers={"content-type": "text/plain"}).status_code == 415
    assert api.http.post(cancel).status_code == 202


FOREIGN = [
    {"origin": "https://evil.example"},
    {"origin": "null"},
    {"origin": ""},
    {"origin": "http://127.0.0.1:1"},
    {"origin": "http://127.0.0.1.evil.example"},
    {"origin": "http://evil@127.0.0.1"},
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
    {"sec-fetch-site": "none", "origin": "https://evil.example"},
]


@pytest.mark.services
@pytest.mark.parametrize("headers", FOREIGN, ids=str)
def test_a_foreign_page_changes_nothing(api: Api, headers: dict[str, str]) -> None:
    teacher = put_teacher(api)
    for method, path in (("POST", JOBS), ("POST", "/v1/teachers"), ("OPTIONS", JOBS), ("PUT", JOBS)):
        answer = api.http.request(method, path, json={"teacher": teacher}, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (403, "foreign_origin"), (method, path)
        assert "access-control-allow-origin" not in answer.headers
    assert api.http.delete(f"/v1/teachers/{teacher}", headers=headers).status_code == 403
    assert jobs(api) == 0
    assert api.http.get(f"/v1/teachers/{teacher}", headers=headers).status_code == 200


@pytest.mark.services
def test_its_own_pages_may(api: Api) -> None:
    own = {"origin": api.url, "sec-fetch-site": "same-origin"}
    assert api.http.post(JOBS, json={"teacher": put_teacher(api)}, headers=own).status_code == 202


def raw(api: Api, *lines: str) -> int:
    """The status of a request made of these lines."""
    with socket.create_connection(("127.0.0.1", httpx.URL(api.url).port or 0), timeout=60) as connection:
        connection.sendall("\r\n".join([*lines, "connection: close", "", ""]).encode())
        with connection.makefile("rb") as answer:
            return int(answer.readline().split()[1])


@pytest.mark.services
def test_a_foreign_host_reads_nothing(api: Api) -> None:
    foreign = {"host": "evil.example"}
    for path in ("/", "/docs", "/openapi.json", "/v1/teachers", "/static/dashboard.js", "/v1/nowhere"):
        answer = api.http.get(path, headers=foreign)
        assert (answer.status_code, answer.json()["code"]) == (421, "misdirected_request")
        assert "evil.example" in answer.json()["detail"]
        assert "DEARKD_ALLOWED_HOSTS" in answer.json()["detail"]
    assert api.http.post(JOBS, json={}, headers=foreign).status_code == 421
    for path in ("/healthz", "/readyz"):
        assert api.http.get(path, headers=foreign).status_code == 200
    assert raw(api, "GET /v1/teachers HTTP/1.1", "host: localhost") == 200
    assert raw(api, "GET /v1/teachers HTTP/1.0") == 421
    assert raw(api, "GET /v1/teachers HTTP/1.1", "host: localhost", "host: evil.example") in (400, 421)


NOT_OURS = [
    "evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "evillocalhost", "x.localhost", "0.0.0.0",
    "10.0.0.1", "127.1", "2130706433", "0x7f.0.0.1", "[::]", "[::ffff:127.0.0.1]", "[::1", "::1", "user@localhost",
    "localhost:80:80", "localhost:99999", "localhost:x", "localhost/", "local host", "localhost,evil.example", "",
    "localhost..", ".", "127.0.0.1#@evil.example",
]  # fmt: skip
OURS = [
    "localhost",
    "LOCALHOST:8000",
    "localhost.",
    "localhost:",
    "127.0.0.1",
    "127.8.9.10:1",
    "[::1]:8000",
    "[0:0:0::1]",
]


def test_which_hosts_are_loopback() -> None:
    none = AllowedHosts.parse("")
    assert [host for host in NOT_OURS if none.allow([host])] == []
    assert [host for host in OURS if not none.allow([host])] == []
    assert not none.allow([])
    assert not none.allow(["localhost", "localhost"])


def test_hosts_that_the_operator_names() -> None:
    named = AllowedHosts.parse("dearkd.example.com, *.Example.org,[2001:DB8::0:1],10.0.0.1", bound="192.0.2.7")
    for host in ("dearkd.example.com:443", "DEARKD.example.com.", "a.b.example.org", "[2001:db8::1]:80", "10.0.0.1"):
        assert named.allow([host]), host
    assert named.allow(["192.0.2.7:8000"])
    for host in ("example.com", "x.dearkd.example.com", "example.org", "evilexample.org", "[2001:db8::2]", "10.0.0.11"):
        assert not named.allow([host]), host
    assert named.own("https://dearkd.example.com", "127.0.0.1:8000"), "a proxy that changes Host"
    assert not named.own("https://example.org", "127.0.0.1:8000")
    everyone = AllowedHosts.parse("*", bound="0.0.0.0")
    assert everyone.allow(["anything.example:1"])
    assert not everyone.allow(["user@anything.example"])
    assert not everyone.own("https://evil.example", "anything.example")
    assert everyone.own("https://anything.example", "anything.example")
    for wrong in ("http://x", "x:8000", "a b", "*.", "**", "x/y", "[zz]"):
        with pytest.raises(InvalidInput, match="DEARKD_ALLOWED_HOSTS") as refused:
            AllowedHosts.parse(wrong)
        assert repr(wrong) in refused.value.message


@pytest.mark.services
def test_with_keys_the_same_rules_apply_before_them(redis_server: str, tmp_path: Path) -> None:
    settings = Settings(
        redis_url=database(redis_server, 9),
        storage_url=f"file://{tmp_path}/storage",
        cache_dir=tmp_path / "cache",
        api_keys="a-key-of-sixteen-or-more",
        allowed_hosts="api",
    )
    key = {"authorization": "Bearer a-key-of-sixteen-or-more"}
    with serving(settings, tmp_path) as api:
        assert api.http.get("/v1/teachers", headers=key | {"host": "evil.example"}).status_code == 421
        assert api.http.get("/v1/teachers", headers=key | {"host": "api:8000"}).status_code == 200
        assert api.http.post(JOBS, json={}, headers=key | {"origin": "https://evil.example"}).status_code == 403
        assert api.http.post(JOBS, content=b"{}", headers=key).status_code == 415
        assert api.http.post(JOBS, json={}, headers=key).status_code == 422
        assert api.http.get("/v1/teachers").headers["x-frame-options"] == "DENY"


@pytest.mark.services
def test_every_answer_says_that_it_may_not_be_framed_or_sniffed(api: Api) -> None:
    teacher = put_teacher(api)
    for answer in (
        *(api.http.get(path) for path in ("/", "/docs", "/openapi.json", "/healthz", "/v1/teachers", "/v1/nowhere")),
        api.http.get(f"/v1/teachers/{teacher}"),
        api.http.get("/static/dashboard.js"),
        api.http.get("/v1/teachers", headers={"host": "evil.example"}),
        api.http.put("/v1/teachers"),
        api.http.post(JOBS, json={}),
        api.http.delete(f"/v1/teachers/{teacher}"),
    ):
        kind, policy = answer.headers["content-type"], answer.headers["content-security-policy"]
        assert {"default-src 'none'", "frame-ancestors 'none'", "base-uri 'none'"} <= set(policy.split("; "))
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == ("same-origin" if "html" in kind else "no-referrer")
        assert answer.headers["x-frame-options"] == "DENY"


@pytest.mark.services
def test_pages_load_nothing_but_own_files_and_run_no_inline_script(api: Api) -> None:
    for path in ("/", "/docs"):
        page = api.http.get(path)
        assert page.headers["content-type"].startswith("text/html")
        assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=|javascript:", page.text)
        loaded = re.findall(r'<(?:script|link rel="stylesheet")[^>]*\b(?:src|href)="([^"]+)"', page.text)
        assert len(loaded) >= 2
        for file in loaded:
            assert file.startswith("/static/")
            answer = api.http.get(file)
            assert answer.status_code == 200
            assert re.match(r"text/(css|javascript)", answer.headers["content-type"])
            assert answer.headers["cache-control"] == "no-cache"
    for name in ("dashboard.js", "charts.js"):
        script = (STATIC / name).read_text()
        assert not re.search(r"\son\w+=|\sstyle=", script), "the policy forbids them in HTML that a script writes too"
    assert api.http.get("/redoc").status_code == 404
    for outside in ("/static/../app.py", "/static/%2e%2e/app.py", "/static/"):
        assert api.http.get(outside).status_code == 404


@pytest.mark.parametrize(
    "folder",
    [STATIC / "swagger-ui", STATIC / "htmx", STATIC / "uplot", ROOT / "tests/support/axe"],
    ids=lambda path: path.name,
)
def test_the_vendored_files_are_those_that_were_published(folder: Path) -> None:
    listed = dict(
        re.findall(r"^\| `([^`]+)` \| `([0-9a-f]{64})` \|$", (folder / "README.md").read_text(), re.MULTILINE)
    )
    assert {path.name for path in folder.iterdir()} == {*listed, "README.md"}
    assert "LICENSE" in listed
    for name, digest in listed.items():
        assert sha256((folder / name).read_bytes()).hexdigest() == digest, name


def test_the_wheel_takes_them_along() -> None:
    packages = (ROOT / "pyproject.toml").read_text().partition("[tool.hatch.build.targets.wheel]")[2]
    assert '"services/api/dearkd_api"' in packages.partition("[tool.ruff]")[0]
    assert STATIC.is_relative_to(ROOT / "services/api/dearkd_api")
