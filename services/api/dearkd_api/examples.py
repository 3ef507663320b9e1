"""An example for every body and every answer in JSON, by operation: those of the main job on the demo's digits.

Filled-in specs are computed as the API computes them, so that they always are what it would answer.
"""

from collections.abc import Mapping
from typing import Any, Final

from dearkd.identifiers import Kind
from dearkd.specs import DatasetFacts, SynthesisSpec, TeacherSpec, TrainingSpec

Json = dict[str, Any]

IDS: Final[Mapping[Kind, str]] = {
    kind: f"{kind}-1m9z4k2c0q8-7m2qx8ds" for kind in ("tch", "syn", "run", "ds", "mdl", "chk", "key", "aud")
}
TEACHER_ID: Final = IDS["tch"]
SYNTHESIS_ID: Final = IDS["syn"]

_SHA256: Final = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
_DIGITS: Final = [str(digit) for digit in range(10)]
CHECKPOINT_ID: Final = _SHA256[:16]
_QUEUED, _STARTED, _ENDED = (f"2026-03-01T09:{minute}:00Z" for minute in ("30", "31", "52"))

_DESCRIPTION: Final[Json] = {
    "name": "digits",
    "architecture": "resnet10t",
    "num_classes": 10,
    "in_chans": 1,
    "image_size": 32,
    "mean": [0.3055],
    "std": [0.3237],
}
_SYNTHESIS: Final[Json] = {"teacher": TEACHER_ID, "images_per_class": 200, "seed": 1, "name": "digits"}
_TRAINING: Final[Json] = {"dataset": SYNTHESIS_ID, "seed": 1, "name": "digits"}


def _member(identifier: str, **fields: Any) -> Json:
    return {"id": identifier, "name": "digits", "created_at": _ENDED, **fields}


_TEACHER: Final = {
    **_member(TEACHER_ID),
    **_DESCRIPTION,
    "status": "ready",
    "model_args": {},
    "class_names": _DIGITS,
    "sha256": _SHA256,
    "bytes": 19_700_000,
    "parameters": 4_900_000,
    "batch_norm_layers": 14,
    "refused_input_sizes": [],
    "weights": None,
    "shared": False,
}
_REGISTERING: Final[Json] = {"id": TEACHER_ID, "status": "registering"}

_teacher = TeacherSpec.check(_DESCRIPTION)
_synthesis = SynthesisSpec.resolve(_SYNTHESIS, _teacher)
_facts = DatasetFacts(
    num_samples=_synthesis.num_samples, num_classes=10, image_size=32, in_chans=1, synthetic=True, mirrored=False
)
_training = TrainingSpec.resolve(_TRAINING, _facts, _teacher)


_BELOW: Final = ("cancel", "retry", "pause", "resume", "events", "log", "deliveries")


def _job(kind: str, status: str, **fields: Any) -> Json:
    identifier = IDS["syn" if kind == "synthesis" else "run"]
    here = f"/v1/{'synthesis-jobs' if kind == 'synthesis' else 'training-runs'}/{identifier}"
    spec = _synthesis if kind == "synthesis" else _training
    total = _synthesis.num_samples if kind == "synthesis" else _training.epochs
    pictures = {"preview": "preview.png", "live": "live.png", "timelapse": "timelapse.webp"}
    shown = pictures if kind == "synthesis" else {name: name for name in ("metrics", "checkpoints")}
    below = {name: f"{here}/{tail}" for name, tail in ({name: name for name in _BELOW} | shown).items()}
    return {
        "id": identifier,
        "kind": kind,
        "status": status,
        "attempt": 1,
        "spec": spec.model_dump(mode="json"),
        "progress": {
            "done": 0,
            "total": total,
            "unit": "images" if kind == "synthesis" else "epochs",
            "per_second": None,
            "eta_seconds": None,
        },
        "metrics": {},
        "result": None,
        "error": None,
        "retry_at": None,
        "waiting_for": None,
        "created_at": _QUEUED,
        "started_at": None,
        "finished_at": None,
        "links": {"self": here, **below},
    } | fields


def _ended(kind: str, status: str, **fields: Any) -> Json:
    return _job(kind, status, started_at=_STARTED, finished_at=_ENDED, **fields)


_LOST: Final = {"code": "worker_lost", "message": "the worker died; retry goes on from here", "retryable": True}
_MADE: Final = {"synthesis": {"dataset": IDS["ds"]}, "training": {"model": IDS["mdl"]}}

_DATASET: Final = _member(
    IDS["ds"],
    status="ready",
    num_samples=_synthesis.num_samples,
    num_classes=10,
    image_size=32,
    in_chans=1,
    classes=[{"index": index, "name": name, "samples": 200} for index, name in enumerate(_DIGITS)],
    shards=[
        {
            "name": "train-000000.tar",
            "bytes": 2_048_000,
            "sha256": _SHA256,
            "samples": 2000,
            "classes": dict.fromkeys(_DIGITS, 200),
        }
    ],
    prefix=f"datasets/{IDS['ds']}",
    teacher=TEACHER_ID,
    teacher_sha256=_SHA256,
    spec=_synthesis.model_dump(mode="json"),
    quality={"teacher_accuracy": 0.998},
    ended_early=None,
    job=SYNTHESIS_ID,
    seed=1,
    shared=False,
)
_MODEL: Final = _member(
    IDS["mdl"],
    architecture=_training.student.architecture,
    num_classes=10,
    in_chans=1,
    image_size=32,
    class_names=_DIGITS,
    accuracy=None,
    dataset=IDS["ds"],
    teacher=TEACHER_ID,
    run=IDS["run"],
    spec=_training.model_dump(mode="json"),
    files=[{"name": "model.safetensors", "bytes": 3_400_000, "sha256": _SHA256}],
    shared=False,
)
_QUOTAS: Final = {
    "requests_per_minute": 600,
    "queued_jobs": 20,
    "images_per_day": 100_000,
    "bytes_per_day": 10_000_000_000,
}
_KEY_REQUEST: Final[Json] = {"name": "nightly", "scopes": ["submit"], "quotas": _QUOTAS}
_KEY: Final[Json] = {
    "id": IDS["key"],
    **_KEY_REQUEST,
    "created_at": _QUEUED,
    "expires_at": None,
    "revoked_at": None,
}
_SECRET: Final = "dearkd_" + "x" * 43
_AUDITED: Final = {
    "id": IDS["aud"],
    "at": _QUEUED,
    "key": IDS["key"],
    "key_name": "nightly",
    "address": "192.0.2.7",
    "method": "POST",
    "path": "/v1/synthesis-jobs",
    "status": 202,
    "resource": f"/v1/synthesis-jobs/{SYNTHESIS_ID}",
    "request_id": "3f1c9a5e0b7d2468",
}
_CHECK: Final = {
    "id": IDS["chk"],
    "teacher": TEACHER_ID,
    "dataset": IDS["ds"],
    "status": "queued",
    "created_at": _QUEUED,
    "error": None,
}
_FIGURES: Final = {
    "status": "succeeded",
    "images": 1797,
    "top1": 0.981,
    "top5": 0.999,
    "expected_calibration_error": 0.012,
    "mean_confidence": 0.978,
    "classes": [{"index": 0, "name": "0", "images": 178, "top1": 0.994}],
    "diagnosis": {"trials": [], "together": []},
}
_LIKELY: Final = [
    {"class": digit, "name": str(digit), "probability": probability}
    for digit, probability in ((7, 0.95), (9, 0.03), (1, 0.01), (2, 0.006), (3, 0.004))
]


def _page(*members: Json) -> Json:
    return {"data": list(members), "has_more": False}


def _stored_page(*members: Json) -> Json:
    return _page(*members) | {"unreadable": []}


_EVENT: Final = {"id": "1772357460000-0", "at": _STARTED, "type": "status", "data": {"status": "running"}}


def _of_jobs(collection: str, kind: str, posted: Json, plan: Json) -> tuple[dict[str, Json], dict[str, Json]]:
    """Bodies and answers of one kind of job."""
    delivery = {
        "id": f"msg_{IDS['syn' if kind == 'synthesis' else 'run']}_1",
        "event": "succeeded",
        "created_at": _ENDED,
        "state": "delivered",
        "attempts": [{"at": _ENDED, "seconds": 0.2, "status": 204, "error": None}],
        "next_attempt_at": None,
    }
    prioritised = _job(kind, "queued")["spec"] | {"priority": "high"}
    bodies = {
        f"{collection}.create": posted,
        f"{collection}.retry": {"from": "last"},
        f"{collection}.priority": {"priority": "high"},
    }
    answers = {
        f"{collection}.list": _stored_page(_ended(kind, "succeeded", result=_MADE[kind])),
        f"{collection}.create": _job(kind, "queued" if kind == "synthesis" else "blocked"),
        f"{collection}.create 200": plan,
        f"{collection}.get": _ended(kind, "failed", error=_LOST),
        f"{collection}.cancel": _job(kind, "canceling", started_at=_STARTED),
        f"{collection}.retry": _job(kind, "queued", attempt=2),
        f"{collection}.pause": _job(kind, "paused", started_at=_STARTED),
        f"{collection}.resume": _job(kind, "queued", started_at=_STARTED),
        f"{collection}.priority": _job(kind, "queued") | {"spec": prioritised},
        f"{collection}.events": _page({**_EVENT}),
        f"{collection}.deliveries": _page(delivery),
        f"{collection}.deliveries.redeliver": {**delivery, "state": "pending", "next_attempt_at": _ENDED},
    }
    return bodies, answers


_SYNTHESIS_BODIES, _SYNTHESIS_ANSWERS = _of_jobs(
    "synthesis_jobs",
    "synthesis",
    _SYNTHESIS,
    {
        "spec": _synthesis.model_dump(mode="json"),
        "teacher_passes": _synthesis.teacher_passes,
        "images": _synthesis.num_samples,
        "least_images": _synthesis.least_samples,
        "forecasts": [],
        "shards": _synthesis.num_shards,
        "estimated_bytes": _synthesis.estimated_bytes(_teacher),
        "student": None,
    },
)
_trained = _facts.trained_images(_training.fraction, _training.holdout).expected
_TRAINING_BODIES, _TRAINING_ANSWERS = _of_jobs(
    "training_runs",
    "training",
    _TRAINING,
    {
        "spec": _training.model_dump(mode="json"),
        "images": _trained,
        "epochs": _training.epochs,
        "steps": _training.epochs * -(-_trained // _training.batch_size),
    },
)

BODIES: Final[Mapping[str, Json]] = {
    "teachers.create": {**_DESCRIPTION, "prefix": "shared/digits/teacher.safetensors"},
    "teachers.checks.create": {"dataset": IDS["ds"], "images": 2000},
    "datasets.create": {"prefix": "shared/digits", "name": "digits"},
    **_SYNTHESIS_BODIES,
    **_TRAINING_BODIES,
    "keys.create": {**_KEY_REQUEST, "scopes": ["admin"]},
    "keys.rotate": {"grace_seconds": 3600},
}
"""Bodies in JSON by operation."""

FORMS: Final[Mapping[str, Json]] = {"teachers.create": {"teacher": _DESCRIPTION, "weights": "(a safetensors file)"}}
"""Bodies in multipart/form-data by operation."""

ANSWERS: Final[Mapping[str, Json]] = {
    "health.alive": {"status": "alive"},
    "health.ready": {"status": "ready", "workers": {"synth": 1, "inspect": 1, "trainer": 1}},
    "teachers.create": _TEACHER,
    "teachers.create 202": _REGISTERING,
    "teachers.list": _stored_page(_TEACHER),
    "teachers.get": _TEACHER,
    "teachers.checks.create": _CHECK,
    "teachers.checks.get": _CHECK | _FIGURES,
    **_SYNTHESIS_ANSWERS,
    **_TRAINING_ANSWERS,
    "training_runs.metrics": _page(
        {"id": "1", "epoch": 1, "stage": 1, "loss": 1.52, "learning_rate": 0.0003, "images_per_second": 410.0},
        {"id": "2", "epoch": 2, "stage": 1, "loss": 1.07, "learning_rate": 0.0007, "images_per_second": 412.5},
    ),
    "training_runs.checkpoints": _page(
        {
            "id": CHECKPOINT_ID,
            "epoch": 2,
            "stage": 1,
            "step": 64,
            "created_at": _ENDED,
            "bytes": 13_700_000,
            "metrics": {"epoch": 2, "stage": 1, "loss": 1.07, "learning_rate": 0.0007, "eval_top1": 0.61},
            "files": [{"name": "checkpoint.pt", "bytes": 13_700_000, "sha256": _SHA256}],
        }
    ),
    "events.list": _page({**_EVENT, "job": SYNTHESIS_ID}),
    "datasets.create": _DATASET,
    "datasets.create 202": {**_REGISTERING, "id": IDS["ds"]},
    "datasets.list": _stored_page(_DATASET),
    "datasets.get": _DATASET,
    "models.list": _stored_page(_MODEL),
    "models.get": _MODEL,
    "models.predict": {"student": _LIKELY, "teacher": _LIKELY},
    **{
        f"{collection}.{verb}": {**resource, "shared": verb == "share"}
        for collection, resource in (("teachers", _TEACHER), ("datasets", _DATASET), ("models", _MODEL))
        for verb in ("share", "unshare")
    },
    "keys.create": {**_KEY, "key": _SECRET},
    "keys.list": _page(_KEY),
    "keys.self": {
        **{name: _KEY[name] for name in ("id", "name", "quotas", "expires_at")},
        "scopes": ["read", "submit"],
        "used_today": {"images": 2000, "bytes": 2_100_000},
    },
    "keys.get": _KEY,
    "keys.rotate": {**_KEY, "key": _SECRET},
    "keys.revoke": {**_KEY, "revoked_at": _ENDED},
    "audit.list": _page(_AUDITED),
}
"""Answers in JSON by operation, with the status behind it where it has another answer too."""


def add(operation: Json) -> None:
    """Put the examples of an operation into its schema."""
    name = operation["operationId"]
    body = operation.get("requestBody", {}).get("content", {})
    for media_type, found in (("application/json", BODIES), ("multipart/form-data", FORMS)):
        if media_type in body and name in found:
            body[media_type]["example"] = found[name]
    for status, answer in operation["responses"].items():
        content = answer.get("content", {})
        example = ANSWERS.get(f"{name} {status}", ANSWERS.get(name))
        if example is not None and status.startswith("2") and "application/json" in content:
            content["application/json"]["example"] = example
