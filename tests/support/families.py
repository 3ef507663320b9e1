"""The families of teachers, with arguments that make them small."""

from typing import Any

FAMILIES: dict[str, dict[str, Any]] = {
    "resnet10t": {},
    "regnety_002": {},
    "efficientnet_b0": {},  # BatchNormAct2d with SiLU
    "mobilenetv3_small_050": {},  # a hard-swish, and layers after the pooling
    "densenet121": {"block_config": [2, 2, 2, 2], "growth_rate": 8},  # BatchNormAct2d before the convolution
    "ghostnet_100": {},
    "vgg11_bn": {"mlp_ratio": 0.01},
    "resnext26ts": {},
    "resnext50_32x4d": {"layers": [1, 1, 1, 1]},
}
