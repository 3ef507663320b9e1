"""What ends a run in the middle of torch is told as what it was."""

import multiprocessing
import time
from multiprocessing.process import BaseProcess
from typing import Any

import pytest
import torch

from dearkd.errors import OutOfMemory
from dearkd_trainer.data.loader import _or_raised
from dearkd_trainer.train.failures import LoaderLost, explained
from tests.support.bars import STEPS, MakeSpec, MakeTrainer, curve
from tests.support.programs import CONTEXT

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


class HandingOver:
    """A loader's iterator whose worker is killed while it hands over a batch, as torch meets it."""

    def __init__(self, worker: BaseProcess, error: Exception) -> None:
        self._workers = [worker]
        self.error = error

    def __iter__(self) -> "HandingOver":
        return self

    def __next__(self) -> Any:
        self._workers[0].kill()
        raise self.error


@pytest.mark.parametrize("error", [ConnectionResetError(104, "Connection reset by peer"), EOFError()], ids=repr)
def test_a_loader_that_is_lost_while_it_hands_over_a_batch_is_named(make_spec: MakeSpec, error: Exception) -> None:
    worker = CONTEXT.Process(target=time.sleep, args=(60,))
    worker.start()
    with pytest.raises(LoaderLost, match=rf"pid\(s\) {worker.pid}\) exited"), explained(make_spec(), CPU):
        next(_or_raised(HandingOver(worker, error)))


def test_a_broken_connection_of_a_loader_that_lives_stays_as_it_is() -> None:
    class Broken(HandingOver):
        def __next__(self) -> Any:
            raise self.error

    worker = CONTEXT.Process(target=time.sleep, args=(60,))
    worker.start()
    with pytest.raises(ConnectionResetError):
        next(_or_raised(Broken(worker, ConnectionResetError())))
    worker.kill()
