"""Whatever goes wrong leaves as a problem document."""

import pytest

from tests.support.api_contents import pointers
from tests.support.services import Api

pytestmark = pytest.mark.services

JSON = {"content-type": "application/json"}


def test_unknown_pages_and_methods(api: Api) -> None:
    nowhere = api.http.get("/v1/nowhere")
    assert (nowhere.status_code, nowhere.json()["code"], pointers(nowhere)) == (404, "not_found", [])
    wrong = api.http.put("/v1/teachers")
    assert (wrong.status_code, wrong.json()["code"], pointers(wrong)) == (405, "method_not_allowed", [])
    assert wrong.headers["allow"] == "GET, POST"


@pytest.mark.parametrize("path", ["/v1/synthesis-jobs", "/v1/training-runs", "/v1/datasets"])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b'{"seed": NaN}',
        b'{"teacher": Infinity}',
        b"\xff\xfe\x00",
        b"[" * 50_000,
    ],
)
def test_what_is_no_json_object_is_refused(api: Api, path: str, body: bytes) -> None:
    answer = api.http.post(path, content=body, headers=JSON)
    assert answer.status_code == 422
    assert pointers(answer) == [""]
    assert "JSON" in answer.json()["detail"]


@pytest.mark.parametrize("body", [{}, {"teacher": None}, {"teacher": None, "seed": "x"}])
def test_what_is_missing_is_told_with_its_remedy(api: Api, body: dict[str, object]) -> None:
    told = api.http.post("/v1/synthesis-jobs", json=body).json()["errors"]
    assert {"pointer": "/teacher", "detail": "required, but missing: POST /v1/teachers first"} in told
    told = api.http.post("/v1/training-runs", json={"dataset": None} if body else {}).json()["errors"]
    remedy = "name a dataset, or the synthesis job that makes one"
    assert told == [{"pointer": "/dataset", "detail": f"required, but missing: {remedy}"}]


def test_a_choice_that_there_is_not_is_told_with_those_that_there_are(api: Api) -> None:
    preset = api.http.post("/v1/synthesis-jobs", json={"teacher": "none", "preset": "imagenets"})
    assert all(name in preset.json()["detail"] for name in ("'auto'", "'published-imagenet'", "'published-cifar'"))
    recipe = api.http.post("/v1/training-runs", json={"dataset": "none", "recipe": "large"})
    assert all(name in recipe.json()["detail"] for name in ("'deit'", "'small'"))


def test_parameters_are_looked_at_before_the_body(api: Api) -> None:
    answer = api.http.post("/v1/training-runs?dryrun=true", content=b"{", headers=JSON)
    assert (answer.status_code, pointers(answer)) == (422, ["/dryrun"])


def test_what_should_be_an_object_is_told_so(api: Api) -> None:
    answer = api.http.post("/v1/training-runs", json={"dataset": "none", "stage_one": {"weights": [1]}})
    told = {error["pointer"]: error["detail"] for error in answer.json()["errors"]}
    assert told["/stage_one/weights"] == "Input should be an object (got [1])"


def test_odd_texts_in_a_body_are_refused_and_told(api: Api) -> None:
    answer = api.http.post("/v1/synthesis-jobs", content=rb'{"teacher": "\ud800", "\ud800": 1}', headers=JSON)
    assert answer.status_code == 422
    assert pointers(answer) == ["", "/teacher"]
    assert all("\\ud800" in error["detail"] for error in answer.json()["errors"])


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_the_limit_is_refused(api: Api, chunked: bool) -> None:
    body = b'{"teacher": "' + b"x" * 200_000 + b'"}'
    content = iter([body[:150_000], body[150_000:]]) if chunked else body
    answer = api.http.post("/v1/synthesis-jobs", content=content, headers=JSON)
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
    assert pointers(answer) == []


def test_the_schema_shows_what_may_be_posted(api: Api) -> None:
    api_schema = api.http.get("/openapi.json").json()

    def posted(path: str) -> dict[str, object]:
        body = api_schema["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        schema: dict[str, object] = api_schema["components"]["schemas"][body["$ref"].rpartition("/")[2]]
        return schema

    synthesis = posted("/v1/synthesis-jobs")
    assert synthesis["required"] == ["teacher"]
    assert synthesis["additionalProperties"] is False
    assert {"teacher", "phases", "weights", "seed"} <= set(synthesis["properties"])  # type: ignore[call-overload]
    assert posted("/v1/training-runs")["required"] == ["dataset"]
    assert posted("/v1/datasets")["required"] == ["prefix"]
    weights = synthesis["properties"]["weights"]["$ref"].rpartition("/")[2]
    assert "required" not in api_schema["components"]["schemas"][weights]


def test_health(api: Api) -> None:
    assert api.http.get("/healthz").status_code == 200
    assert api.http.get("/readyz").status_code == 200
    page = api.http.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "http://" not in page.text.replace("http://www.w3.org/", "")
    assert "https://" not in page.text
