"""What a room does not know: imports are import-linter's, words are here."""

from tests.support.documents import ROOT


def test_what_runs_jobs_knows_no_option_of_a_job() -> None:
    """Units come with the spec, as names in groups: that one of them trains a student is not for the ledger to know."""
    files = [path for path in (ROOT / "shared/dearkd/jobs").rglob("*") if path.suffix in (".py", ".lua")]
    assert len(files) > 20
    assert [path.name for path in files if "student" in path.read_text(encoding="utf-8").lower()] == []
