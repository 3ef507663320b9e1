"""The trainer: from shards and a teacher to a DearKD vision transformer.

Importing it registers the students' architectures with timm.
"""

import dearkd.vision  # noqa: F401  # makes timm importable before any module here imports it

# isort: split
import dearkd_trainer.model.student  # noqa: F401  # registers
from dearkd_trainer.train.trainer import DearKDTrainer

__all__ = ["DearKDTrainer"]
