"""The rules that `dearkd doctor` tries on a store: a real one keeps them, and each is seen to be broken where it is."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from dearkd.errors import Unavailable
from dearkd.local.doctor import check_storage
from dearkd.local.store_rules import RULES, try_rules
from dearkd.settings import Settings
from dearkd.storage.marker import KEY
from dearkd.storage.objects import Storage
from tests.support.rclone import rclone
from tests.support.s3 import ACCESS_KEY, SECRET_KEY, S3Server
from tests.support.stand_in_bucket import FAULTS, StandInBucket, stand_in_bucket

ONCE = "creates an object only once"
LISTING = "lists what was written, and not what was deleted"
ATOMIC = "lets one win of several that create an object at once"
BROKEN_BY = dict(zip(FAULTS, RULES, strict=True))


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInBucket]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "any")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "any")
    with stand_in_bucket() as found:
        yield found


def settings_of(bucket: StandInBucket) -> Settings:
    return Settings(storage_url="s3://dearkd/rules", s3_endpoint=bucket.endpoint)


def test_a_store_that_keeps_all_rules_is_told_so_rule_by_rule(bucket: StandInBucket) -> None:
    (_, *found) = check_storage(settings_of(bucket))
    assert [(one.state, one.detail) for one in found] == [("ok", rule.promise) for rule in RULES]
    assert list(bucket.objects) == [f"rules/{KEY}"], "it leaves nothing but the marker of a storage"
    assert not bucket.uploads


@pytest.mark.parametrize("fault", FAULTS)
def test_each_rule_is_seen_to_be_broken(bucket: StandInBucket, fault: str) -> None:
    storage = Storage.open(settings_of(bucket))
    storage.ping()
    bucket.fault = fault
    (found,) = try_rules(storage, (BROKEN_BY[fault],))
    assert found.detail.startswith(f"{BROKEN_BY[fault].promise}: no; "), found
    assert found.remedy
    # Nothing is lost by a race that two win: leases come first, and both wrote the same.
    assert found.state == ("remark" if fault == "looks before it writes" else "problem"), found


@pytest.mark.parametrize(
    ("url", "proxy", "says"),
    [
        ("https://xn--\x80/object?secret", "", "a signed URL does not answer: InvalidURL"),
        ("https://dearkd..example/object?secret", "", "a signed URL does not answer: UnicodeError"),
        (f"https://{'a' * 64}.example/object?secret", "", "a signed URL does not answer: UnicodeError"),
        ("http://dearkd.example/object?secret", "gopher://proxy:1", "ALL_PROXY names cannot be used: .*gopher"),
    ],
)
def test_a_signed_url_that_cannot_be_asked_for_breaks_its_rule_alone(
    bucket: StandInBucket, monkeypatch: pytest.MonkeyPatch, url: str, proxy: str, says: str
) -> None:
    storage = Storage.open(settings_of(bucket))
    storage.ping()
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, proxy)
    monkeypatch.setattr(storage, "presign", lambda key, seconds: url)
    (found,) = try_rules(storage, (RULES[-1],))
    assert re.search(says, found.detail), found
    assert "secret" not in found.detail


def test_a_store_that_lets_objects_be_created_twice_is_refused_before_anything_is_lost(bucket: StandInBucket) -> None:
    bucket.fault = "creates twice"
    storage = Storage.open(settings_of(bucket))
    with pytest.raises(Unavailable, match="If-None-Match") as refused:
        storage.create("datasets/x/train-000000.tar", b"shard")
    assert refused.value.code == "storage_unavailable"
    assert list(bucket.objects) == [f"rules/{KEY}"]


def test_a_store_that_lists_objects_twice_breaks_nothing(bucket: StandInBucket) -> None:
    bucket.fault = "lists twice"
    settings = settings_of(bucket)
    (_, *found) = check_storage(settings)
    assert {one.state for one in found} == {"ok"}, found
    storage = Storage.open(settings)
    for key in ("datasets/b/train-000000.tar", "datasets/a/train-000000.tar", "datasets/a/train-000001.tar"):
        storage.create(key, key.encode())
    listed = [stored.key for stored in storage.objects("datasets")]
    assert listed == [f"datasets/{name}" for name in ("a/train-000000.tar", "a/train-000001.tar", "b/train-000000.tar")]
    assert storage.children("datasets") == ["a", "b"]
    storage.delete_prefix("datasets")
    assert list(bucket.objects) == [f"rules/{KEY}"]


@pytest.mark.services
def test_servers_that_check_signatures_keep_the_rules_and_nothing_stays(
    each_s3: S3Server, request: pytest.FixtureRequest
) -> None:
    settings = each_s3.settings("rules", Settings())
    (_, *found) = check_storage(settings)
    assert [one.detail.partition(":")[0] for one in found] == [rule.promise for rule in RULES]
    assert not [one for one in found if one.state == "problem"]
    remarks = [one.detail.partition(":")[0] for one in found if one.state == "remark"]
    if request.node.callspec.params["each_s3"] == "seaweed":
        assert remarks == [LISTING], "it creates atomically, but forgets an emptied folder only after minutes"
    else:
        # Swift looks before it writes: how many win a race there is a matter of chance.
        assert remarks in ([], [ATOMIC])
    assert [stored.key for stored in Storage.open(settings).objects("")] == [KEY]


@pytest.mark.services
def test_a_server_that_checks_signatures_and_breaks_rules_is_told_so_and_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    with rclone(tmp_path) as server:
        settings = server.settings("rules", Settings())
        found = {one.detail.partition(":")[0]: one for one in check_storage(settings)}
        broken = {promise for promise, one in found.items() if one.state == "problem"}
        assert broken == {ONCE, ATOMIC, "reads ranges of bytes", "signs URLs for downloads"}
        assert "If-None-Match" in found[ONCE].detail
        assert "of a range it answers 200" in found["signs URLs for downloads"].detail
        with pytest.raises(Unavailable, match="If-None-Match"):
            Storage.open(settings).create("datasets/x/train-000000.tar", b"shard")
        assert [stored.key for stored in Storage.open(settings).objects("")] == [KEY]
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        with pytest.raises(Unavailable, match="refused its credentials"):
            Storage.open(settings).read(KEY)


def test_a_folder_keeps_the_rules(tmp_path: Path) -> None:
    storage = Storage.open(Settings(storage_url=f"file://{tmp_path}"))
    found = list(try_rules(storage))
    assert {one.state for one in found} == {"ok"}, found
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [KEY]
