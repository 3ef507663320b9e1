"""Image files as people have them, as the dataset that their shards would be."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from dearkd.data.image_intake import ImageFile, shown
from dearkd.vision.shards import ShardDataset


class ImageFiles(ShardDataset):
    """Image files with their labels; each is read when it is asked for, as `dearkd dataset add` would store it.

    Args:
        images: (label, file) of each, examined (`ImageFolder.check`).
        num_classes: labels are below it.
        in_chans: images are converted to grey (1) or RGB (3).
    """

    def __init__(self, images: Sequence[tuple[int, ImageFile]], *, num_classes: int, in_chans: Literal[1, 3]) -> None:
        super().__init__((), num_classes=num_classes, in_chans=in_chans)
        self._images = [image for _, image in images]
        self.labels = np.array([label for label, _ in images], dtype=np.int64)
        self.shards = np.zeros(len(images), dtype=np.int64)
        self._offsets = self._sizes = self._logits_offsets = self._logits_sizes = self.shards
        self._keys = np.array([shown(image.path).encode() for image in self._images], dtype=np.bytes_)

    def name(self, index: int) -> str:
        """The file of a sample, for messages."""
        return shown(self._images[index].path)

    def _read(self, index: int, offset: int, size: int) -> bytes:
        return self._images[index].stored(self.in_chans, None)[0]
