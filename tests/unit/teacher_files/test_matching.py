"""The architecture, when nobody says it: found where only one fits, offered where several do or none does."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from dearkd.teacher_files.architectures import Figures, figures_of, with_figures
from tests.support.teacher_files import CLASSES, SMALL, Add, plain, refusal, small


def state_of(architecture: str, **arguments: object) -> dict[str, torch.Tensor]:
    return plain(timm.create_model(architecture, num_classes=CLASSES, **arguments))


@pytest.mark.parametrize(
    "architecture",
    ["resnet10t", "test_efficientnet", "mobilenetv3_small_050", "regnety_002", "ghostnet_050", "repvgg_a0"],
)
def test_an_architecture_that_alone_fits_is_taken_and_said(add: Add, architecture: str) -> None:
    found = add(state_of(architecture))
    assert (found.body["architecture"], found.body["num_classes"]) == (architecture, CLASSES)
    assert found.body["in_chans"] == 3
    assert architecture in found.remarks[0]


def test_timms_own_preprocessing_is_assumed_aloud_and_each_flag_overrides_its_part(add: Add) -> None:
    found = add(plain(small()))
    assert (found.body["image_size"], found.body["mean"]) == (160, [0.5] * 3)
    assert "--image-size 160" in found.remarks[1]
    assert "--mean 0.5,0.5,0.5" in found.remarks[1]
    found = add(plain(small()), image_size=32, mean=[0.1] * 3)
    assert (found.body["image_size"], found.body["mean"], found.body["std"]) == (32, [0.1] * 3, [0.5] * 3)
    assert "--std" in found.remarks[1]
    assert "--mean" not in found.remarks[1]
    assert len(add(plain(small()), image_size=32, mean=[0.1] * 3, std=[1.0] * 3).remarks) == 1


def test_of_one_channel_nothing_is_assumed(add: Add) -> None:
    state = state_of(SMALL, in_chans=1)
    said = refusal(lambda: add(state, image_size=32))
    assert "--mean, --std" in said
    assert "--image-size" not in said
    assert add(state, image_size=32, mean=[0.5], std=[0.5]).body["in_chans"] == 1


def test_what_the_tensors_do_not_tell_apart_the_modules_do(add: Add) -> None:
    """Blurred pooling has no weights, and the names of its modules are in what `state_dict()` returns."""
    for architecture in ("resnet18", "resnetblur18"):
        model = timm.create_model(architecture)
        assert add({"state_dict": torch.nn.DataParallel(model).state_dict()}).body["architecture"] == architecture


def test_architectures_that_fit_alike_are_offered(add: Add) -> None:
    said = refusal(lambda: add(state_of("resnet18")))
    assert "resnet18 and of resnetblur18" in said
    assert "--architecture" in said
    assert add(state_of("resnet18"), architecture="resnetblur18").body["architecture"] == "resnetblur18"


def test_where_none_fits_the_three_nearest_are_offered_with_what_does_not(add: Add) -> None:
    state = state_of("resnet10t")
    state["fc.1.weight"], state["fc.1.bias"] = state.pop("fc.weight"), state.pop("fc.bias")
    said = refusal(lambda: add(state))
    offered = said.partition("Nearest: ")[2].split("); ")
    assert len(offered) == 3
    assert offered[0].startswith("resnet10t (missing: fc.weight, fc.bias; unexpected: fc.1.weight")


def test_arguments_that_a_network_was_built_with_are_respected(add: Add) -> None:
    state = state_of("resnet18", layers=[1, 1, 1, 1])
    assert "Nearest: " in refusal(lambda: add(state))
    found = add(state, architecture="resnet18", model_args={"layers": [1, 1, 1, 1]})
    assert found.body["model_args"] == {"layers": [1, 1, 1, 1]}
    said = refusal(lambda: add(state, model_args={"layers": [1, 1, 1, 1]}))
    assert "--architecture" in said  # the figures of such a network are in no index


@pytest.mark.parametrize(
    ("field", "value", "flag"), [("num_classes", 7, "--num-classes"), ("in_chans", 1, "--in-chans")]
)
def test_a_flag_that_the_tensors_contradict_is_refused(add: Add, field: str, value: int, flag: str) -> None:
    said = refusal(lambda: add(plain(small()), **{field: value}))
    assert str(value) in said
    assert flag in said


def test_an_unknown_architecture_is_refused_with_a_suggestion(add: Add) -> None:
    assert "did you mean resnet10t" in refusal(lambda: add(plain(small()), architecture="resnet10"))
    assert "of another shape: conv1" in refusal(lambda: add(plain(small()), architecture="resnet10t"))


def test_safetensors_that_fit_are_taken_as_they_are_and_others_written_anew(add: Add, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(plain(small()), path)
    assert add(path).weights == path
    save_file({f"module.{name}": tensor for name, tensor in small().state_dict().items()}, path)
    found = add(path)
    assert found.weights != path
    assert found.body["architecture"] == SMALL
    path.write_bytes(path.read_bytes()[:-10])
    assert "not a safetensors file" in refusal(lambda: add(path))


@pytest.mark.parametrize(
    "architecture", [SMALL, "resnet50", "efficientnet_b0", "densenet121", "vgg11_bn", "regnety_032"]
)
def test_the_index_says_what_the_installed_timm_builds(architecture: str) -> None:
    assert architecture in with_figures(figures_of(architecture))


def test_neither_names_nor_channels_nor_classes_change_the_figures() -> None:
    def figures(**arguments: int) -> Figures:
        return Figures.of(timm.create_model(SMALL, **arguments).state_dict())

    assert figures() == figures(num_classes=3) == figures(in_chans=1)
