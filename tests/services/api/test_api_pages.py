"""Pages without a browser: what they escape, what they refuse, and that they work by forms alone."""

import io
import json
import math
import re
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dearkd.data.grid_layouts import LAYOUT
from dearkd.identifiers import new_id
from dearkd.jobs.ledger import Ledger
from dearkd.jobs.model import JobError, dataset_of, live_key
from dearkd.storage.catalog import StoredFile
from tests.support.api_contents import (
    Payload,
    claim,
    finish_synthesis,
    post_synthesis,
    put_dataset,
    put_model,
    put_teacher,
)
from tests.support.pages import HTML, forms, get, send
from tests.support.services import Api

pytestmark = pytest.mark.services

MARKUP = "<img src=x onerror=alert(1)>\"'&{{ 7*7 }}"


def _png(layout: str | None) -> bytes:
    """A picture that holds a text as the layout of its grid."""
    said = PngInfo()
    if layout is not None:
        said.add_text(LAYOUT, layout)
    file = io.BytesIO()
    Image.new("L", (4, 4)).save(file, "PNG", pnginfo=said)
    return file.getvalue()


def pages(api: Api, tmp_path: Path) -> dict[str, str]:
    """One of each page, with a name made of markup wherever a client gives one; the paths by what they show."""
    teacher = put_teacher(api, class_names=[f"{MARKUP}{i}" for i in range(10)])
    job = post_synthesis(api, teacher=teacher, name=MARKUP, labels={"team": MARKUP.replace(",", "")})
    run = api.http.post("/v1/training-runs", json={"dataset": job["id"], "name": MARKUP}).json()
    dataset = put_dataset(api, tmp_path, class_names=[f"{MARKUP}{i}" for i in range(10)], name=MARKUP)
    model = put_model(api, name=MARKUP)
    return {
        "jobs": "/",
        "lineage": "/?view=lineage",
        "searched": f"/?q={MARKUP.replace('&', '%26').replace('{', '%7B')}",
        "job": f"/jobs/{job['id']}",
        "run": f"/runs/{run['id']}",
        "datasets": "/datasets",
        "dataset": f"/datasets/{dataset}",
        "models": "/models",
        "model": f"/models/{model}",
        "teachers": "/teachers",
        "teacher": f"/teachers/{teacher}",
    }


def test_whatever_a_name_holds_is_text_on_every_page(api: Api, tmp_path: Path) -> None:
    for what, path in pages(api, tmp_path).items():
        page = get(api, path)
        assert "<img src=x" not in page.text, what
        assert "&lt;img src=x" in page.text or what in ("teachers",), what
        assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|javascript:", page.text), what
        assert not re.search(r"<[^>&]*\son\w+=", page.text), what
        assert 'src="http' not in page.text, what
        for target in re.findall(r'href="(/static/[^"]+)"|src="(/static/[^"]+)"', page.text):
            assert api.http.get("".join(target)).status_code == 200


def test_an_unknown_id_is_a_page_with_the_way_back_and_for_programs_what_it_was(api: Api) -> None:
    for path, back in (
        (f"/jobs/{new_id('syn')}", "/"),
        (f"/runs/{new_id('run')}", "/"),
        ("/jobs/<script>alert(1)<", "/"),
        (f"/datasets/{new_id('ds')}", "/datasets"),
        (f"/models/{new_id('mdl')}", "/models"),
        (f"/teachers/{new_id('tch')}", "/teachers"),
        ("/nowhere", "/"),
    ):
        page = get(api, path, 404)
        assert f'<a href="{back}">' in page.text, path
        assert "<script>" not in page.text
        assert page.headers["x-frame-options"] == "DENY"
        assert "form-action 'self'" in page.headers["content-security-policy"]
        for accepted in ("application/json", "*/*"):
            answer = api.http.get(path, headers={"Accept": accepted})
            assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json"), path
    for path in ("/v1/nowhere", f"/v1/datasets/{new_id('ds')}"):
        answer = api.http.get(path, headers=HTML)
        assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json"), path
    assert "is no status" in get(api, "/?status=odd", 422).text
    assert "is no label" in get(api, "/?label=x", 422).text
    get(api, "/?after=x", 422)


def test_buttons_work_by_forms_alone(api: Api) -> None:
    job = post_synthesis(api, name="mine")
    path = f"/jobs/{job['id']}"
    for action, status in (("pause", "paused"), ("resume", "queued"), ("cancel", "canceled"), ("retry", "queued")):
        done = send(api.http, get(api, path), f"{path}/{action}")
        assert (done.status_code, done.headers["location"]) == (303, path)
        assert api.http.get(job["links"]["self"]).json()["status"] == status
    from_list = send(api.http, get(api, "/?status=queued"), f"{path}/cancel")
    assert from_list.headers["location"] == "/?status=queued"
    assert forms(get(api, path).text, f"{path}/cancel") == []
    # A button of a page that is no longer right says so.
    stale = get(api, path)
    token = forms(stale.text, f"{path}/retry")[0]
    page = api.http.post(f"{path}/cancel", data=token, headers=HTML)
    assert page.status_code == 409
    assert "only a job that has not ended can be canceled" in page.text
    assert api.http.post(f"{path}/delete", data=token, headers=HTML).status_code == 404
    audited = [(one["method"], one["path"]) for one in api.http.get("/v1/audit").json()["data"]]
    assert audited[0] == ("POST", f"{path}/cancel")


def test_no_query_and_no_field_of_a_form_alters_what_is_audited(api: Api) -> None:
    job = post_synthesis(api)
    path = f"/jobs/{job['id']}"
    for number, query in enumerate(("dry_run=true", "dry_run=1&x=/predict")):
        action = ("cancel", "retry")[number]
        (form,) = forms(get(api, path).text, f"{path}/{action}")
        fields = form | {"back": "/v1/keys/key-of-another"}
        assert api.http.post(f"{path}/{action}?{query}", data=fields, headers=HTML).status_code == 303
        newest = api.http.get("/v1/audit").json()["data"][0]
        assert (newest["path"], newest["resource"]) == (f"{path}/{action}", None)


def test_records_of_another_version_hide_nothing_else(api: Api, tmp_path: Path) -> None:
    job = post_synthesis(api, name="old")
    run = api.http.post("/v1/training-runs", json={"dataset": job["id"]}).json()
    new = post_synthesis(api, name="new")
    for old in (job, run):
        api.store.redis.hset(f"dearkd:job:{old['id']}", "spec", "{}")
    for view in ("list", "lineage"):
        assert len(re.findall('id="open-', get(api, f"/?view={view}").text)) == 3
    assert re.findall('id="open-([^"]+)"', get(api, "/?q=new").text) == [new["id"]]
    for path, shown in ((f"/jobs/{job['id']}", job), (f"/runs/{run['id']}", run), ("/new/training", job)):
        assert shown["id"] in get(api, path).text
    dataset = put_dataset(api, tmp_path, quality={"samples": 3})
    assert "Quality" in get(api, f"/datasets/{dataset}").text


def test_a_result_may_hold_more_than_what_was_made(api: Api, tmp_path: Path) -> None:
    """Of a job with a budget: its forecast, and why it ended early."""
    job = post_synthesis(api)
    dataset = put_dataset(api, tmp_path, id=dataset_of(job["id"]))
    ledger = Ledger(api.store)
    for _ in range(2):
        ledger.done(claim(api), Payload(samples=10))
    ended = {"reason": "minutes", "planned": 40, "made": 20}  # and `detail`, but of another version perhaps not
    ledger.complete(claim(api), {"dataset": dataset, "forecast": {"points": []}, "ended_early": ended})
    link = f'href="/datasets/{dataset}"'
    for path in ("/", "/?view=lineage", f"/jobs/{job['id']}"):
        assert link in get(api, path).text
    api.store.redis.flushdb()
    assert link in get(api, f"/jobs/{job['id']}", 404).text


def test_a_form_without_its_token_or_from_elsewhere_changes_nothing(api: Api) -> None:
    job = post_synthesis(api)
    path = f"/jobs/{job['id']}"
    token = forms(get(api, path).text, f"{path}/cancel")[0]
    refused: list[tuple[int, dict[str, str], dict[str, Any]]] = [
        (403, {}, {}),
        (403, {}, {"form_token": ""}),
        (403, {}, {"form_token": "0" * 64}),
        (403, {}, {"form_token": "ü"}),
        (403, {"Origin": "https://evil.example"}, token),
        (403, {"Origin": "null"}, token),
        (403, {"Sec-Fetch-Site": "cross-site"}, token),
    ]
    for status, headers, fields in refused:
        answer = api.http.post(f"{path}/cancel", data=fields, headers=HTML | headers)
        assert (answer.status_code, answer.headers["content-type"][:9]) == (status, "text/html"), (headers, fields)
    assert api.http.post(f"{path}/cancel").status_code == 403
    for kind in ("application/json", "text/plain", "multipart/form-data; boundary=b"):
        odd = api.http.post(f"{path}/cancel", content=json.dumps(token), headers={"content-type": kind})
        assert odd.status_code == 415
    form = {"content-type": "application/x-www-form-urlencoded"}
    assert api.http.post(f"{path}/cancel", content=b"a=%ff&" + b"b=1&" * 600, headers=form).status_code == 422
    assert api.http.post(f"{path}/cancel", content=b"a=" + b"x" * 200_000, headers=form).status_code == 413
    assert api.http.get(job["links"]["self"]).json()["status"] == "queued"
    # Where a button sends one back to is on this server.
    for back in ("https://evil.example", "//evil.example", "/\\evil.example", "javascript:alert(1)", "/x\r\nX: y"):
        fields = forms(get(api, path).text, f"{path}/cancel" if back.startswith("h") else f"{path}/retry")[0]
        action = "cancel" if back.startswith("h") else "retry"
        moved = api.http.post(f"{path}/{action}", data=fields | {"back": back}, headers=HTML)
        assert moved.headers["location"] == path
        if action == "retry":
            api.http.post(f"{job['links']['self']}/cancel")


def test_jobs_are_searched_filtered_and_paged(api: Api) -> None:
    teacher = put_teacher(api)
    made = [
        post_synthesis(api, teacher=teacher, name=f"Digits {i}", labels={"team": "a" if i % 2 else "b"})
        for i in range(6)
    ]
    run = api.http.post("/v1/training-runs", json={"dataset": made[0]["id"], "name": "the run"}).json()
    api.http.post(made[1]["links"]["cancel"])

    def listed(query: str) -> list[str]:
        return re.findall(r'id="open-([^"]+)"', get(api, f"/?{query}").text)

    ids = [job["id"] for job in made]
    assert listed("") == [run["id"], *reversed(ids)]
    assert listed("q=DIGITS+3") == [ids[3]]
    assert listed(f"q={ids[2]}") == [ids[2]]
    assert listed("status=canceled") == [ids[1]]
    assert listed("kind=training") == [run["id"]]
    assert listed("label=team%3Db&q=digits") == [ids[4], ids[2], ids[0]]
    assert listed(f"after={ids[3]}") == [ids[2], ids[1], ids[0]]
    assert listed(f"after={ids[3].replace('syn-', 'run-')}") == [ids[2], ids[1], ids[0]]
    assert "No job fulfils this" in get(api, "/?q=nothing-like-this").text


def test_lists_of_many_jobs_are_paged_without_loss_or_repetition(api: Api) -> None:
    """Records as the store writes them, with the fields that a page reads; of both kinds in turn."""
    spec = post_synthesis(api, name="seed")
    record = api.store.redis.hgetall(f"dearkd:job:{spec['id']}")
    wanted = []
    pipe = api.store.redis.pipeline(transaction=False)
    for i in range(1200):
        kind, sort = (("synthesis", "syn"), ("training", "run"))[i % 2]
        identifier = new_id(sort)
        name = "needle" if i % 97 == 0 else f"hay {i}"
        fields = {
            **record,
            b"id": identifier,
            b"kind": kind,
            b"spec": json.dumps({**spec["spec"], "name": name, "dataset": "x"}),
        }
        pipe.hset(f"dearkd:job:{identifier}", mapping=fields)
        pipe.zadd(f"dearkd:jobs:{kind}", {identifier: 0})
        pipe.zadd(f"dearkd:jobs:{kind}:queued", {identifier: 0})
        if name == "needle":
            wanted.append(identifier)
    pipe.execute()

    def follow(path: str) -> tuple[list[str], int]:
        found: list[str] = []
        count = 0
        while path:
            page = get(api, path).text
            found += re.findall(r'id="open-([^"]+)"', page)
            older = re.search(r'id="older"[^>]* href="([^"]+)"', page)
            path = older[1].replace("&amp;", "&") if older else ""
            count += 1
        return found, count

    found, count = follow("/")
    assert len(found) == len(set(found)) == 1201
    assert found == sorted(found, key=lambda one: one.partition("-")[2], reverse=True)
    assert count == 25
    assert follow("/?q=needle")[0] == wanted[::-1]
    assert follow("/?q=needle&kind=training&status=queued")[0] == [one for one in wanted[::-1] if one[:3] == "run"]


def test_a_job_that_redis_has_lost_is_a_page_that_says_so_and_can_be_retried(api: Api) -> None:
    job = post_synthesis(api, name="lost one")
    api.store.redis.flushdb()
    path = f"/jobs/{job['id']}"
    page = get(api, path, 404)
    assert "gone from Redis" in page.text
    again = send(api.http, page, f"{path}/retry")
    assert (again.status_code, again.headers["location"]) == (303, path)
    assert "lost one" in get(api, path).text


def test_a_job_shows_terms_preview_quality_log_and_lineage(api: Api, tmp_path: Path) -> None:
    teacher = put_teacher(api, class_names=[f"class {i}" for i in range(10)])
    job = post_synthesis(api, teacher=teacher, name="a job")
    path = f"/jobs/{job['id']}"
    ledger = Ledger(api.store)
    assert "None yet" in get(api, path).text
    assert api.http.get(f"{path}/terms.json").json()["tables"][0]["x"] == []
    picture = api.http.get(f"{path}/preview.png")
    assert (picture.status_code, picture.headers["content-type"]) == (200, "image/svg+xml")
    held = claim(api)
    for batch in range(2):
        for iteration in (1, 10, 20):
            told = {"shard": 0, "batch": batch, "iteration": iteration, "cross_entropy": 2.0 / iteration, "total": 3.0}
            ledger.report(held, done=iteration, per_second=1.5, metrics=told)
    ledger.log.add(job["id"], "a note <b>")
    api.storage.put(f"datasets/{dataset_of(job['id'])}/preview.png", b"\x89PNG")
    page = get(api, path).text
    assert "cross entropy" in page
    assert "a note &lt;b&gt;" in page
    table = api.http.get(f"{path}/terms.json").json()["tables"][0]
    assert table["x"] == [1, 10, 20, 21, 30, 40]
    assert [one["name"] for one in table["series"]] == ["cross_entropy", "total"]
    assert api.http.get(f"{path}/preview.png").headers["content-type"] == "image/png"
    assert "timelapse" not in page
    assert api.http.get(f"{path}/live.png").headers["content-type"] == "image/svg+xml"
    assert api.http.get(f"{path}/live.json").json() is None
    layout = {"cell": 32, "gap": 2, "margin": 30, "rows": [{"name": "<b>", "confidence": [0.25]}]}
    for odd in (b"no picture", _png(None), _png("{")):
        api.storage.put(live_key(job["id"]), odd)
        assert api.http.get(f"{path}/live.json").json() is None
    api.storage.put(live_key(job["id"]), _png(json.dumps(layout)))
    assert api.http.get(f"{path}/live.json").json() == layout
    assert api.http.get(f"{path}/live.png").headers["content-type"] == "image/png"
    assert api.http.get(f"{path}/timelapse.webp").status_code == 404
    api.storage.put(f"datasets/{dataset_of(job['id'])}/timelapse.webp", b"RIFF")
    assert f'src="{path}/timelapse.webp"' in get(api, path).text
    assert api.http.get(f"{path}/timelapse.webp").headers["content-type"] == "image/webp"
    assert "a note <b>" in api.http.get(f"{path}/log").text
    ledger.release(held)
    run = api.http.post("/v1/training-runs", json={"dataset": job["id"], "name": "on it"}).json()
    dataset = finish_synthesis(api, job, tmp_path)
    page = get(api, path).text
    for target in (f"/teachers/{teacher}", f"/datasets/{dataset}", f"/runs/{run['id']}"):
        assert f'href="{target}"' in page, target
    assert f'href="{path}"' in get(api, f"/runs/{run['id']}").text
    api.http.post(f"/v1/training-runs/{run['id']}/cancel")
    assert api.http.delete(f"/v1/datasets/{dataset}").status_code == 204
    page = get(api, path).text
    assert "Its dataset was deleted" in page
    assert f'href="/datasets/{dataset}"' not in page
    moved = api.http.get(f"/jobs/{run['id']}", headers=HTML)
    assert (moved.status_code, moved.headers["location"]) == (303, f"/runs/{run['id']}")
    failed = post_synthesis(api)
    ledger.fail(failed["id"], JobError(code="x", message="it <broke>", retryable=False))
    page = get(api, f"/jobs/{failed['id']}").text
    assert "it &lt;broke&gt;" in page
    assert "It left no picture" in page


def test_a_run_shows_its_epochs_and_others_beside_it(api: Api, tmp_path: Path) -> None:
    dataset = put_dataset(api, tmp_path)
    ledger = Ledger(api.store)
    body = {"dataset": dataset, "stage_one": {"distillation": "none", "weights": {"hidden": 0.0}}}
    runs = [api.http.post("/v1/training-runs", json=body | {"name": f"run {i}"}).json() for i in range(2)]
    rows = [
        {"epoch": e, "stage": 1 + (e > 3), "loss": 1 / e, "learning_rate": 0.1, "holdout_top1": e / 10, "threads": 2}
        for e in range(1, 7)
    ]
    ledger.set_rows(runs[0]["id"], rows)
    ledger.set_rows(runs[1]["id"], [{**row, "loss": float("nan")} for row in rows[:4]])
    path = f"/runs/{runs[0]['id']}"
    page = get(api, f"{path}?with={runs[1]['id']}").text
    assert "holdout top1" in page
    assert "None are kept" in page
    chart = api.http.get(f"{path}/curves/losses.json").json()
    assert chart["marks"] == [{"x": 1, "label": "stage 1"}, {"x": 4, "label": "stage 2"}]
    (table,) = chart["tables"]
    assert (table["x"], [one["name"] for one in table["series"]]) == ([1, 2, 3, 4, 5, 6], ["loss"])
    both = api.http.get(f"{path}/curves/accuracy.json?with={runs[1]['id']}").json()["tables"]
    assert [one["series"][0]["name"] for one in both] == ["run 0: holdout_top1", "run 1: holdout_top1"]
    assert "with" not in chart
    for odd, status in (
        ("/curves/x.json", 404),
        (f"?with={new_id('run')}", 404),
        ("?with=x", 404),
        ("?with=a&with=b&with=c&with=d&with=e&with=f", 422),
    ):
        get(api, path + odd, status)
    api.store.redis.delete(f"dearkd:job:{runs[0]['id']}:rows")
    assert "None yet" in get(api, path).text


def put_evaluated(api: Api, report: Any, **fields: Any) -> str:
    """A model with an evaluation."""
    text = json.dumps(report).encode()
    identifier = new_id("mdl")
    api.storage.put(f"models/{identifier}/evaluation.json", text)
    listed = StoredFile(name="evaluation.json", bytes=len(text), sha256=sha256(text).hexdigest())
    return put_model(api, id=identifier, files=[listed], **fields)


def test_a_model_shows_what_it_confuses_and_an_odd_evaluation_hides_nothing_else(api: Api) -> None:
    classes = [{"index": i, "name": f"c{i}<", "samples": 10, "accuracy": 0.5} for i in range(3)]
    matrix = [[0.5, 0.4, 0.1], [0.0, 1.0, 0.0], [0.2, 0.3, 0.5]]
    report = {"samples": 30, "expected_calibration_error": 0.042, "per_class": classes, "confusion": matrix}
    page = get(api, f"/models/{put_evaluated(api, report)}").text
    assert "4.2 %" in page
    assert page.index("c0&lt; taken for c1&lt;: 40.0 %") < page.index("c2&lt; taken for c1&lt;: 30.0 %")
    assert '<td class="heat-5">100</td>' in page
    odds: list[Any]
    odds = [[], {"confusion": 3}, {"confusion": [[1], 2]}, {"per_class": {}, "confusion": [["x"]]}, "text"]
    odds += [{"per_class": [{"accuracy": "x"}]}, {"expected_calibration_error": math.inf, "loss": 10**400}]
    odds += [{"per_class": [{}], "confusion": [[share]]} for share in (math.inf, math.nan, 10**400)]
    for odd in odds:
        assert "Try it" in get(api, f"/models/{put_evaluated(api, odd)}").text
    altered = put_evaluated(api, report)
    api.storage.put(f"models/{altered}/evaluation.json", b"{}")
    assert "taken for" not in get(api, f"/models/{altered}").text


def test_a_report_is_shown_on_its_own_where_it_can_do_nothing(api: Api) -> None:
    """Even one that is not ours: the browser gives it no origin, and neither scripts nor requests."""
    page = b"<!doctype html><style>b{}</style><script>alert(1)</script>"
    model = new_id("mdl")
    api.storage.put(f"models/{model}/report.html", page)
    listed = StoredFile(name="report.html", bytes=len(page), sha256=sha256(page).hexdigest())
    put_model(api, id=model, files=[listed])
    assert f'href="/models/{model}/report"' in get(api, f"/models/{model}").text
    answer = get(api, f"/models/{model}/report")
    assert answer.content == page
    rules = {rule.split()[0]: rule.split()[1:] for rule in answer.headers["content-security-policy"].split(";")}
    assert (rules["sandbox"], rules["default-src"], rules["img-src"]) == ([], ["'none'"], ["data:"])
    assert "script-src" not in rules
    assert answer.headers["x-content-type-options"] == "nosniff"
    # As a file it is bytes, which no browser takes for a page of this server.
    file = api.http.get(f"/v1/models/{model}/files/report.html")
    assert (file.content, file.headers["content-type"]) == (page, "application/octet-stream")
    without = put_model(api)
    assert f"/models/{without}/report" not in get(api, f"/models/{without}").text
    get(api, f"/models/{without}/report", 404)
    large = put_model(api, files=[listed.model_copy(update={"bytes": 10_000_001})])
    assert f"/models/{large}/report" not in get(api, f"/models/{large}").text
    get(api, f"/models/{large}/report", 404)
    altered = new_id("mdl")
    api.storage.put(f"models/{altered}/report.html", page + b" ")
    put_model(api, id=altered, files=[listed])
    assert "alert(1)" not in get(api, f"/models/{altered}/report", 500).text


def test_an_image_is_asked_about_by_a_form_of_the_page_alone(api: Api) -> None:
    model = put_model(api)
    path = f"/models/{model}/predict"
    (form,) = forms(get(api, f"/models/{model}").text, path)
    image = {"image": ("x.png", b"not looked at", "image/png")}
    no_worker = api.http.post(path, data=form, files=image, headers=HTML)
    assert (no_worker.status_code, "no worker listens" in no_worker.text) == (503, True)
    assert api.http.post(path, data=form, files=image, headers={"HX-Request": "true"}).status_code == 200
    assert api.http.post(path, files=image, headers=HTML).status_code == 403
    assert api.http.post(path, data=form, files=image, headers=HTML | {"Origin": "null"}).status_code == 403
    assert api.http.post(path, data=form, headers=HTML).status_code == 415
    large = {"image": ("x.png", b"x" * (16 * 2**20 + 1), "image/png")}
    assert api.http.post(path, data=form, files=large, headers=HTML).status_code == 413
    broken = {"content-type": "multipart/form-data; boundary=b"}
    assert api.http.post(path, content=b"--b\r\n", headers=HTML | broken).status_code == 422
    part = b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\n\r\n'
    many = api.http.post(path, content=part * 300_000, headers=HTML | broken)
    assert (many.status_code, "parts" in many.text) == (422, True)
    # No other page takes files.
    assert api.http.post("/login", data=form, files=image, headers=HTML).status_code == 415


def test_jobs_stand_below_their_teachers_and_runs_below_their_datasets(api: Api, tmp_path: Path) -> None:
    teachers = [put_teacher(api, name=name) for name in ("first", "second")]
    jobs = [post_synthesis(api, teacher=teacher, name=f"of {teacher}") for teacher in teachers]
    real = put_dataset(api, tmp_path)
    for dataset, name in ((jobs[0]["id"], "on synthesised"), (real, "on real"), (jobs[0]["id"], "once more")):
        body = {"dataset": dataset, "name": name, "stage_one": {"distillation": "none", "weights": {"hidden": 0}}}
        posted = api.http.post("/v1/training-runs", json=body)
        assert posted.status_code == 202, posted.text
    page = get(api, "/?view=lineage").text
    trees = [re.sub(r"<[^>]+>|\s+", " ", tree) for tree in page.split('<section class="card tree">')[1:]]
    assert len(trees) == 3
    (own,) = [tree for tree in trees if "on synthesised" in tree]
    assert "first" in own
    assert "once more" in own
    assert own.index(f"of {teachers[0]}") < own.index("once more") < own.index("on synthesised"), "the newest first"
    (other,) = [tree for tree in trees if f"of {teachers[1]}" in tree]
    assert "on " not in other
    (left,) = [tree for tree in trees if "on real" in tree]
    assert "Real images" in left
    assert "on real" not in get(api, "/?view=lineage&kind=synthesis").text
    get(api, "/?view=else", 422)
