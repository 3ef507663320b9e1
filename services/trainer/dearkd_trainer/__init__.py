"""The trainer: from shards and a teacher to a DearKD vision transformer.

Importing it registers the students' architectures with timm.
"""

import dearkd.vision  # noqa: F401  # makes timm importable before any module here imports it

# isort: split
import dearkd_trainer.student  # noqa: F401  # registers
