"""The work of a Redis between two moments, as it says itself: commands, their time, its CPU; and the CPU of others."""

import time
from typing import Any, cast

import psutil

from dearkd.redis_client import Redis


class Watch:
    """What a Redis, and the processes beside it, did between two moments."""

    def __init__(self, redis: Redis, others: dict[str, list[psutil.Process]]) -> None:
        self._redis, self._others = redis, others
        self._began = self._look()

    def _look(self) -> dict[str, Any]:
        cpu = cast("dict[str, float]", self._redis.info("cpu"))
        stats = cast("dict[str, dict[str, float]]", self._redis.info("commandstats"))
        return {
            "at": time.monotonic(),
            "cpu": cpu["used_cpu_user"] + cpu["used_cpu_sys"],
            "calls": {name.removeprefix("cmdstat_"): found["calls"] for name, found in stats.items()},
            "usec": {name.removeprefix("cmdstat_"): found["usec"] for name, found in stats.items()},
            "others": {
                name: sum(sum(one.cpu_times()[:2]) for one in processes) for name, processes in self._others.items()
            },
        }

    def report(self) -> dict[str, Any]:
        """Rates since the beginning; a command that a script runs is counted too, and its time in that of `evalsha`."""
        before, after = self._began, self._look()
        wall = after["at"] - before["at"]
        calls = {name: count - before["calls"].get(name, 0) for name, count in after["calls"].items()}
        usec = {name: spent - before["usec"].get(name, 0) for name, spent in after["usec"].items()}
        most = sorted(calls, key=lambda name: -usec[name])[:10]
        return {
            "seconds": round(wall, 1),
            "redis_cpu": round((after["cpu"] - before["cpu"]) / wall, 4),
            "commands_per_second": round(sum(calls.values()) / wall),
            "costliest": {
                name: {"per_second": round(calls[name] / wall, 1), "usec": round(usec[name] / max(1, calls[name]), 1)}
                for name in most
            },
            "cpu_beside": {
                name: round((spent - before["others"][name]) / wall, 2) for name, spent in after["others"].items()
            },
            "connections": self._redis.info("clients")["connected_clients"],
        }
