"""The library alone: images are made and written, and nothing of the service around it is imported."""

import subprocess
import sys
from pathlib import Path

from dearkd.vision.shards import ShardDataset

EXAMPLE = """
import sys
from pathlib import Path
from dearkd.specs import SynthesisSpec, TeacherSpec
from dearkd.vision.shard_writer import write_samples
from dearkd_synth import DeepInversion
import timm  # behind dearkd, which mends a torchvision that does not fit torch

teacher_spec = TeacherSpec(
    name="t", architecture="resnet10t", num_classes=3, in_chans=1, image_size=32, mean=[0.3], std=[0.3]
)
teacher = timm.create_model("resnet10t", num_classes=3, in_chans=1).eval()
posted = {
    "teacher": "t", "images_per_class": 4, "shard_samples": 6, "phases": [{"resolution": 16, "iterations": 2}]
}
synthesis = SynthesisSpec.resolve(posted, teacher_spec)
with DeepInversion(teacher, teacher_spec, synthesis) as inversion:
    for index in range(synthesis.num_shards):
        write_samples(Path(f"train-{index:06d}.tar"), inversion.shard(index), synthesis)
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


def test_images_are_made_and_written_without_redis_http_or_storage(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", EXAMPLE], cwd=tmp_path, capture_output=True, text=True, check=True)
    imported = set(done.stdout.split())
    assert "torch" in imported
    assert not imported & {"redis", "rq", "fastapi", "httpx", "obstore", "dearkd_api", "dearkd_trainer"}
    made = ShardDataset(sorted(tmp_path.glob("*.tar")), num_classes=3, in_chans=1)
    assert sorted(made.labels.tolist()) == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
