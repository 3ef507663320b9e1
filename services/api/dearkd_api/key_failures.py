"""Wrong API keys: counted by address, logged, and answered 429 past a limit.

Only requests whose key is wrong are limited. One with a right key goes on from the same address, since behind a proxy
all clients may share one.
"""

import asyncio
import ipaddress
import logging
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

log = logging.getLogger(__name__)

ADDRESSES: Final = 1024
"""Addresses whose failures are remembered; the one that failed longest ago makes room for the next."""
TOGETHER: Final = 10
"""The limit for all addresses together, as a multiple of that for one: a client may have many, or claim to."""
BURST_SECONDS: Final = 5.0
"""Failures of one address within this time share a line of the log."""


@dataclass(slots=True)
class _Bucket:
    """A leaky bucket that holds `size` failures, and drains as many a minute."""

    size: int
    level: float = 0.0
    seen: float = 0.0

    def add(self, now: float) -> bool:
        """Add a failure at a time in seconds; False if there was no room for it."""
        self.level = max(0.0, self.level - (now - self.seen) * self.size / 60)
        self.seen = now
        if self.level + 1 > self.size:
            return False
        self.level += 1
        return True


@dataclass(slots=True)
class _Burst:
    bucket: _Bucket
    count: int = 0
    limited: int = 0
    timer: asyncio.TimerHandle | None = None


class KeyFailures:
    """Counts wrong keys by address. Use it in the server's event loop only.

    Args:
        per_minute: failures that an address may have in a minute, and at once.
    """

    def __init__(self, per_minute: int) -> None:
        self.per_minute = per_minute
        self._together = _Bucket(per_minute * TOGETHER)
        self._bursts: OrderedDict[str, _Burst] = OrderedDict()

    def admit(self, client: str) -> bool:
        """Count a failure of a client's address; False if it is one too many."""
        loop = asyncio.get_running_loop()
        address = _address(client)
        burst = self._bursts.setdefault(address, _Burst(_Bucket(self.per_minute)))
        self._bursts.move_to_end(address)
        if len(self._bursts) > ADDRESSES:
            self._log(next(iter(self._bursts)))
            self._bursts.popitem(last=False)
        room = [bucket.add(loop.time()) for bucket in (burst.bucket, self._together)]
        burst.count += 1
        if not all(room):
            burst.limited += 1
            if burst.limited == 1:
                log.warning("%d wrong API keys from %s: further ones are answered 429", burst.count, address)
        if burst.timer is None:
            burst.timer = loop.call_later(BURST_SECONDS, self._log, address)
        return all(room)

    def _log(self, address: str) -> None:
        burst = self._bursts[address]
        if burst.timer is not None:
            burst.timer.cancel()
            log.warning(
                "%d requests with a wrong API key from %s within %g s, %d of them answered 429",
                burst.count,
                address,
                BURST_SECONDS,
                burst.limited,
            )
        burst.count, burst.limited, burst.timer = 0, 0, None


def _address(client: str) -> str:
    """The IPv4 address, or the /64 network of an IPv6 one, all of which one host may own. Any text is accepted."""
    try:
        address = ipaddress.ip_address(client.partition("%")[0])
    except ValueError:
        return "an unknown address"
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(address) if address.is_loopback else f"{ipaddress.ip_network((address, 64), strict=False)}"
