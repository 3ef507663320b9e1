"""The flag that tells of a divergence: late where a device is at work, but never lost."""

import torch

from dearkd_synth.engine.divergence import DelayedFlag


class Copying:
    """An event of a device that is done with a copy only when it is told so."""

    def __init__(self) -> None:
        self.recorded = 0
        self.done = False

    def record(self) -> None:
        self.recorded += 1
        self.done = False

    def query(self) -> bool:
        return self.done


def flag(event: Copying | None) -> DelayedFlag:
    return DelayedFlag(torch.zeros((), dtype=torch.bool), torch.zeros((), dtype=torch.bool), event)


def test_it_is_seen_once_the_copy_behind_its_step_is_done() -> None:
    event = Copying()
    late = flag(event)
    late.raise_if(torch.tensor(False))
    assert not late.poll(), "the first copy is on its way"
    late.raise_if(torch.tensor(True))
    assert not late.poll()
    assert event.recorded == 1, "one copy at a time"
    event.done = True
    assert not late.poll(), "it was made before the flag was raised; another is on its way"
    assert event.recorded == 2
    late.raise_if(torch.tensor(False))
    assert not late.poll()
    event.done = True
    assert late.poll(), "it stays raised"
    assert late.wait()


def test_who_waits_sees_it_at_once() -> None:
    late = flag(Copying())
    assert not late.wait()
    late.raise_if(torch.tensor(True))
    assert late.wait()


def test_on_a_cpu_it_is_seen_at_once() -> None:
    here = DelayedFlag.on(torch.device("cpu"))
    assert not here.poll()
    here.raise_if(torch.tensor(float("nan")) > 1)
    assert not here.poll()
    here.raise_if(~(torch.tensor(float("nan")) <= 1))
    assert here.poll()
