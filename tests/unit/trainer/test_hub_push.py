"""`dearkd export --to hf --push` and `dearkd dataset pull --as hf --push`, against a hub that takes files."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import typer
from safetensors.torch import load_file
from typer.main import get_command

from dearkd.choices import DatasetForm
from dearkd.cli import datasets as dataset_commands
from dearkd.cli.hub_push import push_folder
from dearkd.errors import Forbidden, InvalidInput, Unavailable
from dearkd.specs import Task
from dearkd.specs.recipes import native_student
from dearkd_trainer.commands import register_export
from dearkd_trainer.model.export import model_config, save_model
from dearkd_trainer.model.student import create_student
from tests.support.stand_in_hub import TOKEN, Pushed, stand_in_hub

Export = Callable[..., None]


@pytest.fixture
def pushed(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Pushed]]:
    """The repositories of a hub for which there is a token."""
    import huggingface_hub.constants

    repositories: dict[str, Pushed] = {}
    with stand_in_hub({}, repositories) as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        # The stand-in knows the older of the two ways of large files alone.
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        yield repositories


@pytest.fixture
def model(tmp_path: Path) -> Path:
    spec = native_student("dearkd_micro_patch8_32", drop_path_rate=0.0, distilled=False)
    torch.manual_seed(0)
    student = create_student(spec, 10, 1)
    task = Task(num_classes=10, in_chans=1, image_size=32, mean=[0.3], std=[0.35], class_names=None)
    save_model(tmp_path / "model", student, model_config(spec, student, task))
    return tmp_path / "model"


@pytest.fixture
def export() -> Export:
    app = typer.Typer()
    register_export(app)

    def run(*arguments: str | Path) -> None:
        get_command(app)(args=[str(argument) for argument in arguments], standalone_mode=False)

    return run


@pytest.mark.parametrize(("flags", "visibility"), [([], "private"), (["--public"], "public")])
def test_a_pushed_model_is_the_folder(
    pushed: dict[str, Pushed],
    model: Path,
    export: Export,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    visibility: str,
) -> None:
    folder = tmp_path / "out"
    export(model, folder, "--to", "hf", "--push", "me/student", *flags)
    (found,) = pushed.values()
    assert (list(pushed), found.kind, found.visibility) == (["me/student"], "model", visibility)
    assert found.files == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert "/me/student" in capsys.readouterr().err
    assert load_file(folder / "model.safetensors")


def test_nothing_is_pushed_unasked(pushed: dict[str, Pushed], model: Path, export: Export, tmp_path: Path) -> None:
    export(model, tmp_path / "out", "--to", "hf")
    assert pushed == {}


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--to", "onnx", "--push", "me/student"], "hf"),
        (["--to", "hf", "--public"], "--push"),
        (["--to", "hf", "--push", "me/student/more"], "no name on the Hub"),
        (["--to", "hf", "--push", "a name"], "no name on the Hub"),
    ],
)
@pytest.mark.usefixtures("pushed")
def test_flags_that_do_not_go_together_are_refused_before_anything_is_written(
    model: Path, export: Export, tmp_path: Path, flags: list[str], named: str
) -> None:
    with pytest.raises(typer.BadParameter, match=named):
        export(model, tmp_path / "out", *flags)
    assert not (tmp_path / "out").exists()


def test_without_a_token_or_rights_or_a_hub_it_is_said(
    pushed: dict[str, Pushed], model: Path, export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Forbidden, match="someone/student"):
        export(model, tmp_path / "forbidden", "--to", "hf", "--push", "someone/student")
    assert (tmp_path / "forbidden" / "model.safetensors").exists(), "what was made stays"
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(Unavailable, match="hf upload"):
        push_folder(tmp_path / "forbidden", "me/student", "model", public=False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(InvalidInput, match="hf auth login"):
        export(model, tmp_path / "out", "--to", "hf", "--push", "me/student")
    assert not (tmp_path / "out").exists()
    assert pushed == {}


def test_a_dataset_is_pushed_as_one(pushed: dict[str, Pushed], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The view itself has tests of its own: here it is two files."""

    def view(client: object, identifier: str, directory: Path) -> list[Path]:
        directory.mkdir()
        (directory / "README.md").write_text("---\nlicense: mit\n---\n")
        (directory / "train.parquet").write_bytes(b"PAR1")
        return sorted(directory.iterdir())

    monkeypatch.setattr("dearkd.cli.hub_view.pull_view", view)
    monkeypatch.setattr("dearkd.cli.references.identifier_of", lambda client, reference, kind: reference)
    dataset_commands.pull("ds-1", tmp_path / "view", DatasetForm.hf, push="me/digits", public=False, as_json=False)
    assert (pushed["me/digits"].kind, sorted(pushed["me/digits"].files)) == ("dataset", ["README.md", "train.parquet"])
