"""The namings that are known: of torchvision, of efficientnet_pytorch and its lite sister, and of transformers."""

from typing import Any

from dearkd.teacher_files.foreign_names import Blocks, Naming, Rules, Twin

_EPS = {"bn_eps": 0.001}


def _same(*names: str) -> dict[str, Twin]:
    return {name: Twin(name) for name in names}


def _form(text: str) -> dict[str, str]:
    """A form of a block from `theirs:ours` pairs."""
    return dict(pair.split(":") for pair in text.split())


_STRAIGHT = "block.0.0:conv_dw block.0.1:bn1 "
_EXPANDED = "block.0.0:conv_pw block.0.1:bn1 block.1.0:conv_dw block.1.1:bn2 "
_CONV_BLOCKS = (
    _form(_STRAIGHT + "block.1.0:conv_pw block.1.1:bn2"),
    _form(_STRAIGHT + "block.1.fc1:se.conv_reduce block.1.fc2:se.conv_expand block.2.0:conv_pw block.2.1:bn2"),
    _form(_EXPANDED + "block.2.0:conv_pwl block.2.1:bn3"),
    _form(_EXPANDED + "block.2.fc1:se.conv_reduce block.2.fc2:se.conv_expand block.3.0:conv_pwl block.3.1:bn3"),
)
_AROUND = _form(
    "features.0.0:conv_stem features.0.1:bn1 features.{last}.0:conv_head features.{last}.1:bn2 classifier.1:classifier"
)
_SQUEEZE = "_se_reduce:se.conv_reduce _se_expand:se.conv_expand "
_PLAIN = "_depthwise_conv:conv_dw _bn1:bn1 _project_conv:conv_pw _bn2:bn2 "
_WIDENED = "_expand_conv:conv_pw _bn0:bn1 _depthwise_conv:conv_dw _bn1:bn2 _project_conv:conv_pwl _bn2:bn3 "

RESNET = Naming(
    library="torchvision",
    family="ResNet",
    marks=frozenset(),  # timm has the same names: see `is_torchvision_resnet`
    twins=_same(
        *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2", "wide_resnet101_2"),
        *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
    ),
)
DENSENET = Naming(
    library="torchvision",
    family="DenseNet",
    marks=frozenset(
        {"features.denseblock1.denselayer1.norm.1"}
    ),  # files of before 2018; since, timm has the same names
    twins=_same("densenet121", "densenet161", "densenet169", "densenet201"),
    rename=Rules(((r"(.*denselayer\d+\.(?:norm|conv))\.(\d)", r"\1\2"),)),
)
MOBILENET_V2 = Naming(
    library="torchvision",
    family="MobileNetV2",
    marks=frozenset({"features.1.conv.0.0", "classifier.1"}),
    twins={"mobilenet_v2": Twin("mobilenetv2_100")},
    unnamed=tuple(Twin(f"mobilenetv2_{width}") for width in ("035", "050", "075", "140")),
    rename=Blocks(
        r"(features\.\d+)\.(conv\..+)",
        (
            _form("conv.0.0:conv_dw conv.0.1:bn1 conv.1:conv_pw conv.2:bn2"),
            _form("conv.0.0:conv_pw conv.0.1:bn1 conv.1.0:conv_dw conv.1.1:bn2 conv.2:conv_pwl conv.3:bn3"),
        ),
        _AROUND,
    ),
)
MOBILENET_V3 = Naming(
    library="torchvision",
    family="MobileNetV3",
    marks=frozenset({"features.1.block.0.0", "classifier.3"}),
    twins={
        "mobilenet_v3_large": Twin("mobilenetv3_large_100", _EPS),
        "mobilenet_v3_small": Twin("mobilenetv3_small_100", _EPS),
    },
    rename=Blocks(
        r"(features\.\d+)\.(block\..+)",
        _CONV_BLOCKS,
        _form("features.0.0:conv_stem features.0.1:bn1 features.{last}.0:{next}.conv features.{last}.1:{next}.bn1")
        | {"classifier.0": "conv_head", "classifier.3": "classifier"},
    ),
    as_convolutions=frozenset({"conv_head"}),
)
EFFICIENTNET = Naming(
    library="torchvision",
    family="EfficientNet",
    marks=frozenset({"features.1.0.block.1.fc1", "classifier.1"}),
    twins={f"efficientnet_b{n}": Twin(f"efficientnet_b{n}", _EPS if n > 4 else {}) for n in range(8)},
    rename=Blocks(r"(features\.\d+\.\d+)\.(block\..+)", _CONV_BLOCKS, _AROUND),
)
EFFICIENTNET_V2 = Naming(
    library="torchvision",
    family="EfficientNetV2",
    marks=frozenset({"features.1.0.block.0.0", "classifier.1"}),
    twins={f"efficientnet_v2_{size}": Twin(f"efficientnetv2_{size}", _EPS) for size in "sml"},
    rename=Blocks(
        r"(features\.\d+\.\d+)\.(block\..+)",
        (
            _form("block.0.0:conv block.0.1:bn1"),
            _form("block.0.0:conv_exp block.0.1:bn1 block.1.0:conv_pwl block.1.1:bn2"),
            _CONV_BLOCKS[3],
        ),
        _AROUND,
    ),
)
VGG = Naming(
    library="torchvision",
    family="VGG with BatchNorm",
    marks=frozenset({"features.0", "classifier.0", "classifier.3", "classifier.6"}),
    twins=_same("vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn"),
    rename=Rules(
        (
            (r"classifier\.0", "pre_logits.fc1"),
            (r"classifier\.3", "pre_logits.fc2"),
            (r"classifier\.6", "head.fc"),
        )
    ),
    as_convolutions=frozenset({"pre_logits.fc1", "pre_logits.fc2"}),
    largest_image=255,  # of larger ones torchvision averages the last map to 7×7, and timm the answers at each place
)
REGNET = Naming(
    library="torchvision",
    family="RegNet",
    marks=frozenset({"stem.0", "trunk_output.block1.block1-0.f.a.0"}),
    twins={
        f"regnet_{kind}_{theirs}": Twin(f"regnet{kind}_{ours}")
        for kind in "xy"
        for theirs, ours in (
            *(("400mf", "004"), ("800mf", "008"), ("1_6gf", "016"), ("3_2gf", "032")),
            *(("8gf", "080"), ("16gf", "160"), ("32gf", "320"), ("128gf", "1280")),
        )
        if (kind, theirs) != ("x", "128gf")
    }
    | {  # timm rounds their widths in its own way under the plain names
        "regnet_x_400mf": Twin("regnetx_004_tv"),
        "regnet_y_800mf": Twin("regnety_008_tv"),
        "regnet_y_8gf": Twin("regnety_080_tv"),
    },
    rename=Rules(
        (
            (r"stem\.0", "stem.conv"),
            (r"stem\.1", "stem.bn"),
            (r"fc", "head.fc"),
            *(
                (rf"trunk_output\.block(\d)\.block\d-{place}\.{theirs}", rf"s\1.b{place + 1}.{ours}")
                for place in range(30)
                for theirs, ours in (
                    *((r"proj\.0", "downsample.conv"), (r"proj\.1", "downsample.bn")),
                    *((r"f\.a\.0", "conv1.conv"), (r"f\.a\.1", "conv1.bn"), (r"f\.b\.0", "conv2.conv")),
                    *((r"f\.b\.1", "conv2.bn"), (r"f\.c\.0", "conv3.conv"), (r"f\.c\.1", "conv3.bn")),
                    *((r"f\.se\.fc1", "se.fc1"), (r"f\.se\.fc2", "se.fc2")),
                )
            ),
        )
    ),
)
EFFICIENTNET_PYTORCH = Naming(
    library="efficientnet_pytorch",
    family="EfficientNet",
    marks=frozenset({"_conv_stem", "_blocks.0._depthwise_conv"}),
    twins={f"efficientnet-b{n}": Twin(f"tf_efficientnet_b{n}") for n in range(9)}
    | {f"efficientnet-lite{n}": Twin(f"tf_efficientnet_lite{n}") for n in range(5)},
    rename=Blocks(
        r"(_blocks\.\d+)\.(.+)",
        tuple(_form(kind + squeeze) for kind in (_PLAIN, _WIDENED) for squeeze in ("", _SQUEEZE)),
        _form("_conv_stem:conv_stem _bn0:bn1 _conv_head:conv_head _bn1:bn2 _fc:classifier"),
    ),
    pads_as_built=True,
)
_LAYERS = ("basic", "bottleneck")
TRANSFORMERS_RESNET = Naming(
    library="transformers",
    family="ResNet",
    marks=frozenset({"resnet.embedder.embedder.convolution"}),
    twins=_same("resnet18", "resnet26", "resnet34", "resnet50", "resnet101", "resnet152"),
    rename=Rules(
        (
            (r"resnet\.embedder\.embedder\.convolution", "conv1"),
            (r"resnet\.embedder\.embedder\.normalization", "bn1"),
            (r"classifier\.1", "fc"),
            *(
                (
                    rf"resnet\.encoder\.stages\.{stage}\.layers\.(\d+)\.{theirs}",
                    rf"layer{stage + 1}.\1.{ours}",
                )
                for stage in range(4)
                for theirs, ours in (
                    *((r"shortcut\.convolution", "downsample.0"), (r"shortcut\.normalization", "downsample.1")),
                    *((rf"layer\.{n}\.convolution", f"conv{n + 1}") for n in range(3)),
                    *((rf"layer\.{n}\.normalization", f"bn{n + 1}") for n in range(3)),
                )
            ),
        )
    ),
)
NAMINGS = (
    *(RESNET, DENSENET, MOBILENET_V2, MOBILENET_V3, EFFICIENTNET, EFFICIENTNET_V2, VGG, REGNET),
    *(EFFICIENTNET_PYTORCH, TRANSFORMERS_RESNET),
)

WITHOUT_TWIN = {
    "stage2.0.branch2.0": tuple(f"shufflenet_v2_x{width}" for width in ("0_5", "1_0", "1_5", "2_0")),
    "inception3a.branch1.conv": ("googlenet",),
    "Mixed_5b.branch1x1.conv": ("inception_v3",),
    "layers.8.0.layers.0": tuple(f"mnasnet{width}" for width in ("0_5", "0_75", "1_0", "1_3")),
}
"""Networks of torchvision that no network of timm is known to compute the same as, by a module that all of a family
have: they are built from torchvision."""


def torchvision_naming(name: str) -> tuple[Naming, Twin] | None:
    """The naming and the twin of a network that torchvision calls so."""
    for naming in NAMINGS:
        if naming.library == "torchvision" and name in naming.twins:
            return naming, naming.twins[name]
    return None


def is_torchvision_resnet(modules: frozenset[str]) -> bool:
    """Tell torchvision's ResNets, ResNeXts and Wide ResNets by modules without tensors, which timm calls otherwise."""
    return {"avgpool", "relu", "layer1.0.relu"} <= modules


def transformers_twin(config: dict[str, Any]) -> Twin | None:
    """The twin of a ResNet that a `config.json` of transformers describes; None where timm has none."""
    depths, layer = config.get("depths"), config.get("layer_type", "bottleneck")
    plain = config.get("hidden_act", "relu") == "relu" and config.get("embedding_size", 64) == 64
    strides = not config.get("downsample_in_first_stage") and not config.get("downsample_in_bottleneck")
    if layer not in _LAYERS or not (plain and strides) or not isinstance(depths, list) or len(depths) != 4:
        return None
    known = {
        ("basic", (2, 2, 2, 2)): "resnet18",
        ("basic", (3, 4, 6, 3)): "resnet34",
        ("bottleneck", (2, 2, 2, 2)): "resnet26",
        ("bottleneck", (3, 4, 6, 3)): "resnet50",
        ("bottleneck", (3, 4, 23, 3)): "resnet101",
        ("bottleneck", (3, 8, 36, 3)): "resnet152",
    }
    if (name := known.get((layer, tuple(depths)))) is not None:
        return Twin(name)
    return Twin("resnet18" if layer == "basic" else "resnet50", {"layers": depths})
