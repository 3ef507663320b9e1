"""A run of several processes, and this one that watches over them: what is the same however they were started.

Only this process holds the attempt: it reports the group's progress to Redis and storage, and ends the group. The
group's processes (`dearkd_trainer.service.rank`) each have a connection to it, and exit when that closes, so they never
outlive it. Rank 0 reports progress; each reports why it fails. One that is gone without a report was killed or crashed:
then the others are ended too, and the attempt counts as a death, after which the run goes on from its last checkpoint.
"""

import json
import queue
import socket
import subprocess
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, ClassVar, Protocol, Self

import psutil

from dearkd import errors
from dearkd.work.attempt import Died, HandBack
from dearkd.work.worker import GRACE_SECONDS, exit_clause
from dearkd_trainer.evaluate.evaluation import Evaluation
from dearkd_trainer.service.link import LAUNCHER, Message, failure, receive_file
from dearkd_trainer.train.failures import LoaderLost
from dearkd_trainer.train.trainer import Metrics, TrainingResult

POLL_SECONDS = 0.2
CHECKPOINT_SECONDS = GRACE_SECONDS - 2
"""The time in which a group that has to end makes a last checkpoint: less than its worker waits before it kills."""
CAUSE_SECONDS = 2.0
"""The time to wait, after an error, for the news that another process died: that may have caused the error."""
EXIT_SECONDS = 60.0
START_SECONDS = 300.0
"""The time in which one of the processes must be there, not counting waits for room: else their start is stuck."""
HELLO_BYTES = 256
"""The longest first line: a rank and a token of 32 characters take a quarter of that."""
HELLO_SECONDS = 5.0
"""The time in which who connects has to say who it is."""
STRANGERS = 16
"""The most connections at a time of which that is not known yet; others wait in the listener's backlog."""
LINE_BYTES = 2**28
"""The longest message: a result with a confusion matrix of 2,000 classes takes 90 MB, and 1,000 epochs 1 MB."""


class Reporter(Protocol):
    """A listener to the run's progress."""

    def begin(self, history: list[Metrics], step: int, images: int) -> None: ...
    def on_step(self, step: int, steps: int) -> None: ...
    def on_epoch(self, row: Metrics) -> None: ...
    def on_checkpoint(self, path: Path) -> None: ...
    def on_wait(self, what: str | None) -> None: ...


class Group(ABC):
    """The processes of a run; they live while the block runs.

    Args:
        processes: how many the run asks for.
        directory: of the run's files on this machine.
        check: called while no message comes; what it raises ends the run (`HandBack`: after a last checkpoint).
        note: called with lines for the job's log, such as the traceback of a failed process.
    """

    launcher: ClassVar[str]
    """The name of the program that starts the processes."""

    def __init__(
        self, processes: int, directory: Path, *, check: Callable[[], None], note: Callable[[str], None]
    ) -> None:
        self.processes, self.directory = processes, directory
        self.check, self.note = check, note
        self.cause_seconds = CAUSE_SECONDS
        self._inbox: queue.Queue[tuple[int, Message | None]] = queue.Queue()
        """Ranks and their messages; None: the connection of that rank is closed."""
        self._strangers = threading.Semaphore(STRANGERS)
        self._connections: dict[int, socket.socket] = {}
        self._processes: list[psutil.Process] = []
        """The processes of this machine that have to be ended: children of the launcher, unless that was killed."""
        self._over = threading.Event()
        self._launcher_lost_at: float | None = None
        """The time at which the launcher was found to have failed."""
        self._reported: set[int] = set()
        """Ranks that reported their result or failure."""
        self._begun = False
        self._present = threading.Event()
        """A process of the run has connected."""
        self._awaited_since: float | None = None
        """The time from which they are awaited; None while they wait for room."""
        self._deadline: float | None = None
        """The time by which the last checkpoint must be there; 0 once it is; None if the run is not handed back."""

    @abstractmethod
    def _listen(self, folder: Path) -> socket.socket:
        """Open the socket that the processes connect to; `folder` is ours alone, and of a short name."""

    @abstractmethod
    def _launch(self, folder: Path) -> subprocess.Popen[bytes]:
        """Start the launcher, in a session of its own."""

    @abstractmethod
    def _admit(self, connection: socket.socket, hello: bytes) -> int:
        """The rank of who has connected, by its first line. Raises `ValueError` if it is none of the group."""

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="group-")
        self._listener = self._listen(Path(self._folder.name))
        threading.Thread(target=self._accept, name="process-group", daemon=True).start()
        self._launched = self._launch(Path(self._folder.name))
        self._awaited_since = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            with suppress(subprocess.TimeoutExpired):
                self._launched.wait(EXIT_SECONDS)
        self._over.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with suppress(psutil.NoSuchProcess):
            self._processes.insert(0, psutil.Process(self._launched.pid))
        for head in list(self._processes):
            with suppress(psutil.NoSuchProcess):
                for process in [head, *head.children(recursive=True)]:
                    with suppress(psutil.NoSuchProcess):
                        process.kill()
        self._launched.wait()
        self._folder.cleanup()
        for connection in list(self._connections.values()):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    def run(self, reporter: Reporter) -> TrainingResult:
        """Wait for the result, and pass on the reports of progress until then.

        Raises:
            Died: if a process was killed or crashed.
            HandBack: if this process has to end, after a last checkpoint where there was time for one.
            DearKDError: the one that ended a process of the group, or the attempt.
            RuntimeError: any other error of a process of the group.
        """
        while True:
            try:
                rank, message = self._next()
                if message is None:
                    if rank not in self._reported:
                        raise Died(self._loss(rank))
                elif message["what"] == "failed":
                    self._fail(rank, message)
                elif message["what"] == "died":
                    raise Died(message["why"])
                elif message["what"] == "ended":
                    self._reported.add(rank)
                    if rank == 0:
                        return _result(message["result"], self.directory)
                else:
                    self._pass_on(message, reporter)
            except HandBack:
                self._hand_back()
            except Died:
                if self._deadline is not None:
                    raise HandBack from None
                raise

    def _next(self) -> tuple[int, Message | None]:
        while True:
            self._require_launcher()
            try:
                return self._inbox.get(timeout=POLL_SECONDS)
            except queue.Empty:
                self.check()
                self._require_start()

    def _require_start(self) -> None:
        """Raise `Died` if the run's processes should be there by now, and none is."""
        since = self._awaited_since
        if since is not None and not self._present.is_set() and time.monotonic() - since > START_SECONDS:
            raise Died(
                f"none of the run's processes was there {START_SECONDS:.0f} seconds after {self.launcher} had begun"
            )

    def _require_launcher(self) -> None:
        """Raise `Died` if the launcher failed; after 2 s, as it also fails after a death, which is reported first."""
        if not (code := self._launched.poll()):
            return
        self._launcher_lost_at = self._launcher_lost_at or time.monotonic()
        if code < 0 or time.monotonic() - self._launcher_lost_at > CAUSE_SECONDS:
            raise Died(f"lost {self.launcher}, which answers for the run's processes: it {exit_clause(code)}")

    def _pass_on(self, message: Message, reporter: Reporter) -> None:
        match message["what"]:
            case "begins":
                self._begun = True
                if (there := message["processes"]) < self.processes:
                    self.note(f"trains in {there} processes instead of {self.processes}: no more find room now")
                reporter.begin(message["history"], message["step"], message["images"])
            case "step":
                reporter.on_step(message["step"], message["steps"])
                return
            case "note":
                self.note(message["line"])
                return
            case "waits":
                self._awaited_since = time.monotonic() if message["why"] is None else None
                reporter.on_wait(message["why"])
                return
            case "epoch":
                reporter.on_epoch(message["row"])
            case "checkpoint":
                try:
                    reporter.on_checkpoint(self.directory / message["path"])
                except HandBack:
                    self._deadline = 0.0
                    raise
                if self._deadline is not None:
                    self._deadline = 0.0
                    raise HandBack
        # Rank 0 waits for this, so that what it reported does not change meanwhile.
        self._send("heard")

    def _hand_back(self) -> None:
        if not self._begun or (self._deadline is not None and time.monotonic() > self._deadline):
            raise HandBack
        if self._deadline is None:
            self._deadline = time.monotonic() + CHECKPOINT_SECONDS
            self._send("save")

    def _send(self, word: str) -> None:
        with suppress(OSError):  # rank 0 is gone, as the inbox will show
            self._connections[0].sendall(json.dumps(word).encode() + b"\n")

    def _fail(self, rank: int, message: Message) -> None:
        """Raise the error that ended the group: any process's `DearKDError`, else a process's death, else this failure.

        The failure that comes first need not be the cause: a process also fails because another died, or because
        the launcher ended its loader with the group.
        """
        failed = {rank: message}
        until = time.monotonic() + self.cause_seconds
        while True:
            self._reported.add(rank)
            _raise_if_known(message)
            rank, message = self._next_failure(until)
            if not message:
                break
            failed[rank] = message
        for rank, message in failed.items():
            if message["type"] == LoaderLost.__name__:
                raise Died(f"lost a process that read the images of rank {rank}: {message['message']}")
        rank, message = next(iter(failed.items()))
        self.note(f"rank {rank} failed:\n{message['traceback'].rstrip()}")
        raise RuntimeError(f"rank {rank} failed: {message['type']}: {message['message']}")

    def _next_failure(self, until: float) -> tuple[int, Message]:
        """The next rank that reports a failure, and its report; (-1, {}) at `until`. Raises `Died` if one just died."""
        while (left := until - time.monotonic()) > 0:
            with suppress(queue.Empty):
                rank, word = self._inbox.get(timeout=left)
                if word is None and rank not in self._reported:
                    raise Died(self._loss(rank))
                if word is not None and word["what"] == "died":
                    raise Died(word["why"])
                if word is not None and word["what"] == "failed":
                    return rank, word
        return -1, {}

    def _loss(self, rank: int) -> str:
        if rank == LAUNCHER:
            return f"lost {self.launcher}, which answers for the run's processes"
        return f"lost rank {rank} of the run's {self.processes} processes, which was killed or crashed"

    def _accept(self) -> None:
        while not self._over.is_set():
            self._strangers.acquire()
            try:
                connection, _ = self._listener.accept()
            except OSError:  # the block has ended; or who connected was gone at once, or files are short for a while
                self._strangers.release()
                self._over.wait(POLL_SECONDS)
                continue
            threading.Thread(target=self._read, args=(connection,), name="rank", daemon=True).start()

    def _read(self, connection: socket.socket) -> None:
        with connection:
            try:
                rank = self._admit(connection, _first_line(connection))
            except (OSError, ValueError):  # none of the group: anybody may connect to a port
                return
            finally:
                self._strangers.release()
            self._connections[rank] = connection
            if rank != LAUNCHER:
                self._present.set()
            try:
                with suppress(OSError, ValueError), connection.makefile("rb") as lines:
                    if self._over.is_set():  # too late to be among those that were ended
                        connection.shutdown(socket.SHUT_RDWR)
                    while (line := lines.readline(LINE_BYTES)).endswith(b"\n"):
                        message = json.loads(line)
                        if message["what"] == "file":
                            message = self._receive(lines, message)
                        if message:
                            self._inbox.put((rank, message))
            finally:
                self._inbox.put((rank, None))

    def _receive(self, lines: BinaryIO, message: Message) -> Message | None:
        """Take a file of rank 0's into the run's directory; returns a failure where this machine cannot."""
        try:
            receive_file(lines, self.directory, message)
        except ConnectionError:
            raise
        except OSError as error:
            return failure(error)
        return None


def _first_line(connection: socket.socket) -> bytes:
    """Read who connects, and nothing behind it; the connection then waits for as long as it takes.

    Raises:
        OSError: if it does not say so within `HELLO_SECONDS`, however slowly it goes on.
        ValueError: if it says more than `HELLO_BYTES`, or leaves.
    """
    until, line = time.monotonic() + HELLO_SECONDS, b""
    while not line.endswith(b"\n"):
        connection.settimeout(max(1e-3, until - time.monotonic()))
        byte = connection.recv(1)
        if not byte or len(line) == HELLO_BYTES:
            raise ValueError("no first line: it must say who connects")
        if time.monotonic() > until:
            raise TimeoutError
        line += byte
    connection.settimeout(None)
    return line


def _raise_if_known(message: Message) -> None:
    known = getattr(errors, message["type"], None)
    if isinstance(known, type) and issubclass(known, errors.DearKDError):
        found = [errors.FieldError(**error) for error in message["errors"]]
        raise known(message["message"], code=message["code"], errors=found)


def _result(found: dict[str, Any], directory: Path) -> TrainingResult:
    evaluation = found.pop("evaluation")
    return TrainingResult(
        **{**found, "weights": directory / found["weights"]},
        evaluation=Evaluation(**evaluation) if evaluation is not None else None,
    )


def as_json(result: TrainingResult) -> dict[str, Any]:
    """The result as JSON, from which `Group.run` rebuilds it in the run's directory."""
    return {**asdict(result), "weights": result.weights.name}
