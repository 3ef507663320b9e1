"""`dearkd teacher add` of whatever a user has; the API that takes what is uploaded is a stand-in."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from email.message import Message
from email.parser import BytesParser
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load, save_file

from dearkd.cli import main
from tests.support.stand_in_api import StandInApi, a_teacher
from tests.support.stand_in_hub import stand_in_hub
from tests.support.teacher_files import CLASSES, SMALL, plain, prefixed, small

NAMES = ["ant", "bee", "cow", "dog", "emu"]
FLAGS = ["--architecture", SMALL, "--num-classes", str(CLASSES), "--image-size", "32", "--mean", "0.1,0.2,0.3"]
FLAGS += ["--std", "0.5,0.5,0.5"]

Add = Callable[..., int | str | None]


@pytest.fixture
def add(api: StandInApi) -> Add:
    api.answer("POST /v1/teachers", a_teacher("tch-1", name="t", parameters=9, batch_norm_layers=2), status=201)

    def add(*arguments: str | Path) -> int | str | None:
        with pytest.raises(SystemExit) as ended:
            main(["teacher", "add", *map(str, arguments)])
        return ended.value.code

    return add


def uploaded(api: StandInApi) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The spec and the tensors of the only upload."""
    (request,) = api.requests
    head = f"Content-Type: {request.headers['Content-Type']}\r\n\r\n".encode()
    parts: dict[str, bytes] = {}
    for part in BytesParser().parsebytes(head + request.body).get_payload():
        assert isinstance(part, Message)
        content = part.get_payload(decode=True)
        assert isinstance(content, bytes)
        parts[str(part.get_param("name", header="content-disposition"))] = content
    return json.loads(parts["teacher"]), load(parts["weights"])


def test_a_checkpoint_is_unwrapped_converted_and_uploaded(
    api: StandInApi, add: Add, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "best.pth.tar"
    torch.save({"state_dict": prefixed("module.", plain(small())), "epoch": 7}, path)
    assert add(path) == 0
    said = capsys.readouterr()
    assert said.out == "tch-1\n"
    assert "took the weights under 'state_dict'; stripped 'module' off all names; it is a test_resnet" in said.err
    assert "assumed --image-size 160" in said.err
    spec, tensors = uploaded(api)
    assert (spec["name"], spec["architecture"], spec["num_classes"]) == ("best", SMALL, CLASSES)
    assert all(torch.equal(tensors[name], tensor) for name, tensor in small().state_dict().items())


def test_flags_decide_and_json_stays_json(
    api: StandInApi, add: Add, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(plain(small()), tmp_path / "w.pt")
    assert add(tmp_path / "w.pt", *FLAGS, "--name", "mine", "--json") == 0
    assert json.loads(capsys.readouterr().out)["id"] == "tch-1"
    spec, _ = uploaded(api)
    assert spec.items() >= {"name": "mine", "image_size": 32, "mean": [0.1, 0.2, 0.3], "std": [0.5] * 3}.items()


def test_a_folder_of_timm_needs_no_flag(api: StandInApi, add: Add, tmp_path: Path) -> None:
    timm.models.save_for_hf(small(), tmp_path / "animals", model_config={"label_names": NAMES}, safe_serialization=True)
    assert add(tmp_path / "animals") == 0
    spec, _ = uploaded(api)
    assert (spec["name"], spec["image_size"], spec["class_names"]) == ("animals", 160, NAMES)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    import huggingface_hub.constants

    timm.models.save_for_hf(small(), tmp_path / "hub", model_config={"label_names": NAMES}, safe_serialization=False)
    files = {path.name: path.read_bytes() for path in (tmp_path / "hub").iterdir()}
    with stand_in_hub({"me/animals": files, "me/empty": {"config.json": b"{}"}}) as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield url


@pytest.mark.usefixtures("hub")
def test_a_model_of_the_hub_is_fetched_and_uploaded(api: StandInApi, add: Add) -> None:
    assert add("hf-hub:me/animals") == 0
    spec, tensors = uploaded(api)
    assert (spec["name"], spec["class_names"]) == ("animals", NAMES)
    assert tensors.keys() == small().state_dict().keys()


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("hf-hub:me/none", "is not on the Hub"),
        ("hf-hub:me/empty", "neither model.safetensors nor pytorch_model.bin"),
        ("hf-hub:not/a/name", "is no name of a model"),
    ],
)
def test_what_the_hub_does_not_have_is_said(
    api: StandInApi, add: Add, capsys: pytest.CaptureFixture[str], name: str, named: str
) -> None:
    assert add(name) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert name in said
    assert named in said
    assert api.requests == []


@pytest.mark.parametrize(
    ("content", "arguments", "code", "named"),
    [
        (b"PK\x03\x04", [], 1, "cut short"),
        (b"\x08\x07\x12\x07pytorch", [], 1, "ONNX"),
        ({"optimizer": {"state": {}, "param_groups": []}}, [], 1, "an optimiser"),
        ({"a": plain(small()), "b": plain(small())}, [], 1, "'a', 'b'"),
        (plain(small()), ["--num-classes", "9"], 1, "--num-classes"),
        (plain(small()), ["--mean", "half"], 2, "half"),
        (plain(timm.create_model(SMALL, in_chans=1)), [], 2, "--mean, --std"),
        (plain(timm.create_model("test_vit")), [], 1, "BatchNorm"),
    ],
)
def test_what_cannot_be_a_teacher_is_one_line_and_nothing_is_uploaded(
    api: StandInApi,
    add: Add,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    content: Any,
    arguments: list[str],
    code: int,
    named: str,
) -> None:
    path = tmp_path / "w.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    assert add(path, *arguments) == code
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert named in said
    assert api.requests == []


def test_safetensors_with_every_flag_are_uploaded_without_torch(api: StandInApi, tmp_path: Path) -> None:
    """As does `--help`: what needs no conversion waits for no import."""
    api.answer("POST /v1/teachers", a_teacher("tch-1", name="t", parameters=9, batch_norm_layers=2), status=201)
    save_file(plain(small()), tmp_path / "w.safetensors")
    code = (
        "import sys\nfrom dearkd.cli import main\ntry:\n    main(sys.argv[1:])\nexcept SystemExit as ended:\n"
        "    assert not ended.code\nassert not {'torch', 'timm', 'huggingface_hub', 'safetensors'} & sys.modules.keys()"
    )
    for arguments in ([str(tmp_path / "w.safetensors"), *FLAGS], ["--help"]):
        subprocess.run([sys.executable, "-c", code, "teacher", "add", *arguments], check=True, capture_output=True)
    spec, _ = uploaded(api)
    assert spec == {
        "name": "w",
        "architecture": SMALL,
        "num_classes": CLASSES,
        "in_chans": 3,
        "image_size": 32,
        "mean": [0.1, 0.2, 0.3],
        "std": [0.5] * 3,
        "model_args": {},
    }
