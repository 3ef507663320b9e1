"""Forms for new jobs: made from the requests, checked as these are, forecast, and sent once."""

import base64
import html
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from dearkd.specs import SynthesisRequest, TrainingRequest
from tests.support.api_contents import put_dataset, put_teacher
from tests.support.pages import HTML, forms, get
from tests.support.services import Api

pytestmark = pytest.mark.services


def named(fields: dict[str, Any]) -> dict[str, Any]:
    return {name.replace("__", "."): value for name, value in fields.items()}


def post(api: Api, kind: str, *, dry: bool = False, **fields: Any) -> httpx.Response:
    path = f"/new/{kind}"
    (form,) = forms(get(api, path).text, path)
    return api.http.post(path + "?dry_run=true" * dry, data=form | named(fields), headers=HTML)


def jobs(api: Api, collection: str = "synthesis-jobs") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = api.http.get(f"/v1/{collection}").json()["data"]
    return found


@pytest.mark.parametrize(("kind", "request_of"), [("synthesis", SynthesisRequest), ("training", TrainingRequest)])
def test_each_field_of_a_request_has_its_input_and_its_docstring(api: Api, kind: str, request_of: Any) -> None:
    page = get(api, f"/new/{kind}?name=%3Cb%3E&teacher=tch-x").text
    names = re.findall(r'<(?:input|select) id="([^"]+)" name="([^"]+)"', page)
    assert all(one == other for one, other in names)
    assert {name.partition(".")[0] for name, _ in names} == request_of.model_fields.keys()
    text = html.unescape(page)
    described = [field for field in request_of.model_fields.values() if field.description]
    assert len(described) > 10
    assert all(" ".join(field.description.split()) in text for field in described)
    assert 'value="&lt;b&gt;"' in page
    assert 'value="tch-x"' in page


def test_a_forecast_makes_nothing_and_a_form_makes_what_the_same_request_does(api: Api) -> None:
    teacher = put_teacher(api)
    fields = {
        "teacher": teacher,
        "images_per_class": "3",
        "classes": "0, 2, 4",
        "weights__boundary": "0.5",
        "phases": '[{"resolution": 16, "iterations": 5}]',
        "clip": "false",
        "statistics": "gaussian",
        "labels": "team=vision, round=3",
        "name": "by hand",
    }
    forecast = post(api, "synthesis", dry=True, **fields)
    assert forecast.status_code == 200
    assert "<dt>images</dt><dd>9</dd>" in forecast.text
    assert "nothing like it has run here" in forecast.text
    assert jobs(api) == []
    assert api.http.get("/v1/audit").json()["data"] == []
    (form,) = forms(forecast.text, "/new/synthesis")
    begun = [api.http.post("/new/synthesis", data=form | named(fields), headers=HTML) for _ in range(2)]
    (job,) = jobs(api)
    assert [(one.status_code, one.headers["location"]) for one in begun] == [(303, f"/jobs/{job['id']}")] * 2
    (audited,) = api.http.get("/v1/audit").json()["data"]
    assert (audited["path"], audited["resource"]) == ("/new/synthesis", f"/jobs/{job['id']}")
    body = {
        "teacher": teacher,
        "images_per_class": 3,
        "classes": [0, 2, 4],
        "weights": {"boundary": 0.5},
        "phases": [{"resolution": 16, "iterations": 5}],
        "clip": False,
        "statistics": "gaussian",
        "labels": {"team": "vision", "round": "3"},
        "name": "by hand",
    }
    assert api.http.post("/v1/synthesis-jobs?dry_run=true", json=body).json()["spec"] == job["spec"]
    # Who goes back and changes the form has asked for another job.
    changed = form | named(fields | {"images_per_class": "4"})
    other = api.http.post("/new/synthesis", data=changed, headers=HTML).headers["location"]
    assert sorted(one["spec"]["images_per_class"] for one in jobs(api)) == [3, 4]
    assert other != f"/jobs/{job['id']}"
    # An address fills in inputs, but not what tells a form from others.
    assert 'value="mine"' not in get(api, "/new/synthesis?once=mine").text


def test_what_breaks_a_rule_is_said_at_its_field_and_the_rest_stays(api: Api) -> None:
    wrong = {"teacher": "tch-<b>", "images_per_class": "many", "weights__boundary": "-1", "phases": "[{]"}
    page = post(api, "synthesis", **wrong, name="kept <i>")
    assert page.status_code == 422
    for name in named(wrong):
        assert re.search(rf'id="{re.escape(name)}"[^>]*aria-invalid="true"', page.text) or name == "teacher", name
    for name in ("images_per_class", "weights.boundary", "phases"):
        assert f'<a href="#{name}">' in page.text, name
    assert "<b>" not in page.text
    assert 'value="kept &lt;i&gt;"' in page.text
    assert "<details open>" in page.text
    assert 'href="#teacher"' in post(api, "synthesis", teacher="tch-<b>").text
    assert 'href="#teacher"' in post(api, "synthesis", teacher="").text
    assert jobs(api) == []
    assert api.http.get("/new/else", headers=HTML).status_code == 404
    assert api.http.post("/new/synthesis", data={"teacher": put_teacher(api)}, headers=HTML).status_code == 403


def test_a_run_is_asked_for_by_its_form(api: Api, tmp_path: Path) -> None:
    dataset = put_dataset(api, tmp_path)
    plain = {"dataset": dataset, "stage_one__distillation": "none", "stage_one__weights__hidden": "0"}
    forecast = post(api, "training", dry=True, **plain)
    assert forecast.status_code == 200, forecast.text
    assert "<dt>steps</dt>" in forecast.text
    begun = post(api, "training", **plain)
    (run,) = jobs(api, "training-runs")
    assert (begun.status_code, begun.headers["location"]) == (303, f"/runs/{run['id']}")
    refused = post(api, "training", **plain, engine="ray")
    assert (refused.status_code, 'href="#engine"' in refused.text) == (422, True)


def test_whatever_stands_in_an_input_is_taken_or_refused_clearly(api: Api, tmp_path: Path) -> None:
    bases = {
        "synthesis": {"teacher": put_teacher(api), "images_per_class": "2"},
        "training": {"dataset": put_dataset(api, tmp_path), "stage_one.distillation": "none"},
    }
    for kind, base in bases.items():
        path = f"/new/{kind}"
        page = get(api, path).text
        (form,) = forms(page, path)
        for name in re.findall(r'<(?:input|select) id="([^"]+)" name="', page):
            for value in ("9" * 400, "9" * 4000, "NaN", "[1, Infinity]", "1e999", "[" * 900):
                answer = api.http.post(f"{path}?dry_run=true", data=form | base | {name: value}, headers=HTML)
                assert answer.status_code in (200, 422), (name, value[:20], answer.status_code)


def test_a_webhook_is_asked_for_and_its_secret_never_shown(api: Api) -> None:
    secret = "whsec_" + base64.b64encode(bytes(range(24))).decode()
    webhook = {"webhook__url": "https://example.org/told", "webhook__secret": secret}
    for fields in (webhook | {"images_per_class": "0"}, webhook | {"webhook__events": "running, never"}):
        refused = post(api, "synthesis", teacher=put_teacher(api), **fields)
        assert refused.status_code == 422
        assert secret not in refused.text
        assert "https://example.org/told" in refused.text
    assert 'aria-invalid="true"' in refused.text
    forecast = post(api, "synthesis", dry=True, teacher=put_teacher(api), **webhook)
    assert (forecast.status_code, secret in forecast.text) == (200, False)
    assert secret not in get(api, f"/new/synthesis?webhook.secret={secret}").text
    begun = post(api, "synthesis", teacher=put_teacher(api), **webhook, webhook__events="running, failed")
    assert begun.status_code == 303
    (job,) = jobs(api)
    assert job["spec"]["webhook"] == {"url": "https://example.org/told", "events": ["running", "failed"]}
    page = get(api, "/new/training").text
    assert 'placeholder="succeeded, failed, canceled"' in page
    assert re.search(r'id="webhook.url"[^>]*required', page) is None, "who wants none leaves it empty"
