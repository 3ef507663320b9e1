"""Labels and channels at the door: a run trains on what its user meant, or not at all."""

import gzip
import io
import json
import re
import tarfile
from pathlib import Path
from typing import Any

import pytest

from dearkd.identifiers import new_id
from dearkd.jobs.inspections import Inspections
from tests.services.api.test_api_registration import DATASETS, inspect, inspected, put_shards, refusal, shard
from tests.support.api_contents import png, pointers, put_dataset, put_teacher
from tests.support.services import Api

RUNS = "/v1/training-runs"
TWELVE = [str(label) for label in range(12)]
ANIMALS = ["class1", "class10", "class11", "class12", "class2", *(f"class{n}" for n in range(3, 10))]

__all__ = ["inspected"]


def classes(api: Api, tmp_path: Path, names: list[str] | None, **fields: Any) -> str:
    return put_dataset(api, tmp_path, num_classes=12, class_names=names, **fields)


@pytest.mark.parametrize("names", [sorted(TWELVE), [str(n) for n in range(1, 13)], ANIMALS])
def test_an_uncertain_order_is_refused_where_the_teacher_has_no_names(
    api: Api, tmp_path: Path, names: list[str]
) -> None:
    nameless = put_teacher(api, num_classes=12)
    answer = api.http.post(RUNS, json={"dataset": classes(api, tmp_path, names), "teacher": nameless})
    assert (answer.status_code, pointers(answer)) == (422, ["/dataset"])
    detail = answer.json()["detail"]
    assert "--class-order name|natural|number" in detail
    assert "by name they are" in detail
    assert "in natural order" in detail
    assert api.http.get(RUNS).json()["data"] == []
    # Somebody has said so, or the teacher says which class is which.
    said = classes(api, tmp_path, names, class_order="name" if names == sorted(names) else "natural")
    named = put_teacher(api, num_classes=12, class_names=names)
    for body in ({"dataset": said, "teacher": nameless}, {"dataset": classes(api, tmp_path, names), "teacher": named}):
        assert api.http.post(RUNS, json=body).status_code == 202


def test_names_that_the_teacher_does_not_know_make_no_order_certain(api: Api, tmp_path: Path) -> None:
    """A list of other names says as little of the labels as none."""
    teacher = put_teacher(api, num_classes=12, class_names=[f"kind {letter}" for letter in "abcdefghijkl"])
    for names, status in ((sorted(TWELVE), 422), (ANIMALS, 422), (TWELVE, 202), ([f"n{n:02}" for n in range(12)], 202)):
        answer = api.http.post(RUNS, json={"dataset": classes(api, tmp_path, names), "teacher": teacher})
        assert answer.status_code == status, names
        if status == 422:
            assert pointers(answer) == ["/dataset"]
            assert "names none of these classes" in answer.json()["detail"]
    said = classes(api, tmp_path, ANIMALS, class_order="name")
    assert api.http.post(RUNS, json={"dataset": said, "teacher": teacher}).status_code == 202


def test_another_teacher_without_names_on_a_synthesised_set(api: Api, tmp_path: Path) -> None:
    own, other = put_teacher(api, num_classes=12, class_names=ANIMALS), put_teacher(api, num_classes=12)
    made = classes(api, tmp_path, ANIMALS, teacher=own, spec={"teacher": own, "flip": 0.0})
    for body in ({}, {"teacher": own}):
        assert api.http.post(RUNS, json={"dataset": made} | body).status_code == 202
    answer = api.http.post(RUNS, json={"dataset": made, "teacher": other})
    assert (answer.status_code, pointers(answer)) == (422, ["/dataset"])


def test_outputs_of_a_teacher_without_names_are_numbers_and_no_names(api: Api, tmp_path: Path) -> None:
    """Its label 2 may be folder 10: who evaluates on real folders says how they were sorted."""
    own = put_teacher(api, num_classes=12)
    made = classes(api, tmp_path, None, teacher=own, spec={"teacher": own, "flip": 0.0})
    body = {"dataset": made, "eval_dataset": classes(api, tmp_path, sorted(TWELVE), class_order="name")}
    assert api.http.post(RUNS, json=body).status_code == 202
    answer = api.http.post(RUNS, json=body | {"eval_dataset": classes(api, tmp_path, sorted(TWELVE))})
    assert (answer.status_code, pointers(answer)) == (422, ["/eval_dataset"])
    assert "not certain" in answer.json()["detail"]
    # Real folders that were named by numbers are names, whoever says how they were sorted.
    real = classes(api, tmp_path, TWELVE, class_order="number")
    answer = api.http.post(RUNS, json=body | {"dataset": real, "teacher": own})
    assert (answer.status_code, pointers(answer)) == (422, ["/eval_dataset"])


def test_an_evaluation_is_compared_with_a_dataset_without_a_teacher(api: Api, tmp_path: Path) -> None:
    plain = {"stage_one": {"distillation": "none", "weights": {"hidden": 0}}}
    body = {"dataset": classes(api, tmp_path, TWELVE), "eval_dataset": classes(api, tmp_path, ANIMALS)} | plain
    answer = api.http.post(RUNS, json=body)
    assert (answer.status_code, pointers(answer)) == (422, ["/eval_dataset"])
    same = {"dataset": body["eval_dataset"], "eval_dataset": classes(api, tmp_path, [n.upper() for n in ANIMALS])}
    assert api.http.post(RUNS, json=body | same).status_code == 202


@pytest.mark.parametrize(
    ("theirs", "ours", "says"),
    [
        (["cat", "dog", "emu"], ["cat", "dog"], "all of them are the teacher's"),
        (["cat", "dog"], ["Cat", "dog", "emu"], "'emu' is none of the teacher's"),
        (None, ["cat", "dog"], "both must have the same"),
    ],
)
def test_another_number_of_classes_is_refused_with_what_helps(
    api: Api, tmp_path: Path, theirs: list[str] | None, ours: list[str], says: str
) -> None:
    teacher = put_teacher(api, num_classes=len(theirs or "abc"), class_names=theirs)
    dataset = put_dataset(api, tmp_path, num_classes=len(ours), class_names=ours)
    answer = api.http.post(RUNS, json={"dataset": dataset, "teacher": teacher})
    assert (answer.status_code, pointers(answer)) == (422, ["/teacher"])
    assert says in answer.json()["detail"]


def test_one_class_teaches_nothing(api: Api, tmp_path: Path) -> None:
    plain = {"stage_one": {"distillation": "none", "weights": {"hidden": 0}}}
    answer = api.http.post(RUNS, json={"dataset": put_dataset(api, tmp_path, num_classes=1)} | plain)
    assert (answer.status_code, pointers(answer)) == (422, ["/dataset"])
    assert "one class" in answer.json()["detail"]


def test_an_evaluation_in_an_uncertain_order_is_refused(api: Api, tmp_path: Path) -> None:
    nameless = put_teacher(api, num_classes=12)
    body = {"dataset": classes(api, tmp_path, TWELVE), "teacher": nameless}
    answer = api.http.post(RUNS, json=body | {"eval_dataset": classes(api, tmp_path, ANIMALS)})
    assert (answer.status_code, pointers(answer)) == (422, ["/eval_dataset"])
    assert "not certain" in answer.json()["detail"]


def test_labels_that_count_from_one_are_not_those_of_a_teacher_with_names(api: Api, tmp_path: Path) -> None:
    teacher = put_teacher(api, num_classes=12, class_names=TWELVE)
    dataset = classes(api, tmp_path, [str(n) for n in range(1, 13)])
    answer = api.http.post(RUNS, json={"dataset": dataset, "teacher": teacher})
    assert (answer.status_code, pointers(answer)) == (422, ["/teacher"])


def test_images_take_the_channels_of_the_teacher(api: Api, tmp_path: Path) -> None:
    teacher = put_teacher(api, in_chans=3)
    body = {"dataset": put_dataset(api, tmp_path), "teacher": teacher}
    for evaluated in ({}, {"eval_dataset": put_dataset(api, tmp_path, in_chans=3)}):
        answer = api.http.post(RUNS, json=body | evaluated)
        assert answer.status_code == 202, answer.text


@pytest.mark.parametrize(
    ("order", "names", "says"),
    [
        ("name", ["2", "10"], "'2' at label 0, where that order has '10'"),
        ("natural", ["10", "2"], "'10' at label 0, where that order has '2'"),
        ("number", ["a", "b"], "not every class is named by a number"),
    ],
)
def test_an_order_that_is_not_so_is_refused(
    api: Api, inspected: Inspections, tmp_path: Path, order: str, names: list[str], says: str
) -> None:
    put_shards(api, "real/set", tmp_path, [0, 1])
    api.storage.put("real/set/class_names.json", json.dumps(names).encode())
    refused = inspect(inspected, new_id("ds"), prefix="real/set", name=None, class_order=order).refusal
    assert refused is not None
    assert [pointer for pointer, _ in refused.errors] == ["/class_order"]
    assert says in refused.message
    assert api.http.get(DATASETS).json()["data"] == []


def test_the_order_that_was_said_is_kept(api: Api, inspected: Inspections, tmp_path: Path) -> None:
    put_shards(api, "real/set", tmp_path, [0, 1])
    api.storage.put("real/set/class_names.json", b'["10", "9"]')
    identifier = new_id("ds")
    assert inspect(inspected, identifier, prefix="real/set", name=None, class_order="name").state == "ready"
    assert api.http.get(f"{DATASETS}/{identifier}").json()["class_order"] == "name"
    answer = api.http.post(DATASETS, json={"prefix": "real/set", "class_order": "size"})
    assert (answer.status_code, pointers(answer)) == (422, ["/class_order"])


@pytest.mark.parametrize("labels", [[1, 2, 3], [5, 6]])
def test_labels_without_a_class_0_are_refused_unless_the_classes_are_named(
    api: Api, inspected: Inspections, tmp_path: Path, labels: list[int]
) -> None:
    put_shards(api, "real/set", tmp_path, labels)
    assert f"subtract {labels[0]} from each" in refusal(inspected, "real/set").message
    api.storage.put("real/set/class_names.json", json.dumps([f"c{n}" for n in range(7)]).encode())
    assert inspect(inspected, new_id("ds"), prefix="real/set", name=None).state == "ready"


def test_grey_and_colour_images_lie_together(api: Api, inspected: Inspections, tmp_path: Path) -> None:
    put_shards(api, "mixed", tmp_path, [0, 1, 1])
    colour = shard(tmp_path / "colour.tar", [1, 0], mode="RGB")
    api.storage.put("mixed/colour.tar", tmp_path / colour.name)
    identifier = new_id("ds")
    assert inspect(inspected, identifier, prefix="mixed", name=None).state == "ready"
    dataset = api.http.get(f"{DATASETS}/{identifier}").json()
    assert (dataset["in_chans"], dataset["converted"]) == (3, {"grey": 3})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("\ufeff" + '["cat", "dog"]', None),
        ('["cafe\u0301", "dog"]', None),  # as macOS composes it
        ('["cat", "dog"]'.encode("utf-16"), "UTF-16"),
    ],
)
def test_class_names_as_editors_write_them(
    api: Api, inspected: Inspections, tmp_path: Path, text: str | bytes, says: str | None
) -> None:
    put_shards(api, "real/set", tmp_path, [0, 1])
    api.storage.put("real/set/class_names.json", text.encode() if isinstance(text, str) else text)
    if says is not None:
        assert says in refusal(inspected, "real/set").message
        return
    identifier = new_id("ds")
    assert inspect(inspected, identifier, prefix="real/set", name=None).state == "ready"
    names = [c["name"] for c in api.http.get(f"{DATASETS}/{identifier}").json()["classes"]]
    assert names[0] in ("cat", "caf\u00e9")


def test_compressed_tars_are_named(api: Api, inspected: Inspections, tmp_path: Path) -> None:
    put_shards(api, "zipped", tmp_path, [0, 1], [1])
    packed = gzip.compress(api.storage.read("zipped/part-1.tar"))
    api.storage.put("zipped/part-1.tar", packed)
    assert "part-1.tar is compressed with gzip" in refusal(inspected, "zipped").message
    api.storage.delete("zipped/part-1.tar")
    for name in ("part-1.tar.gz", "part-1.TGZ", "part-1.tar.zst"):
        api.storage.put(f"zipped/{name}", packed)
        answer = api.http.post(DATASETS, json={"prefix": "zipped"})
        assert (answer.status_code, pointers(answer)) == (422, ["/prefix"]), name
        assert name in answer.json()["detail"]
        api.storage.delete(f"zipped/{name}")


@pytest.mark.parametrize(
    "names", [("train-0.tar", "val-0.tar"), ("train/0.tar", "test/0.tar"), ("set-train-0.tar", "set-validation-0.tar")]
)
def test_shards_of_several_splits_are_no_dataset(api: Api, tmp_path: Path, names: tuple[str, str]) -> None:
    made = shard(tmp_path / "x.tar", [0, 1])
    for name in names:
        api.storage.put(f"splits/{name}", tmp_path / made.name)
    answer = api.http.post(DATASETS, json={"prefix": "splits"})
    assert (answer.status_code, pointers(answer)) == (422, ["/prefix"])
    assert all(name in answer.json()["detail"] for name in names)
    # One split is none too many (and then an inspector is asked for).
    api.storage.delete(f"splits/{names[1]}")
    assert api.http.post(DATASETS, json={"prefix": "splits"}).json()["code"] == "inspector_unavailable"


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ({"cls": b"\xef\xbb\xbf1\r\n"}, None),
        ({"cls": b" 1 "}, None),
        ({"cls": b"1.0"}, "label b'1.0', which is no whole number"),
        ({"cls": b"True"}, "no whole number"),
        ({"cls": b"-1"}, "label -1"),
        ({"cls": b"9" * 5000}, "no whole number"),
        ({"cls": b""}, "no whole number"),
        ({"cls": b"2"}, "label 2.*count from 0, not from 1"),
        ({"txt": b"a cat"}, "none is read from .txt"),
        ({"json": b'{"label": 1}'}, "none is read from .json"),
    ],
)
def test_labels_as_other_tools_write_them(
    api: Api, inspected: Inspections, tmp_path: Path, members: dict[str, bytes], says: str | None
) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        first = {"b.png": png(), "b.cls": b"0"}
        for name, data in (
            first | {"a.png": png()} | {f"a.{suffix}": data for suffix, data in members.items()}
        ).items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    api.storage.put("odd/x.tar", path)
    api.storage.put("odd/class_names.json", b'["cat", "dog"]')
    if says is None:
        assert inspect(inspected, new_id("ds"), prefix="odd", name=None).state == "ready"
        return
    message = refusal(inspected, "odd").message
    assert "x.tar: sample 'a'" in message
    assert re.search(says, message), message
