"""Jobs whose workers die at chosen moments."""

import psutil

from dearkd.answers import JobView
from tests.support.services import eventually
from tests.support.world import SYNTHESIS, Workers, World, alive, at_work, kill, workers

Death = tuple[str, str, str | None]
"""Who dies, where, and the unit that it costs."""


def victims(found: Workers, who: str) -> list[int]:
    """`part` is the supervisor with all below it, at one stroke."""
    return {
        "horse": [found.horse],
        "worker": [found.worker],
        "both": [found.worker, found.horse],
        "supervisor": [found.supervisor],
        "part": [found.supervisor, found.worker, found.horse],
    }[who]


def hold_where(here: World, where: str, unit: str | None) -> None:
    if where == "mid-shard":
        here.hold_in_shard(int(unit or 0))
    elif where == "before the manifest":
        here.proxy.hold(b"unit finish begins")
    else:
        here.hold_at({"before the claim": "claim", "before the mark": "done", "before the end": "end_job"}[where])


def require_one_unit_a_death(here: World, teacher: str, undisturbed: JobView, deaths: list[Death]) -> str:
    """Let a job meet these deaths: it ends well, what was stored before one is as it was, and each costs one unit.

    Returns:
        The id of the job.
    """
    proxy = here.proxy
    eventually(lambda: not workers())
    job = ""
    stored: dict[str, bytes] = {}
    for who, where, unit in deaths:
        hold_where(here, where, unit)
        job = job or here.client.create_synthesis_job({"teacher": teacher, **SYNTHESIS}).id
        assert proxy.held.wait(120), (where, unit)
        prefix = f"datasets/ds-{job.partition('-')[2]}"
        now = {o.key: here.storage.read(o.key) for o in here.storage.objects(prefix) if o.key.endswith(".tar")}
        assert now | stored == now
        stored = now
        if where == "before the mark":
            assert f"{prefix}/train-00000{unit}.tar" in stored
        found = at_work() if where == "before the claim" else here.holder(job)
        horse = psutil.Process(found.horse)
        kill(*victims(found, who))
        eventually(lambda horse=horse: not alive([horse]))  # also where its rq worker was killed: an orphan ends
        proxy.release(forward=False)
    ended = here.client.wait(job)
    assert ended.status == "succeeded", ended.error
    assert here.shards(ended) == here.shards(undisturbed)
    assert {key: here.storage.read(key) for key in stored} == stored
    begun, log = here.begins(job), here.log(job)
    assert set(begun) == {"0", "1", "finish"}
    for unit in ("0", "1", "finish"):
        blamed = [who for who, _, at in deaths if at == unit]
        assert begun.count(unit) <= 1 + len(blamed), begun
        told = [line for line in log if f"unit {unit} lost its worker" in line and "killed by SIGKILL" in line]
        assert len(told) >= blamed.count("horse"), log
    return job
