"""Names of other libraries: the network with translated weights answers as the library's own does."""

from typing import Any

import pytest
import timm
import torch
import torchvision
from efficientnet_pytorch import EfficientNet
from torch import nn

from dearkd.teacher_files.foreign_names import Naming, Twin, recognise
from dearkd.teacher_files.intake import TeacherFile
from dearkd.teacher_files.namings import EFFICIENTNET_PYTORCH, MOBILENET_V2, NAMINGS, RESNET, torchvision_naming
from dearkd.vision.architectures import SLOW_TO_FILL
from dearkd.vision.bounded_construction import ParametersOnMeta
from tests.support.teacher_files import CLASSES, Add, difference, plain, rebuilt, refusal, trained

pytestmark = pytest.mark.slow

TOLERANCE = 1e-4
"""Of the logits' standard deviation: sums in another order differ by this. A wrong tensor or epsilon by far more."""

NETWORKS = [
    "resnet18",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "resnext50_32x4d",
    "densenet121",
    "efficientnet_b0",
    "efficientnet_v2_s",
    "regnet_x_400mf",
    "regnet_y_400mf",
    "mobilenet_v3_large",
]


def of_torchvision(name: str, **arguments: Any) -> nn.Module:
    if name in SLOW_TO_FILL:
        arguments["init_weights"] = False
    network = getattr(torchvision.models, name)(weights=None, num_classes=CLASSES, **arguments)
    if name in SLOW_TO_FILL:  # as torch fills them, nothing of an image would come as far as the logits
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight)
    return trained(network)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_of_torchvision_answers_the_same(add: Add, name: str) -> None:
    theirs = of_torchvision(name)
    found = add(theirs.state_dict(), image_size=64)
    twin = torchvision_naming(name)
    assert twin is not None
    assert found.body["architecture"] == twin[1].architecture
    assert difference(rebuilt(found), theirs, 64) < TOLERANCE
    named = add(plain(theirs), image_size=64, architecture=f"torchvision:{name}")
    assert named.body == found.body


WITHOUT = ["shufflenet_v2_x0_5", "mnasnet0_5", "googlenet"]


@pytest.mark.parametrize("name", WITHOUT)
def test_a_network_without_a_twin_is_built_from_torchvision(add: Add, name: str) -> None:
    theirs = of_torchvision(name)
    found = add(plain(theirs), image_size=64)
    assert found.body["architecture"] == f"torchvision:{name}"
    assert found.body["num_classes"] == CLASSES
    assert found.body["mean"] == ([0.5] * 3 if name == "googlenet" else [0.485, 0.456, 0.406])
    assert difference(rebuilt(found), theirs, 64) < TOLERANCE
    assert add(plain(theirs), image_size=64, architecture=f"torchvision:{name}").body == found.body
    assert "torchvision's mnasnet1_3" in refusal(lambda: add(plain(theirs), architecture="torchvision:mnasnet1_3"))


@pytest.mark.parametrize(("name", "side"), [("googlenet", 64), ("inception_v3", 96)])
@torch.no_grad()
def test_weights_of_a_network_that_transforms_its_input_are_read_as_torchvision_uses_its_own(
    add: Add, name: str, side: int
) -> None:
    theirs = of_torchvision(name, transform_input=True)
    pixels = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    imagenet = [torch.tensor(values).view(3, 1, 1) for values in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])]
    wanted = theirs((pixels - imagenet[0]) / imagenet[1])

    def answers(found: TeacherFile) -> torch.Tensor:
        mean, std = (torch.tensor(found.body[key]).view(3, 1, 1) for key in ("mean", "std"))
        return rebuilt(found)((pixels - mean) / std)

    as_its_own = add(plain(theirs), image_size=side)
    switched = add(plain(theirs), image_size=side, model_args={"transform_input": True})
    for found in (as_its_own, switched):
        assert (answers(found) - wanted).abs().max() < TOLERANCE * wanted.std()
    assert switched.body["mean"] == [0.485, 0.456, 0.406]
    given = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    untold = add(plain(theirs), image_size=side, **given)
    assert (answers(untold) - wanted).abs().max() > wanted.std() / 10
    assert any("--model-arg transform_input=true" in remark for remark in untold.remarks)
    assert not any("transform_input" in remark for remark in (*as_its_own.remarks, *switched.remarks))


def test_a_vgg_of_torchvision_answers_the_same_up_to_255_pixels(add: Add) -> None:
    theirs = of_torchvision("vgg11_bn")
    found = add(theirs.state_dict())
    assert found.body["image_size"] == 224
    ours = rebuilt(found)
    for side in (64, 224, 255):
        assert difference(ours, theirs, side) < TOLERANCE
    assert difference(ours, theirs, 256) > TOLERANCE
    assert "255" in refusal(lambda: add(theirs.state_dict(), image_size=256))


@pytest.mark.parametrize("width", [0.35, 1.4])
def test_other_widths_of_mobilenet_answer_the_same(add: Add, width: float) -> None:
    theirs = of_torchvision("mobilenet_v2", width_mult=width)
    found = add(plain(theirs))
    assert found.body["architecture"] == f"mobilenetv2_{round(width * 100):03d}"
    assert difference(rebuilt(found), theirs, 64) < TOLERANCE


def test_files_of_torchvisions_old_densenets_are_renamed(add: Add) -> None:
    naming = next(naming for naming in NAMINGS if naming.family == "DenseNet")
    with torch.device("meta"):
        wanted = timm.create_model("densenet121").state_dict()
    old = {}
    for name, tensor in wanted.items():
        for kind in ("norm1", "norm2", "conv1", "conv2"):
            if "denselayer" in name:
                name = name.replace(f".{kind}.", f".{kind[:-1]}.{kind[-1]}.")
        old[name] = tensor
    assert old.keys() != wanted.keys()
    assert recognise(old, NAMINGS) is naming
    assert naming.translate(old, wanted).keys() == wanted.keys()


TWINS = [(naming, name) for naming in NAMINGS if naming.library == "torchvision" for name in naming.twins]


@pytest.mark.parametrize(("naming", "name"), TWINS, ids=[name for _, name in TWINS])
def test_every_twin_has_the_same_tensors(naming: Naming, name: str) -> None:
    with ParametersOnMeta():
        theirs = getattr(torchvision.models, name)(weights=None).state_dict()
    ours = layout(naming.twins[name])
    translated = naming.translate(theirs, ours)
    assert {name: t.shape for name, t in translated.items()} == {name: t.shape for name, t in ours.items()}
    assert naming is RESNET or naming.family == "DenseNet" or recognise(theirs, NAMINGS) is naming


def layout(twin: Twin) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        return dict(timm.create_model(twin.architecture, **twin.model_args).state_dict())


def in_their_names(naming: Naming, twin: Twin) -> dict[str, torch.Tensor]:
    """timm's tensors under the names of efficientnet_pytorch, by its own rule: blocks are counted through."""
    ours = layout(twin)
    blocks: dict[str, int] = {}
    expanded = {name[: name.index(".bn3")] for name in ours if ".bn3.weight" in name}
    renamed = {}
    for name, tensor in ours.items():
        module, _, kind = name.rpartition(".")
        if module.startswith("blocks."):
            _, stage, place, part = module.split(".", 3)
            block = f"blocks.{stage}.{place}"
            number = blocks.setdefault(block, len(blocks))
            part = part.replace("se.conv_", "se_")
            wide = {"conv_pw": "expand_conv", "bn1": "bn0", "bn2": "bn1", "bn3": "bn2", "conv_pwl": "project_conv"}
            parts = wide if block in expanded else {"conv_pw": "project_conv"}
            part = ({"conv_dw": "depthwise_conv"} | parts).get(part, part)
            module = f"_blocks.{number}._{part}"
        else:
            module = {"bn1": "_bn0", "bn2": "_bn1", "classifier": "_fc"}.get(module, f"_{module}")
        renamed[f"{module}.{kind}"] = tensor
    return renamed


@pytest.mark.parametrize("name", ["efficientnet-b0", "efficientnet-lite0"])
def test_the_names_of_efficientnet_pytorch_become_timms(name: str) -> None:
    twin = EFFICIENTNET_PYTORCH.twins[name]
    theirs = in_their_names(EFFICIENTNET_PYTORCH, twin)
    assert recognise(theirs, NAMINGS) is EFFICIENTNET_PYTORCH
    ours = layout(twin)
    translated = EFFICIENTNET_PYTORCH.translate(theirs, ours)
    assert all(translated[name] is tensor for name, tensor in zip(ours, theirs.values(), strict=True))


@pytest.mark.parametrize(("name", "built_for", "side"), [("b0", None, 64), ("b0", None, 224), ("b1", 100, 100)])
def test_efficientnet_pytorch_itself_answers_the_same(add: Add, name: str, built_for: int | None, side: int) -> None:
    theirs = trained(EfficientNet.from_name(f"efficientnet-{name}", num_classes=CLASSES, image_size=built_for))
    found = add(theirs.state_dict(), image_size=side)
    assert found.body["architecture"] == f"tf_efficientnet_{name}"
    assert difference(rebuilt(found), theirs, side) < TOLERANCE


def test_where_efficientnet_pytorch_pads_for_another_image_size_a_remark_says_so(add: Add) -> None:
    theirs = trained(EfficientNet.from_name("efficientnet-b0", num_classes=CLASSES))
    otherwise, alike = (add(theirs.state_dict(), image_size=side) for side in (100, 96))
    assert difference(rebuilt(otherwise), theirs, 100) > TOLERANCE
    assert any("built for, by default 224 px" in remark for remark in otherwise.remarks)
    assert not any("built for" in remark for remark in alike.remarks)


def test_what_a_family_is_asked_to_be_but_is_not_is_refused(add: Add) -> None:
    state = plain(of_torchvision("mobilenet_v2"))
    assert add(state, architecture="mobilenetv2_100").body["architecture"] == "mobilenetv2_100"
    said = refusal(lambda: add(state, architecture="resnet18"))
    assert "MobileNetV2" in said
    assert "mobilenetv2_140" in said
    assert "num_classes" not in refusal(lambda: add(state, architecture="mobilenetv2_140"))
    assert len(MOBILENET_V2.all_twins()) == 5
