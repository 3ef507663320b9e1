"""A worker that cannot start its task: jobs must fail with the cause, not be woken for ever."""

from pathlib import Path

import pytest
from test_ledger import synthesis

from dearkd.errors import DearKDError
from dearkd.identifiers import new_id
from dearkd.ledger import Ledger
from dearkd.registration import Registrations, Ticket
from dearkd.settings import Settings
from services import environment, eventually, process

pytestmark = [pytest.mark.services, pytest.mark.timeout(600)]

WORKER = "import sys; from dearkd.worker import main; sys.exit(main('synth'))"


@pytest.mark.parametrize(
    ("module", "code", "cause"),
    [
        ("dearkd_synth/job.py", "import a_package_that_is_not_there", "No module named 'a_package_that_is_not_there'"),
        ("dearkd_synth/job.py", "import os; os.abort()", "was killed by SIGABRT"),
    ],
    ids=["does not import", "dies as it is imported"],
)
def test_a_task_that_cannot_begin_fails_its_job_with_the_cause(
    ledger: Ledger, settings: Settings, tmp_path: Path, module: str, code: str, cause: str
) -> None:
    broken = tmp_path / "broken" / module
    broken.parent.mkdir(parents=True)
    broken.with_name("__init__.py").touch()
    broken.write_text(code)
    job = synthesis(ledger.store, shards=1)
    env = environment(settings, PYTHONPATH=str(tmp_path / "broken"))
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
    registrations = Registrations(ledger.redis, ledger.store.storage)
    identifier = new_id("tch")
    registrations.open(Ticket(id=identifier, request={"spec": {}, "sha256": "", "bytes": 0}))
    env = environment(settings, PYTHONPATH=str(tmp_path / "broken"))

    def refusal() -> DearKDError | None:
        ticket = registrations.get(identifier)
        return ticket.refusal.error if ticket is not None and ticket.refusal is not None else None

    with process("-c", WORKER, env=env, log=tmp_path / "worker.log"):
        eventually(refusal)
    error = refusal()
    assert error is not None
    assert (error.code, "no such build" in error.message) == ("worker_died", True)
