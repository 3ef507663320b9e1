"""Answers of a student to some images of a dataset, as pictures with what it looked at."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dearkd.vision.prediction import Classifier
from dearkd.vision.shards import Indices, ShardDataset
from dearkd_trainer.evaluate.evaluation import WholeImages, sample_places
from dearkd_trainer.model.student import Student
from dearkd_trainer.report.pictures import embedded, heated, tile

EVENLY, MISTAKEN = 12, 12
"""Images that are shown: spread evenly over the dataset, and further ones of which the student is wrongly sure."""
LOOKED_AT = 256
AT_ONCE = 32
BEST = 3


@dataclass(frozen=True, slots=True)
class Prediction:
    """One image, and what the student says of it."""

    truth: str
    best: list[tuple[str, float]]
    """Names and probabilities, the most probable first."""
    right: bool
    picture: str
    """A data URI."""
    attention: str | None
    """The same image under the shares of its patches; None where the student has no attention."""


def read_pixels(data: ShardDataset, places: Indices, image_size: int, crop_pct: float) -> Tensor:
    """Images (N, C, image_size, image_size), uint8, as the student takes them."""
    images = WholeImages(data, places, image_size, crop_pct)
    return torch.stack([images[place][0] for place, _ in enumerate(data.visit(places))])


def spread(samples: Indices, in_chans: int, image_size: int) -> Indices:
    """Up to `LOOKED_AT` of some sample numbers, ascending and spread evenly."""
    return np.sort(samples)[sample_places(len(samples), in_chans, image_size, count=LOOKED_AT)]


def predict(classifier: Classifier, pixels: Tensor, labels: Sequence[int]) -> tuple[list[Prediction], list[Prediction]]:
    """Images spread evenly, and then others that are mistaken for another class with the most confidence.

    Args:
        classifier: with the student in eval mode.
        pixels: (N, C, H, W), uint8.
        labels: the class of each.
    """
    answers: list[list[dict[str, Any]]] = [
        answer for part in pixels.split(AT_ONCE) for answer in classifier.answers(part)
    ]
    evenly = np.unique(np.linspace(0, len(labels) - 1, min(EVENLY, len(labels))).round().astype(int)).tolist()
    wrong = [place for place, answer in enumerate(answers) if answer[0]["class"] != labels[place]]
    wrong.sort(key=lambda place: -answers[place][0]["probability"])
    mistaken = [place for place in wrong if place not in evenly][:MISTAKEN]

    def shown(places: Sequence[int]) -> list[Prediction]:
        student = classifier.network
        maps = None
        if places and isinstance(student, Student):
            maps = student.attention_maps(classifier.inputs(pixels[list(places)]))
        found = []
        for number, place in enumerate(places):
            image, answer = tile(pixels[place]), answers[place]
            found.append(
                Prediction(
                    truth=classifier.class_names[labels[place]],
                    best=[(one["name"], one["probability"]) for one in answer[:BEST]],
                    right=answer[0]["class"] == labels[place],
                    picture=embedded(image),
                    attention=embedded(heated(image, maps[number])) if maps is not None else None,
                )
            )
        return found

    return shown(evenly), shown(mistaken)
