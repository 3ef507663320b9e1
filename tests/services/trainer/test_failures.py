"""What ends a run in the middle of torch is told as what it was."""

import multiprocessing
from typing import Any

import pytest
import torch

from dearkd.errors import OutOfMemory
from dearkd_trainer.train.failures import LoaderLost, explained
from tests.support.bars import STEPS, MakeSpec, MakeTrainer, curve

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee the documentation"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError(),
    ],
)
def test_too_little_memory_names_what_would_take_less(
    make_spec: MakeSpec, make_trainer: MakeTrainer, error: Exception
) -> None:
    def fails(*_: Any) -> None:
        raise error

    trainer = make_trainer(make_spec(grad_accum_steps=2))
    trainer.student.patch_embed.register_forward_pre_hook(fails)
    with pytest.raises(OutOfMemory) as caught:
        trainer.fit()
    message = caught.value.message
    assert message.startswith("cpu has too little memory for 8 images of 16×16 pixels at once (")
    assert "grad_accum_steps above 2" in message
    assert "bfloat16" in message
    assert "\n" not in message
    assert (str(error) or "MemoryError").splitlines()[0] in message


def test_other_errors_stay_as_they_are(make_spec: MakeSpec) -> None:
    with pytest.raises(RuntimeError, match=r"^mat1 and mat2$") as caught, explained(make_spec(), CPU):
        raise RuntimeError("mat1 and mat2")
    assert type(caught.value) is RuntimeError


@pytest.mark.services
def test_a_run_that_lost_its_loader_says_so_and_goes_on_from_its_checkpoint(
    make_spec: MakeSpec, make_trainer: MakeTrainer, tmp_path: Any
) -> None:
    spec = make_spec(workers=1)
    before = {process.pid for process in multiprocessing.active_children()}

    def kill_the_loader(done: int, _: int) -> None:
        if done == STEPS + 1:
            (loader,) = (process for process in multiprocessing.active_children() if process.pid not in before)
            loader.kill()

    with pytest.raises(LoaderLost, match=r"killed by signal|exited unexpectedly"):
        make_trainer(spec, on_step=kill_the_loader).fit()
    again = make_trainer(spec)
    assert again.epoch >= 1
    assert curve(again.fit().history) == curve(make_trainer(spec, directory=tmp_path / "undisturbed").fit().history)
