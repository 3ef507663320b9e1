"""Reading shards by sample number, and splitting them."""

import io
import itertools
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dearkd.data.shard_files import Sample, write_shard
from dearkd.errors import CorruptData
from dearkd.vision.images import encode
from dearkd.vision.shards import ShardDataset, split

Members = list[tuple[str, bytes]]


def picture(value: int, size: int = 8, channels: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(value)
    return torch.randint(0, 256, (channels, size, size), dtype=torch.uint8, generator=generator)


def png(value: int = 0, size: int = 8) -> bytes:
    return encode(picture(value, size), "png")


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    """Two shards of three and two samples with labels 0, 1, 2 and 0, 1."""
    paths = [tmp_path / "train-000000.tar", tmp_path / "train-000001.tar"]
    for path, numbers in zip(paths, ([0, 1, 2], [3, 4]), strict=True):
        write_shard(path, (Sample(f"{n:04d}", png(n), "png", n % 3, {"n": n}) for n in numbers))
    return paths


@pytest.fixture
def tar(tmp_path: Path) -> Callable[[Members], Path]:
    def write(members: Members) -> Path:
        path = tmp_path / "made-by-hand.tar"
        with tarfile.open(path, "w") as file:
            for name, data in members:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                file.addfile(info, io.BytesIO(data))
        return path

    return write


@pytest.mark.parametrize("in_memory", [False, True])
def test_samples_come_in_the_shards_order(shards: list[Path], in_memory: bool) -> None:
    dataset = ShardDataset(shards, num_classes=3, in_chans=1)
    assert not in_memory or dataset.preload()
    assert dataset.labels.tolist() == [0, 1, 2, 0, 1]
    for number in (4, 0, 2, 3, 1):
        image, label = dataset[number]
        assert image.dtype == torch.uint8
        assert torch.equal(image, picture(number))
        assert label == number % 3


def test_images_are_converted_to_the_channels_asked_for(shards: list[Path]) -> None:
    image, _ = ShardDataset(shards, num_classes=3, in_chans=3)[1]
    assert torch.equal(image, picture(1).expand(3, -1, -1))


def test_labels_are_known_without_decoding(tar: Callable[[Members], Path]) -> None:
    dataset = ShardDataset([tar([("a.cls", b"1"), ("a.png", b"no image")])], num_classes=2, in_chans=1)
    assert dataset.labels.tolist() == [1]
    with pytest.raises(CorruptData, match=r"made-by-hand.tar: sample 'a'.*not a readable"):
        dataset[0]


def test_other_tools_shards_are_read(tar: Callable[[Members], Path]) -> None:
    file = io.BytesIO()
    Image.new("RGB", (5, 4), (255, 0, 0)).save(file, "JPEG")
    members = [("dir/b.1.JPG", file.getvalue()), ("dir/b.CLS", b" 1\n"), ("README", b""), ("c.json", b"{}")]
    members += [("c.png", png()), ("c.cls", b"0")]
    with pytest.raises(CorruptData, match="0 images"):
        ShardDataset([tar(members)], num_classes=2, in_chans=3)
    members[0] = ("dir/b.jpg", file.getvalue())
    dataset = ShardDataset([tar(members)], num_classes=2, in_chans=3)
    assert dataset.labels.tolist() == [1, 0]
    assert dataset[0][0].shape == (3, 4, 5)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.png", png())], "sample 'a' has no label"),
        ([("a.cls", b"0")], "sample 'a' has 0 images"),
        ([("a.cls", b"0"), ("a.png", png()), ("a.jpg", png())], "sample 'a' has 2 images"),
        ([("a.cls", b"0"), ("a.cls", b"1"), ("a.png", png())], "sample 'a' has two members .cls"),
        ([("a.cls", b"cat"), ("a.png", png())], "sample 'a' has label b'cat', which is no whole number"),
        ([("a.cls", b"2"), ("a.png", png())], "sample 'a' has label 2; labels are at least 0 and below 2"),
        ([("a.cls", b"-1"), ("a.png", png())], "sample 'a' has label -1"),
        (
            [("a.cls", b"0"), ("a.png", png()), ("b.cls", b"0"), ("b.png", png()), ("a.cls", b"0"), ("a.png", png())],
            "sample 'a' stands there twice",
        ),
    ],
)
def test_a_broken_sample_is_named(tar: Callable[[Members], Path], members: Members, message: str) -> None:
    with pytest.raises(CorruptData, match=message) as caught:
        ShardDataset([tar(members)], num_classes=2, in_chans=1)
    assert "made-by-hand.tar" in str(caught.value)


def test_a_shard_that_is_cut_short_is_refused(shards: list[Path]) -> None:
    whole = shards[1].read_bytes()
    shards[1].write_bytes(whole[:700])
    with pytest.raises(CorruptData, match=r"train-000001.tar"):
        ShardDataset(shards, num_classes=3, in_chans=1)


def test_preloading_keeps_to_its_limit_and_to_images_of_one_size(tmp_path: Path, shards: list[Path]) -> None:
    dataset = ShardDataset(shards, num_classes=3, in_chans=1)
    assert not dataset.preload(max_bytes=5 * 8 * 8 - 1)
    assert dataset.preload(max_bytes=5 * 8 * 8)
    mixed = tmp_path / "mixed.tar"
    write_shard(mixed, (Sample(str(n), png(n, size=8 + n), "png", 0, {}) for n in range(2)))
    dataset = ShardDataset([mixed], num_classes=1, in_chans=1)
    assert not dataset.preload()
    assert dataset[1][0].shape == (1, 9, 9)


def test_no_shards_is_an_empty_dataset() -> None:
    dataset = ShardDataset([], num_classes=2, in_chans=1)
    assert len(dataset) == 0
    assert not dataset.preload()
    assert [len(part) for part in split(dataset.labels, fraction=1.0, holdout=0.1, seed=0)] == [0, 0]


@settings(max_examples=50)
@given(
    counts=st.lists(st.integers(1, 30), min_size=1, max_size=8),
    fraction=st.floats(0.01, 1.0),
    holdout=st.floats(0.0, 0.9),
    seed=st.integers(0, 2**31),
)
def test_a_split_takes_its_fraction_of_every_class(
    counts: list[int], fraction: float, holdout: float, seed: int
) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    np.random.default_rng(0).shuffle(labels)
    train, held = split(labels, fraction=fraction, holdout=holdout, seed=seed)
    assert set(train).isdisjoint(held)
    assert list(train) == sorted(set(train))
    assert list(held) == sorted(set(held))
    for label, count in enumerate(counts):
        kept = (labels[train] == label).sum() + (labels[held] == label).sum()
        assert (labels[train] == label).sum() >= 1
        assert abs(kept - max(1, fraction * count)) <= 0.5
        assert abs((labels[held] == label).sum() - holdout * kept) <= 1


def test_smaller_fractions_are_subsets_of_larger_ones() -> None:
    labels = np.random.default_rng(0).integers(0, 7, 1000)
    parts = [split(labels, fraction=fraction, holdout=0.1, seed=3) for fraction in (0.1, 0.25, 0.5, 1.0)]
    for (train, held), (more_train, more_held) in itertools.pairwise(parts):
        assert set(train) < set(more_train)
        assert set(held) < set(more_held)


def test_the_seed_decides_the_split() -> None:
    labels = np.repeat(np.arange(4), 50)
    first, again, other = (split(labels, fraction=0.5, holdout=0.1, seed=seed)[0] for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_holdout_comes_from_small_classes_too() -> None:
    labels = np.repeat(np.arange(100), 10)
    _, held = split(labels, fraction=1.0, holdout=0.05, seed=0)
    assert 30 <= len(held) <= 70


@pytest.mark.parametrize(
    ("labels", "fraction", "holdout"),
    [(np.arange(1000), 1.0, 0.05), (np.repeat(np.arange(100), 2), 0.01, 0.3), (np.repeat(np.arange(50), 3), 1.0, 0.99)],
)
def test_no_class_loses_its_last_image_to_the_holdout(labels: np.ndarray, fraction: float, holdout: float) -> None:
    train, _ = split(labels, fraction=fraction, holdout=holdout, seed=0)
    assert np.array_equal(np.unique(labels[train]), np.unique(labels))


def test_what_is_held_out_of_larger_classes_has_not_changed() -> None:
    """Runs go on with what an earlier version held out."""
    _, held = split(np.arange(90) % 3, fraction=0.8, holdout=0.1, seed=7)
    assert held.tolist() == [4, 15, 41, 44, 46, 75, 77, 84]


def npy(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def test_logits_are_read_where_they_lie(tar: Callable[[Members], Path]) -> None:
    halves = npy(np.array([1.5, -2.0], dtype=np.float16))
    members = [("a.cls", b"1"), ("a.logits.npy", halves), ("a.png", png())]
    dataset = ShardDataset([tar(members)], num_classes=2, in_chans=1)
    assert dataset.has_logits
    assert dataset.logits(0).dtype == torch.float32
    assert dataset.logits(0).tolist() == [1.5, -2.0]
    assert not ShardDataset([tar([*members, ("b.cls", b"0"), ("b.png", png())])], num_classes=2, in_chans=1).has_logits


@pytest.mark.parametrize(
    "damaged",
    [
        b"not numpy",
        npy(np.zeros(3, dtype=np.float32)),
        npy(np.zeros(2, dtype=np.int64)),
        npy(np.array([0.0, np.nan], dtype=np.float32)),
    ],
)
def test_logits_that_are_none_are_named(tar: Callable[[Members], Path], damaged: bytes) -> None:
    dataset = ShardDataset(
        [tar([("a.cls", b"1"), ("a.logits.npy", damaged), ("a.png", png())])], num_classes=2, in_chans=1
    )
    with pytest.raises(CorruptData, match=r"made-by-hand.tar: sample 'a': its logits.npy"):
        dataset.logits(0)


def test_a_split_does_not_look_for_each_class_among_all_samples() -> None:
    """A thousand classes of a million images would be 10^9 comparisons."""

    class Counted(np.ndarray):
        compared = 0

        def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: object, **how: object) -> object:
            plain = [np.asarray(one) if isinstance(one, Counted) else one for one in inputs]
            if ufunc in (np.equal, np.not_equal):
                Counted.compared += max(np.size(one) for one in plain)
            return getattr(ufunc, method)(*plain, **how)

    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(300), 4))
    expected = split(labels, fraction=1.0, holdout=0.25, seed=0)
    found = split(labels.view(Counted), fraction=1.0, holdout=0.25, seed=0)
    assert all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))
    assert Counted.compared <= 4 * len(labels)
