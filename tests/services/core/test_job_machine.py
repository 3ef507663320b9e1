"""No sequence of client calls, worker steps and deaths breaks a job: tried by Hypothesis against a model of it."""

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, precondition, rule

from dearkd.errors import Conflict, LostLease
from dearkd.jobs.ledger import Claim, Ledger
from dearkd.jobs.model import TERMINAL, TRANSITIONS, JobError
from dearkd.specs.budget import EndedEarly
from dearkd.work.worker import open_ledger
from tests.support.ledger_steps import ADAPTIVE, expire_all, let_retries_begin, mark, synthesis
from tests.support.specs import training_spec

SHARDS = 3
MAX_RETRIES = 2
OWNER = "0123456789abcdef"
FIRST = {"0", "2"}
"""The shards that a job's own student is trained on, where it trains one."""


class JobMachine(RuleBasedStateMachine):
    """The model: which units are done, who holds what by the model's own books, and what the status was last."""

    ledger: Ledger
    trains_a_student = False
    claims: Bundle[Claim] = Bundle("claims")

    def __init__(self) -> None:
        super().__init__()
        self.ledger.redis.flushall()
        self.store = self.ledger.store
        fields = ADAPTIVE if self.trains_a_student else {}
        self.job = synthesis(self.store, SHARDS, owner=OWNER, parallelism=2, max_retries=MAX_RETRIES, **fields).id
        self.units = SHARDS + self.trains_a_student
        self.run = self.store.create_training(training_spec(self.job), epochs=1, waits_for=self.job).id
        self.status = "queued"
        self.done: set[str] = set()
        self.held: dict[str, Claim] = {}
        self.publications = 0

    @rule(target=claims)
    def claim(self) -> object:
        waits = self.store.get(self.job).retry_at is not None
        found = self.ledger.claim("synthesis", 60.0)
        if found is None:
            return multiple()
        assert not waits
        assert found.unit not in self.done
        assert found.unit not in self.held
        assert found.unit != "finish" or len(self.done) == self.units
        if self.trains_a_student:
            assert "student" not in self.held
            if found.unit == "student":
                assert self.done >= FIRST
                assert not self.held
            elif found.unit not in FIRST:
                assert "student" in self.done
        self.held[found.unit] = found
        assert len(self.held) <= 2
        return found

    def _holds(self, claim: Claim) -> bool:
        return self.held.get(claim.unit) == claim

    @rule(claim=claims)
    def work(self, claim: Claim) -> None:
        """Finish what was claimed: only the current holder's work may count."""
        holds = self._holds(claim)
        try:
            if claim.unit == "finish":
                self.ledger.complete(claim, {"dataset": "ds"})
                self.publications += 1
                self.held.clear()
            else:
                mark(self.ledger, claim)
                self.done.add(claim.unit)
                del self.held[claim.unit]
        except LostLease:
            assert not holds
        else:
            assert holds

    @rule(claim=claims)
    def hand_back(self, claim: Claim) -> None:
        self.ledger.release(claim)
        if self._holds(claim):
            del self.held[claim.unit]

    @rule(claim=claims, retryable=st.booleans())
    def fail(self, claim: Claim, retryable: bool) -> None:
        error = JobError(code="x", message="x", retryable=retryable)
        again = retryable and self._retries() < MAX_RETRIES and self.status != "canceling"
        try:
            self.ledger.fail(self.job, error, claim)
        except LostLease:
            assert not self._holds(claim)
        else:
            assert self._holds(claim)
            self.held.clear()
            job = self.store.get(self.job)
            waiting = "paused" if self.status == "paused" else "queued"
            assert (job.status, job.error) == (
                waiting if again else "failed",
                None if job.status == "paused" else error,
            )
            assert (job.retry_at is not None) == (job.status == "queued")

    def _retries(self) -> int:
        return int(self.ledger.redis.hget(f"dearkd:job:{self.job}", "retries") or 0)

    @rule()
    def the_next_try_comes(self) -> None:
        let_retries_begin(self.ledger)
        assert self.store.get(self.job).retry_at is None

    @rule()
    def all_workers_die(self) -> None:
        expire_all(self.ledger)
        self.ledger.reap(max_deaths=3)
        self.held.clear()

    @rule()
    def cancel(self) -> None:
        try:
            status = self.store.cancel(self.job).status
        except Conflict:
            assert self.status in TERMINAL
        else:
            assert status == ("canceling" if self.held else "canceled")

    @rule()
    def pause(self) -> None:
        try:
            status = self.store.pause(self.job).status
        except Conflict:
            assert self.status in {*TERMINAL, "canceling"}
        else:
            assert status == "paused"
            assert self.ledger.claim("synthesis", 60.0) is None, "a paused job takes no worker"

    @rule()
    def resume(self) -> None:
        try:
            status = self.store.resume(self.job).status
        except Conflict:
            assert self.status != "paused"
        else:
            assert status == ("running" if self.held else "queued")

    @precondition(lambda self: self.status in ("failed", "canceled"))
    @rule()
    def retry(self) -> None:
        self.store.retry(self.job)
        self.held.clear()

    @invariant()
    def holds(self) -> None:
        job = self.store.get(self.job)
        reachable = {self.status}
        for _ in range(3):
            reachable |= {target for status in reachable for target in TRANSITIONS[status]}
        assert job.status in reachable
        self.status = job.status
        assert set(self.ledger.payloads(self.job)) == self.done
        assert self.publications <= 1
        assert (job.status == "succeeded") == (self.publications == 1)
        assert (job.finished_at is not None) == (job.status in TERMINAL)
        # One job alone is there, so it is in no index but those of its status: of all, and of its owner.
        index = f"dearkd:jobs:synthesis:{job.status}"
        indexes = {key.decode() for key in self.ledger.redis.keys("dearkd:jobs:synthesis:*")}
        assert indexes == {index, f"{index}@{OWNER}"}
        leases = self.ledger.redis.zcard("dearkd:leases")
        assert leases == len(self.held)
        if job.status in TERMINAL:
            assert leases == 0
        if job.status == "canceling":
            assert self.held
        assert self._retries() <= MAX_RETRIES
        waits = job.retry_at is not None
        assert self.ledger.redis.zrange("dearkd:retries", 0, -1) == [self.job.encode()] * waits
        if waits:
            assert (job.status, job.error is not None, self.held) == ("queued", True, {})
            assert self.ledger.redis.zscore("dearkd:open:synthesis", self.job) is None
        elif job.status != "failed":
            assert job.error is None
        run = self.store.get(self.run)
        assert run.status == {"succeeded": "queued", "failed": "failed", "canceled": "failed"}.get(
            job.status, run.status
        )

    def teardown(self) -> None:
        """From wherever it stands, the job can be brought to its end: nothing accepted is lost."""
        expire_all(self.ledger)
        self.ledger.reap(max_deaths=100)
        if self.store.get(self.job).status in ("failed", "canceled"):
            self.store.retry(self.job)
        if self.store.get(self.job).status == "paused":
            self.store.resume(self.job)
        let_retries_begin(self.ledger)
        while (found := self.ledger.claim("synthesis", 60.0)) is not None:
            if found.unit == "finish":
                self.ledger.complete(found, {"dataset": "ds"})
            else:
                mark(self.ledger, found)
        assert self.store.get(self.job).status == "succeeded"


class StudentMachine(JobMachine):
    """The same of a job that trains a student between its first shards and the others."""

    trains_a_student = True

    def __init__(self) -> None:
        """One of the first shards is done already, or few sequences would come as far as the student."""
        super().__init__()
        found = self.ledger.claim("synthesis", 60.0)
        assert found is not None
        mark(self.ledger, found)
        self.done.add(found.unit)
        self.status = "running"


class ConcludedMachine(JobMachine):
    """The same of a job of which the rest may be left out at any claim of a shard but the first."""

    @precondition(lambda self: any(unit not in ("0", "finish") for unit in self.held))
    @rule(data=st.data())
    def conclude(self, data: st.DataObject) -> None:
        first = data.draw(st.sampled_from(sorted(unit for unit in self.held if unit not in ("0", "finish"))))
        ended = EndedEarly(reason="budget", planned=10 * SHARDS, made=10 * int(first), detail="x")
        rest = {str(index) for index in range(int(first), SHARDS)}
        begun = rest & (self.done | self.held.keys())
        concluded = self.ledger.conclude(self.held[first], first, ended)
        assert concluded == (begun == {first})
        if concluded:
            del self.held[first]
            self.units = int(first)
            assert self.ledger.ended_early(self.job) == ended

    @invariant()
    def leaves_out_nothing_that_is_done(self) -> None:
        assert len(self.done) <= self.units
        assert self.done | (self.held.keys() - {"finish"}) <= {str(index) for index in range(self.units)}


@pytest.mark.parametrize("machine", [JobMachine, StudentMachine, ConcludedMachine])
def test_no_sequence_of_steps_breaks_a_job(settings: object, machine: type[JobMachine]) -> None:
    machine.ledger = open_ledger(settings)  # the fixture's type is Settings
    machine.TestCase.settings = _HYPOTHESIS
    case = machine.TestCase()
    case.runTest()


_HYPOTHESIS = settings(
    max_examples=60, stateful_step_count=25, suppress_health_check=list(HealthCheck), derandomize=True
)
