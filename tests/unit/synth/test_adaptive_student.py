"""The adaptive term with a stored student: found, verified, loaded, and shown what it was trained to see."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dearkd.errors import CorruptData, InvalidInput, NotFound
from dearkd.identifiers import new_id
from dearkd.settings import Settings
from dearkd.specs import StudentSpec, SynthesisSpec, SynthesisWeights, Task, TeacherSpec
from dearkd.storage.catalog import Model, describe_file, models
from dearkd.storage.file_cache import FileCache
from dearkd.storage.objects import Storage
from dearkd.vision.images import to_input
from dearkd_synth.inversion import DeepInversion
from dearkd_synth.objective.terms.adaptive import adaptive_loss
from dearkd_synth.service.stored_student import load_student
from dearkd_synth.student.student_view import StudentView
from dearkd_trainer.model.export import load_model, model_config, save_model
from dearkd_trainer.model.student import create_student

MEAN, STD, SIZE = [0.3, 0.5, 0.6], [0.2, 0.25, 0.3], 24


class Recorder(nn.Module):
    """Keeps what it is shown."""

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x
        return x.flatten(1)[:, :5]


def store_student(storage: Storage, folder: Path, *, num_classes: int = 5) -> tuple[str, nn.Module]:
    """A small ViT of random weights as a stored model: its id, and the network."""
    spec = StudentSpec(
        architecture="dearkd_micro_patch8_32",
        image_size=SIZE,
        patch_size=8,
        embed_dim=16,
        depth=2,
        num_heads=2,
        mhca_blocks=1,
        drop_path_rate=0.0,
        distilled=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        student = create_student(spec, num_classes, 3).eval()
    task = Task(num_classes=num_classes, in_chans=3, image_size=SIZE, mean=MEAN, std=STD)
    config = model_config(spec, student, task)
    save_model(folder, student, config)
    files = [folder / "model.safetensors", folder / "config.json"]
    catalog, identifier = models(storage), new_id("mdl")
    for path in files:
        storage.put(catalog.key(identifier, path.name), path)
    catalog.create(
        Model(
            id=identifier,
            created_at=datetime.now(UTC),
            architecture=spec.architecture,
            num_classes=num_classes,
            in_chans=3,
            image_size=SIZE,
            dataset=new_id("ds"),
            run=new_id("run"),
            spec={},
            files=[describe_file(path) for path in files],
        )
    )
    return identifier, student


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage.open(Settings(storage_url=f"file://{tmp_path}/storage"))


def test_the_student_sees_the_pixels_in_its_own_normalisation_and_size(small_teacher) -> None:
    _, teacher = small_teacher()
    pixels = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    recorder = Recorder()
    StudentView(recorder, teacher, mean=MEAN, std=STD, image_size=SIZE)(to_input(pixels, teacher))
    small = F.interpolate(pixels.double() / 255, size=(SIZE, SIZE), mode="bilinear", antialias=True)
    for channel in range(3):
        expected = (small[:, channel] - MEAN[channel]) / STD[channel]
        torch.testing.assert_close(recorder.seen[:, channel].double(), expected, rtol=0, atol=1e-5)


def test_a_stored_student_takes_part_in_a_job(small_teacher, storage: Storage, tmp_path: Path) -> None:
    """With the library's whole chain, and a spec as the API accepts it: the images move away from agreement."""
    model, teacher = small_teacher()
    identifier, student = store_student(storage, tmp_path / "model")
    loaded = load_student(storage, identifier, teacher, FileCache(tmp_path / "cache", 2**30))
    x = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(loaded.student(x), student(x))
    posted = {"teacher": "t", "images_per_class": 2, "phases": [{"resolution": 16, "iterations": 12}], "jitter": 0}
    alone = dict.fromkeys(SynthesisWeights.model_fields, 0.0) | {"adaptive": 1.0}
    spec = SynthesisSpec.resolve(posted | {"weights": alone, "adaptive_student": identifier}, teacher)
    told: list[float] = []
    with DeepInversion(
        model, teacher, spec, adaptive_student=loaded, on_step=lambda step: told.append(step.losses["adaptive"])
    ) as inversion:
        shard = inversion.shard(0)
    assert all(0 <= loss <= 1 for loss in told)
    assert told[-1] < told[0]
    assert loaded.training is False
    assert shard.images.shape == (10, 3, 32, 32)


def test_what_is_stored_is_verified(small_teacher, storage: Storage, tmp_path: Path) -> None:
    _, teacher = small_teacher()
    identifier, _ = store_student(storage, tmp_path / "model")
    for _ in range(2):  # the second time from the cache
        load_student(storage, identifier, teacher, FileCache(tmp_path / "cache", 2**30))
    storage.put(f"models/{identifier}/model.safetensors", b"else")
    load_student(storage, identifier, teacher, FileCache(tmp_path / "cache", 2**30))
    with pytest.raises(CorruptData):
        load_student(storage, identifier, teacher, FileCache(tmp_path / "another cache", 2**30))
    models(storage).delete(identifier)
    with pytest.raises(NotFound, match="deleted after this job"):
        load_student(storage, identifier, teacher, FileCache(tmp_path / "cache", 2**30))


def test_a_student_of_other_classes_is_refused_before_any_step(small_teacher, storage: Storage, tmp_path: Path) -> None:
    model, teacher = small_teacher()
    identifier, _ = store_student(storage, tmp_path / "model", num_classes=4)
    student = load_student(storage, identifier, teacher, FileCache(tmp_path / "cache", 2**30))
    posted = {"teacher": "t", "weights": {"adaptive": 0.5}, "adaptive_student": identifier}
    spec = SynthesisSpec.resolve(posted, teacher)
    with pytest.raises(InvalidInput, match="it has 4 classes, the teacher 5"):
        DeepInversion(model, teacher, spec, adaptive_student=student)


def test_a_student_without_a_weight_is_refused(small_teacher) -> None:
    teacher: TeacherSpec = small_teacher()[1]
    with pytest.raises(InvalidInput) as caught:
        SynthesisSpec.resolve({"teacher": "t", "adaptive_student": "mdl-1"}, teacher)
    assert [error.pointer for error in caught.value.errors] == ["/adaptive_student"]


def test_a_student_that_is_named_must_be_given(small_teacher) -> None:
    model, teacher = small_teacher()
    posted = {"teacher": "t", "weights": {"adaptive": 0.5}, "adaptive_student": "mdl-1"}
    with pytest.raises(InvalidInput, match="there is no student"):
        DeepInversion(model, teacher, SynthesisSpec.resolve(posted, teacher))


def test_there_is_a_gradient_where_the_published_clamp_has_none() -> None:
    """Over 1000 classes, before anything is recognised, all probabilities lie below the clamp's 0.01."""
    generator = torch.Generator().manual_seed(0)
    teacher, student = (torch.randn(4, 1000, generator=generator) for _ in range(2))

    def clamped(logits: Tensor) -> Tensor:
        p, q = ((z / 3).softmax(dim=1).clamp(0.01, 0.99) for z in (logits, student))
        middle = ((p + q) / 2).clamp(0.01, 0.99)
        kl = nn.KLDivLoss(reduction="batchmean")
        return 1 - (0.5 * (kl(middle.log(), p) + kl(middle.log(), q))).clamp(0, 1)

    for loss, vanishes in ((clamped, True), (lambda logits: adaptive_loss(logits, student), False)):
        logits = teacher.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(logits), logits)
        assert bool((gradient == 0).all()) is vanishes


def test_the_trainers_loader_is_the_one_that_is_plugged_in() -> None:
    from importlib.metadata import entry_points

    assert [plugin.load() for plugin in entry_points(group="dearkd.students")] == [load_model]
