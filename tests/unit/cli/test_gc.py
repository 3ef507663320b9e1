"""`dearkd gc`: what it would remove, and what it removes."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from dearkd.cli import main
from dearkd.identifiers import new_id, sibling
from dearkd.jobs.model import Job, Progress
from dearkd.settings import Settings
from dearkd.storage.objects import Storage


def test_a_dry_run_only_says_what_would_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"file://{tmp_path}"
    monkeypatch.setenv("DEARKD_STORAGE_URL", url)
    storage = Storage.open(Settings(storage_url=url))
    job = new_id("syn")
    now = datetime.now(UTC)
    failed = Job(
        id=job,
        kind="synthesis",
        status="failed",
        spec={},
        progress=Progress(unit="images"),
        created_at=now,
        finished_at=now - timedelta(days=1),
    )
    shard = f"datasets/{sibling(job, 'ds')}/train-000000.tar"
    storage.put(shard, b"12345")
    storage.put(f"jobs/{job}/final.json", failed.model_dump_json().encode())

    def gc(*arguments: str) -> object:
        with pytest.raises(SystemExit) as ended:
            main(["gc", "--json", *arguments])
        assert ended.value.code == 0
        return json.loads(capsys.readouterr().out)

    assert gc() == {"removed": True, "objects": [], "bytes": 0}, "a week is not over"
    monkeypatch.setenv("DEARKD_RETENTION", "3600")
    found = [{"key": shard, "bytes": 5, "reason": f"left by {job}, which failed"}]
    assert gc("--dry-run") == {"removed": False, "objects": found, "bytes": 5}
    assert storage.exists(shard)
    assert gc() == {"removed": True, "objects": found, "bytes": 5}
    assert not storage.exists(shard)
    assert gc() == {"removed": True, "objects": [], "bytes": 0}
