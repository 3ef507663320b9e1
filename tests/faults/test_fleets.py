"""Real workers of which none has what a job needs: who posted it is told, and it goes on once one has."""

from contextlib import ExitStack
from pathlib import Path

import pytest

from dearkd.jobs.ledger import Ledger
from dearkd.jobs.queue import alive
from dearkd.local.doctor import check_redis
from dearkd.settings import Settings
from dearkd.specs import TrainingSpec
from tests.faults.test_listener import worker
from tests.services.core.conftest import ledger, redis_url, settings
from tests.support.ledger_steps import synthesis
from tests.support.services import eventually, serving
from tests.support.specs import FACTS, TEACHER

__all__ = ["ledger", "redis_url", "settings"]

pytestmark = [pytest.mark.faults, pytest.mark.services, pytest.mark.timeout(300)]


def test_a_job_says_which_worker_it_waits_for_until_there_is_one(
    ledger: Ledger, settings: Settings, tmp_path: Path
) -> None:
    job = synthesis(ledger.store, 1, resources={"memory_bytes": 2**40})
    small = settings.model_copy(update={"memory_bytes": 2**30})
    with serving(settings, tmp_path) as api:

        def shown(field: str) -> str:
            return api.http.get(f"/v1/synthesis-jobs/{job.id}").json()[field] or ""

        assert "none listens on the 'synth' queue" in shown("waiting_for")
        with worker("synth", small, tmp_path / "small"):
            eventually(lambda: "at least 1024.0 GiB: those there are have" in shown("waiting_for"))
            assert ", 1.0 GiB and" in shown("waiting_for")
            assert shown("status") == "queued"
            page = api.http.get(f"/jobs/{job.id}").text
            assert "It waits for a worker with at least 1024.0 GiB" in page
            told = [finding.detail for finding in check_redis(settings) if finding.subject == "workers"]
            assert len(told) == 1
            assert told[0].startswith("on the queue 'synth': ")
            assert ", 1.0 GiB and" in told[0]
            with worker("synth", settings.model_copy(update={"memory_bytes": 2**40}), tmp_path / "large"):
                eventually(lambda: shown("status") == "failed")  # as its work ends here
                assert ledger.store.get(job.id).error.code == "done"
                assert shown("waiting_for") == ""


def test_those_that_cannot_take_a_job_do_not_keep_it_from_the_one_that_can(
    ledger: Ledger, settings: Settings, tmp_path: Path
) -> None:
    """Redis wakes whoever has waited longest: with one wake-up a round that might be one of the three each time."""
    small = settings.model_copy(update={"memory_bytes": 2**30})
    large = settings.model_copy(update={"memory_bytes": 2**40})
    with ExitStack() as fleet:
        for number in range(3):
            fleet.enter_context(worker("synth", small, tmp_path / f"small-{number}"))
        fleet.enter_context(worker("synth", large, tmp_path / "large"))
        eventually(lambda: alive(ledger.redis, "synth") == 4)
        for _ in range(3):
            job = synthesis(ledger.store, 1, resources={"memory_bytes": 2**40})
            eventually(lambda job=job: ledger.store.get(job.id).terminal)
            error = ledger.store.get(job.id).error
            assert error is not None
            assert error.code == "done"


def test_a_run_on_ray_waits_for_a_trainer_with_ray_among_those_without(
    ledger: Ledger, settings: Settings, tmp_path: Path
) -> None:
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    spec = TrainingSpec.resolve({"dataset": "ds", "engine": "ray", "processes": 4}, FACTS, TEACHER, on_ray=True)
    run = ledger.store.create_training(spec, epochs=1, waits_for=None)
    with ExitStack() as fleet:
        for number in range(2):
            fleet.enter_context(worker("trainer", settings, tmp_path / f"plain-{number}"))
        eventually(lambda: "and no Ray" in (ledger.store.get(run.id).waiting_for or ""))
        assert ledger.store.get(run.id).status == "queued"
        driver = settings.model_copy(update={"ray_address": "127.0.0.1:6379"})
        fleet.enter_context(worker("trainer", driver, tmp_path / "driver"))
        eventually(lambda: ledger.store.get(run.id).terminal)
        error = ledger.store.get(run.id).error
        assert error is not None
        assert error.code == "done"
