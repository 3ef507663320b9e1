"""The schema of the API, completed after the framework made it: operation ids, problems, ids, examples, links.

All of it follows from the path and the method of a route, so that a new route has it without a line of its own. A
route declares only what it alone knows: its bodies and what it answers when nothing goes wrong.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from fastapi import FastAPI

from dearkd.answers import FieldProblem
from dearkd.errors import FieldError
from dearkd.identifiers import Kind, pattern_of
from dearkd.jobs.deliveries import delivery_pattern
from dearkd_api import examples
from dearkd_api.access import ADMIN_PATHS, OWN_PATH
from dearkd_api.answers import Problem
from dearkd_api.pages import CHECKPOINT_ID, EVENT_ID, ROW_ID
from dearkd_api.problems import MEDIA_TYPE, RETRY_AFTER_SECONDS

Json = dict[str, Any]

IDS: Final[Mapping[str, Kind]] = {
    "teachers": "tch",
    "checks": "chk",
    "synthesis-jobs": "syn",
    "training-runs": "run",
    "datasets": "ds",
    "models": "mdl",
    "keys": "key",
    "audit": "aud",
}
"""The kinds of ids by the part of a path that they follow."""

AFTER: Final = {"events": EVENT_ID, "metrics": ROW_ID, "checkpoints": CHECKPOINT_ID}
"""Patterns of `after` in collections whose members have no id of a kind, by the last part of the path."""

HEALTH: Final = {"/healthz": "health.alive", "/readyz": "health.ready", "/metrics": "health.metrics"}

COMPLETED: Final = ("SynthesisRequest", "TrainingRequest")
"""Schemas of bodies whose absent fields a preset or a recipe fills in."""

SECURITY: Final = "key"

_METHODS: Final = {"get": "get", "delete": "delete", "patch": "update", "put": "replace"}


class DescribedAPI(FastAPI):
    """An application whose schema is a product of its own. `state.backend` must be set before it is asked for."""

    def openapi(self) -> Json:
        made = self.openapi_schema is not None
        document = super().openapi()
        if not made:
            complete(document, keyed=bool(self.state.backend.keys))
        return document


@dataclass(frozen=True, slots=True)
class _Documented:
    """A status of which problems are answered, with one of them."""

    means: str
    code: str
    title: str
    detail: str
    errors: tuple[FieldError, ...] = ()

    def response(self, status: int) -> Json:
        example = {
            "type": f"urn:dearkd:problem:{self.code}",
            "title": self.title,
            "status": status,
            "detail": self.detail,
            "code": self.code,
            "errors": [{"pointer": error.pointer, "detail": error.detail} for error in self.errors],
        }
        content = {MEDIA_TYPE: {"schema": _reference("schemas", "Problem"), "example": example}}
        headers = {name: _header(*told) for name, told in _HEADERS.get(status, {}).items()}
        return {"description": self.means, "content": content} | ({"headers": headers} if headers else {})


def _header(means: str, example: str | int) -> Json:
    schema = {"type": "integer" if isinstance(example, int) else "string"}
    return {"description": means, "required": True, "schema": schema, "example": example}


_RETRY_AFTER: Final = {"Retry-After": ("Seconds after which to try again.", RETRY_AFTER_SECONDS)}
_HEADERS: Final[Mapping[int, Mapping[str, tuple[str, str | int]]]] = {
    401: {"WWW-Authenticate": ("The scheme under which to send a key.", "Bearer")},
    416: {"Content-Range": ("The size of the file.", "bytes */2048")},
    429: _RETRY_AFTER,
    503: _RETRY_AFTER,
}

_RULE: Final = "The request breaks a rule"
_STATE: Final = "The state of things forbids this"
_SEED: Final = FieldError("/seed", "Input should be greater than or equal to 0 (got -1)")

PROBLEMS: Final[Mapping[int, _Documented]] = {
    401: _Documented(
        "No API key, or one that is wrong, expired or revoked. Only where there are keys.",
        "unauthorized",
        "An API key is needed",
        "the API key is missing: send it as Authorization: Bearer KEY",
    ),
    403: _Documented(
        "It belongs to another key, the key lacks the scope, or a foreign page asks.",
        "foreign_origin",
        "From a foreign page",
        "Origin is 'https://example.org': another site's page may not change anything here",
    ),
    404: _Documented(
        "There is no such thing, or it is another key's.",
        "not_found",
        "There is no such thing",
        f"there is no {examples.TEACHER_ID!r} in teachers",
    ),
    408: _Documented(
        "The body came too slowly.",
        "too_slow",
        "Too slow",
        "the body did not come within 30 s (DEARKD_BODY_SECONDS), only 10 bytes of it",
    ),
    409: _Documented(
        "Its state forbids this, or what is stored of it cannot be read.",
        "in_use",
        _STATE,
        f"{examples.TEACHER_ID} is used by {examples.SYNTHESIS_ID}, which is running: cancel that first, or let it end",
    ),
    413: _Documented(
        "The body is larger than this server allows.",
        "too_large",
        "Too large",
        "the body has 2000000 bytes or more; this server allows 1000000",
    ),
    415: _Documented(
        "A body of a content type that is not taken here.",
        "unsupported_media_type",
        "Not a content type that is taken here",
        "the content type is text/plain: send application/json (with curl, --json instead of -d)",
    ),
    416: _Documented(
        "The range lies outside the file.",
        "range_not_satisfiable",
        "No such range",
        "bytes=4096- asks for none of the 2048 bytes of train-000000.tar",
    ),
    421: _Documented(
        "The API may not be called by this Host.",
        "misdirected_request",
        "Not a host of this server",
        "Host is 'example.org', which is not a name of this server: call it as localhost, 127.0.0.1 or [::1], or name "
        "the host in DEARKD_ALLOWED_HOSTS where the server is started",
    ),
    422: _Documented(
        "The request breaks a rule; nothing was stored.",
        "invalid_input",
        _RULE,
        f"{_SEED.pointer}: {_SEED.detail}",
        (_SEED,),
    ),
    429: _Documented(
        "As many jobs wait as may, a quota is used up, or too many wrong keys came.",
        "limit_reached",
        "As many as are allowed are there already",
        "1000 jobs wait already, which is as many as this server allows: try again later",
    ),
    500: _Documented(
        "Stored data are not what they should be, or the server has a fault.",
        "corrupt_data",
        "Stored data are not what they should be",
        "train-000000.tar was altered in storage",
    ),
    503: _Documented(
        "Redis, storage, an inspector or a free place cannot be reached; the same request may succeed later.",
        "redis_unavailable",
        "Something that is needed cannot be reached",
        "Redis cannot be reached: try again later",
    ),
}


def complete(document: Json, *, keyed: bool) -> None:
    """Complete the framework's schema in place.

    Args:
        document: made by FastAPI.
        keyed: True if keys are configured: each request under `/v1` needs one then. Else one may be sent all the same,
            so that clients that were generated from this schema can call any server.
    """
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):  # nothing answers so
        schemas.pop(name, None)
    for model in (Problem, FieldProblem):
        made = model.model_json_schema(ref_template="#/components/schemas/{model}")
        made.pop("$defs", None)
        schemas[model.__name__] = made
    components["schemas"] = dict(sorted(schemas.items()))
    components["responses"] = {_name(status): told.response(status) for status, told in PROBLEMS.items()}
    components["securitySchemes"] = {SECURITY: {"type": "http", "scheme": "bearer"}}
    for name in COMPLETED:
        _drop_defaults(name, schemas, seen=set())
    for path, method, operation in operations(document):
        operation["operationId"] = operation_id(method, path)
        answers = {status: answer for status, answer in operation["responses"].items() if int(status) < 400}
        for status in problem_statuses(method, path, operation):
            answers[str(status)] = _reference("responses", _name(status))
        operation["responses"] = dict(sorted(answers.items()))
        for parameter in operation.get("parameters", []):
            _complete_parameter(parameter, path)
        if path.startswith("/v1/"):
            operation["security"] = [{SECURITY: []}] if keyed else [{}, {SECURITY: []}]
        _add_location(method, path, operation)
        examples.add(operation)
    _add_links(document)


def operations(document: Json) -> Iterator[tuple[str, str, Json]]:
    """Path, method and operation, each."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def operation_id(method: str, path: str) -> str:
    """The stable name of an operation, such as `synthesis_jobs.create`.

    A collection is listed and created in, a member is got and deleted; what stands below a member is named by it. There
    a plural to which one posts is a collection (`checks`), anything else a verb (`cancel`).
    """
    if path in HEALTH:
        return HEALTH[path]
    collection, *rest = path.removeprefix("/v1/").split("/")
    member = rest[:1] != [] and rest[0].startswith("{")
    below = [part for part in rest[1:] if not part.startswith("{")] if member else rest
    names = [part.partition(".")[0].replace("-", "_") for part in (collection, *below)]
    if not below:
        names.append(_METHODS[method] if member else {"get": "list", "post": "create"}[method])
    elif rest[-1].startswith("{"):
        names.append(_METHODS[method])
    elif method == "post" and below[-1].endswith("s"):
        names.append("create")
    return ".".join(names)


def problem_statuses(method: str, path: str, operation: Json) -> list[int]:
    """The statuses with which an operation may answer a problem.

    401 is among them whether keys are configured or not: one schema describes every server, and so does the client that
    is made of it.
    """
    if path in HEALTH:
        return [500, 503] if path == "/readyz" else []
    found = [401, 421, 422, 429, 500, 503]
    if "{" in path or path == OWN_PATH:
        found += [404, 409]
    if method != "get":
        found += [403, 409, 415]
    if path.startswith(ADMIN_PATHS):
        found += [403]
    if "requestBody" in operation:
        found += [408, 413]
    if "/files/" in path:
        found += [416]
    return sorted(set(found))


def _drop_defaults(name: str, schemas: Json, seen: set[str]) -> None:
    """Drop all defaults of a schema and of those that it refers to.

    A generated client sends each default that a schema names, and what is given wins over the preset.
    """
    if name in seen:
        return
    seen.add(name)
    for field in schemas[name].get("properties", {}).values():
        field.pop("default", None)
    for other in re.findall(r"#/components/schemas/(\w+)", json.dumps(schemas[name])):
        _drop_defaults(other, schemas, seen)


def _complete_parameter(parameter: Json, path: str) -> None:
    schema = parameter["schema"]
    # A parameter of an address is left out, never null.
    present = [kind for kind in schema.get("anyOf", []) if kind != {"type": "null"}]
    if len(present) == 1:
        del schema["anyOf"]
        parameter["schema"] = schema = present[0] | schema
    parts = path.split("/")
    owner = ""
    if parameter["in"] == "path":
        owner = parts[parts.index(f"{{{parameter['name']}}}") - 1]
    elif parameter["name"] == "after":
        owner = parts[-1]
        if owner in AFTER:
            schema["pattern"] = f"^{AFTER[owner]}$"
    if owner == "checkpoints":
        schema["pattern"] = f"^{CHECKPOINT_ID}$"
        schema["examples"] = [examples.CHECKPOINT_ID]
    if owner == "deliveries":
        kind: Literal["syn", "run"] = "syn" if "synthesis-jobs" in parts else "run"
        schema["pattern"] = delivery_pattern(kind)
        schema["examples"] = [f"msg_{examples.IDS[kind]}_1"]
    if owner in IDS:
        schema["pattern"] = pattern_of(IDS[owner])
        schema["examples"] = [examples.IDS[IDS[owner]]]


def _add_location(method: str, path: str, operation: Json) -> None:
    """Say of each creation where the created thing is: in `Location`."""
    verb = operation["operationId"].rpartition(".")[2]
    if method == "post" and verb not in ("predict", "redeliver"):
        for status in ("201", "202"):
            if status in operation["responses"]:
                told = _header("Where the thing is.", f"{path}/…")
                operation["responses"][status].setdefault("headers", {})["Location"] = told


def _add_links(document: Json) -> None:
    """Link each creation to all operations on the created thing, by its id."""
    found = list(operations(document))
    for path, method, operation in found:
        if method != "post" or "{" in path:
            continue
        member = f"{path}/{{identifier}}"
        links = {
            other["operationId"]: {
                "operationId": other["operationId"],
                "parameters": {"identifier": "$response.body#/id"},
            }
            for other_path, _, other in found
            if other_path.startswith(member) and other_path.count("{") == 1
        }
        for status in ("201", "202"):
            if links and status in operation["responses"]:
                operation["responses"][status]["links"] = links


def _reference(sort: str, name: str) -> Json:
    return {"$ref": f"#/components/{sort}/{name}"}


def _name(status: int) -> str:
    return f"Problem{status}"
