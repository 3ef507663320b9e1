"""A job that no worker can take says so in every answer that shows it, from the one that accepts it on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dearkd.jobs.offers import Offer, advertise
from tests.support.api_contents import post_synthesis, put_dataset, put_teacher
from tests.support.pages import get
from tests.support.services import Api

pytestmark = pytest.mark.services

SMALL = Offer(device="cpu", name="small", memory_bytes=2**33, compiler=False)
CARD = Offer(device="cuda", name="card", memory_bytes=2**35, compiler=True)
NOBODY = "none listens on the '{}' queue"
TOLD = "a worker with a GPU: those there are have no GPU, 8.0 GiB and no compiler"


def post_run(api: Api, tmp_path: Path, **spec: Any) -> dict[str, Any]:
    dataset = put_dataset(api, tmp_path, teacher=put_teacher(api))
    answer = api.http.post("/v1/training-runs", json={"dataset": dataset, **spec})
    assert answer.status_code == 202, answer.text
    found: dict[str, Any] = answer.json()
    return found


def answers(api: Api, accepted: dict[str, Any], *, page: str) -> dict[str, Callable[[], str]]:
    """All that shows a queued job: what each says that it waits for."""
    here = accepted["links"]["self"]
    collection, _, identifier = here.rpartition("/")

    def field(answer: Any) -> str:
        return answer["waiting_for"] or ""

    def steered(*words: str) -> str:
        for word in words:
            answer = api.http.post(f"{here}/{word}", json={"priority": "high"} if word == "priority" else None)
            assert answer.status_code == 202, answer.text
        return field(answer.json())

    return {
        "posted": lambda: field(accepted),
        "got": lambda: field(api.http.get(here).json()),
        "waited for": lambda: field(api.http.get(here, params={"wait": 0.1}).json()),
        "listed": lambda: field(api.http.get(collection).json()["data"][0]),
        "given a place": lambda: steered("priority"),
        "resumed": lambda: steered("pause", "resume"),
        "retried": lambda: steered("cancel", "retry"),
        "page": lambda: get(api, f"/{page}/{identifier}").text,
        "list of jobs": lambda: get(api, "/").text,
    }


@pytest.mark.parametrize("page", ["jobs", "runs"])
def test_every_answer_tells_of_a_worker_that_is_not_there(api: Api, tmp_path: Path, page: str) -> None:
    queue = "synth" if page == "jobs" else "train"
    spec = {"resources": {"device": "cuda"}}

    def post() -> dict[str, Any]:
        return post_synthesis(api, **spec) if page == "jobs" else post_run(api, tmp_path, **spec)

    for name, said in answers(api, post(), page=page).items():
        text = said().replace("&#39;", "'")
        assert NOBODY.format(queue) in text, name
    advertise(api.store.redis, queue, SMALL)
    for name, said in answers(api, post(), page=page).items():
        assert TOLD in said(), name
    advertise(api.store.redis, queue, CARD)
    for name, said in answers(api, post(), page=page).items():
        if name != "list of jobs":  # those of before may say it for another two seconds
            assert "a worker with" not in said(), name


def test_what_is_not_queued_waits_for_no_worker(api: Api, tmp_path: Path) -> None:
    advertise(api.store.redis, "synth", SMALL)
    job = post_synthesis(api, resources={"device": "cuda"})
    api.store.redis.hset(f"dearkd:job:{job['id']}", "waiting_for", TOLD)  # as the reaper says it
    here = job["links"]["self"]
    for word, status in (("pause", "paused"), ("cancel", "canceled")):
        answer = api.http.post(f"{here}/{word}").json()
        assert (answer["status"], answer["waiting_for"]) == (status, None)
    blocked = api.http.post("/v1/training-runs", json={"dataset": post_synthesis(api)["id"]}).json()
    assert (blocked["status"], blocked["waiting_for"]) == ("blocked", None)


@pytest.mark.parametrize("altered", ['"cuda"', '{"device": 7}', '{"memory_bytes": "much"}', "[]"])
def test_a_spec_that_was_altered_hides_no_job(api: Api, altered: str) -> None:
    advertise(api.store.redis, "synth", SMALL)
    job = post_synthesis(api)
    api.store.redis.hset(f"dearkd:job:{job['id']}", "spec", f'{{"resources": {altered}}}')
    assert [one["id"] for one in api.http.get("/v1/synthesis-jobs").json()["data"]] == [job["id"]]
