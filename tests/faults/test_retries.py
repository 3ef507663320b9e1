"""An automatic retry comes whatever is killed before it, and goes on from what was made."""

import pytest

from dearkd.answers import JobView
from dearkd.errors import Unavailable
from tests.support.services import eventually
from tests.support.world import SYNTHESIS, TRAINING, World, kill, workers

pytestmark = pytest.mark.timeout(900)


def test_a_retry_outlives_its_workers_the_api_and_a_restart_of_redis(
    shared_world: World, teacher: str, undisturbed: JobView
) -> None:
    here, client = shared_world, shared_world.client
    eventually(lambda: not workers())
    here.hold_in_shard(1)
    job = client.create_synthesis_job({"teacher": teacher, **SYNTHESIS, "max_retries": 1}).id
    run = client.create_training_run({"dataset": job, **TRAINING}).id
    for death in range(3):
        assert here.proxy.held.wait(120), death
        kill(here.holder(job).horse)
        here.proxy.release(forward=False)
        if death < 2:
            here.hold_in_shard(1)
    eventually(lambda: client.get_job(job).retry_at)
    waiting = client.get_job(job)
    assert (waiting.status, waiting.error and waiting.error.code) == ("queued", "worker_died")
    assert client.get_job(run).status == "blocked"
    here.redis.kill()
    here.redis.start()
    kill(*(family.head for family in here.tree._families.values()))

    def told() -> JobView:
        try:
            return client.get_job(job)
        except Unavailable:
            return waiting

    eventually(lambda: told().retry_at is None)
    ended = client.wait(job)
    assert ended.status == "succeeded", ended.error
    assert here.shards(ended) == here.shards(undisturbed)
    moments = [e.at for e in client.list_events(job) if e.type == "status" and e.data["status"] == "running"]
    assert waiting.retry_at is not None
    assert moments[-1] >= waiting.retry_at
    assert here.begins(job) == ["0", "1", "1", "1", "1", "finish"], "shard 0 was made once"
    (line,) = [line for line in here.log(job) if "retry 1 of 1 begins at" in line]
    assert "ended its worker 3 times in a row" in line
    trained = client.wait(run)
    assert trained.status == "succeeded", trained.error
