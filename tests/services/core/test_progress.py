"""How far a job is and what is left, as told by all who work on it."""

from dearkd.jobs.ledger import Ledger
from dearkd.jobs.store import JobStore
from tests.support.ledger_steps import claim, mark, synthesis


def test_what_is_left_is_told_by_the_rates_of_all_who_work(ledger: Ledger, store: JobStore) -> None:
    job = synthesis(store, parallelism=2)

    def told() -> tuple[int, float | None, float | None]:
        progress = store.get(job.id).progress
        return progress.done, progress.per_second, progress.eta_seconds

    first, second = claim(ledger), claim(ledger)
    ledger.report(first, done=5, per_second=2.0, metrics={})
    assert told() == (5, 2.0, 12.5)
    ledger.report(second, done=4, per_second=1.0, metrics={})
    assert told() == (9, 3.0, 7.0)
    mark(ledger, first)
    ledger.report(second, done=6, per_second=1.0, metrics={})
    assert told() == (16, 1.0, 14.0), "who is done works no more"
    third = claim(ledger)
    ledger.release(second)
    ledger.report(third, done=4, per_second=4.0, metrics={})
    assert told() == (14, 4.0, 4.0), "what was given back has to be made again"
