"""Images of a real ImageNet CNN, through the services: does a network that never took part see what is in them?

    make imagenet-demo

EfficientNet-Lite0 is uploaded, a job of some classes is posted with no setting but their number, and Lite1 and Lite2,
which the synthesis never saw, name what came out. `--published 4` also makes four of each class by DeepInversion's own
objective in as many teacher passes an image. Figures and grids lie in the folder `demo` under `--data`.
"""

import argparse
import json
import tarfile
from pathlib import Path
from typing import Any

import torch
from arms import intra_class_diversity
from lite import answers, load_lite
from rich.console import Console
from torch import Tensor

from dearkd.answers import RegisteredDataset
from dearkd.client import Client
from dearkd.local.up import UpTree
from dearkd.settings import Settings
from dearkd.storage.objects import Storage
from dearkd.vision.images import decode, to_input
from dearkd.vision.teachers import features_and_logits, save_teacher
from dearkd_trainer.demo.run import Demo

CLASSES = (1, 9, 107, 130, 207, 254, 291, 309, 323, 340, 386, 409, 417, 483, 510, 562, 701, 817, 954, 963)
"""Goldfish, ostrich, jellyfish, flamingo, golden retriever, pug, lion, bee, monarch, zebra, elephant, clock, balloon,
castle, container ship, fountain, parachute, sports car, banana, pizza."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("dearkd-data/imagenet"))
    parser.add_argument("--classes", type=int, nargs="+", default=[*CLASSES])
    parser.add_argument("--images-per-class", type=int, default=16)
    parser.add_argument("--published", type=int, default=0, metavar="N", help="of each class DeepInversion's way")
    parser.add_argument("--set", type=json.loads, default={}, help="JSON of further fields of the synthesis spec")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    console = Console()
    folder = options.data.absolute() / "demo"
    folder.mkdir(parents=True, exist_ok=True)
    model, spec = load_lite(0)
    posted = {"classes": options.classes, "images_per_class": options.images_per_class, "seed": options.seed}
    posted |= options.set
    with UpTree(options.data, port=0) as tree, Client(tree.url, Settings().api_key) as client:
        demo = Demo(client, Storage.open(Settings(storage_url=tree.storage_url)), folder, console, options.seed)
        with demo.step("upload", "1. EfficientNet-Lite0 is uploaded"):
            weights = folder / "teacher.safetensors"
            save_teacher(model, weights)
            teacher = client.create_teacher(spec, weights)
        arms: dict[str, dict[str, Any]] = {"auto": {}}
        if options.published:
            arms["published"] = published(client, {"teacher": teacher.id, **posted})
            arms["published"]["images_per_class"] = options.published
        report = {}
        for name, fields in arms.items():
            with demo.step(name, f"2. Images are synthesised: {name}"):
                job = demo.finished(client.create_synthesis_job({"teacher": teacher.id, **posted, **fields}).id)
            client.download_preview(job.id, folder / f"{name}.png")
            report[name] = judged(client, demo.dataset_of(job), folder)
            report[name] |= {"teacher_passes": passes(job.spec), "seconds": demo.seconds[name]}
            console.print(name, report[name])
    (folder / "imagenet.json").write_text(json.dumps(report, indent=2) + "\n")


def passes(spec: dict[str, Any]) -> float:
    """Teacher passes an image, those of smaller inputs by their share of pixels."""
    return sum(phase["iterations"] * (phase["input_size"] / 224) ** 2 for phase in spec["phases"])


def published(client: Client, posted: dict[str, Any]) -> dict[str, Any]:
    """The published preset with its two phases shortened in proportion, to the passes of the default."""
    wanted = passes(client.plan_synthesis_job(posted).spec)
    theirs = client.plan_synthesis_job({**posted, "preset": "published-imagenet"}).spec
    share = wanted / passes(theirs)
    phases = [{**phase, "iterations": round(share * phase["iterations"])} for phase in theirs["phases"]]
    return {"preset": "published-imagenet", "phases": phases}


def judged(client: Client, dataset: RegisteredDataset, folder: Path) -> dict[str, Any]:
    """The share of the images that each network gives their label, first or among five, and their diversity."""
    images, labels = stored(client, dataset, folder)
    figures: dict[str, Any] = {"images": len(labels)}
    for number in (0, 1, 2):
        model, spec = load_lite(number)
        five = answers(model, spec, images).topk(5).indices == labels[:, None]
        figures[f"lite{number}_top1"] = five[:, 0].double().mean().item()
        figures[f"lite{number}_top5"] = five.any(1).double().mean().item()
    model, spec = load_lite(0)
    with torch.inference_mode():
        features = torch.cat([features_and_logits(model, to_input(part, spec))[0] for part in images.split(32)])
    return figures | {"diversity": intra_class_diversity(features, labels)}


def stored(client: Client, dataset: RegisteredDataset, folder: Path) -> tuple[Tensor, Tensor]:
    """Images (N, 3, 224, 224), uint8, and labels (N,) of all shards."""
    images: list[Tensor] = []
    labels: list[int] = []
    for shard in dataset.shards:
        path = folder / shard.name
        client.download_dataset_file(dataset.id, shard.name, path)
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                if member.name.endswith(".png"):
                    images.append(decode(file.read(), 3))
                elif member.name.endswith(".cls"):
                    labels.append(int(file.read()))
    return torch.stack(images), torch.tensor(labels)


if __name__ == "__main__":
    main()
