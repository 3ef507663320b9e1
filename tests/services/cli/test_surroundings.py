"""Commands in surroundings that are not as they should be: a line that names what is wrong and its remedy, no more."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from dearkd.cli import main
from dearkd.extras import modules_of
from tests.support.stand_in_api import StandInApi, a_dataset, a_job, a_model, a_teacher

PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
OUTSIDE = "http://192.0.2.1:8000"

# Does as if these packages were not installed, in the process and in all that it starts.
ABSENCE = """
import os, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in os.environ["ABSENT"].split(","):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
"""


def run(*arguments: str | bytes, cwd: Path | None = None, **more: str) -> subprocess.CompletedProcess[bytes]:
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHONIOENCODING", "PYTHONUTF8")) and name.lower() not in PROXIES
    }
    command = [sys.executable, "-m", "dearkd.cli", *arguments]
    return subprocess.run(command, env=environment | more, cwd=cwd, capture_output=True, timeout=200)


Here = Callable[..., subprocess.CompletedProcess[bytes]]


@pytest.fixture
def here(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Here:
    """The same in this process, which is faster."""
    for name in list(os.environ):
        if name.lower() in PROXIES:
            monkeypatch.delenv(name)

    def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[bytes]:
        for name, value in more.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        said = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return subprocess.CompletedProcess(arguments, ended.value.code, said.out.encode(), said.err.encode())

    return run


def only_line(ended: subprocess.CompletedProcess[bytes], code: int) -> str:
    """The one line that a command said before it failed."""
    assert (ended.returncode, ended.stdout) == (code, b""), ended
    line = ended.stderr.decode()
    assert line.startswith("error: "), line
    assert line.count("\n") == 1, line
    assert "report it" not in line
    assert "Errno" not in line
    return line


@pytest.mark.parametrize(
    ("surroundings", "named"),
    [
        ({"ALL_PROXY": "socks5://127.0.0.1:1080"}, ["ALL_PROXY", "httpx[socks]"]),
        ({"http_proxy": "socks5h://proxy:1080"}, ["http_proxy", "httpx[socks]"]),
        ({"HTTP_PROXY": "gopher://proxy"}, ["HTTP_PROXY", "gopher"]),
        ({"HTTP_PROXY": "http://proxy", "NO_PROXY": "::1/128"}, ["NO_PROXY"]),
        ({"NO_PROXY": "localhost,fe80::/10"}, ["NO_PROXY"]),
    ],
)
def test_a_proxy_that_cannot_be_used_is_named(here: Here, surroundings: dict[str, str], named: list[str]) -> None:
    line = only_line(here("jobs", DEARKD_URL=OUTSIDE, **surroundings), 2)
    assert all(word in line for word in named), line
    as_json = here("jobs", "--json", DEARKD_URL=OUTSIDE, **surroundings)
    assert (as_json.returncode, as_json.stderr) == (2, b"")
    assert named[0] in json.loads(as_json.stdout)["error"]["message"]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
@pytest.mark.parametrize(
    "proxy", [{"ALL_PROXY": "socks5://x:1"}, {"NO_PROXY": "::1/128"}, {"HTTP_PROXY": "http://x:1"}]
)
def test_what_listens_on_this_machine_needs_no_proxy(
    api: StandInApi, here: Here, host: str, proxy: dict[str, str]
) -> None:
    api.answer("GET /v1/models", {"data": [], "has_more": False})
    url = api.url.replace("127.0.0.1", host)
    assert here("model", "list", DEARKD_URL=url, **proxy).returncode == 0


def test_certificates_that_are_not_there_are_named(here: Here) -> None:
    line = only_line(here("jobs", DEARKD_URL="https://192.0.2.1", SSL_CERT_FILE="/no/such.pem"), 2)
    assert "SSL_CERT_FILE" in line


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:8000",
        "http://",
        "http://127.0.0.1:99999",
        "http://127.0.0.1:http",
        "http://[::1",
        "http://a b",
        "http://xn--",
        "http://dearkd..example",
        f"http://{'a' * 64}.example",
        "http://127.0.0.1:8000/?key=1",
        "http://a\tb",
        "ftp://127.0.0.1",
    ],
)
def test_an_address_that_is_none_is_shown_beside_one_that_is(here: Here, url: str) -> None:
    line = only_line(here("jobs", DEARKD_URL=url), 2)
    assert repr(url) in line
    assert "http://127.0.0.1:8000" in line


@pytest.mark.parametrize("key", ["secret-kéy", "secret key", "secret\nkey"])
def test_a_key_that_no_header_bears_is_refused_and_not_shown(here: Here, key: str) -> None:
    line = only_line(here("jobs", DEARKD_API_KEY=key), 2)
    assert "DEARKD_API_KEY" in line
    assert "secret" not in line


@pytest.mark.parametrize(
    ("words", "absent", "extras"),
    [
        (["api"], ["uvicorn"], "api"),
        (["api"], ["fastapi", "python_multipart"], "api"),
        (["up", "--port", "0"], ["uvicorn"], "api"),
        (["up", "--port", "0"], ["torch", "uvicorn"], "api,synth,trainer"),
        (["worker", "synth"], ["timm"], "synth"),
        (["worker", "trainer"], ["torch", "timm"], "trainer"),
        (["demo"], ["sklearn"], "trainer"),
        (["evaluate", "mdl-1", "ds-1"], ["torch"], "trainer"),
        (["export", "mdl-1", "out", "--to", "hf"], ["huggingface_hub"], "trainer"),
    ],
)
def test_without_an_extra_a_command_names_it_and_starts_nothing(
    tmp_path: Path, words: list[str], absent: list[str], extras: str
) -> None:
    (tmp_path / "sitecustomize.py").write_text(ABSENCE)
    (tmp_path / "here").mkdir()
    more = {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}", "ABSENT": ",".join(absent)}
    line = only_line(run(*words, cwd=tmp_path / "here", **more), 1)
    assert f"pip install 'dearkd[{extras}]'" in line
    assert all(name in line for name in absent)
    assert list((tmp_path / "here").iterdir()) == []
    if words in (["worker", "trainer"], ["demo"]):
        assert run(*words, "--help", cwd=tmp_path / "here", **more).returncode == 0


def test_the_server_without_its_extra_names_it(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(ABSENCE)
    path = f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"
    environment = os.environ | {"PYTHONPATH": path, "ABSENT": "uvicorn"}
    ended = subprocess.run([sys.executable, "-m", "dearkd_api"], env=environment, capture_output=True)
    assert "pip install 'dearkd[api]'" in only_line(ended, 1)


def test_extras_are_read_from_the_package_with_what_they_include() -> None:
    assert {"fastapi", "jinja2", "uvicorn", "python_multipart", "prometheus_client"} == modules_of("api")
    assert modules_of("vision") < modules_of("synth") < modules_of("all")
    assert "httpx" in modules_of("")


LATIN = "caf\xe9".encode("latin-1")


def photo(path: bytes) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    Image.new("L", (8, 8)).save(os.fsdecode(path), "PNG")


@pytest.mark.parametrize(
    ("files", "root"),
    [
        ([b"%s/a.png" % LATIN, b"dog/a.png"], b"set"),
        ([b"train-%s.tar" % LATIN, b"train-0.tar"], b"set"),
        ([b"cat/a.png", b"dog/a.png"], LATIN),
    ],
)
def test_a_name_that_is_not_utf8_is_refused_before_anything_is_copied(
    api: StandInApi, tmp_path: Path, files: list[bytes], root: bytes
) -> None:
    folder = os.fsencode(tmp_path) + b"/" + root
    for file in files:
        photo(folder + b"/" + file)
    storage = tmp_path / "storage"
    line = only_line(run("dataset", "add", folder, DEARKD_URL=api.url, DEARKD_STORAGE_URL=f"file://{storage}"), 2)
    assert "caf\\xe9" in line
    assert "not UTF-8" in line
    assert "convmv" in line or "--name" in line
    assert not storage.exists()
    assert api.requests == []


def test_images_whose_names_are_not_utf8_are_taken(api: StandInApi, tmp_path: Path) -> None:
    """Their names go nowhere."""
    folder = os.fsencode(tmp_path / "set")
    for file in (b"cat/%s.png" % LATIN, b"dog/a.png"):
        photo(folder + b"/" + file)
    api.answer("GET /readyz", {})
    api.answer("POST /v1/datasets", a_dataset("ds-1"), status=201)
    storage = f"file://{tmp_path}/storage"
    ended = run("dataset", "add", folder, DEARKD_URL=api.url, DEARKD_STORAGE_URL=storage)
    assert (ended.returncode, ended.stdout) == (0, b"ds-1\n"), ended


def test_a_teacher_whose_file_has_no_utf8_name_needs_one(api: StandInApi, tmp_path: Path) -> None:
    file = os.fsencode(tmp_path) + b"/" + LATIN + b".safetensors"
    Path(os.fsdecode(file)).write_bytes(b"weights")
    options = ["--architecture", "resnet10t", "--num-classes", "2", "--image-size", "32", "--mean", "0,0,0"]
    add: list[str | bytes] = ["teacher", "add", file, *options, "--std", "1,1,1"]
    line = only_line(run(*add, DEARKD_URL=api.url), 2)
    assert "caf\\xe9" in line
    assert "--name" in line
    api.answer("POST /v1/teachers", a_teacher("tch-1"), status=201)
    assert run(*add, "--name", "t", DEARKD_URL=api.url).stdout == b"tch-1\n"


def test_an_argument_that_is_not_utf8_is_no_fault(api: StandInApi) -> None:
    assert "caf\\udce9" in only_line(run("synth", "tch-1", "--name", LATIN, DEARKD_URL=api.url), 1)


ASCII = [
    {"PYTHONIOENCODING": "ascii"},
    {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    {"PYTHONIOENCODING": "latin-1"},
]


@pytest.mark.parametrize("surroundings", ASCII, ids=str)
def test_a_terminal_without_unicode_is_no_obstacle(
    api: StandInApi, tmp_path: Path, surroundings: dict[str, str]
) -> None:
    name = "Москва – 東京 " + "é" * 60
    model = a_model("mdl-1", architecture=name)
    api.answer("GET /v1/models", {"data": [model], "has_more": False})
    api.answer("GET /v1/models/mdl-1", model)
    progress = {"done": 1, "total": 2, "unit": "images", "per_second": 2.0, "eta_seconds": 1.0}
    job = a_job("syn-1", "succeeded", progress=progress, metrics={"a": 1, "b": 0.5}, result={"dataset": "ds-1"})
    job["spec"]["name"] = name
    api.answer("GET /v1/synthesis-jobs/syn-1", job)
    table = run("model", "list", DEARKD_URL=api.url, **surroundings)
    assert table.returncode == 0, table.stderr
    assert b"mdl-1" in table.stdout
    shown = run("model", "show", "mdl-1", "--json", DEARKD_URL=api.url, **surroundings)
    assert json.loads(shown.stdout) == model
    watched = run("watch", "syn-1", DEARKD_URL=api.url, **surroundings)
    assert watched.stdout == b"syn-1 succeeded: dataset ds-1\n", watched
    assert run("synth", "--help", **surroundings).returncode == 0
    assert only_line(run("watch", "ds-日本", **surroundings), 2)
    photo(os.fsencode(tmp_path) + "/set/кот/a.png".encode())
    photo(os.fsencode(tmp_path) + b"/set/dog/a.png")
    added = run("dataset", "add", str(tmp_path / "set"), DEARKD_URL=api.url, **surroundings)
    assert b"report it" not in added.stderr
    assert b"Traceback" not in added.stderr


def test_who_reads_only_the_beginning_sees_no_error(api: StandInApi) -> None:
    models = [a_model(f"mdl-{n}") for n in range(1000)]
    api.answer("GET /v1/models", {"data": models, "has_more": False})
    for words in ("model list --limit 1000", "model list --limit 1000 --json", "--version", "--help"):
        command = [sys.executable, "-m", "dearkd.cli", *words.split()]
        environment = os.environ | {"DEARKD_URL": api.url}
        reading, writing = os.pipe()
        os.close(reading)
        with os.fdopen(writing, "wb") as pipe:
            ended = subprocess.run(command, stdout=pipe, stderr=subprocess.PIPE, env=environment)
        assert (ended.returncode, ended.stderr) == (1, b""), words


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_standard_output_is_said(api: StandInApi) -> None:
    for words in ("--version", "--help", "watch --help"):
        with open("/dev/full", "wb") as full:
            command = [sys.executable, "-m", "dearkd.cli", *words.split()]
            ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE)
        assert ended.returncode == 1
        assert ended.stderr.count(b"\n") == 1
        assert b"No space left on device" in ended.stderr


@pytest.mark.parametrize("columns", ["0", "1", "00", "-5", "many", ""])
def test_an_error_is_shown_on_a_terminal_of_any_width(here: Here, columns: str) -> None:
    assert only_line(here("watch", "ds-1", COLUMNS=columns, LINES=columns), 2)


def test_what_is_wrong_with_a_folder_is_one_line(here: Here, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    line = only_line(here("up", "--data", str(tmp_path / "file" / "data"), "--port", "0"), 1)
    assert str(tmp_path / "file") in line
    for port in ("99999999999999999999", "-1", "http"):
        assert "DEARKD_PORT" in only_line(here("api", DEARKD_PORT=port), 2)
        assert "DEARKD_PORT" in only_line(here("up", DEARKD_PORT=port), 2)


def test_without_a_home_commands_work(api: StandInApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")
    api.answer("GET /v1/models", {"data": [], "has_more": False})
    assert run("model", "list", DEARKD_URL=api.url).returncode == 0
