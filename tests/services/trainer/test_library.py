"""The trainer as a library: a run needs no server, no queue and no storage, and loads none of them."""

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys
from pathlib import Path

import dearkd.vision
import timm
from huggingface_hub import ModelCard

foreign = set(sys.modules)  # timm's hub may have a client of HTTP of its own

from dearkd.specs import DatasetFacts, TeacherSpec, TrainingSpec
from dearkd.vision.shards import ShardDataset
from dearkd.vision.teachers import build_teacher
from dearkd_trainer import DearKDTrainer, FrozenTeacher

teacher = TeacherSpec(
    name="tiny", architecture="test_resnet", num_classes=3, in_chans=1, image_size=16, mean=[0.4], std=[0.3],
    class_names=["low", "middle", "high"],
)
facts = DatasetFacts(num_samples=60, num_classes=3, image_size=16, in_chans=1, synthetic=True, mirrored=False)
posted = {
    "dataset": "bars", "teacher": "tiny", "batch_size": 30, "workers": 0,
    "student": {"patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2},
    "stage_one": {"epochs": 1}, "stage_two": {"epochs": 1}, "optimizer": {"warmup_epochs": 0},
}
shard, folder = map(Path, sys.argv[1:])
data = ShardDataset([shard], num_classes=3, in_chans=1)
result = DearKDTrainer(
    TrainingSpec.resolve(posted, facts, teacher),
    data,
    directory=folder,
    teacher=FrozenTeacher(build_teacher(teacher), teacher),
    eval_dataset=data,
).fit()
assert result.config["label_names"] == ["low", "middle", "high"], result.config
packages = {"redis", "rq", "fastapi", "httpx", "obstore"}
loaded = (packages | {"dearkd.storage", "dearkd.jobs", "dearkd.work", "dearkd.client"}) & (set(sys.modules) - foreign)
assert not loaded, loaded
"""


def test_a_run_loads_neither_server_nor_queue_nor_storage(bar_shard: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(bar_shard), str(tmp_path / "run")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "model.safetensors").is_file()
