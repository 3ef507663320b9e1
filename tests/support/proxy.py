"""A TCP proxy that breaks what goes through it, on command."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

CHUNK = 65536


class FaultProxy:
    """Forwards connections to `upstream` until told otherwise.

    Args:
        upstream: host and port of the server.
        listener: where it is reached; by default a free port of loopback.

    Attributes:
        held: set once a request that matches what `hold` was given has come; it is not forwarded before `release`.
        faults: how many connections were broken on purpose.
    """

    def __init__(self, upstream: tuple[str, int], listener: socket.socket | None = None) -> None:
        self.upstream = upstream
        self.held = threading.Event()
        self.faults = 0
        self._pattern: bytes | None = None
        self._skip = 0
        self._counting = threading.Lock()
        self._forward = True
        self._go_on = threading.Event()
        self._go_on.set()
        self._down = False
        self._break: Callable[[bytes], bytes | None] | None = None
        self._alter: Callable[[bytes], bytes] | None = None
        self._open: set[socket.socket] = set()
        self._listener = listener or socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def hold(self, pattern: bytes, *, skip: int = 0) -> None:
        """From now on, after `skip` of them, keep back every request that holds `pattern`, and all that its connection
        sends after it."""
        self.held.clear()
        self._skip = skip
        self._go_on.clear()
        self._pattern = pattern

    def release(self, *, forward: bool = True) -> None:
        """Let what is held go on; without `forward` it is dropped, as the last words of a process that was killed."""
        self._pattern = None
        self._forward = forward
        self._go_on.set()

    @contextmanager
    def down(self) -> Iterator[None]:
        """As if nobody listened: connections are reset, and new ones closed at once."""
        self._down = True
        for connection in list(self._open):
            _reset(connection)
        try:
            yield
        finally:
            self._down = False

    @contextmanager
    def breaking(self, fault: Callable[[bytes], bytes | None]) -> Iterator[None]:
        """Ask `fault` about each chunk that a client sends.

        It returns None to let it pass, bytes to answer them instead of upstream and close, or b"" to reset both sides
        after half of it.
        """
        self._break = fault
        try:
            yield
        finally:
            self._break = None

    @contextmanager
    def altering(self, change: Callable[[bytes], bytes]) -> Iterator[None]:
        """Pass on what `change` makes of each chunk, in both directions; it may take its time."""
        self._alter = change
        try:
            yield
        finally:
            self._alter = None

    def close(self) -> None:
        self.release()
        self._down = True
        self._listener.close()
        for connection in list(self._open):
            _reset(connection)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        if self._down:
            self.faults += 1
            return _reset(client)
        try:
            server = socket.create_connection(self.upstream)
        except OSError:
            return _reset(client)
        self._open |= {client, server}
        threading.Thread(target=self._answers, args=(server, client), daemon=True).start()
        with suppress(OSError):
            while chunk := client.recv(CHUNK):
                if self._pattern is not None and self._pattern in chunk and not self._skipped():
                    self.held.set()
                    self._go_on.wait()
                    if not self._forward:
                        break
                answer = self._break(chunk) if self._break is not None else None
                if answer is not None:
                    self.faults += 1
                    if answer:
                        client.sendall(answer)
                        client.shutdown(socket.SHUT_WR)
                    else:
                        server.sendall(chunk[: len(chunk) // 2])
                    break
                server.sendall(self._altered(chunk))
        for connection in (client, server):
            self._open.discard(connection)
            _reset(connection)

    def _skipped(self) -> bool:
        with self._counting:
            self._skip -= 1
            return self._skip >= 0

    def _answers(self, server: socket.socket, client: socket.socket) -> None:
        with suppress(OSError):
            while chunk := server.recv(CHUNK):
                client.sendall(self._altered(chunk))
        for connection in (client, server):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _altered(self, chunk: bytes) -> bytes:
        change = self._alter
        return chunk if change is None else change(chunk)


def _reset(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
