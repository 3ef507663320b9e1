"""What the version after the rooms stored (`tests/fixtures/rooms`), in a Redis and a storage of today."""

import json
import shutil
from pathlib import Path
from typing import Any, cast

from dearkd.redis_client import Redis

ROOMS = Path(__file__).parents[1] / "fixtures" / "rooms"


def load_records(redis: Redis, storage: Path) -> dict[str, str]:
    """Put its records into an empty Redis and its objects into a folder; returns its ids by their names."""
    shutil.copytree(ROOMS / "storage", storage, dirs_exist_ok=True)
    content = json.loads((ROOMS / "redis.json").read_text())
    for key, (kind, value) in cast("dict[str, tuple[str, Any]]", content["keys"]).items():
        if kind == "string":
            redis.set(key, value)
        elif kind == "hash":
            redis.hset(key, mapping=value)
        elif kind == "zset":
            redis.zadd(key, value)
        elif kind == "set":
            redis.sadd(key, *value)
        else:
            redis.rpush(key, *value)
    return cast("dict[str, str]", content["names"])
