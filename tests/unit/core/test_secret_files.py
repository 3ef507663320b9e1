"""Secrets by file: what a file must hold, and that a wrong one is never "not given"."""

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import parse_qs, urlsplit

import obstore
import pytest
from pydantic import ValidationError

from dearkd.addresses import StorageAddress
from dearkd.errors import InvalidInput
from dearkd.key_variables import ALL, CHECKED, without_keys
from dearkd.secret_files import MAX_BYTES
from dearkd.settings import SECRETS, Settings, broken_settings
from dearkd.storage.object_stores import open_bucket

REDIS = "redis://:hidden-word@10.0.0.1:6379/3"

WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "no such file"),
    "empty": (lambda path: path.write_bytes(b""), "empty"),
    "blank": (lambda path: path.write_bytes(b" \r\n\n"), "empty"),
    "folder": (lambda path: path.mkdir(), "directory"),
    "two lines": (lambda path: path.write_text("hidden-word-0123\nhidden-word-4567\n"), "more than one line"),
    "NUL": (lambda path: path.write_bytes(b"hidden-word\0-012345"), "control character"),
    "no text": (lambda path: path.write_bytes(b"hidden-word\xff-012345"), "UTF-8"),
    "large": (lambda path: path.write_bytes(b"hidden-word" * MAX_BYTES), "larger than"),
}


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize("ending", ["", "\n", "\r\n", " \n\n"])
def test_a_file_holds_the_setting_with_or_without_a_line_end(tmp_path: Path, name: str, ending: str) -> None:
    (tmp_path / "secret").write_bytes((REDIS + ending).encode())
    settings = Settings(**{f"{name}_file": tmp_path / "secret"})
    assert getattr(settings, name) == REDIS
    assert name in settings.model_fields_set  # by which doctor knows that it was given


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize("case", WRONG)
def test_a_file_that_holds_no_secret_is_refused_in_one_line_that_tells_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, case: str
) -> None:
    write, why = WRONG[case]
    write(tmp_path / "secret")
    monkeypatch.setenv(f"DEARKD_{name.upper()}_FILE", str(tmp_path / "secret"))
    with pytest.raises(ValidationError) as caught:
        Settings()
    (line,) = broken_settings(caught.value)
    assert line.startswith(f"DEARKD_{name.upper()}_FILE is '{tmp_path / 'secret'}': ")
    assert why in line.lower() or why in line
    assert "hidden-word" not in line + str(caught.value)


def test_an_empty_name_of_a_file_is_no_absence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEARKD_API_KEYS_FILE", "")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY_FILE", "")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY", raising=False)  # which a bucket of other tests has set
    with pytest.raises(ValidationError, match="directory"):
        Settings()
    with pytest.raises(InvalidInput, match="directory"):
        open_bucket(StorageAddress.parse("s3://b"), Settings.model_construct(s3_endpoint=None, s3_region=None))


def test_who_gives_a_secret_twice_is_asked_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret").write_text("hidden-word-0123456789")
    monkeypatch.setenv("DEARKD_API_KEYS", "hidden-word-9876543210")
    monkeypatch.setenv("DEARKD_API_KEYS_FILE", str(tmp_path / "secret"))
    with pytest.raises(ValidationError) as caught:
        Settings()
    (line,) = broken_settings(caught.value)
    assert "DEARKD_API_KEYS is set too" in line
    assert "hidden-word" not in line
    monkeypatch.setenv("DEARKD_API_KEYS", "")  # as Compose sets what is not given
    assert Settings().api_keys == "hidden-word-0123456789"


def test_all_wrong_files_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValidationError) as caught:
        Settings(api_keys_file=tmp_path / "a", redis_url_file=tmp_path / "b")
    assert {line.split()[0] for line in broken_settings(caught.value)} == {
        "DEARKD_API_KEYS_FILE",
        "DEARKD_REDIS_URL_FILE",
    }


def test_what_the_file_holds_is_checked_as_the_setting_is(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("redis://:hidden-word@h:port/0\n")
    with pytest.raises(ValidationError) as caught:
        Settings(redis_url_file=tmp_path / "secret")
    (line,) = broken_settings(caught.value)
    assert line.startswith("DEARKD_REDIS_URL is ")
    assert "hidden-word" not in line


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user, which only root may")
@pytest.mark.parametrize("owner", [0, 65534])
def test_a_file_that_the_user_may_not_read_is_refused(monkeypatch: pytest.MonkeyPatch, owner: int) -> None:
    """As Compose mounts it: with the owner and the mode that it has on the host."""
    with TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o711)
        secret = Path(folder, "secret")
        secret.write_text("checked-key-0123456789\n")
        secret.chmod(0o400)
        os.chown(secret, owner, 0)
        monkeypatch.setenv("DEARKD_API_KEYS_FILE", str(secret))
        os.seteuid(65534)
        try:
            said = Settings().api_keys
        except ValidationError as error:
            (said,) = broken_settings(error)
        finally:
            os.seteuid(0)
    if owner == 65534:
        assert said == "checked-key-0123456789"
    else:
        rule = "user 65534 may not read it: let that user, or its group, read the file"
        assert said == f"DEARKD_API_KEYS_FILE is '{secret}': {rule}"


@pytest.fixture
def no_aws(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    return monkeypatch


def signed(settings: Settings) -> dict[str, list[str]]:
    """The query of an address that a client would fetch an object from; nothing is sent."""
    store = open_bucket(StorageAddress.parse(settings.storage_url), settings)
    return parse_qs(urlsplit(str(obstore.sign(store, "GET", "k", timedelta(minutes=1)))).query)


def test_keys_of_s3_are_those_of_the_files(no_aws: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = Settings(storage_url="s3://bucket/x")
    no_aws.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")
    (tmp_path / "secret").write_text("one\n")

    def signed_with(variable: str, value: str) -> dict[str, list[str]]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(variable, value)
            return signed(settings)

    def same_second() -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        by_file = signed_with("AWS_SECRET_ACCESS_KEY_FILE", str(tmp_path / "secret"))
        return by_file, signed_with("AWS_SECRET_ACCESS_KEY", "one")

    # A signature counts the second: two of one second are compared.
    pairs = (same_second() for _ in range(9))
    by_file, by_variable = next(pair for pair in pairs if pair[0]["X-Amz-Date"] == pair[1]["X-Amz-Date"])
    assert by_file == by_variable
    assert by_file["X-Amz-Signature"] != signed_with("AWS_SECRET_ACCESS_KEY", "two")["X-Amz-Signature"]
    no_aws.setenv("AWS_SECRET_ACCESS_KEY_FILE", str(tmp_path / "secret"))
    for name, value in (("AWS_ACCESS_KEY_ID", "AKIAOTHER"), ("AWS_SESSION_TOKEN", "session")):
        (tmp_path / name).write_text(value)
        no_aws.delenv(name, raising=False)
        no_aws.setenv(f"{name}_FILE", str(tmp_path / name))
    found = signed(settings)
    assert found["X-Amz-Credential"][0].startswith("AKIAOTHER/")
    assert found["X-Amz-Security-Token"] == ["session"]


@pytest.mark.parametrize("case", WRONG)
def test_a_file_that_holds_no_key_of_s3_is_refused(no_aws: pytest.MonkeyPatch, tmp_path: Path, case: str) -> None:
    write, why = WRONG[case]
    write(tmp_path / "secret")
    no_aws.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")
    no_aws.setenv("AWS_SECRET_ACCESS_KEY_FILE", str(tmp_path / "secret"))
    with pytest.raises(InvalidInput, match="AWS_SECRET_ACCESS_KEY_FILE") as caught:
        open_bucket(StorageAddress.parse("s3://b"), Settings())
    assert why in str(caught.value).lower() or why in str(caught.value)
    assert "hidden-word" not in str(caught.value)


def test_what_is_started_is_not_told_where_the_keys_lie() -> None:
    named = {f"DEARKD_{name}_FILE": "/run/secrets/x" for name in ("API_KEY", "API_KEYS", "ADMIN_KEYS")}
    assert without_keys(named) == {}
    assert without_keys(named, but=CHECKED).keys() == named.keys() - {"DEARKD_API_KEY_FILE"}
    assert {name for name in ALL if not name.endswith("_FILE")} == {name.removesuffix("_FILE") for name in named}
