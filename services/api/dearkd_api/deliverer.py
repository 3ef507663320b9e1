"""The sender of webhooks: signed as Standard Webhooks has it, to a checked address, without redirects or proxies."""

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import ssl
import threading
import time
from collections.abc import Sequence

import httpx

import dearkd
from dearkd.errors import Unavailable
from dearkd.jobs.deliveries import BACKOFF, ClaimedDelivery, Deliveries
from dearkd.jobs.model import DeliveryAttempt, DeliveryState, now
from dearkd.log_lines import about
from dearkd.specs.webhook import secret_key
from dearkd_api.jobs import render
from dearkd_api.webhook_targets import RefusedTarget, host_of, resolve

log = logging.getLogger(__name__)

THREADS = 4
"""Deliveries at once, so that a slow receiver holds up few others."""
EVERY_SECONDS = 1.0
ATTEMPT_SECONDS = 10.0
"""The most that connecting, sending and the head of the answer may take together."""
LEASE_SECONDS = 90.0
"""Longer than an attempt takes, with the time to resolve a name, which nothing here can bound."""
SLOW_SECONDS = 3.0
PAUSE_SECONDS = 30.0
"""The time for which a receiver that took longer than `SLOW_SECONDS` is left alone, and others have the threads."""


def sign(secret: str, identifier: str, timestamp: int, body: bytes) -> str:
    """The `webhook-signature` of a message, by the symmetric scheme of Standard Webhooks (`v1`)."""
    signed = hmac.digest(secret_key(secret), f"{identifier}.{timestamp}.".encode() + body, hashlib.sha256)
    return f"v1,{base64.b64encode(signed).decode()}"


class Deliverer:
    """Sends what is due, in threads of a process that does not fork; several of them, and processes, share the work.

    Args:
        deliveries: of all jobs.
        private_targets: send to addresses that are not public too.
        backoff: seconds to wait after each attempt that failed.
    """

    def __init__(
        self, deliveries: Deliveries, *, private_targets: bool = False, backoff: Sequence[float] = BACKOFF
    ) -> None:
        self._deliveries = deliveries
        self._private_targets = private_targets
        self._backoff = backoff
        self._trusted: ssl.SSLContext | None = None

    def start(self, stop: threading.Event) -> None:
        """Send until `stop` is set. What is at work then is sent again by whoever comes next."""
        logging.getLogger("httpx").setLevel(logging.WARNING)  # it names addresses in full, with what is secret in them
        for number in range(THREADS):
            threading.Thread(target=self._run, args=(stop,), name=f"deliverer-{number}", daemon=True).start()

    def _run(self, stop: threading.Event) -> None:
        while not stop.wait(EVERY_SECONDS):
            try:
                while not stop.is_set() and self.step():
                    pass
            except Unavailable as error:
                log.warning("%s", error)
            except Exception:  # what this version cannot read must not end what sends all others
                log.exception("a delivery could not be read")

    def step(self) -> bool:
        """Make one delivery, if one is due."""
        claimed = self._deliveries.claim(LEASE_SECONDS)
        if claimed is None:
            return False
        with about(job_id=claimed.job.id):
            self._attempt(claimed)
        return True

    def _attempt(self, claimed: ClaimedDelivery) -> None:
        at, began = now(), time.monotonic()
        status, error = None, None
        try:
            status = self._send(claimed)
        except RefusedTarget as refused:
            error = str(refused)
        except TimeoutError:
            error = f"no answer within {ATTEMPT_SECONDS:g} s"
        except Exception as other:
            # By its kind alone: its text may hold addresses.
            log.info("%s: %s: %s", claimed.id, type(other).__name__, other)
            error = _told(other)
        seconds = time.monotonic() - began
        state: DeliveryState = "pending"
        if status is not None and 200 <= status < 300:
            state = "delivered"
        elif status == 410:  # the receiver wants no more of it
            state = "failed"
        state = self._deliveries.report(
            claimed,
            DeliveryAttempt(at=at, seconds=round(seconds, 3), status=status, error=error),
            state=state,
            backoff=self._backoff,
            pause=PAUSE_SECONDS if seconds > SLOW_SECONDS else None,
        )
        log.info("%s: %s; %s", claimed.id, error or f"answered {status}", state)

    def _send(self, claimed: ClaimedDelivery) -> int:
        """Send a delivery; returns the status of the answer."""
        url = httpx.URL(claimed.url)
        addresses = resolve(url, private=self._private_targets)
        message = {"type": f"job.{claimed.event}", "timestamp": claimed.at.isoformat(), "data": render(claimed.job)}
        body = json.dumps(message).encode()
        timestamp = int(time.time())
        headers = {
            "Host": url.netloc.decode("ascii"),
            "Content-Type": "application/json",
            "User-Agent": f"dearkd/{dearkd.__version__}",
            "webhook-id": claimed.id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": sign(claimed.secret, claimed.id, timestamp, body),
        }
        return asyncio.run(self._post(url, addresses, headers, body))

    async def _post(self, url: httpx.URL, addresses: Sequence[str], headers: dict[str, str], body: bytes) -> int:
        """Post to the first address that can be connected to; of the answer nothing is read but its head."""
        self._trusted = self._trusted or httpx.create_ssl_context()  # once: it takes a while
        client = httpx.AsyncClient(
            verify=self._trusted, trust_env=False, follow_redirects=False, timeout=ATTEMPT_SECONDS
        )
        async with asyncio.timeout(ATTEMPT_SECONDS), client:
            for place, address in enumerate(addresses, 1):
                # TLS asks for the certificate of the name, and Host says it; the connection goes to the address.
                request = client.build_request(
                    "POST",
                    url.copy_with(host=address),
                    headers=headers,
                    content=body,
                    extensions={"sni_hostname": host_of(url)},
                )
                try:
                    response = await client.send(request, stream=True)
                except (httpx.ConnectError, httpx.ConnectTimeout):
                    if place == len(addresses):
                        raise
                    continue
                await response.aclose()
                return response.status_code
        raise AssertionError("a name that resolves has an address")


def _told(error: Exception) -> str:
    if isinstance(error, httpx.ConnectError):
        tls = isinstance(error.__context__, ssl.SSLError) or "CERTIFICATE" in str(error) or "SSL" in str(error)
        return "TLS could not be agreed on, or the certificate is not valid" if tls else "it could not be connected to"
    if isinstance(error, httpx.TimeoutException):
        return f"no answer within {ATTEMPT_SECONDS:g} s"
    if isinstance(error, httpx.TransportError):
        return "the connection was lost, or the answer is not HTTP"
    return "it could not be sent: the operator finds why in the API's log"
