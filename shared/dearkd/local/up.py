"""The whole of dearkd as one process tree: Redis, the API, synth workers and a trainer worker, on one folder."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Self

import httpx

from dearkd.errors import Conflict, DearKDError, Unavailable
from dearkd.folders import private_folder
from dearkd.identifiers import new_id
from dearkd.jobs.queue import QueueName, require_worker
from dearkd.key_variables import CHECKED, without_keys
from dearkd.local import process_tree
from dearkd.local.embedded_redis import EmbeddedRedis
from dearkd.local.folder_lock import lock_folder, write_owner
from dearkd.local.part_log import PartLog
from dearkd.local.parts import PARTS, Part
from dearkd.local.process_tree import MARK, Family, Guardian
from dearkd.redis_client import connect
from dearkd.settings import Settings
from dearkd.storage.objects import Storage

DEATHS = 5
DEATHS_WINDOW_SECONDS = 60.0
REDIS = "redis"


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class UpTree:
    """`with UpTree(Path("dearkd-data"), port=0) as tree:` and all parts are up at `tree.url`; afterwards none is left.

    A part that dies is started again, after a pause that doubles from `backoff_seconds`; `DEATHS` deaths of one part
    within `DEATHS_WINDOW_SECONDS` fail the whole tree: `wait` raises.

    Args:
        data: the folder: `storage/`, `redis/`, `cache/`, `metrics/`, `logs/`, and `up.lock`, which keeps a second tree
            out.
        port: of the API; 0 takes a free one.
        host: address that the API binds to.
        parts: what runs beside Redis; the API is the one that answers on `host` and `port`.
        environment: of the parts, before the tree's own settings. Default: this process's. With `DEARKD_REDIS_URL` in
            it that Redis is used and none is started; `DEARKD_STORAGE_URL`, `DEARKD_CACHE_DIR` and `DEARKD_METRICS_DIR`
            are respected too.
        say: gets a line for each warning of a part, each death and each restart; called from several threads.
        ready_seconds: how long all parts together may take to come up.
        grace_seconds: between SIGTERM and SIGKILL, when the tree ends.
        adopt_storage: take the storage that is there, also if Redis knows another.
    """

    def __init__(
        self,
        data: Path,
        port: int = 8000,
        *,
        host: str = "127.0.0.1",
        parts: Sequence[Part] = PARTS,
        environment: Mapping[str, str] | None = None,
        say: Callable[[str], None] = _to_stderr,
        ready_seconds: float = 180.0,
        grace_seconds: float = process_tree.GRACE_SECONDS,
        backoff_seconds: float = 0.5,
        adopt_storage: bool = False,
    ) -> None:
        self.data = data.absolute()
        self.host = host
        self.port = port
        self.failure: str | None = None
        self._parts = tuple(parts)
        self._environment = dict(os.environ if environment is None else environment)
        self._say = say
        self._ready_seconds = ready_seconds
        self._grace_seconds = grace_seconds
        self._backoff_seconds = backoff_seconds
        self._adopt_storage = adopt_storage
        self._mutex = threading.Lock()
        self._ending = threading.Event()
        self._over = threading.Event()  # ending or failed
        self._hurry = threading.Event()
        self._mark = new_id("tmp")
        self._families: dict[str, Family] = {}
        self._keepers: list[threading.Thread] = []
        self._guardian: Guardian | None = None
        self._lock: IO[str] | None = None

    @property
    def url(self) -> str:
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    @property
    def storage_url(self) -> str:
        return self._environment["DEARKD_STORAGE_URL"]

    @property
    def _settings(self) -> Settings:
        """The settings as the parts read them from their environment."""
        prefix = "DEARKD_"
        given = {key: value for key, value in self._environment.items() if key.startswith(prefix)}
        return Settings.model_validate({key.removeprefix(prefix).lower(): value for key, value in given.items()})

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start all parts and return once the API says that it is ready and the workers listen.

        Raises:
            Conflict: if another tree uses the folder, or another program the port; nothing was started.
            Unavailable: if there is no Redis to start, a given Redis or storage cannot be reached, or the tree did not
                come up; nothing is left running.
        """
        try:
            private_folder(self.data)
            private_folder(self.data / "logs")
            self._lock = lock_folder(self.data)
            # It holds the folder's lock too, so that no second tree starts before the last process of this is gone.
            self._guardian = Guardian(pass_fds=[self._lock.fileno()])
            self.port = _require_free(self.host, self.port)
            write_owner(self._lock, self.url)
            self._set_environment()
            self._start_redis()
            self._try_storage()
            for part in self._parts:
                self._keep(part)
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise

    def wait(self) -> None:
        """Block for as long as the tree lives.

        Raises:
            Unavailable: once a part has died too often.
        """
        self._over.wait()
        self._raise_failure()

    def hurry(self) -> None:
        """Let a stop that is under way, or yet to come, skip the grace period."""
        self._hurry.set()

    def stop(self) -> None:
        """End all parts and what they started, Redis last; returns when no process is left. May be called again."""
        with self._mutex:
            self._ending.set()
            self._over.set()
        stuck = []
        for wave in self._waves():
            stuck += process_tree.terminate(wave, grace_seconds=self._grace_seconds, hurry=self._hurry)
        for process in stuck:
            self._say(f"process {process.pid} hangs in the kernel and could not be killed")
        for keeper in self._keepers:
            keeper.join()
        self._families.clear()
        if self._guardian is not None:
            self._guardian.close()
            self._guardian = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _set_environment(self) -> None:
        environment = self._environment
        if not environment.get("DEARKD_STORAGE_URL"):
            environment["DEARKD_STORAGE_URL"] = f"file://{self.data / 'storage'}"
        if not environment.get("DEARKD_CACHE_DIR"):
            environment["DEARKD_CACHE_DIR"] = str(self.data / "cache")
        if not environment.get("DEARKD_METRICS_DIR"):
            environment["DEARKD_METRICS_DIR"] = str(self.data / "metrics")
        environment |= {
            "DEARKD_URL": self.url,
            "DEARKD_HOST": self.host,
            "DEARKD_PORT": str(self.port),
            "PYTHONUNBUFFERED": "1",
        }

    def _start_redis(self) -> None:
        if self._environment.get("DEARKD_REDIS_URL") or self._environment.get("DEARKD_REDIS_URL_FILE"):
            _require_redis(self._settings)
            return
        folder = self.data / "redis"
        private_folder(folder)
        server = EmbeddedRedis(folder)
        self._environment["DEARKD_REDIS_URL"] = server.url
        part = Part(
            REDIS,
            tuple(server.command),
            stdin=server.configuration,
            directory=folder,
            show_warnings=False,  # at every start it warns of kernel settings that do not matter here
        )
        self._keep(part)
        try:
            server.wait_until_ready(lambda: not self._over.is_set())
        except Unavailable:
            self._raise_failure()  # which says why
            raise

    def _try_storage(self) -> None:
        with connect(self._settings) as redis:
            storage = Storage.open(self._settings, redis)
            if self._adopt_storage:
                self._say(f"storage is {storage.adopt()} from now on")
            storage.ping()

    def _keep(self, part: Part) -> None:
        keeper = threading.Thread(target=self._keep_running, args=(part,), name=f"keep-{part.name}", daemon=True)
        self._keepers.append(keeper)
        keeper.start()

    def _keep_running(self, part: Part) -> None:
        deaths: deque[float] = deque()
        path = self.data / "logs" / f"{part.name}.log"
        with PartLog(path, part.name, self._warn if part.show_warnings else None) as log:
            while (process := self._launch(part)) is not None:
                reader = log.follow(process)
                code = process.wait()
                if not self._ending.is_set():
                    # What it leaves behind would work on beside its successor.
                    process_tree.kill([self._families[part.name]])
                reader.join(process_tree.GRACE_SECONDS)
                if self._ending.is_set():
                    return
                now = time.monotonic()
                deaths.append(now)
                while now - deaths[0] > DEATHS_WINDOW_SECONDS:
                    deaths.popleft()
                death = f"{part.name} died ({_exit_text(code)}{log.last_words}; log: {log.path})"
                if len(deaths) >= DEATHS:
                    self._fail(f"{death}; death {len(deaths)} within {DEATHS_WINDOW_SECONDS:.0f} s: giving up")
                    return
                pause = self._backoff_seconds * 2 ** (len(deaths) - 1)
                self._say(f"{death}; starting it again in {pause:g} s")
                self._over.wait(pause)

    def _warn(self, line: str) -> None:
        # What the parts complain of while they are being ended is what was asked of them; their logs have it.
        if not self._ending.is_set():
            self._say(line)

    def _launch(self, part: Part) -> subprocess.Popen[bytes] | None:
        # Under the mutex, so that `stop` either sees this process among the families or keeps it from starting.
        with self._mutex:
            if self._over.is_set():
                return None
            mark = f"{self._mark}-{part.name}"
            kept = CHECKED if part.checks_keys else ()
            try:
                process = subprocess.Popen(
                    part.command,
                    cwd=part.directory,
                    env={**part.environment, **without_keys(self._environment, but=kept), MARK: mark},
                    stdin=subprocess.DEVNULL if part.stdin is None else subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    umask=0o077,
                )
            except OSError as error:
                self._fail(f"{part.name} could not be started: {error}")
                return None
            self._families[part.name] = Family(process.pid, mark)
            assert self._guardian is not None
            self._guardian.guard(self._waves())
        if part.stdin is not None and process.stdin is not None:
            with suppress(BrokenPipeError):
                process.stdin.write(part.stdin)
                process.stdin.close()
        return process

    def _waves(self) -> list[list[Family]]:
        """The parts in the order in which they end: Redis after those who still write to it."""
        parts = [family for name, family in self._families.items() if name != REDIS]
        redis = [family for name, family in self._families.items() if name == REDIS]
        return [parts, redis]

    def _fail(self, message: str) -> None:
        self.failure = message
        self._over.set()

    def _raise_failure(self) -> None:
        if self.failure is not None:
            raise Unavailable(self.failure, code="part_failed")

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self._ready_seconds
        redis = connect(self._settings)
        with httpx.Client(trust_env=False, timeout=10) as http, redis:
            while missing := self._missing(http, lambda name: require_worker(redis, name)):
                self._raise_failure()
                if time.monotonic() >= deadline:
                    raise Unavailable(
                        f"not ready after {self._ready_seconds:.0f} s: {missing}; the parts' logs are in "
                        f"{self.data / 'logs'}",
                        code="not_ready",
                    )
                self._over.wait(0.1)

    def _missing(self, http: httpx.Client, require: Callable[[QueueName], None]) -> str | None:
        try:
            response = http.get(f"{self.url}/readyz")
            if response.status_code != 200:
                return f"the API answers {response.status_code}: {response.text[:500]}"
            for part in self._parts:
                for name in part.queues:
                    require(name)
        except httpx.HTTPError as error:
            return f"the API does not answer: {error}"
        except DearKDError as error:
            return error.message
        return None


def _require_free(host: str, port: int) -> int:
    """The port, or a free one for 0."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.create_server((host, port), family=family) as probe:
            return int(probe.getsockname()[1])
    except OSError as error:
        raise Conflict(
            f"port {port} on {host} cannot be used ({os.strerror(error.errno or 0)}): stop the program that has it, or "
            "choose another with --port N (0 takes a free one)",
            code="port_taken",
        ) from None


def _require_redis(settings: Settings) -> None:
    try:
        with connect(settings) as redis:
            redis.ping()
    except (Unavailable, ValueError) as error:
        why = error.cause if isinstance(error, Unavailable) else error
        raise Unavailable(
            f"the Redis that DEARKD_REDIS_URL names does not answer ({why}): start it, mend the URL, or unset it so "
            "that one is started here",
            code="redis_unavailable",
        ) from error


def _exit_text(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
