"""The server process: the API, a reaper and a sender of webhooks, until SIGTERM."""

import ipaddress
import logging
import signal
import socket
import threading
from types import FrameType

import uvicorn

from dearkd import tracing
from dearkd.errors import Conflict, InvalidInput, Unavailable
from dearkd.jobs.ledger import Ledger
from dearkd.jobs.reaper import Reaper
from dearkd.log_lines import log_to_stderr
from dearkd.redis_client import connect
from dearkd.settings import Settings
from dearkd.storage.api_keys import KeyRecords
from dearkd.storage.objects import Storage
from dearkd_api.app import create_app
from dearkd_api.backend import Backend
from dearkd_api.connections import ConnectionLimits, connection_class
from dearkd_api.deliverer import Deliverer
from dearkd_api.keys import Keys

log = logging.getLogger(__name__)

GRACE_SECONDS = 5
"""Time for answers in progress to end, after SIGTERM."""


class _Server(uvicorn.Server):
    """A server that, when asked to stop, lets requests waiting for a job or the inspector answer at once."""

    def __init__(self, config: uvicorn.Config, backend: Backend) -> None:
        super().__init__(config)
        self._backend = backend

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._backend.stopping.set()
        super().handle_exit(sig, frame)


def _has_keys(settings: Settings) -> bool:
    """Tell whether a key guards the API: one of the environment, or one that was created before."""
    if Keys.configured(settings):
        return True
    try:
        _, found = KeyRecords(Storage.open(settings, connect(settings))).all()
    except Unavailable as error:
        log.warning("it cannot be told whether API keys were created before: %s", error)
        return False
    return found


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        InvalidInput: if an API key breaks a rule, or the host is not loopback and there are no keys: without keys
            only this machine may reach the server.
        Conflict: `port_taken`.
    """
    log_to_stderr(settings)
    tracing.warn_of_missing()
    listener = listen(settings.host, settings.port, keyed=_has_keys(settings))
    app = create_app(settings)
    backend: Backend = app.state.backend
    config = uvicorn.Config(
        app,
        http=connection_class(ConnectionLimits.of(settings)),
        ws="none",
        log_config=None,
        access_log=settings.log_level == "DEBUG",
        timeout_graceful_shutdown=GRACE_SECONDS,
        server_header=False,
    )
    # The server raises the signal again when it is done; that this ends the process is no fault.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    reaper = Reaper(Ledger(backend.store), settings)
    threading.Thread(target=reaper.run, args=(backend.stopping,), name="reaper", daemon=True).start()
    Deliverer(backend.deliveries, private_targets=settings.webhook_private_targets).start(backend.stopping)
    host, port = listener.getsockname()[:2]
    logging.getLogger(__name__).info("serving on http://%s:%d", f"[{host}]" if ":" in host else host, port)
    with tracing.exporting("dearkd-api"):
        _Server(config, backend).run(sockets=[listener])


def listen(host: str, port: int, *, keyed: bool) -> socket.socket:
    """A listening socket; on a loopback address, unless API keys are configured (`keyed`).

    Raises:
        InvalidInput: if the host is no address of this machine, or others can reach it and there are no keys.
        Conflict: `port_taken`.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host or "0.0.0.0", port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise InvalidInput(f"DEARKD_HOST is {host!r}, which is no address of this machine: {error}") from None
    if not keyed and not ipaddress.ip_address(address[0]).is_loopback:
        raise InvalidInput(
            f"DEARKD_HOST is {host!r}, which others can reach, and no API keys are configured: use 127.0.0.1 or ::1, "
            "or set DEARKD_API_KEYS"
        )
    try:
        listener = socket.create_server(address, family=family, backlog=2048)
    except OSError as error:
        raise Conflict(
            f"port {port} on {host} cannot be used ({error.strerror}): stop the program that has it, or set "
            "DEARKD_PORT to another (0 takes a free one)",
            code="port_taken",
        ) from None
    # Connections inherit it. asyncio sets it only where the socket names its protocol, which this one does not; without
    # it the body of a short answer waits some 40 ms for the acknowledgement of its head.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener
