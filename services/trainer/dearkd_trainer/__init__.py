"""The trainer: from shards and a teacher to a DearKD vision transformer.

Importing it registers the students' architectures with timm.
"""

import dearkd.vision  # noqa: F401  # makes timm importable before any module here imports it

# isort: split
import dearkd_trainer.model.dearkd_vit  # noqa: F401  # registers
from dearkd_trainer.model.student import Student, StudentOutput, register_student
from dearkd_trainer.train.teacher import FrozenTeacher
from dearkd_trainer.train.trainer import DearKDTrainer, TrainingResult

__all__ = ["DearKDTrainer", "FrozenTeacher", "Student", "StudentOutput", "TrainingResult", "register_student"]
