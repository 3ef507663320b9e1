"""What `dearkd dataset add` makes of folders as people have them; read from real files, without the API."""

import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image

from dearkd.choices import FolderOrder
from dearkd.cli import main
from dearkd.data.image_files import in_channels
from dearkd.data.image_folder import ImageFolder, Reading, read_folder
from dearkd.settings import Settings
from dearkd.specs.class_order import natural_order, parted_orders
from dearkd.storage.objects import Storage
from dearkd.vision.images import decode
from tests.support.stand_in_api import StandInApi, a_teacher


def picture(mode: str = "RGB", size: tuple[int, int] = (8, 8)) -> Image.Image:
    """Noise of seed 0."""
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(image: Image.Image, image_format: str = "PNG", **arguments: object) -> bytes:
    file = io.BytesIO()
    image.save(file, image_format, **arguments)
    return file.getvalue()


def write(root: Path, *names: str, data: bytes | None = None) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(encoded(picture()) if data is None else data)
    return root


def folders(root: Path, *names: str) -> Path:
    return write(root, *(f"{name}/one.png" for name in names))


def read(root: Path, **reading: object) -> dict[str, object]:
    """The summary of a folder, all checked."""
    source = read_folder(root, Reading(**reading))
    for _ in source.check():
        pass
    return source.summary()


def names(root: Path, **reading: object) -> list[str]:
    source = read_folder(root, Reading(**reading))
    assert isinstance(source, ImageFolder)
    return [name for name, _ in source.classes]


def stored(root: Path, scratch: Path, **reading: object) -> list[tuple[int, str, bytes]]:
    """(label, suffix, bytes) of every image as it stands in the shards."""
    source = read_folder(root, Reading(**reading))
    for _ in source.check():
        pass
    for _ in source.copy_to(Storage.open(Settings(storage_url=f"file://{scratch}")), "packed"):
        pass
    found: list[tuple[int, str, bytes]] = []
    for shard in sorted((scratch / "packed").glob("*.tar")):
        with tarfile.open(shard) as tar:
            members = {m.name: file.read() for m in tar if (file := tar.extractfile(m)) is not None}
        for name, data in members.items():
            key, _, suffix = name.partition(".")
            if suffix in ("png", "jpg", "webp"):
                found.append((int(members[f"{key}.cls"]), suffix, data))
    return found


@pytest.mark.parametrize(
    "classes",
    [
        [str(n) for n in range(12)],
        ["class9", "class10", "class100"],
        ["Zebra", "apple", "mouse"],
        ["1", "02", "3"],
    ],
)
def test_orders_that_part_are_refused_naming_both(tmp_path: Path, classes: list[str]) -> None:
    folders(tmp_path, *classes)
    with pytest.raises(typer.BadParameter, match=r"by name .*natural order .*--class-order name"):
        read_folder(tmp_path)
    assert names(tmp_path, class_order=FolderOrder.name) == sorted(classes)
    assert names(tmp_path, class_order=FolderOrder.natural) == natural_order(classes)


@pytest.mark.parametrize("classes", [["cat", "dog"], [str(n) for n in range(10)], [f"{n:03}" for n in range(12)]])
def test_orders_that_agree_need_no_choice(tmp_path: Path, classes: list[str]) -> None:
    assert names(folders(tmp_path, *classes)) == classes
    assert parted_orders(classes) is None


def test_order_by_number_wants_whole_numbers_of_their_own(tmp_path: Path) -> None:
    counted = [str(n) for n in range(1, 13)]
    assert names(folders(tmp_path / "a", *counted), class_order=FolderOrder.number) == counted
    for n, (bad, said) in enumerate(((["1", "2", "x"], "'x' is no whole number"), (["1", "01"], "one number"))):
        with pytest.raises(typer.BadParameter, match=said):
            names(folders(tmp_path / f"b{n}", *bad), class_order=FolderOrder.number)


def test_given_class_names_decide_and_what_they_do_not_name_is_refused(tmp_path: Path) -> None:
    folders(tmp_path, "husky", "tabby")
    assert names(tmp_path, class_names=["tabby", "emu", "husky"]) == ["tabby", "emu", "husky"]
    assert read(tmp_path, class_names=["tabby", "emu", "husky"])["classes_without_images"] == ["emu"]
    with pytest.raises(typer.BadParameter, match=r"'husky'.*did you mean 'huskies'"):
        names(tmp_path, class_names=["huskies", "tabby"])
    with pytest.raises(typer.BadParameter, match="leave out --class-order"):
        names(tmp_path, class_names=["husky", "tabby"], class_order=FolderOrder.name)


def test_names_are_the_same_in_both_forms_of_unicode(tmp_path: Path) -> None:
    folders(tmp_path, "cafe\u0301", "bar")
    assert names(tmp_path, class_names=["caf\u00e9", "bar"]) == ["caf\u00e9", "bar"]
    assert names(tmp_path) == ["bar", "caf\u00e9"]
    folders(tmp_path, "caf\u00e9")
    with pytest.raises(typer.BadParameter, match="two forms of Unicode"):
        names(tmp_path)


@pytest.mark.parametrize(
    ("files", "said", "split"),
    [
        (("train/{}", "val/{}"), "train, val", "train"),
        (("Training/{}", "Testing/{}"), "Testing, Training", "train"),
        (("set/dataset/train/{}", "set/dataset/holdout/{}"), "train", "training"),
        (("data/train2017/{}", "data/val2017/{}", "data/notes/{}"), "train2017", "train"),
        (("train/{}",), "train", "train"),
        (("{}/train", "{}/valid"), "holds splits", "train"),
    ],
)
def test_splits_are_refused_until_one_is_chosen(tmp_path: Path, files: tuple[str, ...], said: str, split: str) -> None:
    for pattern in files:
        folders(tmp_path, *(pattern.format(name) for name in ("cat", "dog")))
    with pytest.raises(typer.BadParameter, match=rf"{said}.*--split"):
        read_folder(tmp_path)
    summary = read(tmp_path, split=split)
    assert (summary["first_class"], summary["last_class"], summary["images"]) == ("cat", "dog", 2)
    assert sum(summary["skipped"].values()) == 2 * (len(files) - 1)  # type: ignore[attr-defined]
    with pytest.raises(typer.BadParameter, match=r"nosuch|--split"):
        read_folder(tmp_path, Reading(split="nosuch"))


def test_a_class_may_be_named_as_a_split_is(tmp_path: Path) -> None:
    assert names(folders(tmp_path, "bus", "car", "train")) == ["bus", "car", "train"]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (("animals/cat/a.png", "animals/dog/a.png"), "one class folder, 'animals'.*cat, dog: give"),
        (("images/a.png",), "one class folder, 'images'"),
        (("a.png", "b.jpg"), "2 images .*no class folders"),
        (("a/cat/1.png", "a/dog/1.png", "b/cat/1.png", "b/dog/1.png"), "not certain which level"),
        (("shards/a.tar", "more/b.tar"), r"shards \(\*\.tar\) of .* lie in"),
    ],
)
def test_a_folder_at_another_level_is_refused(tmp_path: Path, files: tuple[str, ...], said: str) -> None:
    with pytest.raises(typer.BadParameter, match=said):
        read_folder(write(tmp_path, *files))


def test_folders_below_class_folders_belong_to_the_class(tmp_path: Path) -> None:
    write(tmp_path, "n01/images/1.png", "n02/images/1.png", "n02/images/more/2.png")
    assert read(tmp_path)["images"] == 3


def test_every_file_is_taken_or_counted(tmp_path: Path) -> None:
    root = folders(tmp_path / "root", "cat", "dog")
    linked = folders(tmp_path / "elsewhere", "more")
    os.symlink(linked / "more", root / "cat" / "linked")
    os.symlink(root / "cat", root / "cat" / "loop")
    os.symlink(root / "nowhere", root / "dog" / "gone.png")
    write(root, "dog/photo.jfif", "dog/photo.jpe", "dog/nosuffix", "dog/as.txt", data=encoded(picture(), "JPEG"))
    for suffix, kind in (("bmp", "BMP"), ("tif", "TIFF"), ("jp2", "JPEG2000"), ("gif", "GIF"), ("avif", "AVIF")):
        write(root, f"dog/other.{suffix}", data=encoded(picture(), kind))
    hidden = ("cat/.ipynb_checkpoints/one.png", "dog/._one.png", ".DS_Store", ".cache/cat/one.png")
    write(root, *hidden)
    write(root, "@eaDir/cat/one.png", "__MACOSX/cat/one.png", "cat/Thumbs.db")
    write(root, "README.txt", "cat/empty", data=b"")
    write(root, "loose.png")
    summary = read(root)
    assert summary["images"] == 2 + 1 + 4 + 5
    assert summary["skipped"] == {
        "hidden": len(hidden),
        "system file": 3,
        "image beside the class folders": 1,
        "no image": 2,
        "link to a folder above itself": 1,
        "broken link": 1,
    }
    assert summary["converted"] == {"stored as PNG": 5}


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.jpg", b""),
        ("a.JPE", b"<html>not found</html>"),
        ("a.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1"),
        ("nosuffix", b"\0\0\0\x18ftypheic\0\0\0\0mif1"),
        ("a", encoded(picture(size=(64, 64)), "JPEG")[:-900]),
    ],
)
def test_an_image_that_cannot_be_read_is_named(tmp_path: Path, name: str, data: bytes) -> None:
    write(folders(tmp_path, "cat", "dog"), f"dog/{name}", data=data)
    with pytest.raises(typer.BadParameter, match=rf"dog/{name} .*(remove|convert)"):
        read(tmp_path)


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_pictures_are_upright_in_shards_and_to_every_reader(tmp_path: Path, orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture(size=(16, 8)), kind, exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        upright = np.asarray(_transposed(image).convert("RGB"))
    write(folders(tmp_path / "root", "cat"), "dog/turned.jpg", data=data)
    label, suffix, kept = stored(tmp_path / "root", tmp_path / "out")[1]
    assert (label, suffix) == (1, "png")
    with Image.open(io.BytesIO(kept)) as image:
        assert np.array_equal(np.asarray(image), upright)
    assert np.array_equal(decode(data).permute(1, 2, 0).numpy(), upright)
    assert np.array_equal(decode(kept).permute(1, 2, 0).numpy(), upright)
    assert read(tmp_path / "root")["converted"] == {"turned by EXIF orientation": 1, "stored as PNG": 1}


def _transposed(image: Image.Image) -> Image.Image:
    from PIL import ImageOps

    return ImageOps.exif_transpose(image)


def test_large_photos_need_resize_and_then_are_small(tmp_path: Path) -> None:
    large = Image.new("RGB", (6000, 4000), (10, 200, 30))
    write(folders(tmp_path / "root", "cat"), "dog/large.jpg", data=encoded(large, "JPEG"))
    with pytest.raises(typer.BadParameter, match=r"large.jpg has 6000×4000 pixels.*--resize"):
        read(tmp_path / "root")
    small, resized = stored(tmp_path / "root", tmp_path / "out", resize=64)
    assert decode(small[2]).shape == (3, 8, 8)
    assert decode(resized[2]).shape == (3, 64, 96)
    assert read(tmp_path / "root", resize=64)["converted"] == {"resized": 1, "stored as PNG": 1}


@pytest.mark.parametrize("mode", ["L", "LA", "1", "I;16", "P", "RGBA", "CMYK"])
def test_images_of_all_modes_become_those_of_the_set(tmp_path: Path, mode: str) -> None:
    image = picture("L").convert("I;16") if mode == "I;16" else picture(mode)
    data = encoded(image, "JPEG" if mode == "CMYK" else "PNG")
    write(folders(tmp_path / "root", "cat"), "dog/odd.x", data=data)
    for channels in (3, 1):
        scratch = tmp_path / f"out{channels}"
        kept = stored(tmp_path / "root", scratch, in_chans=channels if channels == 1 else None)[1][2]
        with Image.open(io.BytesIO(data)) as before:
            wanted = np.asarray(in_channels(before, channels))
        assert np.array_equal(decode(kept).permute(1, 2, 0).numpy(), wanted.reshape(8, 8, channels))
    grey = mode in ("L", "LA", "1", "I;16")
    assert read(tmp_path / "root")["in_chans"] == 3
    assert read(tmp_path / "root")["converted"] == ({"grey made colour": 1, "stored as PNG": 1} if grey else {})


def test_a_grey_set_stays_grey_unless_asked(tmp_path: Path) -> None:
    write(tmp_path, "cat/1.png", "dog/1.png", data=encoded(picture("L")))
    assert read(tmp_path)["in_chans"] == 1
    assert read(tmp_path, in_chans=3)["converted"] == {"grey made colour": 2, "stored as PNG": 2}


def test_sixteen_bits_of_grey_become_the_nearest_of_eight() -> None:
    values = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    found = np.asarray(in_channels(Image.fromarray(values), 1))
    assert np.array_equal(found, ((values.astype(np.int64) + 128) // 257).astype(np.uint8))


def test_animations_give_their_first_frame_and_say_so(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "WEBP", "TIFF"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        write(folders(tmp_path / "root", "cat"), f"dog/moving.{kind}", data=data)
    assert read(tmp_path / "root")["converted"]["first frame of several"] == 3
    for _, _, data in stored(tmp_path / "root", tmp_path / "out")[1:]:
        assert decode(data)[0].float().mean() > 200


@pytest.mark.parametrize("name", [b"caf\xe9", b"a\x1b[31m", b"a\nb", "a\u202eb".encode()])
def test_class_names_that_cannot_be_kept_are_refused(tmp_path: Path, name: bytes) -> None:
    folders(tmp_path, "cat")
    os.mkdir(os.fsencode(tmp_path) + b"/" + name)
    with pytest.raises(typer.BadParameter, match="rename it") as refused:
        read_folder(tmp_path)
    assert str(refused.value).isprintable()


def test_image_files_may_be_named_in_any_bytes(tmp_path: Path) -> None:
    folders(tmp_path / "root", "cat", "dog")
    (tmp_path / "root" / "dog" / os.fsdecode(b"caf\xe9.png")).write_bytes(encoded(picture()))
    (tmp_path / "root" / "dog" / os.fsdecode(b"caf\xe9.txt")).write_bytes(b"no image")
    assert len(stored(tmp_path / "root", tmp_path / "out")) == 3
    assert read(tmp_path / "root")["skipped"] == {"no image": 1}


@pytest.mark.parametrize(
    ("files", "split", "taken"),
    [
        (("train-0.tar", "val-0.tar"), "train", 1),
        (("imagenet-train-000.tar", "imagenet-validation-000.tar", "imagenet-train-001.tar"), "training", 2),
        (("Test_0.tar", "DEV_0.tar"), "dev", 1),
    ],
)
def test_shards_of_several_splits_are_refused_until_one_is_chosen(
    tmp_path: Path, files: tuple[str, ...], split: str, taken: int
) -> None:
    write(tmp_path, *files, "notes.md", "._train-0.tar", data=b"x")
    with pytest.raises(typer.BadParameter, match=r"2 splits.*--split"):
        read_folder(tmp_path)
    summary = read(tmp_path, split=split)
    assert summary["shards"] == taken
    assert summary["skipped"] == {"hidden": 1, "of another split": len(files) - taken, "no shard": 1}
    with pytest.raises(typer.BadParameter, match="'holdout'"):
        read_folder(tmp_path, Reading(split="holdout"))


def test_shards_of_one_split_or_none_are_taken(tmp_path: Path) -> None:
    for folder, files in (
        (tmp_path / "a", ("train-0.tar", "train-1.tar")),
        (tmp_path / "b", ("x0.tar", "trained.tar")),
    ):
        assert read(write(folder, *files, data=b"x"))["shards"] == 2


@pytest.fixture
def dry(api: StandInApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int | str | None]:
    monkeypatch.setenv("DEARKD_STORAGE_URL", f"file://{tmp_path / 'storage'}")

    def run(*arguments: str | Path) -> int | str | None:
        with pytest.raises(SystemExit) as ended:
            main(["dataset", "add", "--dry-run", *map(str, arguments)])
        return ended.value.code

    return run


def test_a_dry_run_prints_what_would_be_copied_and_copies_nothing(
    api: StandInApi, dry: Callable[..., int | str | None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write(folders(tmp_path / "root", "cat", "dog"), "dog/.hidden")
    assert dry(root, "--json") == 0
    printed = capsys.readouterr()
    summary = json.loads(printed.out)
    assert (summary["classes"], summary["images"], summary["skipped"]) == (2, 2, {"hidden": 1})
    assert summary["skipped_examples"]["hidden"] == [str(root / "dog" / ".hidden")]
    assert "2 classes: label 0 is cat, label 1 is dog" in printed.err
    assert "left out, hidden: 1" in printed.err
    assert api.requests == []
    assert not list((tmp_path / "storage").rglob("*.tar"))


@pytest.mark.parametrize("text", ["b\n\na\n", "\ufeffb\na\n", '\ufeff["b", "a"]', "b\r\na\r\n"])
def test_class_names_come_from_a_file(
    dry: Callable[..., int | str | None], tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    (tmp_path / "names.txt").write_bytes(text.encode())
    code = dry(folders(tmp_path / "root", "a", "b"), "--class-names", tmp_path / "names.txt", "--json")
    printed = capsys.readouterr()
    if "\n\n" in text:
        assert code == 2
        assert "line 2 is empty" in " ".join(printed.out.split())
    else:
        assert json.loads(printed.out)["first_class"] == "b"


def test_a_teacher_gives_names_order_and_channels(
    api: StandInApi, dry: Callable[..., int | str | None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    api.answer("GET /v1/teachers/tch-1", a_teacher("tch-1", class_names=["10", "2", "1"]))
    assert dry(folders(tmp_path / "root", "1", "2", "10"), "--teacher", "tch-1", "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["first_class"], summary["last_class"], summary["in_chans"]) == ("10", "1", 1)
    api.answer("GET /v1/teachers/tch-2", a_teacher("tch-2", in_chans=3))
    assert dry(tmp_path / "root", "--teacher", "tch-2") == 2
    assert "--class-order" in capsys.readouterr().err
