"""Teachers at the door: what loads, what is refused and with which words."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dearkd.errors import InvalidInput
from dearkd.specs import TeacherSpec
from dearkd.vision.teacher_statistics import never_updated
from dearkd.vision.teachers import (
    batch_norm_layers,
    build_teacher,
    check_teacher,
    describe_teacher,
    features_and_logits,
    load_teacher,
)


def spec(architecture: str = "test_resnet", **fields: Any) -> TeacherSpec:
    given = {
        "name": "t",
        "architecture": architecture,
        "num_classes": 5,
        "in_chans": 3,
        "image_size": 32,
        "mean": [0.5] * 3,
        "std": [0.25] * 3,
    }
    return TeacherSpec.check(given | fields)


def saved(folder: Path, teacher: TeacherSpec, change: Callable[[dict[str, Tensor]], object] | None = None) -> Path:
    """The weights of a freshly built teacher, after `change`."""
    torch.manual_seed(0)
    state = {name: tensor.clone() for name, tensor in build_teacher(teacher).state_dict().items()}
    if change is not None:
        change(state)
    path = folder / "weights.safetensors"
    save_file(state, path)
    return path


def refusal(call: Callable[[], object]) -> tuple[str, str]:
    """The pointer and the detail of the one error that a call raises."""
    with pytest.raises(InvalidInput) as caught:
        call()
    (error,) = caught.value.errors
    return error.pointer, error.detail


def test_a_network_that_is_built_learns_statistics_when_it_is_trained() -> None:
    """Left in eval mode it would learn weights all the same, and keep the statistics of no image."""
    network = build_teacher(spec("resnet10t"))
    network(torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    counts = {int(count) for name, count in network.state_dict().items() if name.endswith("num_batches_tracked")}
    assert counts == {1}


def test_a_loaded_teacher_is_frozen_in_eval_mode_and_has_the_files_weights(tmp_path: Path) -> None:
    path = saved(tmp_path, spec())
    teacher = load_teacher(spec(), path)
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    stored = load_file(path)
    assert stored.keys() == teacher.state_dict().keys()
    assert all(torch.equal(tensor, stored[name]) for name, tensor in teacher.state_dict().items())


def test_description_counts_parameters_and_layers(tmp_path: Path) -> None:
    description = describe_teacher(
        spec("resnet10t", in_chans=1, mean=[0.5], std=[0.5]),
        saved(tmp_path, spec("resnet10t", in_chans=1, mean=[0.5], std=[0.5])),
    )
    assert description.batch_norm_layers == 14
    stored = load_file(tmp_path / "weights.safetensors")
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    assert description.parameters == sum(t.numel() for name, t in stored.items() if not name.endswith(buffers))


def test_half_precision_weights_become_float32(tmp_path: Path) -> None:
    def halve(state: dict[str, Tensor]) -> None:
        state.update({name: tensor.half() for name, tensor in state.items() if tensor.is_floating_point()})

    teacher = load_teacher(spec(), saved(tmp_path, spec(), halve))
    assert {parameter.dtype for parameter in teacher.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("architecture", "meant"),
    [("resnet_18", "resnet18"), ("efficientnet-b0", "efficientnet_b0"), ("nothing_like_it_xyz", "")],
)
def test_an_unknown_architecture_is_refused_with_a_suggestion(architecture: str, meant: str) -> None:
    pointer, detail = refusal(lambda: build_teacher(spec(architecture)))
    assert pointer == "/architecture"
    assert repr(architecture) in detail
    assert ("did you mean" in detail) == bool(meant)
    assert meant in detail


def test_a_name_with_a_tag_of_pretrained_weights_is_no_architecture() -> None:
    pointer, detail = refusal(lambda: build_teacher(spec("resnet18.a1_in1k")))
    assert pointer == "/architecture"
    assert "resnet18" in detail.partition("did you mean")[2]


@pytest.mark.parametrize(
    ("model_args", "named"),
    [({"output_strid": 8}, "output_stride"), ({"layers": 3}, "layers"), ({"channels": [8, -8, 8, 8]}, "channels")],
)
def test_bad_model_args_are_refused(model_args: dict[str, Any], named: str) -> None:
    pointer, detail = refusal(lambda: build_teacher(spec("resnet10t", model_args=model_args)))
    assert pointer == "/model_args"
    assert named in detail


def test_model_args_are_respected() -> None:
    dilated = build_teacher(spec("resnet10t", model_args={"output_stride": 8})).eval()
    with torch.no_grad():
        assert dilated.forward_features(torch.zeros(1, 3, 64, 64)).shape[-2:] == (8, 8)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a zip, as torch.save writes it", bytes(range(256)) * 8])
def test_random_bytes_are_no_safetensors_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    pointer, detail = refusal(lambda: load_teacher(spec(), path))
    assert pointer == "/weights"
    assert "not a safetensors file" in detail
    assert "save_file" in detail


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, spec())
    path.write_bytes(path.read_bytes()[:-100])
    assert refusal(lambda: load_teacher(spec(), path))[0] == "/weights"


def test_weights_that_do_not_fit_are_refused_by_name(tmp_path: Path) -> None:
    def spoil(state: dict[str, Tensor]) -> None:
        del state["bn1.weight"]
        state["head.extra"] = torch.zeros(1)
        state["fc.weight"] = state["fc.weight"][:3].clone()

    pointer, detail = refusal(lambda: load_teacher(spec(), saved(tmp_path, spec(), spoil)))
    assert pointer == "/weights"
    assert "missing: bn1.weight" in detail
    assert "unexpected: head.extra" in detail
    assert "fc.weight is (3, " in detail
    assert "num_classes=5, in_chans=3" in detail


def test_weights_of_another_architecture_are_refused_without_a_page_of_names(tmp_path: Path) -> None:
    _, detail = refusal(lambda: load_teacher(spec("resnet10t"), saved(tmp_path, spec("test_efficientnet"))))
    assert "more" in detail
    assert len(detail) < 1500


def test_a_teacher_without_batch_norm_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput) as caught:
        describe_teacher(spec("test_convnext"), saved(tmp_path, spec("test_convnext")))
    assert caught.value.code == "no_batch_norm"
    assert caught.value.errors[0].pointer == "/architecture"


@pytest.mark.parametrize(("folded", "refused"), [(0, False), (15, False), (16, True), (19, True)])
def test_a_teacher_with_next_to_no_batch_norm_is_refused(folded: int, refused: bool) -> None:
    """As a network whose BatchNorm was folded into its convolutions, but for what a tool did not reach."""
    model = build_teacher(spec("resnet18")).eval()
    norms = [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 20
    for name in norms[:folded]:
        model.set_submodule(name, nn.Identity().eval())
    with pytest.raises(InvalidInput, match="was BatchNorm folded") if refused else nullcontext():
        check_teacher(model, spec("resnet18"), 32)


@pytest.mark.parametrize("name", ["conv1.0.weight", "fc.bias", "layer1.0.bn1.running_var"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, name: str, value: float) -> None:
    path = saved(tmp_path, spec(), lambda state: state[name].view(-1)[0].fill_(value))
    pointer, detail = refusal(lambda: describe_teacher(spec(), path))
    assert (pointer, detail) == ("/weights", f"{name} holds values that are not finite")


@pytest.mark.parametrize(
    ("means", "variances", "untouched"),
    [(None, None, False), (0.0, 1.0, True), (0.0, None, True), (None, 1.0, True), (0.0, 1 - 1e-5, True)],
)
def test_statistics_that_no_image_has_touched(means: float | None, variances: float | None, untouched: bool) -> None:
    """Also where one half alone is as at the beginning, or a tool made the layers change nothing."""
    model = build_teacher(spec())
    with torch.no_grad():
        model(torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    layers = batch_norm_layers(model.eval())
    for _, layer in layers:
        if means is not None:
            layer.running_mean.fill_(means)
        if variances is not None:
            layer.running_var.fill_(variances)
    assert never_updated(layers) == untouched


@pytest.mark.parametrize("dead", [False, True])
def test_batch_norm_that_only_training_runs_is_not_asked_for(dead: bool) -> None:
    """As in the auxiliary classifiers of torchvision's GoogLeNet, whose layers stand in the file all the same."""
    model = build_teacher(spec()).eval()
    idle = nn.BatchNorm2d(4).eval()
    if dead:
        idle.running_var[0] = 0.0
    model.add_module("aux", idle)
    check_teacher(model, spec(), 32)


@pytest.mark.parametrize(
    ("change", "refused"), [("all zero", True), ("one negative", True), ("one zero", True), ("one dead", False)]
)
def test_running_variances(tmp_path: Path, change: str, refused: bool) -> None:
    """A dead channel is a fact of trained networks; a layer of them is not."""

    def spoil(state: dict[str, Tensor]) -> None:
        variance = state["layer1.0.bn1.running_var"]
        variance[0 if change.startswith("one") else slice(None)] = -1.0 if "negative" in change else 0.0
        if "dead" in change:
            state["layer1.0.conv1.weight"][0] = 1e-6

    path = saved(tmp_path, spec(), spoil)
    if refused:
        pointer, detail = refusal(lambda: describe_teacher(spec(), path))
        assert pointer == "/weights"
        assert "layer1.0.bn1.running_var" in detail
        assert ("of a dead channel" in detail) == (change == "one zero")
    else:
        assert describe_teacher(spec(), path).batch_norm_layers > 0


@pytest.mark.parametrize("zero", ["fc.weight", "bn1.weight", "layer4.0.bn2.weight"])
def test_a_teacher_that_sees_no_difference_is_refused(tmp_path: Path, zero: str) -> None:
    """One layer before a residual may well be zero, as zero-initialised ones are."""

    def spoil(state: dict[str, Tensor]) -> None:
        state[zero].zero_()

    path = saved(tmp_path, spec(), spoil)
    if zero == "layer4.0.bn2.weight":
        assert describe_teacher(spec(), path).batch_norm_layers > 0
        return
    pointer, detail = refusal(lambda: describe_teacher(spec(), path))
    assert pointer == "/weights"
    assert "the same logits" in detail


def test_images_too_small_for_the_network_are_refused(tmp_path: Path) -> None:
    vgg = spec("vgg11_bn", image_size=16, model_args={"mlp_ratio": 0.01})
    pointer, detail = refusal(lambda: describe_teacher(vgg, saved(tmp_path, vgg)))
    assert pointer == "/image_size"
    assert "16×16" in detail


LEVIT = {"image_size": 64, "model_args": {"img_size": 64}}


@pytest.mark.parametrize(
    ("architecture", "fields", "refused"),
    [("levit_128s", LEVIT, [32]), ("test_resnet", {}, []), ("vgg11_bn", {"model_args": {"mlp_ratio": 0.01}}, [16])],
)
def test_what_it_cannot_take_of_half_its_image_size_is_found_at_the_door(
    tmp_path: Path, architecture: str, fields: dict[str, Any], refused: list[int]
) -> None:
    """Attention with a weight for each place takes one size; a VGG of five poolings nothing below 32 px."""
    teacher = spec(architecture, **fields)
    assert describe_teacher(teacher, saved(tmp_path, teacher)).refused_input_sizes == refused


def test_an_error_without_words_is_told_by_its_type() -> None:
    """BoTNet asserts the size of its map and says nothing."""
    botnet = spec("botnet26t_256", image_size=256)
    pointer, detail = refusal(lambda: check_teacher(build_teacher(botnet).eval(), botnet, 64, pointer="/x"))
    assert pointer == "/x"
    assert detail.endswith("64×64 pixels: AssertionError; those of its image_size, 256, it takes")


def test_a_network_that_does_not_answer_with_logits_is_refused(tmp_path: Path) -> None:
    features = spec(model_args={"features_only": True})
    with pytest.raises(InvalidInput):
        describe_teacher(features, saved(tmp_path, features))


def test_training_mode_is_refused() -> None:
    assert refusal(lambda: check_teacher(build_teacher(spec()).train(), spec(), 32))[0] == "/architecture"


@pytest.mark.parametrize(
    ("architecture", "model_args"),
    [
        ("resnet10t", {}),
        ("regnety_002", {}),
        ("mobilenetv3_small_050", {}),
        ("densenet121", {"block_config": [2, 2, 2, 2]}),
        ("vgg11_bn", {"mlp_ratio": 0.01}),
        ("ghostnet_100", {}),
        ("dla46_c", {}),  # its classifier is a convolution
        ("test_byobnet", {}),
        ("levit_128s", {"img_size": 64}),  # two heads; BatchNorm1d inside
    ],
)
def test_logits_are_the_models_and_features_are_what_the_classifier_reads(
    architecture: str, model_args: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    model = build_teacher(spec(architecture, model_args=model_args)).eval()
    x = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        features, logits = features_and_logits(model, x)
        assert torch.equal(logits, model(x))
        assert features.shape[0] == 3
        assert features.ndim == 2
        classifier = model.get_classifier()
        if isinstance(classifier, nn.Linear):
            torch.testing.assert_close(classifier(features), logits)
        elif isinstance(classifier, nn.Conv2d):
            torch.testing.assert_close(classifier(features[:, :, None, None]).flatten(1), logits)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_batch_norm_layers_are_listed_once_with_subclasses_and_only_with_statistics() -> None:
    shared = nn.BatchNorm2d(2)
    model = nn.ModuleDict(
        {
            "first": shared,
            "again": shared,
            "without": nn.BatchNorm2d(2, track_running_stats=False),
            "flat": nn.BatchNorm1d(2),
            "synchronised": nn.SyncBatchNorm(2),
            "with_activation": build_teacher(spec("test_efficientnet")).bn1,
        }
    )
    assert [name for name, _ in batch_norm_layers(model)] == ["first", "synchronised", "with_activation"]
