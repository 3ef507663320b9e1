"""`dearkd teacher add` of a checkpoint against a real API and inspector, and that the teacher is the same network."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torchvision

from dearkd.cli import main
from dearkd.settings import Settings
from dearkd.specs import TeacherSpec
from dearkd.vision.teachers import load_teacher
from tests.support.services import Api, database, inspecting, serving
from tests.support.teacher_files import CLASSES, difference, trained

pytestmark = pytest.mark.services


@pytest.fixture
def api(redis_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    settings = Settings(
        redis_url=database(redis_server, 14), storage_url=f"file://{tmp_path}/storage", cache_dir=tmp_path / "cache"
    )
    with inspecting(settings, tmp_path), serving(settings, tmp_path) as api:
        monkeypatch.setenv("DEARKD_URL", api.url)
        yield api


def test_a_checkpoint_of_torchvision_is_registered_as_the_same_network(
    api: Api, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = trained(torchvision.models.mobilenet_v3_small(weights=None, num_classes=CLASSES))
    torch.save({"model": torch.nn.DataParallel(theirs).state_dict(), "epoch": 1}, tmp_path / "best.pth")
    with pytest.raises(SystemExit) as ended:
        main(["teacher", "add", str(tmp_path / "best.pth"), "--image-size", "64", "--class-name", "ant"])
    assert ended.value.code == 1
    assert "class_names" in capsys.readouterr().err
    assert list(api.storage.objects("teachers")) == []
    with pytest.raises(SystemExit) as ended:
        main(["teacher", "add", str(tmp_path / "best.pth"), "--image-size", "64"])
    said = capsys.readouterr()
    assert ended.value.code == 0, said.err
    stored = api.http.get(f"/v1/teachers/{said.out.strip()}").json()
    assert stored["model_args"] == {"bn_eps": 0.001}
    spec = TeacherSpec.check({field: stored[field] for field in TeacherSpec.model_fields})
    weights = tmp_path / "stored.safetensors"
    api.storage.download(f"teachers/{stored['id']}/weights.safetensors", weights)
    assert difference(load_teacher(spec, weights), theirs, 64) < 1e-4
