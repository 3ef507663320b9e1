"""Shards: the bytes depend on the samples alone, three other readers read them, and a bad one is named and refused."""

import io
import json
import tarfile
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from dearkd.data.manifests import DatasetManifest, fetch_shard
from dearkd.data.shard_files import IMAGE_SUFFIXES, Sample, Shard, write_shard
from dearkd.data.shard_info import info_json, read_class_names, read_info
from dearkd.data.shard_reader import inspect_shard
from dearkd.data.tar_members import split_member
from dearkd.data.unregistered import listed_shards
from dearkd.errors import CorruptData, InvalidInput
from dearkd.settings import Settings
from dearkd.storage.file_cache import FileCache
from dearkd.storage.objects import Storage


def png(value: int, size: tuple[int, int] = (8, 8)) -> bytes:
    file = io.BytesIO()
    Image.new("L", size, value).save(file, "PNG")
    return file.getvalue()


def samples(start: int, count: int) -> list[Sample]:
    return [
        Sample(key=f"{i:09d}", image=png(i), suffix="png", label=i % 3, fields={"label": i % 3, "margin": 0.5})
        for i in range(start, start + count)
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two shards of a dataset, with what a finished one has beside them."""
    shards = [write_shard(tmp_path / f"train-{i:06d}.tar", samples(5 * i, 5)) for i in range(2)]
    (tmp_path / "_info.json").write_bytes(info_json(shards))
    (tmp_path / "dataset.json").write_text("{}")
    (tmp_path / "README.md").write_text("# a card")
    (tmp_path / "preview.png").write_bytes(png(0))
    return tmp_path


def test_the_same_samples_give_the_same_bytes(tmp_path: Path) -> None:
    first = write_shard(tmp_path / "a.tar", samples(0, 5))
    second = write_shard(tmp_path / "b.tar", samples(0, 5))
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    assert first.sha256 == second.sha256
    assert first.classes == {0: 2, 1: 2, 2: 1}
    assert first.samples == 5


suffixes = st.lists(st.text("abcnpy._", min_size=1, max_size=9).filter(lambda text: text[0] not in "._"), max_size=3)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    made=st.lists(
        st.builds(
            Sample,
            # Longer than the hundred bytes of a header, or not ASCII: then an extended header holds the name.
            key=st.text("0aé/", min_size=1, max_size=150),
            image=st.binary(max_size=600),
            suffix=st.sampled_from(IMAGE_SUFFIXES),
            label=st.integers(0, 1000),
            fields=st.dictionaries(st.text(max_size=3), st.floats(allow_nan=False, allow_infinity=False), max_size=2),
            arrays=st.dictionaries(suffixes.map(".".join).filter(bool), st.binary(max_size=5), max_size=2),
        ),
        max_size=3,
    )
)
def test_both_writers_write_the_same_bytes(tmp_path: Path, made: list[Sample]) -> None:
    from dearkd.vision import tar_writer

    plain = write_shard(tmp_path / "train-000000.tar", made)
    data = (tmp_path / "train-000000.tar").read_bytes()
    assert tar_writer.write_shard(tmp_path / "train-000000.tar", made) == plain
    assert (tmp_path / "train-000000.tar").read_bytes() == data


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_members_stand_by_suffix_with_fixed_time_owner_and_mode(tmp_path: Path, suffix: str) -> None:
    write_shard(tmp_path / "a.tar", [Sample("7", b"image", suffix, 3, {}, {"logits.npy": b"x"})])
    with tarfile.open(tmp_path / "a.tar") as tar:
        members = tar.getmembers()
    assert [member.name for member in members] == sorted(f"7.{part}" for part in ("cls", "json", "logits.npy", suffix))
    assert {(m.mtime, m.mode, m.uid, m.gid, m.uname, m.gname) for m in members} == {(0, 0o644, 0, 0, "", "")}


@pytest.mark.parametrize("write", ["dearkd.data.shard_files", "dearkd.vision.tar_writer"])
def test_an_error_while_writing_leaves_no_file(tmp_path: Path, write: str) -> None:
    def broken() -> object:
        yield samples(0, 1)[0]
        raise RuntimeError("lost")

    with pytest.raises(RuntimeError, match="lost"):
        import_module(write).write_shard(tmp_path / "a.tar", broken())
    assert list(tmp_path.iterdir()) == []


def test_webdataset_reads_it(folder: Path) -> None:
    import webdataset as wds

    pattern = str(folder / "train-{000000..000001}.tar")
    read = list(wds.WebDataset(pattern, shardshuffle=False).decode("l8").to_tuple("png", "cls", "json"))
    assert [label for _, label, _ in read] == [i % 3 for i in range(10)]
    assert [int(image.flat[0]) for image, _, _ in read] == list(range(10))
    assert all(meta["label"] == label for _, label, meta in read)


def test_hugging_face_datasets_reads_it(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    import datasets

    cache = str(tmp_path_factory.mktemp("hf"))
    loaded = datasets.load_dataset("webdataset", data_dir=str(folder), cache_dir=cache)["train"]
    assert loaded["cls"] == [i % 3 for i in range(10)]
    assert [np.array(image).flat[0] for image in loaded["png"]] == list(range(10))


def test_timm_reads_it(folder: Path) -> None:
    from timm.data import create_dataset

    loaded = create_dataset("wds/digits", root=str(folder), split="train", is_training=False, batch_size=1)
    read = [(np.array(image).flat[0], label) for image, label in loaded]
    assert sorted((int(value), int(label)) for value, label in read) == [(i, i % 3) for i in range(10)]


def test_inspection_counts_what_is_there(folder: Path) -> None:
    found = inspect_shard(folder / "train-000001.tar", num_classes=3)
    assert found.samples == 5
    assert dict(found.classes) == {2: 2, 0: 2, 1: 1}
    assert found.image_sizes == {(8, 8)}
    assert set(found.modes) == {"L"}


def corrupt(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif how == "cut at a block":
        path.write_bytes(data[: 512 * 9])
    elif how == "bit flip":
        data[700] ^= 1
        path.write_bytes(data)
    elif how == "no tar":
        path.write_bytes(b"PK\x03\x04" + bytes(2000))


@pytest.mark.parametrize("how", ["truncated", "cut at a block", "bit flip"])
def test_verification_names_the_shard(folder: Path, how: str) -> None:
    path = folder / "train-000000.tar"
    shard = write_shard(path, samples(0, 5))
    storage = Storage.open(Settings(storage_url=f"file://{folder.parent}"))
    storage.adopt()  # the shards were there before
    dataset = DatasetManifest(
        id="ds",
        created_at=datetime.now(UTC),
        num_samples=5,
        num_classes=3,
        image_size=8,
        in_chans=1,
        classes=[],
        shards=[shard],
        prefix=folder.name,
    )
    with FileCache(folder / "cache", 2**20) as cache:
        copy = fetch_shard(storage, dataset, shard, cache)
        whole = path.read_bytes()
        corrupt(path, how)
        assert fetch_shard(storage, dataset, shard, cache) == copy
        assert copy.read_bytes() == whole
    with FileCache(folder / "another", 2**20) as cache:
        with pytest.raises(CorruptData, match=r"train-000000\.tar"):
            fetch_shard(storage, dataset, shard, cache)
        path.unlink()
        with pytest.raises(CorruptData, match=r"train-000000\.tar"):
            fetch_shard(storage, dataset, shard, cache)


@pytest.mark.parametrize("how", ["truncated", "cut at a block", "no tar"])
def test_inspection_refuses_what_is_cut_or_no_tar(folder: Path, how: str) -> None:
    corrupt(folder / "train-000000.tar", how)
    with pytest.raises(CorruptData, match=r"train-000000\.tar"):
        inspect_shard(folder / "train-000000.tar")


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"a.png": png(1)}, "no label"),
        ({"a.cls": b"1"}, "0 images"),
        ({"a.png": png(1), "a.cls": b"one"}, "no whole number"),
        ({"a.png": png(1), "a.cls": b"7"}, "label 7"),
        ({"a.png": png(1), "a.cls": b"-1"}, "label -1"),
        ({"a.png": png(1), "a.cls": b"0_1"}, "no whole number"),
        ({"a.png": png(1), "a.cls": "١".encode()}, "no whole number"),
        (
            {"a.png": png(1), "a.cls": b"1", "b.png": png(1), "b.cls": b"1", "a.jpg": png(1)},
            "'a' stands there twice, apart",
        ),
        ({"a.png": png(1)[:30], "a.cls": b"1"}, "does not open"),
        ({"a.png": b"GIF89a" + bytes(50), "a.cls": b"1"}, "does not open"),
        ({"a.png": png(1), "a.jpg": png(1), "a.cls": b"1"}, "2 images"),
        ({}, "no sample"),
    ],
)
def test_inspection_names_the_sample_and_the_rule(tmp_path: Path, members: dict[str, bytes], said: str) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    with pytest.raises(CorruptData, match=said):
        inspect_shard(path, num_classes=3)


@pytest.mark.parametrize(
    ("mode", "found"),
    [("1", "L"), ("L", "L"), ("LA", "L"), ("I;16", "L"), ("P", "RGB"), ("RGB", "RGB"), ("RGBA", "RGB")],
)
def test_inspection_and_decoding_agree_on_what_is_grey(tmp_path: Path, mode: str, found: str) -> None:
    from dearkd.vision.images import decode

    file = io.BytesIO()
    Image.new(mode, (8, 8)).save(file, "PNG")
    write_shard(tmp_path / "x.tar", [Sample("a", file.getvalue(), "png", 0, {})])
    assert inspect_shard(tmp_path / "x.tar").modes == {found: 1}
    assert decode(file.getvalue()).shape[0] == {"L": 1, "RGB": 3}[found]


def test_links_in_a_tar_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        link = tarfile.TarInfo("a.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(CorruptData, match="no regular file"):
        inspect_shard(path)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("a.png", ("a", "png")),
        ("d.x/a.b.PNG", ("d.x/a", "b.png")),
        ("noext", ("noext", "")),
        (".hidden", (".hidden", "")),
    ],
)
def test_names_split_as_webdataset_splits_them(name: str, parts: tuple[str, str]) -> None:
    from webdataset.tariterators import base_plus_ext

    assert split_member(name) == parts
    base, ext = base_plus_ext(name)
    if base is not None and base:
        assert (base, ext.lower()) == parts


def test_unregistered_shards_are_those_of_info_json_or_all_tars(folder: Path) -> None:
    storage = Storage.open(Settings(storage_url=f"file://{folder.parent}"))
    storage.adopt()  # the shards were there before
    prefix = folder.name
    storage.put(f"{prefix}/other.tar", b"x")
    assert listed_shards(storage, prefix) == {"train-000000.tar": 5, "train-000001.tar": 5}
    storage.delete(f"{prefix}/_info.json")
    assert list(listed_shards(storage, prefix)) == ["other.tar", "train-000000.tar", "train-000001.tar"]
    storage.put(f"{prefix}/_info.json", info({"train": {"gone.tar": 1}}))
    with pytest.raises(InvalidInput, match=r"gone\.tar"):
        listed_shards(storage, prefix)
    with pytest.raises(InvalidInput, match=r"no \*\.tar") as caught:
        listed_shards(storage, "nothing/here")
    assert caught.value.code == "no_shards"


def info(splits: dict[str, dict[str, int]], **change: object) -> bytes:
    """`_info.json` of splits, each of shards with so many samples."""
    described = {
        name: {
            "name": name,
            "num_samples": sum(shards.values()),
            "filenames": list(shards),
            "shard_lengths": list(shards.values()),
        }
        | change
        for name, shards in splits.items()
    }
    return json.dumps({"splits": described}).encode()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (info({"train": {"a.tar": 1}, "validation": {"b.tar": 1}}), r"2 splits \(train, validation\).*of its own"),
        (info({}), "/splits"),
        (info({"train": {}}), "/splits/train/filenames"),
        (info({"train": {"a.tar": 1}}, num_samples=999), "counts 999 samples, but 1 by its shard_lengths"),
        (info({"train": {"a.tar": 1}}, shard_lengths=[1, 2]), "names 1 shards, but has 2 shard_lengths"),
        (info({"train": {"a.tar": 1}}, filenames=["a.tar", "a.tar"], shard_lengths=[1, 1]), "names a shard twice"),
        (info({"train": {"a.tar": 1}}, filenames=[1]), "/splits/train/filenames/0"),
        (b'{"splits": ', "not as timm writes it"),
    ],
)
def test_an_info_json_that_cannot_be_followed_is_refused(tmp_path: Path, text: bytes, said: str) -> None:
    storage = Storage.open(Settings(storage_url=f"file://{tmp_path}/storage"))
    storage.put("set/_info.json", text)
    for name in ("a.tar", "b.tar"):
        storage.put(f"set/{name}", b"x")
    with pytest.raises(InvalidInput, match=said) as caught:
        listed_shards(storage, "set")
    assert "set/_info.json" in caught.value.message
    assert [error.pointer for error in caught.value.errors] == ["/prefix"]


def test_an_info_json_need_not_count(tmp_path: Path) -> None:
    assert read_info(b'{"splits": {"all": {"filenames": ["b.tar", "a.tar"]}}}', "x") == {"b.tar": None, "a.tar": None}


@pytest.mark.parametrize("text", [b"[]", b'["a", 1]', b'{"a": 1}', b'["a"', b'"a"', b"\xff"])
def test_class_names_are_a_list_of_strings(text: bytes) -> None:
    assert read_class_names('["é", "b"]'.encode(), "names") == ["é", "b"]
    with pytest.raises(InvalidInput, match=r"x/class_names\.json is .*; give a JSON list of strings"):
        read_class_names(text, "x/class_names.json")


def test_info_json_counts(tmp_path: Path) -> None:
    shards = [Shard(name=f"{i}.tar", bytes=1, sha256="", samples=i, classes={}) for i in (3, 4)]
    train = json.loads(info_json(shards))["splits"]["train"]
    assert (train["num_samples"], train["filenames"], train["shard_lengths"]) == (7, ["3.tar", "4.tar"], [3, 4])
