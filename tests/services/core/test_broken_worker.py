"""A worker that cannot start its task: jobs must fail with the cause, not be woken for ever."""

import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from dearkd.errors import DearKDError
from dearkd.identifiers import new_id
from dearkd.jobs.deaths import is_near_limit
from dearkd.jobs.inspections import Inspections, Ticket
from dearkd.jobs.ledger import Ledger
from dearkd.settings import Settings
from dearkd.work.attempt import HUNG, slow_step_seconds
from dearkd.work.worker import exit_clause
from tests.support.ledger_steps import synthesis
from tests.support.services import environment, eventually, process
from tests.support.specs import training_spec

pytestmark = [pytest.mark.services, pytest.mark.timeout(600)]

WORKER = "import sys; from dearkd.work.worker import main; sys.exit(main('synth'))"


@pytest.mark.parametrize(
    ("module", "code", "cause"),
    [
        (
            "dearkd_synth/service/job.py",
            "import a_package_that_is_not_there",
            "No module named 'a_package_that_is_not_there'",
        ),
        ("dearkd_synth/service/job.py", "import os; os.abort()", "was killed by SIGABRT"),
    ],
    ids=["does not import", "dies as it is imported"],
)
def test_a_task_that_cannot_begin_fails_its_job_with_the_cause(
    ledger: Ledger, settings: Settings, tmp_path: Path, module: str, code: str, cause: str
) -> None:
    broken = tmp_path / "broken" / module
    broken.parent.mkdir(parents=True)
    for folder in (broken.parent, broken.parents[1]):
        (folder / "__init__.py").touch()
    broken.write_text(code)
    job = synthesis(ledger.store, shards=1)
    env = environment(settings, PYTHONPATH=f"{tmp_path / 'broken'}:{os.environ.get('PYTHONPATH', '')}")
    with process("-c", WORKER, env=env, log=tmp_path / "worker.log"):
        eventually(lambda: ledger.store.get(job.id).terminal)
    ended = ledger.store.get(job.id)
    assert ended.error is not None
    assert (ended.status, ended.error.code, ended.error.retryable) == ("failed", "worker_died", True)
    assert cause in ended.error.message
    assert "Its log ends:" in ended.error.message
    assert ledger.redis.zcard("dearkd:leases") == 0
    assert ledger.store.retry(job.id).status == "queued"


def test_an_inspector_that_cannot_begin_answers_on_the_ticket(
    ledger: Ledger, settings: Settings, tmp_path: Path
) -> None:
    broken = tmp_path / "broken" / "torch"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('no such build')")
    inspections = Inspections(ledger.redis, ledger.store.storage)
    identifier = new_id("tch")
    inspections.open(Ticket(id=identifier, request={"spec": {}, "sha256": "", "bytes": 0}))
    env = environment(settings, PYTHONPATH=f"{tmp_path / 'broken'}:{os.environ.get('PYTHONPATH', '')}")

    def refusal() -> DearKDError | None:
        ticket = inspections.get(identifier)
        return ticket.refusal.error if ticket is not None and ticket.refusal is not None else None

    with process("-c", WORKER, env=env, log=tmp_path / "worker.log"):
        eventually(refusal)
    error = refusal()
    assert error is not None
    assert (error.code, "no such build" in error.message) == ("worker_died", True)


HANGING = """
import subprocess, sys, time
import dearkd.work.attempt
from dearkd.work.worker import drain
dearkd.work.attempt.STOP_SECONDS = 1.0
def hang(attempt):
    child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    print(child.pid, flush=True)
    time.sleep(1000)
drain("synthesis", hang)
"""


def test_what_makes_no_step_for_too_long_is_ended_as_hung(ledger: Ledger, settings: Settings, tmp_path: Path) -> None:
    job = synthesis(ledger.store, shards=1)
    # The second thread beats on, so that the lease alone would keep it for ever.
    impatient = settings.model_copy(update={"heartbeat_seconds": 0.2, "stall_seconds": 0.1})
    said = tmp_path / "said.log"
    with process("-c", HANGING, env=environment(impatient), log=said) as hanging:
        eventually(lambda: hanging.poll() is not None)
    assert hanging.returncode == HUNG
    child = int(said.read_text())
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE
    assert "made no step" in ledger.log.read(job.id)
    assert "DEARKD_STALL_SECONDS" in exit_clause(HUNG)


@pytest.mark.parametrize(
    ("share", "aborted", "expected"), [(0.9, False, True), (0.7, False, False), (0.7, True, True), (0.4, True, False)]
)
def test_memory_is_blamed_for_an_end_near_its_limit_and_for_an_abort_farther_from_it(
    share: float, aborted: bool, expected: bool
) -> None:
    """Native code that is refused a large piece at once aborts: seen of 0.3 GiB, where 0.43 were allowed."""
    limit = 2**30
    usage = SimpleNamespace(ru_maxrss=int(share * limit) // (1 if sys.platform == "darwin" else 1024))
    assert is_near_limit(usage, limit, aborted=aborted) == expected
    assert not is_near_limit(None, limit, aborted=aborted)


def test_the_time_that_a_step_may_take_grows_with_its_size(ledger: Ledger) -> None:
    small = synthesis(ledger.store, shards=1)
    spec = {**small.spec, "batch_size": 4 * small.spec["batch_size"]}
    large = small.model_copy(update={"spec": spec})
    assert slow_step_seconds(large) == pytest.approx(4 * slow_step_seconds(small))
    run = ledger.store.create_training(training_spec("ds"), epochs=1, waits_for=None)
    side = run.spec["student"]["image_size"]
    assert slow_step_seconds(run) == pytest.approx(10 * run.spec["batch_size"] * side**2 / 224**2)


def test_what_does_not_notice_a_cancel_is_killed_with_all_it_started(
    ledger: Ledger, settings: Settings, tmp_path: Path
) -> None:
    job = synthesis(ledger.store, shards=1)
    said = tmp_path / "said.log"
    quick = settings.model_copy(update={"heartbeat_seconds": 0.2, "lease_seconds": 3.0})
    with process("-c", HANGING, env=environment(quick), log=said) as hanging:
        eventually(lambda: said.read_text().strip())
        child = int(said.read_text())
        assert psutil.pid_exists(child)
        assert ledger.store.cancel(job.id).status == "canceling"
        eventually(lambda: hanging.poll() is not None)
        assert hanging.returncode == -signal.SIGKILL
    eventually(lambda: not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE)

    def ended() -> bool:
        ledger.reap(max_deaths=3)
        return ledger.store.get(job.id).status == "canceled"

    eventually(ended)
    assert "did not stop within" in ledger.log.read(job.id)
