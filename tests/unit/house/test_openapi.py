"""The API's schema as a product: names that stay, problems everywhere, an example for all that is sent and answered."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from dearkd.settings import Settings
from dearkd_api import examples
from dearkd_api.app import create_app
from dearkd_api.openapi import PROBLEMS, operation_id, operations
from dearkd_api.write_openapi import schema_text
from tests.support.documents import ROOT, read, table

Json = dict[str, Any]

JOB = ("create", "list", "get", "cancel", "retry", "events", "log")
IDS = {
    *(f"teachers.{name}" for name in ("create", "list", "get", "delete", "checks.create", "checks.get")),
    *(f"synthesis_jobs.{name}" for name in (*JOB, "preview", "live", "timelapse")),
    *(f"training_runs.{name}" for name in (*JOB, "metrics", "checkpoints", "checkpoints.files.get")),
    *(f"datasets.{name}" for name in ("create", "list", "get", "delete", "files.get")),
    *(f"models.{name}" for name in ("list", "get", "delete", "files.get", "predict")),
    *("health.alive", "health.ready"),
}
"""Clients call by these: one may be added, none changed."""

SCHEMA: Json = json.loads(schema_text())


def resolved(value: Json) -> Json:
    while "$ref" in value:
        found: Json = SCHEMA
        for part in value["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        value = found
    return value


def shown() -> Iterator[tuple[str, Json, Json]]:
    """Name, schema and example of each body and each answer in JSON or as a form; {} where there is no example."""
    for _, _, operation in operations(SCHEMA):
        name = operation["operationId"]
        contents = [(f"{name} body", operation.get("requestBody", {}).get("content", {}))]
        contents += [
            (f"{name} {code}", resolved(answer).get("content", {})) for code, answer in operation["responses"].items()
        ]
        for what, content in contents:
            for media_type, told in content.items():
                if re.search("json|multipart", media_type) and ".files." not in name:  # whose JSON is anybody's
                    yield f"{what} {media_type}", told["schema"], told.get("example", {})


SHOWN = list(shown())


def test_the_committed_schema_is_the_apis() -> None:
    committed = (ROOT / "docs/openapi.json").read_text(encoding="utf-8")
    assert committed == schema_text(), "docs/openapi.json is another schema than the API's: write it with make openapi"


def test_operation_ids_are_unique_and_those_that_clients_know_are_there() -> None:
    found = [operation["operationId"] for _, _, operation in operations(SCHEMA)]
    assert len(set(found)) == len(found)
    assert set(found) >= IDS
    assert all(re.fullmatch(r"[a-z_]+(\.[a-z_]+){1,3}", name) for name in found)


@pytest.mark.parametrize(
    ("method", "path", "name"),
    [
        ("get", "/v1/events", "events.list"),
        ("patch", "/v1/synthesis-jobs/{identifier}", "synthesis_jobs.update"),
        ("post", "/v1/training-runs/{identifier}/pause", "training_runs.pause"),
        ("get", "/v1/synthesis-jobs/{identifier}/preview.png", "synthesis_jobs.preview"),
        ("get", "/metrics", "health.metrics"),
    ],
)
def test_ids_of_operations_follow_from_their_paths(method: str, path: str, name: str) -> None:
    assert operation_id(method, path) == name


def test_all_errors_are_problems_and_the_frameworks_own_form_is_gone() -> None:
    assert "HTTPValidationError" not in json.dumps(SCHEMA)
    for path, _, operation in operations(SCHEMA):
        statuses = {int(status) for status in operation["responses"]}
        if path.startswith("/v1/"):
            assert statuses >= {401, 421, 422, 429, 500, 503}
        for status in statuses:
            if status >= 400:
                answer = resolved(operation["responses"][str(status)])
                assert list(answer["content"]) == ["application/problem+json"], (path, status)
    assert PROBLEMS.keys() >= {401, 403, 404, 408, 409, 413, 415, 416, 421, 422, 429, 500, 503}


def test_the_page_on_http_explains_every_status() -> None:
    explained = {
        int(number) for cell, _ in table(read("docs/http.md"), "Errors") for number in re.findall(r"\d{3}", cell)
    }
    assert PROBLEMS.keys() <= explained


@pytest.mark.parametrize(("name", "schema", "example"), SHOWN, ids=[name for name, _, _ in SHOWN])
def test_every_body_and_answer_has_an_example_that_is_valid(name: str, schema: Json, example: Json) -> None:
    assert example, f"{name} has no example: add one to dearkd_api.examples"
    validator = Draft202012Validator({**schema, "components": SCHEMA["components"]})
    validator.validate(example)


def test_no_example_is_left_over() -> None:
    known = {operation["operationId"] for _, _, operation in operations(SCHEMA)}
    for name in (*examples.BODIES, *examples.ANSWERS, *examples.FORMS):
        assert name.partition(" ")[0] in known, name


def test_parameters_are_never_null_and_ids_have_their_pattern() -> None:
    for path, _, operation in operations(SCHEMA):
        for parameter in operation.get("parameters", []):
            assert "null" not in json.dumps(parameter), (path, parameter["name"])
            if parameter["name"] in ("after", "identifier", "check"):
                assert parameter["schema"]["pattern"], path


@pytest.mark.parametrize("name", ["SynthesisRequest", "SynthesisWeightsRequest", "TrainingRequest", "StageOneRequest"])
def test_no_default_stands_where_a_preset_decides(name: str) -> None:
    fields = SCHEMA["components"]["schemas"][name]["properties"]
    assert not [field for field, told in fields.items() if "default" in told]


def test_a_key_is_needed_only_where_keys_are_configured(tmp_path: Any) -> None:
    keyed = create_app(Settings(storage_url=f"file://{tmp_path}", api_keys="a-key-of-some-length")).openapi()
    for path, method, operation in operations(keyed):
        if path.startswith("/v1/"):
            assert operation["security"] == [{"key": []}]
            assert SCHEMA["paths"][path][method]["security"] == [{}, {"key": []}]
        else:
            assert "security" not in operation
