"""What a shard says of its images is true of the files that a reader opens, for every format; and the logits."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dearkd.data.shard_files import Sample, write_shard
from dearkd.data.shard_info import info_json
from dearkd.data.shard_reader import inspect_shard
from dearkd.errors import CorruptData
from dearkd.specs import SynthesisSpec, TeacherSpec
from dearkd.vision.images import encode, to_input
from dearkd.vision.shard_writer import write_samples
from dearkd.vision.shards import ShardDataset
from dearkd_synth.inversion import DeepInversion
from dearkd_synth.quality import merge_quality, shard_quality
from dearkd_synth.service.job import check_contents
from dearkd_synth.synthesised import SynthesisedShard

pytestmark = pytest.mark.slow


def make(small_teacher, path: Path, **posted: Any) -> tuple[SynthesisedShard, dict[str, dict[str, bytes]]]:
    """A written shard of 20 images, and its members by sample and suffix."""
    model, teacher = small_teacher(in_chans=posted.pop("in_chans", 3))
    small = {"teacher": "t", "images_per_class": 4, "batch_size": 10, "phases": [{"resolution": 16, "iterations": 3}]}
    spec = SynthesisSpec.resolve(small | posted, teacher)
    with DeepInversion(model, teacher, spec) as inversion:
        made = inversion.shard(0)
    write_samples(path, made, spec)
    members: dict[str, dict[str, bytes]] = {}
    with tarfile.open(path) as tar:
        for member in tar:
            key, suffix = member.name.split(".", 1)
            file = tar.extractfile(member)
            assert file is not None
            members.setdefault(key, {})[suffix] = file.read()
    return made, members


@pytest.mark.parametrize("in_chans", [1, 3])
@pytest.mark.parametrize(("image_format", "suffix"), [("png", "png"), ("webp", "webp"), ("jpeg", "jpg")])
def test_the_figures_are_those_of_the_decoded_files(
    small_teacher, tmp_path: Path, image_format: str, suffix: str, in_chans: int
) -> None:
    made, members = make(small_teacher, tmp_path / "a.tar", image_format=image_format, in_chans=in_chans)
    mode = "L" if in_chans == 1 else "RGB"
    decoded = [np.array(Image.open(io.BytesIO(sample[suffix])).convert(mode)) for sample in members.values()]
    pixels = torch.from_numpy(np.stack(decoded)).view(20, 32, 32, in_chans).permute(0, 3, 1, 2)
    assert torch.equal(made.images, pixels)
    model, teacher = small_teacher(in_chans=in_chans)
    with torch.no_grad():
        logits = model(to_input(pixels, teacher))
    for index, sample in enumerate(members.values()):
        fields = json.loads(sample["json"])
        label = int(sample["cls"])
        assert fields["teacher_label"] == logits[index].argmax().item()
        assert fields["teacher_confidence"] == pytest.approx(logits[index].softmax(0)[label].item(), abs=1e-4)
        assert "logits.npy" not in sample
    if image_format == "jpeg":
        again = [np.array(Image.open(io.BytesIO(reencoded(image)))) for image in decoded]
        assert any((one != other).any() for one, other in zip(decoded, again, strict=True)), "a second loss would show"


def reencoded(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=95, subsampling=0)
    return file.getvalue()


def test_logits_are_stored_in_half_precision_for_every_sample(small_teacher, tmp_path: Path) -> None:
    made, members = make(small_teacher, tmp_path / "a.tar", store_logits=True)
    assert {frozenset(sample) for sample in members.values()} == {frozenset(("cls", "json", "logits.npy", "png"))}
    stored = torch.stack([torch.from_numpy(np.load(io.BytesIO(sample["logits.npy"]))) for sample in members.values()])
    assert stored.dtype == torch.float16
    model, teacher = small_teacher()
    with torch.no_grad():
        expected = model(to_input(made.images, teacher))
    torch.testing.assert_close(stored.float(), expected, rtol=2e-3, atol=1e-3)
    make(small_teacher, tmp_path / "b.tar", store_logits=True)
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


def test_logits_beyond_half_precision_are_read_as_the_largest_that_there_is(small_teacher, tmp_path: Path) -> None:
    model, teacher = small_teacher()
    with torch.no_grad():
        model.get_classifier().weight.mul_(1e8)
    path = tmp_path / "a.tar"
    spec = SynthesisSpec.resolve({"teacher": "t", "images_per_class": 1, "store_logits": True}, teacher)
    spec = spec.model_copy(update={"phases": [p.model_copy(update={"iterations": 1}) for p in spec.phases]})
    with DeepInversion(model, teacher, spec) as inversion:
        made = inversion.shard(0)
    assert made.logits.abs().max() > 1e5
    write_samples(path, made, spec)
    stored = ShardDataset([path], num_classes=5, in_chans=3)
    torch.testing.assert_close(stored.logits(0), made.logits[0].clamp(-65504, 65504), rtol=1e-3, atol=0)


def test_every_reader_takes_shards_with_logits(small_teacher, tmp_path: Path) -> None:
    import datasets
    import webdataset as wds
    from timm.data import create_dataset

    folder = tmp_path / "set"
    folder.mkdir()
    path = folder / "train-000000.tar"
    made, _ = make(small_teacher, path, store_logits=True)
    found = inspect_shard(path, num_classes=5)
    assert found.samples == 20
    ours = ShardDataset([path], num_classes=5, in_chans=3)
    assert torch.equal(torch.stack([ours[i][0] for i in range(20)]), made.images)

    read = list(wds.WebDataset(str(path), shardshuffle=False).decode("rgb8").to_tuple("png", "cls", "logits.npy"))
    loaded = datasets.load_dataset("webdataset", data_dir=str(folder), cache_dir=str(tmp_path / "hf"))["train"]
    for index in range(20):
        image, label, logits = read[index]
        np.testing.assert_array_equal(image, made.images[index].permute(1, 2, 0).numpy())
        assert label == loaded[index]["cls"] == made.labels[index].item()
        np.testing.assert_allclose(logits, made.logits[index].numpy(), rtol=2e-3, atol=1e-3)
        np.testing.assert_allclose(loaded[index]["logits.npy"], logits)

    from dearkd.data.shard_files import Shard

    shard = Shard(name=path.name, bytes=path.stat().st_size, sha256="0" * 64, samples=20, classes={})
    (folder / "_info.json").write_bytes(info_json([shard]))
    for_timm = create_dataset("wds/set", root=str(folder), split="train", is_training=False, batch_size=1)
    assert sorted(int(label) for _, label in for_timm) == sorted(made.labels.tolist())


def test_the_plan_counts_the_bytes_of_logits(small_teacher, tmp_path: Path) -> None:
    _, teacher = small_teacher(num_classes=1000, image_size=32)
    posted = {"teacher": "t", "classes": [3], "images_per_class": 2}
    plain, with_logits = (SynthesisSpec.resolve(posted | {"store_logits": on}, teacher) for on in (False, True))
    more = with_logits.estimated_bytes(teacher) - plain.estimated_bytes(teacher)
    file = io.BytesIO()
    np.save(file, np.zeros(1000, dtype=np.float16))
    assert more == 2 * (512 + -(-len(file.getvalue()) // 512) * 512)


@pytest.mark.parametrize("image_format", ["png", "webp", "jpeg"])
@pytest.mark.parametrize(("image_size", "in_chans"), [(8, 1), (32, 1), (64, 3), (512, 3), (1024, 1)])
def test_no_sample_takes_more_bytes_than_planned(
    tmp_path: Path, image_size: int, in_chans: int, image_format: Any
) -> None:
    """Noise, of which no format saves anything: a PNG of 512 px takes 1651 bytes more than its pixels."""
    teacher = TeacherSpec(
        name="t",
        architecture="resnet10t",
        num_classes=5,
        in_chans=in_chans,
        image_size=image_size,
        mean=[0.5] * in_chans,
        std=[0.5] * in_chans,
    )
    spec = SynthesisSpec.resolve({"teacher": "t", "images_per_class": 1}, teacher)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (in_chans, image_size, image_size), dtype=torch.uint8, generator=generator)
    fields = {"label": 0, "teacher_label": 4, "teacher_confidence": 0.123456, "teacher_margin": -1000.123456}
    sample = Sample(key="0" * 9, image=encode(pixels, image_format), suffix="png", label=0, fields=fields)
    empty, one = (write_shard(tmp_path / f"{n}.tar", [sample] * n).bytes for n in (0, 20))
    assert one - empty <= 20 * spec.estimated_bytes(teacher) / 5


def test_outliers_are_the_samples_of_lowest_margin_by_key(small_teacher, tmp_path: Path) -> None:
    made, members = make(small_teacher, tmp_path / "a.tar")
    quality = json.loads(json.dumps(shard_quality(made)))
    order = sorted(range(20), key=lambda i: made.margin[i].item())
    assert [outlier["key"] for outlier in quality["outliers"]] == [list(members)[i] for i in order]
    lowest = quality["outliers"][0]
    assert lowest["label"] == int(members[lowest["key"]]["cls"])
    assert lowest["margin"] == pytest.approx(made.margin.min().item())
    later = SynthesisedShard(index=1, samples=range(20, 40), batches=made.batches)
    merged = merge_quality([quality, shard_quality(later)])
    assert len(merged["outliers"]) == 20
    assert [outlier["key"] for outlier in merged["outliers"][:2]] == [lowest["key"], f"{int(lowest['key']) + 20:09d}"]
    assert (merged["restarts"], merged["halved_batches"]) == (0, 0)


def test_a_shard_of_other_labels_than_its_spec_asks_for_is_named(small_teacher, tmp_path: Path) -> None:
    path = tmp_path / "train-000000.tar"
    make(small_teacher, path)
    _, teacher = small_teacher()
    posted = {"teacher": "t", "images_per_class": 4, "batch_size": 10}
    assert check_contents(path, SynthesisSpec.resolve(posted, teacher), 0).samples == 20
    others = {"classes": [4, 3, 2, 1], "images_per_class": 5, "batch_size": 4}
    with pytest.raises(CorruptData, match=r"train-000000\.tar holds 4 samples of class 0, but its spec asks for 0"):
        check_contents(path, SynthesisSpec.resolve(posted | others, teacher), 0)
