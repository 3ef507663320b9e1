"""Mirrored views: whether a teacher's classes bear them, by its own answers."""

import logging

from torch import Tensor

from dearkd.errors import InvalidInput
from dearkd_trainer.train.teacher import FrozenTeacher

log = logging.getLogger(__name__)

MIRROR_AGREEMENT = 0.75
"""The share of mirrored images that a teacher must answer alike for views to be mirrored [R]: of images made without
mirrors, teachers of clothes gave 0.70 to 0.99, those of digits and letters 0.06 to 0.44 (benchmarks/LOG.md)."""


def measured_hflip(teacher: FrozenTeacher | None, images: Tensor) -> float:
    """The probability of mirrored views that a teacher's answers allow: 0.5 or 0.

    Args:
        teacher: on the device of the images.
        images: of training, (N, in_chans, H, W), normalised.

    Raises:
        InvalidInput: if there is no teacher.
    """
    if teacher is None:
        raise InvalidInput.at(
            "/augmentation/hflip", "null, which leaves it to the teacher, but stage one uses none: give a number"
        )
    agreement = teacher.mirror_agreement(images)
    log.info("the teacher answers %.0f %% of mirrored training images as it does the others", 100 * agreement)
    return 0.5 if agreement >= MIRROR_AGREEMENT else 0.0
