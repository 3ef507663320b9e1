"""A small real test of networks for ImageNet: cut-outs of things whose classes it has.

    python benchmarks/stamps.py
    python benchmarks/stamps.py --model model

The pictures are those of Debian's package tuxpaint-stamps-default: photographs of one thing each, cut out and laid on a
grey ground. `--model` names a folder with `config.json` and `model.safetensors`, as a training run exports them.
"""

import argparse
import json
from pathlib import Path

import torch
from lite import answers, load_lite
from PIL import Image, ImageOps
from torch import Tensor, nn

from dearkd.specs import TeacherSpec
from dearkd_trainer.model.export import load_model

STAMPS = Path("/usr/share/tuxpaint/stamps")
SIDE, MARGIN = 224, 16
GROUND = (127, 127, 127)
CLASSES: dict[str, int] = {
    "animals/birds/rooster": 7, "animals/birds/hen": 8, "animals/birds/ostrich": 9, "animals/birds/magpie": 18,
    "animals/birds/vulture": 23, "animals/birds/owl": 24, "animals/birds/peacock": 84,
    "animals/birds/rainbow-lorikeet": 90, "animals/birds/tucan": 96, "animals/birds/drake": 97,
    "animals/birds/gander": 99, "animals/birds/pink_flamingo": 130, "animals/birds/pelican": 144,
    "animals/birds/penguin": 145, "animals/fish/lionfish": 396, "animals/fish/lobster": 122,
    "animals/insects/bee": 309, "animals/insects/fly": 308, "animals/insects/grasshopper": 311,
    "animals/insects/mantis": 315, "animals/insects/Brown_slug": 114, "animals/lizards/iguana": 39,
    "animals/mammals/apes/chimp": 367, "animals/mammals/apes/gorilla": 366, "animals/mammals/aquatic/orca": 148,
    "animals/mammals/aquatic/otter": 360, "animals/mammals/aquatic/sea_lion": 150, "animals/mammals/badger": 362,
    "animals/mammals/bears/bear": 294, "animals/mammals/bovines/bison": 347, "animals/mammals/bovines/ram": 348,
    "animals/mammals/camel/dromedary": 354, "animals/mammals/cats/lion": 291, "animals/mammals/cats/tiger": 292,
    "animals/mammals/dogs/dingo": 273, "animals/mammals/dogs/fox": 277, "animals/mammals/echidna": 102,
    "animals/mammals/elephant": 386, "animals/mammals/equines/zebra": 340, "animals/mammals/hedgehog": 334,
    "animals/mammals/hippopotamus": 344, "animals/mammals/pig": 341, "animals/mammals/rodents/beaver": 337,
    "animals/mammals/rodents/marmot": 336, "animals/mammals/wildboar": 342, "animals/marsupials/koala": 105,
    "animals/marsupials/wombat": 106, "food/fruit/apple_granny_smith": 948, "food/fruit/banana": 954,
    "food/fruit/cherimoya": 956, "food/fruit/lemon": 951, "food/fruit/orange": 950, "food/fruit/pineapple": 953,
    "food/fruit/pomegranate": 957, "food/fruit/strawberry": 949, "food/pizza": 963, "food/vegetables/broccoli": 937,
    "food/vegetables/corn": 987, "food/vegetables/mushroom": 947, "food/vegetables/pepper": 945,
    "hobbies/binoculars": 447, "hobbies/camera_35mm": 759, "hobbies/music/brass/trumpet": 513,
    "hobbies/music/percussion/drumkit": 541, "hobbies/music/string/cello": 486, "hobbies/music/string/violin": 889,
    "hobbies/music/string/guitar_classical": 402, "hobbies/music/string/guitar_electric": 546,
    "hobbies/music/wind/bassoon": 432, "household/dishes/mug": 504, "household/dishes/pitcher_small": 725,
    "household/dishes/teapot": 849, "household/dishes/utensils/nutcracker": 722, "household/garbagecan": 412,
    "household/tools/hammer": 587, "household/tools/paintbrush_large": 696, "household/toilet": 861,
    "medical/stethoscope": 823, "medical/syringe": 845, "seasonal/candle": 470, "seasonal/christmas/stocking": 496,
    "seasonal/halloween/jackolantern_mean": 607, "sports/basketball": 430, "sports/soccer": 805,
    "sports/tennis_ball": 852, "sports/tennis_racket": 752,
}  # fmt: skip
"""Pictures and their classes of ImageNet."""


def stamps() -> tuple[Tensor, Tensor]:
    """Images (N, 3, 224, 224), uint8, and labels (N,) of those that are installed.

    Raises:
        FileNotFoundError: if the package tuxpaint-stamps-default is not installed.
    """
    images, labels = [], []
    for name, label in CLASSES.items():
        with Image.open(STAMPS / f"{name}.png") as file:
            picture = file.convert("RGBA")
        picture = picture.crop(picture.getchannel("A").getbbox())
        picture = ImageOps.contain(picture, (SIDE - 2 * MARGIN,) * 2, Image.Resampling.BICUBIC)
        ground = Image.new("RGB", (SIDE, SIDE), GROUND)
        ground.paste(picture, ((SIDE - picture.width) // 2, (SIDE - picture.height) // 2), picture)
        images.append(torch.frombuffer(bytearray(ground.tobytes()), dtype=torch.uint8).view(SIDE, SIDE, 3))
        labels.append(label)
    return torch.stack(images).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="folder of an exported student")
    options = parser.parse_args()
    networks: dict[str, tuple[nn.Module, TeacherSpec]] = {f"lite{number}": load_lite(number) for number in (0, 1, 2)}
    if options.model is not None:
        config = json.loads((options.model / "config.json").read_text())
        networks["student"] = (load_model(config, options.model / "model.safetensors"), networks["lite0"][1])
    images, labels = stamps()
    for name, (model, spec) in networks.items():
        logits = answers(model, spec, images)
        five = logits.topk(5).indices == labels[:, None]
        among = logits[:, labels].argmax(1) == torch.arange(len(labels))
        print(
            f"{name}: {len(labels)} pictures, top-1 {five[:, 0].double().mean():.1%}, top-5 "
            f"{five.any(1).double().mean():.1%}, among their classes alone {among.double().mean():.1%}"
        )


if __name__ == "__main__":
    main()
