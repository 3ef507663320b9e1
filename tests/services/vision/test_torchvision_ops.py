"""timm and torchvision's transforms import, whichever build of torchvision is installed."""

import os
import subprocess
import sys
from pathlib import Path


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, timeout=120
    )


def test_timm_and_transforms_work_after_the_import() -> None:
    code = """
import dearkd.vision.torchvision_ops
import timm.data, torch, torchvision.transforms.v2 as transforms
print(timm.create_model("test_resnet", num_classes=3).eval()(torch.zeros(1, 3, 32, 32)).shape)
print(transforms.functional.hflip(torch.tensor([[[1, 2]]])))
"""
    done = run(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == ["torch.Size([1, 3])", "tensor([[[2, 1]]])"]


def test_any_other_error_of_torchvision_is_passed_on(tmp_path: Path) -> None:
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('another fault altogether')")
    done = run("import dearkd.vision.torchvision_ops", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith("RuntimeError: another fault altogether")
